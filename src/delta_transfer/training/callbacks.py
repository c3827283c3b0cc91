"""What happens beside the steps: keeping the best epoch, and measuring how far the taps moved."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from delta_transfer.borrow import device_of, evaluating
from delta_transfer.channel_attention import FeatureVariance
from delta_transfer.functional import channels_last, feature_distance
from delta_transfer.taps import Taps

logger = logging.getLogger(__name__)


class KeepBest(lightning.Callback):
    """Keeps the weights of the epoch with the best validation accuracy, and the last state.

    Of epochs with the same accuracy the one with the lower validation loss is better. Epoch 0, the
    start, takes part.

    Args:
        folder: where `best.ckpt` and `last.ckpt` are written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best_epoch = -1
        self._best = (-1.0, 0.0)

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Compares, saves and reports."""
        metrics = trainer.callback_metrics
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0
        accuracy, loss = float(metrics["val_accuracy"]), float(metrics["val_loss"])
        better = (accuracy, -loss) > self._best
        if better:
            self._best, self.best_epoch = (accuracy, -loss), epoch
            trainer.save_checkpoint(self.folder / "best.ckpt", weights_only=True)
        logger.info(
            "epoch %d of %s: validation accuracy %.1f%%, loss %.3f%s",
            epoch,
            trainer.max_epochs,
            100 * accuracy,
            loss,
            ", best so far" if better else "",
        )

    def on_train_epoch_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Saves the last state."""
        trainer.save_checkpoint(self.folder / "last.ckpt")


class MeasureDrift(lightning.Callback):
    """Measures after each epoch how far each tap has moved from the source, on the same pictures.

    In the unit of DELTA without attention, `1/2 mean (F(w) - F(w0))^2 / v`, in eval mode.

    Args:
        network: the target.
        source: the network that it started from.
        taps: the modules to look at.
        inputs: some training pictures, not augmented.
        path: the CSV file, `epoch,tap,distance`.
    """

    def __init__(
        self,
        network: nn.Module,
        source: nn.Module,
        *,
        taps: Sequence[str],
        inputs: Tensor,
        path: Path,
    ) -> None:
        self._network = network
        self._source = source
        self._taps = taps
        self._inputs = inputs
        self._path = path
        self._start: dict[str, Tensor] = {}
        self._variance: dict[str, Tensor] = {}

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Appends a row for each tap."""
        if not self._start:
            self._source.to(device_of(self._network))
            self._start = self._features(self._source)
            for tap, features in self._start.items():
                variance = FeatureVariance()
                variance.update(features)
                self._variance[tap] = variance.compute()
            self._append([("epoch", "tap", "distance")])
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0
        rows = []
        for tap, features in self._features(self._network).items():
            distance = feature_distance(features, self._start[tap], variance=self._variance[tap])
            rows.append((epoch, tap, f"{distance.item():.6g}"))
        self._append(rows)

    def _features(self, network: nn.Module) -> dict[str, Tensor]:
        with Taps(network, self._taps) as taps, evaluating(network), torch.no_grad():
            outputs = taps.record(self._inputs.to(device_of(network)))
            return {
                tap: channels_last(output, taps.channel_dims[tap])
                for tap, output in outputs.items()
            }

    def _append(self, rows: Sequence[Sequence[object]]) -> None:
        with self._path.open("a", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)
