"""Log the plan of a run at its start, and its metrics at its end."""

import logging
from collections import Counter

from delta_transfer.data.inspection import IMBALANCE_THRESHOLD
from delta_transfer.data.samplers import imbalance_ratio
from delta_transfer.metrics.run_result import MetricPrefix, ProbeComparison, RunResult
from delta_transfer.metrics.statistics import accuracy_interval
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.report.formatting import pluralize
from delta_transfer.runs.duration import estimate_minutes
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.preparation.loss import resolve_class_weights

logger = logging.getLogger(__name__)

# Accuracy of the linear probe, from 0 at chance to 1 at perfection.
SIMILAR_THRESHOLD, DISSIMILAR_THRESHOLD = 0.9, 0.3


def log_start(plan: FineTunePlan) -> None:
    """Log the method, the probe's metric and the expected duration."""
    method = plan.method
    strengths = [f"{one.strength:g}" for one in plan.candidates if one.strength is not None]
    detail = f", strength {' and '.join(strengths)}" if strengths else ""
    logger.info("method   %s%s: %s", method.name, detail, method.summary)
    logger.info("probe    %s", _describe_probe(plan))
    if method.trains_network:
        _log_class_balance(plan)
        minutes = estimate_minutes(plan)
        folds = f", {plan.folds} folds" if plan.folds else ""
        logger.info(
            "time     about %.*f minutes for %s%d epochs%s",
            1 if minutes >= 1 else 2,
            minutes,
            f"{len(plan.candidates)} times " if len(plan.candidates) > 1 else "",
            plan.epochs,
            folds,
        )


def _log_class_balance(plan: FineTunePlan) -> None:
    """Log how classes are balanced, or that their sizes differ a lot."""
    config, labels = plan.config, plan.setup.task.train.class_indices
    ratio = imbalance_ratio(labels)
    balancing = {
        "none": "not balanced",
        "balanced": "weighted in the loss by inverse frequency",
        "sampler": "sampled equally often",
    }[resolve_class_weights(config, labels)]
    if config.class_weights == "none":
        if ratio < IMBALANCE_THRESHOLD:
            return
        balancing = "`class_weights=auto` balances them"
    logger.info(
        "classes  the largest has %.1f times as many %ss as the smallest: %s",
        ratio,
        plan.setup.task.train.sample_type,
        balancing,
    )


def _describe_probe(plan: FineTunePlan) -> str:
    """Return the linear probe's metric on held-out samples, and a hint for images with classes."""
    task, held_out = plan.setup.task, plan.held_out
    task_type, metric = task.task_type, task.task_type.metric
    predictions = plan.held_out_probe_predictions
    score = task_type.score(predictions, held_out.targets, metric.name)
    words = "held-out" if plan.folds else "validation"
    on = f"on {pluralize(len(held_out), f'{words} {task.sample_type}')}"
    text = f"{metric.display_name} {metric.format(score)}"
    if not isinstance(task_type, Multiclass):
        return f"{text} {on}"
    low, high = accuracy_interval(round(score * len(held_out)), len(held_out))
    labels = held_out.class_indices
    chance = max(Counter(labels).values()) / len(labels)
    hint = similarity_hint(score, chance) if task.kind == "images" else ""
    return f"{text} ({_range(low, high)}) {on}{hint}"


def similarity_hint(accuracy: float, chance: float) -> str:
    """Return a hint on how similar the images are to the pretraining data; "" for none.

    Args:
        accuracy: of the linear probe, which uses only pretrained features.
        chance: accuracy of always predicting the most frequent class.

    Example:
        >>> similarity_hint(0.5, 0.2)
        ''
    """
    relative = (accuracy - chance) / (1 - chance) if chance < 1 else 1.0
    if relative >= SIMILAR_THRESHOLD:
        return ": the pretrained features already separate your classes; expect little gain"
    if relative <= DISSIMILAR_THRESHOLD:
        return (
            f" (chance: {100 * chance:.1f}%): the images differ from the pretraining data; more "
            "`epochs`, a larger `image_size` or a smaller `strength` may help"
        )
    return ""


def log_summary(result: RunResult) -> None:
    """Log the metrics of a finished run, and what fine-tuning has kept."""
    _log_metrics(result)
    line = format_retention(result)
    if line:
        logger.info("kept     %s", line)


def format_retention(result: RunResult) -> str:
    """Describe what fine-tuning has kept in a line; "" if nothing was measured."""
    parts = []
    if result.kept_agreement is not None:
        kept = 100 * result.kept_agreement
        parts.append(f"agreement with the pretrained network {kept:.0f}%")
    for name, accuracy, probe in (
        ("corrupted", result.corruption_accuracy, result.linear_probe_corruption_accuracy),
        ("shifted", result.shifted_accuracy, result.linear_probe_shifted_accuracy),
    ):
        if accuracy is not None and probe is not None:
            parts.append(f"{name} images {100 * accuracy:.1f}% (probe {100 * probe:.1f}%)")
    return ", ".join(parts)


def _log_metrics(result: RunResult) -> None:
    """Log the metrics, and whether they are better than those of the linear probe."""
    metric, tested = result.metric, result.metric_value("test")
    prefix: MetricPrefix = "val" if tested is None else "test"
    probe_prefix: MetricPrefix = "linear_probe_val" if tested is None else "linear_probe_test"
    compared = result.probe_comparison
    interval = "" if compared is None else f" ({_range(compared.ci_low, compared.ci_high)})"
    logger.info(
        "done     %s %s %s%s, linear probe %s, %.0f seconds",
        "held-out" if tested is None else "test",
        metric.display_name,
        metric.format(result.metric_value(prefix)),
        interval,
        metric.format(result.metric_value(probe_prefix)),
        result.wall_time_s,
    )
    if compared is not None and result.model_selection is not None:
        logger.info("         %s", _verdict(result, compared))
    if tested is None:
        logger.info("         there is no test split: the weights were chosen on these samples")
    if result.metric_name == "mean_class_accuracy":
        logger.info(
            "         mean class accuracy %.1f%%, the metric of this dataset", 100 * result.score
        )


def _verdict(result: RunResult, compared: ProbeComparison) -> str:
    """Return whether the network is better than the linear probe, and how sure that is."""
    low, high = 100 * compared.difference_ci_low, 100 * compared.difference_ci_high
    points = f"{100 * compared.difference:+.1f} points ({low:+.1f} to {high:+.1f})"
    on = f"on {compared.num_samples} {result.sample_type}s"
    if not result.trained_share:
        return f"no training was better than the start, which is saved; to the probe {points} {on}"
    if low > 0:
        return f"better than the linear probe: {points} {on}"
    if high < 0:
        return f"WORSE than the linear probe: {points} {on}; use --method probe"
    return f"not told apart from the linear probe: {points} {on}"


def _range(low: float, high: float) -> str:
    return f"{100 * low:.1f} to {100 * high:.1f}%"
