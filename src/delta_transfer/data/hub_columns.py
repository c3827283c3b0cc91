"""The columns of a Hugging Face data set that are picture and class, and the classes' names."""

from collections.abc import Sequence
from typing import Any

from delta_transfer.data.splits import first_few
from delta_transfer.errors import UserError

_TEXT = ("string", "large_string", "string_view")


def picture_column(features: Any, *, source: str) -> str:
    """The column of pictures: the only one, or the one called `image`.

    Args:
        features: of the data set, by column.
        source: what messages call the data.

    Raises:
        UserError: if there is none, or several and none is called so.
    """
    import datasets

    found = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    return _the_one(found, "image", what="column of pictures", features=features, source=source)


def label_column(features: Any, *, source: str) -> str:
    """The column of classes: of class labels or, without any, of text.

    It is the only one of its kind, or the one called `label`.

    Args:
        features: of the data set, by column.
        source: what messages call the data.

    Raises:
        UserError: if there is none, or several and none is called so.
    """
    import datasets

    found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not found:
        found = [name for name, kind in features.items() if getattr(kind, "dtype", "") in _TEXT]
    what = "column of class labels or text"
    return _the_one(found, "label", what=what, features=features, source=source)


def class_names(rows: Any, column: str) -> list[str]:
    """The name of each row's class; "" for a row without one.

    Args:
        rows: a `datasets.Dataset`.
        column: of class labels or of text.
    """
    import datasets

    kind = rows.features[column]
    # Sliced, so that it is a list with every release of the library.
    labels = rows.select_columns([column])[:][column]
    if not isinstance(kind, datasets.ClassLabel):
        return ["" if label is None else label.strip() for label in labels]
    # The convention of the hub: an unlabelled row has -1.
    return ["" if label is None or label < 0 else kind.names[label] for label in labels]


def class_order(rows: Any, column: str, names: Sequence[str]) -> tuple[str, ...]:
    """The classes that occur in the training rows: in the order of the labels, or sorted.

    Args:
        rows: a `datasets.Dataset`.
        column: of class labels or of text.
        names: the class of each row.
    """
    import datasets

    kind = rows.features[column]
    there = set(names)
    if isinstance(kind, datasets.ClassLabel):
        return tuple(name for name in kind.names if name in there)
    return tuple(sorted(there))


def _the_one(found: Sequence[str], usual: str, *, what: str, features: Any, source: str) -> str:
    if len(found) == 1:
        return found[0]
    if usual in found:
        return usual
    has = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
    said = f"more than one {what}, {first_few(found)}" if found else f"no {what}"
    raise UserError(
        f"{source} has {said}; its columns are {has}: give one with an Image column and a "
        "ClassLabel or string column, called 'image' and 'label' where there are several "
        "(rename_column, remove_columns and cast_column of the library, then save_to_disk)"
    )
