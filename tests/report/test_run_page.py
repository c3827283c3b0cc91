import base64
import itertools
import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from delta_transfer.errors import UserError
from delta_transfer.report.run_page import write_run_report
from tests.report.made import (
    ANSWERS,
    COMPARED,
    CORRUPTIONS,
    RESULT,
    SELECTION,
    VAL_ACCURACY,
    Page,
    make_run,
    metrics,
    predictions,
    write_csv,
)

MINUS = "\N{MINUS SIGN}"


def page_of(folder: Path) -> Page:
    path = write_run_report(folder)
    assert path == folder / "report.html"
    return Page(path.read_text(encoding="utf-8"))


def change(folder: Path, **figures: Any) -> None:
    (folder / "result.json").write_text(json.dumps({**RESULT, **figures}))


class TestHeadline:
    def test_results(self, run: Path) -> None:
        page = page_of(run)
        assert page.all("h1")[0].text == "DELTA on pets"
        assert "pypi/efficientnet_lite0, trained on 85 images of 3 classes." in page.text
        figures = dict(
            zip(
                [term.text for term in page.all("dt")],
                [value.text for value in page.all("dd")],
                strict=True,
            )
        )
        assert figures == {
            "Test accuracy": "75.0%",
            "Linear probe": "62.5%",
            "Difference, points": "+12.5",
            "Epochs": "3",
            "Time": "2 min 13 s",
        }
        assert "the same 8 test images" in page.text
        assert "On held-out images they are 80.0% and 70.0%" in page.text

    def test_one_run_claims_nothing(self, run: Path) -> None:
        text = page_of(run).text
        assert "a small difference may be due to chance" in text
        assert "Final weights" not in text  # a single training, nothing was chosen
        assert "Curves show" not in text

    @pytest.mark.parametrize(
        ("low", "verdict"), [(-0.01, "not significant"), (0.0, "not significant"), (0.01, "")]
    )
    def test_confidence_intervals(self, run: Path, low: float, verdict: str) -> None:
        change(run, probe_comparison={**COMPARED, "difference_ci_low": low})
        text = page_of(run).text
        assert "accuracy 41.0% to 92.9%, difference to the linear probe" in text
        assert (", not significant." in text) is bool(verdict)
        assert (" points, significant." in text) is not bool(verdict)
        assert "due to chance" not in text

    def test_worse_than_the_probe(self, run: Path) -> None:
        change(run, test_accuracy=0.6)
        assert f"{MINUS}2.5" in [value.text for value in page_of(run).all("dd")]

    def test_without_test_split(self, run: Path) -> None:
        change(run, test_accuracy=None, linear_probe_test_accuracy=None)
        page = page_of(run)
        assert [value.text for value in page.all("dd")][:3] == ["80.0%", "70.0%", "+10.0"]
        assert page.all("dt")[0].text == "Validation accuracy"
        assert "There is no test split." in page.text
        assert "the same 8 held-out images." in page.text
        assert "optimistic" not in page.text

    def test_without_test_split_the_choice_is_optimistic(self, run: Path) -> None:
        selection = {**SELECTION, "folds": 3}
        change(
            run,
            test_accuracy=None,
            linear_probe_test_accuracy=None,
            model_selection=selection,
        )
        text = page_of(run).text
        assert "held-out images (3 folds, each predicted by networks not trained on it). " in text
        assert "The final weights were chosen by them, so they may be optimistic" in text

    def test_an_average(self, run: Path) -> None:
        change(run, model_selection={**SELECTION, "folds": 3, "averages_folds": True})
        text = page_of(run).text
        assert (
            "Final weights: 25% initial, 37.5% trained with strength 1, 37.5% trained with "
            "strength 0.1, mean of 3 folds and on all samples. The shares were chosen by the loss "
            "on held-out images."
        ) in text
        assert "Curves show the training with strength 1, means over 3 folds." in text

    def test_a_choice_trained_once_more(self, run: Path) -> None:
        once = {"folds": 3, "averaged": False, "mixing_coefficients": [0.0, 0.0, 1.0]}
        change(run, model_selection={**SELECTION, **once})
        assert "Final weights: 100% trained with strength 0.1, on all samples." in page_of(run).text

    def test_no_training_was_better(self, run: Path) -> None:
        change(run, model_selection={**SELECTION, "mixing_coefficients": [1.0, 0.0, 0.0]})
        text = page_of(run).text
        assert "No training was better than the start on held-out images" in text
        assert "Final weights" not in text


class TestCurves:
    def test_text_alternatives_have_the_numbers(self, run: Path) -> None:
        page = page_of(run)
        assert page.figure("Validation accuracy") == (
            "Validation accuracy by epoch: epoch 0 70.0%, epoch 1 75.0%, epoch 2 80.0%, "
            "epoch 3 78.0%. Linear probe: 70.0%."
        )
        assert page.figure("Task loss") == (
            "Task loss by epoch. training: epoch 1 1, epoch 2 0.5, epoch 3 0.333; "
            "validation: epoch 0 1.5, epoch 1 1.4, epoch 2 1.3, epoch 3 1.2."
        )
        assert page.figure("Penalty terms") == (
            "Penalty terms by epoch. delta: epoch 1 0.1, epoch 2 0.2, epoch 3 0.3; "
            "l2: epoch 1 0.01, epoch 2 0.01, epoch 3 0.01."
        )
        assert page.figure("Distance").startswith(
            "Distance from the pretrained network by epoch. blocks.1: epoch 0 0, epoch 1 0.1,"
        )

    def test_many_epochs_are_summarised_by_first_extremes_and_last(self, run: Path) -> None:
        accuracies = [0.5, *[0.6] * 20, 0.4, 0.9, *[0.7] * 20]
        write_csv(run / "metrics.csv", metrics(accuracies))
        text = page_of(run).figure("Validation accuracy")
        assert "epoch 0 50.0%, epoch 21 40.0%, epoch 22 90.0%, epoch 42 70.0%. " in text

    def test_table_of_numbers(self, run: Path) -> None:
        page = page_of(run)
        # epoch, validation accuracy and loss, all terms, task, learning rate, delta, l2
        assert page.row("2 0.8") == "2 0.8 1.3 0.71 0.5 0.0003 0.2 0.01"
        assert page.row("0 0.7") == "0 0.7 1.5"

    def test_a_low_first_epoch_is_noted_below_the_axis(self, run: Path) -> None:
        write_csv(run / "metrics.csv", metrics([0.05, *VAL_ACCURACY]))
        assert "Below the axis: 5.0% at epoch 0." in page_of(run).text

    def test_columns_of_another_method(self, run: Path) -> None:
        header = ["epoch", "step", "train_loss", "train_task", "val_loss", "val_accuracy"]
        write_csv(
            run / "metrics.csv",
            [
                header,
                [0.0, 0, "", "", 2.0, 0.5],
                [1.0, 3, 1.0, 1.0, "", ""],
                [1, 3, "", "", 1, 0.6],
            ],
        )
        page = page_of(run)
        assert "Penalty terms" not in page.text
        assert "Task loss" in page.text

    def test_diverged(self, run: Path) -> None:
        header = ["epoch", "train_task", "train_delta", "val_loss", "val_accuracy"]
        rows = [[0, "", "", 2.0, 0.5], [1, "nan", "inf", "nan", 0.1], [2, "nan", "inf", "nan", 0.1]]
        write_csv(run / "metrics.csv", [header, *rows])
        page = page_of(run)
        assert page.figure("Task loss") == "Task loss by epoch. validation: epoch 0 2."
        assert "Penalty terms" not in page.text
        assert "nan" in page.row("1 0.1")

    def test_many_taps_with_long_names(self, run: Path) -> None:
        taps = [f"features.denseblock{n}.denselayer16.conv2.and.more" for n in range(24)]
        rows = [[epoch, tap, epoch] for epoch in range(3) for tap in taps]
        write_csv(run / "drift.csv", [["epoch", "tap", "distance"], *rows])
        assert page_of(run).figure("Distance").count("epoch 2 2") == 24


class TestClasses:
    def test_table_is_sorted_and_right(self, run: Path) -> None:
        page = page_of(run)
        rows = [row.text for row in page.all("tr")]
        start = rows.index("Class Accuracy Correct Most frequent mistake")
        assert rows[start + 1 : start + 4] == [
            "dog 66.7% 2 of 3 owl (1)",
            "cat 75.0% 3 of 4 dog (1)",
            "owl 100.0% 1 of 1",
        ]

    def test_confusion_matrix(self, run: Path) -> None:
        assert page_of(run).figure("Confusion") == (
            "Confusion matrix: 6 of 8 on the diagonal. "
            "Most frequent mistakes: cat predicted as dog (1), dog predicted as owl (1)."
        )

    def test_ties_go_to_the_first_class(self, run: Path) -> None:
        answers = [("cat", "owl", 0.5), ("cat", "dog", 0.5), ("dog", "owl", 0.5)]
        write_csv(run / "predictions.csv", predictions(answers))
        page = page_of(run)
        assert page.row("cat 0.0%") == "cat 0.0% 0 of 2 dog (1)"
        assert "of 0" not in page.text  # no image is an owl

    @pytest.mark.parametrize(("count", "drawn"), [(100, True), (101, False)])
    def test_too_many_classes_for_a_matrix(self, run: Path, count: int, drawn: bool) -> None:
        classes = [f"a class with a long name {number}" for number in range(count)]
        answers = [(name, name, 0.9) for name in classes]
        write_csv(run / "predictions.csv", predictions(answers, classes))
        assert ("Confusion matrix" in page_of(run).headings) is drawn

    def test_classes_named_like_columns(self, run: Path) -> None:
        classes = ["path", "label", "prediction"]
        answers = [("path", "label", 0.9), ("label", "label", 0.8)]
        write_csv(run / "predictions.csv", predictions(answers, classes))
        assert page_of(run).row("path 0.0%") == "path 0.0% 0 of 1 label (1)"


class TestExamples:
    def test_mistakes_first_with_their_images(self, run: Path) -> None:
        images = page_of(run).all("img")
        assert [image.attributes["alt"] for image in images][:3] == [
            "cat, predicted as dog with probability 60.0%",
            "dog, predicted as owl with probability 85.0%",
            "cat, correct with probability 90.0%",
        ]
        kind, _, content = images[0].attributes["src"].partition(",")
        assert kind == "data:image/jpeg;base64"
        assert base64.b64decode(content) == (run / "examples/00.jpg").read_bytes()
        assert len(images) == len(ANSWERS)


class TestMolecules:
    def test_drawn_with_how_far_they_moved(self, run: Path) -> None:
        smiles = ("CCO <b>", "c1ccccc1")
        rows = [["00.png", smiles[0], 0.5], ["01.png", smiles[1], 0.0125]]
        write_csv(run / "molecules.csv", [["file", "path", "distance"], *rows])
        for name, *_ in rows:
            Image.new("RGB", (4, 4)).save(run / "examples" / name)
        page = page_of(run)
        assert "Molecules that moved" in page.headings
        images = [one for one in page.all("img") if "molecule" in one.attributes["alt"]]
        assert [smiles[i] in one.attributes["alt"] for i, one in enumerate(images)] == [True] * 2
        assert "0.0125 c1ccccc1" in page.text
        assert not page.all("b")

    def test_a_missing_image_is_named(self, run: Path) -> None:
        write_csv(run / "molecules.csv", [["file", "path", "distance"], ["07.png", "C", 1.0]])
        with pytest.raises(UserError, match=r"07\.png is missing, .*molecules\.csv"):
            write_run_report(run)


class TestMissingParts:
    SECTIONS = (
        "Learning curves",
        "Accuracy per class",
        "Confusion matrix",
        "What fine-tuning kept",
        "Example predictions",
        "Configuration",
    )

    def test_nothing_missing(self, run: Path) -> None:
        assert tuple(page_of(run).headings) == self.SECTIONS

    def test_probe(self, run: Path) -> None:
        change(run, method="probe", model_selection=None, epochs=0, strength=None)
        write_csv(run / "metrics.csv", metrics([0.7]))
        (run / "drift.csv").unlink()
        page = page_of(run)
        assert tuple(page.headings) == self.SECTIONS[1:]
        assert "This run is the linear probe itself" in page.text
        assert page.all("h1")[0].text == "Linear probe on pets"

    def test_no_optional_file(self, run: Path) -> None:
        for name in ("metrics.csv", "drift.csv", "examples.csv", "corruptions.csv"):
            (run / name).unlink()
        change(run, kept_agreement=None)
        gone = ("What fine-tuning kept", "Example predictions")
        shutil.rmtree(run / "examples")
        page = page_of(run)
        left = [name for name in self.SECTIONS[1:] if name not in gone]
        assert page.headings == left
        assert not page.all("img")

    def test_drift_alone(self, run: Path) -> None:
        (run / "metrics.csv").unlink()
        page = page_of(run)
        assert page.figure("Distance")
        assert not page.all("details")


class TestPage:
    def test_configuration(self, run: Path) -> None:
        page = page_of(run)
        assert page.row("lr") == "lr 0.0003"
        assert page.row("strength") == "strength not set"
        assert page.row("overwrite") == "overwrite no"
        assert "Made with python 3.12.0, torch 2.10.0. Taps: blocks.1, blocks.6." in page.text

    def test_same_bytes_twice(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        first = write_run_report(run).read_bytes()
        monkeypatch.setenv("TZ", "Asia/Tokyo")
        assert write_run_report(run).read_bytes() == first
        names = "config.yaml corruptions.csv drift.csv examples examples.csv metrics.csv"
        written = sorted(path.name for path in run.iterdir())
        assert written == [*names.split(), "predictions.csv", "report.html", "result.json"]

    def test_everything_is_escaped(self, tmp_path: Path) -> None:
        nasty = "<b>\"'&amp;$x$\x07"
        classes = [nasty, "</script><script>alert(1)</script>", "{{ 7 * 7 }}"]
        answers = [(classes[0], classes[1], 0.9), (classes[1], classes[1], 0.8)]
        run = make_run(
            tmp_path / "run",
            answers=answers,
            classes=classes,
            config={"data": "/x/<i>", "<u>": "<s>"},
            taps=["<em>"],
            versions={"<q>": "<q>"},
        )
        page = page_of(run)
        tags = {element.tag for element in page.elements}
        assert not tags & {"b", "script", "i", "u", "s", "em", "q"}
        assert page.row(nasty).endswith("0 of 1 </script><script>alert(1)</script> (1)")
        assert page.all("h1")[0].text == "DELTA on <i>"
        assert any(nasty in image.attributes["alt"] for image in page.all("img"))
        assert "{{ 7 * 7 }}" in "".join(element.text for element in page.all("text"))

    def test_names_in_other_scripts(self, tmp_path: Path) -> None:
        classes = ["猫", "собака", "🦉"]
        run = make_run(tmp_path / "run", answers=[("猫", "собака", 0.9)], classes=classes)
        page = page_of(run)
        assert page.row("猫") == "猫 0.0% 0 of 1 собака (1)"
        assert {"猫", "собака", "🦉"} <= {element.text for element in page.all("text")}

    def test_stands_alone(self, run: Path) -> None:
        page = page_of(run)
        for element in page.elements:
            assert element.tag not in ("script", "iframe", "object", "embed")
            for name, value in element.attributes.items():
                assert not name.startswith("on")
                if name in ("src", "href") and element.tag != "a":
                    assert value.startswith(("data:", "#")), (element.tag, value)
                assert "url(http" not in value
        links = [link.attributes["href"] for link in page.all("a")]
        assert all(link.startswith("https://arxiv.org/abs/") for link in links)
        (style,) = page.all("style")
        assert "@import" not in style.text
        assert "url(" not in style.text

    def test_is_accessible(self, run: Path) -> None:
        page = page_of(run)
        assert page.all("html")[0].attributes["lang"] == "en"
        assert any(meta.attributes.get("name") == "viewport" for meta in page.all("meta"))
        assert "prefers-color-scheme: dark" in page.content
        assert all(svg.attributes["role"] == "img" for svg in page.all("svg"))
        assert all(svg.attributes["aria-label"] for svg in page.all("svg"))
        assert all(image.attributes["alt"] for image in page.all("img"))
        levels = [int(e.tag[1]) for e in page.elements if re.fullmatch("h[1-6]", e.tag)]
        assert levels.count(1) == 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(levels))
        assert len(page.all("table")) == page.content.count('class="scroll') - 1  # and the matrix

    def test_ids_are_unique_and_all_there(self, run: Path) -> None:
        page = page_of(run)
        ids = [e.attributes["id"] for e in page.elements if "id" in e.attributes]
        assert len(ids) == len(set(ids))
        assert len(page.all("svg")) == 5
        used = set(re.findall(r'(?:href="#|url\(#)([\w-]+)', page.content))
        assert used == set(ids)

    def test_figures_have_the_colours_of_the_page(self, run: Path) -> None:
        page = page_of(run)
        assert not re.findall(r'style="[^"]*#[0-9a-f]{6}', page.content)
        for variable in set(re.findall(r"var\((--[\w-]+)\)", page.content)):
            assert page.all("style")[0].text.count(f"{variable}:") == 2  # light and dark


class TestRetention:
    HEADING = "What fine-tuning kept"

    def test_numbers_by_corruption_and_severity(self, run: Path) -> None:
        page = page_of(run)
        assert self.HEADING in page.headings
        assert "is 90.0% : on this fraction of held-out images (8 of them), the" in page.text
        assert "the accuracy is 55.0% , and the linear probe" in page.text
        assert page.row("No corruption") == "No corruption 75.0% 62.5% +12.5"
        assert page.row("Gaussian noise") == "Gaussian noise, severity 1 50.0% 50.0% 0.0"
        assert page.row("JPEG") == "JPEG compression, severity 3 62.5% 50.0% +12.5"
        assert "shifted images" not in page.text

    def test_shifted_images(self, tmp_path: Path) -> None:
        folder = make_run(
            tmp_path / "run",
            config={"shifted": "/data/sketches"},
            shifted_accuracy=0.375,
            linear_probe_shifted_accuracy=0.25,
        )
        text = page_of(folder).text
        assert "On the shifted images, sketches, the accuracy is 37.5% ," in text
        assert " 25.0%." in text

    def test_agreement_alone(self, run: Path) -> None:
        (run / "corruptions.csv").unlink()
        change(run, corruption_accuracy=None, linear_probe_corruption_accuracy=None)
        text = page_of(run).text
        assert "Kept agreement is 90.0% : on this fraction of held-out images, the" in text
        assert "mildly corrupted" not in text

    def test_nothing_was_measured(self, run: Path) -> None:
        (run / "corruptions.csv").unlink()
        change(run, kept_agreement=None)
        assert self.HEADING not in page_of(run).headings

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            (["contrast", 1, 8, 1.5, 0.5], "accuracy must be between 0 and 1, got '1.5'"),
            (["contrast", "x", 8, 0.5, 0.5], "severity must be a number, got 'x'"),
        ],
    )
    def test_a_damaged_file(self, run: Path, row: list[object], message: str) -> None:
        write_csv(run / "corruptions.csv", [CORRUPTIONS[0], row])
        with pytest.raises(UserError, match=rf"corruptions\.csv, line 2: {message}"):
            write_run_report(run)
