"""`torchvision/<name>`: datasets of the field with their official splits, by torchvision."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from PIL import Image

from delta_transfer.data.download import (
    download_dataset,
    format_error,
    format_size,
    resolve_data_root,
)
from delta_transfer.data.names import TORCHVISION as PREFIX
from delta_transfer.data.names import find_dataset
from delta_transfer.data.sources.folder import split_of_files
from delta_transfer.data.sources.listing import image_count_notes, images_by_class
from delta_transfer.data.splits import (
    PartialTaskData,
    SplitOptions,
    check_min_per_class,
    draw_missing_splits,
    split_per_class,
)
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import DataError, UserError
from delta_transfer.metrics.metrics import MetricName
from delta_transfer.utils.seeds import derive_seed

_Listing = tuple[tuple[str, ...], dict[str, Split]]
"""The classes, and the images of each official split; all are "train" where there is none."""

_Rows = list[tuple[str, int]]  # files with their classes


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """A dataset of torchvision.

    Attributes:
        class_name: of its class in `torchvision.datasets`.
        list_splits: lists its images, given the data root.
        num_images: without those of `excluded_folder`.
        folder: torchvision's name for its folder below the data root.
        contents: the required entries of that folder.
        url: of the archives, for downloads by hand.
        download_mb: of the archives.
        splits: torchvision's names of the existing splits among "train", "val" and "test".
        per_class: for a dataset without splits, the number of training images of each class that
            the field draws, with the rest for testing; else None.
        excluded_folder: a class folder that is not a class.
        metric: the metric that the field reports.
        needs_manual_download: whether torchvision can no longer download it.
    """

    class_name: str
    list_splits: "Callable[[TorchvisionSet, Path], _Listing]"
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
        """The fix for incomplete files, for messages."""
        download = "" if self.needs_manual_download else ", or remove the folder to download it"
        return f"unpack {self.url} again{download}"

    @property
    def has_test(self) -> bool:
        """True if there is a test split, official or drawn as the field does."""
        return "test" in self.splits or self.per_class is not None


@dataclass(frozen=True)
class CifarReader:
    """Reads an image of CIFAR by a path such as `test/00123`; a process opens the files once.

    Args:
        class_name: `"CIFAR10"` or `"CIFAR100"`.
        root: the data root.
    """

    class_name: str
    root: str

    def __call__(self, path: str) -> Image.Image:
        """Return the RGB image of 32 x 32 pixels."""
        split, index = path.split("/")
        return Image.fromarray(
            _cifar(self.class_name, self.root, split == "train").data[int(index)]
        )


@lru_cache(maxsize=4)
def _cifar(class_name: str, root: str, train: bool) -> Any:
    from torchvision import datasets

    return getattr(datasets, class_name)(root, train=train)


def _cifar_splits(data: TorchvisionSet, root: Path) -> _Listing:
    """List CIFAR: arrays in files whose checksums torchvision verifies."""
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


def _listed_splits(data: TorchvisionSet, root: Path) -> _Listing:
    """List files that the archive's own lists divide into splits."""

    def rows(dataset: Any) -> _Rows:
        return [dataset[index] for index in range(len(dataset))]

    # A loader that returns the path, so that no image is opened.
    return _list_splits(data, root, rows, loader=os.fspath)


def _pet_splits(data: TorchvisionSet, root: Path) -> _Listing:
    """List Oxford-IIIT Pet, whose class opens the images it returns."""

    def rows(dataset: Any) -> _Rows:
        return list(zip(dataset._images, dataset._labels, strict=True))

    return _list_splits(data, root, rows)


def _class_folders(data: TorchvisionSet, root: Path) -> _Listing:
    """List a folder per class, without splits; only images directly in it count."""
    base = root / data.folder
    images = images_by_class(base / data.contents[0], excluded=data.excluded_folder)
    rows = [(file, label) for label, files in enumerate(images.values()) for file in files]
    return tuple(images), {"train": split_of_files(base, rows, hint=data.repair_hint)}


def _open(data: TorchvisionSet, root: Path, **options: object) -> Any:
    from torchvision import datasets

    return getattr(datasets, data.class_name)(root, **options)


def _list_splits(
    data: TorchvisionSet, root: Path, rows: Callable[[Any], _Rows], **options: object
) -> _Listing:
    """List the official splits, each with the rows of its torchvision dataset."""
    splits = {}
    classes: tuple[str, ...] = ()
    for ours, theirs in data.splits.items():
        dataset = _open(data, root, split=theirs, **options)
        if classes and classes != tuple(dataset.classes):
            raise ValueError(f"the split {theirs} has other classes than the ones before")
        classes = tuple(dataset.classes)
        splits[ours] = split_of_files(root / data.folder, rows(dataset), hint=data.repair_hint)
    if any(
        not 0 <= label < len(classes) for split in splits.values() for label in split.class_indices
    ):
        raise ValueError(f"there is a label that is none of the {len(classes)} classes")
    return classes, splits


_TRAIN_TEST = {"train": "train", "test": "test"}
_ALL_THREE = {"train": "train", "val": "val", "test": "test"}

SETS: dict[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet(
        class_name="CIFAR10",
        list_splits=_cifar_splits,
        num_images=60_000,
        folder="cifar-10-batches-py",
        contents=("data_batch_1", "test_batch", "batches.meta"),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        download_mb=170,
        splits=_TRAIN_TEST,
    ),
    "cifar100": TorchvisionSet(
        class_name="CIFAR100",
        list_splits=_cifar_splits,
        num_images=60_000,
        folder="cifar-100-python",
        contents=("train", "test", "meta"),
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        download_mb=169,
        splits=_TRAIN_TEST,
    ),
    "dtd": TorchvisionSet(  # the first of its ten partitions, as torchvision has it
        class_name="DTD",
        list_splits=_listed_splits,
        num_images=5_640,
        folder="dtd",
        contents=("dtd/images", "dtd/labels"),
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        download_mb=625,
        splits=_ALL_THREE,
    ),
    "fgvc_aircraft": TorchvisionSet(  # the 100 variants, as torchvision has it
        class_name="FGVCAircraft",
        list_splits=_listed_splits,
        num_images=10_000,
        folder="fgvc-aircraft-2013b",
        contents=("data/images", "data/variants.txt"),
        url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/archives/"
        "fgvc-aircraft-2013b.tar.gz",
        download_mb=2_753,
        splits=_ALL_THREE,
        metric="mean_class_accuracy",
    ),
    "oxford_iiit_pet": TorchvisionSet(
        class_name="OxfordIIITPet",
        list_splits=_pet_splits,
        num_images=7_349,
        folder="oxford-iiit-pet",
        contents=("images", "annotations"),
        url="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        download_mb=811,
        splits={"train": "trainval", "test": "test"},
        metric="mean_class_accuracy",
    ),
    "caltech101": TorchvisionSet(
        class_name="Caltech101",
        list_splits=_class_folders,
        num_images=8_677,
        folder="caltech101",
        contents=("101_ObjectCategories",),
        url="https://data.caltech.edu/records/mzrjq-6wc02",
        download_mb=137,
        per_class=30,
        excluded_folder="BACKGROUND_Google",
        metric="mean_class_accuracy",
    ),
    "caltech256": TorchvisionSet(
        class_name="Caltech256",
        list_splits=_class_folders,
        num_images=29_780,
        folder="caltech256",
        contents=("256_ObjectCategories",),
        url="https://data.caltech.edu/records/nyy15-4j048",
        download_mb=1_183,
        per_class=60,
        excluded_folder="257.clutter",
    ),
    "flowers102": TorchvisionSet(
        class_name="Flowers102",
        list_splits=_listed_splits,
        num_images=8_189,
        folder="flowers-102",
        contents=("jpg", "imagelabels.mat", "setid.mat"),
        url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        download_mb=345,
        splits=_ALL_THREE,
        metric="mean_class_accuracy",
    ),
    "food101": TorchvisionSet(
        class_name="Food101",
        list_splits=_listed_splits,
        num_images=101_000,
        folder="food-101",
        contents=("images", "meta"),
        url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        download_mb=4_996,
        splits=_TRAIN_TEST,
    ),
    "stanford_cars": TorchvisionSet(
        class_name="StanfordCars",
        list_splits=_listed_splits,
        num_images=16_185,
        folder="stanford_cars",
        contents=("devkit", "cars_train", "cars_test", "cars_test_annos_withlabels.mat"),
        url="https://github.com/pytorch/vision/issues/7545",  # its own page is gone
        download_mb=1_957,
        splits=_TRAIN_TEST,
        needs_manual_download=True,
    ),
    "eurosat": TorchvisionSet(
        class_name="EuroSAT",
        list_splits=_class_folders,
        num_images=27_000,
        folder="eurosat",
        contents=("2750",),
        url="https://huggingface.co/datasets/torchgeo/eurosat",
        download_mb=94,
    ),
}
"""The datasets by their names; torchvision's class names and other spellings are accepted."""


def load_torchvision(name: str, options: SplitOptions, data_root: str | None) -> TaskData:
    """Load a dataset in `SETS`; it is downloaded if missing.

    Args:
        name: in `SETS`, or torchvision's class name; case, dashes and underscores are ignored.
        options: the missing splits to draw; `test_split` may be a fraction for a dataset without a
            test split.
        data_root: the folder of datasets, as torchvision arranges them or in folders with our
            names, where they are downloaded to; None for `default_data_root()`.

    Returns:
        The dataset; its paths are relative to its folder, or such as `test/00123`.

    Raises:
        UserError: if there is no such dataset, its files are not as expected, or it is missing and
            cannot be downloaded.
    """
    key = _find(name)
    data, title = SETS[key], PREFIX + key
    fraction = options.test_fraction(title, has_test=data.has_test)
    classes, splits = _read(title, data, _locate(key, data, resolve_data_root(data_root)))
    count = sum(len(split) for split in splits.values())
    notes = image_count_notes(title, count, expected=data.num_images)
    if data.per_class is not None:
        seed = options.seed
        splits = _draw_test(title, data.per_class, splits["train"], classes=classes, seed=seed)
        notes.append(
            f"no official splits: {data.per_class} training images of every class, drawn by seed "
            f"{seed}; the other {len(splits['test'])} are for testing"
        )
    given = PartialTaskData(
        name=title,
        display_name=title,
        classes=classes,
        train=splits["train"],
        val=splits.get("val"),
        test=splits.get("test"),
        notes=tuple(notes),
        metric=data.metric,
    )
    return draw_missing_splits(given, options, test_fraction=fraction)


def is_available(name: str, root: Path) -> bool:
    """Return whether all files of a dataset are below a folder."""
    key = _find(name)
    data = SETS[key]
    return any(not _lacking(base / data.folder, data) for base in (root, root / key))


def _find(name: str) -> str:
    return find_dataset(PREFIX, name, {key: (data.class_name,) for key, data in SETS.items()})


def _locate(key: str, data: TorchvisionSet, data_root: Path) -> Path:
    """Return the folder with the dataset as torchvision arranges it, downloaded if missing."""
    roots = (data_root, data_root / key)
    for root in roots:
        if not _lacking(root / data.folder, data):
            return root
    for folder in (root / data.folder for root in roots):
        if os.path.isdir(folder) and any(folder.iterdir()):
            raise DataError(
                f"'{folder}' is incomplete, it lacks {', '.join(_lacking(folder, data))}: "
                f"{data.repair_hint}"
            )
    _download(PREFIX + key, data, data_root)
    return data_root


def _lacking(folder: Path, data: TorchvisionSet) -> list[str]:
    return [part for part in data.contents if not os.path.exists(folder / part)]


def _download(title: str, data: TorchvisionSet, data_root: Path) -> None:
    target = data_root / data.folder
    needed = ", ".join(f"'{target / part}'" for part in data.contents)
    hint = f"get it from {data.url} and unpack it so that these exist: {needed}"
    if data.needs_manual_download:
        raise DataError(
            f"{title} is not in '{data_root}', and torchvision can no longer download it: {hint}; "
            "or set `data_root`"
        )
    size = format_size(data.download_mb)
    fetch = partial(_open, data, download=True)
    download_dataset(title, target, fetch, root=data_root, size=size, hint=hint)


def _read(title: str, data: TorchvisionSet, root: Path) -> _Listing:
    try:
        return data.list_splits(data, root)
    except UserError:
        raise
    # Damaged files may raise anything in torchvision, pickle or scipy.
    except Exception as error:
        raise DataError(
            f"the files of {title} in '{root / data.folder}' cannot be used "
            f"({format_error(error)}): {data.repair_hint}"
        ) from error


def _draw_test(
    title: str, per_class: int, everything: Split, *, classes: tuple[str, ...], seed: int
) -> dict[str, Split]:
    check_min_per_class(
        everything,
        per_class + 1,
        classes=classes,
        purpose=f"{title}, {per_class} images per class for training and the rest for testing,",
        hint="the files are incomplete; unpack the archive again",
    )
    test, train = split_per_class(everything, per_class, seed=derive_seed(seed, title, "train"))
    return {"train": train, "test": test}
