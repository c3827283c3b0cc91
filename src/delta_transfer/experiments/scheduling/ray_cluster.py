"""Execute the runs of a comparison or a search as tasks on a Ray cluster."""

import contextlib
import logging
import os
import re
import signal
import socket
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import EnvironmentError, UserError
from delta_transfer.experiments.scheduling.pool import Worker
from delta_transfer.experiments.scheduling.worker import Reply, Work, reply_to
from delta_transfer.utils.devices import cpu_count

RETRIES = 3
"""How often a run is restarted if its process or node dies; it resumes from its checkpoints."""

_PASSED_ON = ("PYTHONPATH", "DELTA_TRANSFER_CACHE")
_OF_LOGGERS = ("MLFLOW_", "TRACKIO_", "WANDB_")
"""Prefixes of the environment variables that configure the loggers."""

_STORE = 80 * 2**20  # bytes for results of tasks, which are small; Ray's minimum


class Node(NamedTuple):
    """The resources of a node."""

    cores: int
    gpus: int
    memory: float  # in bytes
    id: str = ""  # Ray's; none without it


def import_ray() -> Any:
    """Import Ray.

    Raises:
        EnvironmentError: if it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # must be set before the import
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise EnvironmentError(
            "`ray` requires the package ray: pip install 'delta-transfer[search]'"
        ) from error
    return ray


@contextlib.contextmanager
def connected(address: str) -> Iterator[list[Node]]:
    """Connect to a Ray cluster, and yield its nodes; a local one is stopped afterwards.

    Args:
        address: for `ray.init`; `"local"` starts Ray on this machine.

    Raises:
        EnvironmentError: if Ray is not installed, or there is no such cluster.
    """
    with _connecting(address):
        if found := re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address):
            # Ray would take minutes to notice that there is no cluster.
            socket.create_connection((found[1], int(found[2])), timeout=10).close()
    ray = import_ray()
    own = {"num_cpus": cpu_count(), "object_store_memory": _STORE, "include_dashboard": False}
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        with _connecting(address):
            ray.init(address=address, **options, **(own if address == "local" else {}))
        alive = [(node["NodeID"], node["Resources"]) for node in ray.nodes() if node["Alive"]]
        yield [
            Node(int(has.get("CPU", 0)), int(has.get("GPU", 0)), has.get("memory", 0.0), name)
            for name, has in alive
        ]
    finally:
        ray.shutdown()


def usable(nodes: Sequence[Node], device: str, address: str) -> list[Node]:
    """Return the nodes for runs: those with GPUs, if any, unless the CPU is requested.

    Raises:
        EnvironmentError: if there are none.
    """
    with_gpus = [node for node in nodes if node.gpus] if device in ("auto", "cuda") else []
    if device == "mps" or (device == "cuda" and not with_gpus):
        raise EnvironmentError(
            f"`device={device}`: the Ray cluster {address} has no such device: use auto or cpu"
        )
    found = with_gpus or [node for node in nodes if node.cores]
    if not found:
        raise EnvironmentError(f"`ray={address}`: no node of the cluster has cores for runs")
    return found


def start_tasks(
    methods: Sequence[str],
    mark: Path,
    config: TrainConfig,
    *,
    count: int,
    threads: int,
    needs: dict[str, Any],
    nodes: Sequence[Node],
) -> Iterator[Worker]:
    """Yield workers that execute Ray tasks, after checking that every node can access the files.

    Args:
        methods: of the comparison.
        mark: a file that exists during the runs.
        config: of the comparison.
        count: of parallel runs.
        threads: of each.
        needs: the resources that Ray reserves for each.
        nodes: that may execute them.
    """
    ray, cwd = import_ray(), os.getcwd()
    variables = {"OMP_NUM_THREADS": str(threads), **passed_on(config.logger_names)}
    options = {"max_retries": RETRIES, "runtime_env": {"env_vars": variables}}
    check, paths = ray.remote(num_cpus=0, **options)(missing), _read_by(config)
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    on_nodes = [check.options(scheduling_strategy=strategy(node.id, soft=False)) for node in nodes]
    try:
        found = ray.get([task.remote(cwd, paths) for task in on_nodes])
    except ray.exceptions.RayError as error:
        raise _explained(ray, error) from error
    for lost in filter(None, found):
        raise lost
    task = ray.remote(**options, **needs)(work)
    for _ in range(count):
        yield _Remote(ray, task, (cwd, str(mark), tuple(methods), threads))


class _Remote(Worker):
    """A worker whose runs are tasks, which Ray schedules on a free node and process."""

    keeps_group = False

    def __init__(self, ray: Any, task: Any, arguments: tuple[Any, ...]) -> None:
        self._ray = ray
        self._task = task
        self._arguments = arguments  # first arguments of `work`
        self._running: Any = None

    def submit(self, config: TrainConfig, work: Work | None) -> Future[Reply | Exception]:
        self._running = self._task.remote(*self._arguments, config, work)
        future: Future[Reply | Exception] = self._running.future()
        return future

    def explain(self, error: Exception) -> Reply | Exception:
        found = _explained(self._ray, error)
        return Reply(failure=str(found)) if isinstance(found, UserError) else found

    def stop(self) -> None:
        self._ray.cancel(self._running)  # like Ctrl-C

    def close(self) -> None:
        if self._running is not None:
            self._ray.cancel(self._running, force=True)  # does nothing if it has ended


def work(
    cwd: str,
    mark: str,
    methods: tuple[str, ...],
    threads: int,
    config: TrainConfig,
    what: Work | None,
) -> Reply | Exception:
    """Prepare a run on a node of the cluster, and execute it if there is work."""
    lost = missing(cwd, [] if what is None else [mark])
    return lost or reply_to(methods, threads, config, what)


def missing(cwd: str, paths: Sequence[str]) -> UserError | None:
    """Change to a folder, if it exists, and return an error if a file is missing."""
    with contextlib.suppress(OSError):
        os.chdir(cwd)
    lost = next((path for path in paths if not Path(path).exists()), None)
    if lost is None:
        return None
    return EnvironmentError(
        f"{lost} does not exist on {socket.gethostname()}, a node of the Ray cluster: the data and "
        "`out` must be in folders with the same path on all nodes"
    )


def passed_on(loggers: Sequence[str]) -> dict[str, str]:
    """Return the environment variables for the nodes, without keys of other services.

    Args:
        loggers: that are in use.
    """
    prefixes = tuple(start for start in _OF_LOGGERS if start[:-1].lower() in loggers)
    return {
        name: value
        for name, value in os.environ.items()
        if name in _PASSED_ON or name.startswith(prefixes)
    }


def _read_by(config: TrainConfig) -> list[str]:
    """Return the files and folders that runs read."""
    given = (config.data, config.weights, config.attention, config.data_root, config.model)
    paths = [path.removeprefix("local-dir:").removeprefix("hf/") for path in given if path]
    return [path for path in paths if Path(path).exists()]  # the others are names


def _explained(ray: Any, error: Exception) -> Exception:
    """Convert an error of Ray to a message; keep our own errors."""
    errors = ray.exceptions
    if isinstance(error, errors.RayTaskError) and isinstance(error.cause, ImportError):
        return EnvironmentError(
            f"a node of the Ray cluster cannot import delta-transfer ({error.cause}): "
            "install the same version on all nodes"
        )
    if isinstance(error, errors.RayTaskError) or not isinstance(error, errors.RayError):
        return error
    text = " ".join(str(error).split())
    return EnvironmentError(
        "a worker process of the Ray cluster crashed repeatedly, probably out of memory: use fewer "
        f"parallel runs (`jobs=1`) ({type(error).__name__}: {text})"
    )


@contextlib.contextmanager
def _connecting(address: str) -> Iterator[None]:
    """Convert errors to messages, and restore the SIGTERM handler, which Ray replaces."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except (OSError, OverflowError, RuntimeError, ValueError, AssertionError) as error:
        text = " ".join(str(error).split())
        if "AF_UNIX" in text:
            raise EnvironmentError(
                f"the path of the temporary folder {tempfile.gettempdir()} is too long for Ray: "
                "run the command with TMPDIR=/tmp"
            ) from error
        raise EnvironmentError(
            f"`ray={address}`: cannot connect to a Ray cluster ({text[:200]}): use auto, "
            "HOST:PORT or ray://HOST:PORT, or local, which starts one on this machine"
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # only the main thread may set handlers
            signal.signal(signal.SIGTERM, before)
