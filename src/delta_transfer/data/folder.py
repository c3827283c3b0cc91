"""A folder of pictures in class folders becomes a Task."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from delta_transfer.data.base import Split, Task
from delta_transfer.data.images import IMAGE_SUFFIXES, read_image
from delta_transfer.data.scan import find_pictures, loose_pictures, subfolders
from delta_transfer.data.split_names import VALIDATION, choose_splits, find_name
from delta_transfer.data.splits import DEFAULT_TEST_SPLIT, GivenSplits, complete
from delta_transfer.errors import UserError

LAYOUT = (
    "a folder with a folder of pictures for each class, <class>/*, "
    "or with such folders for each split, {train,val,test}/<class>/* (val and test may be missing)"
)
"""What a data folder must look like, in words."""

# Without a `train` folder beside them, these would silently become classes.
_SPLIT_LIKE = (*VALIDATION, "test", "training", "testing")


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
    given = GivenSplits(
        name=os.path.basename(os.path.abspath(root)) or "data",
        source=f"'{root}'",
        classes=classes,
        train=splits[layout.train],
        val=None if layout.val is None else splits[layout.val],
        test=None if layout.test is None else splits[layout.test],
        notes=tuple(_unused_notes(layout, folders)),
    )
    return complete(
        given,
        seed=seed,
        val_fraction=val_fraction,
        test_fraction=layout.test_fraction,
        mend="add pictures, leave the class out, or bring these splits as folders",
    )


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
    names = [folder.name for folder in subfolders(root)]
    test = find_name(names, (test_split.lower(),), source=f"'{root}'")
    layout = (
        _Layout(train=root, test=root / test) if test else _find_layout(root, DEFAULT_TEST_SPLIT)
    )
    everything = [folder for folder in (layout.train, layout.val) if folder is not None]
    folders = everything if layout.test is None else [layout.test]
    found = [_scan(folder, root) for folder in folders]
    classes = tuple(sorted({name for by_class in found for name in by_class}))
    merged = {name: [path for f in found for path in f.get(name, [])] for name in classes}
    return classes, _split(merged, classes, root), layout.test is not None


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
        raise UserError(f"'{root}' is a file, not a folder: give {LAYOUT}, or a .csv file")


def _find_layout(root: Path, test_split: str) -> _Layout:
    names = [folder.name for folder in subfolders(root)]
    chosen = choose_splits(names, test_split, source=f"'{root}'")
    if chosen.train is None:
        _check_flat(root, names, test_split, chosen.test_fraction)
        return _Layout(train=root, test_fraction=chosen.test_fraction)
    return _Layout(
        train=root / chosen.train,
        val=None if chosen.val is None else root / chosen.val,
        test=None if chosen.test is None else root / chosen.test,
        test_fraction=chosen.test_fraction,
        unused=chosen.unused,
    )


def _check_flat(root: Path, names: Sequence[str], test_split: str, fraction: float | None) -> None:
    """Folders that are called like splits would become classes, which nobody wants."""
    likely = [name for name in names if name.lower() in _SPLIT_LIKE]
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
