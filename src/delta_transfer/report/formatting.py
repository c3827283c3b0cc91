"""Format numbers for a page: percentages, points, intervals, times, and significance."""

import math
from collections.abc import Sequence
from typing import Literal

from delta_transfer.metrics.metrics import ACCURACY, NO_VALUE, Metric
from delta_transfer.metrics.run_result import ModelSelection
from delta_transfer.metrics.statistics import Summary

# Display names of methods; other methods are shown by their own name.
LABELS = {
    "probe": "Linear probe",
    "l2": "Plain fine-tuning",
    "lp_ft": "LP-FT",
    "l2sp": "L2-SP",
    "lwf": "LwF",
    "bss": "BSS",
    "stochnorm": "StochNorm",
    "co_tuning": "Co-Tuning",
    "rifle": "RIFLE",
    "ldifs": "LDIFS",
    "spd": "SPD",
    "gtot": "GTOT",
    "delta": "DELTA",
    "delta_attention": "DELTA (attention)",
}

Verdict = Literal["above", "below", "unclear", "single"]


def method_label(method: str) -> str:
    """Return the display name of a method."""
    return LABELS.get(method, method)


def format_training_size(size: int | None, sample_type: str) -> str:
    """Describe the training set by its number of samples per class; None means all of them.

    Example:
        >>> format_training_size(5, "image"), format_training_size(None, "graph")
        ('5 images per class', 'all training graphs')
    """
    return (
        f"all training {sample_type}s"
        if size is None
        else f"{pluralize(size, sample_type)} per class"
    )


def join_names(names: Sequence[str]) -> str:
    """Join names for a sentence.

    Example:
        >>> join_names(["L2-SP"]), join_names(["L2-SP", "SPD", "DELTA"])
        ('L2-SP', 'L2-SP, SPD and DELTA')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def percent(fraction: float) -> str:
    """Format a fraction as a percentage.

    Example:
        >>> percent(0.8571)
        '85.7%'
    """
    return f"{100 * fraction:.1f}%" if math.isfinite(fraction) else NO_VALUE


def points(difference: float) -> str:
    """Format a difference of fractions in percentage points, with its sign.

    Example:
        >>> points(0.018), points(-0.0001)
        ('+1.8', '0.0')
    """
    return ACCURACY.format_difference(difference)


def interval(summary: Summary, metric: Metric = ACCURACY) -> str:
    """Format the 95% confidence interval of a difference, or say that there is none.

    Example:
        >>> interval(Summary(3, 0.02, 0.004, 0.011, 0.029))
        '+1.1 to +2.9'
    """
    if summary.count < 2:
        return "one seed, no interval"
    return (
        f"{metric.format_difference(summary.ci_low)} to {metric.format_difference(summary.ci_high)}"
    )


def verdict(difference: Summary, metric: Metric = ACCURACY) -> Verdict:
    """Classify a difference; it is unclear if the interval, as printed, includes zero.

    Example:
        >>> verdict(Summary(3, 0.02, 0.004, 0.011, 0.029))
        'above'
        >>> verdict(Summary(3, 0.02, 0.01, 0.0002, 0.0398))  # printed as 0.0 to +4.0
        'unclear'
    """
    if difference.count < 2:
        return "single"
    if metric.round_difference(difference.ci_low) > 0:
        return "above"
    return "below" if metric.round_difference(difference.ci_high) < 0 else "unclear"


def describe_weights(selection: ModelSelection) -> str:
    """Describe the parts of the final weights of a run.

    Example:
        >>> found = ModelSelection(
        ...     strengths=(1.0, 0.1),
        ...     mixing_coefficients=(0.25, 0.75, 0.0),
        ...     losses={},
        ...     folds=3,
        ...     averaged=True,
        ...     averages_folds=True,
        ... )
        >>> describe_weights(found)
        '25% initial, 75% trained with strength 1, mean of 3 folds and on all samples'
    """
    names = [
        "trained" if one is None else f"trained with strength {one:g}"
        for one in selection.strengths
    ]
    parts = zip(selection.mixing_coefficients, ["initial", *names], strict=True)
    text = ", ".join(f"{100 * share:g}% {name}" for share, name in parts if share)
    if not selection.folds or not selection.trained_share:
        return text
    folds = f"mean of {selection.folds} folds and " if selection.averages_folds else ""
    return f"{text}, {folds}on all samples"


def mebibytes(memory: float) -> str:
    """Format an amount of memory in MiB.

    Example:
        >>> mebibytes(812.4), mebibytes(1536)
        ('812 MiB', '1.5 GiB')
    """
    return f"{memory:.0f} MiB" if memory < 1024 else f"{memory / 1024:.1f} GiB"


def duration(seconds: float) -> str:
    """Format a time in its two largest units.

    Example:
        >>> duration(7.25), duration(133.4), duration(3725)
        ('7 s', '2 min 13 s', '1 h 2 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"


def pluralize(number: int, noun: str) -> str:
    """Format a number and its noun.

    Example:
        >>> pluralize(1, "seed"), pluralize(3, "seed")
        ('1 seed', '3 seeds')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number:,} {noun}es" if noun.endswith("s") else f"{number:,} {noun}s"


def shorten(text: str, limit: int) -> str:
    """Shorten a long text by leaving out its middle.

    Example:
        >>> shorten("staffordshire_bull_terrier", 12)
        'stafford…ier'
    """
    if len(text) <= limit:
        return text
    tail = limit // 4
    return f"{text[: limit - tail - 1]}…{text[len(text) - tail :]}"
