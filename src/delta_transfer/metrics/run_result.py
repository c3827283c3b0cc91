"""What a run left behind: its figures, as JSON on disk."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

from delta_transfer.errors import UserError
from delta_transfer.metrics.metrics import METRICS, Metric

MetricPrefix = Literal["test", "val", "linear_probe_test", "linear_probe_val"]


def comparison_columns(metric: Metric) -> tuple[str, ...]:
    """A row a run in the results.csv of a comparison: figures of the run, and where it lies."""
    return (
        "method",
        "seed",
        "samples_per_class",
        f"test_{metric.name}",
        f"val_{metric.name}",
        f"linear_probe_test_{metric.name}",
        "best_epoch",
        "strength",
        "seconds",
        "memory",
        "folder",
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class StrengthSearch:
    """What `--strength auto` made of trainings of two strengths (see docs/strength.md).

    Args:
        strengths: of the trainings, from strong to weak.
        mixing_coefficients: in the final weights: of the start, and of the trainings in their
            order.
        losses: calibrated held-out loss in nats by shares in percent, as `"0/50/50"`; the shares
            are those of the lowest one, or the equal average, where there is one, if it is not
            clearly lower.
        best_epochs: that were kept of the trainings.
        wall_time_s: that the second training and the choice took.
    """

    strengths: tuple[float, float]
    mixing_coefficients: tuple[float, float, float]
    losses: dict[str, float]
    best_epochs: tuple[int, int]
    wall_time_s: float

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "StrengthSearch":
        """What JSON has made of it: lists in place of tuples."""
        kept: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in values.items()
        }
        return cls(**kept)


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """The figures of one run. Accuracies and ROC-AUC are fractions.

    A figure is None where there is no such split, or the task is judged by another.

    Args:
        folder: where the run lies (not in the file).
        method: its method.
        seed: its seed.
        samples_per_class: training images of each class; None if all were taken.
        metric_name: the data set's main figure, see `Metric`.
        test_accuracy: of the final model on the test split, on which nothing was chosen.
        test_mean_class_accuracy: likewise, the mean of the classes' own accuracies.
        val_accuracy: on the images held out, on which the epoch was chosen: of the final model,
            or, if it was refitted, of those that had not seen them.
        linear_probe_test_accuracy: of the linear probe on the same images.
        linear_probe_val_accuracy: likewise.
        test_roc_auc: the same of questions: the mean of their areas under the receiver operating
            characteristic.
        val_roc_auc: likewise.
        linear_probe_test_roc_auc: likewise.
        linear_probe_val_roc_auc: likewise.
        test_rmse: the same of values: the roots of the mean squared errors, in their units.
        val_rmse: likewise.
        linear_probe_test_rmse: likewise.
        linear_probe_val_rmse: likewise.
        best_epoch: the epoch that was kept; 0 is the start, before any training.
        epochs: how many were trained to choose from.
        refitted: whether the final model learnt from training and validation images.
        wall_time_s: from the start of the run to its end; if it was broken off, of all processes
            that worked on it, of each until it last saved.
        peak_memory_mib: the most in use while the method was at work, in MiB (see `PeakMemory`), in
            any of these processes.
        num_train_samples: how many samples the final model learnt from.
        sample_type: what one of them is called: image, molecule or graph.
        num_classes: how many, or questions, or values.
        strength: of the method's penalty, None where it has none; if it was found, the geometric
            mean of the two that were trained with, by their shares.
        strength_search: how the strength was found, None where it was given or the method's own.
        taps: the modules whose features were compared or measured.
        versions: of Python and the libraries.
    """

    folder: Path
    method: str
    seed: int
    samples_per_class: int | None
    metric_name: str
    test_accuracy: float | None = None
    test_mean_class_accuracy: float | None = None
    val_accuracy: float | None = None
    linear_probe_test_accuracy: float | None = None
    linear_probe_val_accuracy: float | None = None
    test_roc_auc: float | None = None
    val_roc_auc: float | None = None
    linear_probe_test_roc_auc: float | None = None
    linear_probe_val_roc_auc: float | None = None
    test_rmse: float | None = None
    val_rmse: float | None = None
    linear_probe_test_rmse: float | None = None
    linear_probe_val_rmse: float | None = None
    best_epoch: int
    epochs: int
    refitted: bool
    wall_time_s: float
    peak_memory_mib: float
    num_train_samples: int
    sample_type: str = "image"
    num_classes: int
    strength: float | None
    strength_search: StrengthSearch | None
    taps: tuple[str, ...]
    versions: dict[str, str]

    @property
    def metric(self) -> Metric:
        """By what the run is compared with others of the same data."""
        return METRICS[self.metric_name]

    def metric_value(self, prefix: MetricPrefix) -> float | None:
        """The measure of the network or the linear probe; None where there is none."""
        found: float | None = getattr(self, f"{prefix}_{self.metric.name}")
        return found

    @property
    def score(self) -> float:
        """The main figure on the test split, NaN if undefined; without one, on what was held out.

        Whether more is better says `measure.higher`.
        """
        mean = self.metric_name == "mean_class_accuracy"
        tested = self.test_mean_class_accuracy if mean else self.metric_value("test")
        found = self.metric_value("val") if tested is None else tested
        return math.nan if found is None else found

    def to_json(self) -> str:
        """Everything but the folder."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def load(cls, folder: str | Path) -> "RunResult":
        """Reads `result.json` of a run.

        Raises:
            UserError: if the folder holds no finished run.
        """
        path = Path(folder) / "result.json"
        if not path.is_file():
            raise UserError(f"no finished run in {folder}: there is no {path.name}")
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            found = values["strength_search"]
            search = None if found is None else StrengthSearch.from_dict(found)
            values |= {"strength_search": search, "taps": tuple(values["taps"])}
            result = cls(**values, folder=Path(folder))
            if result.metric_name not in METRICS:
                raise ValueError(f"{result.metric_name!r} is no metric")
            return result
        except (ValueError, TypeError, KeyError) as error:
            raise UserError(f"{path} is no result of a run: {error}") from error
