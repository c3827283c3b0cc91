"""Files below a folder: sorted, through symbolic links without cycles, names in any case."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from delta_transfer.data.images.decode import IMAGE_SUFFIXES
from delta_transfer.errors import DataError, first_few


def subfolders(folder: Path) -> list[Path]:
    """Return the folders in a folder, sorted by name; hidden ones are skipped, links followed."""
    return [entry for entry in _entries(folder) if _is_folder(entry)]


def images_by_class(folder: Path, *, excluded: str) -> dict[str, list[Path]]:
    """Return the images directly in each class folder, except one that is not a class."""
    return {path.name: list_images(path) for path in subfolders(folder) if path.name != excluded}


def image_count_notes(name: str, count: int, *, expected: int) -> list[str]:
    """Return a note if a dataset does not have its published number of images."""
    if count == expected:
        return []
    return [f"{name} should have {expected} images, but there are {count}"]


def list_images(folder: Path) -> list[Path]:
    """Return the images directly in a folder, sorted by name."""
    return [
        entry
        for entry in _entries(folder)
        if entry.suffix.lower() in IMAGE_SUFFIXES and not _is_folder(entry)
    ]


@dataclass(frozen=True)
class FolderContents:
    """The files in a folder and in the folders below it.

    Attributes:
        images: sorted paths, with forward slashes.
        ignored_suffixes: the number of other files by their suffix in lower case; hidden files do
            not count.
    """

    images: list[str]
    ignored_suffixes: Counter[str]


def find_files(folder: Path, *, root: Path) -> FolderContents:
    """Return the images in a folder and in the folders below it, and the number of other files.

    Args:
        folder: where to search; each real folder is visited once, however many links lead to it.
        root: the data folder; links that lead back to it, or to a folder between it and `folder`,
            are not followed.

    Returns:
        The images with paths relative to `root`.

    Raises:
        DataError: if a folder cannot be listed.
    """
    between = [parent for parent in folder.parents if parent.is_relative_to(root)]
    visited = {os.path.realpath(parent) for parent in between}
    images, ignored = [], Counter[str]()
    for path in _walk(folder, visited):
        suffix = path.suffix.lower()
        # A broken link to an image counts, so that it is not lost silently.
        if suffix in IMAGE_SUFFIXES:
            images.append(path.relative_to(root).as_posix())
        else:
            ignored[suffix] += 1
    return FolderContents(images=sorted(images), ignored_suffixes=ignored)


def find_images(folder: Path, *, root: Path) -> list[str]:
    """Return the images of `find_files`."""
    return find_files(folder, root=root).images


def format_suffix_counts(counts: Counter[str]) -> str:
    """Format the numbers of files by their suffix, the largest first.

    Example:
        >>> format_suffix_counts(Counter({".txt": 3, ".heic": 12, "": 1}))
        '12 .heic, 3 .txt, 1 without a suffix'
    """
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return first_few([f"{count} {suffix or 'without a suffix'}" for suffix, count in ordered])


def find_ignoring_case(folder: Path, name: str) -> list[Path]:
    """Return the entries of a folder with this name: the exact one first, then other cases."""
    entries = sorted(folder.iterdir()) if folder.is_dir() else []
    alike = [path for path in entries if path.name.lower() == name.lower()]
    return sorted(alike, key=lambda path: path.name != name)


def candidate_folders(root: Path, *names: str) -> list[Path]:
    """Return where the files of a dataset may be: `root/name/raw`, `root/name`, `root`.

    Args:
        root: the folder of all datasets.
        names: the accepted names of this dataset's folder.
    """
    own = [folder for name in names for folder in find_ignoring_case(root, name)]
    return [*(raw for folder in own for raw in find_ignoring_case(folder, "raw")), *own, root]


def _walk(folder: Path, visited: set[str]) -> Iterator[Path]:
    real = os.path.realpath(folder)
    if real in visited:
        return
    visited.add(real)
    for entry in _entries(folder):
        if _is_folder(entry):
            yield from _walk(entry, visited)
        else:
            yield entry


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError as error:  # the parent may be listed, but not entered
        raise DataError(
            f"cannot enter the folder '{path.parent}' ({error.strerror}); make it accessible (on "
            "Linux and macOS: chmod +x), or remove it"
        ) from error


def _entries(folder: Path) -> list[Path]:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(
            f"cannot list the folder '{folder}' ({error.strerror}); make it readable or remove it"
        ) from error
    return [entry for entry in entries if not entry.name.startswith(".")]
