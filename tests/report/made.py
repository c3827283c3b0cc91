"""Small runs and comparisons, written by hand as the commands write them, and pages read back."""

import csv
import dataclasses
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import yaml
from PIL import Image

from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.run_result import comparison_columns

Rows = Sequence[Sequence[object]]
VOID = {"br", "hr", "img", "input", "link", "meta", "wbr"}


@dataclasses.dataclass(frozen=True)
class Element:
    """One element of a page: its tag, its attributes and the words in it."""

    tag: str
    attributes: dict[str, str]
    words: list[str]

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


class Page(HTMLParser):
    """All elements of a page; an AssertionError where tags do not balance."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.content = content
        self.elements: list[Element] = []
        self._open: list[Element] = []
        self.feed(content)
        self.close()
        assert not self._open, f"left open: {[element.tag for element in self._open]}"

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"an attribute twice in {tag}"
        element = Element(tag, {name: value or "" for name, value in attrs}, [])
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"{tag} is closed, but nothing is open"
        assert self._open[-1].tag == tag, f"{tag} closes {self._open[-1].tag}"
        self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.words.append(data)

    def all(self, tag: str) -> list[Element]:
        return [element for element in self.elements if element.tag == tag]

    @property
    def text(self) -> str:
        return self.all("main")[0].text

    @property
    def headings(self) -> list[str]:
        return [element.text for element in self.all("h2")]

    def row(self, start: str) -> str:
        """The words of the one table row that starts so."""
        (found,) = [row.text for row in self.all("tr") if row.text.startswith(start)]
        return found

    def figure(self, start: str) -> str:
        """The text alternative of the one drawing that starts so."""
        labels = [svg.attributes["aria-label"] for svg in self.all("svg")]
        (found,) = [label for label in labels if label.startswith(start)]
        return found


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


RESULT: Mapping[str, Any] = {
    "method": "delta",
    "seed": 0,
    "samples_per_class": None,
    "metric_name": "accuracy",
    "test_accuracy": 0.75,
    "test_mean_class_accuracy": 0.7,
    "val_accuracy": 0.8,
    "linear_probe_test_accuracy": 0.625,
    "linear_probe_val_accuracy": 0.7,
    "kept_agreement": 0.9,
    "corruption_accuracy": 0.55,
    "linear_probe_corruption_accuracy": 0.5,
    "shifted_accuracy": None,
    "linear_probe_shifted_accuracy": None,
    "epochs": 3,
    "wall_time_s": 133.4,
    "num_train_samples": 85,
    "num_classes": 3,
    "sample_type": "image",
    "strength": 3.0,
    "model_selection": {
        "strengths": [3.0],
        "mixing_coefficients": [0.0, 1.0],
        "losses": {"0/100": 0.5},
        "folds": 0,
        "averaged": True,
        "averages_folds": False,
    },
    "probe_comparison": None,
    "peak_memory_mib": 812.4,
    "taps": ["blocks.1", "blocks.6"],
    "versions": {"python": "3.12.0", "torch": "2.10.0"},
}
COMPARED: Mapping[str, Any] = {
    "num_samples": 8,
    "ci_low": 0.4096,
    "ci_high": 0.929,
    "difference": 0.125,
    "difference_ci_low": -0.1,
    "difference_ci_high": 0.35,
}
SELECTION: Mapping[str, Any] = {
    "strengths": [1.0, 0.1],
    "mixing_coefficients": [0.25, 0.375, 0.375],
    "losses": {"0/50/50": 0.5, "25/37.5/37.5": 0.4, "100/0/0": 0.6},
    "folds": 0,
    "averaged": True,
    "averages_folds": False,
}
CONFIG: Mapping[str, Any] = {
    "data": "/data/pets",
    "model": "pypi/efficientnet_lite0",
    "method": "delta",
    "strength": None,
    "lr": 0.0003,
    "overwrite": False,
}
# label and prediction of eight images: cat 3 of 4, dog 2 of 3, owl 1 of 1
ANSWERS = (
    ("cat", "cat", 0.9),
    ("cat", "cat", 0.8),
    ("cat", "cat", 0.7),
    ("cat", "dog", 0.6),
    ("dog", "dog", 0.5),
    ("dog", "dog", 0.95),
    ("dog", "owl", 0.85),
    ("owl", "owl", 1.0),
)
CORRUPTIONS: Rows = (
    ("corruption", "severity", "num_images", "accuracy", "linear_probe_accuracy"),
    ("none", 0, 8, 0.75, 0.625),
    ("gaussian_noise", 1, 8, 0.5, 0.5),
    ("jpeg_compression", 3, 8, 0.625, 0.5),
)
VAL_ACCURACY = (0.7, 0.75, 0.8, 0.78)
METRICS_HEADER = (
    "epoch,step,train_loss,train_task,train_delta,train_l2,lr,val_loss,val_accuracy"
).split(",")


def metrics(val_accuracy: Sequence[float] = VAL_ACCURACY) -> Rows:
    """Sparse rows as Lightning's logger writes them; epoch 0 has only a validation."""
    rows: list[Sequence[object]] = [METRICS_HEADER]
    for epoch, accuracy in enumerate(val_accuracy):
        if epoch:
            task, delta = 1.0 / epoch, 0.1 * epoch
            training = [task + delta + 0.01, task, delta, 0.01, 3e-4]
            rows.append([float(epoch), 3 * epoch - 1, *training, "", ""])
        rows.append([float(epoch), 3 * epoch, "", "", "", "", "", 1.5 - 0.1 * epoch, accuracy])
    return rows


def predictions(
    answers: Sequence[tuple[str, str, float]], classes: Sequence[str] = ("cat", "dog", "owl")
) -> Rows:
    rows: list[Sequence[object]] = [["path", "label", "prediction", *classes]]
    for number, (label, prediction, probability) in enumerate(answers):
        rest = (1 - probability) / max(1, len(classes) - 1)
        columns = [probability if name == prediction else rest for name in classes]
        rows.append([f"test/{number}.jpg", label, prediction, *columns])
    return rows


def write_examples(folder: Path, answers: Sequence[tuple[str, str, float]]) -> None:
    (folder / "examples").mkdir()
    rows: list[Sequence[object]] = [["file", "path", "label", "prediction", "probability"]]
    order = sorted(range(len(answers)), key=lambda i: answers[i][0] == answers[i][1])
    for number, i in enumerate(order):
        name = f"{number:02d}.jpg"
        Image.new("RGB", (8, 6), (30 * i, 100, 0)).save(folder / "examples" / name)
        rows.append([name, f"test/{i}.jpg", *answers[i]])
    write_csv(folder / "examples.csv", rows)


def make_run(
    folder: Path,
    *,
    answers: Sequence[tuple[str, str, float]] = ANSWERS,
    classes: Sequence[str] = ("cat", "dog", "owl"),
    curve: Sequence[float] = VAL_ACCURACY,
    config: Mapping[str, Any] | None = None,
    **result: Any,
) -> Path:
    """A run with all its files; `result` replaces figures of it."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump({**CONFIG, **(config or {})}))
    (folder / "result.json").write_text(json.dumps({**RESULT, **result}))
    write_csv(folder / "metrics.csv", metrics(curve))
    drift = [[epoch, tap, 0.1 * epoch] for epoch in range(4) for tap in RESULT["taps"]]
    write_csv(folder / "drift.csv", [["epoch", "tap", "distance"], *drift])
    write_csv(folder / "predictions.csv", predictions(answers, classes))
    write_csv(folder / "corruptions.csv", CORRUPTIONS)
    write_examples(folder, answers)
    return folder


def make_comparison(
    folder: Path, runs: Mapping[tuple[str, int] | tuple[str, int, int], Mapping[str, Any]]
) -> Path:
    """Runs by method, seed and perhaps size, with what differs between them, and their table."""
    rows: list[Sequence[object]] = [comparison_columns(ACCURACY)]
    for (method, seed, *size), options in runs.items():
        name = "/".join([*(f"{count}-per-class" for count in size), f"{method}-seed{seed}"])
        figures = {"samples_per_class": next(iter(size), None), **options}
        make_run(folder / name, method=method, seed=seed, **figures)
        result = json.loads((folder / name / "result.json").read_text())
        result |= {"folder": name, "trained_share": 0.75}
        values = [result[column] for column in comparison_columns(ACCURACY)]
        rows.append(["" if value is None else value for value in values])
    write_csv(folder / "results.csv", rows)
    return folder


PROBE = {0: 0.80, 1: 0.82, 2: 0.81}
L2 = {0: 0.80, 1: 0.83, 2: 0.80}
DELTA = {0: 0.85, 1: 0.87, 2: 0.85}
BESIDE = {0: 0.79, 1: 0.85, 2: 0.81}  # like plain fine-tuning, within its noise
MINUS = "\N{MINUS SIGN}"
T_OF_3 = 4.302652729911275  # Student's t, 97.5%, two degrees of freedom


def runs(**methods: Mapping[int, float]) -> dict[tuple[str, int], Mapping[str, Any]]:
    """What differs between runs, for `make_comparison`: test accuracies by seed."""
    return {
        (method, seed): {
            "test_accuracy": accuracy,
            "linear_probe_test_accuracy": PROBE[seed],
            "wall_time_s": 60.0 + seed,
        }
        for method, accuracies in methods.items()
        for seed, accuracy in accuracies.items()
    }


def difference(values: Mapping[int, float], others: Mapping[int, float]) -> str:
    """Mean and 95% interval of a paired difference of three seeds, as they must be printed."""
    deltas = [100 * (values[seed] - others[seed]) for seed in values]
    mean, half = statistics.mean(deltas), T_OF_3 * statistics.stdev(deltas) / math.sqrt(3)
    said = [f"{value:+.1f}".replace("-", MINUS) for value in (mean, mean - half, mean + half)]
    said = [words if words[1:] != "0.0" else "0.0" for words in said]
    return f"{said[0]} {said[1]} to {said[2]}"
