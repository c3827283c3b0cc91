"""The columns of a Hugging Face data set that are image and class, and the classes' names."""

from collections.abc import Sequence
from typing import Any

from delta_transfer.errors import UserError, first_few

_TEXT = ("string", "large_string", "string_view")
_USUAL = ("label", "labels")


def image_column(features: Any, *, display_name: str) -> str:
    """The column of images: the only one, or the one called `image`.

    Args:
        features: of the data set, by column.
        display_name: what messages call the data.

    Raises:
        UserError: if there is none, or several and none is called so.
    """
    import datasets

    found = [name for name, kind in features.items() if isinstance(kind, datasets.Image)]
    return _choose_column(
        found, "image", what="column of images", features=features, display_name=display_name
    )


def label_column(features: Any, *, display_name: str) -> str:
    """The column of classes: the one called `label` or `labels`, if there is one.

    Without, it is the only one of class labels or, where there are none, the only one of text.

    Args:
        features: of the data set, by column.
        display_name: what messages call the data.

    Raises:
        UserError: if the one called so is neither of class labels nor of text; without such, if
            there is none, or several.
    """
    import datasets

    named: list[str] = [n for usual in _USUAL for n in features if n.lower() == usual]
    if named and not is_class_column(features[named[0]]):
        raise _no_classes(named[0], features[named[0]], display_name)
    if named:
        return named[0]
    found = [name for name, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    found = found or [name for name, kind in features.items() if is_class_column(kind)]
    what = "column of class labels or text"
    return _choose_column(found, "label", what=what, features=features, display_name=display_name)


def is_class_column(kind: Any) -> bool:
    """Whether a column of this kind has the class of each row: a class label, or text."""
    import datasets

    text = isinstance(kind, datasets.Value) and kind.dtype in _TEXT
    return bool(text or isinstance(kind, datasets.ClassLabel))


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


def _choose_column(
    found: Sequence[str], usual: str, *, what: str, features: Any, display_name: str
) -> str:
    if len(found) == 1:
        return found[0]
    if usual in found:
        return usual
    has = ", ".join(f"{name} ({type(kind).__name__})" for name, kind in features.items())
    said = f"more than one {what}, {first_few(found)}" if found else f"no {what}"
    raise UserError(
        f"{display_name} has {said}; its columns are {has}: give one with an Image column and a "
        "ClassLabel or string column, called 'image' and 'label' where there are several "
        "(rename_column, remove_columns and cast_column of the library, then save_to_disk)"
    )


def _no_classes(column: str, kind: Any, display_name: str) -> UserError:
    """The error for a column called `label` of numbers, of several classes for each image, ..."""
    import datasets

    other = "if another column has the classes, rename this one and call that one 'label'"
    if isinstance(kind, datasets.Value):
        holds = kind.dtype
        mend = f"name the classes with cast_column('{column}', ClassLabel(names=[...]))"
    else:
        holds = type(kind).__name__
        mend = "make it a column with the one class of each image, as text or as a ClassLabel"
    return UserError(
        f"{display_name}: the column '{column}' holds neither class labels nor text, but {holds}: "
        f"{mend} "
        f"of the library, then save_to_disk; {other} (rename_column)"
    )
