import copy
import csv
import dataclasses
import logging

import pytest
import torch

from delta_transfer.methods.registry import METHODS
from delta_transfer.runs import lr_search
from delta_transfer.runs.lr_search import resolve_lr
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.training.lr_finder import suggest_lr
from tests.networks import conv_net
from tests.run_folders import tiny
from tests.runs.test_plan import SPEC


@pytest.fixture(scope="module")
def prepared(images, tmp_path_factory) -> RunSetup:
    config = tiny(images, tmp_path_factory.mktemp("prepared"))
    return prepare(config, network=conv_net(), spec=SPEC)


def make_plan(setup: RunSetup, folder, method: str, **options) -> FineTunePlan:
    config = tiny("images", folder, method=method, lr="find", **options)
    method = METHODS[method]
    return FineTunePlan(setup=setup, config=config, method=method, epochs=2, attention=None)


def test_a_tenth_of_the_rate_up_to_which_the_loss_is_low():
    rates = [10 ** (i / 12 - 6) for i in range(72)]
    losses = [1.0 if rate < 1e-4 else 0.2 if rate < 2e-2 else 50.0 for rate in rates]
    assert suggest_lr(list(zip(rates, losses, strict=True))) == pytest.approx(2e-3, rel=0.25)
    noisy = [loss * (1.02 if i % 2 else 0.98) for i, loss in enumerate(losses)]
    assert suggest_lr(list(zip(rates, noisy, strict=True))) == pytest.approx(2e-3, rel=0.25)


@pytest.mark.parametrize(
    "method",
    [
        "delta",
        pytest.param("l2", marks=pytest.mark.slow),
        pytest.param("stochnorm", marks=pytest.mark.slow),
    ],
)
def test_a_rate_is_found_once_and_leaves_no_trace(prepared, tmp_path, method, caplog):
    caplog.set_level(logging.INFO, "delta_transfer")
    networks = (prepared.backbone.module, prepared.source)
    before, random = [copy.deepcopy(n.state_dict()) for n in networks], torch.get_rng_state()
    plan = make_plan(prepared, tmp_path, method, ema=0.9, batch_size=4)
    found = resolve_lr(plan, tmp_path)
    assert dataclasses.replace(found.config, lr="find") == plan.config
    assert 1e-6 < found.lr < 1
    assert f"lr       {found.lr:g}: a tenth of the highest rate" in caplog.text
    assert torch.equal(torch.get_rng_state(), random)
    for network, state in zip(networks, before, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
    assert [path.name for path in tmp_path.iterdir()] == ["lr.csv"]
    with (tmp_path / "lr.csv").open(newline="") as file:
        trial = [(float(row["lr"]), float(row["loss"])) for row in csv.DictReader(file)]
    assert trial[0][0] == pytest.approx(1e-6)
    assert len(trial) > 30
    assert found.lr == suggest_lr(trial)
    # In another folder it is found again, in this one it is known.
    (tmp_path / "again").mkdir()
    assert resolve_lr(plan, tmp_path / "again") == found
    kept = (tmp_path / "lr.csv").read_bytes()
    assert (tmp_path / "again" / "lr.csv").read_bytes() == kept


def test_a_trial_is_taken_up_if_it_was_of_the_same_images(prepared, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(
        lr_search, "_run_range_test", lambda *args: [(1e-3, 1.0), (0.02, 1.0), (0.3, 7.0)]
    )
    plan = make_plan(prepared, tmp_path, "l2")
    assert resolve_lr(plan, tmp_path).lr == 0.002
    assert "other images" not in caplog.text
    monkeypatch.setattr(lr_search, "_run_range_test", lambda *args: [(0.05, 1.0)])
    assert resolve_lr(plan, tmp_path).lr == 0.002
    other = dataclasses.replace(prepared, data_fingerprint="of other images")
    assert resolve_lr(dataclasses.replace(plan, setup=other), tmp_path).lr == 0.005
    assert "lr.csv is from other images or pretrained weights" in caplog.text


def test_what_does_not_train_or_has_a_rate_needs_no_trial(prepared, tmp_path):
    probe = make_plan(prepared, tmp_path, "probe")
    assert resolve_lr(probe, tmp_path) is probe
    given = dataclasses.replace(probe, config=dataclasses.replace(probe.config, lr=0.1))
    assert resolve_lr(given, tmp_path) is given
    assert not list(tmp_path.iterdir())
