"""The fit: Lightning's trainer around the module, validated from the start."""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import Tensor, nn

from delta_transfer.data.samplers import DistributedEpochSampler, EpochSampler
from delta_transfer.errors import UserError
from delta_transfer.metrics.task_types import TaskType
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.accumulation import GradientAccumulation
from delta_transfer.training.callbacks import StopAfter
from delta_transfer.training.checkpoint_callbacks import GROWING_FILES, SaveBest, SaveLast
from delta_transfer.training.checkpoints import BEST, LAST, find_last_checkpoint, read_checkpoint
from delta_transfer.training.module import FineTuneModule
from delta_transfer.training.optimizers import OptimizerConfig
from delta_transfer.training.signals import FitInterrupt, handle_stop_signals
from delta_transfer.training.trainer import FitConfig, make_trainer, quiet
from delta_transfer.utils.distributed import (
    all_reduce_any,
    rank_zero_first,
    run_on_main_and_broadcast,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """What a fit found.

    Args:
        epoch: the one whose weights were kept; 0 is the start, before any training.
        val_outputs: logits `[N, K]` and targets on the validation split, from epoch 0 on, if
            they were to be kept.
    """

    epoch: int
    val_outputs: list[tuple[Tensor, Tensor]]


def fit(
    network: nn.Module,
    regularizer: Regularizer,
    fit_config: FitConfig,
    *,
    loss: Any,
    head: str,
    task_type: TaskType,
    optimizer_config: OptimizerConfig,
    callbacks: Sequence[lightning.Callback] = (),
    generators: Sequence[torch.Generator] = (),
    into: nn.Module | None = None,
) -> FitResult:
    """Trains the network and leaves it with the weights of its best epoch.

    Args:
        network: the target; trained in place; one that is sharded stays so, see `into`.
        regularizer: its penalties.
        fit_config: data, epochs and folder.
        loss: the task loss.
        head: the name of the network's head.
        task_type: by which the validation split is judged.
        optimizer_config: how the weights are moved.
        callbacks: more of Lightning's callbacks.
        generators: what draws random numbers beside torch's own.
        into: what gets the weights of the best epoch; the network itself if None.

    Returns:
        The epoch that was kept, and what the network said of the validation split.

    Raises:
        UserError: if the loss is no number any more or explodes; checkpoints of before stay.
        KeyboardInterrupt: if it was stopped by SIGINT or SIGTERM, at which it saves its state.
    """
    checkpoints = fit_config.folder / "checkpoints"
    keep = SaveBest(checkpoints)
    with rank_zero_first():
        last = _find_last(fit_config, keep)
    state = {} if last is None else last[1]
    with ExitStack() as borrowed, quiet(), handle_stop_signals() as request:
        module = FineTuneModule(
            network,
            regularizer,
            loss=loss,
            head=head,
            task_type=task_type,
            optimizer_config=optimizer_config,
            exit_stack=borrowed,
            accumulation=GradientAccumulation(
                fit_config.gradient_accumulation_steps,
                can_split=fit_config.can_split,
                sample_type=fit_config.sample_type,
            ),
            store_val_outputs=fit_config.store_val_outputs,
            mixing=fit_config.mixing,
        )
        save = SaveLast(
            fit_config.folder,
            interval=fit_config.checkpoint_interval,
            fingerprint=fit_config.fingerprint,
            generators=generators,
            request=request,
            on_checkpoint=fit_config.on_checkpoint,
        )
        stop = [] if fit_config.stop_after is None else [StopAfter(fit_config.stop_after)]
        kept = [] if fit_config.val_dataloader is None else [keep]
        trainer = make_trainer(fit_config, [save, *kept, *stop, *callbacks])
        try:
            if _callback_state(state).get("finished"):
                module.on_load_checkpoint(state)
            else:
                _train(trainer, module, fit_config, last)
        except UserError as error:
            if fit_config.val_dataloader is None:
                raise
            raise UserError(f"{error}; the best weights so far: {checkpoints / BEST}") from error
        except FitInterrupt as error:
            raise KeyboardInterrupt(str(error)) from None
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from error
        outcome = _restore_selected_weights(
            module, fit_config, keep, network if into is None else into
        )
    if all_reduce_any(request.requested)[0]:  # after all had been saved
        raise KeyboardInterrupt("stopped after the last step")
    return outcome


def _find_last(fit_config: FitConfig, save_best: SaveBest) -> tuple[Path, dict[str, Any]] | None:
    """The state to go on from, if there is one; else what is left of another fit is deleted."""
    checkpoints = fit_config.folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    last = find_last_checkpoint(checkpoints) if fit_config.resume else None
    if last is not None and _callback_state(last[1])["fingerprint"] != fit_config.fingerprint:
        logger.warning(
            "the %ss, their splits or the pretrained weights are not those of before: "
            "starting anew",
            fit_config.sample_type,
        )
        last = None
    if last is not None and fit_config.val_dataloader is not None and not save_best.resume():
        last = None  # what was best until then is lost
    if last is None:
        for path in (
            *checkpoints.glob("*.ckpt"),
            *(fit_config.folder / name for name in GROWING_FILES),
        ):
            path.unlink(missing_ok=True)
    return last


def _train(
    trainer: lightning.Trainer,
    module: FineTuneModule,
    fit_config: FitConfig,
    last: tuple[Path, Mapping[str, Any]] | None,
) -> None:
    """From the start, which is validated first, or from the last state."""
    if last is not None:
        path, state = last
        _resume_sampler(fit_config, state)
        trainer.fit(module, fit_config.train_dataloader, fit_config.val_dataloader, ckpt_path=path)
        return
    if fit_config.val_dataloader is not None:
        trainer.validate(module, fit_config.val_dataloader, verbose=False)
    trainer.fit(module, fit_config.train_dataloader, fit_config.val_dataloader)


def _callback_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `SaveLast` has saved in a state; empty if there is none."""
    found: Mapping[str, Any] = state.get("callbacks", {}).get(SaveLast.__name__, {})
    return found


def _resume_sampler(fit_config: FitConfig, state: Mapping[str, Any]) -> None:
    """Lets the training samples begin where they had been left."""
    # With several processes both are of this one's share.
    sampler, size = fit_config.train_dataloader.sampler, fit_config.train_dataloader.batch_size
    assert isinstance(sampler, EpochSampler | DistributedEpochSampler)
    assert size is not None
    progress = state["loops"]["fit_loop"]
    epoch = progress["epoch_progress"]["current"]["processed"]
    batches = progress["epoch_loop.batch_progress"]["current"]["completed"]
    sampler.resume(epoch, num_done=size * batches)
    logger.info("going on in epoch %d, after step %d", epoch + 1, state["global_step"])


def _restore_selected_weights(
    module: FineTuneModule, fit_config: FitConfig, save_best: SaveBest, network: nn.Module
) -> FitResult:
    """Gives a network the weights, or their average, of the epoch that is kept."""
    last = fit_config.keep_last or fit_config.val_dataloader is None
    path = fit_config.folder / "checkpoints" / (LAST if last else BEST)
    kept = run_on_main_and_broadcast(lambda: read_checkpoint(path))
    if kept is None:
        raise UserError(f"{path} is damaged, though it has just been written: look after the disk")
    prefix = "network." if module.ema_network is None else "ema_network.module."
    state = network.state_dict()  # which some networks want back as such, with their version
    for name, tensor in kept["state_dict"].items():
        if name.startswith(prefix):
            state[name.removeprefix(prefix)] = tensor
    network.load_state_dict(state)
    epoch = kept["epoch"] if last else save_best.best_epoch
    return FitResult(epoch=epoch, val_outputs=module.val_outputs)
