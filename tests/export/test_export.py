"""Exported networks, loaded without this package, must predict as `Predictor` does."""

import dataclasses
import json
import math
import os
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import timm
import timm.data
import torch
from PIL import Image
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone, GraphSpec, InputSpec
from delta_transfer.backbones.custom import wrap_network
from delta_transfer.backbones.registry import load_backbone, load_graph_backbone
from delta_transfer.backbones.saved import save_model
from delta_transfer.cli.main import main
from delta_transfer.config.train import TrainOptions
from delta_transfer.data.registry import load_data
from delta_transfer.data.task import Split
from delta_transfer.errors import UserError
from delta_transfer.export import export as exporting
from delta_transfer.export.export import TOLERANCE, export_run
from delta_transfer.export.formats import FORMATS
from delta_transfer.export.verification import compare_outputs, find_samples
from delta_transfer.inference.predictor import Predictor
from delta_transfer.metrics.task_types import MULTICLASS, MultilabelBinary, Regression, TaskType
from delta_transfer.training.loaders import Dataloaders
from tests.networks import conv_net

DOCS = Path(__file__).parents[2] / "docs" / "export.md"
PATCHES = load_data("skimage/patches", seed=0)


def saved_run(
    folder: Path,
    backbone: Backbone,
    *,
    data: str = "skimage/patches",
    task_type: TaskType = MULTICLASS,
    **options: object,
) -> Path:
    """Write the folder of a run without training."""
    (folder / "model").mkdir(parents=True)
    outputs = backbone.module.get_submodule(backbone.head).out_features
    names = [*PATCHES.classes, *map(str, range(outputs))][:outputs]
    save_model(folder / "model", backbone, backbone.module, classes=names, task_type=task_type)
    (folder / "config.yaml").write_text(TrainOptions(data=data, **options).resolve().to_yaml())
    return folder


def network(name: str, size: int | None = 32, *, pretrained: bool = False) -> Backbone:
    """Return a network with a large head, so that its predictions differ between images."""
    torch.manual_seed(0)
    backbone = load_backbone(
        name, num_outputs=len(PATCHES.classes), image_size=size, pretrained=pretrained
    )
    with torch.no_grad():
        backbone.module.get_submodule(backbone.head).weight.mul_(20)
    return backbone


def wrapped(module: nn.Module) -> Backbone:
    """Return a custom network with the weights of its head."""
    head = module.fc.state_dict()
    backbone = wrap_network(module, num_outputs=len(module.fc.bias), image_size=24)
    backbone.module.fc.load_state_dict(head)
    return backbone


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a run of a small network; read-only."""
    return saved_run(tmp_path_factory.mktemp("runs") / "mine", network("test_resnet"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return shutil.copytree(made, tmp_path / "runs" / "mine")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 50 patches of photographs, of different shapes."""
    folder = tmp_path_factory.mktemp("images")
    split = PATCHES.test
    for number in range(50):
        patch = split.read(split.paths[number * len(split) // 50])
        patch.crop((0, 0, 40 - number % 7, 40 - number % 5)).save(folder / f"{number:02}.png")
    return folder


def by_timm(folder: Path, files: list[Path]) -> np.ndarray:
    """Return probabilities by timm alone, with its own transform."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = timm.data.resolve_data_config({}, model=loaded)
    transform = timm.data.create_transform(**config)
    inputs = torch.stack([transform(Image.open(file).convert("RGB")) for file in files])
    with torch.no_grad():
        return loaded(inputs).softmax(dim=1).numpy()


def by_the_example(text: str) -> dict[str, object]:
    """Run the example in the documentation; return its names."""
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, object] = {}
    exec(example, names)
    return names


REAL = [
    pytest.param("test_resnet", 32, False, id="small"),
    pytest.param("pypi/efficientnet_lite0", None, True, id="lite0", marks=pytest.mark.slow),
    pytest.param("resnet50", None, False, id="resnet50", marks=pytest.mark.slow),
    pytest.param("vit_small_patch16_224", None, False, id="vit", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("name", "size", "pretrained"), REAL)
def test_onnx_and_timm_predict_the_same_for_50_images(
    tmp_path, images, monkeypatch, capfd, name, size, pretrained
):
    run = saved_run(tmp_path / "runs" / "mine", network(name, size, pretrained=pretrained))
    monkeypatch.chdir(tmp_path)
    Path("new_images").symlink_to(images)
    files = sorted(Path("new_images").glob("*"))
    predictor = Predictor(run, device="cpu", num_workers=0)
    found = predictor.predict(files)
    expected = np.array([[p.probabilities[c] for c in predictor.classes] for p in found])
    assert len(files) == 50
    assert len(set(expected.argmax(axis=1))) > 1  # otherwise any network would pass
    capfd.readouterr()

    assert main(["export", "runs/mine"]) == 0
    said = capfd.readouterr()
    assert said.err == ""  # also of torch and onnxruntime, which write past Python
    assert main(["export", "runs/mine", "--format=safetensors"]) == 0
    assert capfd.readouterr().err == ""

    lines = re.fullmatch(
        r"file        (.*)\nopset       (\d+)\nsize        ([\d.]+) MiB\n"
        r"difference  at most (.*) in the logits, on 50 images of skimage/patches\n",
        said.out,
    )
    assert lines is not None, said.out
    assert lines[1] == "runs/mine/export/onnx/model.onnx"
    assert int(lines[2]) == onnx.load(lines[1]).opset_import[0].version
    assert float(lines[4]) <= TOLERANCE
    example = by_the_example(DOCS.read_text())
    assert example["paths"] == files
    for answers in (example["probabilities"], by_timm(run / "export" / "safetensors", files)):
        assert (answers.argmax(axis=1) == expected.argmax(axis=1)).all()
        assert np.abs(answers - expected).max() < 1e-4


def test_an_onnx_file_documents_its_use(run, tmp_path):
    wide = saved_run(tmp_path / "conv", wrap_network(conv_net(), num_outputs=3, image_size=24))
    found = export_run(Predictor(wide, device="cpu", network=conv_net()), out=tmp_path / "out")
    file = onnx.load(found.file)
    beside = json.loads((tmp_path / "out" / "preprocessing.json").read_text())
    assert {prop.key: json.loads(prop.value) for prop in file.metadata_props} == beside
    spec = json.loads((wide / "model" / "config.json").read_text())["pretrained_cfg"]
    assert beside["classes"] == list(PATCHES.classes[:3])
    assert (beside["size"], beside["crop"]) == (24, "center")
    assert beside["resize"] == math.floor(24 / spec["crop_pct"])
    assert beside["resize_mode"] == "shorter side"
    assert [beside[name] for name in ("mean", "std")] == [spec["mean"], spec["std"]]
    assert beside["interpolation"] == spec["interpolation"]
    (inputs,), (outputs,) = file.graph.input, file.graph.output
    assert (inputs.name, outputs.name) == ("images", "logits")
    first, *others = inputs.type.tensor_type.shape.dim
    assert first.dim_param == outputs.type.tensor_type.shape.dim[0].dim_param == "batch"
    assert [dim.dim_value for dim in others] == [3, 24, 24]
    assert found.size_bytes == sum(path.stat().st_size for path in (tmp_path / "out").iterdir())


def test_a_torch_program_accepts_any_batch_size(run):
    found = export_run(Predictor(run, device="cpu"), format="torch")
    assert (found.file, found.opset) == (run / "export" / "torch" / "model.pt2", None)
    extra = {"preprocessing.json": ""}
    program = torch.export.load(found.file, extra_files=extra).module()
    assert json.loads(extra["preprocessing.json"])["classes"] == list(PATCHES.classes)
    original = timm.create_model(f"local-dir:{run / 'model'}", pretrained=True).eval()
    for count in (1, 2, 7):
        inputs = torch.randn(count, 3, 32, 32)
        with torch.no_grad():
            assert torch.allclose(program(inputs), original(inputs), atol=1e-5)


@pytest.mark.parametrize(
    ("by", "size", "fails"),
    [
        (5e-5, 1.0, False),
        (2e-4, 1.0, True),
        (math.nan, 1.0, True),
        (9e-4, 100.0, False),  # the rounding of large numbers in float32
        (2e-3, 100.0, True),
    ],
)
def test_a_network_with_other_outputs_is_not_written(tmp_path, monkeypatch, by, size, fails):
    original = conv_net()
    nn.init.zeros_(original.fc.weight)
    nn.init.constant_(original.fc.bias, -size)
    run = saved_run(tmp_path / "run", wrapped(original))

    def read(*args: object) -> object:  # wrong for the last sample of a batch only
        return lambda inputs: torch.full((len(inputs), 3), -size).index_fill(
            0, torch.tensor([len(inputs) - 1]), -size + by
        )

    way = dataclasses.replace(FORMATS["safetensors"], read=read)
    monkeypatch.setitem(FORMATS, "safetensors", way)
    before = sorted(run.rglob("*"))
    predictor = Predictor(run, device="cpu", network=conv_net())
    if fails:
        with pytest.raises(UserError, match=r"differ .*, more than 1.0e-0[34], on 50 images"):
            export_run(predictor, format="safetensors")
        assert sorted(run.rglob("*")) == before
    else:
        assert export_run(predictor, format="safetensors").max_difference == pytest.approx(
            by, rel=0.1
        )


def test_every_batch_and_a_single_sample_are_compared():
    seen = []

    def one(inputs: Tensor) -> Tensor:
        seen.append(len(inputs))
        return inputs.sum(dim=(1, 2, 3))[:, None]

    samples = find_samples(TrainOptions(data="skimage/patches").resolve(), spec())
    found, _ = compare_outputs(one, lambda inputs: one(inputs) + len(inputs), samples.batches)
    assert found == pytest.approx(8, abs=1e-4)
    assert seen[::2] == seen[1::2] == [1, *[8] * 6, 2]


def spec() -> InputSpec:
    return InputSpec(
        size=16, crop_pct=1.0, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bilinear"
    )


def test_samples_are_of_the_test_split(tmp_path):
    colours = {"train": 10, "val": 20, "test": 30}
    for split, colour in colours.items():
        for name in ("cat", "dog"):
            for number in range(2):
                file = tmp_path / split / name / f"{number}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("RGB", (20, 20), (colour, 0, number)).save(file)
    (tmp_path / "test" / "dog" / "broken.png").write_text("Dear Sir")
    config = TrainOptions(
        data=str(tmp_path), batch_size=64, gradient_accumulation_steps=64
    ).resolve()
    for has_test, colour in ((True, 30), (False, 10)):
        samples = find_samples(config, spec())
        assert samples.description == f"4 images of {tmp_path}"
        (red,) = {value.item() for batch in samples.batches for value in batch[:, 0].unique()}
        assert red == pytest.approx((colour / 255 - 0.5) / 0.5)
        assert has_test == (tmp_path / "test").exists()
        shutil.rmtree(tmp_path / "test", ignore_errors=True)


@pytest.mark.parametrize("data", ["gone", "torchvision/dtd"])
def test_missing_images_are_replaced_by_those_of_scikit_image(monkeypatch, data):
    def fetch(*args: object, **options: object) -> None:
        raise AssertionError("a data set is downloaded")

    monkeypatch.setattr("delta_transfer.data.sources.torchvision._read", fetch)
    samples = find_samples(TrainOptions(data=data).resolve(), spec())
    assert samples.description.startswith(f"50 images of skimage/patches, not of {data},")
    assert sum(map(len, samples.batches)) == 51
    assert samples.batches[1].std() > 0.1


@pytest.mark.parametrize(
    ("task_type", "says"),
    [
        (MultilabelBinary(labelled_fraction=0.5), "sigmoid"),
        (Regression(mean=(1.0, 2.0), std=(3.0, 4.0)), "std plus mean"),
    ],
)
def test_binary_and_regression_targets_are_documented(tmp_path, task_type, says):
    backbone = wrap_network(conv_net(), num_outputs=2, image_size=24)
    run = saved_run(tmp_path / "run", backbone, task_type=task_type)
    predictor = Predictor(run, device="cpu", network=conv_net())
    export_run(predictor, format="safetensors")
    facts = json.loads((run / "export" / "safetensors" / "preprocessing.json").read_text())
    assert says in facts["predictions"]
    assert facts["task_type"]["name"] == task_type.name
    assert facts["task_type"].get("std", [3, 4]) == [3, 4]


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_the_example_has_the_preprocessing_of_the_run(tmp_path, images, monkeypatch, preset):
    backbone = wrap_network(conv_net(), num_outputs=3, image_size=24)
    run = saved_run(tmp_path / "run", backbone, preset=preset)
    predictor = Predictor(run, device="cpu", network=conv_net())
    export_run(predictor, format="safetensors")
    facts = json.loads((run / "export" / "safetensors" / "preprocessing.json").read_text())
    metadata = {name: json.dumps(value) for name, value in facts.items()}
    session = SimpleNamespace(
        get_modelmeta=lambda: SimpleNamespace(custom_metadata_map=metadata),
        run=lambda names, inputs: [np.zeros((len(inputs["images"]), 3))],
    )
    runtime = SimpleNamespace(InferenceSession=lambda file: session)
    monkeypatch.setitem(sys.modules, "onnxruntime", runtime)
    monkeypatch.chdir(tmp_path)
    Path("new_images").symlink_to(images)
    example = by_the_example(DOCS.read_text())
    files = tuple(map(str, example["paths"]))
    split = Split(files, (0,) * len(files), lambda file: Image.open(file).convert("RGB"))
    options = dataclasses.replace(predictor.config, batch_size=50, num_workers=0)
    loaders = Dataloaders(backbone.input_spec, options, torch.device("cpu"))
    (expected, _), *_ = loaders.eval_dataloader(split)
    found = np.stack([example["prepare"](file) for file in files])
    assert len(found) == 50
    assert np.abs(found - expected.numpy()).max() < 1e-5


def test_the_paper_protocol_resizes_both_sides(run, capsys):
    config = TrainOptions(data="skimage/patches", preset="paper", method="delta").resolve()
    (run / "config.yaml").write_text(config.to_yaml())
    assert main(["export", str(run / "model"), "--format=safetensors"]) == 0
    assert "averages ten crops" in capsys.readouterr().err
    facts = json.loads((run / "export" / "safetensors" / "preprocessing.json").read_text())
    assert (facts["resize"], facts["resize_mode"], facts["size"]) == (32, "both sides", 32)


def test_an_older_export_is_replaced(run):
    predictor = Predictor(run, device="cpu")
    out = run / "export" / "safetensors"
    export_run(predictor, format="safetensors")
    (out / "config.json").write_text("old")
    with pytest.raises(UserError, match="not empty: use another folder, or `overwrite`"):
        export_run(predictor, format="safetensors")
    assert (out / "config.json").read_text() == "old"
    for name in ("model.onnx", "model.onnx.data"):
        (out / name).write_text("of another format")
    export_run(predictor, format="safetensors", overwrite=True)
    own = (run / "model" / "config.json").read_text()
    assert (out / "config.json").read_text() == own
    assert {path.name for path in out.iterdir()} == {
        "model.safetensors",
        "config.json",
        "preprocessing.json",
    }
    assert {path.name for path in (run / "export").iterdir()} == {"safetensors"}


def test_an_older_export_stays_until_it_is_replaced(run, monkeypatch):
    predictor = Predictor(run, device="cpu")
    out = run / "export" / "safetensors"
    export_run(predictor, format="safetensors")
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    replace = os.replace

    def stop(one: Path, other: Path) -> None:
        if Path(other).parent == out:
            raise KeyboardInterrupt
        replace(one, other)

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        export_run(predictor, format="torch", out=out, overwrite=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_torchvision_network_is_loaded_by_this_package(tmp_path):
    run = saved_run(tmp_path / "run", network("torchvision/shufflenet_v2_x0_5"))
    found = export_run(Predictor(run, device="cpu"), format="safetensors")
    assert found.max_difference < 1e-5
    assert (
        exporting.resolve_run_folder(str(run / "model"))
        == exporting.resolve_run_folder(str(run))
        == run
    )


def test_networks_for_graphs_are_written_as_safetensors_alone(tmp_path, capsys):
    backbone = load_graph_backbone(
        "pyg/GIN-2x8",
        num_outputs=2,
        spec=GraphSpec(node_features="numbers", num_node_features=3),
        pretrained=False,
    )
    run = saved_run(tmp_path / "run", backbone, data="tu/MUTAG")
    for name in ("onnx", "torch"):
        assert main(["export", str(run), f"--format={name}"]) == 2
        said = capsys.readouterr().err
        assert f"error: --format {name}: the network of {run} is for graphs" in said
        assert "use --format safetensors" in said
        assert not (run / "export").exists()
    assert main(["export", str(run), "--format=safetensors"]) == 0
    assert "on a graph of two nodes, not of tu/MUTAG" in capsys.readouterr().out
    facts = json.loads((run / "export" / "safetensors" / "preprocessing.json").read_text())
    assert (facts["node_features"], facts["num_node_features"]) == ("numbers", 3)


def test_networks_for_molecules_are_compared_on_molecules(tmp_path):
    backbone = load_graph_backbone("pyg/GIN-2x8", num_outputs=1, spec=GraphSpec(), pretrained=False)
    rows = [f"{'C' * number}O,{number % 2}" for number in range(1, 21)]
    (tmp_path / "alcohols.csv").write_text("\n".join(["smiles,toxic", *rows]))
    data = str(tmp_path / "alcohols.csv")
    run = saved_run(tmp_path / "run", backbone, data=data, smiles_column="smiles", split="random")
    found = export_run(Predictor(run, device="cpu"), format="safetensors")
    assert re.fullmatch(rf"\d+ molecules of {data}", found.checked_on)
    assert found.max_difference == 0


class Odd(nn.Module):
    """A network with data-dependent control flow, which no exporter can follow."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = x.mean(dim=(2, 3))
        return self.fc(x if float(x.sum()) > 0.1 else -x)


def test_a_network_that_cannot_be_exported_is_an_error(tmp_path, capsys):
    run = saved_run(tmp_path / "run", wrap_network(Odd(), num_outputs=2, image_size=24))
    before = sorted(run.rglob("*"))
    with pytest.raises(UserError, match=r"`format=torch`: .* cannot export .*`format`"):
        export_run(Predictor(run, device="cpu", network=Odd()), format="torch")
    assert sorted(run.rglob("*")) == before
    with pytest.raises(UserError, match=r"unknown format 'onnxx'.*onnx"):
        export_run(Predictor(run, device="cpu", network=Odd()), format="onnxx")
    assert main(["export", str(run)]) == 2  # which cannot pass a network
    assert "trained from Python" in capsys.readouterr().err
