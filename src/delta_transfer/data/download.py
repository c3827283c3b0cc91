"""Datasets that are downloaded: the folder they go to, which is complete or absent."""

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

from delta_transfer.errors import DataError
from delta_transfer.utils.paths import user_path

logger = logging.getLogger(__name__)

_ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".zip")
_SOCKET_TIMEOUT = 60.0  # seconds without an answer after which a connection counts as broken
_STALE_AFTER = 24 * 60 * 60.0  # seconds without a change after which a temporary folder is removed


def default_data_root() -> Path:
    """Return the default folder of datasets: `delta-transfer/data` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "delta-transfer" / "data"


def resolve_data_root(data_root: str | None) -> Path:
    """Return the folder of a `data_root`; the default one for None."""
    return default_data_root() if data_root is None else user_path(data_root)


def download_dataset(
    title: str,
    target: Path,
    fetch: Callable[[Path], object],
    *,
    root: Path,
    size: str = "",
    hint: str,
) -> None:
    """Download a dataset to a folder, which is complete or absent.

    An error or an interruption leaves nothing behind. The temporary folder of a killed process is
    removed by the next download of this folder, once it is a day old. If another process puts the
    folder there meanwhile, that one stays.

    Args:
        title: the name of the dataset in messages.
        target: the folder, missing or empty, or a link to such a folder.
        fetch: creates `target.name` in the folder passed to it; may raise anything.
        root: the folder of all datasets, for the message.
        size: of the download, for the log.
        hint: how to download it by hand, for the message.

    Raises:
        DataError: if that fails, or `target` is a file.
    """
    if target.exists() and not target.is_dir():
        raise DataError(f"'{target}' is a file, but must be a folder: move or remove it")
    logger.info("downloading %s%s to %s", title, f" ({size})" if size else "", target)
    try:
        _fill_folder(target, fetch)
    # Anything may be raised: for the connection, the server, the archive, the disk.
    except Exception as error:
        raise DataError(
            f"{title} is not in '{root}', and downloading it failed ({format_error(error)}). Try "
            f"again, or {hint}; or set `data_root`"
        ) from error


def _fill_folder(target: Path, fetch: Callable[[Path], object]) -> None:
    """Let `fetch` fill a temporary folder, and move it into place when it is complete."""
    name, target = target.name, Path(os.path.realpath(target))
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
    """Remove temporary folders of killed downloads that no process writes to."""
    ours = re.compile(rf"\.{re.escape(name)}-[a-z0-9_]{{8}}")
    for folder in parent.iterdir() if parent.is_dir() else ():
        if not ours.fullmatch(folder.name) or folder.is_symlink():
            continue
        with contextlib.suppress(OSError):  # in use by a process, or owned by another user
            # Unpacked files have the times of the archive, but their folders are new.
            newest = max(path.lstat().st_mtime for path in (folder, *folder.rglob("*")))
            if time.time() - newest > _STALE_AFTER:
                logger.info("removing '%s', a leftover of a killed download", folder)
                shutil.rmtree(folder)


def format_size(megabytes: int) -> str:
    """Format a size for messages.

    Example:
        >>> format_size(170), format_size(2754)
        ('170 MB', '2.8 GB')
    """
    return f"{megabytes} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def format_error(error: Exception) -> str:
    """Format type and text of an error on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextlib.contextmanager
def _ensure_folder(folder: Path) -> Iterator[None]:
    """Create a folder; after an error, remove the parents that were created for it."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # not empty: another process uses it
            for path in new:
                path.rmdir()
        raise


@contextlib.contextmanager
def _safe_tar_extraction() -> Iterator[None]:
    """Make members of tar archives that lead out of the folder an error.

    That is the default from Python 3.14 on, and in recent torchvision.
    """
    before = tarfile.TarFile.extraction_filter
    tarfile.TarFile.extraction_filter = staticmethod(tarfile.data_filter)
    try:
        yield
    finally:
        tarfile.TarFile.extraction_filter = before


@contextlib.contextmanager
def _socket_timeout() -> Iterator[None]:
    """Let a silent connection fail instead of waiting forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SOCKET_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
