"""Fine-tune with Lightning, resume from checkpoints, and restore the best epoch's weights."""

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
from delta_transfer.errors import EnvironmentError, UserError, reworded
from delta_transfer.metrics.task_types import TaskType
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.callbacks import StopAfter
from delta_transfer.training.checkpoint_callbacks import GROWING_FILES, SaveBest, SaveLast
from delta_transfer.training.checkpoints import BEST, LAST, find_last_checkpoint, read_checkpoint
from delta_transfer.training.module import FineTuneModule
from delta_transfer.training.optimizers import OptimizerConfig
from delta_transfer.training.signals import FitInterrupt, handle_stop_signals
from delta_transfer.training.trainer import FitConfig, make_trainer, quiet
from delta_transfer.utils.diagnostics import message
from delta_transfer.utils.distributed import (
    all_reduce_any,
    rank_zero_first,
    run_on_main_and_broadcast,
)

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class FitResult:
    """The result of a fit.

    Args:
        epoch: the epoch whose weights were restored; 0 is the initialization.
        val_outputs: logits `[N, K]` and targets of each validation, from epoch 0, if stored.
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
    """Train the network and restore the weights of its best epoch.

    Args:
        network: the target, trained in place; a sharded one stays sharded, see `into`.
        regularizer: its penalties.
        fit_config: data, epochs and folder.
        loss: the task loss.
        head: the name of the network's head.
        task_type: scores the validation split.
        optimizer_config: optimiser, learning rates and schedule.
        callbacks: further Lightning callbacks.
        generators: random generators whose states checkpoints have to contain.
        into: the network that gets the weights of the best epoch; `network` if None.

    Returns:
        The epoch, and the validation outputs.

    Raises:
        UserError: if the loss is not finite or explodes; earlier checkpoints stay.
        KeyboardInterrupt: after SIGINT or SIGTERM; the state has been saved then.
    """
    checkpoints = fit_config.folder / "checkpoints"
    save_best = SaveBest(checkpoints)
    with rank_zero_first():
        last = _find_last(fit_config, save_best)
    state = {} if last is None else last[1]
    with ExitStack() as stack, quiet(), handle_stop_signals() as request:
        module = FineTuneModule(
            network,
            regularizer,
            loss=loss,
            head=head,
            task_type=task_type,
            optimizer_config=optimizer_config,
            exit_stack=stack,
            accumulation=fit_config.make_accumulation(),
            store_val_outputs=fit_config.store_val_outputs,
            mixing=fit_config.mixing,
        )
        save_last = SaveLast(
            fit_config.folder,
            interval=fit_config.checkpoint_interval,
            fingerprint=fit_config.fingerprint,
            generators=generators,
            request=request,
            on_checkpoint=fit_config.on_checkpoint,
        )
        own: list[lightning.Callback] = [save_last]
        if fit_config.val_dataloader is not None:
            own.append(save_best)
        if fit_config.stop_after is not None:
            own.append(StopAfter(fit_config.stop_after))
        trainer = make_trainer(fit_config, [*own, *callbacks])
        try:
            if _callback_state(state).get("finished"):
                module.on_load_checkpoint(state)
            else:
                _train(trainer, module, fit_config, last)
        except UserError as error:
            if fit_config.val_dataloader is None:
                raise
            found = f"{message(error)}; best weights so far: {checkpoints / BEST}"
            raise reworded(error, found) from error
        except FitInterrupt as error:
            raise KeyboardInterrupt(str(error)) from None
        except SystemExit as error:  # raised by Lightning at Ctrl-C
            raise KeyboardInterrupt from error
        outcome = _restore_selected_weights(
            module, fit_config, save_best, network if into is None else into
        )
    if all_reduce_any(request.requested)[0]:  # after everything was saved
        raise KeyboardInterrupt("stopped after the last step")
    return outcome


def _find_last(fit_config: FitConfig, save_best: SaveBest) -> tuple[Path, dict[str, Any]] | None:
    """Return the checkpoint to resume from; without one, delete what another fit left."""
    checkpoints = fit_config.folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    last = find_last_checkpoint(checkpoints) if fit_config.resume else None
    if last is not None and _callback_state(last[1])["fingerprint"] != fit_config.fingerprint:
        logger.warning(
            "the %ss, their splits or the pretrained weights have changed: training from scratch",
            fit_config.sample_type,
        )
        last = None
    if last is not None and fit_config.val_dataloader is not None and not save_best.resume():
        last = None  # the best weights so far are lost
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
    """Train from the initialization, which is validated first, or from the last checkpoint."""
    if last is not None:
        path, state = last
        _resume_sampler(fit_config, state)
        trainer.fit(module, fit_config.train_dataloader, fit_config.val_dataloader, ckpt_path=path)
        return
    if fit_config.val_dataloader is not None:
        trainer.validate(module, fit_config.val_dataloader, verbose=False)
    trainer.fit(module, fit_config.train_dataloader, fit_config.val_dataloader)


def _callback_state(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the state of `SaveLast` in a checkpoint; empty if there is none."""
    found: Mapping[str, Any] = state.get("callbacks", {}).get(SaveLast.__name__, {})
    return found


def _resume_sampler(fit_config: FitConfig, state: Mapping[str, Any]) -> None:
    """Continue the sampler where the checkpoint was saved."""
    # With several processes both count this process's shard.
    sampler, size = fit_config.train_dataloader.sampler, fit_config.train_dataloader.batch_size
    assert isinstance(sampler, EpochSampler | DistributedEpochSampler)
    assert size is not None
    progress = state["loops"]["fit_loop"]
    epoch = progress["epoch_progress"]["current"]["processed"]
    batches = progress["epoch_loop.batch_progress"]["current"]["completed"]
    sampler.resume(epoch, num_done=size * batches)
    logger.info("resuming in epoch %d, after step %d", epoch + 1, state["global_step"])


def _restore_selected_weights(
    module: FineTuneModule, fit_config: FitConfig, save_best: SaveBest, network: nn.Module
) -> FitResult:
    """Load the weights of the selected epoch, or their moving average, into a network."""
    last = fit_config.keep_last or fit_config.val_dataloader is None
    path = fit_config.folder / "checkpoints" / (LAST if last else BEST)
    saved = run_on_main_and_broadcast(lambda: read_checkpoint(path))
    if saved is None:
        raise EnvironmentError(f"{path} was corrupted right after writing; check the disk")
    prefix = "network." if module.ema_network is None else "ema_network.module."
    state = network.state_dict()  # some networks need its metadata, such as versions
    for name, tensor in saved["state_dict"].items():
        if name.startswith(prefix):
            state[name.removeprefix(prefix)] = tensor
    network.load_state_dict(state)
    epoch = saved["epoch"] if last else save_best.best_epoch
    return FitResult(epoch=epoch, val_outputs=module.val_outputs)
