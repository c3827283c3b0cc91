"""Several methods, seeds and sizes of the training set on the same data, and their table."""

import dataclasses
import logging
import statistics
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.experiments.comparison.folder import (
    ComparisonPlan,
    initialize_folder,
    open_folder,
    unfinished,
    write_table,
)
from delta_transfer.experiments.scheduling.placement import room_for
from delta_transfer.experiments.scheduling.worker import Reply
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.report.comparison.page import write_comparison_report
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
    """What a comparison has come to.

    Args:
        folder: where it lies.
        results: the figures of all finished runs in its folder.
        failures: the options of each run that failed now, and why it did.
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
    """Trains every method with every seed on every size; those of a seed and size see the same.

    What the folder holds of the same comparison already is not made again. The figures do not
    depend on how many runs are made at a time, nor on when it was broken off before.

    Args:
        config: the options, of which method, seed, samples_per_class and out are replaced.
        folder: where the runs go, `METHOD-seedN` or `K-per-class/METHOD-seedN`; `compare.yaml`, the
            options; `results.csv`, a row a run; and `report.html`.
        methods: names of methods.
        seeds: each draws splits, subsets, batch order, augmentation and head start.
        sizes: training images of each class; None for all.
        n_jobs: runs at a time; if None as many as there are GPUs, or as there are cores for their
            threads and `compare_places.MEMORY` for each.
        num_threads: of each run; if None those of before, or a fair share of the cores.
        ray: address of a Ray cluster that makes the runs (see docs/architecture.md); None for this
            machine.

    Returns:
        The figures of each run.

    Raises:
        UserError: if an option, the data or the network is not as it must be: nothing is written
            then.
    """
    asked = ComparisonPlan(
        config=config,
        methods=tuple(methods),
        seeds=tuple(seeds),
        sizes=tuple(sizes),
        num_threads=num_threads,
    )
    _check(asked, folder)
    whole = open_folder(folder, asked)
    left = asked.runs(folder) if config.overwrite else unfinished(asked.runs(folder))
    with room_for(config, ray if left else None, n_jobs) as room:
        if whole.num_threads is None:
            whole = dataclasses.replace(whole, num_threads=room.share(len(left)))
        assert whole.num_threads is not None
        at_once = max(1, min(n_jobs or room.fitting(whole.num_threads), len(left)))
        progress = _Progress(folder, whole, left, num_parallel=at_once)
        with ExitStack() as held, progress.closing():
            if not left:
                held.enter_context(lock_folder(folder))
                progress.start()
                return progress.outcome()
            share = room.cores_of_a_run(at_once, whole.num_threads)
            left = [
                dataclasses.replace(run, num_workers=loaders_of(run, at_once, share))
                for run in left
            ]
            # The largest size first: data that has too few images is found at once.
            largest = max(left, key=lambda run: run.samples_per_class or 0)
            if at_once > 1:
                find_data(largest)  # before processes are started, which takes a while
            mark = folder / COMPARISON_FILE
            with room.jobs(methods, mark, workers=at_once, threads=whole.num_threads) as makers:
                progress.log_new_lines(makers.prepare(largest).description)
                held.enter_context(lock_folder(folder))
                progress.start()
                for run, reply in makers.run(left):
                    progress.add(run, reply)
    return progress.outcome()


class _Progress:
    """How far a comparison is: its table, and what is said of it.

    Args:
        folder: of the comparison.
        plan: all that the folder will hold.
        left: the runs that are to be made.
        num_parallel: how many are made at a time.
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
        self._said: set[str] = set()

    def outcome(self) -> ComparisonResult:
        """What it has come to."""
        return ComparisonResult(folder=self._folder, results=self.results, failures=self.failures)

    def start(self) -> None:
        """From here on there is a folder, with what it holds already."""
        initialize_folder(self._folder, self._plan)
        self._begun = True
        self._update_table()
        logger.info("folder   %s", self._folder)
        for result in self.results:
            if not (result.folder / "report.html").is_file():  # broken off while it was written
                with lock_folder(result.folder):
                    write_run_report(result.folder)
        if self._total:
            there = f", {len(self.results)} are there already" if self.results else ""
            logger.info(
                "runs     %d to make%s; %d at a time, threads of each: %s",
                self._total,
                there,
                self._num_parallel,
                self._plan.num_threads,
            )

    def add(self, run: TrainConfig, reply: Reply) -> None:
        """Takes note of what came of a run, and says so with what remains."""
        self._left = [other for other in self._left if other.out != run.out]
        self.log_new_lines([line for line in reply.description if line.startswith("warning: ")])
        self._update_table()
        number, name = self._total - len(self._left), describe_run(run)
        if reply.result is None:
            reason = message(UserError(reply.failure))
            self.failures.append((run, reason))
            logger.warning("%d/%d %s failed: %s", number, self._total, name, reason)
            return
        measure, seconds = reply.result.metric, reply.result.wall_time_s
        tested = reply.result.metric_value("test")
        figure = measure.format(reply.result.metric_value("val") if tested is None else tested)
        logger.info(
            "%d/%d %s: %s, %.0f s%s", number, self._total, name, figure, seconds, self._rest()
        )

    def log_new_lines(self, lines: Sequence[str]) -> None:
        """Says of images and network what was not said before."""
        for line in lines:
            if line not in self._said:
                logger.info("%s", line)
        self._said.update(lines)

    @contextmanager
    def closing(self) -> Iterator[None]:
        """Inside the runs are made; however that ends, there is a report of what there is."""
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
                self._update_table()  # with runs that were not answered for yet
            if self.results:
                write_comparison_report(self._folder)

    def _resume_hint(self) -> str:
        but = " and without --overwrite" if self._plan.config.overwrite else ""
        return (
            f"{len(self._left)} of {self._total} runs are left: the same command with --out "
            f"{self._folder}{but} goes on with them"
        )

    def _update_table(self) -> None:
        self.results = write_table(self._folder, self._plan.runs(self._folder))

    def _rest(self) -> str:
        """About how long the runs that are left will take, by those of the same method."""
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
    """A run of a comparison by its method, size and seed."""
    size = run.samples_per_class
    return f"{run.method}{'' if size is None else f', {size} a class'}, seed {run.seed}"


def _check(plan: ComparisonPlan, folder: Path) -> None:
    """Checks what needs no data."""
    for name, values in (
        ("methods", plan.methods),
        ("seeds", plan.seeds),
        ("samples-per-class", plan.sizes),
    ):
        if not values or len(set(values)) < len(values):
            shown = ",".join(map(str, values))
            raise UserError(f"--{name} {shown!r}: give at least one, and each once")
    for method in plan.methods:
        check_run_config(dataclasses.replace(plan.config, method=method))
    plan.runs(folder)
    several = len(plan.seeds) > 1 or len(plan.sizes) > 1
    if Path(plan.config.attention).is_file() and several:
        raise UserError(
            f"--attention {plan.config.attention}: the file was made on the images of one seed; "
            "give one seed and one size, or let it be estimated (--attention refined)"
        )
