"""The images below a class folder: sorted, through symbolic links, without going in circles."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from delta_transfer.data.images.decode import IMAGE_SUFFIXES
from delta_transfer.errors import UserError, first_few


def subfolders(folder: Path) -> list[Path]:
    """The folders in a folder, sorted by name; hidden ones are skipped, links are followed."""
    return [entry for entry in _entries(folder) if _is_folder(entry)]


def list_images(folder: Path) -> list[Path]:
    """The images that lie directly in a folder, sorted by name."""
    return [
        entry
        for entry in _entries(folder)
        if entry.suffix.lower() in IMAGE_SUFFIXES and not _is_folder(entry)
    ]


@dataclass(frozen=True)
class FolderContents:
    """What lies in a folder and in the folders below it.

    Attributes:
        images: sorted paths, with forward slashes.
        ignored_suffixes: how many files there are whose ending is not that of an image, by their
            ending in small letters; hidden files do not count.
    """

    images: list[str]
    ignored_suffixes: Counter[str]


def find_files(folder: Path, *, root: Path) -> FolderContents:
    """The images in a folder and in the folders below it, and what else there is.

    Args:
        folder: where to look; each real folder is visited once, however many links lead to it.
        root: the data folder; links that lead back to it, or to a folder between it and `folder`,
            are not followed.

    Returns:
        The images with paths relative to `root`.

    Raises:
        UserError: if a folder cannot be listed.
    """
    between = [parent for parent in folder.parents if parent.is_relative_to(root)]
    seen = {os.path.realpath(parent) for parent in between}
    images, unread = [], Counter[str]()
    for path in _walk(folder, seen):
        ending = path.suffix.lower()
        # A broken link to an image counts, so that it is not lost silently.
        if ending in IMAGE_SUFFIXES:
            images.append(path.relative_to(root).as_posix())
        else:
            unread[ending] += 1
    return FolderContents(images=sorted(images), ignored_suffixes=unread)


def find_images(folder: Path, *, root: Path) -> list[str]:
    """The images that `find_files` finds."""
    return find_files(folder, root=root).images


def format_suffix_counts(counts: Counter[str]) -> str:
    """The numbers of files by their ending, the largest first.

    Example:
        >>> format_suffix_counts(Counter({".txt": 3, ".heic": 12, "": 1}))
        '12 .heic, 3 .txt, 1 without an ending'
    """
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return first_few([f"{count} {ending or 'without an ending'}" for ending, count in ordered])


def _walk(folder: Path, seen: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in seen:
        return
    seen.add(real)
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _walk(entry, seen)
        else:
            yield entry


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # the folder may be listed, but not looked into
        raise UserError(
            f"cannot look into the folder '{path.parent}' ({error.strerror}); make it accessible "
            "(on Linux and macOS: chmod +x), or remove it"
        ) from error


def _entries(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise UserError(
            f"cannot list the folder '{folder}' ({error.strerror}); make it readable or remove it"
        ) from error
    return [entry for entry in entries if not entry.name.startswith(".")]
