"""`--preset paper` as a whole, on a ResNet-50 with random weights, against its formulas."""

import csv
import dataclasses
import math
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import v2

from delta_transfer import RunResult, TrainConfig, TrainOptions, UserError, train
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.attention.official import OFFICIAL_TAPS
from delta_transfer.data.registry import load_data
from delta_transfer.runs.preparation.prepare import prepare
from tests.run_folders import CLASSES, tiny

SIZE = 64
TAPS = OFFICIAL_TAPS["resnet50"]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "resnet50.pth"
    torch.save(timm.create_model("resnet50").state_dict(), path)
    return path


def options(images: Path, out: Path, weights: Path, **others: object) -> TrainConfig:
    """One step of all training images at the preset's learning rate."""
    given = {"lr": 0.01, "batch_size": 24, "epochs": None, "steps": 1, "image_size": SIZE}
    return tiny(
        images,
        out,
        model="resnet50",
        weights=str(weights),
        preset="paper",
        attention="gradient",
        **{**given, **others},
    )


@pytest.fixture(scope="module")
def official(images, weights, tmp_path_factory) -> RunResult:
    return train(options(images, tmp_path_factory.mktemp("official") / "run", weights))


def batch(images: Path, config: TrainConfig) -> tuple[Tensor, Tensor]:
    prepared = prepare(config)
    loader = prepared.loaders.with_config(config).train_dataloader(prepared.task.train)
    loader.sampler.set_epoch(0)
    (found,) = list(loader)
    return found


def features(network: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    found: dict[str, Tensor] = {}
    for tap in TAPS:
        network.get_submodule(tap).register_forward_hook(
            lambda module, given, output, tap=tap: found.__setitem__(tap, output)
        )
    return network(inputs), found


def test_the_options_are_those_of_the_protocol():
    config = TrainOptions(data="x", preset="paper").resolve()
    assert (config.optimizer, config.lr, config.batch_size) == ("sgd", 0.01, 64)
    assert (config.steps, config.epochs, config.schedule) == (9000, None, "step")
    assert (config.attention_source, config.attention_samples) == ("exact", None)
    assert config.batch_norm == "train"
    assert config.count_epochs(6400) == 90
    assert config.count_epochs(6401) == math.ceil(9000 / 101)


def test_the_first_step_is_the_authors_formula_and_plain_sgd(official, images, weights, tmp_path):
    config = options(images, tmp_path, weights)
    prepared = prepare(config)
    inputs, targets = batch(images, config)
    network = prepared.backbone.module.cpu().train()
    source = timm.create_model("resnet50")
    source.load_state_dict(torch.load(weights))
    with torch.no_grad():
        _, held = features(source.eval(), inputs)
    logits, moving = features(network, inputs)
    attention = ChannelAttention.load(official.folder / "attention.safetensors").attention
    omega = torch.zeros(())
    for tap in TAPS:
        _, channels, height, width = held[tap].shape
        weight = attention[tap] * channels / (height * width)
        omega = omega + 0.5 * ((moving[tap] - held[tap]).square() * weight.view(1, -1, 1, 1)).sum()
    head = 0.5 * (network.fc.weight.square().sum() + network.fc.bias.square().sum())
    expected = {"task": F.cross_entropy(logits, targets), "delta": 0.01 * omega, "l2": 0.01 * head}
    with (official.folder / "metrics.csv").open() as file:
        (row,) = [row for row in csv.DictReader(file) if row["train_loss"]]
    for name, value in expected.items():
        assert float(row[f"train_{name}"]) == pytest.approx(value.item(), rel=1e-3), name
    assert float(row["lr"]) == pytest.approx(0.01)  # no warm-up
    (slope,) = torch.autograd.grad(sum(expected.values()), [network.fc.bias])
    last = torch.load(official.folder / "checkpoints" / "last.ckpt", weights_only=True)
    moved = last["state_dict"]["network.fc.bias"] - network.fc.bias
    assert torch.allclose(moved, -0.01 * slope, atol=1e-6)
    assert not torch.equal(
        last["state_dict"]["network.bn1.running_mean"], source.state_dict()["bn1.running_mean"]
    )


def test_the_run_says_what_it_did(official):
    assert official.taps == TAPS
    assert (official.strength, official.epochs) == (0.01, 1)
    found = official.model_selection
    assert (found.mixing_coefficients, found.folds, found.averaged) == ((0.0, 1.0), 0, False)
    assert list(found.losses) == ["0/100"]  # there was no choice


def test_the_test_is_the_mean_of_ten_crops(official, images):
    folder = official.folder / "model"
    network = timm.create_model("resnet50", num_classes=3)
    network.load_state_dict(load_file(folder / "model.safetensors"))
    side = round(SIZE * 256 / 224)  # of the shorter side, 36 of 40 pixels
    wide = int(side * 40 / 36)
    task = load_data(str(images), seed=0)
    with (official.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    for row, path in zip(rows, task.test.paths, strict=True):
        sample = Image.open(images / path).convert("RGB").resize((wide, side), Image.BILINEAR)
        tensor = v2.functional.to_dtype(v2.functional.to_image(sample), torch.float32, scale=True)
        down, right = side - SIZE, wide - SIZE
        centre = (round(down / 2), round(right / 2))
        corners = [(0, 0), (0, right), (down, 0), (down, right), centre]
        crops = [
            image[:, top : top + SIZE, left : left + SIZE]
            for image in (tensor, tensor.flip(-1))
            for top, left in corners
        ]
        normal = (torch.stack(crops) - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(
            3, 1, 1
        )
        with torch.no_grad():
            expected = network.eval()(normal).mean(dim=0).softmax(dim=0)
        found = torch.tensor([float(row[name]) for name in CLASSES])
        assert torch.allclose(found, expected, atol=0.02)


@pytest.mark.slow
def test_the_last_epoch_is_kept(images, weights, tmp_path):
    given = options(images, tmp_path / "run", weights, method="l2", epochs=2, steps=None)
    result = train(given)
    last = torch.load(result.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    kept = load_file(result.folder / "model" / "model.safetensors")
    assert result.trained_share == 1
    assert torch.equal(kept["fc.weight"], last["network.fc.weight"])


@pytest.mark.parametrize(
    "method",
    ["probe", "l2sp", "delta"],
)
@pytest.mark.slow
def test_the_other_methods_run_too(images, weights, tmp_path, method):
    result = train(options(images, tmp_path / "run", weights, method=method))
    assert result.strength == {"l2": 1e-4, "l2sp": 0.01, "delta": 0.01}.get(method, result.strength)


def test_an_architecture_that_the_authors_did_not_have_is_refused(images, tmp_path):
    config = tiny(images, tmp_path / "run", preset="paper")
    with pytest.raises(UserError, match=r"no taps for 'tf_efficientnet_lite0'.*resnet50"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_options_that_are_given_win():
    config = TrainOptions(data="x", preset="paper", lr=0.5, epochs=3, batch_norm="frozen").resolve()
    assert (config.lr, config.epochs, config.steps, config.batch_norm) == (0.5, 3, None, "frozen")


@pytest.mark.parametrize("preset", ["paper", "default"])
def test_a_preset_with_all_the_options_of_another_is_refused(preset, tmp_path):
    other = {"paper": "default", "default": "paper"}[preset]
    config = TrainOptions(data="x", preset=other).resolve()
    with pytest.raises(
        UserError, match=f"`preset={preset}` .*preset {other}: leave these options out"
    ):
        dataclasses.replace(config, preset=preset)
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    assert TrainConfig.load(tmp_path / "config.yaml") == config
