"""The figures in a model card: of the run, class by class, and beside other methods."""

from collections.abc import Sequence

from delta_transfer.export.hub.facts import CardFacts
from delta_transfer.export.hub.markdown import code, plain, table
from delta_transfer.metrics.metrics import ACCURACY, RMSE, ROC_AUC
from delta_transfer.metrics.per_target import BinaryTargetMetrics
from delta_transfer.metrics.statistics import Summary
from delta_transfer.report.comparison.runs import (
    BASELINE,
    PROBE,
    Comparison,
    MethodSummary,
    rank_methods,
    summarize_methods,
)
from delta_transfer.report.confusion import ClassAccuracy, class_accuracies
from delta_transfer.report.formatting import (
    format_training_size,
    interval,
    method_label,
    percent,
    pluralize,
)

MOST = 50  # rows of a table of classes or questions


def results(facts: CardFacts) -> str:
    """The section on results."""
    parts = [_figures(facts), _uncertainty(facts), _each(facts), _beside_others(facts)]
    return "\n\n".join(["## Results", *filter(None, parts)])


def chance(facts: CardFacts) -> tuple[float, float] | None:
    """The 95% interval of the accuracy, by the number of samples alone (Wilson's)."""
    if facts.predictions is None:
        return None
    from scipy.stats import binomtest  # slow to import

    rows = facts.predictions.rows
    right = sum(row.is_correct for row in rows)
    found = binomtest(right, len(rows)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)


def miscalibration(facts: CardFacts) -> float | None:
    """The expected calibration error of the predictions, in 15 bins, as `evaluate` has it."""
    if facts.predictions is None:
        return None
    import torch
    from torchmetrics.functional.classification import binary_calibration_error

    rows = facts.predictions.rows
    sure = torch.tensor([row.probability for row in rows])
    below = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))  # whole certainty: no own bin
    right = torch.tensor([int(row.is_correct) for row in rows])
    return float(binary_calibration_error(sure.clamp(max=below), right, n_bins=15, norm="l1"))


def _figures(facts: CardFacts) -> str:
    result, measure = facts.result, facts.result.metric
    rows = []
    if result.metric_value("test") is not None:
        found = [result.metric_value("test"), result.metric_value("linear_probe_test")]
        rows.append([f"test {measure.display_name}", *map(measure.format, found)])
    if result.test_mean_class_accuracy is not None:
        mean = ACCURACY.format(result.test_mean_class_accuracy)
        rows.append(["test accuracy, mean over classes", mean, ""])
    found = [result.metric_value("val"), result.metric_value("linear_probe_val")]
    rows.append([f"validation {measure.display_name}", *map(measure.format, found)])
    return table(["figure", "this model", "linear probe"], rows, numbers=2)


def _uncertainty(facts: CardFacts) -> str:
    said = (
        "The linear probe is logistic regression on the features of the pretrained network, on the "
        f"same {facts.noun}s."
    )
    ends = chance(facts)
    if ends is None or facts.predictions is None:
        return said
    samples = pluralize(len(facts.predictions.rows), facts.noun)
    low, high = map(percent, ends)
    return (
        f"{said} The {facts.split} accuracy is of {samples}; by their number alone it lies between "
        f"{low} and {high} (95%, Wilson)."
    )


def _each(facts: CardFacts) -> str:
    """Class by class, or question by question."""
    if facts.columns:
        return _columns(facts)
    if facts.predictions is None:
        return ""
    found = class_accuracies(facts.predictions)
    rows = [
        [
            plain(entry.name),
            f"{entry.num_samples:,}",
            percent(entry.accuracy),
            _taken_for(entry),
        ]
        for entry in found[:MOST]
    ]
    more = len(found) - len(rows)
    left_out = f" {more} classes with higher accuracies are left out." if more else ""
    heading = f"Class by class on the {facts.split} split, the lowest first.{left_out}"
    columns = ["class", f"{facts.noun}s", "accuracy", "taken for"]
    return f"{heading}\n\n{table(columns, rows)}"


def _taken_for(entry: ClassAccuracy) -> str:
    if entry.mistaken_for is None:
        return ""
    return f"{plain(entry.mistaken_for)} ({entry.num_mistaken})"


def _columns(facts: CardFacts) -> str:
    rows = []
    for figures in facts.columns[:MOST]:
        if isinstance(figures, BinaryTargetMetrics):
            score = ROC_AUC.format(figures.roc_auc)
            rows.append(
                [
                    plain(figures.name),
                    f"{figures.num_labelled:,}",
                    f"{figures.num_positive:,}",
                    score,
                ]
            )
        else:
            score = RMSE.format(figures.rmse)
            rows.append([plain(figures.name), f"{figures.num_labelled:,}", score])
    more = len(facts.columns) - len(rows)
    left_out = f" {more} are left out." if more else ""
    questions = isinstance(facts.columns[0], BinaryTargetMetrics)
    what = "Question by question" if questions else "Value by value"
    headings = ["question", "known", "yes", "ROC-AUC"] if questions else ["value", "known", "RMSE"]
    shown = table(headings, rows, numbers=len(headings) - 1)
    return f"{what} on the {facts.split} split.{left_out}\n\n{shown}"


def _beside_others(facts: CardFacts) -> str:
    """The comparison that the run is part of."""
    comparison = facts.comparison
    if comparison is None:
        return ""
    summaries = rank_methods(summarize_methods(comparison))
    size = format_training_size(facts.result.samples_per_class, facts.noun)
    seeds = pluralize(len(comparison.seeds), "seed")
    said = (
        f"This run (method {code(facts.result.method)}, seed {facts.result.seed}) is one of a "
        f"comparison: {comparison.split} {comparison.metric.display_name}, {seeds}, {size}, the "
        "same "
        f"{facts.noun}s for all. What is to be expected of a method is its mean, not one of its "
        "runs. Differences are paired by seed, with their 95% intervals."
    )
    return f"### Beside other methods\n\n{said}\n\n{_methods(comparison, summaries)}"


def _methods(comparison: Comparison, summaries: Sequence[MethodSummary]) -> str:
    measure, there = comparison.metric, comparison.methods
    headings = ["method", "mean", "standard deviation"]
    headings += [f"less {method_label(BASELINE).lower()}"] if BASELINE in there else []
    headings += [f"less {method_label(PROBE).lower()}"]
    rows = []
    for found in summaries:
        several = found.score.count > 1
        spread = measure.format_number(found.score.std) if several else "one seed"
        row = [method_label(found.method), measure.format(found.score.mean), spread]
        differences = [found.vs_baseline] if BASELINE in there else []
        for difference in (*differences, found.vs_probe):
            row.append(_difference(comparison, difference))
        rows.append(row)
    return table(headings, rows, numbers=len(headings) - 1)


def _difference(comparison: Comparison, difference: Summary | None) -> str:
    if difference is None:
        return ""
    mean = comparison.metric.format_difference(difference.mean)
    if difference.count < 2:
        return mean
    return f"{mean} ({interval(difference, comparison.metric)})"
