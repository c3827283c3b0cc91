"""`torchvision/<name>`: data sets of the field, with their official splits, through torchvision."""

import logging
import os
from pathlib import Path

from delta_transfer.data.download import (
    default_data_root,
    download_folder,
    format_error,
    format_size,
)
from delta_transfer.data.sources.torchvision_files import (
    Listing,
    TorchvisionSet,
    cifar_splits,
    class_folders,
    listed_splits,
    pet_splits,
)
from delta_transfer.data.splits import (
    PartialTaskData,
    check_min_per_class,
    draw_missing_splits,
    parse_test_fraction,
    split_per_class,
)
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError, unknown
from delta_transfer.utils.paths import user_path
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

PREFIX = "torchvision/"

_TRAIN_TEST = {"train": "train", "test": "test"}
_ALL_THREE = {"train": "train", "val": "val", "test": "test"}

SETS: dict[str, TorchvisionSet] = {
    "cifar10": TorchvisionSet(
        class_name="CIFAR10",
        list_splits=cifar_splits,
        num_images=60_000,
        folder="cifar-10-batches-py",
        contents=("data_batch_1", "test_batch", "batches.meta"),
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        download_mb=170,
        splits=_TRAIN_TEST,
    ),
    "cifar100": TorchvisionSet(
        class_name="CIFAR100",
        list_splits=cifar_splits,
        num_images=60_000,
        folder="cifar-100-python",
        contents=("train", "test", "meta"),
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        download_mb=169,
        splits=_TRAIN_TEST,
    ),
    "dtd": TorchvisionSet(  # the first of its ten partitions, as torchvision has it
        class_name="DTD",
        list_splits=listed_splits,
        num_images=5_640,
        folder="dtd",
        contents=("dtd/images", "dtd/labels"),
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/download/dtd-r1.0.1.tar.gz",
        download_mb=625,
        splits=_ALL_THREE,
    ),
    "fgvc_aircraft": TorchvisionSet(  # the 100 variants, as torchvision has it
        class_name="FGVCAircraft",
        list_splits=listed_splits,
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
        list_splits=pet_splits,
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
        list_splits=class_folders,
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
        list_splits=class_folders,
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
        list_splits=listed_splits,
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
        list_splits=listed_splits,
        num_images=101_000,
        folder="food-101",
        contents=("images", "meta"),
        url="http://data.vision.ee.ethz.ch/cvl/food-101.tar.gz",
        download_mb=4_996,
        splits=_TRAIN_TEST,
    ),
    "stanford_cars": TorchvisionSet(
        class_name="StanfordCars",
        list_splits=listed_splits,
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
        list_splits=class_folders,
        num_images=27_000,
        folder="eurosat",
        contents=("2750",),
        url="https://huggingface.co/datasets/torchgeo/eurosat",
        download_mb=94,
    ),
}
"""The data sets by their names; torchvision's class names and other spellings are understood."""


def load_torchvision(
    name: str, *, seed: int, val_fraction: float, test_split: str, data_root: str | None
) -> TaskData:
    """The task of a data set in `SETS`; downloaded if it is not there.

    Args:
        name: in `SETS`, or torchvision's class name; capitals, dashes and underscores do not count.
        seed: draws the splits that are not there.
        val_fraction: the part of the training images held out for validation, if the set has no
            validation split.
        test_split: the default; a fraction such as "0.2" for a set without a test split.
        data_root: where sets lie, as torchvision lays them out or in a folder of the set's name,
            and where they are downloaded to; None for `default_data_root()`.

    Returns:
        The task; its paths are relative to the set's folder, or such as `test/00123`.

    Raises:
        UserError: if there is no such set, its files are not as they must be, or it is not there
            and cannot be downloaded.
    """
    key = _find(name)
    data, title = SETS[key], PREFIX + key
    fraction = parse_test_fraction(test_split, display_name=title, has_test=data.has_test)
    root = default_data_root() if data_root is None else user_path(data_root)
    classes, splits = _read(title, data, _locate(key, data, root))
    notes = []
    count = sum(len(split) for split in splits.values())
    if count != data.num_images:
        notes.append(f"{title} should have {data.num_images} images, but there are {count}")
    if data.per_class is not None:
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
    return draw_missing_splits(given, seed=seed, val_fraction=val_fraction, test_fraction=fraction)


def is_available(name: str, root: Path) -> bool:
    """Whether a data set of this name lies whole below a folder."""
    key = _find(name)
    data = SETS[key]
    return any(not _lacking(place / data.folder, data) for place in (root, root / key))


def _find(name: str) -> str:
    def plain(text: str) -> str:
        return text.lower().replace("_", "").replace("-", "")

    for key, data in SETS.items():
        if plain(name) in (plain(key), plain(data.class_name)):
            return key
    raise unknown("data set", PREFIX + name, [PREFIX + key for key in SETS])


def _locate(key: str, data: TorchvisionSet, data_root: Path) -> Path:
    """The folder that has the set as torchvision lays it out; it is downloaded if there is none."""
    roots = (data_root, data_root / key)
    for root in roots:
        if not _lacking(root / data.folder, data):
            return root
    for folder in (root / data.folder for root in roots):
        if os.path.isdir(folder) and any(folder.iterdir()):
            renewal = (
                ""
                if data.needs_manual_download
                else f", or remove it, and {PREFIX + key} will be downloaded"
            )
            raise UserError(
                f"'{folder}' is there, but not whole, it lacks {', '.join(_lacking(folder, data))}:"
                f" unpack {data.url} into it{renewal}"
            )
    _download(PREFIX + key, data, data_root)
    return data_root


def _lacking(folder: Path, data: TorchvisionSet) -> list[str]:
    return [part for part in data.contents if not os.path.exists(folder / part)]


def _download(title: str, data: TorchvisionSet, data_root: Path) -> None:
    from torchvision import datasets

    make = getattr(datasets, data.class_name)
    target = data_root / data.folder
    needed = ", ".join(f"'{target / part}'" for part in data.contents)
    by_hand = (
        f"get it from {data.url} and unpack it so that these are there: {needed}; --data-root "
        "names another folder to look in"
    )
    if data.needs_manual_download:
        raise UserError(
            f"{title} is not in '{data_root}', and torchvision cannot download it anymore: "
            f"{by_hand}"
        )
    logger.info("downloading %s (%s) to %s", title, format_size(data.download_mb), target)
    try:
        download_folder(target, lambda folder: make(folder, download=True))
    except UserError:
        raise
    # Anything may come: of the connection, the server, the archive, the disk.
    except Exception as error:
        raise UserError(
            f"{title} is not in '{data_root}', and downloading it failed "
            f"({format_error(error)}). Try again, or {by_hand}"
        ) from error


def _read(title: str, data: TorchvisionSet, root: Path) -> Listing:
    try:
        return data.list_splits(data, root)
    except UserError:
        raise
    # Damaged files may raise anything in torchvision, pickle or scipy.
    except Exception as error:
        raise UserError(
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
        purpose=f"{title}, {per_class} images a class for training and the rest for testing,",
        hint="these files are not whole; unpack the archive again",
    )
    test, train = split_per_class(everything, per_class, seed=derive_seed(seed, title, "train"))
    return {"train": train, "test": test}
