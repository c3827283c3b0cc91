"""Where the runs of a comparison or a search are made, and how many of them at a time."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from delta_transfer.config.train import TrainConfig
from delta_transfer.experiments.scheduling.pool import Jobs, gpus
from delta_transfer.experiments.scheduling.ray_cluster import Cluster
from delta_transfer.utils.devices import cpu_count, find_device

MEMORY = 5 * 2**30
"""Bytes that a run on the CPU may need: DELTA with the default model at 224 pixels took 4.1 GiB."""


@contextmanager
def room_for(
    config: TrainConfig, ray: str | None, jobs: int | None
) -> Iterator["Machine | Cluster"]:
    """Where runs are made: this machine, or a Ray cluster.

    Args:
        config: what they have in common.
        ray: address of the cluster; None for this machine.
        jobs: how many are made at a time; None for as many as memory allows.
    """
    if ray is None:
        yield Machine(config)
        return
    with Cluster(ray, config, memory=MEMORY if jobs is None else 0) as cluster:
        yield cluster


class Machine:
    """This machine, as `compare_ray.Cluster` is a cluster.

    Args:
        config: of the comparison.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._places, self._gpus = _places(config)

    def share(self, runs: int) -> int:
        """As of a cluster."""
        return max(1, cpu_count() // max(1, min(self._places, runs)))

    def fitting(self, threads: int) -> int:
        """As of a cluster."""
        return self._places if self._gpus else min(self._places // threads, _fit_in_memory())

    def cores_of_a_run(self, at_once: int, threads: int) -> int:
        """As of a cluster."""
        return cpu_count() // at_once

    def jobs(self, methods: Sequence[str], mark: Path, *, workers: int, threads: int) -> Jobs:
        """As of a cluster."""
        return Jobs(methods, workers=workers, threads=threads, gpus=self._gpus)


def _places(config: TrainConfig) -> tuple[int, list[str]]:
    """Where runs can be made at a time: cores, or GPUs, which have names."""
    device = find_device(config.device)
    if device.type == "cpu":
        return cpu_count(), []
    names = gpus() if device.type == "cuda" else []
    return max(1, len(names)), names


def _fit_in_memory() -> int:
    return int(psutil.virtual_memory().available // MEMORY)
