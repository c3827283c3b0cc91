"""A trial of a search: a run up to its held-out metrics, unless it is pruned."""

import dataclasses
import json
import logging
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.experiments.search.folder import LOSSES, Outcome, clear, outcomes
from delta_transfer.experiments.search.study import import_optuna
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.cost import ResourceTracker
from delta_transfer.runs.folder import LOG_FILE, make_folder
from delta_transfer.runs.lr_search import resolve_lr
from delta_transfer.runs.plan import FineTunePlan, make_plan
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.runs.preparation.taps import choose_taps
from delta_transfer.runs.run import train_prepared
from delta_transfer.runs.selection import SelectionResult, select_model
from delta_transfer.runs.summary import log_start
from delta_transfer.utils.diagnostics import explain
from delta_transfer.utils.environment import describe
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.locks import lock_folder
from delta_transfer.utils.logging import log_to
from delta_transfer.utils.memory import PeakMemory
from delta_transfer.utils.module_state import deterministic_algorithms

logger = logging.getLogger(__name__)

_COMPLETE = 5  # complete trials before pruning starts
_SPARED = 34  # percent of a training before it may be pruned


class Pruned(Exception):
    """Raised to end an unpromising trial."""


def try_out(prepared: RunSetup, config: TrainConfig, started: float, *, prune: bool = True) -> None:
    """Run a trial in the folder `config.out`, and save its outcome there.

    Args:
        prepared: the images, the network and its probe, at any taps.
        config: the options of the trial.
        started: `time.perf_counter()` at its start.
        prune: end it if it is worse than other trials; never the first one, the default.
    """
    folder = Path(config.out or "")
    prepared = _at_taps(prepared, config)
    memory = PeakMemory(prepared.device)
    with ExitStack() as held:
        held.enter_context(lock_folder(folder))
        make_folder(folder, overwrite=False, resume=True)
        spent = ResourceTracker(folder, started=started, memory=memory, resume=True)
        plan = make_plan(prepared, config, on_checkpoint=spent.save)
        alone = len(plan.candidates) == 1 and not plan.folds
        listener = Listener(folder, prune=prune and folder.name != "0", alone=alone)
        plan = dataclasses.replace(plan, on_epoch_end=listener.hear)
        header = (*describe(), *prepared.description)
        held.enter_context(log_to(folder / LOG_FILE, header, resume=True))
        held.enter_context(deterministic_algorithms(config.deterministic))
        write_atomically(folder / "config.yaml", config.to_yaml())
        found = _train(plan, folder)
        outcome = dataclasses.replace(
            found, losses=listener.losses, wall_time_s=spent.usage.wall_time_s
        )
        outcome.save(folder)
        clear(folder)


def make_whole(prepared: RunSetup, config: TrainConfig, started: float) -> RunResult:
    """Execute a complete run, with test and report; arguments as of `try_out`."""
    folder = Path(config.out or "")
    return train_prepared(_at_taps(prepared, config), config, folder, started=started)


def _at_taps(prepared: RunSetup, config: TrainConfig) -> RunSetup:
    """Set the taps of a trial; everything else is shared by all trials."""
    taps = choose_taps(config, prepared.backbone, prepared.source)
    return dataclasses.replace(prepared, taps=taps)


def _train(plan: FineTunePlan, folder: Path) -> Outcome:
    metric = plan.setup.task.task_type.metric.name
    try:
        log_start(plan)
        selected = select_model(resolve_lr(plan, folder), folder, keep_network=False)
    except Pruned as pruned:
        logger.info("pruned: %s", pruned)
        return Outcome(state="pruned", metric_name=metric)
    except (UserError, MemoryError, torch.OutOfMemoryError) as error:
        reason = str(error) if isinstance(error, UserError) else explain(error) or str(error)
        logger.warning("failed: %s", reason)
        return Outcome(state="failed", metric_name=metric, failure=reason)
    outcome = _judge(selected)
    logger.info("temperature-scaled validation loss %.4f", outcome.loss)
    return outcome


def _judge(selected: SelectionResult) -> Outcome:
    """Return the held-out loss and metric, without using the test split."""
    task_type, targets = selected.setup.task.task_type, selected.held_out.targets
    losses = task_type.held_out_losses(task_type.logits(selected.predictions), targets)
    loss, metric = float(losses.mean()), task_type.metric.name
    if not math.isfinite(loss):
        return Outcome(state="failed", metric_name=metric, failure="its loss is not finite")
    return Outcome(
        state="complete",
        loss=loss,
        metric_name=metric,
        score=task_type.score(selected.predictions, targets, metric),
    )


class Listener:
    """Record the losses of a trial's first training, and end it if Optuna's pruner says so.

    Trials are compared at the same percent of their first training to those that were complete when
    this one started, so that no other process is involved. Of the epochs within one percent, the
    first counts.

    Args:
        folder: of the trial.
        prune: whether it may be pruned.
        alone: whether the first training is the last.
    """

    def __init__(self, folder: Path, *, prune: bool, alone: bool) -> None:
        self._firsts = (folder, folder / "folds" / "1")
        self._path = folder / LOSSES
        self._alone = alone
        self._trial = _trial_beside(folder, prune=prune)
        self.losses: dict[int, float] = {}
        if self._path.is_file():  # of a trial that was interrupted
            for share, loss in json.loads(self._path.read_text()).items():
                self._report(int(share), loss)

    def hear(self, folder: Path, epoch: int, epochs: int, loss: float) -> None:
        """Record an epoch.

        Raises:
            Pruned: if the trial is not promising.
        """
        share = 100 * epoch // epochs
        # A resumed trial repeats the epochs after its last checkpoint, and above 100 epochs several
        # share a percent.
        if folder not in self._firsts or share in self.losses:
            return
        self._report(share, loss)
        if self._trial.should_prune() and not (self._alone and epoch == epochs):
            raise Pruned(f"loss {min(self.losses.values()):.3f} after {share}% of the training")
        write_atomically(self._path, json.dumps(self.losses))

    def _report(self, share: int, loss: float) -> None:
        self.losses[share] = loss
        if math.isfinite(loss):
            self._trial.report(loss, share)


def _trial_beside(folder: Path, *, prune: bool) -> Any:
    """Start a trial in memory; to prune it, its study contains the complete trials of a search."""
    optuna = import_optuna()
    if not prune:
        return optuna.create_study(pruner=optuna.pruners.NopPruner()).ask()
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_COMPLETE, n_warmup_steps=_SPARED)
    study = optuna.create_study(pruner=pruner)
    for outcome in outcomes(folder.parents[1]).values():
        if outcome.state == "complete":
            known = {at: loss for at, loss in outcome.losses.items() if math.isfinite(loss)}
            study.add_trial(optuna.create_trial(value=outcome.loss, intermediate_values=known))
    return study.ask()
