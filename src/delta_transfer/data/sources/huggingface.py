"""`hf/<name>`: data sets of the Hugging Face hub, or saved to disk by its library `datasets`."""

import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from delta_transfer.data.download import format_error
from delta_transfer.data.images.decode import ImageError, decode_image
from delta_transfer.data.sources.huggingface_columns import (
    class_names,
    class_order,
    image_column,
    is_class_column,
    label_column,
)
from delta_transfer.data.splits import (
    PartialTaskData,
    SplitNames,
    check_split_classes,
    choose_splits,
    draw_missing_splits,
    find_name,
)
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError, first_few
from delta_transfer.utils.paths import user_path

PREFIX = "hf/"
FORMS = "hf/ORG/NAME, hf/ORG/NAME:CONFIG or hf/FOLDER, a folder written by save_to_disk"


@dataclass(frozen=True, eq=False)
class HubReader:
    """Reads an image by a path such as `train/000123`.

    Args:
        display_name: what messages call the data.
        rows: the `datasets.Dataset` of each split, with images as they are stored.
        column: of the images.
        folder: which the files of images that are stored by their path may not leave; None for
            the library's own folders.
    """

    display_name: str
    rows: dict[str, Any]
    column: str
    folder: Path | None

    def __call__(self, path: str) -> Image.Image:
        """The RGB image."""
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
                f"{name} is no image but the path of a file outside of its folder "
                f"('{file}'): write the data again with save_to_disk, which stores images",
                reason="it is the path of a file outside of the folder",
            )
        return decode_image(file, name=f"{file}, {name}")


def load_hub(
    name: str, *, seed: int, val_fraction: float, test_split: str, data_root: str | None
) -> TaskData:
    """The task of a data set on the Hugging Face hub, or of one saved to disk.

    Splits are told apart by their names: train; val, valid or validation; test. The columns are
    those of train. A split without the column of the classes, or in which no row has a label,
    counts as missing. A missing validation split is drawn, class by class; a test split only if a
    fraction is asked for.

    Args:
        name: `org/name`, `org/name:config`, or a folder written by `save_to_disk`.
        seed: draws the splits that are not there.
        val_fraction: the part of the training images held out for validation, if there is no
            validation split.
        test_split: the name of the test split, or a fraction such as "0.2" of the training
            images to draw one.
        data_root: what is downloaded is unpacked into its folder `huggingface`; None for the
            library's own cache.

    Returns:
        The task; its paths are a split's name and the number of the row.

    Raises:
        UserError: if the library is not installed, there is no such data, or its splits, columns
            or labels are not as they must be.
    """
    library = _library()
    source = f"'{PREFIX}{name}'"
    folder = user_path(name) if name and user_path(name).is_dir() else None
    if folder is None:
        loaded = _load_from_hub(library, name, data_root)
    else:
        loaded = _load_folder(library, folder)
    parts = dict(loaded) if isinstance(loaded, library.DatasetDict) else {"train": loaded}
    # A format that was saved with the rows would hide columns, and make labels tensors.
    parts = {split: rows.with_format(None) for split, rows in parts.items()}
    column, labels = _columns(parts, source)
    names = {split: _names(rows, labels) for split, rows in parts.items()}
    chosen, notes = _choose(names, test_split, source)
    if folder is not None and data_root is not None:
        notes.append(f"--data-root {data_root} is ignored: {source} is a folder")
    used = [split for split in (chosen.train, chosen.val, chosen.test) if split is not None]
    _check_images({split: parts[split] for split in used}, column, source)
    classes = class_order(parts[used[0]], labels, names[used[0]])
    notes += _check_labels({split: names[split] for split in used}, classes, source)
    stored = library.Image(decode=False)
    reader = HubReader(
        display_name=source,
        rows={
            split: parts[split].select_columns([column]).cast_column(column, stored)
            for split in used
        },
        column=column,
        folder=None if folder is None else folder.resolve(),
    )
    splits = {split: _split(split, names[split], classes, reader) for split in used}
    given = PartialTaskData(
        name=f"{PREFIX}{name}" if folder is None else os.path.basename(os.path.abspath(folder)),
        display_name=source,
        classes=classes,
        train=splits[used[0]],
        val=None if chosen.val is None else splits[chosen.val],
        test=None if chosen.test is None else splits[chosen.test],
        notes=(*notes, *_unused_columns(parts[used[0]], (column, labels))),
    )
    return draw_missing_splits(
        given, seed=seed, val_fraction=val_fraction, test_fraction=chosen.test_fraction
    )


def _library() -> ModuleType:
    try:
        import datasets
    except ModuleNotFoundError as error:
        raise UserError(
            f"{PREFIX}NAME needs the library datasets ({error}): pip install 'delta-transfer[hf]'"
        ) from error
    version = datasets.__version__
    if int(version.partition(".")[0]) < 4:
        raise UserError(
            f"{PREFIX}NAME needs the library datasets from version 4 on, and {version} is "
            "installed, which would run programs that a data set brings: pip install "
            "'delta-transfer[hf]'"
        )
    module: ModuleType = datasets
    return module


def _load_from_hub(library: Any, name: str, data_root: str | None) -> Any:
    repository, _, config = name.partition(":")
    if not repository or repository[0] in "/.~" or repository.count("/") > 1:
        raise UserError(f"there is no folder '{name}' for '{PREFIX}{name}': give {FORMS}")
    cache = None if data_root is None else str(user_path(data_root) / "huggingface")
    try:
        return library.load_dataset(repository, config or None, cache_dir=cache)
    # Anything may come: of the connection, the hub, the files there, the disk.
    except Exception as error:
        raise UserError(
            f"cannot load '{PREFIX}{name}' from the Hugging Face hub ({format_error(error)}): "
            f"give {FORMS}; the hub must be reachable, and a gated or private set needs "
            "'hf auth login'"
        ) from error


def _load_folder(library: Any, folder: Path) -> Any:
    if not any((folder / name).is_file() for name in ("dataset_dict.json", "state.json")):
        raise UserError(
            f"the folder '{folder}' was not written by save_to_disk of the library datasets (it "
            f"has neither dataset_dict.json nor state.json): give {FORMS}; a folder of images "
            f"is given without {PREFIX}"
        )
    try:
        return library.load_from_disk(str(folder))
    # Damaged files may raise anything in the library and in Arrow.
    except Exception as error:
        raise UserError(
            f"the data set in '{folder}' cannot be read ({format_error(error)}): write it again "
            "with save_to_disk"
        ) from error


def _columns(parts: dict[str, Any], display_name: str) -> tuple[str, str]:
    """The columns of the image and of the class in the split that is learnt from."""
    train = find_name(list(parts), ("train",), display_name=display_name)
    if train is None:
        raise _no_train(display_name, parts)
    display_name = display_name if len(parts) == 1 else f"the split {train} of {display_name}"
    features = parts[train].features
    return image_column(features, display_name=display_name), label_column(
        features, display_name=display_name
    )


def _names(rows: Any, labels: str) -> list[str]:
    """The name of each row's class; all are empty where there is no such column of classes."""
    there = labels in rows.features and is_class_column(rows.features[labels])
    return class_names(rows, labels) if there else [""] * len(rows)


def _check_images(used: dict[str, Any], column: str, display_name: str) -> None:
    """The splits that are used have their images in the same column."""
    import datasets

    train = next(iter(used))
    for split, rows in used.items():
        if not isinstance(rows.features.get(column), datasets.Image):
            raise UserError(
                f"{display_name}: the images are in the column '{column}' of the split {train}, "
                "but "
                f"the split {split} has no such column of images (it has "
                f"{', '.join(rows.features)}): give these columns the same names (rename_column, "
                "cast_column), then save_to_disk"
            )


def _choose(
    names: dict[str, list[str]], test_split: str, display_name: str
) -> tuple[SplitNames, list[str]]:
    """Which splits are used, of those with labels, and notes on the others."""
    labelled = [split for split, classes in names.items() if any(classes)]
    blank = [split for split in names if split not in labelled]
    chosen = choose_splits(labelled, test_split, display_name=display_name)
    if chosen.train is None:
        raise _no_train(display_name, labelled, blank)
    notes = []
    if blank:
        notes.append(f"splits without labels are not used: {', '.join(blank)}")
    if chosen.unused:
        notes.append(f"splits that are not used: {', '.join(chosen.unused)}")
    return chosen, notes


def _no_train(display_name: str, labelled: Iterable[str], blank: Iterable[str] = ()) -> UserError:
    there = [*labelled, *(f"{split} (without labels)" for split in blank)]
    return UserError(
        f"{display_name} has no split 'train' to learn from, but {', '.join(there)}: call the "
        "split with "
        "the training images 'train', then save_to_disk"
    )


def _check_labels(
    names: dict[str, list[str]], classes: Sequence[str], display_name: str
) -> list[str]:
    """Every row has a label, of a class that can be learnt, and there are at least two.

    Returns:
        A note for each split that lacks a class.
    """
    blank = [f"{split}/{i}" for split, part in names.items() for i, n in enumerate(part) if not n]
    if blank:
        raise UserError(
            f"{display_name} has rows without a label: {first_few(blank)}; take them out "
            "(the library's filter), then save_to_disk"
        )
    notes = check_split_classes(
        names,
        display_name=display_name,
        hint="take these classes out of the other splits (the library's filter), then save_to_disk",
        locations={},
    )
    if len(classes) < 2:
        raise UserError(
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


def _unused_columns(rows: Any, used: Sequence[str]) -> list[str]:
    unused = [name for name in rows.features if name not in used]
    return [f"columns that are not used: {', '.join(unused)}"] if unused else []
