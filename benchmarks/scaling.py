"""A training step with DELTA in one process and shared by several, over gloo on the CPU.

python benchmarks/scaling.py
python benchmarks/scaling.py --processes 2 --model resnet50 --image-size 160
"""

import argparse
import json
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a process is to have one core

import torch
import torch.nn.functional as F
from torch import multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from delta_transfer import Delta, Regularizer
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.utils.distributed import all_reduce_mean, init_process_group

Figures = dict[str, float]
Clock = Callable[[], float]


def best(act: Callable[[], object], times: int, clock: Clock = time.process_time) -> float:
    """Seconds of the core, of the fastest time: what else the machine does counts little."""
    act()
    seconds = []
    for _ in range(times):
        started = clock()
        act()
        seconds.append(clock() - started)
    return min(seconds)


def load(options: argparse.Namespace) -> nn.Module:
    """A network with random weights, which take as long as others."""
    size = options.image_size
    return load_backbone(options.model, num_outputs=10, image_size=size, pretrained=False).module


def measure(options: argparse.Namespace, processes: int) -> Figures:
    """What a process needs for its share of a batch."""
    torch.manual_seed(0)
    source, target = (load(options) for _ in range(2))
    network = DistributedDataParallel(target) if processes > 1 else target
    share = options.batch_size // processes
    inputs = torch.randn(share, 3, options.image_size, options.image_size)
    labels = torch.arange(share) % 10
    optimizer = torch.optim.AdamW(target.parameters(), lr=1e-5)
    parameters = [torch.zeros(sum(p.numel() for p in target.parameters()))]

    def step(regularizer: Regularizer | None) -> None:
        loss = F.cross_entropy(network(inputs), labels)
        if regularizer is not None:
            loss = loss + regularizer(inputs).total
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    network.train()
    found = {"plain": best(lambda: step(None), options.times)}
    with Regularizer(network, source, [Delta(taps="auto", strength=1.0)]) as regularizer:
        regularizer.calibrate([inputs])
        found["delta"] = best(lambda: step(regularizer), options.times)
        found["wall"] = best(lambda: step(regularizer), options.times, time.perf_counter)
    with torch.no_grad():
        found["source"] = best(lambda: source.eval()(inputs), options.times)
    found["bytes"] = 4.0 * parameters[0].numel()
    found["reduce"] = 0.0
    if processes > 1:
        found["reduce"] = best(
            lambda: torch.distributed.all_reduce(parameters[0]), options.times, time.perf_counter
        )
    found["tell"] = best(lambda: all_reduce_mean([0.0] * 4), 10 * options.times, time.perf_counter)
    return found


def work(rank: int, processes: int, options: argparse.Namespace, end: Connection) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(options.port)}
    with init_process_group("cpu"):
        end.send(measure(options, processes))


def in_processes(options: argparse.Namespace, processes: int) -> Figures:
    """The figures of the first of so many."""
    here, there = multiprocessing.Pipe(duplex=False)
    context = multiprocessing.start_processes(
        work, (processes, options, there), nprocs=processes, join=False, start_method="fork"
    )
    found: Figures = here.recv()
    context.join()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="pypi/efficientnet_lite0")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--batch-size", type=int, default=32, help="of all processes together")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--times", type=int, default=7)
    parser.add_argument("--port", type=int, default=29581)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    options = parser.parse_args()
    rows = []
    for processes in (1, options.processes):
        found = in_processes(options, processes)
        rows.append({"processes": processes, **found})
    print("seconds of a core in each process; by the clock: wall (delta), all-reduce, 4 numbers")
    heads = ("plain", "delta", "source", "wall", "reduce", "tell")
    print("processes", *(f"{head:>8}" for head in heads))
    for row in rows:
        print(f"{row['processes']:9}", *(f"{row[head]:8.4f}" for head in heads))
    print(f"gradients of {rows[0]['bytes'] / 2**20:.1f} MiB a step")
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2))


if __name__ == "__main__":
    main()
