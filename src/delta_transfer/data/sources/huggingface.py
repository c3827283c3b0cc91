"""`hf/<name>`: datasets of the Hugging Face Hub, or saved to disk by its library `datasets`."""

import io
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from delta_transfer.data.download import format_error
from delta_transfer.data.images.decode import ImageError, decode_image
from delta_transfer.data.names import HUB as PREFIX
from delta_transfer.data.splits import (
    PartialTaskData,
    SplitNames,
    SplitOptions,
    check_split_classes,
    choose_splits,
    draw_missing_splits,
    find_name,
)
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import DataError, EnvironmentError, first_few
from delta_transfer.utils.paths import user_path

_FORMS = "hf/ORG/NAME, hf/ORG/NAME:CONFIG or hf/FOLDER, a folder written by save_to_disk"

_TEXT = ("string", "large_string", "string_view")


@dataclass(frozen=True, eq=False)
class HubReader:
    """Reads an image by a path such as `train/000123`.

    Args:
        display_name: the name of the data in messages.
        rows: the `datasets.Dataset` of each split, with images as they are stored.
        column: of the images.
        folder: images that are stored as paths may not be outside of it; None for the library's
            own folders.
    """

    display_name: str
    rows: dict[str, Any]
    column: str
    folder: Path | None

    def __call__(self, path: str) -> Image.Image:
        """Return the RGB image."""
        split, _, index = path.rpartition("/")
        stored = self.rows[split][int(index)][self.column] or {}
        name = f"{path} of {self.display_name}"
        if stored.get("bytes") is not None:
            return decode_image(io.BytesIO(stored["bytes"]), name=name)
        if not stored.get("path"):
            raise ImageError(
                f"there is no image in {name}: remove this row from the data",
                reason="there is no image in this row",
            )
        file = Path(stored["path"])
        if self.folder is not None and not file.resolve().is_relative_to(self.folder):
            raise ImageError(
                f"{name} is the path of a file outside of its folder ('{file}'), not an image: "
                "write the data again with save_to_disk, which stores images",
                reason="it is the path of a file outside of the folder",
            )
        return decode_image(file, name=f"{file}, {name}")


def load_hub(name: str, options: SplitOptions, data_root: str | None) -> TaskData:
    """Load a dataset of the Hugging Face Hub, or one saved to disk.

    Splits are found by their names: train; val, valid or validation; test. The columns are those of
    train. A split without the column of classes, or without any label, counts as missing.

    Args:
        name: `org/name`, `org/name:config`, or a folder written by `save_to_disk`.
        options: the missing splits to draw.
        data_root: downloads are unpacked into its folder `huggingface`; None for the library's own
            cache.

    Returns:
        The dataset; its paths are a split's name and the number of the row.

    Raises:
        UserError: if the library is not installed, there is no such data, or its splits, columns
            or labels are not as expected.
    """
    library = _library()
    display_name = f"'{PREFIX}{name}'"
    folder = user_path(name) if name and user_path(name).is_dir() else None
    if folder is None:
        loaded = _load_from_hub(library, name, data_root)
    else:
        loaded = _load_from_disk(library, folder)
    parts = dict(loaded) if isinstance(loaded, library.DatasetDict) else {"train": loaded}
    # A format that was saved with the rows would hide columns, and make labels tensors.
    parts = {split: rows.with_format(None) for split, rows in parts.items()}
    images, labels = _columns(parts, display_name)
    names = {split: _class_names(rows, labels) for split, rows in parts.items()}
    chosen, notes = _choose_splits(names, options.test_split, display_name)
    if folder is not None and data_root is not None:
        notes.append(f"`data_root={data_root}` is ignored: {display_name} is a folder")
    used = {split: parts[split] for split in (chosen.train, chosen.val, chosen.test) if split}
    _check_image_columns(used, images, display_name)
    train = next(iter(used))
    classes = _ordered_classes(used[train].features[labels], names[train])
    notes += _check_labels({split: names[split] for split in used}, classes, display_name)
    stored = library.Image(decode=False)
    reader = HubReader(
        display_name=display_name,
        rows={
            split: rows.select_columns([images]).cast_column(images, stored)
            for split, rows in used.items()
        },
        column=images,
        folder=None if folder is None else folder.resolve(),
    )
    splits = {split: _split(split, names[split], classes, reader) for split in used}
    unused = [column for column in used[train].features if column not in (images, labels)]
    if unused:
        notes.append(f"unused columns: {', '.join(unused)}")
    given = PartialTaskData(
        name=f"{PREFIX}{name}" if folder is None else os.path.basename(os.path.abspath(folder)),
        display_name=display_name,
        classes=classes,
        train=splits[train],
        val=None if chosen.val is None else splits[chosen.val],
        test=None if chosen.test is None else splits[chosen.test],
        notes=tuple(notes),
    )
    return draw_missing_splits(given, options, test_fraction=chosen.test_fraction)


def _library() -> ModuleType:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise EnvironmentError(
            f"{PREFIX}NAME needs the library datasets ({error}): pip install 'delta-transfer[hf]'"
        ) from error
    version = datasets.__version__
    if int(version.partition(".")[0]) < 4:
        raise EnvironmentError(
            f"{PREFIX}NAME needs datasets 4 or later, and {version} is installed, which would run "
            "code from a dataset: pip install 'delta-transfer[hf]'"
        )
    module: ModuleType = datasets
    return module


def _load_from_hub(library: Any, name: str, data_root: str | None) -> Any:
    repository, _, config = name.partition(":")
    if not repository or repository[0] in "/.~" or repository.count("/") > 1:
        raise DataError(f"there is no folder '{name}' for '{PREFIX}{name}': pass {_FORMS}")
    cache = None if data_root is None else str(user_path(data_root) / "huggingface")
    try:
        return library.load_dataset(repository, config or None, cache_dir=cache)
    # Anything may be raised: for the connection, the Hub, the files there, the disk.
    except Exception as error:
        raise DataError(
            f"cannot load '{PREFIX}{name}' from the Hugging Face Hub ({format_error(error)}): "
            f"pass {_FORMS}; the Hub must be reachable, and a gated or private dataset needs "
            "'hf auth login'"
        ) from error


def _load_from_disk(library: Any, folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise DataError(
            f"'{folder}' was not written by save_to_disk of the library datasets (it has neither "
            f"dataset_dict.json nor state.json): pass {_FORMS}, or a folder of images without "
            f"{PREFIX}"
        )
    try:
        return library.load_from_disk(str(folder))
    # Damaged files may raise anything in the library and in Arrow.
    except Exception as error:
        raise DataError(
            f"the dataset in '{folder}' cannot be read ({format_error(error)}): write it again "
            "with save_to_disk"
        ) from error


def _columns(parts: Mapping[str, Any], display_name: str) -> tuple[str, str]:
    """Return the columns of images and of classes in the training split."""
    train = find_name(list(parts), ("train",), display_name=display_name)
    if train is None:
        raise _no_train(display_name, parts)
    display_name = display_name if len(parts) == 1 else f"the split {train} of {display_name}"
    features = parts[train].features
    return _image_column(features, display_name), _label_column(features, display_name)


def _image_column(features: Any, display_name: str) -> str:
    """Return the column of images: the only one, or that with the name `image`."""
    import datasets

    found = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    return _only_column(found, "image", "column of images", features, display_name)


def _label_column(features: Any, display_name: str) -> str:
    """Return the column of classes.

    That is `label` or `labels`, if there is one; else the only one of class labels or, without
    those, the only one of text.
    """
    import datasets

    named: list[str] = [n for usual in ("label", "labels") for n in features if n.lower() == usual]
    if named and not _is_class_column(features[named[0]]):
        raise _no_classes(named[0], features[named[0]], display_name)
    if named:
        return named[0]
    found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    found = found or [name for name, kind in features.items() if _is_class_column(kind)]
    return _only_column(found, "label", "column of class labels or text", features, display_name)


def _only_column(
    found: Sequence[str], usual: str, kind: str, features: Any, display_name: str
) -> str:
    if len(found) == 1:
        return found[0]
    if usual in found:
        return usual
    columns = ", ".join(f"{name} ({type(feature).__name__})" for name, feature in features.items())
    problem = f"more than one {kind}, {first_few(found)}" if found else f"no {kind}"
    raise DataError(
        f"{display_name} has {problem}; its columns are {columns}: make one Image column and one "
        "ClassLabel or string column, with the names 'image' and 'label' if there are several "
        "(rename_column, remove_columns and cast_column of the library, then save_to_disk)"
    )


def _no_classes(column: str, kind: Any, display_name: str) -> DataError:
    """Return the error for a column `label` of numbers, of several classes per image, ..."""
    import datasets

    if isinstance(kind, datasets.Value):
        found = kind.dtype
        hint = f"name the classes with cast_column('{column}', ClassLabel(names=[...]))"
    else:
        found = type(kind).__name__
        hint = "make it a column with one class per image, as text or as a ClassLabel"
    return DataError(
        f"{display_name}: the column '{column}' has {found}, not class labels or text: {hint}, "
        "then save_to_disk; if another column has the classes, remove this one (remove_columns) "
        "and rename that one to 'label' (rename_column)"
    )


def _is_class_column(kind: Any) -> bool:
    """Return whether a column of this kind has classes: class labels, or text."""
    import datasets

    text = isinstance(kind, datasets.Value) and kind.dtype in _TEXT
    return bool(text or isinstance(kind, datasets.ClassLabel))


def _class_names(rows: Any, column: str) -> list[str]:
    """Return the class name of each row; "" for rows without a label or such a column."""
    import datasets

    kind = rows.features.get(column)
    if not _is_class_column(kind):
        return [""] * len(rows)
    # Sliced, so that it is a list with every release of the library.
    labels = rows.select_columns([column])[:][column]
    if not isinstance(kind, datasets.ClassLabel):
        return ["" if label is None else label.strip() for label in labels]
    # The convention of the Hub: an unlabelled row has -1.
    return ["" if label is None or label < 0 else kind.names[label] for label in labels]


def _ordered_classes(kind: Any, names: Iterable[str]) -> tuple[str, ...]:
    """Return the classes among these names: in the order of class labels, or sorted."""
    import datasets

    found = set(names)
    if isinstance(kind, datasets.ClassLabel):
        return tuple(name for name in kind.names if name in found)
    return tuple(sorted(found))


def _check_image_columns(used: Mapping[str, Any], column: str, display_name: str) -> None:
    """Check that all splits have their images in the same column."""
    import datasets

    train = next(iter(used))
    for split, rows in used.items():
        if not isinstance(rows.features.get(column), datasets.Image):
            raise DataError(
                f"{display_name}: the split {train} has its images in the column '{column}', but "
                f"the split {split} has no such column of images (it has "
                f"{', '.join(rows.features)}): use the same names (rename_column, cast_column), "
                "then save_to_disk"
            )


def _choose_splits(
    names: Mapping[str, list[str]], test_split: str, display_name: str
) -> tuple[SplitNames, list[str]]:
    """Return the splits to use, of those with labels, and notes on the others."""
    labelled = [split for split, classes in names.items() if any(classes)]
    unlabelled = [split for split in names if split not in labelled]
    chosen = choose_splits(labelled, test_split, display_name=display_name)
    if chosen.train is None:
        raise _no_train(display_name, labelled, unlabelled)
    notes = []
    if unlabelled:
        notes.append(f"unused splits without labels: {', '.join(unlabelled)}")
    if chosen.unused:
        notes.append(f"unused splits: {', '.join(chosen.unused)}")
    return chosen, notes


def _no_train(
    display_name: str, labelled: Iterable[str], unlabelled: Iterable[str] = ()
) -> DataError:
    found = [*labelled, *(f"{split} (without labels)" for split in unlabelled)]
    return DataError(
        f"{display_name} has no split 'train', but {', '.join(found)}: rename the training split "
        "to 'train', then save_to_disk"
    )


def _check_labels(
    names: Mapping[str, list[str]], classes: Sequence[str], display_name: str
) -> list[str]:
    """Check that every row has a label of a training class, and that there are two classes.

    Returns:
        A note for each split that lacks a class.
    """
    blank = [f"{split}/{i}" for split, part in names.items() for i, n in enumerate(part) if not n]
    if blank:
        raise DataError(
            f"{display_name} has rows without a label: {first_few(blank)}; remove them (the "
            "library's filter), then save_to_disk"
        )
    notes = check_split_classes(
        names,
        display_name=display_name,
        hint="remove these classes from the other splits (the library's filter), then save_to_disk",
        locations={},
    )
    if len(classes) < 2:
        raise DataError(
            f"{display_name} has only one class, '{classes[0]}', and needs at least two"
        )
    return notes


def _split(split: str, names: Sequence[str], classes: Sequence[str], reader: HubReader) -> Split:
    labels = {name: label for label, name in enumerate(classes)}
    return Split(
        paths=tuple(f"{split}/{index:06d}" for index in range(len(names))),
        labels=tuple(labels[name] for name in names),
        read=reader,
    )
