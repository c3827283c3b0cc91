"""Accuracy of the methods on small sets of images: a table for each size and set, and their mean.

    python benchmarks/accuracy.py --write docs/results.md
    python benchmarks/accuracy.py --sets skimage/patches --methods probe,l2,delta --seeds 0,1,2

Rerunning the same command resumes.
"""

import argparse
import dataclasses
import logging
import platform
import re
import shlex
import statistics
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from delta_transfer.config.commands import parse_samples_per_class, parse_seeds
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.registry import load_data
from delta_transfer.experiments.comparison.compare import compare, describe_run
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.metrics.statistics import Summary
from delta_transfer.report.comparison.runs import Comparison, read_comparison, summarize_methods
from delta_transfer.utils.devices import cpu_count, find_device

SHARED = {"dtd10": "images/dtd10", "cifar10_small": "images/cifar10_small"}
SETS = (*SHARED, "skimage/patches", "sklearn/digits")
MEAN = "Mean over the sets"


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    comparisons, notes = {}, []
    for name in options.sets.split(","):
        data = str(options.shared / SHARED[name]) if name in SHARED else name
        if name in SHARED and not Path(data).is_dir():
            notes.append(f"{name} is left out: there is no folder {data}.")
            continue
        sizes, missing = sizes_of(data, parse_samples_per_class(options.samples_per_class))
        notes += [f"{name} {text}" for text in missing]
        folder = options.out / name.replace("/", "-")
        logging.info("=== %s", name)
        config = TrainOptions(
            data=data,
            model=options.model,
            image_size=options.image_size,
            epochs=options.epochs,
            device=options.device,
        ).resolve()
        seeds = parse_seeds(options.seeds)
        comparisons[name], failed = make(options, config, folder, seeds=seeds, sizes=sizes)
        notes += [f"{name}, {text}." for text in failed]
    tables = "\n".join(write_tables(comparisons))
    print(tables)
    if options.write:
        head = [*describe_setting(options, comparisons), *(f"- {note}" for note in notes)]
        options.write.write_text("\n".join(["# Results", "", *head, "", tables]))


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument(
        "--shared",
        type=Path,
        default=Path("data"),
        help=f"a folder with {' and '.join(SHARED.values())}",
    )
    parser.add_argument("--samples-per-class", default="5,10,20,all")
    parser.add_argument("--model", default=TrainConfig.model)
    parser.add_argument("--image-size", type=int, default=96)
    add_options(parser, methods=",".join(METHODS), seeds="0,1,2,3,4", out="runs/accuracy")
    parser.add_argument("--write", type=Path, help="write the tables to this file, as Markdown")
    return parser.parse_args()


def add_options(parser: argparse.ArgumentParser, *, methods: str, seeds: str, out: str) -> None:
    """Those that all measurements of methods have."""
    parser.add_argument("--methods", default=methods)
    parser.add_argument("--seeds", default=seeds)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--jobs", type=int, help="runs at a time")
    parser.add_argument("--out", type=Path, default=Path(out), help="the runs")


def make(
    options: argparse.Namespace,
    config: TrainConfig,
    folder: Path,
    *,
    seeds: Sequence[int],
    sizes: Sequence[int | None] = (None,),
) -> tuple[Comparison, list[str]]:
    """The comparison in a folder, made or resumed, and which of its runs failed now, and why."""
    compared = compare(
        config,
        folder,
        methods=options.methods.split(","),
        seeds=seeds,
        sizes=sizes,
        n_jobs=options.jobs,
    )
    failed = [f"{describe_run(run)} failed: {why}" for run, why in compared.failures]
    return read_comparison(folder), failed


def published(figures: Mapping[str, object], of: str) -> str:
    """A row of a published table, in a line."""
    row = ", ".join(f"{name} {figure}" for name, figure in figures.items())
    return f"Published ({of}): {row}.\n"


def sizes_of(data: str, wanted: Sequence[int | None]) -> tuple[list[int | None], list[str]]:
    """The sizes that a set can give, and what is to be said of the others."""
    least = min(Counter(load_data(data, seed=0).train.labels).values())
    missing = [size for size in wanted if size is not None and size > least]
    return [size for size in wanted if size not in missing], [
        f"has no {size} training images in each class, at most {least}." for size in missing
    ]


def write_tables(comparisons: dict[str, Comparison]) -> Iterator[str]:
    """A table for each size and set; for sizes that several sets have, one of their mean."""
    sizes = {size for comparison in comparisons.values() for size in comparison.sizes}
    for size in sorted(sizes, key=lambda size: (size is None, size)):
        there = {
            name: comparison.with_size(size)
            for name, comparison in comparisons.items()
            if size in comparison.sizes
        }
        yield f"## {'All' if size is None else size} training images a class\n"
        for name, comparison in there.items():
            yield from write_table(name, comparison)
        if len(there) > 1:
            yield from write_table(f"{MEAN} ({', '.join(there)})", average([*there.values()]))


def write_table(title: str, comparison: Comparison) -> Iterator[str]:
    seeds = len(comparison.seeds)
    yield f"### {title}\n"
    split, measure = comparison.split.capitalize(), comparison.metric
    yield f"{split} {measure.heading}, {seeds} seeds.\n"
    yield "| method | mean | std | vs l2 | vs probe | seconds | MiB |"
    yield "|---|--:|--:|--:|--:|--:|--:|"
    for row in summarize_methods(comparison):
        cells = (
            row.method + ("" if row.score.count == seeds else f" ({row.score.count} seeds)"),
            f"{100 * row.score.mean:.1f}",
            f"{100 * row.score.std:.1f}" if row.score.count > 1 else "",
            difference(row.vs_baseline),
            difference(row.vs_probe),
            f"{row.wall_time_s:.0f}",
            f"{row.peak_memory_mib:.0f}",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def difference(found: Summary | None) -> str:
    """A paired difference with its 95% interval."""
    if found is None:
        return ""
    interval = (
        f" ({100 * found.ci_low:+.1f} to {100 * found.ci_high:+.1f})" if found.count > 1 else ""
    )
    return f"{100 * found.mean:+.1f}{interval}"


def average(comparisons: Sequence[Comparison]) -> Comparison:
    """The mean over sets of each method and seed that all of them have, as a comparison."""
    found = [{(e.method, e.seed): e for e in comparison.entries} for comparison in comparisons]
    entries = []
    for key, first in found[0].items():
        if all(key in entries_of for entries_of in found):
            own = [entries_of[key] for entries_of in found]
            means = {
                name: statistics.fmean(getattr(entry, name) for entry in own)
                for name in ("score", "probe", "wall_time_s", "peak_memory_mib")
            }
            entries.append(dataclasses.replace(first, **means))
    return dataclasses.replace(comparisons[0], entries=tuple(entries))


def describe_setting(
    options: argparse.Namespace, comparisons: dict[str, Comparison]
) -> Iterator[str]:
    """When, with what and on what it was measured, and how to read it."""
    first = next(iter(comparisons.values()))
    versions = RunResult.load(first.folder / first.entries[0].folder).versions
    threads = re.search(r"^num_threads: (\d+)", (first.folder / "compare.yaml").read_text(), re.M)
    yield f"Measured on {time.strftime('%Y-%m-%d')} by `{shlex.join(['python', *sys.argv])}`.\n"
    yield f"- {', '.join(f'{name} {version}' for name, version in versions.items())}"
    yield f"- {machine(options.device)}; CPU threads of each run: {threads and threads[1]}"
    yield f"- model {options.model}, images of {options.image_size} pixels"
    yield (
        "- differences are paired by seed, with 95% intervals; seconds and memory (the most at a "
        "time) are means of a run, where several ran at a time"
    )


def machine(device: str) -> str:
    """Cores, and the names of CPU and GPU."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.*)", info.read_text()) if info.is_file() else None
    name = found[1] if found else platform.processor() or platform.machine()
    gpu = find_device(device).type == "cuda"
    return f"{cpu_count()} cores ({name})" + (f", {torch.cuda.get_device_name()}" if gpu else "")


if __name__ == "__main__":
    main()
