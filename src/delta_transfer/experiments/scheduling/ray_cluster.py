"""The runs of a comparison or a search are made by the nodes of a Ray cluster."""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.experiments.scheduling.ray_connection import (
    Node,
    check_port,
    connect,
    import_ray,
    node_of,
)
from delta_transfer.experiments.scheduling.ray_task import Job, missing, work
from delta_transfer.experiments.scheduling.worker import PATIENCE, STOPPING, Reply, Work, make_run

logger = logging.getLogger(__name__)

RETRIES = 3
"""How often a run is begun again whose process or node dies; it goes on from its checkpoints."""

_PASSED_ON = ("PYTHONPATH", "DELTA_TRANSFER_CACHE")
_OF_LOGGERS = ("MLFLOW_", "TRACKIO_", "WANDB_")
"""Environment variables that begin so: where a logger that is asked for finds its service."""


class Cluster:
    """A Ray cluster that this process is connected to while inside; one that it started ends then.

    Args:
        address: as Ray takes it; `"local"` starts a Ray on this machine.
        config: of the comparison.
        memory: bytes that a run on the CPU is to have; 0 for as it comes.

    Raises:
        UserError: when it is entered, if Ray is not installed, there is no such cluster, or it has
            not what is needed.
    """

    def __init__(self, address: str, config: TrainConfig, *, memory: int) -> None:
        self._address = address
        self._config = config
        self._memory = memory
        self._nodes: list[Node] = []

    def __enter__(self) -> "Cluster":
        check_port(self._address)
        ray = import_ray()
        try:
            connect(ray, self._address)
            self._nodes = self._usable([node_of(found) for found in ray.nodes() if found["Alive"]])
        except BaseException:
            ray.shutdown()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        import_ray().shutdown()

    def _usable(self, nodes: Sequence[Node]) -> list[Node]:
        """Those that can make runs: with GPUs if there are any, unless the CPU is asked for."""
        device = self._config.device
        with_gpus = [node for node in nodes if node.gpus] if device in ("auto", "cuda") else []
        if device == "mps" or (device == "cuda" and not with_gpus):
            raise UserError(
                f"--device {device}: the Ray cluster {self._address} has no such device: give auto "
                "or cpu"
            )
        found = with_gpus or [node for node in nodes if node.cores]
        if not found:
            raise UserError(f"--ray {self._address}: no node of the cluster has cores for runs")
        return found

    @property
    def _gpus(self) -> int:
        return sum(node.gpus for node in self._nodes) if self._config.device != "cpu" else 0

    def share(self, runs: int) -> int:
        """Threads of each run, if so many are made."""
        total = sum(node.cores for node in self._nodes)
        fair = total // max(1, min(self._gpus or total, runs))
        return max(1, min(fair, *(node.cores for node in self._nodes)))

    def fitting(self, threads: int) -> int:
        """How many runs can be made at a time."""
        if self._gpus:
            return self._gpus
        return sum(
            min(node.cores // threads, int(node.memory // self._memory) if self._memory else 2**31)
            for node in self._nodes
        )

    def cores_of_a_run(self, at_once: int, threads: int) -> int:
        """Cores that a run has, of which some may load images."""
        return sum(node.cores for node in self._nodes) // at_once if self._gpus else threads

    def jobs(self, methods: Sequence[str], mark: Path, *, workers: int, threads: int) -> "RayJobs":
        """Who makes the runs.

        Args:
            methods: of the runs.
            mark: see `Job`.
            workers: how many runs at a time.
            threads: of each.

        Raises:
            UserError: if no node has so many cores.
        """
        most = max(node.cores for node in self._nodes)
        if not self._gpus and threads > most:
            raise UserError(
                f"--num-threads {threads}: no node of the Ray cluster has more than {most} cores, "
                "and "
                "the figures depend on the threads: give other ones in another --out"
            )
        memory = min(self._memory, *(node.memory for node in self._nodes))
        needs = {"num_gpus": 1, "num_cpus": 0}
        return RayJobs(
            methods,
            mark,
            workers=workers,
            threads=threads,
            needs=needs if self._gpus else {"num_cpus": threads, "memory": int(memory)},
            nodes=[node.id for node in self._nodes if self._gpus or node.cores >= threads],
            variables=passed_on(self._config.logger_names),
        )


class RayJobs:
    """Shares out the runs of a comparison as Ray tasks; when it is left, what still runs ends.

    Args:
        methods: of the comparison.
        mark: see `Job`.
        workers: how many runs at a time.
        threads: of each.
        needs: Ray's resources of each.
        nodes: that may make them.
        variables: of the environment there.
    """

    def __init__(
        self,
        methods: Sequence[str],
        mark: Path,
        *,
        workers: int,
        threads: int,
        needs: dict[str, Any],
        nodes: Sequence[str],
        variables: dict[str, str],
    ) -> None:
        self._ray = import_ray()
        cwd, whole = os.getcwd(), str(mark)
        self._job = Job(methods=tuple(methods), threads=threads, mark=whole, cwd=cwd)
        self._workers = workers
        self._nodes = nodes
        environment = {"env_vars": {"OMP_NUM_THREADS": str(threads), **variables}}
        self._work = self._ray.remote(work).options(
            max_retries=RETRIES, runtime_env=environment, **needs
        )
        self._look = self._ray.remote(num_cpus=0, max_retries=RETRIES, runtime_env=environment)(
            missing
        )
        self._busy: dict[Any, TrainConfig] = {}

    def __enter__(self) -> "RayJobs":
        return self

    def __exit__(self, *error: object) -> None:
        if not self._busy:
            return
        tasks = list(self._busy)
        logger.warning(STOPPING.format(" on the cluster"))
        try:
            for task in tasks:
                self._ray.cancel(task)  # as Ctrl-C there
            self._ray.wait(tasks, num_returns=len(tasks), timeout=PATIENCE)
        finally:
            for task in tasks:
                self._ray.cancel(task, force=True)

    def prepare(self, config: TrainConfig) -> Reply:
        """As `compare_jobs.Jobs.prepare`; before, every node is asked whether it sees the files."""
        strategy = self._ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        paths = [path for path in _read_by(config) if Path(path).exists()]
        looks = [
            self._look.options(scheduling_strategy=strategy(node, soft=False)).remote(
                self._job.cwd, paths
            )
            for node in self._nodes
        ]
        for look in looks:
            found = self._get(look)
            if found is not None:
                raise found
        reply = self._get(self._work.remote(self._job, config, None))
        if isinstance(reply, Exception):
            raise reply
        assert isinstance(reply, Reply)
        return reply

    def run(self, configs: Sequence[TrainConfig]) -> Iterator[tuple[TrainConfig, Reply]]:
        """As `compare_jobs.Jobs.run`."""
        waiting = iter(configs)
        return self.work_on(lambda: next(waiting, None), make_run)

    def work_on(
        self, take: Callable[[], TrainConfig | None], work: Work
    ) -> Iterator[tuple[TrainConfig, Reply]]:
        """As `compare_jobs.Jobs.work_on`."""
        while True:
            while len(self._busy) < self._workers and (config := take()) is not None:
                self._busy[self._work.remote(self._job, config, work)] = config
            if not self._busy:
                return
            (task,), _ = self._ray.wait(list(self._busy), num_returns=1)
            try:
                reply = self._get(task)
            except UserError as error:  # of this run alone
                reply = Reply(description=(), failure=str(error))
            config = self._busy.pop(task)
            if isinstance(reply, Exception):
                raise reply
            yield config, reply

    def _get(self, task: Any) -> Any:
        """What a task returned.

        Raises:
            UserError: if its process died again and again, or could not begin.
        """
        errors = self._ray.exceptions
        try:
            return self._ray.get(task)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ImportError):
                raise UserError(
                    f"a node of the Ray cluster cannot import delta-transfer ({error.cause}): "
                    "install the same version on all nodes"
                ) from error
            raise
        except errors.RayError as error:
            said = " ".join(str(error).split())
            raise UserError(
                "a process of the Ray cluster that made runs died again and again, as it does when "
                f"memory runs out: make fewer at a time, --jobs 1 ({type(error).__name__}: {said})"
            ) from error


def passed_on(loggers: Sequence[str]) -> dict[str, str]:
    """The variables of the environment that the nodes are given, keys of no other service.

    Args:
        loggers: that are asked for.
    """
    asked = tuple(start for start in _OF_LOGGERS if start[:-1].lower() in loggers)
    return {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(asked)
    }


def _read_by(config: TrainConfig) -> list[str]:
    """What may be files."""
    given = (config.data, config.weights, config.attention, config.data_root, config.model)
    return [path.removeprefix("local-dir:").removeprefix("hf/") for path in given if path]
