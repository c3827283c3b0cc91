"""One process at a time writes into the folder of a run or a comparison."""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from delta_transfer.errors import UserError

logger = logging.getLogger(__name__)

LOCK = ".lock"
"""Names its holder. What is left of a process that was killed locks nothing, and is taken over."""


@contextlib.contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Inside, no other process may write into a folder; it is made if there is none.

    The lock is the system's, and ends with this process however that ends. Of several processes
    that work on one run, the main one holds it for all. Where a folder cannot be locked, as on some
    network drives, a warning says so.

    Raises:
        UserError: if another process writes into it.
    """
    made = not folder.exists()
    lock = _acquire(folder)
    if lock is None:
        yield
        return
    path = Path(lock.lock_file)
    try:
        with contextlib.suppress(OSError):  # a full disk: the lock holds without a name
            path.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
        yield
    finally:
        path.unlink(missing_ok=True)  # while nobody else can have it
        if made:
            with contextlib.suppress(OSError):
                folder.rmdir()  # if there is nothing in it
        lock.release()


def check_unlocked(folder: Path) -> None:
    """Checks that no other process writes into a folder, before there is anything to write.

    Raises:
        UserError: if one does.
    """
    if (folder / LOCK).is_file():
        lock = _acquire(folder)
        if lock is not None:
            lock.release()


def _acquire(folder: Path) -> FileLock | None:
    """The lock, held; None where there is none to hold."""
    path = folder / LOCK
    holder = _holder(path)  # first: some versions of filelock empty the file
    lock = FileLock(path, timeout=0, fallback_to_soft=False)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"{holder} writes into {folder}: wait until it has finished, end it, or give another "
            "--out"
        ) from error
    except (OSError, NotImplementedError) as error:
        # Where nothing can be written, writing fails, and says so.
        if folder.is_dir() and os.access(folder, os.W_OK):
            logger.warning(
                "%s cannot be locked (%s): let no other process write into it", folder, error
            )
        return None
    return lock


def _holder(path: Path) -> str:
    """Who says that it has the lock."""
    try:
        return path.read_text(encoding="utf-8") or "another process"
    except (OSError, UnicodeDecodeError):
        return "another process"
