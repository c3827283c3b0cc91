"""Fine-tune with Lightning, and resume from checkpoints."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lightning
import torch
from torch import nn

from delta_transfer.data.samplers import DistributedEpochSampler, EpochSampler
from delta_transfer.errors import EnvironmentError, UserError, reworded
from delta_transfer.metrics.task_types import TaskType
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.callbacks import LogValidation
from delta_transfer.training.checkpoint_callbacks import GROWING_FILES, SaveLast
from delta_transfer.training.checkpoints import LAST, find_last_checkpoint, read_checkpoint
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
) -> None:
    """Train the network to the end of its schedule.

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
        into: the network that gets the final weights; `network` if None.

    Raises:
        UserError: if the loss is not finite or explodes; earlier checkpoints stay.
        KeyboardInterrupt: after SIGINT or SIGTERM; the state has been saved then.
    """
    with rank_zero_first():
        last = _find_last(fit_config)
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
            own.append(LogValidation())
        trainer = make_trainer(fit_config, [*own, *callbacks])
        try:
            if _callback_state(state).get("finished"):
                module.on_load_checkpoint(state)
            else:
                _train(trainer, module, fit_config, last)
        except UserError as error:
            # That of a process that loads samples begins with its traceback.
            raise reworded(error, message(error)) from error
        except FitInterrupt as error:
            raise KeyboardInterrupt(str(error)) from None
        except SystemExit as error:  # raised by Lightning at Ctrl-C
            raise KeyboardInterrupt from error
        _load_final_weights(module, fit_config, network if into is None else into)
    if all_reduce_any(request.requested)[0]:  # after everything was saved
        raise KeyboardInterrupt("stopped after the last step")


def _find_last(fit_config: FitConfig) -> tuple[Path, dict[str, Any]] | None:
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


def _load_final_weights(module: FineTuneModule, fit_config: FitConfig, network: nn.Module) -> None:
    """Load the weights after the last epoch, or their moving average, into a network."""
    path = fit_config.folder / "checkpoints" / LAST
    saved = run_on_main_and_broadcast(lambda: read_checkpoint(path))
    if saved is None:
        raise EnvironmentError(f"{path} was corrupted right after writing; check the disk")
    prefix = "network." if module.ema_network is None else "ema_network.module."
    state = network.state_dict()  # some networks need its metadata, such as versions
    for name, tensor in saved["state_dict"].items():
        if name.startswith(prefix):
            state[name.removeprefix(prefix)] = tensor
    network.load_state_dict(state)
