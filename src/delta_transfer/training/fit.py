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

from delta_transfer.data.samplers import EpochSampler, ShareSampler
from delta_transfer.errors import UserError
from delta_transfer.metrics.objectives import Objective
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.accumulation import Accumulation
from delta_transfer.training.callbacks import StopAfter
from delta_transfer.training.checkpoint_callbacks import TRACES, KeepBest, SaveLast
from delta_transfer.training.checkpoints import BEST, LAST, find_last, read_whole
from delta_transfer.training.module import FineTuning
from delta_transfer.training.optimizers import Optimization
from delta_transfer.training.signals import Stopped, listening
from delta_transfer.training.trainer import Fit, make_trainer, quiet
from delta_transfer.utils.distributed import any_of, from_main, main_first

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fitted:
    """What a fit found.

    Args:
        epoch: the one whose weights were kept; 0 is the start, before any training.
        validations: logits `[N, K]` and targets on the validation split, from epoch 0 on, if
            they were to be kept.
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
    objective: Objective,
    optimization: Optimization,
    callbacks: Sequence[lightning.Callback] = (),
    generators: Sequence[torch.Generator] = (),
    into: nn.Module | None = None,
) -> Fitted:
    """Trains the network and leaves it with the weights of its best epoch.

    Args:
        network: the target; trained in place; one that is sharded stays so, see `into`.
        regularizer: its penalties.
        plan: data, epochs and folder.
        loss: the task loss.
        head: the name of the network's head.
        objective: by which the validation split is judged.
        optimization: how the weights are moved.
        callbacks: more of Lightning's callbacks.
        generators: what draws random numbers beside torch's own.
        into: what gets the weights of the best epoch; the network itself if None.

    Returns:
        The epoch that was kept, and what the network said of the validation split.

    Raises:
        UserError: if the loss is no number any more or explodes; checkpoints of before stay.
        KeyboardInterrupt: if it was stopped by SIGINT or SIGTERM, at which it saves its state.
    """
    checkpoints = plan.folder / "checkpoints"
    keep = KeepBest(checkpoints)
    with main_first():
        last = _find_last(plan, keep)
    state = {} if last is None else last[1]
    with ExitStack() as borrowed, quiet(), listening() as request:
        module = FineTuning(
            network,
            regularizer,
            loss=loss,
            head=head,
            objective=objective,
            optimization=optimization,
            borrowed=borrowed,
            accumulation=Accumulation(plan.parts, divisible=plan.divisible, noun=plan.noun),
            keep_validations=plan.keep_validations,
            mixing=plan.mixing,
        )
        save = SaveLast(
            plan.folder,
            saving=plan.saving,
            identity=plan.identity,
            generators=generators,
            request=request,
            saved=plan.saved,
        )
        stop = [] if plan.stop_after is None else [StopAfter(plan.stop_after)]
        kept = [] if plan.val is None else [keep]
        trainer = make_trainer(plan, [save, *kept, *stop, *callbacks])
        try:
            if _saved_by(state).get("finished"):
                module.on_load_checkpoint(state)
            else:
                _train(trainer, module, plan, last)
        except UserError as error:
            if plan.val is None:
                raise
            raise UserError(f"{error}; the best weights so far: {checkpoints / BEST}") from error
        except Stopped as error:
            raise KeyboardInterrupt(str(error)) from None
        except SystemExit as error:  # Lightning's answer to Ctrl-C
            raise KeyboardInterrupt from error
        outcome = _outcome(module, plan, keep, network if into is None else into)
    if any_of(request.asked)[0]:  # after all had been saved
        raise KeyboardInterrupt("stopped after the last step")
    return outcome


def _find_last(plan: Fit, keep: KeepBest) -> tuple[Path, dict[str, Any]] | None:
    """The state to go on from, if there is one; else what is left of another fit is deleted."""
    checkpoints = plan.folder / "checkpoints"
    checkpoints.mkdir(parents=True, exist_ok=True)
    last = find_last(checkpoints) if plan.resume else None
    if last is not None and _saved_by(last[1])["identity"] != plan.identity:
        logger.warning(
            "the %ss, their splits or the pretrained weights are not those of before: "
            "starting anew",
            plan.noun,
        )
        last = None
    if last is not None and plan.val is not None and not keep.go_on():
        last = None  # what was best until then is lost
    if last is None:
        for path in (*checkpoints.glob("*.ckpt"), *(plan.folder / name for name in TRACES)):
            path.unlink(missing_ok=True)
    return last


def _train(
    trainer: lightning.Trainer,
    module: FineTuning,
    plan: Fit,
    last: tuple[Path, Mapping[str, Any]] | None,
) -> None:
    """From the start, which is validated first, or from the last state."""
    if last is not None:
        path, state = last
        _go_on(plan, state)
        trainer.fit(module, plan.train, plan.val, ckpt_path=path)
        return
    if plan.val is not None:
        trainer.validate(module, plan.val, verbose=False)
    trainer.fit(module, plan.train, plan.val)


def _saved_by(state: Mapping[str, Any]) -> Mapping[str, Any]:
    """What `SaveLast` has saved in a state; empty if there is none."""
    found: Mapping[str, Any] = state.get("callbacks", {}).get(SaveLast.__name__, {})
    return found


def _go_on(plan: Fit, state: Mapping[str, Any]) -> None:
    """Lets the training samples begin where they had been left."""
    # With several processes both are of this one's share.
    sampler, size = plan.train.sampler, plan.train.batch_size
    assert isinstance(sampler, EpochSampler | ShareSampler)
    assert size is not None
    progress = state["loops"]["fit_loop"]
    epoch = progress["epoch_progress"]["current"]["processed"]
    batches = progress["epoch_loop.batch_progress"]["current"]["completed"]
    sampler.go_on(epoch, done=size * batches)
    logger.info("going on in epoch %d, after step %d", epoch + 1, state["global_step"])


def _outcome(module: FineTuning, plan: Fit, keep: KeepBest, network: nn.Module) -> Fitted:
    """Gives a network the weights, or their average, of the epoch that is kept."""
    last = plan.keep_last or plan.val is None
    path = plan.folder / "checkpoints" / (LAST if last else BEST)
    kept = from_main(lambda: read_whole(path))
    if kept is None:
        raise UserError(f"{path} is damaged, though it has just been written: look after the disk")
    prefix = "network." if module.average is None else "average.module."
    state = network.state_dict()  # which some networks want back as such, with their version
    for name, tensor in kept["state_dict"].items():
        if name.startswith(prefix):
            state[name.removeprefix(prefix)] = tensor
    network.load_state_dict(state)
    epoch = kept["epoch"] if last else keep.best_epoch
    return Fitted(epoch=epoch, validations=module.validations)
