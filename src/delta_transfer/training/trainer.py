"""Configuration of Lightning's trainer, and numerical precision."""

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

from delta_transfer.errors import EnvironmentError
from delta_transfer.training.accumulation import GradientAccumulation
from delta_transfer.training.checkpoint_callbacks import CheckpointInterval
from delta_transfer.training.checkpoints import AtomicCheckpointIO
from delta_transfer.training.distributed import FullyShardStrategy
from delta_transfer.training.loggers import FinishLoggers, make_loggers
from delta_transfer.training.mixing import Mixing
from delta_transfer.utils.distributed import is_rank_zero, local_world_size, world_size

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]
"""Lightning's names; the mixed ones use autocast."""

NUM_VALIDATIONS = 30

_DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}


def find_precision(name: str, device: torch.device) -> Precision:
    """Resolve `--precision` for a device.

    Args:
        name: `"32"`, `"bf16"`, `"16"`, or `"auto"`: half precision on CUDA GPUs, bfloat16 if they
            support it.
        device: of the run.

    Raises:
        EnvironmentError: if the device does not support it.
    """
    if name == "16" and device.type == "cpu":
        raise EnvironmentError(
            "`precision=16` needs a GPU: on a CPU use 32 (mostly the faster one) or bf16"
        )
    if name == "auto" and device.type == "cuda":
        name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "16"
    if name == "bf16":
        return "bf16-mixed"
    return "16-mixed" if name == "16" else "32-true"


def epochs_per_validation(epochs: int) -> int:
    """Return the number of epochs between two validations.

    With few images there are hundreds of epochs, of which about 30 are validated, also the last.

    Example:
        >>> epochs_per_validation(10), epochs_per_validation(200)
        (1, 5)
    """
    most = max(1, epochs // NUM_VALIDATIONS)
    return max(n for n in range(1, most + 1) if epochs % n == 0)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[None]:
    """Return a context in which networks compute in a precision."""
    if precision == "32-true":
        return nullcontext()
    return torch.autocast(device.type, dtype=_DTYPES[precision])


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitConfig:
    """Data, duration, precision and output folder of a fit.

    Args:
        train_dataloader: batches of training samples, augmented.
        val_dataloader: batches of validation samples, for curves; None for none.
        epochs: number of epochs of the schedule.
        mixing: MixUp or CutMix of training images; None for neither.
        grad_clip: norm to which gradients are clipped; 0 for no limit.
        sample_type: name of a sample in messages.
        gradient_accumulation_steps: micro-batches of each step.
        can_split: use more micro-batches if memory runs out.
        precision: Lightning's name of the precision.
        folder: output folder of the run, with `checkpoints`.
        checkpoint_interval: how often `last.ckpt` is saved.
        on_checkpoint: called after each save.
        resume: resume from the last checkpoint, if it has the same fingerprint.
        fingerprint: of data and pretrained weights.
        accelerator: Lightning's name of the kind of device.
        fsdp_units: names of the modules to shard, see `FullyShardStrategy`; None to replicate all
            weights.
        loggers: besides `metrics.csv`, see `make_loggers`.
    """

    train_dataloader: DataLoader[Any]
    val_dataloader: DataLoader[Any] | None
    epochs: int
    mixing: Mixing | None = None
    grad_clip: float = 1.0
    sample_type: str = "image"
    gradient_accumulation_steps: int = 1
    can_split: bool = True
    precision: Precision = "32-true"
    folder: Path
    checkpoint_interval: CheckpointInterval = dataclasses.field(default_factory=CheckpointInterval)
    on_checkpoint: Callable[[], None] = lambda: None
    resume: bool = False
    fingerprint: str = ""
    accelerator: str
    fsdp_units: Sequence[str] | None = None
    loggers: Sequence[str] = ("tensorboard",)

    def make_accumulation(self) -> GradientAccumulation:
        """Return a new object that divides steps into micro-batches.

        A fit has its own, since it makes micro-batches smaller if memory runs out.
        """
        return GradientAccumulation(
            self.gradient_accumulation_steps,
            can_split=self.can_split,
            sample_type=self.sample_type,
        )


# Warnings of Lightning about deliberate choices.
_HIDDEN = (
    ".*does not have many workers",  # chosen by the number of cores
    "Found .* module.s. in eval mode",  # batch norm is frozen on purpose
    "Experiment logs directory",  # the run's folder, whose metrics.csv is new or restored
    "You're resuming from a checkpoint that ended before",  # the sampler is resumed, see `fit`
    "You defined a `validation_step` but have no",  # a training on all samples has none left
    ".*isinstance.treespec, LeafSpec",  # Lightning calls a deprecated function of torch
    "It is recommended to use .self.log",  # logged values are the same in all processes
)


def make_trainer(
    fit_config: FitConfig, callbacks: Sequence[lightning.Callback]
) -> lightning.Trainer:
    """Return Lightning's trainer with our loggers, and a progress bar in a terminal."""
    progress = sys.stdout.isatty() and is_rank_zero()
    bars = [RichProgressBar()] if progress else []
    with quiet():
        return lightning.Trainer(
            accelerator=fit_config.accelerator,
            **_shared(fit_config),
            max_epochs=fit_config.epochs,
            check_val_every_n_epoch=epochs_per_validation(fit_config.epochs),
            gradient_clip_val=fit_config.grad_clip or None,
            precision=fit_config.precision,
            logger=make_loggers(fit_config.loggers, fit_config.folder),
            callbacks=[*callbacks, *bars, FinishLoggers()],
            enable_progress_bar=progress,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # metrics updated before the fit are updated in it
            log_every_n_steps=1,
        )


def _shared(fit_config: FitConfig) -> dict[str, Any]:
    """Return the trainer's arguments about processes."""
    if world_size() == 1:
        return {"devices": 1, "plugins": [AtomicCheckpointIO()]}
    strategy: Any = "ddp"
    if fit_config.fsdp_units is not None:
        strategy = FullyShardStrategy(fit_config.fsdp_units)
    return {
        "devices": local_world_size(),
        "num_nodes": world_size() // local_world_size(),
        "strategy": strategy,
        "plugins": [AtomicCheckpointIO(), TorchElasticEnvironment()],
        "use_distributed_sampler": False,  # ours shards the samples
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Hide messages of Lightning about deliberate choices."""
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
