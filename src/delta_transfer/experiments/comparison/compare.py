"""Compare methods over seeds and training set sizes, and write their table and report."""

import dataclasses
import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import ConfigError, UserError
from delta_transfer.experiments.comparison.folder import (
    ComparisonPlan,
    initialize_folder,
    open_folder,
    unfinished,
    write_table,
)
from delta_transfer.experiments.scheduling.placement import room_for
from delta_transfer.experiments.scheduling.worker import Reply
from delta_transfer.methods.registry import method_of
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.report.comparison.page import write_comparison_report
from delta_transfer.report.formatting import pluralize
from delta_transfer.report.run_page import write_run_report
from delta_transfer.runs.folder import COMPARISON_FILE
from delta_transfer.runs.preparation.task import find_data
from delta_transfer.runs.validation import check_run_config
from delta_transfer.training.loaders import loaders_of
from delta_transfer.utils.diagnostics import message
from delta_transfer.utils.locks import lock_folder

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonResult:
    """The outcome of a comparison.

    Args:
        folder: of the comparison.
        results: of all finished runs in its folder.
        failures: the options of each run that failed this time, and the reason.
    """

    folder: Path
    results: list[RunResult]
    failures: list[tuple[TrainConfig, str]]


def compare(
    config: TrainConfig,
    folder: Path,
    *,
    methods: Sequence[str],
    seeds: Sequence[int],
    sizes: Sequence[int | None] = (None,),
    n_jobs: int | None = None,
    num_threads: int | None = None,
    ray: str | None = None,
) -> ComparisonResult:
    """Train every method with every seed and training set size, on the same images.

    Finished runs in the folder are reused. Results do not depend on the number of parallel runs,
    or on interruptions.

    Args:
        config: the options, of which method, seed, samples_per_class and out are replaced.
        folder: of the runs, `METHOD-seedN` or `K-per-class/METHOD-seedN`; of the options,
            `compare.yaml`; of the table, `results.csv`; and of `report.html`.
        methods: names of methods.
        seeds: of splits, subsets, batch order, augmentation and head initialization.
        sizes: training images of each class; None for all.
        n_jobs: parallel runs; if None, one per GPU, or as many as cores and memory allow.
        num_threads: of each run; if None, those of the folder, or an equal share of the cores.
        ray: address of a Ray cluster; None for this machine.

    Returns:
        The results of each run.

    Raises:
        UserError: if an option, the data or the network cannot be used; nothing is written then.
    """
    requested = ComparisonPlan(
        config=config,
        methods=tuple(methods),
        seeds=tuple(seeds),
        sizes=tuple(sizes),
        num_threads=num_threads,
    )
    _check(requested, folder)
    plan = open_folder(folder, requested)
    _check_distinct(plan)
    left = requested.runs(folder) if config.overwrite else unfinished(requested.runs(folder))
    with room_for(config, ray if left else None, n_jobs) as room:
        if plan.num_threads is None:
            plan = dataclasses.replace(plan, num_threads=room.share(len(left)))
        assert plan.num_threads is not None
        at_once = max(1, min(n_jobs or room.fitting(plan.num_threads), len(left)))
        progress = _Progress(folder, plan, left, num_parallel=at_once)
        with ExitStack() as held, progress.closing():
            if not left:
                held.enter_context(lock_folder(folder))
                progress.start()
                return progress.outcome()
            share = room.cores_of_a_run(at_once, plan.num_threads)
            left = [
                dataclasses.replace(run, num_workers=loaders_of(run, at_once, share))
                for run in left
            ]
            # The largest size first, which fails at once if the data has too few images.
            largest = max(left, key=lambda run: run.samples_per_class or 0)
            if at_once > 1:
                find_data(largest)  # fail before the slow start of processes
            mark = folder / COMPARISON_FILE
            with room.jobs(methods, mark, workers=at_once, threads=plan.num_threads) as makers:
                progress.log_new_lines(makers.prepare(largest).description)
                held.enter_context(lock_folder(folder))
                progress.start()
                for run, reply in makers.run(left):
                    progress.add(run, reply)
    return progress.outcome()


class _Progress:
    """The progress of a comparison: its table, log messages and report.

    Args:
        folder: of the comparison.
        plan: all runs of the folder.
        left: the remaining runs.
        num_parallel: number of parallel runs.
    """

    def __init__(
        self, folder: Path, plan: ComparisonPlan, left: Sequence[TrainConfig], *, num_parallel: int
    ) -> None:
        self.results: list[RunResult] = []
        self.failures: list[tuple[TrainConfig, str]] = []
        self._folder = folder
        self._plan = plan
        self._left = list(left)
        self._total = len(left)
        self._num_parallel = num_parallel
        self._begun = False
        self._logged: set[str] = set()

    def outcome(self) -> ComparisonResult:
        """Return the outcome so far."""
        return ComparisonResult(folder=self._folder, results=self.results, failures=self.failures)

    def start(self) -> None:
        """Create the folder, and log what it already contains."""
        initialize_folder(self._folder, self._plan)
        self._begun = True
        self._update_table()
        logger.info("folder   %s", self._folder)
        for result in self.results:
            if not (result.folder / "report.html").is_file():  # interrupted while writing it
                with lock_folder(result.folder):
                    write_run_report(result.folder)
        if self._total:
            done = f", {len(self.results)} finished already" if self.results else ""
            logger.info(
                "runs     %d to train%s; %d in parallel, %s each",
                self._total,
                done,
                self._num_parallel,
                pluralize(self._plan.num_threads or 1, "thread"),
            )

    def add(self, run: TrainConfig, reply: Reply) -> None:
        """Record and log the outcome of a run, with the estimated remaining time."""
        self._left = [other for other in self._left if other.out != run.out]
        self.log_new_lines([line for line in reply.description if line.startswith("warning: ")])
        self._update_table()
        number, name = self._total - len(self._left), describe_run(run)
        if reply.result is None:
            reason = message(UserError(reply.failure))
            self.failures.append((run, reason))
            logger.warning("%d/%d %s failed: %s", number, self._total, name, reason)
            return
        result = reply.result
        test = result.metric_value("test")
        score = result.metric.format(result.metric_value("val") if test is None else test)
        seconds = result.wall_time_s
        logger.info(
            "%d/%d %s: %s, %.0f s%s", number, self._total, name, score, seconds, self._rest()
        )

    def log_new_lines(self, lines: Sequence[str]) -> None:
        """Log lines about data and network that were not logged before."""
        for line in lines:
            if line not in self._logged:
                logger.info("%s", line)
        self._logged.update(lines)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Write a report at the end of the block, even if it fails or is interrupted."""
        try:
            yield
        except KeyboardInterrupt as stop:
            if not self._begun:
                raise
            raise KeyboardInterrupt(f"interrupted, {self._resume_hint()}") from stop
        except Exception:
            if self._begun and self._left:
                logger.warning("%s", self._resume_hint())
            raise
        finally:
            if self._begun:
                self._update_table()  # including runs without a reply
            if self.results:
                write_comparison_report(self._folder)

    def _resume_hint(self) -> str:
        but = " and without `overwrite`" if self._plan.config.overwrite else ""
        return (
            f"{len(self._left)} of {pluralize(self._total, 'run')} left: to resume, rerun the "
            f"command with `out={self._folder}`{but}"
        )

    def _update_table(self) -> None:
        self.results = write_table(self._folder, self._plan.runs(self._folder))

    def _rest(self) -> str:
        """Estimate the remaining time from finished runs of the same methods."""
        if not self._left:
            return ""
        seconds = sum(map(self._expected, self._left)) / min(self._num_parallel, len(self._left))
        if seconds < 100:
            return f"; about {seconds:.0f} s left"
        if seconds < 6000:
            return f"; about {seconds / 60:.0f} minutes left"
        return f"; about {seconds / 3600:.1f} hours left"

    def _expected(self, run: TrainConfig) -> float:
        own = [result.wall_time_s for result in self.results if result.method == run.method]
        return statistics.fmean(own or [result.wall_time_s for result in self.results])


def describe_run(run: TrainConfig) -> str:
    """Describe a run of a comparison by its method, size and seed."""
    size = run.samples_per_class
    return f"{run.method}{'' if size is None else f', {size} per class'}, seed {run.seed}"


def _check(plan: ComparisonPlan, folder: Path) -> None:
    """Check what does not require data."""
    for name, values in (
        ("methods", plan.methods),
        ("seeds", plan.seeds),
        ("samples_per_class", plan.sizes),
    ):
        if not values or len(set(values)) < len(values):
            shown = ",".join(map(str, values))
            raise ConfigError(f"`{name}={shown}`: use at least one, and each once")
    for name in plan.methods:
        check_run_config(dataclasses.replace(plan.config, method=name))
    plan.runs(folder)
    several = len(plan.seeds) > 1 or len(plan.sizes) > 1
    if Path(plan.config.attention).is_file() and several:
        raise ConfigError(
            f"`attention={plan.config.attention}`: the file belongs to one seed and size; use a "
            "single seed and size, or `attention=refined`"
        )


def _check_distinct(plan: ComparisonPlan) -> None:
    """Check that no two methods, including those of earlier calls, are the same with the options.

    Raises:
        ConfigError: if two are.
    """
    resolved: dict[str, str] = {}
    for name in plan.methods:
        method = method_of(dataclasses.replace(plan.config, method=name))
        same = resolved.setdefault(method.name, name)
        if same != name:
            raise ConfigError(
                f"`attention={plan.config.attention}`: `methods={same},{name}` are the same then; "
                "leave one of them out"
            )
