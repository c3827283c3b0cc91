"""Tiny copies of the data sets of torchvision, laid out as their unpacked archives are."""

import json
import pickle
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import scipy.io
from PIL import Image


def image(file: Path, number: int = 0) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (number % 256, 0, 0)).save(file)


def images(folder: Path, names: Iterable[str]) -> None:
    for number, name in enumerate(names):
        image(folder / name, number)


def lines(file: Path, rows: Iterable[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row}\n" for row in rows))


def pickled(file: Path, content: dict[str, object]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    written = pickle.dumps(content, protocol=2)
    # As NumPy wrote it in 2009: its module's old name, numbers in the place of False and True.
    written = written.replace(b"numpy._core.", b"numpy.core.")
    file.write_bytes(written.replace(b"\x89\x88\x87", b"K\x00K\x01\x87"))


def _batch(count: int, classes: int, key: str, start: int = 0) -> dict[str, object]:
    """Rows of 32 x 32 images, red then green then blue; each is red by its number."""
    data = np.zeros((count, 3 * 32 * 32), dtype=np.uint8)
    data[:, : 32 * 32] = np.arange(start, start + count)[:, None]
    return {"data": data, key: [i % classes for i in range(count)]}


def trust_checksums(worker: int) -> None:
    """In a worker process: the miniature of CIFAR cannot have the checksums of the real files."""
    import torchvision.datasets

    torchvision.datasets.cifar.check_integrity = lambda path, md5: Path(path).is_file()


def cifar10(root: Path) -> None:
    folder = root / "cifar-10-batches-py"
    names = "airplane automobile bird cat deer dog frog horse ship truck".split()
    for number in range(5):
        pickled(folder / f"data_batch_{number + 1}", _batch(20, 10, "labels", start=20 * number))
    pickled(folder / "test_batch", _batch(10, 10, "labels", start=100))
    pickled(folder / "batches.meta", {"label_names": names, "num_cases_per_batch": 20})


def cifar100(root: Path) -> None:
    folder = root / "cifar-100-python"
    pickled(folder / "train", _batch(200, 100, "fine_labels"))
    pickled(folder / "test", _batch(100, 100, "fine_labels"))
    fine = [f"class {number:02d}" for number in range(100)]
    pickled(folder / "meta", {"fine_label_names": fine, "coarse_label_names": ["all"]})


def dtd(root: Path) -> None:
    folder = root / "dtd" / "dtd"
    for partition in (1, 2):
        for i, split in enumerate(("train", "val", "test")):
            number = 2 * ((i + partition) % 3) + 1
            names = [f"{name}/{name}_000{n}.jpg" for name in ("banded", "dotted") for n in (1, 2)]
            names = [f"{name[:-5]}{number + int(name[-5]) - 1}.jpg" for name in names]
            images(folder / "images", names)
            lines(folder / "labels" / f"{split}{partition}.txt", names)


def fgvc_aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    variants = ("707-320", "Spitfire", "F-16A/B")
    lines(data / "variants.txt", variants)
    lines(data / "families.txt", ["Boeing 707", "F-16", "Spitfire"])
    for i, split in enumerate(("train", "val", "test")):
        ids = [f"{1000000 + 10 * i + n}" for n in range(3)]
        images(data / "images", [f"{number}.jpg" for number in ids])
        rows = [f"{number} {name}" for number, name in zip(ids, variants, strict=True)]
        lines(data / f"images_variant_{split}.txt", rows)


def oxford_iiit_pet(root: Path) -> None:
    folder = root / "oxford-iiit-pet"
    breeds = ("Abyssinian", "american_bulldog")
    for split, numbers in (("trainval", range(1, 5)), ("test", range(5, 8))):
        ids = [(f"{breed}_{n}", i + 1) for i, breed in enumerate(breeds) for n in numbers]
        images(folder / "images", [f"{name}.jpg" for name, _ in ids])
        lines(folder / "annotations" / f"{split}.txt", [f"{name} {i} {i} 1" for name, i in ids])


def caltech101(root: Path) -> None:
    folder = root / "caltech101" / "101_ObjectCategories"
    for name, count in (("Faces", 33), ("ant", 32), ("BACKGROUND_Google", 3)):
        images(folder / name, [f"image_{n:04d}.jpg" for n in range(1, count + 1)])
    (folder / "BACKGROUND_Google" / "tmp").touch()


def caltech256(root: Path) -> None:
    folder = root / "caltech256" / "256_ObjectCategories"
    for number, (name, count) in enumerate((("ak47", 62), ("dog", 63), ("clutter", 3)), start=1):
        number = 257 if name == "clutter" else number
        names = [f"{number:03d}_{n:04d}.jpg" for n in range(1, count + 1)]
        images(folder / f"{number:03d}.{name}", names)
    image(folder / "002.dog" / "greg" / "vision301" / "copy.jpg")
    (folder / "001.ak47" / "RENAME2").touch()


def flowers102(root: Path) -> None:
    folder = root / "flowers-102"
    images(folder / "jpg", [f"image_{n:05d}.jpg" for n in range(1, 10)])
    labels = np.array([[1, 1, 1, 77, 77, 77, 102, 102, 102]], dtype=np.uint8)
    scipy.io.savemat(folder / "imagelabels.mat", {"labels": labels})
    ids = {"trnid": [[1, 4, 7]], "valid": [[2, 5, 8]], "tstid": [[3, 6, 9]]}
    scipy.io.savemat(folder / "setid.mat", {k: np.array(v, np.uint16) for k, v in ids.items()})


def food101(root: Path) -> None:
    folder = root / "food-101"
    for split, numbers in (("train", range(100, 104)), ("test", range(200, 202))):
        names = {name: [f"{name}/{n}" for n in numbers] for name in ("waffles", "apple_pie")}
        for part in names.values():
            images(folder / "images", [f"{name}.jpg" for name in part])
        lines(folder / "meta" / f"{split}.json", [json.dumps(names)])


def stanford_cars(root: Path) -> None:
    folder = root / "stanford_cars"
    names = ["AM General Hummer SUV 2000", "Ram C/V Cargo Van Minivan 2012"]
    (folder / "devkit").mkdir(parents=True)
    scipy.io.savemat(
        folder / "devkit" / "cars_meta.mat", {"class_names": np.array([names], dtype=object)}
    )
    kind = [("bbox_x1", "O"), ("class", "O"), ("fname", "O")]
    parts = (
        ("cars_train", folder / "devkit" / "cars_train_annos.mat", 6),
        ("cars_test", folder / "cars_test_annos_withlabels.mat", 4),
    )
    for part, file, count in parts:
        files = [f"{n:05d}.jpg" for n in range(1, count + 1)]
        images(folder / part, files)
        rows = [(np.uint8(1), np.uint8(1 + i % 2), name) for i, name in enumerate(files)]
        scipy.io.savemat(file, {"annotations": np.array([rows], dtype=kind)})


def eurosat(root: Path) -> None:
    folder = root / "eurosat" / "2750"
    for name in ("AnnualCrop", "Forest", "SeaLake"):
        images(folder / name, [f"{name}_{n}.jpg" for n in range(1, 11)])


MAKERS: dict[str, Callable[[Path], None]] = {
    maker.__name__: maker
    for maker in (
        *(cifar10, cifar100, dtd, fgvc_aircraft, oxford_iiit_pet, caltech101, caltech256),
        *(flowers102, food101, stanford_cars, eurosat),
    )
}


def cub200(root: Path) -> None:
    folder = root / "CUB_200_2011"
    names = ("001.Black_footed_Albatross", "200.Common_Yellowthroat")
    files = [f"{name}/{name[4:]}_{n:04d}_{n}.jpg" for name in names for n in range(1, 6)]
    images(folder / "images", files)
    lines(folder / "images.txt", [f"{i} {file}" for i, file in enumerate(files, start=1)])
    lines(folder / "image_class_labels.txt", [f"{i} {1 if i < 6 else 200}" for i in range(1, 11)])
    lines(
        folder / "train_test_split.txt", [f"{i} {int(i % 5 not in (1, 3))}" for i in range(1, 11)]
    )
    lines(folder / "classes.txt", [f"{int(name[:3])} {name}" for name in names])


def stanford_dogs(root: Path) -> None:
    folder = root / "stanford_dogs"
    names = ("n02085620-Chihuahua", "n02116738-African_hunting_dog")
    for part, numbers in (("train", range(1, 5)), ("test", range(5, 7))):
        files = [f"{name}/{name[:9]}_{n}.jpg" for name in names for n in numbers]
        images(folder / "Images", files)
        cells = np.empty((len(files), 1), dtype=object)
        cells[:, 0] = files
        labels = np.array([[1 + names.index(file.partition("/")[0])] for file in files])
        scipy.io.savemat(folder / f"{part}_list.mat", {"file_list": cells, "labels": labels})


def mit67(root: Path) -> None:
    folder = root / "mit67"
    for file, numbers in (("TrainImages", range(1, 5)), ("TestImages", range(5, 7))):
        names = [
            f"{room}/{room}_{n}.jpg" for room in ("airport_inside", "winecellar") for n in numbers
        ]
        images(folder / "Images", names)
        (folder / f"{file}.txt").write_text("\n".join(names))  # and no end of line behind the last
    image(folder / "Images" / "winecellar" / "in_no_list.jpg")


def caltech256_whole(root: Path) -> None:
    folder = root / "caltech256" / "256_ObjectCategories"
    for number, name in ((1, "ak47"), (2, "dog"), (257, "clutter")):
        files = [f"{number:03d}_{n:04d}.jpg" for n in range(1, 84)]
        images(folder / f"{number:03d}.{name}", files)
    (folder / "001.ak47" / "RENAME2").touch()
