"""The folder of a comparison: its options, its runs, and their table."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delta_transfer.config.commands import parse_samples_per_class, parse_seeds
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import ConfigError
from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.run_result import RunResult, comparison_columns
from delta_transfer.runs.folder import (
    COMPARISON_FILE,
    RESULT_NEUTRAL_OPTIONS,
    begin_several,
    check_options,
    find_foreign_file,
    open_several,
)
from delta_transfer.utils.files import to_csv, write_atomically

Size = int | None

# Options of a run that are lists of the comparison, or that do not affect results.
_OWN = (
    "method",
    "seed",
    "samples_per_class",
    *(name for name in RESULT_NEUTRAL_OPTIONS if name != "device"),
)
_LISTS = ("methods", "seeds", "samples_per_class")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """The runs of a comparison.

    Args:
        config: the options that all runs share.
        methods: their names.
        seeds: of the runs of each.
        sizes: training images of each class; None for all.
        num_threads: of each run; None to choose by the machine.
    """

    config: TrainConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    sizes: tuple[Size, ...]
    num_threads: int | None

    def runs(self, folder: Path) -> list[TrainConfig]:
        """Return the options of each run, in the order of the table."""
        return [
            dataclasses.replace(
                self.config,
                method=method,
                seed=seed,
                samples_per_class=size,
                out=str(folder / _size_subfolder(size) / f"{method}-seed{seed}"),
                overwrite=False,
                resume=True,
            )
            for size in sorted(self.sizes, key=lambda size: (size is None, size))
            for seed in sorted(self.seeds)
            for method in self.methods
        ]

    def options(self) -> dict[str, Any]:
        """Return the options in the format of `compare -c`, without those that affect no result."""
        shared = dataclasses.asdict(self.config)
        sizes = ["all" if size is None else str(size) for size in self.sizes]
        return {
            "data": self.config.data,
            "methods": ",".join(self.methods),
            "seeds": ",".join(map(str, self.seeds)),
            "samples_per_class": None if self.sizes == (None,) else ",".join(sizes),
            "num_threads": self.num_threads,
            **{name: value for name, value in shared.items() if name not in _OWN},
        }


def open_folder(folder: Path, plan: ComparisonPlan) -> ComparisonPlan:
    """Check that a comparison may be written to a folder, or resumed there.

    Args:
        folder: of the comparison.
        plan: the requested runs.

    Returns:
        The requested runs, and those that the folder already contains.

    Raises:
        ConfigError: if the folder is in use for something else, or for a comparison with other
            options.
    """
    existing, requested = open_several(folder, COMPARISON_FILE, plan.config), plan.options()
    if existing is None:
        return plan
    if not all(isinstance(existing.get(name, 0), str | None) for name in _LISTS):
        raise ConfigError(
            f"{folder / COMPARISON_FILE} has no valid options of a comparison: use another `out`"
        )
    if plan.num_threads is None:
        plan = dataclasses.replace(plan, num_threads=existing.get("num_threads"))
        requested["num_threads"] = plan.num_threads
    check_options(
        {name: value for name, value in existing.items() if name not in _LISTS},
        {name: value for name, value in requested.items() if name not in _LISTS},
        f"`out={folder}` contains a comparison",
    )
    return dataclasses.replace(
        plan,
        methods=_join(tuple(existing["methods"].split(",")), plan.methods),
        seeds=_join(parse_seeds(existing["seeds"]), plan.seeds),
        sizes=_join(parse_samples_per_class(existing["samples_per_class"]), plan.sizes),
    )


def initialize_folder(folder: Path, plan: ComparisonPlan) -> None:
    """Create the folder, or empty it if it is to be overwritten, and write its options."""
    begin_several(folder, COMPARISON_FILE, plan.options(), overwrite=plan.config.overwrite)


def unfinished(runs: Sequence[TrainConfig]) -> list[TrainConfig]:
    """Return the runs that are not finished.

    Raises:
        ConfigError: if the folder of an interrupted run contains files of the user.
    """
    found = [run for run in runs if not _is_finished(run)]
    for folder in (Path(run.out or "") for run in found):
        foreign = find_foreign_file(folder) if folder.is_dir() else None
        if foreign is not None:
            raise ConfigError(
                f"{folder} contains a file that does not belong to a run ({foreign}): move it away"
            )
    return found


def write_table(folder: Path, runs: Sequence[TrainConfig]) -> list[RunResult]:
    """Write `results.csv`: a row for each finished run, from its `result.json`.

    Returns:
        The results of these runs.
    """
    results = [RunResult.load(run.out or "") for run in runs if _is_finished(run)]
    columns = comparison_columns(results[0].metric if results else ACCURACY)
    rows: list[Sequence[object]] = [columns]
    for result in results:
        path = result.folder.relative_to(folder).as_posix()
        rows.append([*(getattr(result, column) for column in columns[:-1]), path])
    write_atomically(folder / "results.csv", to_csv(rows))
    return results


def _size_subfolder(size: Size) -> str:
    return "" if size is None else f"{size}-per-class"


def _is_finished(run: TrainConfig) -> bool:
    return Path(run.out or "", "result.json").is_file()


def _join(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys([*first, *second]))
