"""The connection to a Ray cluster, or a Ray that is started for a command."""

import contextlib
import dataclasses
import logging
import os
import re
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from typing import Any

from delta_transfer.errors import UserError
from delta_transfer.utils.devices import cpu_count

_STORE = 80 * 2**20  # bytes for what tasks give each other, which is next to nothing; Ray's least


@dataclasses.dataclass(frozen=True, kw_only=True)
class Node:
    """What a node of the cluster has for us.

    Args:
        id: Ray's name of it.
        cores: how many.
        gpus: how many.
        memory: in bytes.
    """

    id: str
    cores: int
    gpus: int
    memory: float


def node_of(found: dict[str, Any]) -> Node:
    """A node as `ray.nodes` tells of it."""
    has = found["Resources"]
    return Node(
        id=found["NodeID"],
        cores=int(has.get("CPU", 0)),
        gpus=int(has.get("GPU", 0)),
        memory=has.get("memory", 0.0),
    )


def import_ray() -> Any:
    """The library, which is loaded when it is asked for.

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


def connect(ray: Any, address: str) -> None:
    """Connects, or starts a Ray here.

    Raises:
        UserError: if that cannot be.
    """
    own = {"num_cpus": cpu_count(), "object_store_memory": _STORE, "include_dashboard": False}
    try:
        with _own_sigterm():
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.ERROR,
                **(own if address == "local" else {}),
            )
    except OSError as error:
        if "AF_UNIX" in str(error):
            raise UserError(
                f"the folder for temporary files, {tempfile.gettempdir()}, has too long a name for "
                "Ray: put TMPDIR=/tmp before the command"
            ) from error
        raise _no_cluster(address, error) from error
    except (RuntimeError, ValueError, AssertionError) as error:
        raise _no_cluster(address, error) from error


def check_port(address: str) -> None:
    """Whether anybody listens there, which Ray tries for minutes to find out.

    Raises:
        UserError: if nobody does.
    """
    found = re.fullmatch(r"(?:ray://)?\[?([^/]+?)\]?:(\d+)", address)
    if found is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), timeout=10).close()
    except (OSError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UserError:
    said = " ".join(str(error).split())
    return UserError(
        f"--ray {address}: there is no connection to a Ray cluster ({said[:200]}): give auto, "
        "HOST:PORT or ray://HOST:PORT of one, or local, which starts one on this machine"
    )


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Inside, Ray takes SIGTERM; afterwards it is again whose it was."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
