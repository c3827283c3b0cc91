"""Summarise a comparison in sentences, with the significance of its differences."""

from delta_transfer.metrics.metrics import Metric
from delta_transfer.metrics.statistics import Summary
from delta_transfer.report.comparison.runs import BASELINE, Comparison, MethodSummary, best_methods
from delta_transfer.report.formatting import interval, join_names, method_label, verdict


def summary_sentences(comparison: Comparison, summaries: list[MethodSummary]) -> list[str]:
    """Return sentences on the best method, compared to plain fine-tuning and the probe.

    Args:
        comparison: runs of one size.
        summaries: of its methods.
    """
    equals = best_methods(summaries)
    best, names = equals[0], [method_label(summary.method) for summary in equals]
    count, metric = best.score.count, comparison.metric
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    sentences = [
        f"Of the {'fine-tuned ' if best.vs_probe else ''}methods, {join_names(names)} "
        f"{'share' if len(names) > 1 else 'has'} the {metric.superlative} {comparison.split} "
        f"{metric.display_name}: {metric.format(best.score.mean)} ({seeds})."
    ]
    if len(names) > 1:
        sentences.append(f"The differences below are those of {names[0]}.")
    if best.vs_baseline:
        sentences.append(_sentence(best.vs_baseline, method_label(BASELINE).lower(), metric))
    if best.vs_probe:
        sentences.append(_sentence(best.vs_probe, "the linear probe", metric))
    if any(summary.score.count < 2 for summary in summaries):
        sentences.append(
            "A single seed has no confidence interval: its differences may be due to chance."
        )
    return sentences


def _sentence(difference: Summary, other: str, metric: Metric) -> str:
    mean = metric.format_difference_with_unit(difference.mean)
    if difference.count < 2:
        return f"Difference to {other}: {mean}, on one seed."
    significance = {
        "above": "significantly higher",
        "below": "significantly lower",
        "unclear": "not significant, because the interval includes zero",
    }[verdict(difference, metric)]
    return (
        f"Difference to {other}: {mean} (95% interval {interval(difference, metric)}), "
        f"{significance}."
    )
