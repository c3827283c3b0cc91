"""Atomic writes, CSV and YAML files, content hashes, and the location of the user's cache."""

import csv
import hashlib
import io
import os
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import platformdirs
import yaml

from delta_transfer.errors import ConfigError

_CACHE = "DELTA_TRANSFER_CACHE"
"""Environment variable that replaces the folder `delta-transfer` in the user's cache."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file so that readers see the old content or the new, never a part.

    Raises:
        OSError: naming the file, if it cannot be written; no temporary file is left.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        _write(path, data)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # not the temporary one
        raise


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; use the mode of any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def to_csv(rows: Sequence[Sequence[object]]) -> bytes:
    """Return the bytes of a table as a CSV file; None is an empty cell."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    # File names may contain bytes that are not valid text.
    return text.getvalue().encode(errors="backslashreplace")


def fingerprint(chunks: Iterable[bytes | memoryview]) -> str:
    """Return the SHA-256 of the concatenated chunks, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def cache_root() -> Path:
    """Return the folder for files that runs share: that of `DELTA_TRANSFER_CACHE`.

    Without it that is `delta-transfer` in the user's cache (`~/.cache` on Linux). It may be emptied
    at any time; where it cannot be written, as in `/dev/null`, nothing is cached.
    """
    if folder := os.environ.get(_CACHE):
        return Path(os.path.expanduser(folder))
    return platformdirs.user_cache_path("delta-transfer", appauthor=False)


def read_yaml(path: str | Path, *, wanted: str, option: str = "") -> dict[Any, Any]:
    """Read the mapping in a YAML file; keys and values are not checked.

    Args:
        path: the file.
        wanted: what it must contain, for the message.
        option: the option that named the file, for the message.

    Raises:
        ConfigError: if it cannot be read, or is not a mapping.
    """
    shown = f"{option} {path}".strip()
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"{shown} cannot be read: {error.strerror}; pass a file with {wanted}"
        ) from error
    except (ValueError, yaml.YAMLError) as error:  # ValueError: no text, or an impossible date
        reason = " ".join(str(error).split())
        raise ConfigError(f"{shown} is not YAML: {reason}; it must contain {wanted}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{shown} must contain {wanted}")
    return values
