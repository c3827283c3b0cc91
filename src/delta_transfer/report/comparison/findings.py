"""What a comparison shows, in sentences that claim no more than it does."""

from delta_transfer.metrics.metrics import Measure
from delta_transfer.metrics.statistics import Summary
from delta_transfer.report.comparison.runs import BASELINE, Comparison, MethodSummary, best_methods
from delta_transfer.report.formatting import interval, label, listed, verdict


def findings(comparison: Comparison, summaries: list[MethodSummary]) -> list[str]:
    """The best method, and how it stands to plain fine-tuning and the probe.

    Args:
        comparison: runs of one size.
        summaries: of its methods.
    """
    equals = best_methods(summaries)
    best, names = equals[0], [label(summary.method) for summary in equals]
    count, measure = best.score.count, comparison.measure
    seeds = f"mean of {count} seeds" if count > 1 else "one seed"
    said = [
        f"Of the {'fine-tuned ' if best.to_probe else ''}methods, {listed(names)} "
        f"{'share' if len(names) > 1 else 'has'} the {measure.best} {comparison.split} "
        f"{measure.words}: {measure.text(best.score.mean)} ({seeds})."
    ]
    if len(names) > 1:
        said.append(f"What follows is said of {names[0]}.")
    if best.to_baseline:
        said.append(_sentence(best.to_baseline, label(BASELINE).lower(), measure))
    if best.to_probe:
        said.append(_sentence(best.to_probe, "the linear probe", measure))
    if any(summary.score.count < 2 for summary in summaries):
        said.append(
            "With fewer than two seeds there is no interval: such a difference may be chance."
        )
    return said


def _sentence(difference: Summary, other: str, measure: Measure) -> str:
    mean = measure.apart(difference.mean)
    if difference.count < 2:
        return f"Against {other}: {mean}, on one seed."
    found = {
        "above": f"that is above {other} beyond what the choice of seed explains",
        "below": f"that is below {other} beyond what the choice of seed explains",
        "unclear": "the interval includes zero, so these seeds do not tell the two apart",
    }[verdict(difference, measure)]
    return f"Against {other}: {mean} (95% interval {interval(difference, measure)}); {found}."
