"""The callback that saves the last state, to resume from."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.loggers import CSVLogger

from delta_transfer.training.checkpoints import (
    NEXT,
    random_states,
    rotate_checkpoints,
    set_random_states,
)
from delta_transfer.training.signals import FitInterrupt, StopRequest
from delta_transfer.utils.distributed import all_reduce_any, is_rank_zero

GROWING_FILES = ("metrics.csv", "drift.csv")  # rows are added in each epoch


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckpointInterval:
    """How often the last state is saved: after either interval, and at the end.

    Args:
        minutes: since the last save.
        steps: since the last save; None for no such limit.
    """

    minutes: float = 1.0  # an epoch may be one step, and a checkpoint hundreds of megabytes
    steps: int | None = None


class SaveLast(lightning.Callback):
    """Saves the last state between steps, at intervals and when a stop is requested.

    A fit that resumes from it ends with the same weights as an uninterrupted one: besides
    Lightning's state it contains random states and the growing files. It has to be the first
    callback, so that no other one has started the next step.

    Args:
        folder: folder of the run; checkpoints are in its `checkpoints`.
        interval: how often to save.
        fingerprint: of data and pretrained weights.
        generators: further random generators.
        request: the request to stop.
        on_checkpoint: called after each save.
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
        self._interval = interval
        self._fingerprint = fingerprint
        self._generators = generators
        self._request = request
        self._on_checkpoint = on_checkpoint
        self._finished = False
        self._resume_state: dict[str, Any] = {}
        self._saved = (time.monotonic(), 0)

    def state_dict(self) -> dict[str, Any]:
        """Return the state, in tensors and plain values."""
        paths = {name: self._folder / name for name in GROWING_FILES}
        return {
            "finished": self._finished,
            "fingerprint": self._fingerprint,
            "random": random_states(),
            "generators": [generator.get_state() for generator in self._generators],
            "growing_files": {
                name: path.read_bytes().decode() for name, path in paths.items() if path.is_file()
            },
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember the state until the fit starts."""
        self._resume_state = state_dict

    def on_train_start(self, trainer: lightning.Trainer, module: Any) -> None:
        """Restore the growing files, and take SIGTERM back from Lightning."""
        self._request.listen()
        self._saved = (time.monotonic(), trainer.global_step)
        if not self._resume_state or not is_rank_zero():
            return
        saved = self._resume_state["growing_files"]
        for name in GROWING_FILES:  # never a path that a checkpoint names
            if name in saved:
                (self._folder / name).write_bytes(saved[name].encode())
        for csv in trainer.loggers:
            if isinstance(csv, CSVLogger):  # which does not read the existing file
                text = saved.get("metrics.csv", "")
                csv.experiment.metrics_keys = text.splitlines()[0].split(",") if text else []

    def on_train_batch_start(
        self, trainer: lightning.Trainer, module: Any, batch: Any, index: int
    ) -> None:
        """Restore random states before the first resumed step, and save if it is time."""
        if self._resume_state:
            generators = zip(self._generators, self._resume_state["generators"], strict=True)
            for generator, state in generators:
                generator.set_state(state)
            set_random_states(self._resume_state["random"])
            self._resume_state = {}
        seconds, step = self._saved
        interval, since = self._interval, trainer.global_step - step
        if not since:
            return
        due = time.monotonic() - seconds >= 60 * interval.minutes
        if interval.steps is not None:
            due = due or since >= interval.steps
        due, requested = all_reduce_any(due, self._request.requested)
        if due or requested:
            self._save(trainer)
        self._stop(trainer, requested)

    def on_save_checkpoint(
        self, trainer: lightning.Trainer, module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Mark the state as saved before a step, not at the end of an epoch."""
        loops = checkpoint["loops"]["fit_loop"]
        loops["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_train_end(self, trainer: lightning.Trainer, module: Any) -> None:
        """Save the final state."""
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

    def _stop(self, trainer: lightning.Trainer, requested: bool) -> None:
        if requested:
            raise FitInterrupt(f"stopped after step {trainer.global_step}")
