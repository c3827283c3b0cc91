"""Make the runs of a comparison or a search as tasks on the nodes of a Ray cluster."""

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
from delta_transfer.errors import UserError
from delta_transfer.experiments.scheduling.pool import Worker
from delta_transfer.experiments.scheduling.worker import Reply, Work, reply_to
from delta_transfer.utils.devices import cpu_count

RETRIES = 3
"""How often a run whose process or node died is started again; it resumes from its checkpoints."""

_PASSED_ON = ("PYTHONPATH", "DELTA_TRANSFER_CACHE")
_OF_LOGGERS = ("MLFLOW_", "TRACKIO_", "WANDB_")
"""Prefixes of the environment variables by which a logger that is asked for finds its service."""

_STORE = 80 * 2**20  # bytes for what tasks return, which is next to nothing; Ray's minimum


class Node(NamedTuple):
    """The resources of a node."""

    cores: int
    gpus: int
    memory: float  # in bytes
    id: str = ""  # Ray's; none without it


def import_ray() -> Any:
    """Import the library, when it is asked for.

    Raises:
        UserError: if it is not installed.
    """
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # which it reads when it is imported
    try:
        import ray
        import ray.util.scheduling_strategies
    except ImportError as error:
        raise UserError(
            "--ray needs the package ray: pip install 'delta-transfer[search]'"
        ) from error
    return ray


@contextlib.contextmanager
def connected(address: str) -> Iterator[list[Node]]:
    """Connect to a Ray cluster, and yield its nodes; one that is started here ends afterwards.

    Args:
        address: as Ray takes it; `"local"` starts a Ray on this machine.

    Raises:
        UserError: if Ray is not installed, or there is no such cluster.
    """
    with _connecting(address):
        if found := re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address):
            # That nobody listens there, Ray would find out in minutes.
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
    """Return the nodes that can make runs: those with GPUs, if any, unless the CPU is asked for.

    Raises:
        UserError: if there are none.
    """
    with_gpus = [node for node in nodes if node.gpus] if device in ("auto", "cuda") else []
    if device == "mps" or (device == "cuda" and not with_gpus):
        raise UserError(
            f"--device {device}: the Ray cluster {address} has no such device: give auto or cpu"
        )
    found = with_gpus or [node for node in nodes if node.cores]
    if not found:
        raise UserError(f"--ray {address}: no node of the cluster has cores for runs")
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
    """Yield workers that make runs as Ray tasks, once every node was found to see the files.

    Args:
        methods: of the comparison.
        mark: a file that exists when the runs are made.
        config: of the comparison.
        count: of runs at a time.
        threads: of each.
        needs: the resources that Ray reserves for each.
        nodes: that may make them.
    """
    ray, cwd = import_ray(), os.getcwd()
    variables = {"OMP_NUM_THREADS": str(threads), **passed_on(config.logger_names)}
    options = {"max_retries": RETRIES, "runtime_env": {"env_vars": variables}}
    look, paths = ray.remote(num_cpus=0, **options)(missing), _read_by(config)
    strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    on_nodes = [look.options(scheduling_strategy=strategy(node.id, soft=False)) for node in nodes]
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
    """A worker whose runs are tasks, which Ray gives to whatever node and process is free."""

    keeps_group = False

    def __init__(self, ray: Any, task: Any, told: tuple[Any, ...]) -> None:
        self._ray = ray
        self._task = task
        self._told = told  # first arguments of `work`
        self._running: Any = None

    def submit(self, config: TrainConfig, work: Work | None) -> Future[Reply | Exception]:
        self._running = self._task.remote(*self._told, config, work)
        future: Future[Reply | Exception] = self._running.future()
        return future

    def explain(self, error: Exception) -> Reply | Exception:
        found = _explained(self._ray, error)
        return Reply(failure=str(found)) if isinstance(found, UserError) else found

    def stop(self) -> None:
        self._ray.cancel(self._running)  # as Ctrl-C there

    def close(self) -> None:
        if self._running is not None:
            self._ray.cancel(self._running, force=True)  # nothing, if it has ended


def work(
    cwd: str,
    mark: str,
    methods: tuple[str, ...],
    threads: int,
    config: TrainConfig,
    what: Work | None,
) -> Reply | Exception:
    """Prepare a run on a node of the cluster, and make it if there is work to do."""
    lost = missing(cwd, [] if what is None else [mark])
    return lost or reply_to(methods, threads, config, what)


def missing(cwd: str, paths: Sequence[str]) -> UserError | None:
    """Change to a folder, if it exists, and look for files; return the error if one is missing."""
    with contextlib.suppress(OSError):
        os.chdir(cwd)
    lost = next((path for path in paths if not Path(path).exists()), None)
    if lost is None:
        return None
    return UserError(
        f"{lost} is not there on {socket.gethostname()}, a node of the Ray cluster: the data and "
        "--out must lie in folders that all nodes have under the same path"
    )


def passed_on(loggers: Sequence[str]) -> dict[str, str]:
    """Return the environment variables that the nodes get, keys of no other service among them.

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
    """Return the files and folders that runs read."""
    given = (config.data, config.weights, config.attention, config.data_root, config.model)
    paths = [path.removeprefix("local-dir:").removeprefix("hf/") for path in given if path]
    return [path for path in paths if Path(path).exists()]  # others are names of something


def _explained(ray: Any, error: Exception) -> Exception:
    """Return the message that an error of Ray means; errors of ours stay."""
    errors = ray.exceptions
    if isinstance(error, errors.RayTaskError) and isinstance(error.cause, ImportError):
        return UserError(
            f"a node of the Ray cluster cannot import delta-transfer ({error.cause}): "
            "install the same version on all nodes"
        )
    if isinstance(error, errors.RayTaskError) or not isinstance(error, errors.RayError):
        return error
    said = " ".join(str(error).split())
    return UserError(
        "a process of the Ray cluster that made runs died again and again, as it does when "
        f"memory runs out: make fewer at a time, --jobs 1 ({type(error).__name__}: {said})"
    )


@contextlib.contextmanager
def _connecting(address: str) -> Iterator[None]:
    """Turn errors into messages; give SIGTERM, which Ray takes, back."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except (OSError, OverflowError, RuntimeError, ValueError, AssertionError) as error:
        said = " ".join(str(error).split())
        if "AF_UNIX" in said:
            raise UserError(
                f"the folder for temporary files, {tempfile.gettempdir()}, has too long a name for "
                "Ray: put TMPDIR=/tmp before the command"
            ) from error
        raise UserError(
            f"--ray {address}: there is no connection to a Ray cluster ({said[:200]}): give auto, "
            "HOST:PORT or ray://HOST:PORT of one, or local, which starts one on this machine"
        ) from error
    finally:
        with contextlib.suppress(ValueError):  # only the main thread may, and Ray takes it there
            signal.signal(signal.SIGTERM, before)
