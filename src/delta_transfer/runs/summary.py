"""What a run says of itself: at its start what it will do, at its end what came out."""

import logging
from collections import Counter

from delta_transfer.data.inspection import IMBALANCE_THRESHOLD
from delta_transfer.data.samplers import imbalance_ratio
from delta_transfer.data.task import TaskData
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.runs.duration import estimate_minutes
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.preparation.loss import resolve_class_weights
from delta_transfer.runs.selection import should_refit

logger = logging.getLogger(__name__)

# Shares of the way from guessing to perfection that the linear probe has gone.
SIMILAR_THRESHOLD, DISSIMILAR_THRESHOLD = 0.9, 0.3


def log_start(plan: FineTunePlan) -> None:
    """Logs the method, how good the probe is, and how long it will take."""
    method = plan.method
    strengths = [f"{one.strength:g}" for one in plan.candidates if one.strength is not None]
    detail = f", strength {' and '.join(strengths)}" if strengths else ""
    logger.info("method   %s%s: %s", method.name, detail, method.summary)
    score, measure = plan.setup.probe_scores["val"], plan.setup.task.task_type.metric
    hint = _hint(plan.setup.task, score or 0.0)
    logger.info("probe    %s %s on validation%s", measure.display_name, measure.format(score), hint)
    if method.trains_network:
        _log_class_balance(plan)
        minutes = estimate_minutes(plan)
        folds = f", {plan.config.folds} folds" if plan.config.folds else ""
        refit = " and the refit" if should_refit(plan.config, plan.setup.task) else ""
        logger.info(
            "time     about %.*f minutes for %s%d epochs%s%s",
            1 if minutes >= 1 else 2,
            minutes,
            "2 times " if len(plan.candidates) > 1 else "",
            plan.epochs,
            folds,
            refit,
        )


def _log_class_balance(plan: FineTunePlan) -> None:
    """Says how classes are evened out, or that they are of very different sizes."""
    config, labels = plan.config, plan.setup.task.train.class_indices
    ratio = imbalance_ratio(labels)
    done = {
        "none": "which are left as they are",
        "balanced": "each weighed in the loss by how rare it is",
        "sampler": "each shown equally often",
    }[resolve_class_weights(config, labels)]
    if config.class_weights == "none":
        if ratio < IMBALANCE_THRESHOLD:
            return
        done = "--class-weights auto would even them out"
    logger.info(
        "classes  the largest has %.1f times as many %ss as the smallest: %s",
        ratio,
        plan.setup.task.train.sample_type,
        done,
    )


def _hint(task: TaskData, accuracy: float) -> str:
    """What the linear probe's accuracy says of images of classes."""
    if not isinstance(task.task_type, Multiclass) or task.kind != "images":
        return ""
    labels = task.val.class_indices
    return similarity_hint(accuracy, max(Counter(labels).values()) / len(labels))


def similarity_hint(accuracy: float, chance: float) -> str:
    """A hint, where one can be given, how like the images are to what was pretrained on.

    Args:
        accuracy: of the linear probe, which can only use what the network knows already.
        chance: that of always naming the most frequent class.

    Example:
        >>> similarity_hint(0.5, 0.2)
        ''
    """
    share = (accuracy - chance) / (1 - chance) if chance < 1 else 1.0
    if share >= SIMILAR_THRESHOLD:
        return ": the network knows such images already, and there is little to gain"
    if share <= DISSIMILAR_THRESHOLD:
        return (
            f" (guessing: {100 * chance:.1f}%): the images are unlike those that the network "
            "knows; more --epochs, a larger --image-size or a smaller --strength may help"
        )
    return ""


def log_summary(result: RunResult) -> None:
    """Logs what came out."""
    measure, tested = result.metric, result.metric_value("test")
    if tested is None:
        found = measure.format(result.metric_value("val"))
        logger.info("done     no test split; validation %s %s", measure.display_name, found)
        return
    logger.info(
        "done     test %s %s (linear probe %s), epoch %d kept, %.0f seconds",
        measure.display_name,
        measure.format(tested),
        measure.format(result.metric_value("linear_probe_test")),
        result.best_epoch,
        result.wall_time_s,
    )
    if result.metric_name == "mean_class_accuracy":
        logger.info(
            "         mean class accuracy %.1f%%, the figure of this data", 100 * result.score
        )
