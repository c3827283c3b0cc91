"""Data sets that are downloaded: where they lie, and a folder that is whole or absent."""

import contextlib
import logging
import os
import re
import shutil
import socket
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from delta_transfer.errors import UserError

logger = logging.getLogger(__name__)

_ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
_SOCKET_TIMEOUT = 60.0  # seconds without an answer after which a connection counts as broken
_STALE_AFTER = (
    24 * 60 * 60.0
)  # seconds without a change after which a temporary folder is left over


def default_data_root() -> Path:
    """The folder for data sets where none is given: `delta-transfer/data` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "delta-transfer" / "data"


def download_folder(target: Path, fetch: Callable[[Path], object]) -> None:
    """Let `fetch` make a folder elsewhere and move it into place when it is whole.

    After an error or an interruption nothing half done stays behind. What a process leaves that
    is killed is removed by the next download of this folder, once it is a day old. If someone else
    puts the folder there meanwhile, theirs stays.

    Args:
        target: the folder, which must not be there or must be empty; it may be a link to such.
        fetch: fills the folder that it is given, with `target.name` in it.

    Raises:
        UserError: if there is a file in the folder's place.
        OSError: if a folder cannot be written, or `fetch` raises it, as with anything else.
    """
    name, target = target.name, Path(os.path.realpath(target))
    if target.exists() and not target.is_dir():
        raise UserError(f"'{target}' is a file, where a folder is to be made: move or remove it")
    _remove_leftovers(target.parent, name)
    with (
        _ensure_folder(target.parent),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{name}-") as temporary,
        _socket_timeout(),
        _safe_tar_extraction(),
    ):
        fetch(Path(temporary))
        made = Path(temporary) / name
        for archive in made.iterdir():
            if archive.name.endswith(_ARCHIVE_SUFFIXES):
                archive.unlink()
        with contextlib.suppress(OSError):  # an empty one, which Windows would not replace
            target.rmdir()
        try:
            os.rename(made, target)
        except OSError:
            if not target.is_dir() or not any(target.iterdir()):
                raise


def _remove_leftovers(parent: Path, name: str) -> None:
    """Remove the temporary folders of downloads that were killed, and that nobody writes to."""
    ours = re.compile(rf"\.{re.escape(name)}-[a-z0-9_]{{8}}")
    for folder in parent.iterdir() if parent.is_dir() else ():
        if not ours.fullmatch(folder.name) or folder.is_symlink():
            continue
        with contextlib.suppress(OSError):  # somebody is at work there, or it is not ours to remove
            # An archive unpacks old times, but the folders it unpacks into are of today.
            newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
            if time.time() - newest > _STALE_AFTER:
                logger.info("removing '%s', which a download has left behind", folder)
                shutil.rmtree(folder)


def format_size(megabytes: int) -> str:
    """A size as a person says it.

    Example:
        >>> format_size(170), format_size(2754)
        ('170 MB', '2.8 GB')
    """
    return f"{megabytes} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def format_error(error: Exception) -> str:
    """An error's kind and text, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextlib.contextmanager
def _ensure_folder(folder: Path) -> Iterator[None]:
    """Inside, the folder is there; after an error, what was made for it is gone again."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # somebody else has put something there
            for path in new:
                path.rmdir()
        raise


@contextlib.contextmanager
def _safe_tar_extraction() -> Iterator[None]:
    """Inside, what a tar archive would put outside of its folder is an error.

    So it is anyway from Python 3.14 on, and in torchvision of late.
    """
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    """Inside, a connection that says nothing fails instead of waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SOCKET_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
