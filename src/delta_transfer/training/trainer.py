"""Lightning's trainer as our fits need it."""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import lightning
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from lightning.pytorch.callbacks import RichProgressBar

from delta_transfer.training.checkpoints import WholeCheckpoints
from delta_transfer.training.loggers import EndRuns, make_loggers
from delta_transfer.training.plan import Fit
from delta_transfer.utils.distributed import is_main, local_processes, processes

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
