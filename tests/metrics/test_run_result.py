import dataclasses
import json
from pathlib import Path

import pytest
import torch

from delta_transfer.errors import ModelError
from delta_transfer.metrics.run_result import (
    RETENTION_COLUMNS,
    ModelSelection,
    ProbeComparison,
    RunResult,
)
from delta_transfer.metrics.statistics import accuracy_interval

RESULT = RunResult(
    folder=Path("run"),
    method="l2",
    seed=3,
    samples_per_class=20,
    metric_name="accuracy",
    test_accuracy=None,
    test_mean_class_accuracy=None,
    val_accuracy=0.75,
    linear_probe_test_accuracy=None,
    linear_probe_val_accuracy=0.5,
    epochs=8,
    wall_time_s=12.5,
    peak_memory_mib=1024.5,
    num_train_samples=60,
    sample_type="image",
    num_classes=3,
    strength=0.01,
    model_selection=ModelSelection(
        strengths=(None,),
        mixing_coefficients=(0.25, 0.75),
        losses={"0/100": 0.7, "25/75": 0.5, "100/0": 0.9},
        folds=3,
        averaged=True,
        averages_folds=True,
        accuracies={"0/100": 0.75, "25/75": 0.8, "100/0": 0.5},
        agreements={"0/100": 0.25, "25/75": 0.5, "100/0": 1.0},
    ),
    probe_comparison=ProbeComparison(60, 0.6, 0.85, 0.25, 0.1, 0.4),
    taps=("blocks.1", "blocks.2"),
    versions={"python": "3.12"},
)


def test_json_round_trip_in_any_folder(tmp_path):
    (tmp_path / "result.json").write_text(RESULT.to_json())
    loaded = RunResult.load(tmp_path)
    assert loaded.folder == tmp_path
    assert loaded == dataclasses.replace(RESULT, folder=tmp_path)
    assert (loaded.taps, loaded.test_accuracy) == (("blocks.1", "blocks.2"), None)


def test_json_has_the_metrics_and_no_paths():
    values = json.loads(RESULT.to_json())
    assert list(values) == [
        "method",
        "seed",
        "samples_per_class",
        "metric_name",
        "test_accuracy",
        "test_mean_class_accuracy",
        "val_accuracy",
        "linear_probe_test_accuracy",
        "linear_probe_val_accuracy",
        "test_roc_auc",
        "val_roc_auc",
        "linear_probe_test_roc_auc",
        "linear_probe_val_roc_auc",
        "test_rmse",
        "val_rmse",
        "linear_probe_test_rmse",
        "linear_probe_val_rmse",
        *RETENTION_COLUMNS,
        "epochs",
        "wall_time_s",
        "peak_memory_mib",
        "num_train_samples",
        "sample_type",
        "num_classes",
        "strength",
        "model_selection",
        "probe_comparison",
        "taps",
        "versions",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "result.json"),
        ("{", "result.json is not"),
        ("[]", "result.json is not"),
        ('{"taps": []}', "result.json is not"),
        (RESULT.to_json().replace('"seed"', '"sead"'), "sead"),
    ],
)
def test_a_folder_without_a_valid_result_is_refused(tmp_path, content, message):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(ModelError, match=message):
        RunResult.load(tmp_path)


@pytest.mark.parametrize(
    ("metric", "test", "expected"),
    [("accuracy", 0.5, 0.5), ("mean_class_accuracy", 0.5, 0.25), ("accuracy", None, 0.75)],
)
def test_score_is_the_main_metric_of_the_dataset(metric, test, expected):
    mean = None if test is None else 0.25
    values = {"test_accuracy": test, "test_mean_class_accuracy": mean, "val_accuracy": 0.75}
    assert dataclasses.replace(RESULT, metric_name=metric, **values).score == expected


def test_shares_and_folds_of_a_run_without_training():
    assert (RESULT.trained_share, RESULT.num_folds) == (0.75, 3)
    probe = dataclasses.replace(RESULT, method="probe", model_selection=None)
    assert (probe.trained_share, probe.num_folds) == (0.0, 0)


def test_the_network_beside_the_probe():
    right = torch.tensor([True] * 7 + [False] * 3)
    probe = torch.tensor([True] * 4 + [False] * 3 + [True] + [False] * 2)
    found = ProbeComparison.of(right, probe)
    assert found.num_samples == 10
    assert (found.ci_low, found.ci_high) == accuracy_interval(7, 10)
    assert found.difference == pytest.approx(0.2)  # three gained, one lost
    assert found.difference_ci_low < 0.2 < found.difference_ci_high
