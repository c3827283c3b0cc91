"""What a fit saves of itself: its best epoch, and its last state, from which it goes on."""

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger

from delta_transfer.training.checkpoints import (
    BEST,
    NEXT,
    random_states,
    read_checkpoint,
    rotate_checkpoints,
    set_random_states,
)
from delta_transfer.training.signals import FitInterrupt, StopRequest
from delta_transfer.utils.distributed import all_reduce_any, is_rank_zero

logger = logging.getLogger(__name__)

GROWING_FILES = ("metrics.csv", "drift.csv")  # which grow with each epoch


class SaveBest(lightning.Callback):
    """Keeps the epoch with the lowest calibrated validation loss.

    The loss at its best temperature: on few images it is far less noisy than accuracy, and other
    than the plain loss it does not mistake overconfidence for a worse network. Epoch 0, the start,
    takes part.

    Args:
        folder: where `best.ckpt` is written, with the epoch and its loss.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.best_epoch = -1
        self._lowest = math.inf

    def resume(self) -> bool:
        """Takes up what `best.ckpt` has; False if there is no whole one."""
        best = read_checkpoint(self.folder / BEST)
        if best is None:
            return False
        self.best_epoch, self._lowest = best["best_epoch"], best["lowest_loss"]
        return True

    def on_validation_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Compares, saves and reports."""
        metrics, metric = trainer.callback_metrics, module.task_type.metric
        epoch = trainer.current_epoch + 1 if trainer.state.fn == "fit" else 0
        loss = float(metrics["val_calibrated_loss"])
        # The start is saved whatever it is like, so that there always is something to keep.
        better = loss < self._lowest or self.best_epoch < 0
        if better:
            self.best_epoch = epoch
            self._lowest = math.inf if math.isnan(loss) else loss
            # Which all processes have to ask for: each may have but its shard.
            state = trainer.strategy.lightning_module_state_dict()
            best = {"best_epoch": epoch, "lowest_loss": self._lowest, "state_dict": state}
            if is_rank_zero():
                trainer.strategy.checkpoint_io.save_checkpoint(best, self.folder / BEST)
        logger.info(
            "epoch %d of %s: validation %s %s, loss %.3f (calibrated %.3f)%s",
            epoch,
            trainer.max_epochs,
            metric.display_name,
            metric.format(float(metrics[f"val_{metric.name}"])),
            float(metrics["val_loss"]),
            loss,
            ", best so far" if better else "",
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInterval:
    """How often the last state is saved: whenever one of both is over, and at the end.

    Args:
        minutes: since the last time.
        steps: since the last time; None for no such limit.
    """

    minutes: float = 1.0  # an epoch may be a single step, and a state hundreds of megabytes
    steps: int | None = None


class SaveLast(lightning.Callback):
    """Saves the last state between steps, whenever it is time and when a stop is asked for.

    What it saves is all from which the fit goes on to the same weights as if it had never been
    broken off: beside what Lightning saves, the states of random generators and the files that
    grow. It has to be the first of the callbacks, so that none has begun the next step yet.

    Args:
        folder: of the run, in whose `checkpoints` they lie.
        interval: how often.
        fingerprint: of what is trained on which images.
        generators: more of them.
        request: whether a stop is asked for.
        on_checkpoint: called whenever it has saved.
    """

    def __init__(
        self,
        folder: Path,
        *,
        interval: CheckpointInterval,
        fingerprint: str,
        generators: Sequence[torch.Generator],
        request: StopRequest,
        on_checkpoint: Callable[[], None],
    ) -> None:
        self._folder = folder
        self._saving = interval
        self._fingerprint = fingerprint
        self._generators = generators
        self._request = request
        self._on_checkpoint = on_checkpoint
        self._finished = False
        self._resume_state: dict[str, Any] = {}
        self._saved = (time.monotonic(), 0)

    def state_dict(self) -> dict[str, Any]:
        """What is saved, of tensors and plain values."""
        traces = {name: self._folder / name for name in GROWING_FILES}
        return {
            "finished": self._finished,
            "fingerprint": self._fingerprint,
            "random": random_states(),
            "generators": [generator.get_state() for generator in self._generators],
            "growing_files": {
                name: path.read_bytes().decode() for name, path in traces.items() if path.is_file()
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes note of it until the fit starts."""
        self._resume_state = state_dict

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Gives the files back as they were, and takes SIGTERM from Lightning."""
        self._request.listen()
        self._saved = (time.monotonic(), trainer.global_step)
        if not self._resume_state or not is_rank_zero():
            return
        saved = self._resume_state["growing_files"]
        for name in GROWING_FILES:  # and no other file, whatever the state names
            if name in saved:
                (self._folder / name).write_bytes(saved[name].encode())
        for csv in trainer.loggers:
            if isinstance(csv, CSVLogger):  # it has begun anew
                text = saved.get("metrics.csv", "")
                csv.experiment.metrics_keys = text.splitlines()[0].split(",") if text else []

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        """Before each step; before the first of a fit that goes on, random numbers go on too."""
        if self._resume_state:
            generators = zip(self._generators, self._resume_state["generators"], strict=True)
            for generator, state in generators:
                generator.set_state(state)
            set_random_states(self._resume_state["random"])
            self._resume_state = {}
        seconds, step = self._saved
        saving, since = self._saving, trainer.global_step - step
        if not since:
            return
        late = time.monotonic() - seconds >= 60 * saving.minutes
        if saving.steps is not None:
            late = late or since >= saving.steps
        late, asked = all_reduce_any(late, self._request.requested)
        if late or asked:
            self._save(trainer)
        self._stop(trainer, asked)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Takes the step that is about to begin for none that an epoch has ended with."""
        loops = checkpoint["loops"]["fit_loop"]
        loops["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Saves the outcome."""
        self._finished = True
        self._save(trainer)
        self._stop(trainer, *all_reduce_any(self._request.requested))

    def _save(self, trainer: lightning.Trainer) -> None:
        checkpoints = self._folder / "checkpoints"
        trainer.save_checkpoint(checkpoints / NEXT)
        if is_rank_zero():
            rotate_checkpoints(checkpoints)
            self._on_checkpoint()
        self._saved = (time.monotonic(), trainer.global_step)

    def _stop(self, trainer: lightning.Trainer, asked: bool) -> None:
        if asked:
            raise FitInterrupt(f"stopped after step {trainer.global_step}")
