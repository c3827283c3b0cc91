"""The images of torchvision's data sets: which files, of which class, in which official split."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from delta_transfer.data.sources.folder import FolderReader
from delta_transfer.data.sources.listing import list_images, subfolders
from delta_transfer.data.task import Split
from delta_transfer.errors import UserError, first_few
from delta_transfer.metrics.metrics import MetricName

Listing = tuple[tuple[str, ...], dict[str, Split]]
"""The classes, and the images of each official split; all are "train" where there is none."""


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """A data set of torchvision.

    Attributes:
        class_name: of its class in `torchvision.datasets`.
        list_splits: lists its images, given the data root.
        num_images: how many there are, those of `excluded_folder` left out.
        folder: what torchvision calls its folder below the data root.
        contents: what must lie in that folder.
        url: where it can be had.
        download_mb: of the archives.
        splits: what torchvision calls the splits "train", "val" and "test" that there are.
        per_class: of a set without splits, the training images of each class that the field
            draws, with the rest for testing; None for none of this.
        excluded_folder: a class folder that is no class.
        metric: what the field reports.
        needs_manual_download: whether torchvision can no longer download it.
    """

    class_name: str
    list_splits: "Callable[[TorchvisionSet, Path], Listing]"
    num_images: int
    folder: str
    contents: tuple[str, ...]
    url: str
    download_mb: int
    splits: Mapping[str, str] = field(default_factory=dict)
    per_class: int | None = None
    excluded_folder: str = ""
    metric: MetricName = "accuracy"
    needs_manual_download: bool = False

    @property
    def repair_hint(self) -> str:
        """What mends files that are not whole, for a message."""
        anew = f"unpack {self.url} again"
        return (
            anew
            if self.needs_manual_download
            else f"{anew}, or remove the folder, and it will be downloaded"
        )

    @property
    def has_test(self) -> bool:
        """Whether there is a test split, be it official or the field's."""
        return "test" in self.splits or self.per_class is not None


@dataclass(frozen=True)
class CifarReader:
    """Reads an image of CIFAR by a path such as `test/00123`; each process opens the files once.

    Args:
        class_name: `"CIFAR10"` or `"CIFAR100"`.
        root: the data root.
    """

    class_name: str
    root: str

    def __call__(self, path: str) -> Image.Image:
        """The RGB image of 32 x 32 pixels."""
        split, index = path.split("/")
        return Image.fromarray(
            _cifar(self.class_name, self.root, split == "train").data[int(index)]
        )


def cifar_splits(data: TorchvisionSet, root: Path) -> Listing:
    """CIFAR: arrays in files whose checksums torchvision checks."""
    read = CifarReader(data.class_name, str(root))
    splits = {}
    for name in data.splits:
        dataset = _cifar(data.class_name, str(root), name == "train")
        splits[name] = Split(
            paths=tuple(f"{name}/{index:05d}" for index in range(len(dataset))),
            labels=tuple(int(label) for label in dataset.targets),
            read=read,
        )
    return tuple(dataset.classes), splits


def listed_splits(data: TorchvisionSet, root: Path) -> Listing:
    """Files that lists in the archive part into splits."""
    return _listing(data, root, lambda split: _rows(data, root, split))


def pet_splits(data: TorchvisionSet, root: Path) -> Listing:
    """Oxford-IIIT Pet, whose class opens every image that it is asked for."""

    def rows(split: str) -> tuple[Any, list[tuple[str, int]]]:
        dataset = _open(data, root, split=split)
        return dataset, list(zip(dataset._images, dataset._labels, strict=True))

    return _listing(data, root, rows)


def class_folders(data: TorchvisionSet, root: Path) -> Listing:
    """A folder per class and no splits; what is no image, or lies deeper, does not count."""
    base = root / data.folder
    folders = [f for f in subfolders(base / data.contents[0]) if f.name != data.excluded_folder]
    found = [(file, label) for label, f in enumerate(folders) for file in list_images(f)]
    return tuple(folder.name for folder in folders), {
        "train": make_split(base, found, data.repair_hint)
    }


@lru_cache(maxsize=4)
def _cifar(class_name: str, root: str, train: bool) -> Any:
    from torchvision import datasets

    return getattr(datasets, class_name)(root, train=train)


def _open(data: TorchvisionSet, root: Path, **options: object) -> Any:
    from torchvision import datasets

    return getattr(datasets, data.class_name)(root, **options)


def _rows(data: TorchvisionSet, root: Path, split: str) -> tuple[Any, list[tuple[str, int]]]:
    """The data set of a split, with the files in the place of the images."""
    dataset = _open(data, root, split=split, loader=os.fspath)
    return dataset, [dataset[index] for index in range(len(dataset))]


def _listing(
    data: TorchvisionSet,
    root: Path,
    rows: Callable[[str], tuple[Any, list[tuple[str, int]]]],
) -> Listing:
    splits = {}
    classes: tuple[str, ...] = ()
    for ours, theirs in data.splits.items():
        dataset, found = rows(theirs)
        if classes and classes != tuple(dataset.classes):
            raise ValueError(f"the split {theirs} has other classes than the ones before")
        classes = tuple(dataset.classes)
        splits[ours] = make_split(root / data.folder, found, data.repair_hint)
    if any(
        not 0 <= label < len(classes) for split in splits.values() for label in split.class_indices
    ):
        raise ValueError(f"there is a label that is none of the {len(classes)} classes")
    return classes, splits


def make_split(base: Path, found: Sequence[tuple[str | Path, int]], hint: str) -> Split:
    """The split of these files, which must be there."""
    paths = tuple(Path(file).relative_to(base).as_posix() for file, _ in found)
    outside = [path for path in paths if ".." in path.split("/")]
    if outside:
        raise UserError(
            f"'{base}' has lists with images outside of it: {first_few(outside)}; these are not "
            f"the files of this data set: {hint}"
        )
    missing = [path for path in paths if not (base / path).is_file()]
    if missing:
        raise UserError(
            f"'{base}' lacks {len(missing)} of {len(paths)} images that its lists name: "
            f"{first_few(missing)}; {hint}"
        )
    labels = tuple(int(label) for _, label in found)
    return Split(paths=paths, labels=labels, read=FolderReader(base))
