"""The folder of a comparison: its options, the runs that it holds, and their table."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from delta_transfer.config.commands import parse_samples_per_class, parse_seeds
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
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
from delta_transfer.utils.files import write_atomically

Size = int | None

# Those of a run that are a comparison's lists, and those that change no figure.
_OWN = (
    "method",
    "seed",
    "samples_per_class",
    *(name for name in RESULT_NEUTRAL_OPTIONS if name != "device"),
)
_LISTS = ("methods", "seeds", "samples_per_class")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ComparisonPlan:
    """What is compared.

    Args:
        config: the options that all runs share.
        methods: their names.
        seeds: of the runs of each.
        sizes: training images of each class; None for all.
        num_threads: of each run; None for as many as suit the machine.
    """

    config: TrainConfig
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    sizes: tuple[Size, ...]
    num_threads: int | None

    def runs(self, folder: Path) -> list[TrainConfig]:
        """The options of each run, in the order of the table."""
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
        """As `compare -c` takes them; what changes no figure is not among them."""
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
    """Checks that a comparison may be written into a folder, or go on there.

    Args:
        folder: where it is to lie.
        plan: what is asked for.

    Returns:
        All that the folder will hold: what is asked for, and what it holds already.

    Raises:
        UserError: if the folder is in use for something else, or for a comparison with other
            options.
    """
    there, asked = open_several(folder, COMPARISON_FILE, plan.config), plan.options()
    if there is None:
        return plan
    if not all(isinstance(there.get(name, 0), str | None) for name in _LISTS):
        raise UserError(
            f"{folder / COMPARISON_FILE} does not hold the options of a comparison any more: give "
            "another --out"
        )
    if plan.num_threads is None:
        plan = dataclasses.replace(plan, num_threads=there.get("num_threads"))
        asked["num_threads"] = plan.num_threads
    check_options(
        {name: value for name, value in there.items() if name not in _LISTS},
        {name: value for name, value in asked.items() if name not in _LISTS},
        f"--out {folder} contains a comparison",
    )
    return dataclasses.replace(
        plan,
        methods=_join(tuple(there["methods"].split(",")), plan.methods),
        seeds=_join(parse_seeds(there["seeds"]), plan.seeds),
        sizes=_join(parse_samples_per_class(there["samples_per_class"]), plan.sizes),
    )


def initialize_folder(folder: Path, plan: ComparisonPlan) -> None:
    """Make the folder, empty if it is to be overwritten, and write down what it is to hold."""
    begin_several(folder, COMPARISON_FILE, plan.options(), overwrite=plan.config.overwrite)


def unfinished(runs: Sequence[TrainConfig]) -> list[TrainConfig]:
    """The runs that are still to be made.

    Raises:
        UserError: if what is left of one that was broken off lies beside something of the user's.
    """
    found = [run for run in runs if not _is_finished(run)]
    for folder in (Path(run.out or "") for run in found):
        strange = find_foreign_file(folder) if folder.is_dir() else None
        if strange is not None:
            raise UserError(
                f"{folder} holds something that is of no run ({strange}), and the run there is to "
                "be made again: move it away"
            )
    return found


def write_table(folder: Path, runs: Sequence[TrainConfig]) -> list[RunResult]:
    """Writes `results.csv`: a row for each run that is finished, from its own `result.json`.

    Returns:
        The figures of these runs.
    """
    results = [RunResult.load(run.out or "") for run in runs if _is_finished(run)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = comparison_columns(results[0].metric if results else ACCURACY)
    writer.writerow(columns)
    for result in results:
        values = [getattr(result, column) for column in columns[:-1]]
        row = ["" if value is None else value for value in values]
        writer.writerow([*row, result.folder.relative_to(folder).as_posix()])
    write_atomically(folder / "results.csv", text.getvalue())
    return results


def _size_subfolder(size: Size) -> str:
    return "" if size is None else f"{size}-per-class"


def _is_finished(run: TrainConfig) -> bool:
    return Path(run.out or "", "result.json").is_file()


def _join(first: tuple[Any, ...], second: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(dict.fromkeys([*first, *second]))
