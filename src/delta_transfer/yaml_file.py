"""YAML files of named values."""

from pathlib import Path
from typing import Any

import yaml

from delta_transfer.errors import UserError


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
