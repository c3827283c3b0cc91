import copy
import dataclasses
import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from delta_transfer.methods.registry import METHODS
from delta_transfer.runs import duration as module
from delta_transfer.runs.duration import estimate_minutes
from delta_transfer.runs.fine_tune import DRIFT_SAMPLES
from delta_transfer.runs.model_soup import mixtures
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.preparation.prepared import RunSetup
from tests.run_folders import tiny

TRAIN, VAL = 18, 6  # of 24 images a quarter is held out
FORWARD = 0.5  # seconds an image
STEP = 3 * FORWARD
PROBE = 7.0  # seconds to fit one
CHOICES = len(mixtures(1, averaged=True))  # averages of which predictions are made
CHANNELS = 24 + 40 + 112 + 320  # of EfficientNet-Lite0 at its auto taps


@pytest.fixture(scope="module")
def prepared(images, tmp_path_factory) -> RunSetup:
    found = prepare(tiny(images / "train", tmp_path_factory.mktemp("prepared"), val_fraction=0.25))
    return dataclasses.replace(found, probe_wall_time_s=PROBE)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """No time passes; a step takes three seconds an image, or four where the source runs too."""
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: 0.0))
    monkeypatch.setattr(
        module,
        "_seconds_per_step",
        lambda plan, inputs, labels: (
            FORWARD * (4 if plan.method.compares_features else 3) * len(labels)
        ),
    )


def seconds(
    prepared: RunSetup, method: str = "l2", epochs: int = 1, folds: int = 0, **options: Any
) -> float:
    plan = FineTunePlan(
        setup=prepared,
        config=tiny("x", "y", **{"epochs": epochs, **options}),
        method=METHODS[method],
        epochs=epochs,
        folds=folds,
        attention=None,
    )
    return 60 * estimate_minutes(plan)


@pytest.mark.parametrize("epochs", [1, 7])
def test_every_epoch_trains_on_all_validates_and_measures_drift(prepared, epochs):
    expected = epochs * (TRAIN * STEP + (VAL + DRIFT_SAMPLES) * FORWARD)
    expected += CHOICES * VAL * FORWARD
    assert seconds(prepared, epochs=epochs) == pytest.approx(expected)


def test_of_many_epochs_some_are_validated(prepared):
    longer = seconds(prepared, epochs=60) - seconds(prepared, epochs=30)
    assert longer == pytest.approx(30 * TRAIN * STEP)


def test_folds_train_on_all_but_one(prepared):
    """On 16 and 8 of the 24 images; then on all, and two averages and their part are evaluated."""
    fold = 16 * STEP + (8 + DRIFT_SAMPLES) * FORWARD
    averaged = 3 * (fold + CHOICES * 8 * FORWARD) + 4 * PROBE + 24 * STEP + 3 * 24 * FORWARD
    assert seconds(prepared, folds=3) == pytest.approx(averaged)
    chosen = 3 * (fold + 2 * 8 * FORWARD) + 4 * PROBE + 24 * STEP
    assert seconds(prepared, folds=3, average="none") == pytest.approx(chosen)


def test_each_candidate_is_trained(prepared):
    options = {"method": "l2sp", "folds": 2}
    one = seconds(prepared, strength=0.1, **options)
    two = seconds(prepared, strength="auto", **options)
    fold = 12 * STEP + (12 + DRIFT_SAMPLES) * FORWARD
    more = len(mixtures(2, averaged=True)) - CHOICES
    on_all = 24 * STEP + 24 * FORWARD
    assert two - one == pytest.approx(2 * (fold + more * 12 * FORWARD) + on_all)


@pytest.mark.parametrize(("preset", "crops"), [("default", 1), ("paper", 10)])
def test_the_test_is_counted_by_its_crops(prepared, preset, crops):
    tested = dataclasses.replace(
        prepared, task=dataclasses.replace(prepared.task, test=prepared.task.val)
    )
    longer = seconds(tested, preset=preset) - seconds(prepared, preset=preset)
    assert longer == pytest.approx(VAL * crops * FORWARD)


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        # A forward pass, and a backward pass as long as two.
        ({"attention": "gradient"}, 3 * TRAIN),
        ({"attention": "gradient", "attention_samples": 5}, 3 * 5),
        ({"attention": "exact"}, TRAIN * CHANNELS / 10),
        ({"attention": "exact", "attention_samples": 2}, 2 * CHANNELS / 10),
        # Eight images are exact, where there are so many.
        ({"attention": "refined"}, 3 * TRAIN + 8 * CHANNELS / 10),
        ({}, 3 * TRAIN + 8 * CHANNELS / 10),
        ({"attention_samples": 5}, 3 * 5 + 5 * CHANNELS / 10),
    ],
)
def test_attention_is_counted_by_its_forward_passes(prepared, options, passes):
    plain = seconds(prepared, method="delta")
    found = seconds(prepared, method="delta_attention", **options)
    assert found - plain == pytest.approx(passes * FORWARD)


def test_workers_read_while_the_network_computes(prepared, monkeypatch):
    ticks = iter([0.0, 8.0 * TRAIN, 0.0, 0.0])  # eight seconds to read an image
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    batch = {"batch_size": TRAIN, "num_workers": 2}
    assert seconds(prepared, **batch) == pytest.approx(
        (TRAIN + (1 + CHOICES) * VAL) * 8.0 / 2 + DRIFT_SAMPLES * FORWARD
    )


def test_a_trial_of_rates_is_counted(prepared):
    longer = seconds(prepared, lr="find", batch_size=4) - seconds(prepared, batch_size=4)
    assert longer == pytest.approx(72 * 4 * STEP)


def test_no_more_images_are_measured_at_once_than_train_or_fit_into_memory(prepared, monkeypatch):
    asked = []

    def measure(plan, inputs, labels):
        asked.append(len(inputs))
        if len(labels) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return FORWARD * 3 * len(labels)

    expected = seconds(prepared)
    monkeypatch.setattr(module, "_seconds_per_step", measure)
    found = seconds(prepared, batch_size=16, gradient_accumulation_steps=2)
    assert asked == [8, 4, 2]
    assert found == pytest.approx(expected)


def test_a_step_is_timed_and_leaves_no_trace(prepared, monkeypatch):
    monkeypatch.undo()
    before = torch.get_rng_state()
    networks = (prepared.backbone.module, prepared.source)
    states = [copy.deepcopy(network.state_dict()) for network in networks]
    precisions, autocast = [], module.autocast

    def remember(precision, device):
        precisions.append(precision)
        return autocast(precision, device)

    monkeypatch.setattr(module, "autocast", remember)
    started = time.perf_counter()
    found = seconds(prepared, method="delta_attention", precision="bf16")
    assert found > 0
    assert precisions == ["bf16-mixed"] * 2
    assert time.perf_counter() > started
    assert torch.equal(torch.get_rng_state(), before)
    for network, state in zip(networks, states, strict=True):
        assert all(torch.equal(t, state[n]) for n, t in network.state_dict().items())
        assert all(p.grad is None for p in network.parameters())
