import logging
import os
import pickle
import socket
import time
import urllib.error
from collections import Counter
from pathlib import Path

import pytest
import torch
import torchvision.datasets
from torch.utils.data import DataLoader
from torchvision.datasets import VisionDataset
from torchvision.transforms import v2

from delta_transfer.data.registry import load_data, load_labelled_data
from delta_transfer.data.sources.torchvision import SETS
from delta_transfer.data.task import ImageDataset, Split, TaskData
from delta_transfer.errors import UserError
from tests.data.miniatures import MAKERS, image, trust_checksums


@pytest.fixture(autouse=True)
def no_checksums(monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniatures cannot have the checksums of the real files."""
    for module in (torchvision.datasets.cifar, torchvision.datasets.flowers102):
        monkeypatch.setattr(module, "check_integrity", lambda path, md5: Path(path).is_file())


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def load(name: str, root: Path, *, seed: int = 0, **options: object) -> TaskData:
    return load_data(f"torchvision/{name}", seed=seed, data_root=str(root), **options)


def sizes(task: TaskData) -> tuple[int, int, int | None]:
    return len(task.train), len(task.val), None if task.test is None else len(task.test)


def splits(task: TaskData) -> list[Split]:
    return [split for split in (task.train, task.val, task.test) if split is not None]


MINIATURES = [
    ("cifar10", (80, 20, 10), True, "accuracy", ("airplane", "automobile")),
    ("cifar100", (100, 100, 100), True, "accuracy", ("class 00", "class 01")),
    ("dtd", (4, 4, 4), False, "accuracy", ("banded", "dotted")),
    ("fgvc_aircraft", (3, 3, 3), False, "mean_class_accuracy", ("707-320", "Spitfire")),
    ("oxford_iiit_pet", (6, 2, 6), True, "mean_class_accuracy", ("Abyssinian", "American Bulldog")),
    ("caltech101", (52, 8, 5), True, "mean_class_accuracy", ("Faces", "ant")),
    ("caltech256", (102, 18, 5), True, "accuracy", ("001.ak47", "002.dog")),
    ("flowers102", (3, 3, 3), False, "mean_class_accuracy", ("pink primrose",)),
    ("food101", (6, 2, 4), True, "accuracy", ("apple_pie", "waffles")),
    ("stanford_cars", (4, 2, 4), True, "accuracy", ("AM General Hummer SUV 2000",)),
    ("eurosat", (24, 6, None), True, "accuracy", ("AnnualCrop", "Forest")),
]


class TestMiniatures:
    @pytest.mark.parametrize("below", ["", "name"])
    @pytest.mark.parametrize(("name", "size", "drawn", "metric", "classes"), MINIATURES)
    def test_splits_metric_and_classes(
        self,
        tmp_path: Path,
        name: str,
        size: tuple[int, int, int | None],
        drawn: bool,
        metric: str,
        classes: tuple[str, ...],
        below: str,
    ) -> None:
        MAKERS[name](tmp_path / name if below else tmp_path)
        task = load(name, tmp_path)
        assert (task.name, sizes(task), task.val_drawn) == (f"torchvision/{name}", size, drawn)
        assert (task.metric, task.classes[: len(classes)]) == (metric, classes)
        paths = [path for split in splits(task) for path in split.paths]
        assert len(set(paths)) == len(paths)
        for split in splits(task):
            read = pickle.loads(pickle.dumps(split)).read
            assert {read(path).mode for path in split.paths[:3]} == {"RGB"}
        assert any(note.startswith(f"torchvision/{name} should have") for note in task.notes)

    def test_all_sets_have_one(self) -> None:
        assert {name for name, *_ in MINIATURES} == set(SETS) == set(MAKERS)

    def test_official_splits_are_used(self, tmp_path: Path) -> None:
        MAKERS["dtd"](tmp_path)
        task = load("dtd", tmp_path)
        assert task.test is not None
        assert [split.paths[0] for split in splits(task)] == [
            "dtd/images/banded/banded_0003.jpg",
            "dtd/images/banded/banded_0005.jpg",
            "dtd/images/banded/banded_0001.jpg",
        ]
        MAKERS["flowers102"](tmp_path)
        task = load("flowers102", tmp_path)
        assert task.val.paths == (
            "jpg/image_00002.jpg",
            "jpg/image_00005.jpg",
            "jpg/image_00008.jpg",
        )
        assert [task.classes[label] for label in task.val.labels] == [
            "pink primrose",
            "passion flower",
            "blackberry lily",
        ]
        assert len(task.classes) == 102

    @pytest.mark.parametrize(
        ("name", "of"),
        [("food101", 1), ("dtd", 2), ("eurosat", 1), ("caltech101", 1), ("caltech256", 1)],
    )
    def test_labels_are_those_of_the_folders(self, tmp_path: Path, name: str, of: int) -> None:
        MAKERS[name](tmp_path)
        task = load(name, tmp_path)
        for split in splits(task):
            for path, label in zip(split.paths, split.labels, strict=True):
                assert path.split("/")[of] == task.classes[label]

    @pytest.mark.parametrize(
        ("name", "classes"),
        [
            (
                "stanford_cars",
                {
                    "cars_test/00001.jpg": "AM General Hummer SUV 2000",
                    "cars_test/00002.jpg": "Ram C/V Cargo Van Minivan 2012",
                    "cars_test/00003.jpg": "AM General Hummer SUV 2000",
                    "cars_test/00004.jpg": "Ram C/V Cargo Van Minivan 2012",
                },
            ),
            (
                "fgvc_aircraft",
                {
                    "data/images/1000020.jpg": "707-320",
                    "data/images/1000021.jpg": "Spitfire",
                    "data/images/1000022.jpg": "F-16A/B",
                },
            ),
            (
                "oxford_iiit_pet",
                {
                    f"images/{file}_{number}.jpg": breed
                    for file, breed in (
                        ("Abyssinian", "Abyssinian"),
                        ("american_bulldog", "American Bulldog"),
                    )
                    for number in (5, 6, 7)
                },
            ),
            ("cifar100", {f"test/{number:05d}": f"class {number:02d}" for number in range(100)}),
        ],
    )
    def test_labels_are_those_of_the_lists(
        self, tmp_path: Path, name: str, classes: dict[str, str]
    ) -> None:
        MAKERS[name](tmp_path)
        task = load(name, tmp_path)
        assert task.test is not None
        assert all(type(label) is int for label in task.test.labels)
        pairs = zip(task.test.paths, task.test.labels, strict=True)
        assert {path: task.classes[label] for path, label in pairs} == classes

    def test_cifar_images_are_the_rows_of_its_files(self, tmp_path: Path) -> None:
        MAKERS["cifar10"](tmp_path)
        task = load("cifar10", tmp_path)
        assert task.test is not None
        assert task.test.paths[3] == "test/00003"
        image = task.test.read("test/00003")
        assert (image.size, image.getpixel((5, 7)), task.test.labels[3]) == (
            (32, 32),
            (103, 0, 0),
            3,
        )
        assert task.train.read("train/00041").getpixel((0, 0)) == (41, 0, 0)

    def test_workers_read(self, tmp_path: Path) -> None:
        MAKERS["cifar10"](tmp_path)
        task = load("cifar10", tmp_path)
        transform = v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32)])
        assert task.test is not None
        loader = DataLoader(
            ImageDataset(task.test, transform),
            batch_size=5,
            num_workers=2,
            multiprocessing_context="fork",  # who knows that the checksums are those of miniatures
        )
        reds = [int(red) for batch, _ in loader for red in batch[:, 0, 0, 0]]
        assert reds == list(range(100, 110))

    @pytest.mark.slow
    def test_a_new_worker_process_reads(self, tmp_path: Path) -> None:
        MAKERS["cifar10"](tmp_path)
        split = load("cifar10", tmp_path).test
        assert split is not None
        loader = DataLoader(
            ImageDataset(split, v2.PILToTensor()),
            batch_size=5,
            num_workers=1,
            multiprocessing_context="spawn",
            worker_init_fn=trust_checksums,
        )
        reds = [int(red) for batch, _ in loader for red in batch[:, 0, 0, 0]]
        assert reds == list(range(100, 110))

    def test_the_reader_of_cifar_is_sent_without_its_arrays(self, tmp_path: Path) -> None:
        MAKERS["cifar10"](tmp_path)
        split = load("cifar10", tmp_path).test
        assert split is not None
        assert len(pickle.dumps(split.read)) < 1000

    def test_the_drawn_protocols_are_mentioned_and_drawn_by_seed(self, tmp_path: Path) -> None:
        MAKERS["caltech101"](tmp_path)
        tasks = [load("caltech101", tmp_path, seed=seed) for seed in (0, 0, 1)]
        tests = [task.test.paths for task in tasks if task.test is not None]
        assert tests[0] == tests[1] != tests[2]
        counts = Counter(tasks[0].train.labels + tasks[0].val.labels)
        assert counts == {0: 30, 1: 30}
        assert any(
            "30 training images of every class, drawn by seed 0" in note for note in tasks[0].notes
        )

    def test_eurosat_gets_a_test_split_by_a_fraction(self, tmp_path: Path) -> None:
        MAKERS["eurosat"](tmp_path)
        assert sizes(load("eurosat", tmp_path, test_split="0.2")) == (21, 3, 6)
        classes, split, test = load_labelled_data(
            "torchvision/eurosat", seed=0, data_root=str(tmp_path), test_split="0.2"
        )
        assert (len(classes), len(split), test) == (3, 30, False)
        with pytest.raises(UserError, match="`test_split=holdout`: torchvision/eurosat has no"):
            load("eurosat", tmp_path, test_split="holdout")

    @pytest.mark.parametrize("split", ["0.2", "val"])
    def test_an_official_test_split_is_not_exchanged(self, tmp_path: Path, split: str) -> None:
        with pytest.raises(
            UserError, match=r"`test_split=.*`: torchvision/dtd has its own test split"
        ):
            load("dtd", tmp_path, test_split=split)

    def test_a_fraction_beside_an_official_validation_split(self, tmp_path: Path) -> None:
        MAKERS["dtd"](tmp_path)
        assert any(
            note.startswith("`val_fraction=0.3` is ignored: torchvision/dtd")
            for note in load("dtd", tmp_path, val_fraction=0.3).notes
        )


class TestNames:
    @pytest.mark.parametrize("name", ["Food101", "food-101", "FOOD_101"])
    def test_spellings(self, tmp_path: Path, name: str) -> None:
        MAKERS["food101"](tmp_path)
        assert load(name, tmp_path).name == "torchvision/food101"

    def test_class_names(self, tmp_path: Path) -> None:
        MAKERS["oxford_iiit_pet"](tmp_path)
        assert load("OxfordIIITPet", tmp_path).name == "torchvision/oxford_iiit_pet"
        for data in SETS.values():
            assert hasattr(torchvision.datasets, data.class_name)

    @pytest.mark.parametrize("name", ["cifar11", "", "/"])
    def test_an_unknown_one_lists_those_alike(self, tmp_path: Path, name: str) -> None:
        with pytest.raises(
            UserError, match=f"unknown dataset 'torchvision/{name}'.*torchvision/ci"
        ):
            load(name, tmp_path)


class TestDownload:
    @pytest.fixture
    def fetched(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        """In the place of torchvision's download, which makes a miniature; gives the folders."""
        folders = []

        def download(self: VisionDataset) -> None:
            root = Path(self.root)
            folders.append(root.name)
            MAKERS["dtd"](root)
            (root / "dtd" / "dtd-r1.0.1.tar.gz").write_bytes(b"archive")

        monkeypatch.setattr(torchvision.datasets.DTD, "_download", download)
        return folders

    def test_what_is_not_there_is_downloaded_once(
        self, tmp_path: Path, fetched: list[str], caplog: pytest.LogCaptureFixture
    ) -> None:
        root = tmp_path / "new" / "data"
        with caplog.at_level(logging.INFO):
            first = load("dtd", root)
        assert f"downloading torchvision/dtd (625 MB) to {root / 'dtd'}" in caplog.text
        assert load("dtd", root) == first
        assert len(fetched) == 1
        assert [entry.name for entry in root.iterdir()] == ["dtd"]
        assert [entry.name for entry in (root / "dtd").iterdir()] == ["dtd"]
        assert socket.getdefaulttimeout() is None

    def test_the_default_folder_is_in_the_users_cache(
        self, tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        load_data("torchvision/dtd", seed=0)
        assert (tmp_path / "cache" / "delta-transfer" / "data" / "dtd").is_dir()
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        load_data("torchvision/dtd", seed=0)
        assert (tmp_path / "home" / ".cache" / "delta-transfer" / "data" / "dtd").is_dir()

    @pytest.mark.parametrize("name", list(SETS))
    def test_a_failure_says_where_and_how_and_leaves_nothing(
        self, tmp_path: Path, name: str, caplog: pytest.LogCaptureFixture
    ) -> None:
        with (
            caplog.at_level(logging.INFO),
            pytest.raises(UserError, match=f"torchvision/{name} is not in ") as caught,
        ):
            load(name, tmp_path)
        said = str(caught.value)
        folder = tmp_path / SETS[name].folder
        assert SETS[name].url in said
        assert all(f"'{folder / part}'" in said for part in SETS[name].contents)
        gone = name == "stanford_cars"
        assert ("can no longer download it: get it from" in said) == gone
        assert ("no network in tests" in said) == ("Try again, or get it" in said) == (not gone)
        assert ("downloading" in caplog.text) == (not gone)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        "error",
        [
            urllib.error.HTTPError("http://a", 404, "Not Found", None, None),  # type: ignore[arg-type]
            RuntimeError("File not found or corrupted."),
            EOFError("Compressed file ended before the end-of-stream marker was reached"),
            OSError(28, "No space left on device"),
        ],
    )
    def test_half_of_a_download_is_removed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        monkeypatch.setattr(torchvision.datasets.DTD, "_download", self._half(error))
        with pytest.raises(UserError, match=f"failed \\({type(error).__name__}: "):
            load("dtd", tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_an_interruption_is_none_of_our_errors_and_leaves_nothing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torchvision.datasets.DTD, "_download", self._half(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            load("dtd", tmp_path)
        assert list(tmp_path.iterdir()) == []
        assert socket.getdefaulttimeout() is None

    @staticmethod
    def _half(error: BaseException) -> object:
        def download(self: VisionDataset) -> None:
            image(Path(self.root) / "dtd" / "dtd" / "images" / "banded" / "a.jpg")
            raise error

        return download

    def test_another_process_may_be_faster(
        self, tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        ours = torchvision.datasets.DTD._download

        def slow(self: VisionDataset) -> None:
            ours(self)
            MAKERS["dtd"](tmp_path)

        monkeypatch.setattr(torchvision.datasets.DTD, "_download", slow)
        assert sizes(load("dtd", tmp_path)) == (4, 4, 4)
        assert [entry.name for entry in tmp_path.iterdir()] == ["dtd"]

    def test_a_file_in_its_place_is_refused_before_the_download(
        self, tmp_path: Path, fetched: list[str]
    ) -> None:
        (tmp_path / "dtd").touch()
        with pytest.raises(UserError, match=r"^'.*dtd' is a file, .* folder: move or remove"):
            load("dtd", tmp_path)
        assert fetched == []

    def test_an_empty_folder_behind_a_link_is_filled(
        self, tmp_path: Path, fetched: list[str]
    ) -> None:
        (tmp_path / "large" / "disk").mkdir(parents=True)
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "dtd").symlink_to(tmp_path / "large" / "disk")
        assert sizes(load("dtd", tmp_path / "data")) == (4, 4, 4)
        assert (tmp_path / "data" / "dtd").is_symlink()
        assert [entry.name for entry in (tmp_path / "large").iterdir()] == ["disk"]

    def test_where_a_folder_does_not_replace_an_empty_one(
        self, tmp_path: Path, fetched: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plain = os.rename

        def as_windows(source: Path, target: Path) -> None:
            if target.exists():
                raise FileExistsError(17, "File exists", str(target))
            plain(source, target)

        monkeypatch.setattr(os, "rename", as_windows)
        (tmp_path / "dtd").mkdir()
        assert sizes(load("dtd", tmp_path)) == (4, 4, 4)

    def test_what_a_killed_download_left_is_removed_after_a_day(
        self, tmp_path: Path, fetched: list[str]
    ) -> None:
        now = time.time()
        for name, file, days in (
            (".dtd-abc_1234", "old.tar.gz", 2),
            (".dtd-running0", "new.tar.gz", 0),
            (".dtd-mine", "old", 2),
            (".dtd2-abc_1234", "old", 2),
        ):
            (tmp_path / name / "dtd").mkdir(parents=True)
            (tmp_path / name / "dtd" / file).touch()
            then = now - 24 * 60 * 60 * days
            os.utime(tmp_path / name / "dtd" / file, (then, then))
            for folder in (tmp_path / name / "dtd", tmp_path / name):
                os.utime(folder, (now - 200_000, now - 200_000))
        load("dtd", tmp_path)
        left = sorted(entry.name for entry in tmp_path.iterdir())
        assert left == [".dtd-mine", ".dtd-running0", ".dtd2-abc_1234", "dtd"]

    def test_an_empty_folder_is_filled(self, tmp_path: Path, fetched: list[str]) -> None:
        (tmp_path / "dtd").mkdir()
        assert sizes(load("dtd", tmp_path)) == (4, 4, 4)

    def test_a_folder_that_cannot_be_written(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(UserError, match=r"failed \(\w+Error: .*`data_root`"):
            load("dtd", tmp_path / "file" / "data")


class TestDamage:
    def test_a_part_that_is_missing(self, tmp_path: Path) -> None:
        image(tmp_path / "food-101" / "images" / "waffles" / "1.jpg")
        with pytest.raises(UserError, match=r"food-101' is incomplete, it lacks meta: unp"):
            load("food101", tmp_path)

    def test_the_archive_one_level_too_high(self, tmp_path: Path) -> None:
        MAKERS["dtd"](tmp_path)
        (tmp_path / "dtd" / "dtd").rename(tmp_path / "d")
        (tmp_path / "dtd").rmdir()
        (tmp_path / "d").rename(tmp_path / "dtd")
        with pytest.raises(UserError, match=r"dtd' is incomplete, it lacks dtd/images, dtd/labels"):
            load("dtd", tmp_path)

    def test_images_that_are_missing(self, tmp_path: Path) -> None:
        MAKERS["food101"](tmp_path)
        (tmp_path / "food-101" / "images" / "waffles" / "201.jpg").unlink()
        with pytest.raises(UserError, match=r"lacks 1 of 4 images .*: images/waffles/201.jpg; unp"):
            load("food101", tmp_path)

    def test_a_damaged_list(self, tmp_path: Path) -> None:
        MAKERS["food101"](tmp_path)
        (tmp_path / "food-101" / "meta" / "test.json").write_text("{")
        with pytest.raises(UserError, match=r"cannot be used \(JSONDecodeError: .*unpack http"):
            load("food101", tmp_path)

    def test_a_label_of_no_class(self, tmp_path: Path) -> None:
        MAKERS["oxford_iiit_pet"](tmp_path)
        file = tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt"
        file.write_text(file.read_text() + "Abyssinian_5 0 1 1\n")
        with pytest.raises(UserError, match=r"other classes|none of the 2 classes"):
            load("oxford_iiit_pet", tmp_path)

    def test_checksums_of_real_files_are_checked(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        MAKERS["cifar10"](tmp_path)
        check = torchvision.datasets.utils.check_integrity
        monkeypatch.setattr(torchvision.datasets.cifar, "check_integrity", check)
        with pytest.raises(UserError, match=r"cannot be used \(RuntimeError: .*corrupted"):
            load("cifar10", tmp_path)

    def test_too_few_images_for_the_protocol(self, tmp_path: Path) -> None:
        MAKERS["caltech101"](tmp_path)
        for number in range(1, 4):
            folder = tmp_path / "caltech101" / "101_ObjectCategories" / "ant"
            (folder / f"image_{number:04d}.jpg").unlink()
        with pytest.raises(UserError, match=r"needs at least 31 .*'ant' has 29: the files"):
            load("caltech101", tmp_path)
