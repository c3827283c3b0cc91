"""Files that are whole or absent, fingerprints of what is in them, and the user's cache."""

import hashlib
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import platformdirs
import yaml

from delta_transfer.errors import UserError

CACHE = "DELTA_TRANSFER_CACHE"
"""Environment variable: a folder to use in place of `delta-transfer` in the user's cache."""


def write_atomically(path: Path, content: str | bytes) -> None:
    """Writes a file so that readers see the old content or the new, never a part.

    Raises:
        OSError: naming the file, if it cannot be written; nothing is left behind then.
    """
    data = content.encode() if isinstance(content, str) else content
    try:
        _write(path, data)
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)  # not the temporary one, or none
        raise


def _write(path: Path, data: bytes) -> None:
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes private files; give this one the mode of any other new file.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def fingerprint(chunks: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of the chunks one after the other, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
    return digest.hexdigest()


def cache_root() -> Path:
    """The folder for what other runs can use: that of `DELTA_TRANSFER_CACHE`.

    Without it that is `delta-transfer` in the user's cache (`~/.cache` on Linux). It may be emptied
    at any time; where it cannot be written, as in `/dev/null`, nothing is kept.
    """
    given = os.environ.get(CACHE)
    if given:
        return Path(os.path.expanduser(given))
    return platformdirs.user_cache_path("delta-transfer", appauthor=False)


def read_yaml(path: str | Path, *, wanted: str, option: str = "") -> dict[Any, Any]:
    """What a file holds by its keys, which are not checked.

    Args:
        path: the file.
        wanted: what it must hold, for the message.
        option: that named it, likewise.

    Raises:
        UserError: if it cannot be read, or is no mapping.
    """
    shown = f"{option} {path}".strip()
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{shown} cannot be read: {error.strerror}; give a file that holds {wanted}"
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())
        raise UserError(f"{shown} is no YAML: {said}; it must hold {wanted}") from error
    if not isinstance(values, dict):
        raise UserError(f"{shown} must hold {wanted}")
    return values
