"""A lock on a folder, so that one process at a time writes to it."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from delta_transfer.errors import EnvironmentError

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Contains the name of its holder. The file of a killed process locks nothing and is reused."""


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes; create it if needed.

    The operating system releases the lock when this process ends, even if it is killed. In
    distributed training the main process holds it for all. A folder that cannot be locked, as on
    some network drives, is used with a warning.

    Raises:
        EnvironmentError: if another process holds the lock.
    """
    created = not folder.exists()
    lock = _acquire(folder)
    if lock is None:
        yield
        return
    path = Path(lock.lock_file)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock works without a name
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # while no other process can have it
        if created:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if it is empty
        lock.release()


def check_unlocked(folder: Path) -> None:
    """Check that no other process has locked a folder.

    Raises:
        EnvironmentError: if one has.
    """
    if (folder / LOCK).is_file():
        lock = _acquire(folder)
        if lock is not None:
            lock.release()


def _acquire(folder: Path) -> FileLock | None:
    """Return the acquired lock; None where the folder cannot be locked."""
    path = folder / LOCK
    holder = _holder(path)  # read first: some versions of filelock empty the file
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise EnvironmentError(
            f"{holder} is writing to {folder}: wait for it, stop it, or use another `out`"
        ) from error
    except (OSError, NotImplementedError) as error:
        # Where nothing can be written, the first write fails with a clear message.
        if folder.is_dir() and os.access(folder, os.W_OK):
            logger.warning(
                "%s cannot be locked (%s): make sure no other process writes to it", folder, error
            )
        return None
    return lock


def _holder(path: Path) -> str:
    """Return the name in the lock file."""
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
