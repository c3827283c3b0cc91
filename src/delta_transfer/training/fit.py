"""The fit: Lightning's trainer around the module, validated from the start."""

import dataclasses
import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader

from delta_transfer.errors import UserError
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.callbacks import BEST, KeepBest, StopAfter
from delta_transfer.training.checkpoints import WholeCheckpoints
from delta_transfer.training.module import FineTuning, Optimization

# What Lightning warns of, and why we know better.
_HIDDEN = (
    ".*does not have many workers",  # chosen by the number of cores
    "Found .* module.s. in eval mode",  # batch norm is frozen on purpose
    "Experiment logs directory",  # the run's folder, whose metrics.csv is new
    "You defined a `validation_step` but have no",  # the refit has no pictures to validate on
    ".*isinstance.treespec, LeafSpec",  # Lightning calls what torch deprecates
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """What to train on, for how long and where its traces go.

    Args:
        train: batches of augmented training pictures.
        val: batches of validation pictures; None to keep the last epoch.
        epochs: how many, by which the schedule goes.
        stop_after: ends after so many of them; None for all.
        clip: norm to which gradients are clipped; None for no limit.
        keep_last: keep the last epoch whatever the validation loss says.
        folder: of the run.
        accelerator: Lightning's name of the device kind.
    """

    train: DataLoader[Any]
    val: DataLoader[Any] | None
    epochs: int
    stop_after: int | None = None
    clip: float | None = 1.0
    keep_last: bool = False
    folder: Path
    accelerator: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit found.

    Args:
        epoch: the one whose weights were kept; 0 is the start, before any training.
        validations: logits `[N, K]` and targets `[N]` on the validation split, from epoch 0 on.
    """

    epoch: int
    validations: list[tuple[Tensor, Tensor]]


def fit(
    network: nn.Module,
    regularizer: Regularizer,
    plan: Fit,
    *,
    loss: Any,
    head: str,
    num_classes: int,
    optimization: Optimization,
    callbacks: Sequence[lightning.Callback] = (),
) -> Fitted:
    """Trains the network and leaves it with the weights of its best epoch.

    Args:
        network: the target; trained in place.
        regularizer: its penalties.
        plan: data, epochs and folder.
        loss: the task loss.
        head: the name of the network's head.
        num_classes: outputs of the head.
        optimization: how the weights are moved.
        callbacks: more of Lightning's callbacks.

    Returns:
        The epoch that was kept, and what the network said of the validation split.

    Raises:
        UserError: if the loss is no number any more or explodes; checkpoints of before stay.
    """
    checkpoints = plan.folder / "checkpoints"
    keep = KeepBest(checkpoints)
    stop = [] if plan.stop_after is None else [StopAfter(plan.stop_after)]
    trainer = make_trainer(plan, [*([] if plan.val is None else [keep]), *stop, *callbacks])
    with ExitStack() as borrowed, quiet():
        module = FineTuning(
            network,
            regularizer,
            loss=loss,
            head=head,
            num_classes=num_classes,
            optimization=optimization,
            borrowed=borrowed,
        )
        try:
            if plan.val is None:
                trainer.fit(module, plan.train)
                return Fitted(epoch=trainer.current_epoch, validations=[])
            trainer.validate(module, plan.val, verbose=False)
            trainer.fit(module, plan.train, plan.val)
        except UserError as error:
            if plan.val is None:
                raise
            raise UserError(f"{error}; the best weights so far: {checkpoints / BEST}") from error
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from error
    if plan.keep_last:
        return Fitted(epoch=trainer.current_epoch, validations=module.validations)
    best = torch.load(checkpoints / BEST, map_location="cpu", weights_only=True)
    prefix = "network."
    state = network.state_dict()  # which some networks want back as such, with their version
    for name, tensor in best["state_dict"].items():
        if name.startswith(prefix):
            state[name.removeprefix(prefix)] = tensor
    network.load_state_dict(state)
    return Fitted(epoch=keep.best_epoch, validations=module.validations)


def make_trainer(plan: Fit, callbacks: Sequence[lightning.Callback]) -> lightning.Trainer:
    """Lightning's trainer with our loggers; a progress bar where there is a terminal."""
    progress = sys.stdout.isatty()
    bars = [RichProgressBar()] if progress else []
    with quiet():
        return lightning.Trainer(
            accelerator=plan.accelerator,
            devices=1,
            max_epochs=plan.epochs,
            gradient_clip_val=plan.clip,
            logger=[
                CSVLogger(plan.folder, name="", version=""),
                TensorBoardLogger(plan.folder, name="", version="tensorboard"),
            ],
            callbacks=[*callbacks, *bars],
            plugins=[WholeCheckpoints()],
            enable_progress_bar=progress,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # metrics that were updated before the fit go on being updated
            log_every_n_steps=1,
        )


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
