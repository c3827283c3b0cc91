"""Paths from user input."""

from contextlib import suppress
from pathlib import Path

from delta_transfer.errors import DataError


def user_path(text: str) -> Path:
    """Return a path with `~` expanded; it need not exist.

    Raises:
        DataError: if the system cannot look it up: the user is unknown, the name too long, or a
            folder on the way not accessible.
    """
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    # An unknown user, an error of the system, a null character in the name.
    except (RuntimeError, OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        raise DataError(
            f"cannot access the file or folder '{shown}' ({reason.rstrip('.')}): pass a readable "
            "path, or a name"
        ) from error
    return path
