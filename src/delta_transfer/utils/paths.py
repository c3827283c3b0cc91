"""A text that the user gives becomes a path, and what is wrong with it an error of the user's."""

from contextlib import suppress
from pathlib import Path

from delta_transfer.errors import UserError


def user_path(text: str) -> Path:
    """The path that a text stands for, with `~` for the user's folder; it need not be there.

    Raises:
        UserError: if the system cannot look for it: there is no such user, the name is too long,
            or a folder on the way may not be entered.
    """
    try:
        path = Path(text).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError):
            path.stat()
    # Of an unknown user, of the system, of a name with a null character.
    except (RuntimeError, OSError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        shown = text if len(text) <= 100 else f"{text[:100]}..."
        raise UserError(
            f"cannot look for the file or folder '{shown}' ({reason.rstrip('.')}): give a path "
            "that is there and can be read, or a name"
        ) from error
    return path
