import dataclasses
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from delta_transfer.announce import announce, conclude
from delta_transfer.config import TrainConfig
from delta_transfer.methods import METHODS
from delta_transfer.result import RunResult

RESULT = RunResult(
    folder=Path("run"),
    method="l2",
    seed=0,
    test_accuracy=0.875,
    val_accuracy=0.75,
    linear_probe_test_accuracy=0.5,
    linear_probe_val_accuracy=0.5,
    best_epoch=2,
    epochs=8,
    seconds=12.4,
    pictures=60,
    classes=3,
    strength=0.01,
    taps=(),
    versions={},
)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "delta_transfer")


def said(caplog: pytest.LogCaptureFixture, method: str, **options: Any) -> list[str]:
    prepared = SimpleNamespace(
        task=SimpleNamespace(train=range(100), val=range(20)),
        probe_accuracies={"val": 0.625, "test": None},
        seconds_per_picture=0.5,
    )
    config = TrainConfig(data="x", method=method, epochs=6, **options)
    announce(prepared, config, METHODS[method])
    return [record.message for record in caplog.records]


@pytest.mark.parametrize(
    ("method", "minutes"),
    [
        ("lp_ft", 6 * (3 * 100 + 20) * 0.5 / 60),  # forward, and backward as long as two
        ("delta", 6 * (4 * 100 + 20) * 0.5 / 60),  # the source's forward as well
    ],
)
def test_the_start_says_method_probe_and_minutes(caplog, method, minutes):
    strength = METHODS[method].strength
    assert said(caplog, method) == [
        f"method   {method}, strength {strength:g}: {METHODS[method].summary}",
        "probe    62.5% on validation",
        f"time     about {minutes:.1f} minutes for 6 epochs",
    ]


def test_a_strength_that_was_asked_for_is_said(caplog):
    assert "delta, strength 0.5: " in said(caplog, "delta", strength=0.5)[0]


def test_the_probe_trains_nothing_that_takes_time(caplog):
    assert said(caplog, "probe") == [
        f"method   probe: {METHODS['probe'].summary}",
        "probe    62.5% on validation",
    ]


def test_the_end_says_what_came_out(caplog):
    conclude(RESULT)
    conclude(dataclasses.replace(RESULT, test_accuracy=None, linear_probe_test_accuracy=None))
    assert [record.message for record in caplog.records] == [
        "done     test accuracy 87.5% (linear probe 50.0%), epoch 2 kept, 12 seconds",
        "done     no test split; validation accuracy 75.0%",
    ]
