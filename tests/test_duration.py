import copy
import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from delta_transfer import duration as module
from delta_transfer.duration import estimate_minutes
from delta_transfer.methods import METHODS
from delta_transfer.prepare import Prepared, prepare
from delta_transfer.tuning import Tuning
from tests.runs import tiny

TRAIN, VAL = 18, 6  # of 24 pictures a quarter is held out
STEP, FORWARD = 3.0, 0.5  # seconds a picture
CHANNELS = 24 + 40 + 112 + 320  # of EfficientNet-Lite0 at its auto taps


@pytest.fixture(scope="module")
def prepared(pictures, tmp_path_factory) -> Prepared:
    found = prepare(
        tiny(pictures / "train", tmp_path_factory.mktemp("prepared"), val_fraction=0.25)
    )
    return dataclasses.replace(found, seconds_per_picture=FORWARD)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    monkeypatch.setattr(
        module, "_seconds_per_step", lambda prepared, tuning, inputs, labels: STEP * len(labels)
    )


def seconds(prepared: Prepared, method: str = "l2", epochs: int = 1, **options: Any) -> float:
    config = tiny("x", "y", **{"refit": "never", **options})
    tuning = Tuning(config=config, method=METHODS[method], epochs=epochs, attention=None)
    return 60 * estimate_minutes(prepared, tuning)


@pytest.mark.parametrize("epochs", [1, 7])
def test_every_epoch_trains_on_all_and_validates(prepared, epochs):
    expected = epochs * (TRAIN * STEP + VAL * FORWARD)
    assert seconds(prepared, epochs=epochs) == pytest.approx(expected)


def test_the_refit_is_as_long_as_all_epochs_at_most(prepared):
    expected = TRAIN * STEP + VAL * FORWARD + (TRAIN + VAL) * STEP
    assert seconds(prepared, refit="always") == pytest.approx(expected)


def test_folds_train_on_all_but_one_and_then_on_all(prepared):
    folds = 3 * (2 / 3 * STEP + 1 / 3 * FORWARD) * (TRAIN + VAL)
    expected = folds + (TRAIN + VAL) * STEP
    assert seconds(prepared, refit="auto", folds=3) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        ({}, 3 * TRAIN),  # a forward pass, and a backward pass as long as two
        ({"attention_samples": 5}, 3 * 5),
        ({"attention": "exact"}, TRAIN * (1 + CHANNELS)),
        ({"attention": "exact", "attention_samples": 2}, 2 * (1 + CHANNELS)),
    ],
)
def test_attention_is_counted_by_its_forward_passes(prepared, options, passes):
    plain = seconds(prepared, method="delta_no_attention")
    found = seconds(prepared, method="delta", **options)
    assert found - plain == pytest.approx(passes * FORWARD)


def test_workers_read_while_the_network_computes(prepared, monkeypatch):
    ticks = iter([0.0, 8.0 * TRAIN])  # eight seconds to read a picture
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    batch = {"batch_size": TRAIN, "workers": 2}
    assert seconds(prepared, **batch) == pytest.approx((TRAIN + VAL) * 8.0 / 2)


def test_a_step_is_timed_and_leaves_no_trace(prepared, monkeypatch):
    monkeypatch.undo()
    before = torch.get_rng_state()
    networks = (prepared.backbone.module, prepared.source)
    states = [copy.deepcopy(network.state_dict()) for network in networks]
    started = time.perf_counter()
    found = seconds(prepared, method="delta")
    assert found > 0
    assert time.perf_counter() > started
    assert torch.equal(torch.get_rng_state(), before)
    for network, state in zip(networks, states, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
