"""Images and their classes from a CSV file."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from delta_transfer.data.sources.csv_rows import Row, read_rows, refuse_lines
from delta_transfer.data.sources.folder import FolderReader
from delta_transfer.data.splits import (
    SPLIT_ALIASES,
    PartialTaskData,
    SplitOptions,
    check_split_classes,
    draw_missing_splits,
)
from delta_transfer.data.task import LabelledSplit, Split, TaskData
from delta_transfer.errors import DataError


@dataclass(frozen=True, slots=True)
class _ImageRow:
    """An image of the file.

    Attributes:
        line: where its row begins.
        path: relative to the CSV file's folder, as written there if possible.
        real_path: the absolute path, with links resolved.
        label: the class.
        split: "train", "val" or "test"; "" without such a column.
    """

    line: int
    path: str
    real_path: str
    label: str
    split: str


def load_csv(file: Path, options: SplitOptions) -> TaskData:
    """Load a CSV file with the columns `path`, `label` and, optionally, `split`.

    Paths are relative to the file's folder and may not lead out of it. Without a column `split`
    all rows are training images.

    Args:
        file: the CSV file.
        options: the missing splits to draw; `test_split` may not be a name.

    Returns:
        The dataset; its paths are relative to the file's folder, its classes sorted.

    Raises:
        UserError: naming the lines, if the file is not as expected.
    """
    images, unused = _labelled_images(file)
    parts = {
        name: [image for image in images if (image.split or "train") == name]
        for name in ("train", "val", "test")
    }
    if not parts["train"]:
        raise DataError(
            f"'{file}' has no row with the split 'train': write 'train' into the column 'split' of "
            "the rows to train on"
        )
    parts = {name: part for name, part in parts.items() if part}
    classes, lacking = _classes(file, parts)
    splits = {name: _split(part, classes, file.parent) for name, part in parts.items()}
    given = PartialTaskData(
        name=file.stem,
        display_name=f"'{file}'",
        classes=classes,
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        notes=(*lacking, *([f"unused columns: {', '.join(unused)}"] if unused else [])),
    )
    return draw_missing_splits(
        given,
        options,
        test_fraction=options.test_fraction(given.display_name, has_test="test" in splits),
        hint="add images, leave the class out, or name these splits in the column split",
    )


def load_labelled_csv(file: Path) -> LabelledSplit:
    """Load the test split of a CSV file, or all its images without one.

    Args:
        file: as for `load_csv`, but one class is enough.

    Raises:
        UserError: naming the lines, if the file is not as expected.
    """
    images, _ = _labelled_images(file)
    test = [image for image in images if image.split == "test"]
    chosen = test or images
    classes = tuple(sorted({image.label for image in chosen}))
    return LabelledSplit(classes, _split(chosen, classes, file.parent), is_test=bool(test))


def list_csv(file: Path) -> list[str]:
    """Return the files in the column `path` of a CSV file, in order.

    Raises:
        UserError: if the file is not as expected, or a path is missing or outside of its folder.
    """
    rows, _ = read_rows(file, required=("path",))
    return [str(file.parent / image.path) for image in _existing_images(file, rows)]


def _labelled_images(file: Path) -> tuple[list[_ImageRow], tuple[str, ...]]:
    """Return the images, each listed once, and the unused columns."""
    rows, unused = read_rows(file, required=("path", "label"), optional=("split",))
    check_split_column(file, rows)
    images = _existing_images(file, rows)
    first: dict[str, int] = {}
    again = [
        (image.line, f"'{image.path}', also in line {first[image.real_path]}")
        for image in images
        if first.setdefault(image.real_path, image.line) != image.line
    ]
    refuse_lines(file, "an image is listed twice", again, hint="keep one of the rows")
    return images, unused


def check_split_column(file: Path, rows: Sequence[Row]) -> None:
    """Check that the fields of a column `split`, if there is one, are known.

    Raises:
        DataError: naming the lines of other fields.
    """
    unknown = [
        (row.line, f"'{row.fields['split']}'")
        for row in rows
        if row.fields.get("split", "train").lower() not in SPLIT_ALIASES
    ]
    hint = f"write one of {', '.join(SPLIT_ALIASES)}"
    refuse_lines(file, "the split is unknown", unknown, hint=hint)


def _existing_images(file: Path, rows: Sequence[Row]) -> list[_ImageRow]:
    """Return the images; all files must exist in the CSV file's folder."""
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
        hint="move the image into this folder, and write its path relative to the CSV file",
    )
    refuse_lines(
        file,
        "there is no such file",
        missing,
        hint=f"paths are relative to '{file.parent}', with forward slashes",
    )
    return images


class _PathResolver:
    """Resolves paths below a folder, and caches resolved parents for files of many rows.

    Args:
        path: the folder, which entries are relative to and may not leave, also not by a link.
    """

    def __init__(self, path: Path) -> None:
        self._path = os.fspath(path)
        self._inside = os.path.join(os.path.realpath(path), "")
        self._parents: dict[str, str] = {}

    def resolve(self, entry: str) -> str | None:
        """Return the real path of an entry; None if it leads out of the folder."""
        parent, name = os.path.split(os.path.join(self._path, entry))
        if parent not in self._parents:
            self._parents[parent] = os.path.realpath(parent)
        real = os.path.join(self._parents[parent], name)
        if name in ("", ".", "..") or os.path.islink(real):
            real = os.path.realpath(real)
        return real if os.path.join(real, "").startswith(self._inside) else None

    def relative_path(self, entry: str, real: str) -> str:
        """Return an entry's path below the folder: as written, if that is a plain path."""
        if os.path.isabs(entry) or ".." in entry:
            return Path(real).relative_to(self._inside).as_posix()
        return os.path.normpath(entry).replace(os.sep, "/")


def _classes(
    file: Path, splits: Mapping[str, list[_ImageRow]]
) -> tuple[tuple[str, ...], list[str]]:
    """Return the classes, at least two, and a note for each split that lacks one."""
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
        raise DataError(
            f"'{file}' has only one class, '{classes[0]}', and needs at least two: add rows with "
            "another label"
        )
    return classes, notes


def _split(images: Sequence[_ImageRow], classes: Sequence[str], folder: Path) -> Split:
    labels = {name: label for label, name in enumerate(classes)}
    return Split(
        paths=tuple(image.path for image in images),
        labels=tuple(labels[image.label] for image in images),
        read=FolderReader(folder),
    )
