"""Tasks that tell no classes go the same way as those that do: a run, its figures, its files."""

import csv
import dataclasses
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import rankdata

from delta_transfer import train
from delta_transfer.cli.commands.evaluate import format_evaluation
from delta_transfer.cli.main import main
from delta_transfer.data.registry import BUILTIN_DATASETS
from delta_transfer.data.splits import SplitOptions
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError
from delta_transfer.inference.evaluation_folder import save_evaluation
from delta_transfer.inference.predictor import Predictor
from delta_transfer.metrics.metrics import MINUS, RMSE
from delta_transfer.metrics.run_result import RunResult, comparison_columns
from delta_transfer.report.comparison.page import write_comparison_report
from delta_transfer.report.comparison.runs import (
    best_methods,
    rank_methods,
    read_comparison,
    summarize_methods,
)
from delta_transfer.report.comparison.summary import summary_sentences
from delta_transfer.runs.model_soup import format_percent
from delta_transfer.training.module import FineTuneModule
from tests.questions import (
    QUESTIONS,
    SIZES,
    VALUES,
    answers,
    image,
    load_questions,
    load_values,
    values,
)
from tests.run_folders import OPTIONS, model_bytes, tiny

DATA = {"tests/questions": load_questions, "tests/values": load_values}


@pytest.fixture(scope="module", autouse=True)
def sources() -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, load in DATA.items():
            patch.setitem(BUILTIN_DATASETS, name, load)
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
    options = {"method": "delta_attention", "attention": "gradient", "taps": "blocks.6"}
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
    assert written["metric_name"] == "roc_auc"
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
    chosen = {(1.0, 0.0): 0, (0.0, 1.0): 2}.get(result.model_selection.mixing_coefficients)
    if chosen is not None:  # no average
        expected = result.metric_value("val")
        assert float(found[chosen]) == pytest.approx(expected, rel=1e-4)
    assert "val_accuracy" not in (result.folder / "metrics.csv").read_text()


@pytest.mark.parametrize("run", ["asked", "valued"])
def test_mixtures_have_agreements_but_no_accuracies(run, request):
    found = request.getfixturevalue(run).model_selection
    assert found.accuracies == {}
    assert list(found.agreements) == list(found.losses)
    assert all(0 <= fraction <= 1 for fraction in found.agreements.values())
    assert found.agreements.get("100/0", 1.0) == 1.0  # the start; a random head has none
    page = (request.getfixturevalue(run).folder / "report.html").read_text()
    assert "Accuracy and kept knowledge" not in page


def test_a_network_starts_from_its_probe(valued):
    """Fine-tuning at epoch 0 of delta is the raw probe, which knows more than the mean."""
    found = rows(valued.folder / "metrics.csv")
    assert float(found[0]["val_loss"]) < 1


@pytest.mark.slow
@pytest.mark.parametrize("data", list(DATA))
def test_a_run_that_was_broken_off_goes_on_to_the_same_bytes(data, tmp_path, monkeypatch):
    def run(name: str, **options: object) -> RunResult:
        return train(tiny(Path(data), tmp_path / name, method="l2sp", **options))

    def stop(self: FineTuneModule, *args: object) -> None:
        if self.trainer.current_epoch == 1:
            raise KeyboardInterrupt

    whole = run("whole", checkpoint_steps=1)
    with monkeypatch.context() as patch:
        patch.setattr(FineTuneModule, "on_train_batch_end", stop)
        with pytest.raises(KeyboardInterrupt):
            run("broken", checkpoint_steps=1)
    again = run("broken", checkpoint_steps=1, resume=True)
    assert model_bytes(again.folder) == model_bytes(whole.folder)
    for name in ("metrics.csv", "predictions.csv"):
        assert (again.folder / name).read_bytes() == (whole.folder / name).read_bytes()


@pytest.mark.parametrize("run", ["asked", "valued"])
def test_a_saved_run_finds_its_own_figures_again(run, request, tmp_path):
    result = request.getfixturevalue(run)
    predictor = Predictor(result.folder, device="cpu", num_workers=0)
    found = predictor.evaluate(f"tests/{'questions' if run == 'asked' else 'values'}")
    assert found.score == pytest.approx(result.score, rel=1e-5)
    save_evaluation(found, run=result.folder, out=str(tmp_path / "out"))
    written = rows(tmp_path / "out" / "predictions.csv")
    for row, before in zip(written, rows(result.folder / "predictions.csv"), strict=True):
        assert row.keys() == before.keys()
        for name in list(row)[1:]:
            assert float(row[name] or "nan") == pytest.approx(
                float(before[name] or "nan"), abs=1e-3, nan_ok=True
            )
    told = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert told["metric_name"] == result.metric_name
    assert [figures["name"] for figures in told["targets"]] == list(predictor.classes)


def test_each_question_has_its_own_figures(asked):
    found = Predictor(asked.folder, device="cpu", num_workers=0).evaluate("tests/questions")
    labels = np.array([answers(f"test/{number}") for number in range(SIZES["test"])])
    for number, figures in enumerate(found.targets):
        known = ~np.isnan(labels[:, number])
        assert (figures.num_labelled, figures.num_positive) == (
            known.sum(),
            np.nansum(labels[:, number]),
        )
        area = pairs_in_order(labels[:, number], found.predictions[:, number].numpy())
        assert figures.roc_auc == pytest.approx(area)
    lines = format_evaluation(found)
    assert lines[1] == f"ROC-AUC              {100 * found.score:.1f}"
    assert lines[-1].split()[:3] == [
        "striped",
        *map(str, (figures.num_labelled, figures.num_positive)),
    ]


def test_labels_of_another_kind_are_refused(asked, images):
    predictor = Predictor(asked.folder, device="cpu", num_workers=0)
    with pytest.raises(UserError, match="has classes, but the run was trained on binary targets"):
        predictor.evaluate(str(images))
    with pytest.raises(UserError, match=r"none of the run's targets: bright, red, striped"):
        predictor.evaluate("tests/values")


def test_images_are_answered_column_by_column(asked, valued, tmp_path, capsys):
    file = tmp_path / "one.png"
    image("test/5").save(file)
    given = {}
    for run in (asked, valued):
        assert main(["predict", str(run.folder), str(file), "--device=cpu", "--num-workers=0"]) == 0
        path, *told = capsys.readouterr().out.strip().split("\t")
        given[run.metric_name] = dict(zip(told[::2], map(float, told[1::2]), strict=True))
        assert path == str(file)
        for name, answer in given[run.metric_name].items():
            kind = "probability" if run is asked else "prediction"
            assert answer == pytest.approx(column(run, f"{kind} {name}")[5], abs=1e-3)
    assert (tuple(given[asked.metric_name]), tuple(given[valued.metric_name])) == (
        QUESTIONS,
        VALUES,
    )
    flags = ["--device=cpu", "--num-workers=0", "--json", f"--csv={tmp_path / 'told.csv'}"]
    assert main(["predict", str(valued.folder), str(file), *flags]) == 0
    (told,) = json.loads(capsys.readouterr().out)
    assert list(told) == ["path", "predictions"]
    assert told["predictions"] == pytest.approx(given[valued.metric_name], rel=1e-4)
    assert list(rows(tmp_path / "told.csv")[0]) == [
        "path",
        "prediction brightness",
        "prediction stripes",
    ]


def test_the_page_of_a_run_tells_of_columns_in_the_place_of_classes(asked, valued):
    page = (asked.folder / "report.html").read_text()
    assert f"<dt>Test ROC-AUC</dt><dd>{100 * asked.test_roc_auc:.1f}</dd>" in page
    assert "Results per target" in page
    assert "per class" not in page
    assert "ccurac" not in page
    page = (valued.folder / "report.html").read_text()
    assert f"<dt>Test RMSE</dt><dd>{RMSE.format(valued.test_rmse)}</dd>" in page
    assert "ccurac" not in page


def valued_files(result: RunResult) -> list[Path]:
    return [result.folder / name for name in ("config.yaml", "metrics.csv", "predictions.csv")]


def test_of_errors_the_lowest_is_the_best(valued, tmp_path):
    errors = {"l2": (8.0, 9.0, 8.5), "delta": (7.0, 7.9, 7.4), "l2sp": (8.2, 8.8, 8.6)}
    runs = [
        dataclasses.replace(
            valued,
            method=method,
            seed=seed,
            test_rmse=error,
            linear_probe_test_rmse=9.0,
        )
        for method, found in errors.items()
        for seed, error in enumerate(found)
    ]
    folder = tmp_path / "compared"
    for run in runs:
        name = f"{run.method}-seed{run.seed}"
        (folder / name).mkdir(parents=True)
        for path in valued_files(valued):
            shutil.copy(path, folder / name)
        (folder / name / "result.json").write_text(run.to_json())
    write_results(folder, runs)
    found = read_comparison(folder)
    assert found.metric is RMSE
    summaries = rank_methods(summarize_methods(found))
    assert [summary.method for summary in summaries] == ["delta", "l2", "l2sp"]
    assert [best.method for best in best_methods(summaries)] == ["delta"]
    assert summaries[0].vs_baseline.mean == pytest.approx(-(1.0 + 1.1 + 1.1) / 3)
    said = " ".join(summary_sentences(found, summaries))
    assert "DELTA has the lowest test RMSE: 7.43 (mean of 3 seeds)." in said
    assert f"Difference to plain fine-tuning: {MINUS}1.07 (95% interval {MINUS}1.21 to" in said
    assert "significantly lower" in said
    page = write_comparison_report(folder).read_text()
    assert "<dt>Test RMSE</dt><dd>7.43</dd>" in page
    assert "Lower is better." in page
    assert "RMSE per target" in page
    assert "ccurac" not in page


def write_results(folder: Path, runs: list[RunResult]) -> None:
    columns = comparison_columns(RMSE)
    with (folder / "results.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for run in runs:
            figures = [getattr(run, name) for name in columns[:-1]]
            given = ["" if figure is None else figure for figure in figures]
            writer.writerow([*given, f"{run.method}-seed{run.seed}"])


@pytest.mark.slow
def test_folds_and_the_average_of_two_strengths_go_by_the_loss_of_values(tmp_path, monkeypatch):
    def load(options: SplitOptions) -> TaskData:
        return dataclasses.replace(load_values(options), val_drawn=True, test=None)

    monkeypatch.setitem(BUILTIN_DATASETS, "tests/folded", load)
    own = {"method": "delta", "strength": "auto", "taps": "blocks.6", "folds": 2}
    result = train(tiny(Path("tests/folded"), tmp_path / "run", epochs=1, **own))
    assert len(rows(result.folder / "predictions.csv")) == SIZES["train"] + SIZES["val"]
    std = np.nanstd(np.array([values(f"train/{n}") for n in range(SIZES["train"])]), axis=0)
    misses = np.stack(
        [column(result, f"prediction {name}") - column(result, f"label {name}") for name in VALUES],
        axis=1,
    )
    assert result.val_rmse == pytest.approx(np.sqrt(np.nanmean(misses**2, axis=0)).mean(), rel=1e-4)
    assert result.test_rmse is None
    search = result.model_selection
    loss = np.nan_to_num((misses / std) ** 2).mean()
    assert search.losses[format_percent(search.mixing_coefficients)] == pytest.approx(
        loss, rel=1e-4
    )


@pytest.mark.slow
def test_methods_are_compared_on_questions(tmp_path, capsys):
    out = tmp_path / "compared"
    options = [f"--{name.replace('_', '-')}={value}" for name, value in OPTIONS.items()]
    own = ["--methods=probe,l2", "--seeds=0,1", "--jobs=1", f"--out={out}"]
    assert main(["compare", "tests/questions", *own, *options]) == 0
    assert "Test ROC-AUC in percent, 2 seeds" in capsys.readouterr().out
    table = rows(out / "results.csv")
    assert [row["method"] for row in table] == ["probe", "l2", "probe", "l2"]
    for row in table:
        result = RunResult.load(out / row["folder"])
        assert float(row["test_roc_auc"]) == result.test_roc_auc
        if row["method"] == "probe":
            assert result.test_roc_auc == result.linear_probe_test_roc_auc
    page = (out / "report.html").read_text()
    assert "Test ROC-AUC per method. Linear probe: mean" in page
    assert "ROC-AUC per target" in page
    other = main(["compare", "tests/questions", "--methods=l2,co_tuning", *options, "--jobs=1"])
    assert other == 2
    assert "co_tuning needs classes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"class_weights": "balanced"}, "`class_weights=balanced`: only for images with classes"),
        (
            {"label_smoothing": 0.1, "mixup": 0.2, "cutmix": 1.0},
            "`label_smoothing=0.1`, `mixup=0.2`, `cutmix=1.0`: only .* leave them out",
        ),
        ({"samples_per_class": 3}, "`samples_per_class=3`: tests/questions has no classes"),
        ({"method": "co_tuning"}, "`method=co_tuning` needs classes, .* use one of probe, l2"),
        ({"preset": "paper"}, "`preset=paper`: only for images with classes"),
    ],
)
def test_what_means_something_for_classes_alone_is_refused(options, said, tmp_path):
    with pytest.raises(UserError, match=said):
        train(tiny(Path("tests/questions"), tmp_path / "run", **{"method": "l2", **options}))
    assert not (tmp_path / "run").exists()
