"""Lightning's trainer as our fits need it."""

import dataclasses
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import lightning
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import RichProgressBar
from torch.utils.data import DataLoader

from delta_transfer.errors import UserError
from delta_transfer.training.checkpoint_callbacks import CheckpointInterval
from delta_transfer.training.checkpoints import AtomicCheckpointIO
from delta_transfer.training.loggers import FinishLoggers, make_loggers
from delta_transfer.training.mixing import Mixing
from delta_transfer.utils.distributed import is_rank_zero, local_world_size, world_size

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""As Lightning calls them; the mixed ones are autocast."""

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def find_precision(name: str, device: torch.device) -> Precision:
    """What `--precision` means on a device.

    Args:
        name: `"32"`, `"bf16"`, `"16"`, or `"auto"`: half precision on CUDA GPUs, bfloat16 on those
            that compute in it.
        device: of the run.

    Raises:
        UserError: if the device does not compute in it.
    """
    if name == "16" and device.type == "cpu":
        raise UserError(
            "--precision 16 needs a GPU, float16 is not for training on a CPU: give bf16, or 32 "
            "(which is the faster one on most CPUs)"
        )
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"
    if name == "bf16":
        return "bf16-mixed"
    return "16-mixed" if name == "16" else "32-true"


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """A context in which networks compute in a precision."""
    if precision == "32-true":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """What to train on, for how long and where its traces go.

    Args:
        train_dataloader: batches of training samples, augmented.
        val_dataloader: batches of validation samples; None to keep the last epoch.
        epochs: how many, by which the schedule goes.
        stop_after: ends after so many of them; None for all.
        mixing: what becomes of each batch of training images; None for nothing.
        grad_clip: norm to which gradients are clipped; 0 for no limit.
        sample_type: what a sample is called in messages.
        gradient_accumulation_steps: into how many each step is divided.
        can_split: whether it is divided further where memory runs out.
        precision: of computing, as Lightning calls it.
        keep_last: keep the last epoch whatever the validation loss says.
        store_val_outputs: what the network says of the validation split is kept for each epoch.
        folder: of the run, with its `checkpoints`.
        checkpoint_interval: how often the last state is saved.
        on_checkpoint: called whenever it was.
        resume: go on from the last state that is there, if there is one of the same identity.
        fingerprint: of what is trained on which samples.
        accelerator: Lightning's name of the device kind.
        fsdp_units: the modules whose weights several processes shard, see `Sharding`; None to have
            all of them in each process.
        loggers: where figures go beside `metrics.csv`, see `make_loggers`.
    """

    train_dataloader: DataLoader[Any]
    val_dataloader: DataLoader[Any] | None
    epochs: int
    stop_after: int | None = None
    mixing: Mixing | None = None
    grad_clip: float = 1.0
    sample_type: str = "image"
    gradient_accumulation_steps: int = 1
    can_split: bool = True
    precision: Precision = "32-true"
    keep_last: bool = False
    store_val_outputs: bool = True
    folder: Path
    checkpoint_interval: CheckpointInterval = dataclasses.field(default_factory=CheckpointInterval)
    on_checkpoint: Callable[[], None] = lambda: None
    resume: bool = False
    fingerprint: str = ""
    accelerator: str
    fsdp_units: Sequence[str] | None = None
    loggers: Sequence[str] = ("tensorboard",)


# What Lightning warns of, and why we know better.
_HIDDEN = (
    ".*does not have many workers",  # chosen by the number of cores
    "Found .* module.s. in eval mode",  # batch norm is frozen on purpose
    "Experiment logs directory",  # the run's folder, whose metrics.csv is new, or given back
    "You're resuming from a checkpoint that ended before",  # the sampler goes on, see `_go_on`
    "You defined a `validation_step` but have no",  # the refit has no images to validate on
    ".*isinstance.treespec, LeafSpec",  # Lightning calls what torch deprecates
    "It is recommended to use .self.log",  # what is logged is the same in all processes
)


def make_trainer(
    fit_config: FitConfig, callbacks: Sequence[lightning.Callback]
) -> lightning.Trainer:
    """Lightning's trainer with our loggers; a progress bar where there is a terminal."""
    progress = sys.stdout.isatty() and is_rank_zero()
    bars = [RichProgressBar()] if progress else []
    with quiet():
        return lightning.Trainer(
            accelerator=fit_config.accelerator,
            **_shared(fit_config),
            max_epochs=fit_config.epochs,
            gradient_clip_val=fit_config.grad_clip or None,
            precision=fit_config.precision,
            logger=make_loggers(fit_config.loggers, fit_config.folder),
            callbacks=[*callbacks, *bars, FinishLoggers()],
            enable_progress_bar=progress,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # metrics that were updated before the fit go on being updated
            log_every_n_steps=1,
        )


def _shared(fit_config: FitConfig) -> dict[str, Any]:
    """What Lightning is told of the processes that train together."""
    if world_size() == 1:
        return {"devices": 1, "plugins": [AtomicCheckpointIO()]}
    strategy: Any = "ddp"
    if fit_config.fsdp_units is not None:
        from delta_transfer.training.distributed import (
            FullyShardStrategy,  # loading it takes a second
        )

        strategy = FullyShardStrategy(fit_config.fsdp_units)
    return {
        "devices": local_world_size(),
        "num_nodes": world_size() // local_world_size(),
        "strategy": strategy,
        "plugins": [AtomicCheckpointIO(), TorchElasticEnvironment()],
        "use_distributed_sampler": False,  # ours gives each process its share
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what Lightning says about choices that were made on purpose."""
    log = logging.getLogger("lightning.pytorch")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _HIDDEN:
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        log.setLevel(level)
