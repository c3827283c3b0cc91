"""A CSV file that lists images and their classes becomes a Task."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from delta_transfer.data.sources.csv_rows import Row, read_rows, refuse_lines
from delta_transfer.data.sources.folder import FolderReader
from delta_transfer.data.splits import (
    SPLIT_ALIASES,
    PartialTaskData,
    check_split_classes,
    draw_missing_splits,
    parse_test_fraction,
)
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError


@dataclass(frozen=True, slots=True)
class _ImageRow:
    """A row of the file.

    Attributes:
        line: where it begins.
        path: below the CSV file's folder, as written there if it can be.
        real_path: the whole path, with all links followed.
        label: the class.
        split: "train", "val" or "test"; "" without such a column.
    """

    line: int
    path: str
    real_path: str
    label: str
    split: str


def load_csv(file: Path, *, seed: int, val_fraction: float, test_split: str) -> TaskData:
    """A task from a CSV file with the columns `path`, `label` and, if wanted, `split`.

    Paths are relative to the file's folder and may not lead out of it. Without the column `split`
    all rows are training images. A missing validation split is drawn, class by class; a test
    split only if a fraction is asked for.

    Args:
        file: the CSV file.
        seed: draws the splits that are not there.
        val_fraction: the part of the training images held out for validation, if no row has the
            split `val`.
        test_split: the default, or a fraction such as "0.2" of the training images to draw a
            test split.

    Returns:
        The task; its paths are relative to the file's folder, its classes sorted.

    Raises:
        UserError: if the file is not as it must be; naming the lines.
    """
    images, unused = _labelled(file)
    by_split = {name: [p for p in images if p.split == name] for name in ("val", "test")}
    train = [image for image in images if image.split in ("", "train")]
    if not train:
        raise UserError(
            f"'{file}': no row has the split 'train', and there is nothing to learn from: write "
            "'train' into the column split"
        )
    classes, lacking = _classes(file, {"train": train, **{k: v for k, v in by_split.items() if v}})
    val, test = (_split(part, classes, file.parent) for part in by_split.values())
    given = PartialTaskData(
        name=file.stem,
        display_name=f"'{file}'",
        classes=classes,
        train=_split(train, classes, file.parent),
        val=val if len(val) else None,
        test=test if len(test) else None,
        notes=(*lacking, *([f"columns that are not used: {', '.join(unused)}"] if unused else [])),
    )
    return draw_missing_splits(
        given,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=parse_test_fraction(
            test_split, display_name=given.display_name, has_test=len(test) > 0
        ),
        hint="add images, leave the class out, or give these splits in the column split",
    )


def load_labelled_csv(file: Path) -> tuple[tuple[str, ...], Split, bool]:
    """The images of a CSV file to measure a network on: of its test split, or all without one.

    Args:
        file: as for `load_csv`; one class is enough.

    Returns:
        The class names; the images, whose paths are relative to the file's folder; whether they
        are a test split.

    Raises:
        UserError: if the file is not as it must be; naming the lines.
    """
    images, _ = _labelled(file)
    test = [image for image in images if image.split == "test"]
    chosen = test or images
    classes = tuple(sorted({image.label for image in chosen}))
    return classes, _split(chosen, classes, file.parent), bool(test)


def list_csv(file: Path) -> list[str]:
    """The files that the column `path` of a CSV file lists, in its order; no other is needed.

    Raises:
        UserError: if the file is not as it must be, or a path leads out of its folder or nowhere.
    """
    rows, _ = read_rows(file, required=("path",))
    return [str(file.parent / image.path) for image in _existing_images(file, rows)]


def _labelled(file: Path) -> tuple[list[_ImageRow], tuple[str, ...]]:
    """The images, each listed once, and the columns that are not used."""
    rows, unused = read_rows(file, required=("path", "label"), optional=("split",))
    strange = [
        (row.line, f"'{row.fields['split']}'")
        for row in rows
        if row.fields.get("split", "train").lower() not in SPLIT_ALIASES
    ]
    allowed = ", ".join(SPLIT_ALIASES)
    refuse_lines(file, "the split is unknown", strange, hint=f"write one of {allowed}")
    images = _existing_images(file, rows)
    first: dict[str, int] = {}
    again = [
        (image.line, f"'{image.path}', also in line {first[image.real_path]}")
        for image in images
        if first.setdefault(image.real_path, image.line) != image.line
    ]
    refuse_lines(file, "an image is listed twice", again, hint="keep one of the rows")
    return images, unused


def _existing_images(file: Path, rows: Sequence[Row]) -> list[_ImageRow]:
    """The rows whose files are there, in the CSV file's folder."""
    folder = _PathResolver(file.parent)
    outside, missing, images = [], [], []
    for row in rows:
        entry = row.fields["path"]
        real = folder.resolve(entry)
        if real is None:
            outside.append((row.line, f"'{entry}'"))
        elif not os.path.isfile(real):
            missing.append((row.line, f"'{entry}'"))
        else:
            path = folder.relative_path(entry, real)
            split = SPLIT_ALIASES.get(row.fields.get("split", "").lower(), "")
            images.append(_ImageRow(row.line, path, real, row.fields.get("label", ""), split))
    refuse_lines(
        file,
        f"the path leads out of '{file.parent}'",
        outside,
        hint="move the image into this folder, and give its path relative to the CSV file",
    )
    refuse_lines(
        file,
        "there is no such file",
        missing,
        hint=f"paths are relative to '{file.parent}', with forward slashes",
    )
    return images


class _PathResolver:
    """Tells where a CSV file's entries lead; what it has learnt of folders serves later entries.

    Args:
        path: what an entry is relative to and may not leave, not by a link either.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._inside = os.path.join(os.path.realpath(path), "")
        self._parents: dict[str, str] = {}

    def resolve(self, entry: str) -> str | None:
        """The entry's real path, with all links followed; None if it leads out of the folder."""
        parent, name = os.path.split(os.path.join(self._path, entry))
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        real = os.path.join(self._parents[parent], name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(real)
        return real if os.path.join(real, "").startswith(self._inside) else None

    def relative_path(self, entry: str, real: str) -> str:
        """The entry's path below the folder: as it is written, if that is a plain path."""
        if os.path.isabs(entry) or ".." in entry:
            return Path(real).relative_to(self._inside).as_posix()
        return os.path.normpath(entry).replace(os.sep, "/")


def _classes(file: Path, splits: dict[str, list[_ImageRow]]) -> tuple[tuple[str, ...], list[str]]:
    """The classes, at least two, and a note for each split that lacks one."""
    first: dict[str, int] = {}
    for image in sorted((p for part in splits.values() for p in part), key=lambda p: p.line):
        first.setdefault(image.label, image.line)
    notes = check_split_classes(
        {name: {image.label for image in part} for name, part in splits.items()},
        display_name=f"'{file}'",
        hint="add rows with these labels, or remove them from the other splits",
        locations={label: f" (line {line})" for label, line in first.items()},
    )
    classes = tuple(sorted(first))
    if len(classes) < 2:
        raise UserError(
            f"'{file}' has only one class, '{classes[0]}', and at least two are needed: add rows "
            "with another label"
        )
    return classes, notes


def _split(images: Sequence[_ImageRow], classes: Sequence[str], folder: Path) -> Split:
    labels = {name: label for label, name in enumerate(classes)}
    return Split(
        paths=tuple(image.path for image in images),
        labels=tuple(labels[image.label] for image in images),
        read=FolderReader(folder),
    )
