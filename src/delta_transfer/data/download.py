"""Data sets that are downloaded: where they lie, and a folder that is whole or absent."""

import contextlib
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

_ARCHIVES = (".tar", ".tar.gz", ".tgz", ".zip")
_SILENCE = 60.0  # seconds without an answer after which a connection counts as broken


def default_data_root() -> Path:
    """The folder for data sets where none is given: `delta-transfer/data` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(cache).expanduser() / "delta-transfer" / "data"


def download_folder(target: Path, fetch: Callable[[Path], object]) -> None:
    """Let `fetch` make a folder elsewhere and move it into place when it is whole.

    Whatever happens on the way, an interruption included, nothing half done stays behind. If
    someone else puts the folder there meanwhile, theirs stays.

    Args:
        target: the folder, which must not be there or must be empty.
        fetch: fills the folder that it is given, with `target.name` in it.

    Raises:
        OSError: if a folder cannot be written, or `fetch` raises it, as with anything else.
    """
    with (
        _made(target.parent),
        tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as temporary,
        _impatient(),
    ):
        fetch(Path(temporary))
        made = Path(temporary) / target.name
        for archive in made.iterdir():
            if archive.name.endswith(_ARCHIVES):
                archive.unlink()
        try:
            os.rename(made, target)
        except OSError:
            if not target.is_dir() or not any(target.iterdir()):
                raise


def size_in_words(megabytes: int) -> str:
    """A size as a person says it.

    Example:
        >>> size_in_words(170), size_in_words(2754)
        ('170 MB', '2.8 GB')
    """
    return f"{megabytes} MB" if megabytes < 1000 else f"{megabytes / 1000:.1f} GB"


def error_in_words(error: Exception) -> str:
    """An error's kind and text, on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@contextlib.contextmanager
def _made(folder: Path) -> Iterator[None]:
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
def _impatient() -> Iterator[None]:
    """Inside, a connection that says nothing fails instead of waiting for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
