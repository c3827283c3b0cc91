"""Each method from the prepared network to the one that is saved, on tiny images."""

import copy
import csv
import dataclasses
import logging

import pytest
import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import InputSpec
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.backbones.saved import save_model
from delta_transfer.errors import UserError
from delta_transfer.methods.registry import METHODS
from delta_transfer.runs.fine_tune import FineTuneResult, fine_tune
from delta_transfer.runs.plan import FineTunePlan, make_plan
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup
from tests.networks import conv_net, hooks_of
from tests.run_folders import tiny

SPEC = InputSpec(
    size=32, crop_pct=1.0, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear"
)
NEW = ("lwf", "bss", "stochnorm", "co_tuning", "rifle", "ldifs", "spd")
OPTIONS = {"epochs": 3, "lr": 3e-3}


@pytest.fixture(scope="module")
def prepared(images, tmp_path_factory) -> RunSetup:
    config = tiny(images, tmp_path_factory.mktemp("prepared"), **OPTIONS)
    found = prepare(config, network=conv_net(), spec=SPEC)
    torch.manual_seed(0)
    backbone = dataclasses.replace(found.backbone, classifier=nn.Linear(6, 8))
    return dataclasses.replace(found, backbone=backbone)


def tuned(prepared: RunSetup, folder, method: str, **options) -> FineTuneResult:
    config = tiny("images", folder, method=method, **{**OPTIONS, **options})
    plan = FineTunePlan(
        setup=prepared,
        config=config,
        method=METHODS[method],
        epochs=config.epochs,
        attention=None,
    )
    return fine_tune(plan, folder)


def rows(path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def last_weights(folder) -> dict[str, Tensor]:
    """The weights after the last step."""
    state = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name: tensor for name, tensor in state.items() if name.startswith("network.")}


@pytest.mark.parametrize("method", NEW)
def test_a_method_trains_and_leaves_the_plain_network(prepared, tmp_path, method, caplog):
    caplog.set_level(logging.INFO, "delta_transfer")
    start = copy.deepcopy(prepared.source.state_dict())
    result = tuned(prepared, tmp_path / "one", method)
    network, plain = result.network, prepared.backbone.module
    assert list(network.state_dict()) == list(plain.state_dict())
    assert [type(m) for m in network.modules()] == [type(m) for m in plain.modules()]
    assert hooks_of(network) == hooks_of(prepared.source) == 0
    trained = [row for row in rows(tmp_path / "one" / "metrics.csv") if row["train_loss"]]
    assert len(trained) == 3
    logged = {"lwf", "bss", "co_tuning", "ldifs"}
    assert (f"train_{method}" in trained[0]) == (method in logged)
    assert ("train_l2" in trained[0]) == (METHODS[method].head_init == "probe")
    for name, tensor in prepared.source.state_dict().items():
        assert torch.equal(tensor, start[name])
    last = last_weights(tmp_path / "one")
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, last[f"network.{name}"])
    head = prepared.backbone.head
    begun = result.initial_state[f"{head}.weight"]
    random = prepared.backbone.module.get_submodule(head).weight
    probed = METHODS[method].head_init == "probe"
    assert torch.equal(begun, prepared.probe.weight if probed else random)
    assert not torch.equal(last["network.conv1.weight"], start["conv1.weight"])
    drifts = not torch.equal(last["network.norm1.running_mean"], start["norm1.running_mean"])
    assert drifts == (method == "stochnorm")
    assert ("requires batch norm in train mode" in caplog.text) == (method == "stochnorm")

    tuned(prepared, tmp_path / "two", method)
    again = last_weights(tmp_path / "two")
    assert all(torch.equal(last[name], again[name]) for name in last)


@pytest.mark.parametrize(
    ("method", "strengths"), [("stochnorm", (0.0, 1.0)), ("spd", (0.0, 1.0)), ("bss", (0.0, 50.0))]
)
def test_the_strength_is_that_of_the_method(prepared, tmp_path, method, strengths):
    found = []
    for strength in strengths:
        tuned(prepared, tmp_path / str(strength), method, strength=strength)
        found.append(last_weights(tmp_path / str(strength))["network.conv1.weight"])
    assert not torch.allclose(*found)


def test_without_strength_what_adds_to_plain_fine_tuning_is_plain_fine_tuning(prepared, tmp_path):
    """`l2` has the same head, rates and weight decay."""
    tuned(prepared, tmp_path / "l2", "l2")
    plain = last_weights(tmp_path / "l2")
    for method in ("bss", "co_tuning"):
        tuned(prepared, tmp_path / method, method, strength=0.0)
        last = last_weights(tmp_path / method)
        for name, tensor in plain.items():
            assert torch.allclose(tensor, last[name], atol=1e-6)
    tuned(prepared, tmp_path / "train", "l2", batch_norm="train")
    tuned(prepared, tmp_path / "stochnorm", "stochnorm", strength=0.0)
    for name, tensor in last_weights(tmp_path / "train").items():
        assert torch.equal(tensor, last_weights(tmp_path / "stochnorm")[name])


def test_spd_stays_nearer_to_the_start_than_none(prepared, tmp_path):
    ways = []
    start = dict(prepared.source.named_parameters())
    for strength in (0.0, 1.0):
        tuned(prepared, tmp_path / str(strength), "spd", strength=strength)
        last = last_weights(tmp_path / str(strength))
        ways.append(sum((last[f"network.{n}"] - p).norm().item() for n, p in start.items()))
    assert ways[1] < ways[0]


@pytest.mark.parametrize("method", ["lwf", "co_tuning"])
def test_a_network_without_a_classifier_is_refused_before_anything_is_written(
    prepared, tmp_path, method
):
    backbone = dataclasses.replace(prepared.backbone, classifier=None)
    lacking = dataclasses.replace(prepared, backbone=backbone)
    with pytest.raises(UserError, match=f"'{method}' needs the pretrained classifier.*one of pro"):
        tuned(lacking, tmp_path / "run", method)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("strength", [1.5, -0.5])
def test_a_strength_of_stochnorm_that_is_no_probability_is_refused(prepared, tmp_path, strength):
    plan = FineTunePlan(
        setup=prepared,
        config=tiny("images", tmp_path, method="stochnorm"),
        method=METHODS["stochnorm"].with_strength(strength),
        epochs=1,
        attention=None,
    )
    with pytest.raises(UserError, match="stochnorm: `strength` is a probability"):
        fine_tune(plan, tmp_path)


def test_what_stochnorm_leaves_is_loaded_by_plain_timm(images, tmp_path):
    import timm

    config = tiny(images, tmp_path, method="stochnorm", epochs=1)
    found = prepare(config)
    result = tuned(found, tmp_path / "run", "stochnorm", epochs=1)
    (tmp_path / "model").mkdir()
    classes = found.task.classes
    save_model(tmp_path / "model", found.backbone, result.network, classes=classes)
    loaded = timm.create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True).eval()
    inputs = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(loaded(inputs), result.network.eval()(inputs), atol=1e-5)
    assert load_backbone(f"local-dir:{tmp_path / 'model'}", num_outputs=2).classifier is not None


@pytest.mark.parametrize(
    ("options", "folds", "num_samples"),
    [({"folds": 0}, 0, 18), ({}, 3, 16), ({"folds": 5}, 5, 20), ({"samples_per_class": 6}, 3, 12)],
)
def test_epochs_are_counted_by_the_samples_that_are_trained_on(images, options, folds, num_samples):
    config = tiny(images / "train", images / "run", epochs=None, val_fraction=0.25, **options)
    plan = make_plan(prepare(config, network=conv_net(), spec=SPEC), config)
    assert plan.folds == folds
    assert plan.epochs == config.count_epochs(num_samples)
