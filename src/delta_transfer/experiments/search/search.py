"""Search strength, learning rate, epochs and taps, and train the best configuration completely."""

import dataclasses
import functools
import logging
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from delta_transfer.config.search import DEFAULT_TRIALS, SearchOptions
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import ModelError, UserError
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
from delta_transfer.report.formatting import pluralize
from delta_transfer.runs.folder import SEARCH_FILE, SEARCH_RUNS, begin_several
from delta_transfer.runs.preparation.task import find_data
from delta_transfer.runs.validation import check_run_config
from delta_transfer.training.loaders import loaders_of
from delta_transfer.utils.diagnostics import message
from delta_transfer.utils.files import to_csv, write_atomically
from delta_transfer.utils.locks import lock_folder

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Trial:
    """A finished trial.

    Args:
        number: its number; 0 is the default configuration.
        options: the searched options.
        outcome: of the trial.
    """

    number: int
    options: dict[str, Any]
    outcome: Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class SearchResult:
    """The result of a search.

    Args:
        folder: of the search.
        trials: the finished trials, by number.
        names: of the searched options.
        importances: fraction of the variance of the loss that each explains; empty for few trials.
        runs: the complete runs of the default and the best trial, by these names.
    """

    folder: Path
    trials: list[Trial]
    names: tuple[str, ...]
    importances: dict[str, float]
    runs: dict[str, RunResult]

    @property
    def complete(self) -> list[Trial]:
        """The trials with a loss, sorted by loss and number."""
        return _ranked(self.trials)


def search(config: TrainConfig, folder: Path, asked: SearchOptions) -> SearchResult:
    """Try configurations, and train the default and the best one completely.

    Trials are compared by their temperature-scaled validation loss; only the two complete runs use
    the test split. Finished trials in the folder are reused.

    Args:
        config: the options of train, with the defaults of those that are searched.
        folder: of `search.yaml`, the options; `search.db`, Optuna's; `trials/`; `trials.csv`;
            `best.yaml`, for `train -c`; and the runs `default` and `best`.
        asked: the options of the search.

    Raises:
        UserError: if an option, the data or the network cannot be used; nothing is written then.
            Or if the default cannot be trained, or a complete run fails.
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
            find_data(first)  # fail before the slow start of processes
        mark, own = folder / SEARCH_FILE, [config.method]
        with ExitStack() as held, room.jobs(own, mark, workers=at_once, threads=threads) as makers:
            found = makers.prepare(first)
            for line in found.description:
                logger.info("%s", line)
            held.enter_context(lock_folder(folder))
            values = options_of(config, asked, threads)
            new = begin_several(folder, SEARCH_FILE, values, overwrite=config.overwrite)
            space = dataclasses.replace(space, config=first)
            space = space.with_data(taps=found.taps, epochs=found.epochs)
            study = Study(
                asked.storage,
                folder,
                space,
                seed=config.seed,
                fingerprint=found.fingerprint,
                new=new,
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
                but = " and without `overwrite`" if config.overwrite else ""
                count = pluralize(len(progress.trials), "trial")
                raise KeyboardInterrupt(
                    f"interrupted after {count}: to resume, rerun the command with "
                    f"`out={folder}`{but}"
                ) from stop
    return SearchResult(
        folder=folder,
        trials=progress.trials,
        names=space.names,
        importances=study.importances(),
        runs={name: RunResult.load(run.out or "") for name, run in runs.items()},
    )


class _Progress:
    """The trials of a search: the next one, and the finished ones.

    Args:
        folder: of the search.
        space: the search space.
        study: of Optuna.
        limit: number of trials, including those in the folder; None for no limit.
        end: `time.monotonic()` after which no new trial starts; None for no limit.
        at_once: number of parallel trials.
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
        done = f", {len(self.trials)} finished already" if self.trials else ""
        count = "until the time is up" if limit is None else f"{limit}"
        names = ", ".join(space.names)
        logger.info("folder   %s", folder)
        logger.info("search   %s; trials: %s%s; %d in parallel", names, count, done, at_once)

    def take(self) -> TrainConfig | None:
        """Return the options of the next trial, or None if there is none."""
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
            self._study.tell(number, outcome)  # the search was killed before it did so

    def add(self, run: TrainConfig, reply: Reply) -> None:
        """Record and log the outcome of a trial.

        Raises:
            ModelError: if the first one, the default, has failed.
        """
        folder = Path(run.out or "")
        number, outcome = int(folder.name), Outcome.load(folder)
        if outcome is None:  # it could not start, or its process died
            outcome = Outcome(state="failed", failure=message(UserError(reply.failure)))
            folder.mkdir(parents=True, exist_ok=True)
            outcome.save(folder)
        if number == 0 and outcome.state == "failed":
            shutil.rmtree(folder)  # so that a rerun tries it again
            raise ModelError(f"the first trial, the default, failed: {outcome.failure}")
        self._study.tell(number, outcome)
        self.trials = self._ended()
        own = next(trial for trial in self.trials if trial.number == number)
        options = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in own.options.items()
            if name != "steps"
        )
        text = outcome.summary + (", best so far" if own in _ranked(self.trials)[:1] else "")
        count, rest = f"{len(self.trials)}", ""
        if self._limit is not None:
            left = self._limit - len(self.trials)
            mean = statistics.fmean(trial.outcome.wall_time_s for trial in self.trials)
            rest = f"; about {mean * left / self._at_once / 60:.1f} minutes left" if left else ""
            count = f"{count}/{self._limit}"
        logger.info("%s trial %d (%s): %s%s", count, number, options, text, rest)

    def whole_runs(self, *, workers: int | None) -> dict[str, TrainConfig]:
        """Write the options of the best trial, and return those of the final runs.

        Args:
            workers: that load images, for the file.
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
        """Return the finished trials, and write their table, `trials.csv`."""
        params, names = self._study.params, self._space.names
        trials = [
            Trial(number=number, options=self._space.options(params[number]), outcome=outcome)
            for number, outcome in outcomes(self._folder).items()
            if number in params
        ]
        metric = f"val_{trials[0].outcome.metric.name if trials else 'accuracy'}"
        columns = ("trial", "state", "val_calibrated_loss", metric, *names)
        rows: list[Sequence[object]] = [(*columns, "wall_time_s", "failure")]
        for trial in trials:
            one = trial.outcome
            losses = ["" if math.isnan(value) else value for value in (one.loss, one.score)]
            options = [trial.options[name] for name in names]
            row = [trial.number, one.state, *losses, *options, one.wall_time_s]
            rows.append([*row, one.failure])
        write_atomically(self._folder / "trials.csv", to_csv(rows))
        return trials


def _ranked(trials: list[Trial]) -> list[Trial]:
    complete = [trial for trial in trials if trial.outcome.state == "complete"]
    return sorted(complete, key=lambda trial: (trial.outcome.loss, trial.number))


def _check_whole(run: TrainConfig, reply: Reply) -> None:
    """Log the outcome of a complete run.

    Raises:
        ModelError: if it failed.
    """
    if reply.result is None:
        raise ModelError(
            f"the complete run {run.out} failed: {message(UserError(reply.failure))}; rerun the "
            "command to try it again"
        )
    logger.info("complete run %s, %.0f s", run.out, reply.result.wall_time_s)
