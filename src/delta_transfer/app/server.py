"""Serve the web app: address, port, allowed hosts and shutdown."""

import contextlib
import errno
import ipaddress
import logging
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil

from delta_transfer.errors import ConfigError, EnvironmentError

if TYPE_CHECKING:  # starlette is an optional dependency
    from starlette.types import ASGIApp

logger = logging.getLogger(__name__)

_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")


def need_app_libraries() -> None:
    """Check that the app's optional dependencies are installed.

    Raises:
        EnvironmentError: if one is missing.
    """
    try:
        import python_multipart  # noqa: F401
        import starlette  # noqa: F401
        import torchcam  # noqa: F401
        import uvicorn  # noqa: F401
    except ModuleNotFoundError as error:
        raise EnvironmentError(
            f"app requires starlette, uvicorn, python-multipart and torchcam ({error}): "
            "pip install 'delta-transfer[app]'"
        ) from error


@contextlib.contextmanager
def listen(host: str, port: int) -> Iterator[socket.socket]:
    """Open a listening socket, and close it at the end.

    Args:
        host: name or address of this machine.
        port: 0 for a free one.

    Raises:
        ConfigError: if it is in use, or not an address of this machine.
    """
    fix = "use an address of this machine, or leave it out for 127.0.0.1"
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"`host={host}`: {error.strerror}; {fix}") from error
    try:
        found = socket.create_server((str(address[0]), port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise ConfigError(f"`host={host}`: {error.strerror}; {fix}") from error
        raise ConfigError(
            f"`port={port}`: {error.strerror}; use another port, or 0 for a free one"
        ) from error
    with found:
        if not is_loopback(found):
            logger.warning("anyone who can reach %s can use the page: it has no password", host)
        yield found


def is_loopback(listener: socket.socket) -> bool:
    """Return True if only this machine can reach the socket."""
    return ipaddress.ip_address(listener.getsockname()[0]).is_loopback


def browser_url(listener: socket.socket, host: str) -> str:
    """Return the URL to open in a browser."""
    port = listener.getsockname()[1]
    if _is_unspecified(listener):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def allowed_hosts(listener: socket.socket, host: str) -> list[str]:
    """Return the host names and addresses that requests may use."""
    if is_loopback(listener):
        return [*_LOOPBACK, _bracketed(listener.getsockname()[0]), _bracketed(host)]
    own = [
        found.address.partition("%")[0]
        for addresses in psutil.net_if_addrs().values()
        for found in addresses
        if found.family in (socket.AF_INET, socket.AF_INET6)
    ]
    # 0.0.0.0 stands for all addresses; a browser should not use it.
    named = [] if _is_unspecified(listener) else [host]
    names = [*named, socket.gethostname(), socket.getfqdn(), *own]
    return [*_LOOPBACK, *map(_bracketed, names)]


def serve(app: "ASGIApp", listener: socket.socket) -> None:
    """Serve a web application until Ctrl-C or SIGTERM, then shut down gracefully."""
    import uvicorn

    config = uvicorn.Config(
        app,
        access_log=False,
        http="h11",
        lifespan="off",
        log_config=None,
        log_level="warning",
        loop="asyncio",
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=5,
        ws="none",
    )
    # Uvicorn raises the signal again after it has shut down.
    with contextlib.suppress(KeyboardInterrupt):
        uvicorn.Server(config).run(sockets=[listener])


def _is_unspecified(listener: socket.socket) -> bool:
    return ipaddress.ip_address(listener.getsockname()[0]).is_unspecified


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
