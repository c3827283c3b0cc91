import dataclasses
import json
from pathlib import Path

import pytest

from delta_transfer.errors import ModelError
from delta_transfer.metrics.run_result import RETENTION_COLUMNS, RunResult

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
    best_epoch=2,
    epochs=8,
    refitted=False,
    wall_time_s=12.5,
    peak_memory_mib=1024.5,
    num_train_samples=60,
    sample_type="image",
    num_classes=3,
    strength=0.01,
    strength_search=None,
    taps=("blocks.1", "blocks.2"),
    versions={"python": "3.12"},
)


def test_json_round_trip_in_any_folder(tmp_path):
    (tmp_path / "result.json").write_text(RESULT.to_json())
    loaded = RunResult.load(tmp_path)
    assert loaded.folder == tmp_path
    assert loaded.to_json() == RESULT.to_json()
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
        "best_epoch",
        "epochs",
        "refitted",
        "wall_time_s",
        "peak_memory_mib",
        "num_train_samples",
        "sample_type",
        "num_classes",
        "strength",
        "strength_search",
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
