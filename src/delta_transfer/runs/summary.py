"""What a run says of itself: at its start what it will do, at its end what came out."""

import logging
from collections import Counter

from delta_transfer.data.inspection import IMBALANCE
from delta_transfer.data.samplers import imbalance
from delta_transfer.data.task import Task
from delta_transfer.metrics.objectives import Classes
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.duration import estimate_minutes
from delta_transfer.runs.plan import Tuning
from delta_transfer.runs.preparation.loss import even_out
from delta_transfer.runs.preparation.prepared import Prepared
from delta_transfer.runs.selection import refits

logger = logging.getLogger(__name__)

# Shares of the way from guessing to perfection that the linear probe has gone.
ALIKE, UNLIKE = 0.9, 0.3


def announce(prepared: Prepared, tuning: Tuning) -> None:
    """Logs the method, how good the probe is, and how long it will take."""
    method = tuning.method
    strengths = [f"{one.strength:g}" for one in tuning.branches if one.strength is not None]
    detail = f", strength {' and '.join(strengths)}" if strengths else ""
    logger.info("method   %s%s: %s", method.name, detail, method.summary)
    score, measure = prepared.probe_scores["val"], prepared.task.objective.measure
    hint = _hint(prepared.task, score or 0.0)
    logger.info("probe    %s %s on validation%s", measure.words, measure.text(score), hint)
    if method.trains:
        _tell_of_classes(prepared, tuning)
        minutes = estimate_minutes(prepared, tuning)
        folds = f", {tuning.config.folds} folds" if tuning.config.folds else ""
        refit = " and the refit" if refits(tuning.config, prepared.task) else ""
        logger.info(
            "time     about %.*f minutes for %s%d epochs%s%s",
            1 if minutes >= 1 else 2,
            minutes,
            "2 times " if len(tuning.branches) > 1 else "",
            tuning.epochs,
            folds,
            refit,
        )


def _tell_of_classes(prepared: Prepared, tuning: Tuning) -> None:
    """Says how classes are evened out, or that they are of very different sizes."""
    config, labels = tuning.config, prepared.task.train.class_indices
    ratio = imbalance(labels)
    done = {
        "none": "which are left as they are",
        "balanced": "each weighed in the loss by how rare it is",
        "sampler": "each shown equally often",
    }[even_out(config, labels)]
    if config.class_weights == "none":
        if ratio < IMBALANCE:
            return
        done = "--class-weights auto would even them out"
    logger.info(
        "classes  the largest has %.1f times as many %ss as the smallest: %s",
        ratio,
        prepared.task.train.noun,
        done,
    )


def _hint(task: Task, accuracy: float) -> str:
    """What the linear probe's accuracy says of pictures of classes."""
    if not isinstance(task.objective, Classes) or task.kind != "pictures":
        return ""
    labels = task.val.class_indices
    return likeness(accuracy, max(Counter(labels).values()) / len(labels))


def likeness(accuracy: float, chance: float) -> str:
    """A hint, where one can be given, how like the pictures are to what was pretrained on.

    Args:
        accuracy: of the linear probe, which can only use what the network knows already.
        chance: that of always naming the most frequent class.

    Example:
        >>> likeness(0.5, 0.2)
        ''
    """
    share = (accuracy - chance) / (1 - chance) if chance < 1 else 1.0
    if share >= ALIKE:
        return ": the network knows such pictures already, and there is little to gain"
    if share <= UNLIKE:
        return (
            f" (guessing: {100 * chance:.1f}%): the pictures are unlike those that the network "
            "knows; more --epochs, a larger --image-size or a smaller --strength may help"
        )
    return ""


def conclude(result: RunResult) -> None:
    """Logs what came out."""
    measure, tested = result.measure, result.figure("test")
    if tested is None:
        found = measure.text(result.figure("val"))
        logger.info("done     no test split; validation %s %s", measure.words, found)
        return
    logger.info(
        "done     test %s %s (linear probe %s), epoch %d kept, %.0f seconds",
        measure.words,
        measure.text(tested),
        measure.text(result.figure("linear_probe_test")),
        result.best_epoch,
        result.seconds,
    )
    if result.metric == "mean_class_accuracy":
        logger.info(
            "         mean class accuracy %.1f%%, the figure of this data", 100 * result.score
        )
