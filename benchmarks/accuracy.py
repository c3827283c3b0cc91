"""Accuracy of the methods on sets of images: a table for each set, and their mean.

    python benchmarks/accuracy.py --image-size 64 --methods probe,l2,delta --seeds 0,1,2
    python benchmarks/accuracy.py --sets tiny --methods delta --write tiny.md
    python benchmarks/accuracy.py --sets trashnet@2x20,dtd10 --samples-per-class 10,20

A tiny set is drawn anew for each seed: see `image_sets.py`. If `peers.py` has written its results
to the same `--out`, they are rows of the tables. Rerunning the same command resumes.
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
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from image_sets import ImageSet, add_set_options, sizes_of
from peers import PEERS_FILE, PeerResult, read_peers

from delta_transfer.config.commands import parse_seeds
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.errors import DataError
from delta_transfer.experiments.comparison.compare import compare, describe_run
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.metrics.statistics import Summary
from delta_transfer.report.comparison.runs import (
    BASELINE,
    PROBE,
    Comparison,
    MethodSummary,
    read_comparison,
    summarize_methods,
)
from delta_transfer.utils.devices import cpu_count, find_device

BELOW_PROBE = 0.02
"""A run that is worse than its linear probe by more than this is counted."""

Results = dict[tuple[ImageSet, int | None], Comparison]
"""The runs by set and training images per class; None for all, and for tiny sets."""


def main() -> None:
    options = parse()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    results: Results = {}
    notes: list[str] = []
    for image_set in options.sets:
        logging.info("=== %s", image_set)
        try:
            found, new_notes = measure(options, image_set)
        except DataError as error:
            notes.append(f"{image_set} is left out: {error}.")
            continue
        results |= found
        notes += new_notes
    if not results:
        sys.exit("\n".join(["no results", *notes]))
    results = {
        key: with_peers(comparison, of_setting(options, *key))
        for key, comparison in results.items()
    }
    head = [*describe_setting(options, results), *(f"- {note}" for note in notes)]
    text = "\n".join(["# Results", "", *head, "", *write_tables(results), *write_means(results)])
    print(text)
    if options.write:
        options.write.write_text(text, encoding="utf-8")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_set_options(parser)
    parser.add_argument("--model", default=TrainConfig.model)
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


def measure(options: argparse.Namespace, image_set: ImageSet) -> tuple[Results, list[str]]:
    """Return the comparison of a set for each size, made or resumed, and notes."""
    folder = options.out / image_set.folder_name
    seeds = parse_seeds(options.seeds)
    if image_set.tiny is None:
        data = image_set.source(options.shared)
        sizes, missing = sizes_of(data, options.samples_per_class)
        comparison, failed = make(
            options, config_of(options, data), folder, seeds=seeds, sizes=sizes
        )
        notes = [f"{image_set} {note}" for note in missing]
        found = {(image_set, size): comparison.with_size(size) for size in comparison.sizes}
    else:
        drawn, failed, notes = [], [], []
        for seed in seeds:  # each with images of its own
            data = image_set.data(options.shared, options.out, seed=seed)
            config = config_of(options, data)
            comparison, own = make(options, config, folder / f"seed{seed}", seeds=[seed])
            drawn.append(comparison)
            failed += own
        found = {(image_set, None): pooled(drawn)}
    return found, notes + [f"{image_set}, {text}." for text in failed]


def config_of(options: argparse.Namespace, data: str) -> TrainConfig:
    return TrainOptions(
        data=data,
        model=options.model,
        image_size=options.image_size,
        epochs=options.epochs,
        device=options.device,
    ).resolve()


def pooled(parts: Sequence[Comparison]) -> Comparison:
    """Return comparisons whose seeds differ as one."""
    entries = tuple(entry for part in parts for entry in part.entries)
    return dataclasses.replace(parts[0], entries=entries)


def of_setting(
    options: argparse.Namespace, image_set: ImageSet, size: int | None
) -> list[PeerResult]:
    """Return the results of other tools on the same images."""
    return [
        result
        for result in read_peers(options.out / PEERS_FILE)
        if (result.set, result.samples_per_class) == (str(image_set), size)
        and (result.model, result.image_size) == (options.model, options.image_size)
    ]


def with_peers(comparison: Comparison, peers: Sequence[PeerResult]) -> Comparison:
    """Add the results of other tools, of the seeds in a comparison, as entries."""
    first = {entry.seed: entry for entry in reversed(comparison.entries)}
    entries = [
        dataclasses.replace(
            first[peer.seed],
            method=peer.label,
            score=peer.test_accuracy,
            trained_share=1.0,
            strength=None,
            wall_time_s=peer.wall_time_s,
            peak_memory_mib=float("nan"),
        )
        for peer in peers
        if peer.seed in first
    ]
    return dataclasses.replace(comparison, entries=(*comparison.entries, *entries))


def write_tables(results: Results) -> Iterator[str]:
    """Write a table for each set, grouped by the number of training images."""
    for title, group in grouped(results).items():
        yield f"## {title}\n"
        for name, comparison in group.items():
            yield from write_table(name, comparison)


def write_means(results: Results) -> Iterator[str]:
    """Write a table of the mean over each group of sets, and over all."""
    groups = grouped(results)
    everything = {f"{title}: {name}": c for title, own in groups.items() for name, c in own.items()}
    shown = {title: group for title, group in groups.items() if len(group) > 1}
    if list(shown.values()) != [everything] and len(groups) > 1:
        shown["All of them"] = everything
    if not shown:
        shown = groups
    yield "## Mean over the sets\n"
    for title, group in shown.items():
        yield f"### {title}\n"
        yield from write_mean(group)


def grouped(results: Results) -> dict[str, dict[str, Comparison]]:
    """Return the comparisons by the number of training images, then by set."""
    found: dict[str, dict[str, Comparison]] = {}
    for (image_set, size), comparison in results.items():
        if image_set.tiny is None:
            title = f"{'All' if size is None else size} training images a class"
        else:
            title = "{} classes, {} training images a class".format(*image_set.tiny)
        found.setdefault(title, {})[str(image_set)] = comparison
    return found


def write_table(title: str, comparison: Comparison) -> Iterator[str]:
    seeds = len(comparison.seeds)
    yield f"### {title}\n"
    split, metric = comparison.split.capitalize(), comparison.metric
    yield (
        f"{split} {metric.heading}, {count_seeds(seeds)}; linear probe "
        f"{metric.format_number(comparison.probe)}.\n"
    )
    baseline = BASELINE in comparison.methods
    columns = ["mean", "std", *(["vs l2"] if baseline else []), "vs probe", "worst vs probe"]
    yield f"| method | {' | '.join([*columns, 'seconds', 'MiB'])} |"
    yield f"|---{(len(columns) + 2) * '|--:'}|"
    for row in summarize_methods(comparison):
        memory = row.peak_memory_mib
        cells = (
            name_row(row, seeds),
            f"{100 * row.score.mean:.1f}",
            f"{100 * row.score.std:.1f}" if row.score.count > 1 else "",
            *([difference(row.vs_baseline)] if baseline else []),
            difference(row.vs_probe),
            "" if row.method == PROBE else f"{100 * min(margins(comparison, row.method)):+.1f}",
            f"{row.wall_time_s:.0f}",
            f"{memory:.0f}" if memory == memory else "",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def write_mean(group: Mapping[str, Comparison]) -> Iterator[str]:
    """Write the mean over sets of each method that has the same seeds in all of them."""
    mean = average([*group.values()])
    if not mean.entries:
        yield "No method and seed has a run on each of these sets.\n"
        return
    limit = f"{100 * BELOW_PROBE:.0f} points"
    yield (
        f"{mean.split.capitalize()} {mean.metric.heading}, mean over {', '.join(group)}; linear "
        f"probe {mean.metric.format_number(mean.probe)}. Intervals are over seeds.\n"
    )
    yield f"| method | mean | vs probe | worst run | runs over {limit} below the probe | seconds |"
    yield "|---|--:|--:|--:|--:|--:|"
    for row in summarize_methods(mean):
        own = [margin for one in group.values() for margin in margins(one, row.method)]
        below = sum(margin < -BELOW_PROBE - 1e-9 for margin in own)
        share = f"{below} of {len(own)} ({100 * below / len(own):.0f}%)"
        cells = (
            name_row(row, len(mean.seeds)),
            f"{100 * row.score.mean:.1f}",
            difference(row.vs_probe),
            *(("", "") if row.method == PROBE else (f"{100 * min(own):+.1f}", share)),
            f"{row.wall_time_s:.0f}",
        )
        yield f"| {' | '.join(cells)} |"
    yield ""


def margins(comparison: Comparison, method: str) -> list[float]:
    """Return by how much each run of a method is better than its own linear probe."""
    gain = comparison.metric.gain
    return [gain(entry.score, entry.probe) for entry in comparison.runs_of(method)]


def name_row(row: MethodSummary, seeds: int) -> str:
    """Return the method, and the number of its seeds if others have more."""
    count = row.score.count
    return row.method + ("" if count == seeds else f" ({count_seeds(count)})")


def count_seeds(count: int) -> str:
    return f"{count} seed" if count == 1 else f"{count} seeds"


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


def describe_setting(options: argparse.Namespace, results: Results) -> Iterator[str]:
    """When, with what and on what it was measured, and how to read it."""
    first = next(iter(results.values()))
    versions = RunResult.load(first.folder / first.entries[0].folder).versions
    found = re.search(r"^num_threads: (\d+)", (first.folder / "compare.yaml").read_text(), re.M)
    versions_of_peers = {peer.versions for peer in read_peers(options.out / PEERS_FILE)}
    yield f"Measured on {time.strftime('%Y-%m-%d')} by `{shlex.join(['python', *sys.argv])}`.\n"
    yield f"- {', '.join(f'{name} {version}' for name, version in versions.items())}"
    yield from (f"- other tools: {versions}" for versions in sorted(versions_of_peers))
    threads = found[1] if found else "unknown"
    yield f"- {machine(options.device)}; CPU threads of each run: {threads}"
    yield (
        f"- model {options.model}, images of {options.image_size} pixels, "
        f"{'default' if options.epochs is None else options.epochs} epochs"
    )
    yield (
        "- differences are paired by seed, in points, with 95% intervals; worst is that of one "
        "run; seconds and memory (the most at a time) are means of a run, where several may have "
        "run at a time"
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
