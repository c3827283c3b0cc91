"""The pictures below a class folder: sorted, through symbolic links, without going in circles."""

import os
from collections.abc import Iterator
from pathlib import Path

from delta_transfer.data.images import IMAGE_SUFFIXES
from delta_transfer.errors import UserError


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones are skipped, links are followed."""
    return [entry for entry in _entries(folder) if entry.is_dir()]


def loose_pictures(folder: Path) -> list[Path]:
    """The pictures that lie directly in a folder, sorted by name."""
    return [entry for entry in _entries(folder) if _is_picture(entry)]


def find_pictures(folder: Path, *, root: Path) -> list[str]:
    """All pictures in a folder and in the folders below it.

    Args:
        folder: where to look; each real folder is visited once, however many links lead to it.
        root: the data folder; links that lead back to it, or to a folder between it and `folder`,
            are not followed.

    Returns:
        Sorted paths relative to `root`, with forward slashes.

    Raises:
        UserError: if a folder cannot be listed.
    """
    between = [parent for parent in folder.parents if parent.is_relative_to(root)]
    seen = {os.path.realpath(parent) for parent in between}
    return sorted(path.relative_to(root).as_posix() for path in _walk(folder, seen))


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in _entries(folder):
        if entry.is_dir():
            yield from _walk(entry, seen)
        elif _is_picture(entry):
            yield entry


def _is_picture(path: Path) -> bool:
    """Whether a path counts as a picture; a broken link does, so that it is not lost silently."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _entries(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"cannot list the folder '{folder}' ({error.strerror}); make it readable or remove it"
        ) from error
    return [entry for entry in entries if not entry.name.startswith(".")]
