"""A search over strength, learning rate, epochs and taps: many trials, and the best one whole."""

import csv
import dataclasses
import functools
import io
import logging
import math
import shutil
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from delta_transfer.config.search import DEFAULT_TRIALS, SearchOptions
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.experiments.scheduling.placement import room_for
from delta_transfer.experiments.scheduling.worker import Reply
from delta_transfer.experiments.search.folder import (
    BEST,
    Outcome,
    clear,
    open_folder,
    options_of,
    outcomes,
    trial_folder,
    unfinished_runs,
)
from delta_transfer.experiments.search.space import Space, find_space
from delta_transfer.experiments.search.study import Study, check_storage
from delta_transfer.experiments.search.trial import make_whole, try_out
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.folder import SEARCH_FILE, SEARCH_RUNS, begin_several
from delta_transfer.runs.preparation.task import find_data
from delta_transfer.runs.validation import check_run_config
from delta_transfer.training.loaders import loaders_of
from delta_transfer.utils.diagnostics import message
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.locks import lock_folder

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A trial that has ended.

    Args:
        number: its number; 0 is the default.
        options: those that were searched.
        outcome: what it came to.
    """

    number: int
    options: dict[str, Any]
    outcome: Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The result of a search.

    Args:
        folder: where it is.
        trials: that have ended, by number.
        names: of the options that were searched.
        importances: how much of the variance of the loss each explains; empty of few trials.
        runs: the complete runs of the default and the best trial, by these names.
    """

    folder: Path
    trials: list[Trial]
    names: tuple[str, ...]
    importances: dict[str, float]
    runs: dict[str, RunResult]

    @property
    def complete(self) -> list[Trial]:
        """The trials with a loss, the lowest first; of equal ones the first."""
        return _ranked(self.trials)


def search(config: TrainConfig, folder: Path, asked: SearchOptions) -> SearchResult:
    """Try configurations, and train the default and the best one whole.

    Trials are compared by their calibrated validation loss; only the two whole runs look at the
    test split. What the folder holds of the same search is not made again.

    Args:
        config: the options of train, with the defaults of those that are searched.
        folder: where everything goes: `search.yaml`, the options; `search.db`, Optuna's; `trials/`;
            `trials.csv`; `best.yaml`, which `train -c` takes; and the runs `default` and `best`.
        asked: what is searched, for how long, and where it is run.

    Raises:
        UserError: if an option, the data or the network is not as it must be: nothing is written
            then. Or if the default cannot be trained, or a whole run fails.
    """
    check_run_config(config)
    space = find_space(config, asked)
    threads = open_folder(folder, config, asked)
    check_storage(asked.storage)
    started = time.monotonic()
    with room_for(config, asked.ray, asked.jobs) as room:
        limit = asked.trials or (None if asked.minutes is not None else DEFAULT_TRIALS)
        threads = threads or room.share(asked.jobs or limit or DEFAULT_TRIALS)
        at_once = max(1, min(asked.jobs or room.fitting(threads), limit or DEFAULT_TRIALS))
        share = room.cores_of_a_run(at_once, threads)
        first = dataclasses.replace(space.config, overwrite=False, resume=True)
        first = dataclasses.replace(first, num_workers=loaders_of(first, at_once, share))
        if at_once > 1:
            find_data(first)  # before processes are started, which takes a while
        mark, own = folder / SEARCH_FILE, [config.method]
        with ExitStack() as held, room.jobs(own, mark, workers=at_once, threads=threads) as makers:
            found = makers.prepare(first)
            for line in found.description:
                logger.info("%s", line)
            held.enter_context(lock_folder(folder))
            values = options_of(config, asked, threads)
            new = begin_several(folder, SEARCH_FILE, values, overwrite=config.overwrite)
            space = dataclasses.replace(space, config=first).with_taps(found.taps)
            study = Study(
                asked.storage, folder, space, seed=config.seed, identity=found.identity, new=new
            )
            end = None if asked.minutes is None else started + 60 * asked.minutes
            progress = _Progress(folder, space, study, limit=limit, end=end, at_once=at_once)
            try:
                work = functools.partial(try_out, prune=asked.pruner == "median")
                for run, reply in makers.work_on(progress.take, work):
                    progress.add(run, reply)
                runs = progress.whole_runs(workers=config.num_workers)
                left = iter(unfinished_runs(runs.values()))
                for run, reply in makers.work_on(lambda: next(left, None), make_whole):
                    _check_whole(run, reply)
            except KeyboardInterrupt as stop:
                but = " and without --overwrite" if config.overwrite else ""
                raise KeyboardInterrupt(
                    f"interrupted after {len(progress.trials)} trials: the same command with "
                    f"--out {folder}{but} goes on"
                ) from stop
    return SearchResult(
        folder=folder,
        trials=progress.trials,
        names=space.names,
        importances=study.importances(),
        runs={name: RunResult.load(run.out or "") for name, run in runs.items()},
    )


class _Progress:
    """The trials of a search: the next one, and those that have ended.

    Args:
        folder: of the search.
        space: what is searched.
        study: what has been tried.
        limit: number of trials, those in the folder included; None for no limit.
        end: no trial is new after that time of `time.monotonic()`; None for no limit.
        at_once: how many trials run at a time.
    """

    def __init__(
        self,
        folder: Path,
        space: Space,
        study: Study,
        *,
        limit: int | None,
        end: float | None,
        at_once: int,
    ) -> None:
        self._folder = folder
        self._space = space
        self._study = study
        self._limit = limit
        self._end = end
        self._at_once = at_once
        self.trials = self._ended()
        for trial in self.trials:
            clear(trial_folder(folder, trial.number))
        there = f", {len(self.trials)} of which are there" if self.trials else ""
        many = "as many as there is time for" if limit is None else f"{limit}"
        names = ", ".join(space.names)
        logger.info("folder   %s", folder)
        logger.info("search   %s; trials: %s%s; %d at a time", names, many, there, at_once)

    def take(self) -> TrainConfig | None:
        """Return the options of the next trial, if there is to be one."""
        while True:
            late = self._end is not None and time.monotonic() >= self._end
            enough = self._limit is not None and len(self._study.params) >= self._limit
            if (late or enough) and not self._study.waits:
                return None
            number, params = self._study.ask()
            folder = trial_folder(self._folder, number)
            outcome = Outcome.load(folder)
            if outcome is None:
                return self._space.configure(params, out=str(folder))
            self._study.tell(number, outcome)  # a kill came before it was told

    def add(self, run: TrainConfig, reply: Reply) -> None:
        """Record and log what a trial came to.

        Raises:
            UserError: if the first one, the default, has failed.
        """
        folder = Path(run.out or "")
        number, outcome = int(folder.name), Outcome.load(folder)
        if outcome is None:  # it could not even begin, or its process has died
            outcome = Outcome(state="failed", failure=message(UserError(reply.failure)))
            folder.mkdir(parents=True, exist_ok=True)
            outcome.save(folder)
        if number == 0 and outcome.state == "failed":
            shutil.rmtree(folder)  # so that the same command tries it again
            raise UserError(f"the first trial, the default, failed: {outcome.failure}")
        self._study.tell(number, outcome)
        self.trials = self._ended()
        own = next(trial for trial in self.trials if trial.number == number)
        options = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in own.options.items()
            if name != "steps"
        )
        told = outcome.words + (", best so far" if own in _ranked(self.trials)[:1] else "")
        count, rest = f"{len(self.trials)}", ""
        if self._limit is not None:
            left = self._limit - len(self.trials)
            mean = statistics.fmean(trial.outcome.seconds for trial in self.trials)
            rest = f"; about {mean * left / self._at_once / 60:.1f} minutes left" if left else ""
            count = f"{count}/{self._limit}"
        logger.info("%s trial %d (%s): %s%s", count, number, options, told, rest)

    def whole_runs(self, *, workers: int | None) -> dict[str, TrainConfig]:
        """Write the options of the best trial, and return those of the runs made in the end.

        Args:
            workers: that load images, in the file.
        """
        best, params = _ranked(self.trials)[0].number, self._study.params
        chosen = self._space.configure(params[best], out=None, resume=False, num_workers=workers)
        write_atomically(self._folder / BEST, chosen.to_yaml())
        numbers = dict(zip(SEARCH_RUNS, (0, best), strict=True))
        return {
            name: self._space.configure(params[number], out=str(self._folder / name))
            for name, number in numbers.items()
            if name == SEARCH_RUNS[1] or best != 0
        }

    def _ended(self) -> list[Trial]:
        """Return the trials that have ended, and write their table, `trials.csv`."""
        params, names = self._study.params, self._space.names
        trials = [
            Trial(number=number, options=self._space.options(params[number]), outcome=outcome)
            for number, outcome in outcomes(self._folder).items()
            if number in params
        ]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        metric = f"val_{trials[0].outcome.measure.name if trials else 'accuracy'}"
        columns = ("trial", "state", "val_calibrated_loss", metric, *names, "best_epoch", "seconds")
        writer.writerow([*columns, "failure"])
        for trial in trials:
            one = trial.outcome
            losses = ["" if math.isnan(value) else value for value in (one.loss, one.score)]
            options = [trial.options[name] for name in names]
            row = [trial.number, one.state, *losses, *options, one.best_epoch, one.seconds]
            writer.writerow([*row, one.failure])
        write_atomically(self._folder / "trials.csv", text.getvalue())
        return trials


def _ranked(trials: list[Trial]) -> list[Trial]:
    complete = [trial for trial in trials if trial.outcome.state == "complete"]
    return sorted(complete, key=lambda trial: (trial.outcome.loss, trial.number))


def _check_whole(run: TrainConfig, reply: Reply) -> None:
    """Log what a whole run came to.

    Raises:
        UserError: if it failed.
    """
    if reply.result is None:
        raise UserError(
            f"the whole run {run.out} failed: {message(UserError(reply.failure))}; the same "
            "command tries it again"
        )
    logger.info("whole run %s, %.0f s", run.out, reply.result.wall_time_s)
