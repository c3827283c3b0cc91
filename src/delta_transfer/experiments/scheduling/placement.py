"""Decide where the runs of a comparison or a search are executed, and how many in parallel."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import EnvironmentError
from delta_transfer.experiments.scheduling.pool import Pool, gpus, local_workers
from delta_transfer.experiments.scheduling.ray_cluster import Node, connected, start_tasks, usable
from delta_transfer.utils.devices import cpu_count, find_device

MEMORY = 5 * 2**30
"""Bytes that a run on the CPU may need: DELTA with the default model at 224 pixels took 4.1 GiB."""


@contextmanager
def room_for(config: TrainConfig, ray: str | None, jobs: int | None) -> Iterator["Room"]:
    """Yield the machines for the runs: this one, or a Ray cluster.

    Args:
        config: the options that the runs have in common.
        ray: address of the cluster; None for this machine.
        jobs: parallel runs; None for as many as memory allows.
    """
    memory = MEMORY if jobs is None else 0
    if ray is None:
        yield Room(config, [_this_machine(config)], memory=memory)
        return
    with connected(ray) as nodes:
        yield Room(config, usable(nodes, config.device, ray), memory=memory, on_ray=True)


@dataclasses.dataclass(frozen=True)
class Room:
    """The nodes for the runs: one run per GPU, or as many as cores and memory allow.

    Args:
        config: the options that the runs have in common.
        nodes: of the cluster; one for this machine.
        memory: bytes that a run on the CPU requires; 0 to ignore memory.
        on_ray: True for a Ray cluster.
    """

    config: TrainConfig
    nodes: Sequence[Node]
    memory: int = dataclasses.field(kw_only=True)
    on_ray: bool = dataclasses.field(kw_only=True, default=False)

    @property
    def _cores(self) -> int:
        return sum(node.cores for node in self.nodes)

    @property
    def _gpus(self) -> int:
        return sum(node.gpus for node in self.nodes) if self.config.device != "cpu" else 0

    def share(self, runs: int) -> int:
        """Return the threads of each run, an equal share of the cores."""
        fair = self._cores // max(1, min(self._gpus or self._cores, runs))
        return max(1, min(fair, *(node.cores for node in self.nodes)))

    def fitting(self, threads: int) -> int:
        """Return how many runs fit in parallel."""
        if self._gpus:
            return self._gpus
        need = self.memory or 1e-9
        return sum(int(min(node.cores // threads, node.memory // need)) for node in self.nodes)

    def cores_of_a_run(self, at_once: int, threads: int) -> int:
        """Return the cores of a run, including those that load images; Ray reserves threads."""
        return threads if self.on_ray and not self._gpus else self._cores // at_once

    def jobs(self, methods: Sequence[str], mark: Path, *, workers: int, threads: int) -> Pool:
        """Return the workers for the runs.

        Args:
            methods: of the runs.
            mark: a file that exists during the runs.
            workers: their number.
            threads: of each.

        Raises:
            EnvironmentError: if no node of the cluster has enough cores.
        """
        if not self.on_ray:
            names = gpus() if self._gpus else []
            return Pool(local_workers(methods, count=workers, threads=threads, gpus=names))
        most = max(node.cores for node in self.nodes)
        if not self._gpus and threads > most:
            raise EnvironmentError(
                f"`num_threads={threads}`: no node of the Ray cluster has more than {most} cores, "
                "and results depend on the number of threads: use fewer in another `out`"
            )
        memory = int(min(self.memory, *(node.memory for node in self.nodes)))
        on_cpu = {"num_cpus": threads, "memory": memory}
        tasks = start_tasks(
            methods,
            mark,
            self.config,
            count=workers,
            threads=threads,
            needs={"num_gpus": 1, "num_cpus": 0} if self._gpus else on_cpu,
            nodes=[node for node in self.nodes if self._gpus or node.cores >= threads],
        )
        return Pool(tasks, where=" on the cluster")


def _this_machine(config: TrainConfig) -> Node:
    on_cpu = find_device(config.device).type == "cpu"
    memory = psutil.virtual_memory().available
    return Node(cores=cpu_count(), gpus=0 if on_cpu else max(1, len(gpus())), memory=memory)
