"""A search over strength, learning rate, epochs and taps: many trials, and the best one whole."""

import dataclasses
import logging
import shutil
import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    begin,
    clear,
    open_folder,
    options_of,
    outcomes,
    trial_folder,
    unfinished_runs,
    write_table,
)
from delta_transfer.experiments.search.space import Space, find_space
from delta_transfer.experiments.search.study import Study, check_storage
from delta_transfer.experiments.search.trial import make_whole, try_out, try_whole
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.runs.folder import SEARCH_FILE, SEARCH_RUNS
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
        outcome: what came of it.
    """

    number: int
    options: dict[str, Any]
    outcome: Outcome


@dataclasses.dataclass(frozen=True, kw_only=True)
class Searched:
    """What a search has come to.

    Args:
        folder: where it lies.
        trials: that have ended, in the order of their numbers.
        names: of the options that were searched.
        importances: how much of what varied in the loss each accounts for; empty of few trials.
        runs: the whole runs of the default and the best trial, by these names.
    """

    folder: Path
    trials: list[Trial]
    names: tuple[str, ...]
    importances: dict[str, float]
    runs: dict[str, RunResult]

    @property
    def complete(self) -> list[Trial]:
        """Those with a loss, the lowest first; of equal ones the first."""
        found = [trial for trial in self.trials if trial.outcome.state == "complete"]
        return sorted(found, key=lambda trial: (trial.outcome.loss, trial.number))


def search(config: TrainConfig, folder: Path, asked: SearchOptions) -> Searched:
    """Tries configurations, and trains the default and the best one whole.

    Trials are compared by their calibrated validation loss; the test split is looked at by the two
    whole runs alone. What the folder holds of the same search already is not made again.

    Args:
        config: the options of train, with the defaults of those that are searched.
        folder: where everything goes: `search.yaml`, the options; `search.db`, Optuna's; `trials/`;
            `trials.csv`; `best.yaml`, which `train -c` takes; and the runs `default` and `best`.
        asked: what is searched, for how long, and by whom it is made.

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
            new = begin(folder, values, overwrite=config.overwrite)
            space = dataclasses.replace(space, config=first).with_taps(found.taps)
            study = Study(
                asked.storage, folder, space, seed=config.seed, identity=found.identity, new=new
            )
            end = None if asked.minutes is None else started + 60 * asked.minutes
            progress = _Progress(folder, config, space, study, limit=limit, end=end)
            with progress.closing():
                progress.begin(at_once)
                work = try_out if asked.pruner == "median" else try_whole
                for run, reply in makers.work_on(progress.take, work):
                    progress.add(run, reply)
                runs = progress.whole_runs()
                left = iter(unfinished_runs(runs.values()))
                for run, reply in makers.work_on(lambda: next(left, None), make_whole):
                    _check_whole(run, reply)
    return Searched(
        folder=folder,
        trials=progress.trials,
        names=space.names,
        importances=study.importances(),
        runs={name: RunResult.load(run.out or "") for name, run in runs.items()},
    )


class _Progress:
    """How far a search is: what is tried next, and what is said of what has been.

    Args:
        folder: of the search.
        config: what was asked for.
        space: what is searched.
        study: what has been tried.
        limit: trials to be made, those in the folder included; None for no such limit.
        end: no trial is new after that time of `time.monotonic()`; None for no such limit.
    """

    def __init__(
        self,
        folder: Path,
        config: TrainConfig,
        space: Space,
        study: Study,
        *,
        limit: int | None,
        end: float | None,
    ) -> None:
        self.trials: list[Trial] = []
        self._folder = folder
        self._config = config
        self._space = space
        self._study = study
        self._limit = limit
        self._end = end
        self._at_once = 1
        self._left: list[tuple[int, dict[str, Any]]] = []

    def begin(self, at_once: int) -> None:
        """Takes up what the folder has: of a trial that ended, the study may not know yet.

        Args:
            at_once: how many trials are made at a time.
        """
        self._at_once = at_once
        known = outcomes(self._folder)
        for number, params in self._study.begun():
            if number in known:
                self._study.tell(number, known[number])
            else:
                self._left.append((number, params))
        for number in known:
            clear(trial_folder(self._folder, number))
        self._count()
        logger.info("folder   %s", self._folder)
        there = f", {len(self.trials)} of which are there" if self.trials else ""
        many = "as many as there is time for" if self._limit is None else f"{self._limit}"
        logger.info(
            "search   %s; trials: %s%s; %d at a time",
            ", ".join(self._space.names),
            many,
            there,
            at_once,
        )

    def take(self) -> TrainConfig | None:
        """The options of the next trial, if there is to be one."""
        begun = len(self._study.params)
        late = self._end is not None and time.monotonic() >= self._end and begun > 0
        if self._left:
            number, params = self._left.pop(0)
        elif late or (self._limit is not None and begun >= self._limit):
            return None
        else:
            number, params = self._study.ask()
        return self._space.configure(params, out=str(trial_folder(self._folder, number)))

    def add(self, run: TrainConfig, reply: Reply) -> None:
        """Takes note of what came of a trial, and says so.

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
        self._count()
        best = min(self._complete(), default=None)
        told = outcome.words + (", best so far" if best and best[1] == number else "")
        options = ", ".join(
            f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
            for name, value in self._space.options(self._study.params[number]).items()
            if name != "steps"
        )
        count = f"{len(self.trials)}" + ("" if self._limit is None else f"/{self._limit}")
        logger.info("%s trial %d (%s): %s%s", count, number, options, told, self._rest())

    def whole_runs(self) -> dict[str, TrainConfig]:
        """The options of the runs that are made in the end; writes those of the best trial."""
        (_, best), params = min(self._complete()), self._study.params
        numbers = dict(zip(SEARCH_RUNS, (0, best), strict=True))
        if best == 0:
            del numbers[SEARCH_RUNS[0]]
        own = {"out": None, "resume": False, "num_workers": self._config.num_workers}
        chosen = self._space.configure(params[best], **own)
        write_atomically(self._folder / BEST, chosen.to_yaml())
        return {
            name: self._space.configure(params[number], out=str(self._folder / name))
            for name, number in numbers.items()
        }

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Inside trials are made."""
        try:
            yield
        except KeyboardInterrupt as stop:
            but = " and without --overwrite" if self._config.overwrite else ""
            raise KeyboardInterrupt(
                f"interrupted after {len(self.trials)} trials: the same command with --out "
                f"{self._folder}{but} goes on"
            ) from stop

    def _count(self) -> None:
        known, params = outcomes(self._folder), self._study.params
        self.trials = [
            Trial(number=number, options=self._space.options(params[number]), outcome=outcome)
            for number, outcome in known.items()
            if number in params
        ]
        rows = [(trial.number, trial.options, trial.outcome) for trial in self.trials]
        write_table(self._folder, rows, self._space.names)

    def _complete(self) -> list[tuple[float, int]]:
        """Loss and number of each trial that has a loss; of equal ones the first is the best."""
        trials = [trial for trial in self.trials if trial.outcome.state == "complete"]
        return [(trial.outcome.loss, trial.number) for trial in trials]

    def _rest(self) -> str:
        """About how long the trials that are left will take, if those until now tell."""
        if self._limit is None:
            return ""
        mean = statistics.fmean(trial.outcome.seconds for trial in self.trials)
        minutes = mean * (self._limit - len(self.trials)) / self._at_once / 60
        return f"; about {minutes:.1f} minutes left" if minutes else ""


def _check_whole(run: TrainConfig, reply: Reply) -> None:
    """Says what came of a whole run.

    Raises:
        UserError: if it failed.
    """
    if reply.result is None:
        raise UserError(
            f"the whole run {run.out} failed: {message(UserError(reply.failure))}; the same "
            "command tries it again"
        )
    logger.info("whole run %s, %.0f s", run.out, reply.result.wall_time_s)
