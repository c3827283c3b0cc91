"""What the Python blocks of a page go on from: small networks and a few images, by page."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from tests.networks import conv_net
from tests.rows import graph_net, some_rows
from tests.run_folders import write_images

Names = dict[str, Any]


def of_page(page: str, monkeypatch: pytest.MonkeyPatch) -> Names:
    """The names that the blocks of a page find, in a new folder that is the working one.

    Wherever a page makes a network of timm, it gets a small one without pretrained weights.

    Args:
        page: the path of the page from the root of the repository.
        monkeypatch: undoes it all when the test is over.
    """
    monkeypatch.setattr(timm, "create_model", _small(timm.create_model))
    return _SETUPS.get(page, _networks)(monkeypatch)


def _small(create: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    def make(
        name: str, *, pretrained: bool = False, num_classes: int = 8, **others: Any
    ) -> nn.Module:
        """The weights are the same each time, but for the head's, as with pretrained ones."""
        if others:  # the library's own call, of a network that is installed
            return create(name, pretrained=pretrained, num_classes=num_classes, **others)
        torch.manual_seed(0)
        if name.startswith("resnet50"):  # its modules by their names, with few channels
            network: Any = ResNet(Bottleneck, [3, 4, 6, 3], channels=(4, 4, 8, 8))
        else:
            network = create("test_resnet")
        network.reset_classifier(num_classes)
        network.pretrained_cfg = {"label_names": [f"class {i}" for i in range(num_classes)]}
        return network

    return make


def _networks(monkeypatch: pytest.MonkeyPatch) -> Names:
    """Two networks with the same body, and loaders of a few images: what most pages need."""
    source = timm.create_model("small", num_classes=8)
    target = timm.create_model("small", num_classes=37)
    data = TensorDataset(torch.randn(8, 3, 64, 64), torch.arange(8) // 2)
    loader = DataLoader(data, batch_size=4)
    networks = {"timm": timm, "source": source, "target": target}
    return {**networks, "eval_dataloader": loader, "train_loader": loader}


def _with_images(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A folder of images beside these."""
    write_images(Path("images"))
    return _networks(monkeypatch)


def _graphs(monkeypatch: pytest.MonkeyPatch) -> Names:
    source, target = graph_net(), graph_net(outputs=4)
    body = {n: t for n, t in source.state_dict().items() if not n.startswith("head.")}
    target.load_state_dict(body, strict=False)
    loader = [(some_rows(seed=seed), torch.arange(4)) for seed in range(2)]
    return {"source": source, "target": target, "train_loader": loader}


def _export(monkeypatch: pytest.MonkeyPatch) -> Names:
    """An exported network and new images, where the page has them."""
    from delta_transfer.backbones.custom import wrap_network
    from delta_transfer.backbones.saved import save_model
    from delta_transfer.config.train import TrainOptions
    from delta_transfer.export.export import export_run
    from delta_transfer.inference.predictor import Predictor

    images = write_images(Path("images"))
    Path("new_images").symlink_to(images / "test" / "checks")
    backbone = wrap_network(conv_net(), num_outputs=3, image_size=24)
    run = Path("runs", "mine")
    (run / "model").mkdir(parents=True)
    save_model(run / "model", backbone, backbone.module, classes=["checks", "rings", "stripes"])
    (run / "config.yaml").write_text(TrainOptions(data=str(images)).resolve().to_yaml())
    export_run(Predictor(run, device="cpu", network=conv_net()), format="onnx")
    return {}


def _tutorial(monkeypatch: pytest.MonkeyPatch) -> Names:
    """A small network in the place of the pretrained one; the slow test has the real one."""
    import delta_transfer
    from delta_transfer.backbones.custom import wrap_network

    def small(name: str, *, num_outputs: int) -> delta_transfer.Backbone:
        class Small(nn.Module):
            """Its head has the name that the page gives."""

            def __init__(self) -> None:
                super().__init__()
                self.body = conv_net()
                self.body.fc = nn.Identity()
                self.classifier = nn.Linear(6, num_outputs)

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return self.classifier(self.body(x))

        torch.manual_seed(0)
        return wrap_network(Small(), num_outputs=num_outputs, image_size=48)

    monkeypatch.setattr(delta_transfer, "load_backbone", small)
    return {}


_SETUPS: dict[str, Callable[[pytest.MonkeyPatch], Names]] = {
    "docs/guides/research.md": _with_images,
    "docs/methods/gtot.md": _graphs,
    "docs/export.md": _export,
    "docs/tutorial.md": _tutorial,
}
