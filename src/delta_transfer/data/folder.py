"""A folder of pictures in class folders becomes a Task."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from delta_transfer.data.base import Split, Task
from delta_transfer.data.images import IMAGE_SUFFIXES, read_image
from delta_transfer.data.scan import find_pictures, loose_pictures, subfolders
from delta_transfer.data.seeds import derive_seed
from delta_transfer.data.splits import (
    DEFAULT_TEST_SPLIT,
    hold_out,
    parse_fraction,
    require_per_class,
    unused_val_fraction,
)
from delta_transfer.errors import UserError

LAYOUT = (
    "a folder with a folder of pictures for each class, <class>/*, "
    "or with such folders for each split, {train,val,test}/<class>/* (val and test may be missing)"
)
"""What a data folder must look like, in words."""

_VALIDATION = ("val", "valid", "validation")
# Without a `train` folder beside them, these would silently become classes.
_SPLIT_LIKE = (*_VALIDATION, "test", "training", "testing")


@dataclass(frozen=True)
class FolderReader:
    """Reads a picture by its path below the data folder."""

    root: Path

    def __call__(self, path: str) -> Image.Image:
        """The RGB picture."""
        return read_image(self.root / path)


@dataclass(frozen=True)
class _Layout:
    """Where the splits lie: None where there is none; `test_fraction` is set to draw one."""

    train: Path
    val: Path | None = None
    test: Path | None = None
    test_fraction: float | None = None
    unused: tuple[str, ...] = ()


def load_folder(root: Path, *, seed: int, val_fraction: float, test_split: str) -> Task:
    """A task from `root/{train,val|valid|validation,test}/<class>/*` or from `root/<class>/*`.

    Pictures may lie in folders below the class folder; links to folders are followed; hidden
    files and files that are no pictures are skipped. A missing validation split is drawn, class
    by class; a test split only if a fraction is asked for.

    Args:
        root: the folder.
        seed: draws the splits that are not there.
        val_fraction: the part of the training pictures held out for validation, if there is no
            validation folder.
        test_split: the name of the folder of the test split, or a fraction such as "0.2" of the
            training pictures to draw one.

    Returns:
        The task; its paths are relative to `root`, with forward slashes.

    Raises:
        UserError: if the folder does not look like this, or a class has too few pictures.
    """
    _check_is_folder(root)
    layout = _find_layout(root, test_split)
    folders = [path for path in (layout.train, layout.val, layout.test) if path is not None]
    found = {path: _scan(path, root) for path in folders}
    classes = _classes(found)
    splits = {path: _split(found[path], classes, root) for path in folders}
    train, val, test, drawn = _draw_missing(
        splits, layout, classes=classes, seed=seed, val_fraction=val_fraction
    )
    own_val = [] if layout.val is None else unused_val_fraction(f"'{root}'", val_fraction)
    return Task(
        name=os.path.basename(os.path.abspath(root)) or "data",
        classes=classes,
        train=train,
        val=val,
        test=test,
        notes=(*_unused_notes(layout, folders), *drawn, *own_val),
    )


def _draw_missing(
    splits: dict[Path, Split],
    layout: _Layout,
    *,
    classes: Sequence[str],
    seed: int,
    val_fraction: float,
) -> tuple[Split, Split, Split | None, list[str]]:
    """The three splits, with the missing ones drawn from train, and notes on what was drawn."""
    notes: list[str] = []
    train = splits[layout.train]
    val = None if layout.val is None else splits[layout.val]
    test = None if layout.test is None else splits[layout.test]
    _check_enough(train, layout, classes)
    if layout.test_fraction is not None:
        keep = 2 if val is None else 1
        draw = derive_seed(seed, "test")
        train, test = hold_out(train, layout.test_fraction, seed=draw, keep=keep)
        notes.append(_drawn("test", layout.test_fraction, len(test), seed))
    elif test is None:
        notes.append("no test split: test accuracy will be null; ask for one with --test-split 0.2")
    if val is None:
        train, val = hold_out(train, val_fraction, seed=derive_seed(seed, "validation"))
        notes.append(_drawn("validation", val_fraction, len(val), seed))
    return train, val, test, notes


def load_labelled(root: Path, *, test_split: str) -> tuple[tuple[str, ...], Split, bool]:
    """The pictures of a folder to measure a network on: of its test split, or all if it has none.

    Args:
        root: `root/{train,val,test}/<class>/*` or `root/<class>/*`; one class is enough.
        test_split: the name of the test split's folder.

    Returns:
        The class names; the pictures, whose paths are relative to `root`; whether they are a test
        split.

    Raises:
        UserError: if the folder does not look like this.
    """
    _check_is_folder(root)
    test = _named(root, subfolders(root), (test_split.lower(),))
    layout = _Layout(train=root, test=test) if test else _find_layout(root, DEFAULT_TEST_SPLIT)
    everything = [folder for folder in (layout.train, layout.val) if folder is not None]
    folders = everything if layout.test is None else [layout.test]
    found = [_scan(folder, root) for folder in folders]
    classes = tuple(sorted({name for by_class in found for name in by_class}))
    merged = {name: [path for f in found for path in f.get(name, [])] for name in classes}
    return classes, _split(merged, classes, root), layout.test is not None


def _drawn(what: str, fraction: float, count: int, seed: int) -> str:
    return (
        f"no {what} split: {100 * fraction:g}% of train ({count} pictures), stratified, "
        f"seed {seed}, is held out"
    )


def _unused_notes(layout: _Layout, folders: Sequence[Path]) -> list[str]:
    """What lies in the folder but is not used."""
    notes = []
    if layout.unused:
        notes.append(f"folders that are no split and are not used: {', '.join(layout.unused)}")
    for folder in folders:
        loose = len(loose_pictures(folder))
        if loose:
            notes.append(
                f"pictures directly in '{folder}', in no class folder, are not used: {loose}"
            )
    return notes


def _check_is_folder(root: Path) -> None:
    if not root.exists():
        raise UserError(f"there is no folder '{root}': give {LAYOUT}")
    if not root.is_dir():
        raise UserError(f"'{root}' is a file, not a folder: give {LAYOUT}")


def _check_enough(train: Split, layout: _Layout, classes: Sequence[str]) -> None:
    """Every class must have a picture for each split that is drawn, and one left to learn from."""
    drawn = ["validation"] if layout.val is None else []
    if layout.test_fraction is not None:
        drawn.append("test")
    if drawn:
        require_per_class(
            train,
            1 + len(drawn),
            classes=classes,
            wish=f"drawing a {' and a '.join(drawn)} split",
            mend="add pictures, leave the class out, or bring these splits as folders",
        )


def _find_layout(root: Path, test_split: str) -> _Layout:
    folders = subfolders(root)
    train = _named(root, folders, ("train",))
    test = _named(root, folders, (test_split.lower(),))
    fraction = parse_fraction(test_split) if test is None else None
    if train is None:
        _check_flat(root, folders, test_split, fraction)
        return _Layout(train=root, test_fraction=fraction)
    val = _named(root, folders, _VALIDATION)
    own_test = _named(root, folders, (DEFAULT_TEST_SPLIT,))
    if fraction is not None and own_test is not None:
        raise UserError(
            f"--test-split {test_split}: '{root}' already has a test split, '{own_test.name}'; "
            "leave the option out, or move that folder away"
        )
    if fraction is None and test is None and test_split != DEFAULT_TEST_SPLIT:
        names = ", ".join(folder.name for folder in folders)
        raise UserError(
            f"--test-split {test_split}: there is no such folder in '{root}', which has {names}; "
            "name one of them, or give a fraction such as 0.2"
        )
    if test is not None and test in (train, val):
        raise UserError(
            f"--test-split {test_split}: this is what is learnt from or chosen on, and nothing "
            "may be chosen on the test split; name another folder"
        )
    unused = tuple(folder.name for folder in folders if folder not in (train, val, test))
    return _Layout(train=train, val=val, test=test, test_fraction=fraction, unused=unused)


def _check_flat(
    root: Path, folders: Sequence[Path], test_split: str, fraction: float | None
) -> None:
    """Folders that are called like splits would become classes, which nobody wants."""
    likely = [folder.name for folder in folders if folder.name.lower() in _SPLIT_LIKE]
    if likely:
        raise UserError(
            f"'{root}' has the folder {_quoted(likely)} but no 'train': call the folder to learn "
            "from 'train' (or rename a class that is called like a split)"
        )
    if fraction is None and test_split != DEFAULT_TEST_SPLIT:
        raise UserError(
            f"--test-split {test_split}: '{root}' has no 'train' folder, so that its folders are "
            "classes, not splits; give a fraction such as 0.2"
        )


def _named(root: Path, folders: Sequence[Path], names: Sequence[str]) -> Path | None:
    """The one folder with one of these names, in small or capital letters."""
    matches = [folder for folder in folders if folder.name.lower() in names]
    if len(matches) > 1:
        both = _quoted([folder.name for folder in matches])
        raise UserError(f"'{root}' has {both}, which mean the same split; keep one of them")
    return matches[0] if matches else None


def _scan(folder: Path, root: Path) -> dict[str, list[str]]:
    """The pictures of each class folder; every class has some."""
    found = {path.name: find_pictures(path, root=root) for path in subfolders(folder)}
    endings = ", ".join(sorted(IMAGE_SUFFIXES))
    if not any(found.values()):
        raise UserError(
            f"'{folder}' has no pictures in class folders: needed is {LAYOUT}; "
            f"the files must end in {endings}"
        )
    empty = [name for name, paths in found.items() if not paths]
    if empty:
        raise UserError(
            f"'{folder}' has class folders without pictures: {_quoted(empty)}; remove them, or "
            f"add pictures ({endings})"
        )
    return found


def _classes(found: dict[Path, dict[str, list[str]]]) -> tuple[str, ...]:
    """The classes, which must be the same in all splits and at least two."""
    classes = tuple(sorted({name for by_class in found.values() for name in by_class}))
    missing = {
        folder: [name for name in classes if name not in by_class]
        for folder, by_class in found.items()
    }
    where = "; ".join(
        f"'{path}' lacks {_quoted(names)}" for path, names in missing.items() if names
    )
    if where:
        raise UserError(
            f"the splits must have the same classes, but {where}: add these class folders, or "
            "remove them from the other splits"
        )
    if len(classes) < 2:
        (folder, *_) = found
        raise UserError(
            f"'{folder}' has only one class, '{classes[0]}', and at least two are needed: give "
            f"{LAYOUT} (do the class folders lie one level deeper?)"
        )
    return classes


def _split(found: dict[str, list[str]], classes: Sequence[str], root: Path) -> Split:
    pairs = [(path, label) for label, name in enumerate(classes) for path in found[name]]
    return Split(
        paths=tuple(path for path, _ in pairs),
        labels=tuple(label for _, label in pairs),
        read=FolderReader(root),
    )


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
