"""The learning-rate range test (Smith, 2017, https://arxiv.org/abs/1506.01186)."""

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import lightning
from torch import nn

from delta_transfer.errors import UserError
from delta_transfer.metrics.task_types import TaskType
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.module import FineTuneModule
from delta_transfer.training.optimizers import OptimizerConfig
from delta_transfer.training.trainer import FitConfig, quiet

LR_RANGE_TEST_STEPS = 72  # twelve per power of ten
SMOOTHING = 0.9
NOISE = 0.1  # nats that the smoothed loss may be above its minimum


class _Watch(lightning.Callback):
    """Records learning rates and losses, and stops when the loss explodes."""

    def __init__(self) -> None:
        self.found: list[tuple[float, float]] = []

    def on_train_batch_end(
        self, trainer: lightning.Trainer, module: Any, outputs: Any, batch: Any, index: int
    ) -> None:
        loss, rate = float(trainer.callback_metrics["train_loss"]), self._rate
        self.found.append((rate, loss))
        trainer.should_stop = loss > 10 * max(1.0, self.found[0][1])

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        self._rate = float(trainer.optimizers[0].param_groups[0]["lr"])


def run_lr_range_test(
    network: nn.Module,
    regularizer: Regularizer,
    fit_config: FitConfig,
    *,
    loss: Any,
    head: str,
    task_type: TaskType,
    optimizer_config: OptimizerConfig,
) -> list[tuple[float, float]]:
    """Train with a learning rate that rises with each step, until the loss explodes.

    Args:
        network: the target; its weights are useless afterwards.
        regularizer: its penalties.
        fit_config: data and precision; nothing is written to its folder.
        loss: the task loss.
        head: the name of the network's head.
        task_type: of the task.
        optimizer_config: with the schedule `"exponential"`.

    Returns:
        The backbone's learning rate and the loss of each step.
    """
    watch = _Watch()
    with ExitStack() as stack, quiet():
        module = FineTuneModule(
            network,
            regularizer,
            loss=loss,
            head=head,
            task_type=task_type,
            optimizer_config=optimizer_config,
            exit_stack=stack,
            mixing=fit_config.mixing,
            accumulation=fit_config.make_accumulation(),
        )
        trainer = lightning.Trainer(
            accelerator=fit_config.accelerator,
            devices=1,
            max_epochs=-1,
            max_steps=LR_RANGE_TEST_STEPS,
            gradient_clip_val=fit_config.grad_clip or None,
            precision=fit_config.precision,
            logger=False,
            callbacks=[watch],
            enable_progress_bar=False,
            enable_checkpointing=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(module, fit_config.train_dataloader)
        except UserError:  # it has diverged, as expected
            if len(watch.found) < 2:
                raise
        except SystemExit as error:  # raised by Lightning at Ctrl-C
            raise KeyboardInterrupt from error
    return watch.found


def suggest_lr(history: Sequence[tuple[float, float]]) -> float:
    """Return a tenth of the highest learning rate with a low loss.

    Low is a smoothed loss at most a tenth of a nat above its minimum.

    Args:
        history: rising learning rates, and the loss of each.

    Example:
        >>> suggest_lr([(0.001, 1.0), (0.01, 1.0), (0.1, 1.0), (1.0, 90.0)])
        0.01
    """
    average, smooth = 0.0, []
    for number, (_, loss) in enumerate(history, start=1):
        average = SMOOTHING * average + (1 - SMOOTHING) * loss
        smooth.append(average / (1 - SMOOTHING**number))
    limit = min(smooth) + NOISE
    last = max(i for i, loss in enumerate(smooth) if loss <= limit)
    return float(f"{history[last][0] / 10:.2g}")
