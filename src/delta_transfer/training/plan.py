"""What a fit trains on, for how long, and where its traces go."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader

from delta_transfer.training.mixing import Mixing
from delta_transfer.training.precision import Precision
from delta_transfer.training.saving import Saving


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What to train on, for how long and where its traces go.

    Args:
        train: batches of training samples, augmented.
        val: batches of validation samples; None to keep the last epoch.
        epochs: how many, by which the schedule goes.
        stop_after: ends after so many of them; None for all.
        mixing: what becomes of each batch of training pictures; None for nothing.
        clip: norm to which gradients are clipped; 0 for no limit.
        noun: what a sample is called in messages.
        parts: into how many each step is divided.
        divisible: whether it is divided further where memory runs out.
        precision: of computing, as Lightning calls it.
        keep_last: keep the last epoch whatever the validation loss says.
        keep_validations: what the network says of the validation split is kept for each epoch.
        folder: of the run, with its `checkpoints`.
        saving: how often the last state is saved.
        saved: called whenever it was.
        resume: go on from the last state that is there, if there is one of the same identity.
        identity: of what is trained on which samples.
        accelerator: Lightning's name of the device kind.
        units: the modules whose weights several processes shard, see `Sharding`; None to have all
            of them in each process.
        loggers: where figures go beside `metrics.csv`, see `make_loggers`.
    """

    train: DataLoader[Any]
    val: DataLoader[Any] | None
    epochs: int
    stop_after: int | None = None
    mixing: Mixing | None = None
    clip: float = 1.0
    noun: str = "picture"
    parts: int = 1
    divisible: bool = True
    precision: Precision = "32-true"
    keep_last: bool = False
    keep_validations: bool = True
    folder: Path
    saving: Saving = dataclasses.field(default_factory=Saving)
    saved: Callable[[], None] = lambda: None
    resume: bool = False
    identity: str = ""
    accelerator: str
    units: Sequence[str] | None = None
    loggers: Sequence[str] = ("tensorboard",)
