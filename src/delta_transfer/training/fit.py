"""The fit: Lightning's trainer around the module, validated from the start."""

import dataclasses
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import RichProgressBar
from torch import Tensor, nn
from torch.utils.data import DataLoader

from delta_transfer.data.base import EpochSampler, ShareSampler
from delta_transfer.distributed import (
    any_of,
    from_main,
    is_main,
    local_processes,
    main_first,
    processes,
)
from delta_transfer.errors import UserError
from delta_transfer.objective import Objective
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.accumulation import Accumulation
from delta_transfer.training.callbacks import StopAfter
from delta_transfer.training.checkpoints import BEST, LAST, WholeCheckpoints, find_last, read_whole
from delta_transfer.training.loggers import EndRuns, make_loggers
from delta_transfer.training.mixing import Mixing
from delta_transfer.training.module import FineTuning
from delta_transfer.training.optimization import Optimization
from delta_transfer.training.precision import Precision
from delta_transfer.training.saving import TRACES, KeepBest, SaveLast, Saving
from delta_transfer.training.stopping import Stopped, listening

logger = logging.getLogger(__name__)

# What Lightning warns of, and why we know better.
_HIDDEN = (
    ".*does not have many workers",  # chosen by the number of cores
    "Found .* module.s. in eval mode",  # batch norm is frozen on purpose
    "Experiment logs directory",  # the run's folder, whose metrics.csv is new, or given back
    "You're resuming from a checkpoint that ended before",  # the sampler goes on, see `_go_on`
    "You defined a `validation_step` but have no",  # the refit has no pictures to validate on
    ".*isinstance.treespec, LeafSpec",  # Lightning calls what torch deprecates
    "It is recommended to use .self.log",  # what is logged is the same in all processes
)


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


def make_trainer(plan: Fit, callbacks: Sequence[lightning.Callback]) -> lightning.Trainer:
    """Lightning's trainer with our loggers; a progress bar where there is a terminal."""
    progress = sys.stdout.isatty() and is_main()
    bars = [RichProgressBar()] if progress else []
    with quiet():
        return lightning.Trainer(
            accelerator=plan.accelerator,
            **_shared(plan),
            max_epochs=plan.epochs,
            gradient_clip_val=plan.clip or None,
            precision=plan.precision,
            logger=make_loggers(plan.loggers, plan.folder),
            callbacks=[*callbacks, *bars, EndRuns()],
            enable_progress_bar=progress,
            enable_checkpointing=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,  # metrics that were updated before the fit go on being updated
            log_every_n_steps=1,
        )


def _shared(plan: Fit) -> dict[str, Any]:
    """What Lightning is told of the processes that train together."""
    if processes() == 1:
        return {"devices": 1, "plugins": [WholeCheckpoints()]}
    strategy: Any = "ddp"
    if plan.units is not None:
        from delta_transfer.training.sharding import Sharding  # loading it takes a second

        strategy = Sharding(plan.units)
    return {
        "devices": local_processes(),
        "num_nodes": processes() // local_processes(),
        "strategy": strategy,
        "plugins": [WholeCheckpoints(), TorchElasticEnvironment()],
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
