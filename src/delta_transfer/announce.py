"""What a run says of itself: at its start what it will do, at its end what came out."""

import logging

from delta_transfer.config import TrainConfig
from delta_transfer.methods import Method
from delta_transfer.prepare import Prepared
from delta_transfer.result import RunResult

logger = logging.getLogger(__name__)


def announce(prepared: Prepared, config: TrainConfig, method: Method) -> None:
    """Logs the method, the probe's accuracy and how long it will take."""
    strength = method.strength if config.strength is None else config.strength
    detail = "" if strength is None else f", strength {strength:g}"
    logger.info("method   %s%s: %s", method.name, detail, method.summary)
    logger.info("probe    %.1f%% on validation", 100 * (prepared.probe_accuracies["val"] or 0.0))
    if not method.trains:
        return
    task = prepared.task
    # A training step is a forward and a backward pass (about twice as long), and the source's.
    passes = 4 if method.name.startswith("delta") else 3
    pictures = config.epochs * (passes * len(task.train) + len(task.val))
    minutes = pictures * prepared.seconds_per_picture / 60
    logger.info("time     about %.1f minutes for %d epochs", minutes, config.epochs)


def conclude(result: RunResult) -> None:
    """Logs what came out."""
    if result.test_accuracy is None:
        logger.info("done     no test split; validation accuracy %.1f%%", 100 * result.val_accuracy)
    else:
        logger.info(
            "done     test accuracy %.1f%% (linear probe %.1f%%), epoch %d kept, %.0f seconds",
            100 * result.test_accuracy,
            100 * (result.linear_probe_test_accuracy or 0.0),
            result.best_epoch,
            result.seconds,
        )
