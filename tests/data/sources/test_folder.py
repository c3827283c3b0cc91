import logging
import pickle
from collections import Counter
from pathlib import Path

import pytest

from delta_transfer.data.registry import load_data, load_labelled_data
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError

IMAGES = Path(__file__).resolve().parents[4] / "shared" / "data" / "images"


def load(root: Path, *, seed: int = 0, **options: object) -> TaskData:
    return load_data(str(root), seed=seed, **options)


def counts(split: Split | None) -> list[int]:
    assert split is not None
    return [count for _, count in sorted(Counter(split.labels).items())]


def paths(split: str, *, cats: int = 4, dogs: int = 4) -> list[str]:
    sizes = {"cat": cats, "dog": dogs}
    return [f"{split}/{name}/{i}.png" for name, size in sizes.items() for i in range(size)]


class TestSplits:
    @pytest.mark.parametrize("name", ["val", "valid", "validation", "Val"])
    def test_folders_are_taken_as_they_are(self, make_images, name: str) -> None:
        root = make_images(paths("train") + paths(name, cats=2) + paths("test", dogs=3))
        task = load(root)
        assert (task.name, task.classes, task.notes) == ("pets", ("cat", "dog"), ())
        assert [counts(split) for split in (task.train, task.val, task.test)] == [
            [4, 4],
            [2, 4],
            [4, 3],
        ]
        assert task.train.paths[0] == "train/cat/0.png"
        assert task.val.paths[0] == f"{name}/cat/0.png"

    def test_images_are_read_by_their_path(self, make_images) -> None:
        root = make_images(["cat/a.png", "cat/b.png", "dog/c.png", "dog/d.png"])
        split = pickle.loads(pickle.dumps(load(root).train))
        image = split.read("dog/d.png")
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (6, 5), (21, 93, 0))

    def test_validation_is_drawn_from_train_and_it_says_so(self, make_images) -> None:
        root = make_images(paths("train", cats=20, dogs=40) + paths("test"))
        task = load(root)
        assert (counts(task.train), counts(task.val), counts(task.test)) == (
            [17, 34],
            [3, 6],
            [4, 4],
        )
        assert task.notes == (
            "no validation split: 15% of train (9 images), stratified, seed 0, is held out",
        )

    def test_a_flat_folder_has_no_test_split_and_it_says_so(self, flat: Path) -> None:
        task = load(flat)
        assert (counts(task.train), counts(task.val), task.test) == ([8, 17], [2, 3], None)
        assert "no test split: test accuracy will be null; `test_split=0.2` draws one" in task.notes

    def test_a_flat_folder_gets_a_test_split_by_a_fraction(self, flat: Path) -> None:
        task = load(flat, test_split="0.2", val_fraction=0.25)
        assert (counts(task.train), counts(task.val), counts(task.test)) == (
            [6, 12],
            [2, 4],
            [2, 4],
        )
        everything = task.train.paths + task.val.paths + task.test.paths
        assert len(set(everything)) == len(everything) == 30
        assert task.notes[0] == (
            "no test split: 20% of train (6 images), stratified, seed 0, is held out"
        )

    def test_a_test_split_is_drawn_from_train_beside_a_validation_folder(self, make_images) -> None:
        root = make_images(paths("train", cats=10, dogs=10) + paths("val"))
        task = load(root, test_split="0.3")
        assert (counts(task.train), counts(task.val), counts(task.test)) == (
            [7, 7],
            [4, 4],
            [3, 3],
        )

    def test_the_test_split_may_have_another_name(self, make_images) -> None:
        root = make_images(paths("train") + paths("val") + paths("test") + paths("holdout"))
        task = load(root, test_split="holdout")
        assert task.test is not None
        assert task.test.paths[0] == "holdout/cat/0.png"
        assert task.notes == ("unused folders, which are not splits: test",)

    def test_a_seed_draws(self, flat: Path) -> None:
        tasks = [load(flat, seed=seed, test_split="0.3") for seed in (0, 0, 1)]
        for name in ("train", "val", "test"):
            drawn = [getattr(task, name).paths for task in tasks]
            assert drawn[0] == drawn[1] != drawn[2]

    def test_draws_are_independent(self, flat: Path) -> None:
        few, many = (load(flat, test_split="0.3", val_fraction=part) for part in (0.1, 0.5))
        assert few.test.paths == many.test.paths

    @pytest.mark.parametrize("split", ["0.5", "test"])
    def test_the_smallest_folders_leave_one_of_each_class(self, make_images, split: str) -> None:
        size = 3 if split == "0.5" else 2
        root = make_images([f"{name}/{i}.png" for name in "ab" for i in range(size)])
        assert counts(load(root, test_split=split, val_fraction=0.9).train) == [1, 1]

    def test_unused_folders_are_noted(self, make_images) -> None:
        root = make_images(
            [*paths("train"), *paths("val"), *paths("test"), "extra/a.png", "train/b.png"]
        )
        notes = load(root, val_fraction=0.3).notes
        assert "unused folders, which are not splits: extra" in notes
        assert f"unused images directly in '{root / 'train'}', not in a class folder: 1" in notes
        assert any(note.startswith("`val_fraction=0.3` is ignored") for note in notes)

    def test_files_that_are_no_images_are_counted(
        self, make_images, caplog: pytest.LogCaptureFixture
    ) -> None:
        root = make_images(paths("train") + paths("val"))
        for name in ("train/cat/x.HEIC", "train/dog/y.heic", "val/cat/z.txt", "train/cat/.hidden"):
            (root / name).touch()
        assert load(root).notes[0] == "ignored files: 2 .heic, 1 .txt"
        with caplog.at_level(logging.INFO):
            load_labelled_data(str(root), seed=0)
        assert caplog.messages == ["ignored files: 2 .heic, 1 .txt"]

    @pytest.mark.parametrize("name", ["val", "test"])
    @pytest.mark.parametrize("empty", [False, True])
    def test_val_and_test_may_lack_a_class(self, make_images, name: str, empty: bool) -> None:
        root = make_images(paths("train") + paths(name, dogs=0))
        if empty:
            (root / name / "dog").mkdir()
        task = load(root)
        split = task.val if name == "val" else task.test
        assert split is not None
        assert (task.classes, counts(split)) == (("cat", "dog"), [4])
        assert task.notes[0] == (
            f"no image of class 'dog' in '{root / name}': its accuracy there is unknown"
        )

    def test_the_name_of_the_current_folder(
        self, flat: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(flat)
        task = load(Path("."))
        assert task.name == "pets"
        assert task.train.read(task.train.paths[0]).size == (6, 5)

    def test_links_to_split_and_class_folders_are_followed(
        self, make_images, tmp_path: Path
    ) -> None:
        root = make_images(paths("train") + paths("other/deep"))
        root.rename(tmp_path / "store")
        root.mkdir()
        (root / "train").symlink_to(tmp_path / "store" / "train", target_is_directory=True)
        (root / "val").mkdir()
        for name in ("cat", "dog"):
            target = tmp_path / "store" / "other" / "deep" / name
            (root / "val" / name).symlink_to(target, target_is_directory=True)
        task = load(root)
        assert task.val.paths[0] == "val/cat/0.png"
        assert task.val.read(task.val.paths[0]).mode == "RGB"


class TestErrors:
    def test_a_file_instead_of_a_folder(self, tmp_path: Path) -> None:
        file = tmp_path / "data.zip"
        file.touch()
        with pytest.raises(UserError, match=r"data\.zip' is a file, not a folder: .* a folder"):
            load(file)

    def test_no_images(self, tmp_path: Path) -> None:
        (tmp_path / "cat").mkdir()
        (tmp_path / "cat" / "a.txt").touch()
        with pytest.raises(UserError, match=r"no images in class folders.*<class>.*\.jpg"):
            load(tmp_path)

    def test_images_without_class_folders(self, make_images) -> None:
        root = make_images(["a.png", "b.png"])
        with pytest.raises(UserError, match=r"pets' has no images in class folders"):
            load(root)

    def test_one_class(self, make_images) -> None:
        root = make_images(["images/cat/a.png", "images/dog/b.png"])
        with pytest.raises(UserError, match=r"only one class, 'images'.*one level deeper"):
            load(root)

    def test_a_class_folder_without_images(self, make_images) -> None:
        root = make_images(["cat/a.png", "dog/b.png"])
        (root / "bird").mkdir()
        with pytest.raises(UserError, match=r"without images: 'bird'; remove.*\.png"):
            load(root)

    def test_a_class_folder_of_files_that_are_not_read(self, make_images) -> None:
        root = make_images(["cat/a.png", "dog/b.png"])
        (root / "bird").mkdir()
        (root / "bird" / "c.heic").touch()
        with pytest.raises(UserError, match=r"'bird' \(ignored files: 1 \.heic\); remove"):
            load(root)

    @pytest.mark.parametrize("name", ["train", "Train"])
    def test_a_class_called_train(self, make_images, name: str) -> None:
        root = make_images(["bus/a.png", "car/b.png", f"{name}/c.png", f"{name}/d.png"])
        with pytest.raises(
            UserError, match=f"'{name}' has images but no class folders, .*'bus', 'car': .*rename"
        ):
            load(root)

    def test_a_class_that_only_some_splits_have(self, make_images) -> None:
        root = make_images([*paths("train"), *paths("val"), "test/cow/a.png"])
        with pytest.raises(UserError, match=r"every class.*train' lacks 'cow'"):
            load(root)

    def test_classes_that_differ_between_splits(self, make_images) -> None:
        root = make_images([*paths("train"), *paths("val", dogs=0), "test/bird/a.png"])
        with pytest.raises(UserError, match="every class") as caught:
            load(root)
        for part in (
            "train' lacks 'bird'",
            "val' lacks 'bird', 'dog'",
            "test' lacks 'cat', 'dog'",
            "add these class folders, or remove them",
        ):
            assert part in str(caught.value)

    def test_a_single_image_cannot_be_split(self, make_images) -> None:
        root = make_images(paths("train", dogs=1))
        message = "drawing a validation split needs at least 2 .* class 'dog' has 1: add images"
        with pytest.raises(UserError, match=message):
            load(root)

    def test_two_images_cannot_be_split_into_three(self, make_images) -> None:
        root = make_images(paths("train", dogs=2))
        message = "drawing a validation and a test split needs at least 3 .*'dog' has 2"
        with pytest.raises(UserError, match=message):
            load(root, test_split="0.2")

    def test_a_single_image_is_enough_where_nothing_is_drawn(self, make_images) -> None:
        assert counts(load(make_images(paths("train", dogs=1) + paths("val"))).train) == [4, 1]

    def test_two_validation_folders(self, make_images) -> None:
        root = make_images(paths("train") + paths("val") + paths("valid"))
        with pytest.raises(UserError, match="has 'val', 'valid', which mean the same split; keep"):
            load(root)

    @pytest.mark.parametrize("name", ["val", "test", "Testing"])
    def test_splits_without_train(self, make_images, name: str) -> None:
        root = make_images(paths("learn") + paths(name))
        with pytest.raises(UserError, match=f"has the folder '{name}' but no 'train'"):
            load(root)

    def test_a_fraction_beside_a_test_folder(self, make_images) -> None:
        root = make_images(paths("train") + paths("test"))
        with pytest.raises(UserError, match=r"`test_split=0.2`: .* already has a test split"):
            load(root, test_split="0.2")

    def test_an_unknown_test_split(self, make_images) -> None:
        root = make_images(paths("train") + paths("val") + paths("test1"))
        with pytest.raises(UserError, match=r"`test_split=tset`: .* has test1, train, val; name"):
            load(root, test_split="tset")

    def test_a_named_test_split_of_a_flat_folder(self, flat: Path) -> None:
        with pytest.raises(UserError, match=r"`test_split=holdout`: .* classes, not splits"):
            load(flat, test_split="holdout")

    @pytest.mark.parametrize("name", ["train", "val"])
    def test_the_test_split_may_not_be_train_or_val(self, make_images, name: str) -> None:
        root = make_images(paths("train") + paths("val"))
        with pytest.raises(
            UserError, match=f"`test_split={name}`: .* training or validation split"
        ):
            load(root, test_split=name)

    def test_a_fraction_out_of_range(self, flat: Path) -> None:
        with pytest.raises(UserError, match="`test_split=20`: a fraction must be above 0"):
            load(flat, test_split="20")


@pytest.mark.parametrize(
    ("name", "sizes", "notes"),
    [("dtd10", (400, 400, 400), 0), ("cifar10_small", (850, 150, 1000), 1)],
)
def test_real_folders(name: str, sizes: tuple[int, int, int], notes: int) -> None:
    if not (IMAGES / name).is_dir():
        pytest.skip(f"the images of {name} are not beside this checkout")
    task = load(IMAGES / name)
    assert task.test is not None
    assert (len(task.train), len(task.val), len(task.test)) == sizes
    assert (len(task.classes), len(task.notes)) == (10, notes)
    assert task.test.read(task.test.paths[-1]).mode == "RGB"
    assert counts(load(IMAGES / name, samples_per_class=5).train) == [5] * 10
