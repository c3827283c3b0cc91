"""What a comparison shows, in sentences that claim no more than it does."""

from delta_transfer.metrics.metrics import Metric
from delta_transfer.metrics.statistics import Summary
from delta_transfer.report.comparison.runs import BASELINE, Comparison, MethodSummary, best_methods
from delta_transfer.report.formatting import interval, join_names, method_label, verdict


def summary_sentences(comparison: Comparison, summaries: list[MethodSummary]) -> list[str]:
    """The best method, and how it stands to plain fine-tuning and the probe.

    Args:
        comparison: runs of one size.
        summaries: of its methods.
    """
    equals = best_methods(summaries)
    best, names = equals[0], [method_label(summary.method) for summary in equals]
    count, measure = best.score.count, comparison.metric
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    said = [
        f"Of the {'fine-tuned ' if best.vs_probe else ''}methods, {join_names(names)} "
        f"{'share' if len(names) > 1 else 'has'} the {measure.superlative} {comparison.split} "
        f"{measure.display_name}: {measure.format(best.score.mean)} ({seeds})."
    ]
    if len(names) > 1:
        said.append(f"What follows is said of {names[0]}.")
    if best.vs_baseline:
        said.append(_sentence(best.vs_baseline, method_label(BASELINE).lower(), measure))
    if best.vs_probe:
        said.append(_sentence(best.vs_probe, "the linear probe", measure))
    if any(summary.score.count < 2 for summary in summaries):
        said.append(
            "With fewer than two seeds there is no interval: such a difference may be chance."
        )
    return said


def _sentence(difference: Summary, other: str, metric: Metric) -> str:
    mean = metric.format_difference_with_unit(difference.mean)
    if difference.count < 2:
        return f"Against {other}: {mean}, on one seed."
    found = {
        "above": f"that is above {other} beyond what the choice of seed explains",
        "below": f"that is below {other} beyond what the choice of seed explains",
        "unclear": "the interval includes zero, so these seeds do not tell the two apart",
    }[verdict(difference, metric)]
    return f"Against {other}: {mean} (95% interval {interval(difference, metric)}); {found}."
