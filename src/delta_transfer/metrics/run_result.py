"""The result of a run: its metrics and settings, as JSON on disk."""

import dataclasses
import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from delta_transfer.errors import ModelError
from delta_transfer.metrics.metrics import ACCURACY, METRICS, Metric
from delta_transfer.metrics.statistics import accuracy_difference, accuracy_interval

if TYPE_CHECKING:
    from torch import Tensor

MetricPrefix = Literal["test", "val", "linear_probe_test", "linear_probe_val"]

RETENTION_COLUMNS = (
    "kept_agreement",
    "corruption_accuracy",
    "linear_probe_corruption_accuracy",
    "shifted_accuracy",
    "linear_probe_shifted_accuracy",
)
"""The columns of results.csv on what fine-tuning keeps, if there are classes; may be missing."""


def comparison_columns(metric: Metric) -> tuple[str, ...]:
    """The columns of results.csv of a comparison, one row per run."""
    return (
        "method",
        "seed",
        "samples_per_class",
        f"test_{metric.name}",
        f"val_{metric.name}",
        f"linear_probe_test_{metric.name}",
        "trained_share",
        "strength",
        "wall_time_s",
        "peak_memory_mib",
        *(RETENTION_COLUMNS if metric is ACCURACY else ()),
        "folder",
    )


def parse_percent(text: str) -> tuple[float, ...]:
    """Return the mixing coefficients that a key of `ModelSelection.losses` has in percent.

    Raises:
        ValueError: if they are not numbers.

    Example:
        >>> parse_percent("25/37.5/37.5")
        (0.25, 0.375, 0.375)
    """
    return tuple(float(part) / 100 for part in text.split("/"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSelection:
    """How the final weights of a run were chosen and averaged (see docs/selection.md).

    Args:
        strengths: of the trainings, from strong to weak; None without one.
        mixing_coefficients: in the final weights: of the initial weights, then of the trainings.
        losses: temperature-scaled held-out loss in nats by mixing coefficients in percent, as
            `"0/50/50"`; the default is the first.
        folds: number of cross-validation folds, over which weights are averaged; 0 for a single
            validation split.
        averaged: whether weights of several trainings, or with the initial ones, may be averaged.
        averages_folds: whether the networks of the folds are part of the final average; if not, it
            is that of trainings on all samples.
        accuracies: held-out accuracy as a fraction, by the same keys as `losses`; empty without
            classes.
        agreements: fraction of held-out images with the same top-1 class as the pretrained network
            has, by the classifier of pretraining, by the same keys; empty if it is unknown.
    """

    strengths: tuple[float | None, ...]
    mixing_coefficients: tuple[float, ...]
    losses: dict[str, float]
    folds: int
    averaged: bool
    averages_folds: bool
    accuracies: dict[str, float] = dataclasses.field(default_factory=dict)
    agreements: dict[str, float] = dataclasses.field(default_factory=dict)

    @property
    def trained_share(self) -> float:
        """The share of trained weights, the rest being the initial ones; 0 for those alone."""
        return 1 - self.mixing_coefficients[0]

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "ModelSelection":
        """Build it from JSON values, whose lists become tuples."""
        options: dict[str, Any] = {
            key: tuple(v) if isinstance(v, list) else v for key, v in values.items()
        }
        return cls(**options)


@dataclasses.dataclass(frozen=True)
class ProbeComparison:
    """Accuracies of the final network and the linear probe on the same samples, as fractions.

    Args:
        num_samples: the number of samples, of the test split or else the held-out ones.
        ci_low: lower limit of the network's accuracy, with 95% confidence.
        ci_high: upper limit.
        difference: the network's accuracy minus that of the probe.
        difference_ci_low: lower limit of the paired difference, with 95% confidence.
        difference_ci_high: upper limit.
    """

    num_samples: int
    ci_low: float
    ci_high: float
    difference: float
    difference_ci_low: float
    difference_ci_high: float

    @classmethod
    def of(cls, network: "Tensor", probe: "Tensor") -> "ProbeComparison":
        """Compare two networks by which samples they get right, `[N]` booleans each."""
        total = len(network)
        gained, lost = int((network & ~probe).sum()), int((probe & ~network).sum())
        low, high = accuracy_interval(int(network.sum()), total)
        return cls(total, low, high, *accuracy_difference(gained, lost, total))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunResult:
    """The result of one run. Accuracies and ROC-AUC are fractions.

    A metric is None if there is no such split, or it does not fit the task type.

    Args:
        folder: folder of the run (not in the file).
        method: its method.
        seed: its seed.
        samples_per_class: training images per class; None for all.
        metric_name: the main metric of the dataset, see `Metric`.
        test_accuracy: of the final model on the test split, on which nothing was chosen.
        test_mean_class_accuracy: mean of the per-class test accuracies.
        val_accuracy: on the held-out images, by which the weights were chosen; with folds of the
            networks of each fold that were not trained on them.
        linear_probe_test_accuracy: test accuracy of the linear probe.
        linear_probe_val_accuracy: validation accuracy of the linear probe.
        test_roc_auc: mean ROC-AUC of binary targets on the test split.
        val_roc_auc: mean ROC-AUC on the held-out samples.
        linear_probe_test_roc_auc: mean test ROC-AUC of the linear probe.
        linear_probe_val_roc_auc: mean validation ROC-AUC of the linear probe.
        test_rmse: mean RMSE of regression targets on the test split, in their units.
        val_rmse: mean RMSE on the held-out samples.
        linear_probe_test_rmse: mean test RMSE of the linear probe.
        linear_probe_val_rmse: mean validation RMSE of the linear probe.
        kept_agreement: fraction of held-out images for which the fine-tuned and the pretrained
            network have the same top-1 class by the classifier of pretraining; None if that is
            unknown.
        corruption_accuracy: mean accuracy of the final model on mildly corrupted held-out images.
        linear_probe_corruption_accuracy: of the linear probe on the same images.
        shifted_accuracy: accuracy of the final model on the images of `shifted`.
        linear_probe_shifted_accuracy: of the linear probe on the same images.
        epochs: number of epochs of each training; 0 if nothing was trained.
        model_selection: how the final weights were chosen; None if nothing was trained.
        probe_comparison: the final network beside the linear probe; None without classes.
        wall_time_s: of the run; if it was interrupted, the sum over all processes that worked on
            it, each until its last checkpoint.
        peak_memory_mib: the most memory that the method used in any of these processes, in MiB
            (see `PeakMemory`).
        num_train_samples: number of samples that the final model was trained on.
        sample_type: image, molecule or graph.
        num_classes: number of classes or targets.
        strength: the value that `--strength` set for the method, or that the linear probe chose;
            None if there is none. For several trainings their geometric mean, weighted by the
            mixing coefficients.
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
    kept_agreement: float | None = None
    corruption_accuracy: float | None = None
    linear_probe_corruption_accuracy: float | None = None
    shifted_accuracy: float | None = None
    linear_probe_shifted_accuracy: float | None = None
    epochs: int
    wall_time_s: float
    peak_memory_mib: float
    num_train_samples: int
    sample_type: str
    num_classes: int
    strength: float | None
    model_selection: ModelSelection | None
    probe_comparison: ProbeComparison | None = None
    taps: tuple[str, ...]
    versions: dict[str, str]

    @property
    def metric(self) -> Metric:
        """The metric by which runs on the same dataset are compared."""
        return METRICS[self.metric_name]

    def metric_value(self, prefix: MetricPrefix) -> float | None:
        """Return the metric of the network or the linear probe, if there is one."""
        found: float | None = getattr(self, f"{prefix}_{self.metric.name}")
        return found

    @property
    def trained_share(self) -> float:
        """The share of trained weights in the final ones; 0 if they are the initial ones."""
        return 0.0 if self.model_selection is None else self.model_selection.trained_share

    @property
    def num_folds(self) -> int:
        """The number of cross-validation folds; 0 for a single validation split."""
        return 0 if self.model_selection is None else self.model_selection.folds

    @property
    def score(self) -> float:
        """The main metric on the test split, or else on the held-out samples; NaN if undefined."""
        mean = self.metric_name == "mean_class_accuracy"
        tested = self.test_mean_class_accuracy if mean else self.metric_value("test")
        found = self.metric_value("val") if tested is None else tested
        return math.nan if found is None else found

    def to_json(self) -> str:
        """Return everything but the folder as JSON."""
        values = dataclasses.asdict(self)
        del values["folder"]
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def load(cls, folder: str | Path) -> "RunResult":
        """Read `result.json` of a run.

        Raises:
            ModelError: if the folder does not contain a finished run.
        """
        path = Path(folder) / "result.json"
        if not path.is_file():
            raise ModelError(f"no finished run in {folder}: it has no {path.name}")
        try:
            values: dict[str, Any] = json.loads(path.read_text())
            found = values["model_selection"]
            selection = None if found is None else ModelSelection.from_dict(found)
            compared = values["probe_comparison"]
            values["probe_comparison"] = compared and ProbeComparison(**compared)
            values |= {"model_selection": selection, "taps": tuple(values["taps"])}
            result = cls(**values, folder=Path(folder))
            if result.metric_name not in METRICS:
                raise ValueError(f"unknown metric {result.metric_name!r}")
            return result
        except (ValueError, TypeError, KeyError) as error:
            raise ModelError(f"{path} is not the result of a run: {error}") from error
