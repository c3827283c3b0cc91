"""The commands `compare` and `demo`: from their options to the tables that they show."""

import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from delta_transfer.config.commands import CompareOptions, DemoOptions, apart, seed_list, size_list
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.experiments.comparison.compare import Compared, compare, describe
from delta_transfer.report.comparison.runs import MethodSummary, read_comparison, summarize_methods
from delta_transfer.runs.folder import data_name, free_folder, time_stamp

logger = logging.getLogger(__name__)

DEMO_METHODS = ("probe", "l2", "l2sp", "delta")
DEMO_IMAGE_SIZE = 64  # of cells of 40 pixels


def run(parsed: Any) -> Compared:
    """Makes the comparison.

    Args:
        parsed: options as `options.with_train(CompareOptions, ...)` has them.

    Raises:
        UserError: if an option, the data or the network is not as it must be.
    """
    options, values = apart(parsed, CompareOptions)
    config = TrainConfig(**values, overwrite=options.overwrite)
    return compare(
        config,
        _folder(options.out, otherwise=f"compare-{data_name(config.data)}"),
        methods=[method.strip() for method in options.methods.split(",")],
        seeds=seed_list(options.seeds),
        sizes=size_list(options.samples_per_class),
        jobs=options.jobs,
        threads=options.threads,
        ray=options.ray,
    )


def demo(options: DemoOptions) -> Compared:
    """Makes the comparison that is the demo.

    Raises:
        UserError: if an option is not as it must be.
    """
    config = TrainConfig(
        data="skimage/patches",
        image_size=DEMO_IMAGE_SIZE,
        epochs=options.epochs,
        overwrite=options.overwrite,
        device=options.device,
    )
    seeds, folder = seed_list(options.seeds), _folder(options.out, otherwise="demo")
    logger.info("17 photographs and textures cut into cells; 5 training pictures a class")
    return compare(config, folder, methods=DEMO_METHODS, seeds=seeds)


def _folder(out: str | None, *, otherwise: str) -> Path:
    """What was asked for, or runs/NAME-TIME."""
    return Path(out).expanduser() if out else free_folder(f"{otherwise}-{time_stamp()}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table:
    """What is shown of a size of the training set.

    Args:
        title: the figure, the number of seeds and the size.
        methods: a summary of each.
        failed: how many runs of a method failed, where some did.
    """

    title: str
    methods: list[MethodSummary]
    failed: dict[str, int]


def tables(compared: Compared) -> Iterator[Table]:
    """A table for each size of the training set, the smallest first."""
    runs = read_comparison(compared.folder)
    for size in runs.sizes:
        here = runs.at(size)
        seeds = f"{len(here.seeds)} seed{'' if len(here.seeds) == 1 else 's'}"
        samples = "" if size is None else f", {size} training {runs.noun}s a class"
        yield Table(
            title=f"{runs.split.capitalize()} {runs.measure.heading}, {seeds}{samples}",
            methods=summarize_methods(here),
            failed=Counter(
                run.method for run, _ in compared.failures if run.samples_per_class == size
            ),
        )


def check_failures(compared: Compared) -> None:
    """Names the runs that failed.

    Raises:
        UserError: if there is one.
    """
    if compared.failures:
        told = "; ".join(f"{describe(run)}: {reason}" for run, reason in compared.failures)
        raise UserError(
            f"{len(compared.failures)} of the runs failed, which the same command with --out "
            f"{compared.folder} tries again: {told}"
        )
