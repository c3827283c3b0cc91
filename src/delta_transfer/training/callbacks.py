"""Callbacks of a fit: reporting losses, reinitialising the head, measuring drift."""

import csv
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from delta_transfer.features.inputs import Inputs, groups_at, groups_of
from delta_transfer.features.taps import Taps
from delta_transfer.features.variance import FeatureVariance
from delta_transfer.functional import feature_distance
from delta_transfer.training.optimizers import cycle_starts
from delta_transfer.utils.distributed import is_rank_zero
from delta_transfer.utils.module_state import device_of, eval_mode

logger = logging.getLogger(__name__)


class LogValidation(lightning.Callback):
    """Logs the validation metrics of an epoch; epoch 0 is the initialization."""

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Log a line."""
        metrics, metric = trainer.callback_metrics, module.task_type.metric
        logger.info(
            "epoch %d of %s: validation %s %s, loss %.3f (calibrated %.3f)",
            trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0,
            trainer.max_epochs,
            metric.display_name,
            metric.format(float(metrics[f"val_{metric.name}"])),
            float(metrics["val_loss"]),
            float(metrics["val_calibrated_loss"]),
        )


class ReportLoss(lightning.Callback):
    """Reports each validation loss but that of epoch 0, the initialization.

    Args:
        listener: called with epoch, number of epochs and loss; an exception of it ends the fit.
    """

    def __init__(self, listener: Callable[[int, int, float], None]) -> None:
        self._listener = listener

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Report the loss, after all other callbacks."""
        if trainer.state.fn == "fit":
            loss = float(trainer.callback_metrics["val_calibrated_loss"])
            self._listener(trainer.current_epoch + 1, int(trainer.max_epochs or 0), loss)


class ReinitializeHead(lightning.Callback):
    """Re-initialises the head, and its optimiser state, at the start of each cycle but the first.

    Args:
        head: a linear layer.
        num_cycles: number of cycles of equal length.
        generator: draws the weights; on the CPU.
    """

    def __init__(self, head: nn.Linear, *, num_cycles: int, generator: torch.Generator) -> None:
        self._head = head
        self._num_cycles = num_cycles
        self._generator = generator

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        """Re-initialise the head if a cycle starts with this step."""
        total = int(trainer.estimated_stepping_batches)
        if trainer.global_step not in cycle_starts(total, self._num_cycles)[1:]:
            return
        bound = self._head.in_features**-0.5  # as torch initialises linear layers
        for parameter in self._head.parameters():
            drawn = torch.empty(parameter.shape)
            drawn.uniform_(-bound, bound, generator=self._generator)
            parameter.detach().copy_(drawn)
            for optimizer in trainer.optimizers:
                optimizer.state.pop(parameter, None)


class MeasureDrift(lightning.Callback):
    """Measures after each epoch how far each tap has moved from the source, on fixed samples.

    The distance is that of DELTA without attention, `1/2 mean (F(w) - F(w0))^2 / v`, in eval mode;
    for graphs the mean is over the nodes of each sample, then over samples.

    Args:
        network: the target.
        source: the pretrained network.
        taps: names of the modules to compare.
        inputs: some training samples, not augmented.
        path: the CSV file, `epoch,tap,distance`.
    """

    def __init__(
        self,
        network: nn.Module,
        source: nn.Module,
        *,
        taps: Sequence[str],
        inputs: Inputs,
        path: Path,
    ) -> None:
        self._network = network
        self._source = source
        self._taps = taps
        self._inputs = inputs
        self._path = path
        self._source_features: dict[str, Tensor] = {}
        self._variance: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Append a row for each tap."""
        if not self._source_features:
            self._source.to(device_of(self._network))
            self._source_features = self._features(self._source)
            for tap, features in self._source_features.items():
                variance = FeatureVariance()
                variance.update(features)
                self._variance[tap] = variance.compute()
            if is_rank_zero() and not self._path.exists():  # a resumed fit has it
                self._append([("epoch", "tap", "distance")])
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0
        rows, groups = [], groups_of(self._inputs)
        for tap, features in self._features(self._network).items():
            distance = feature_distance(
                features,
                self._source_features[tap],
                variance=self._variance[tap],
                groups=groups_at(tap, features, groups, samples=len(self._inputs)),
            )
            rows.append((epoch, tap, f"{distance.item():.6g}"))
        self._append(rows)

    def _features(self, network: nn.Module) -> dict[str, Tensor]:
        with Taps(network, self._taps) as taps, eval_mode(network), torch.no_grad():
            self._inputs = self._inputs.to(device_of(network))
            taps.record(self._inputs)
            return taps.features()

    def _append(self, rows: Sequence[Sequence[object]]) -> None:
        if not is_rank_zero():
            return
        with self._path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
