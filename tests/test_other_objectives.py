"""Tasks that tell no classes go the same way as those that do: a run, its figures, its files."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import rankdata

from delta_transfer import train
from delta_transfer.data import SOURCES
from delta_transfer.errors import UserError
from delta_transfer.objective import BinaryTasks, Classes
from delta_transfer.result import RunResult
from tests.questions import QUESTIONS, SIZES, VALUES, answers, load_questions, load_values, values
from tests.runs import model_bytes, tiny

DATA = {"tests/questions": load_questions, "tests/values": load_values}


@pytest.fixture(scope="module", autouse=True)
def sources() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, load in DATA.items():
            patch.setitem(SOURCES, name, load)
        yield


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> RunResult:
    """Plain fine-tuning on questions. Not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "questions"
    return train(tiny(Path("tests/questions"), out, method="l2"))


@pytest.fixture(scope="module")
def valued(tmp_path_factory) -> RunResult:
    """DELTA on values. Not to be written to."""
    out = tmp_path_factory.mktemp("runs") / "values"
    options = {"method": "delta", "attention": "gradient", "taps": "blocks.6"}
    return train(tiny(Path("tests/values"), out, **options))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(run: RunResult, name: str) -> np.ndarray:
    return np.array([float(row[name] or "nan") for row in rows(run.folder / "predictions.csv")])


def pairs_in_order(truth: np.ndarray, given: np.ndarray) -> float:
    """The area under the receiver operating characteristic, by ranks."""
    known = ~np.isnan(truth)
    ranks, yes = rankdata(given[known]), truth[known] == 1
    below = ranks[yes].sum() - yes.sum() * (yes.sum() + 1) / 2
    return float(below / (yes.sum() * (~yes).sum()))


def test_predictions_of_questions_have_labels_and_probabilities(asked):
    table = rows(asked.folder / "predictions.csv")
    assert list(table[0]) == [
        "path",
        *(f"{kind} {name}" for name in QUESTIONS for kind in ("label", "probability")),
    ]
    for number, row in enumerate(table):
        assert row["path"] == f"test/{number}"
        labels = [float(row[f"label {name}"] or "nan") for name in QUESTIONS]
        assert labels == pytest.approx(answers(row["path"]), nan_ok=True)
        assert all(0 <= float(row[f"probability {name}"]) <= 1 for name in QUESTIONS)
    assert any(row["label red"] == "" for row in table)


def test_the_figure_of_questions_is_the_mean_of_their_areas(asked):
    areas = [
        pairs_in_order(column(asked, f"label {name}"), column(asked, f"probability {name}"))
        for name in QUESTIONS
    ]
    assert asked.test_roc_auc == pytest.approx(sum(areas) / 3)
    assert asked.score == asked.test_roc_auc
    written = json.loads((asked.folder / "result.json").read_text())
    assert written["test_accuracy"] is written["val_accuracy"] is written["test_rmse"] is None
    assert written["metric"] == "roc_auc"
    assert 0 <= written["linear_probe_test_roc_auc"] <= 1


def test_the_figure_of_values_is_in_their_own_unit(valued):
    errors = []
    for name in VALUES:
        misses = column(valued, f"prediction {name}") - column(valued, f"label {name}")
        errors.append(math.sqrt(np.nanmean(misses**2)))
    assert valued.test_rmse == pytest.approx(sum(errors) / 2, rel=1e-5)
    assert errors[0] > 100 * errors[1]
    assert valued.score == valued.test_rmse
    truth = [values(f"test/{number}") for number in range(SIZES["test"])]
    assert column(valued, "label brightness") == pytest.approx([first for first, _ in truth])


@pytest.mark.parametrize(("run", "name"), [("asked", "val_roc_auc"), ("valued", "val_rmse")])
def test_epochs_have_the_figure_under_its_name(run, name, request):
    result = request.getfixturevalue(run)
    found = [row[name] for row in rows(result.folder / "metrics.csv") if row[name]]
    assert len(found) == 3  # the start and two epochs
    assert float(found[result.best_epoch]) == pytest.approx(result.figure("val"), rel=1e-4)
    assert "val_accuracy" not in (result.folder / "metrics.csv").read_text()


def test_a_network_starts_from_its_probe(valued):
    """Fine-tuning at epoch 0 of delta is the raw probe, which knows more than the mean."""
    found = rows(valued.folder / "metrics.csv")
    assert float(found[0]["val_loss"]) < 1


@pytest.mark.parametrize("run", ["asked", "valued"])
def test_a_run_goes_on_to_the_same_bytes(run, request, tmp_path):
    result = request.getfixturevalue(run)
    from delta_transfer.config import TrainConfig

    config = TrainConfig.load(result.folder / "config.yaml")
    again = train(tiny(Path(config.data), tmp_path / "again", **options_of(config)))
    assert model_bytes(again.folder) == model_bytes(result.folder)


def options_of(config) -> dict[str, object]:
    return {name: getattr(config, name) for name in ("method", "attention", "taps")}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_weights": "balanced"}, "--class-weights balanced: only for pictures of classes"),
        (
            {"label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0},
            "--label-smoothing 0.1, --mixup 0.2, --cutmix 1.0: only .* leave them out",
        ),
        ({"samples_per_class": 3}, "--samples-per-class 3: tests/questions has no classes"),
        ({"method": "co_tuning"}, "--method co_tuning learns classes, .* take one of probe, l2"),
        ({"preset": "official"}, "--preset official: only for pictures of classes"),
    ],
)
def test_what_means_something_for_classes_alone_is_refused(options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        train(tiny(Path("tests/questions"), tmp_path / "run", **{"method": "l2", **options}))
    assert not (tmp_path / "run").exists()


def test_the_loss_of_folds_and_probe_is_the_objective(asked):
    """With a known share of half, a lost answer counts as much as two."""
    logits = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    targets = torch.full((6, 3), math.nan)
    targets[:, 0] = 1
    third = BinaryTasks(known=1 / 3).loss(logits, targets)
    alone = BinaryTasks().loss(logits[:, :1], targets[:, :1])
    assert torch.allclose(third, alone)
    assert Classes().measure.name == "accuracy"
