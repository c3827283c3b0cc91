import dataclasses
import logging
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from delta_transfer.config.train import TrainOptions
from delta_transfer.data.task import Split
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.run_result import ModelSelection, ProbeComparison, RunResult
from delta_transfer.metrics.statistics import accuracy_interval
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.runs import summary as module
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.summary import log_start, log_summary, similarity_hint

RESULT = RunResult(
    folder=Path("run"),
    method="l2",
    seed=0,
    samples_per_class=None,
    metric_name="accuracy",
    test_accuracy=0.875,
    test_mean_class_accuracy=0.875,
    val_accuracy=0.75,
    linear_probe_test_accuracy=0.5,
    linear_probe_val_accuracy=0.5,
    epochs=8,
    wall_time_s=12.4,
    peak_memory_mib=1024.0,
    model_selection=ModelSelection(
        strengths=(0.01,),
        mixing_coefficients=(0.25, 0.75),
        losses={"0/100": 0.5, "25/75": 0.25, "100/0": 1.0},
        folds=3,
        averaged=True,
        averages_folds=True,
    ),
    probe_comparison=ProbeComparison(100, 0.8, 0.925, 0.375, 0.25, 0.5),
    sample_type="image",
    num_train_samples=60,
    num_classes=3,
    strength=0.01,
    taps=(),
    versions={},
)


@pytest.fixture(autouse=True)
def log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "delta_transfer")


def said(
    caplog: pytest.LogCaptureFixture,
    method: str,
    *,
    accuracy: float = 0.62,
    taught: tuple[int, ...] = (0, 1) * 200,
    folds: int = 0,
    **options: Any,
) -> list[str]:
    labels = (0, 1, 2, 3, 4) * 20
    right = round(accuracy * len(labels))
    predicted = [*labels[:right], *((label + 1) % 5 for label in labels[right:])]
    prepared: Any = SimpleNamespace(
        task=SimpleNamespace(
            train=Split(("x",) * len(taught), taught, Image.open),
            val=Split(("x",) * len(labels), labels, Image.open),
            task_type=Multiclass(),
            kind="images",
            sample_type="image",
            val_drawn=False,
        ),
        probe_predictions={"val": torch.eye(5)[predicted], "test": None},
    )
    config = TrainOptions(data="x", method=method, epochs=6, **options).resolve()
    setup, method = prepared, METHODS[method]
    plan = FineTunePlan(
        setup=setup, config=config, method=method, epochs=6, folds=folds, attention=None
    )
    plan.__dict__["held_out_setups"] = (setup,)  # as if it had been computed
    log_start(plan)
    return [record.message for record in caplog.records]


def probe_line(accuracy: float, samples: str = "100 validation images") -> str:
    low, high = accuracy_interval(round(100 * accuracy), 100)
    interval = f"{100 * low:.1f} to {100 * high:.1f}%"
    return f"probe    accuracy {100 * accuracy:.1f}% ({interval}) on {samples}"


@pytest.fixture(autouse=True)
def minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "estimate_minutes", lambda plan: 12.34)


@pytest.mark.parametrize(
    ("method", "options", "strength", "epochs"),
    [
        ("lp_ft", {}, "0.01", "6 epochs"),
        ("delta", {}, "1", "6 epochs"),
        ("delta", {"strength": "auto"}, "1 and 0.1", "2 times 6 epochs"),
    ],
)
def test_the_start_says_method_probe_and_minutes(caplog, method, options, strength, epochs):
    assert said(caplog, method, **options) == [
        f"method   {method}, strength {strength}: {METHODS[method].summary}",
        probe_line(0.62),
        f"time     about 12.3 minutes for {epochs}",
    ]


def test_folds_are_said(caplog):
    _, probe, duration = said(caplog, "l2", folds=3)
    assert probe == probe_line(0.62, "100 held-out images")
    assert duration == "time     about 12.3 minutes for 6 epochs, 3 folds"


def test_a_strength_that_was_asked_for_is_said(caplog):
    assert "delta, strength 0.5: " in said(caplog, "delta", strength=0.5)[0]


def test_the_probe_trains_nothing_that_takes_time(caplog):
    assert said(caplog, "probe") == [
        f"method   probe: {METHODS['probe'].summary}",
        probe_line(0.62),
    ]


@pytest.mark.parametrize(
    ("accuracy", "hint"),
    [
        (0.2, "(chance: 20.0%): the images differ"),
        (0.43, "differ"),  # 0.2 + 0.3 * 0.8 = 0.44
        (0.45, None),
        (0.91, None),
        (0.93, "the pretrained features already separate"),  # 0.2 + 0.9 * 0.8 = 0.92
        (1.0, "the pretrained features already separate"),
    ],
)
def test_a_hint_how_like_the_images_are_to_what_was_pretrained_on(caplog, accuracy, hint):
    line = said(caplog, "delta", accuracy=accuracy)[1]
    said_alone = probe_line(accuracy)
    assert hint in line if hint else line == said_alone


def test_one_class_is_no_division_by_zero():
    assert similarity_hint(1.0, 1.0)


def test_the_end_says_what_came_out(caplog):
    log_summary(RESULT)
    log_summary(dataclasses.replace(RESULT, test_accuracy=None, linear_probe_test_accuracy=None))
    better = "         better than the linear probe: +37.5 points (+25.0 to +50.0) on 100 images"
    assert [record.message for record in caplog.records] == [
        "done     test accuracy 87.5% (80.0 to 92.5%), linear probe 50.0%, 12 seconds",
        better,
        "done     held-out accuracy 75.0% (80.0 to 92.5%), linear probe 50.0%, 12 seconds",
        better,
        "         there is no test split: the weights were chosen on these samples",
    ]


@pytest.mark.parametrize(
    ("start", "difference", "expected"),
    [
        (0.0, (0.1, 0.02, 0.18), "better than the linear probe: +10.0 points (+2.0 to +18.0)"),
        (0.0, (0.1, -0.02, 0.2), "not told apart from the linear probe: +10.0 points"),
        (0.0, (0.0, 0.0, 0.0), "not told apart"),
        (0.0, (-0.1, -0.2, -0.02), "WORSE than the linear probe: -10.0 points (-20.0 to -2.0)"),
        (1.0, (0.0, -0.02, 0.02), "no training was better than the start, which is saved"),
    ],
)
def test_the_verdict_is_that_of_the_interval(caplog, start, difference, expected):
    selection = dataclasses.replace(
        RESULT.model_selection, mixing_coefficients=(start, 1.0 - start)
    )
    compared = ProbeComparison(50, 0.8, 0.9, *difference)
    log_summary(dataclasses.replace(RESULT, model_selection=selection, probe_comparison=compared))
    verdict = caplog.records[1].message
    assert verdict.startswith(f"         {expected}")
    assert "on 50 images" in verdict
    assert ("--method probe" in verdict) == ("WORSE" in verdict)


def test_without_training_there_is_no_verdict(caplog):
    log_summary(dataclasses.replace(RESULT, model_selection=None))
    assert len(caplog.records) == 1


def test_without_classes_there_is_no_interval(caplog):
    regression = {"metric_name": "rmse", "test_rmse": 0.5, "linear_probe_test_rmse": 0.75}
    log_summary(dataclasses.replace(RESULT, probe_comparison=None, **regression))
    (record,) = caplog.records
    assert record.message == "done     test RMSE 0.500, linear probe 0.750, 12 seconds"


def test_the_end_says_the_main_figure_where_it_is_not_accuracy(caplog):
    log_summary(
        dataclasses.replace(RESULT, metric_name="mean_class_accuracy", test_mean_class_accuracy=0.5)
    )
    assert caplog.records[-1].message == (
        "         mean class accuracy 50.0%, the metric of this dataset"
    )


@pytest.mark.parametrize(
    ("taught", "way", "line"),
    [
        ((0, 1) * 8, "none", None),
        ((0, 0, 1) * 4, "none", None),
        ((0, 0, 0, 1) * 4, "none", "3.0 times .*: `class_weights=auto` balances them"),
        ((0, 0, 1) * 4, "auto", "2.0 times .*: not balanced"),
        ((0, 0, 0, 0, 1) * 4, "auto", "4.0 times .*: weighted in the loss by inverse frequency"),
        ((0, 1) * 8, "balanced", "1.0 times .*: weighted in the loss"),
        ((0, 0, 1) * 4, "sampler", "2.0 times .*: sampled equally often"),
    ],
)
def test_classes_of_very_different_sizes_are_told_of(caplog, taught, way, line):
    found = [
        text
        for text in said(caplog, "l2", taught=taught, class_weights=way)
        if text.startswith("classes")
    ]
    assert len(found) == (line is not None)
    assert line is None or re.search(line, found[0])


def test_of_a_method_that_does_not_train_nothing_is_said_of_classes(caplog):
    lines = said(caplog, "probe", taught=(0, 0, 0, 0, 1) * 4)
    assert not [line for line in lines if line.startswith("classes")]


@pytest.mark.parametrize(
    ("fields", "line"),
    [
        ({}, None),
        (
            {
                "kept_agreement": 0.834,
                "corruption_accuracy": 0.7119,
                "linear_probe_corruption_accuracy": 0.66,
            },
            "agreement with the pretrained network 83%, corrupted images 71.2% (probe 66.0%)",
        ),
        (
            {"shifted_accuracy": 0.0, "linear_probe_shifted_accuracy": 0.25},
            "shifted images 0.0% (probe 25.0%)",
        ),
    ],
)
@pytest.mark.parametrize("test_accuracy", [0.875, None])
def test_the_end_says_what_was_kept(caplog, fields, line, test_accuracy):
    log_summary(dataclasses.replace(RESULT, test_accuracy=test_accuracy, **fields))
    first, *others = [record.message for record in caplog.records]
    assert first.startswith("done ")
    kept = [text for text in others if text.startswith("kept ")]
    assert kept == ([] if line is None else [f"kept     {line}"])
