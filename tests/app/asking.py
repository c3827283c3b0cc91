"""What a run says of an image, asked in different ways."""

import contextlib
import copy
import io
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from starlette.testclient import TestClient
from torch import Tensor, nn

from delta_transfer.app.explainer import Explainer
from delta_transfer.app.load_run import load_run
from delta_transfer.app.web_app import create_app
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.features.taps import Taps


def moved_run(finished: Path, folder: Path) -> Path:
    """A copy of a finished run whose network is clearly no longer the pretrained one."""
    unneeded = shutil.ignore_patterns("checkpoints", "tensorboard", "examples")
    shutil.copytree(finished, folder, ignore=unneeded)
    file = folder / "model" / "model.safetensors"
    generator = torch.Generator().manual_seed(0)
    state = load_file(file)
    for name, tensor in state.items():
        if name.endswith("conv_pw.weight") or name == "classifier.weight":
            tensor += 0.2 * tensor.std() * torch.randn(tensor.shape, generator=generator)
    save_file(state, file, metadata={"format": "pt"})
    return folder


def changed(run: Path, folder: Path, **options: object) -> Path:
    """A copy of a run that had other options."""
    shutil.copytree(run, folder)
    file = folder / "config.yaml"
    text = file.read_text()
    for name, value in options.items():
        text, found = re.subn(f"(?m)^{name}: .*$", f"{name}: {value}", text)
        assert found == 1
    file.write_text(text)
    return folder


def opened(run: Path, examples: int = 100) -> Explainer:
    return load_run(run, examples=examples, device="cpu", progress=silent)


@contextlib.contextmanager
def silent(what: str, unit: str) -> Iterator[None]:
    """Shows no progress."""
    yield None


def ask(explainer: Explainer) -> TestClient:
    """The page without a network, which takes up to a MiB."""
    site = create_app(explainer, hosts=["testserver"], limit=2**20)
    return TestClient(site, base_url="http://testserver")


def page_text(explainer: Explainer, image: Image.Image) -> str:
    """What the page says of an image, tags left out."""
    answer = ask(explainer).post("/explain", files={"images": ("x.png", as_bytes(image))})
    assert answer.status_code == 200
    return " ".join(re.sub("<[^>]*>", " ", answer.text).split())


def as_bytes(image: Image.Image, kind: str = "PNG") -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def inputs_of(explainer: Explainer, image: Image.Image) -> Tensor:
    """What the network is given, by timm's own transform."""
    spec = explainer.predictor.backbone.input_spec
    transform = timm.data.create_transform(
        (3, spec.size, spec.size),
        interpolation=spec.interpolation,
        mean=spec.mean,
        std=spec.std,
        crop_pct=spec.crop_pct,
    )
    return transform(image)[None]


def target_of(explainer: Explainer) -> nn.Module:
    """A copy of the fine-tuned network."""
    return copy.deepcopy(explainer.predictor.backbone.module).eval()


def source() -> nn.Module:
    """The pretrained network, with some head."""
    return load_backbone("pypi/efficientnet_lite0", num_outputs=2, image_size=32).module.eval()


def both_features(explainer: Explainer, image: Image.Image) -> dict[str, tuple[Tensor, Tensor]]:
    """Tap -> features of the fine-tuned and the pretrained network, `[S, C]`."""
    found = []
    for network in (target_of(explainer), source()):
        with Taps(network, list(explainer.taps)) as taps, torch.no_grad():
            network(inputs_of(explainer, image))
            found.append(taps.features())
    return {tap: (found[0][tap][0], found[1][tap][0]) for tap in explainer.taps}
