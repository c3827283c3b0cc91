"""A training step: plain, DELTA's, with the source's features cached, and as in the authors' code.

    python benchmarks/step.py
    python benchmarks/step.py --model resnet50 --batch-size 16 --image-size 160 --json step.json

All steps alternate, so that a busy machine slows them equally. "plain" is fine-tuning in PyTorch's
default layout; "ours, plain" is fine-tuning in the layout and with the frozen batch norm of
`train`. "delta, bf16 source" is DELTA with `source_precision="bfloat16"`. "reference" is DELTA
as its authors' code does it: hooks set and removed at each step, the whole source in the default
layout. "source" is its bare forward pass with fused batch norm, which DELTA always needs. Memory
is the peak of a separate process that runs a few such steps, minus what it used before it built the
networks.
"""

import argparse
import copy
import json
import multiprocessing
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer import Delta, Regularizer
from delta_transfer.features.frozen_source import FrozenSource
from delta_transfer.features.taps import resolve_taps
from delta_transfer.utils.devices import find_device, move_to_device
from delta_transfer.utils.memory import PeakMemory

NAMES = {"lite0": "tf_efficientnet_lite0"}
CLASSES = 47
HALF = "delta, bf16 source"
STEPS = ("plain", "ours, plain", "delta", HALF, "delta, cached", "reference", "source")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="lite0", help="lite0, or a name of timm's")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--bf16", action="store_true", help="under autocast")
    parser.add_argument("--no-memory", action="store_true", help="measure times alone")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    seconds = times(options)
    peaks = {} if options.no_memory else {name: peak(name, options) for name in STEPS}

    def ratio(a: str, b: str) -> float:
        return statistics.median(x / y for x, y in zip(seconds[a], seconds[b], strict=True))

    print(
        f"{options.model}, batch {options.batch_size}, {options.image_size} pixels, "
        f"{find_device(options.device)}, {torch.get_num_threads()} threads, "
        f"median of {options.rounds} rounds"
    )
    print(f"{'step':18} {'seconds':>8} {'/plain':>8} {'/ours':>8} {'MiB':>8} {'/ours':>8}")
    for name in STEPS:
        memory = f"{peaks[name]:8.0f} {peaks[name] / peaks['ours, plain']:8.2f}" if peaks else ""
        print(
            f"{name:18} {statistics.median(seconds[name]):8.3f} {ratio(name, 'plain'):8.2f} "
            f"{ratio(name, 'ours, plain'):8.2f} {memory}"
        )
    found = {
        "seconds": {name: statistics.median(seconds[name]) for name in STEPS},
        "delta": {
            "over_plain": ratio("delta", "ours, plain"),
            "over_reference": ratio("delta", "reference"),
            "over_default_plain": ratio("delta", "plain"),
        },
        "delta_bf16_source": {"over_plain": ratio(HALF, "ours, plain")},
        "delta_cached": {"over_plain": ratio("delta, cached", "ours, plain")},
        "source": {"over_plain": ratio("source", "ours, plain")},
        "peak_mib": peaks,
    }
    print(
        f"delta takes {ratio('delta', 'ours, plain'):.2f} of our plain step, "
        f"{ratio(HALF, 'ours, plain'):.2f} with a source in bfloat16, "
        f"{ratio('delta, cached', 'ours, plain'):.2f} cached, and "
        f"{ratio('delta', 'reference'):.2f} of the reference; the source alone takes "
        f"{ratio('source', 'ours, plain'):.2f}"
    )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1))


Steps = Callable[[], object]


def times(options: argparse.Namespace) -> dict[str, list[float]]:
    """Step -> its seconds in each round; each is made twice before."""
    device = find_device(options.device)
    made = [(name, make(name, options)) for name in STEPS]
    found: dict[str, list[float]] = {name: [] for name in STEPS}
    for number in range(-2, options.rounds):
        for name, step in made:
            start = time.perf_counter()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if number >= 0:
                found[name].append(time.perf_counter() - start)
    return found


def peak(name: str, options: argparse.Namespace) -> float:
    """MiB, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_peak, (name, options))


def _peak(name: str, options: argparse.Namespace) -> float:
    device = find_device(options.device)
    torch.zeros(1, device=device)
    before = PeakMemory(device).mib
    step = make(name, options)
    memory = PeakMemory(device)
    for _ in range(4):
        step()
    return memory.mib - before


def make(name: str, options: argparse.Namespace) -> Steps:
    """The step, with networks of its own."""
    torch.manual_seed(0)
    device = find_device(options.device)
    network = timm.create_model(
        NAMES.get(options.model, options.model), pretrained=False, num_classes=CLASSES
    ).to(device)
    size = (options.batch_size, 3, options.image_size, options.image_size)
    inputs = torch.randn(size, device=device)
    targets = torch.randint(CLASSES, (options.batch_size,), device=device)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=options.bf16)
    if name not in ("plain", "reference"):
        move_to_device(network, device)
        inputs = inputs.to(memory_format=torch.channels_last)
    if name == "source":
        return _source(network, inputs)
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
    term = {"plain": _nothing, "reference": _reference}.get(name, _ours)(network, name, inputs)

    def step() -> None:
        network.train()
        loss = term(lambda: F.cross_entropy(network(inputs), targets), inputs, autocast)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


Term = Callable[[Callable[[], Tensor], Tensor, torch.autocast], Tensor]


def _nothing(network: nn.Module, name: str, inputs: Tensor) -> Term:
    def term(task: Callable[[], Tensor], inputs: Tensor, autocast: torch.autocast) -> Tensor:
        with autocast:
            return task()

    return term


def _ours(network: nn.Module, name: str, inputs: Tensor) -> Term:
    penalties = [] if name == "ours, plain" else [Delta(taps="auto", strength=1.0)]
    source = copy.deepcopy(network) if penalties else None
    cache = 4.0 if name == "delta, cached" else 0.0
    precision: Literal["float32", "bfloat16"] = "bfloat16" if name == HALF else "float32"
    regularizer = Regularizer(
        network, source, penalties, source_cache_gb=cache, source_precision=precision
    )
    regularizer.calibrate([inputs])
    regularizer.__enter__()  # for as long as the process lives

    def term(task: Callable[[], Tensor], inputs: Tensor, autocast: torch.autocast) -> Tensor:
        with autocast:
            loss = task()
        return loss + regularizer(inputs).total

    return term


def _reference(network: nn.Module, name: str, inputs: Tensor) -> Term:
    source = copy.deepcopy(network).eval()
    taps = resolve_taps(network, "auto")

    def record(model: nn.Module, run: Callable[[], Tensor]) -> tuple[Tensor, list[Tensor]]:
        found: list[Tensor] = []
        handles = [
            model.get_submodule(tap).register_forward_hook(lambda _, __, out: found.append(out))
            for tap in taps
        ]
        result = run()
        for handle in handles:
            handle.remove()
        return result, found

    def term(task: Callable[[], Tensor], inputs: Tensor, autocast: torch.autocast) -> Tensor:
        with autocast:
            loss, ours = record(network, task)
            with torch.no_grad():
                _, theirs = record(source, lambda: source(inputs))
        for now, then in zip(ours, theirs, strict=True):
            loss = loss + 0.01 * 0.5 * torch.norm(now.float() - then.detach().float()) ** 2
        return loss

    return term


def _source(network: nn.Module, inputs: Tensor) -> Steps:
    taps = resolve_taps(network, "auto")
    source = FrozenSource(network, taps=taps, heads=(), cache_gb=0.0)
    source.open()
    return lambda: source.run(inputs)


if __name__ == "__main__":
    main()
