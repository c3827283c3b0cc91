import io
import pickle
import re
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import pytest
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from delta_transfer.data.images.decode import ImageError
from delta_transfer.data.registry import load_data, load_labelled_data
from delta_transfer.data.task import ImageDataset, TaskData
from delta_transfer.errors import UserError

NAMES = ("dog", "cat")  # not sorted, as the labels of a hub set need not be


@pytest.fixture(autouse=True)
def no_progress_bars() -> None:
    datasets.disable_progress_bars()


def sample(number: int) -> Image.Image:
    return Image.new("RGB", (6, 5), (number % 256, 0, 0))


def part(
    labels: Sequence[Any],
    *,
    kind: Any = None,
    label: str = "label",
    image: str = "image",
    **more: Sequence[Any],
) -> datasets.Dataset:
    """Rows with these labels; each sample is red by its number."""
    kinds: dict[str, Any] = {
        image: datasets.Image(),
        label: kind or datasets.ClassLabel(names=NAMES),
    }
    content: dict[str, Any] = {image: [sample(i) for i in range(len(labels))], label: labels}
    for name, values in more.items():
        kinds[name] = datasets.Value("string")
        content[name] = values
    return datasets.Dataset.from_dict(content, features=datasets.Features(kinds))


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., str]:
    """Saves splits, or one data set, and gives their name."""

    def write(saved: datasets.Dataset | None = None, /, **splits: datasets.Dataset) -> str:
        folder = tmp_path / "pets"
        (datasets.DatasetDict(splits) if saved is None else saved).save_to_disk(str(folder))
        return f"hf/{folder}"

    return write


def load(name: str, **options: object) -> TaskData:
    return load_data(name, seed=0, **options)


def sizes(task: TaskData) -> tuple[int, int, int | None]:
    return len(task.train), len(task.val), None if task.test is None else len(task.test)


BALANCED = [0, 1] * 8


class TestSplits:
    @pytest.mark.parametrize("val", ["val", "valid", "validation", "Validation"])
    def test_splits_are_found_by_name(self, save, val: str) -> None:
        name = save(train=part(BALANCED), test=part([0, 1, 1]), **{val: part([1, 0])})
        task = load(name)
        assert (task.name, sizes(task), task.notes) == ("pets", (16, 2, 3), ())
        assert (task.val_drawn, task.metric) == (False, "accuracy")
        assert task.test is not None
        assert task.test.paths == ("test/000000", "test/000001", "test/000002")
        assert [task.classes[label] for label in task.test.labels] == ["dog", "cat", "cat"]

    def test_missing_ones_are_drawn(self, save) -> None:
        name = save(train=part(BALANCED))
        task = load(name, val_fraction=0.25)
        assert (sizes(task), task.val_drawn) == ((12, 4, None), True)
        assert sizes(load(name, test_split="0.25", val_fraction=0.25)) == (8, 4, 4)

    def test_a_data_set_without_splits(self, save) -> None:
        assert sizes(load(save(part(BALANCED)), test_split="0.25")) == (10, 2, 4)

    def test_another_name_for_the_test_split(self, save) -> None:
        name = save(train=part(BALANCED), holdout=part([0, 1]), extra=part([0]))
        task = load(name, test_split="holdout")
        assert (sizes(task), task.notes[0]) == ((14, 2, 2), "unused splits: extra")
        with pytest.raises(
            UserError, match=r"`test_split=tset`: .* has train, holdout, extra; nam"
        ):
            load(name, test_split="tset")

    def test_a_fraction_beside_a_test_split(self, save) -> None:
        with pytest.raises(
            UserError, match=r"`test_split=0.2`: .* already has a test split, 'test'"
        ):
            load(save(train=part(BALANCED), test=part([0, 1])), test_split="0.2")

    def test_two_validation_splits(self, save) -> None:
        with pytest.raises(UserError, match=r"has 'val', 'valid', which mean the same split"):
            load(save(train=part(BALANCED), val=part([0, 1]), valid=part([0, 1])))

    def test_no_training_split(self, save) -> None:
        with pytest.raises(UserError, match=r"has no split 'train', but learn, test: rename"):
            load(save(learn=part(BALANCED), test=part([0, 1])))

    @pytest.mark.parametrize("kind", [None, datasets.Value("string")])
    def test_a_split_without_labels_counts_as_missing(self, save, kind: Any) -> None:
        labels = BALANCED if kind is None else ["cat", "dog"] * 8
        blank = [-1, None] if kind is None else ["", None]
        name = save(train=part(labels, kind=kind), test=part(blank, kind=kind))
        task = load(name, test_split="0.25")
        assert sizes(task) == (10, 2, 4)
        assert task.notes[0] == "unused splits without labels: test"

    def test_evaluate_takes_the_test_split_or_everything(self, save) -> None:
        name = save(train=part(BALANCED), test=part([0, 1]))
        assert [len(load_labelled_data(name, seed=0)[1]), load_labelled_data(name, seed=0)[2]] == [
            2,
            True,
        ]

    def test_evaluate_takes_everything(self, save) -> None:
        classes, split, test = load_labelled_data(
            save(train=part(BALANCED)), seed=0, test_split="0.2"
        )
        assert (classes, len(split), test) == (NAMES, 16, False)
        assert {split.read(path).size for path in split.paths} == {(6, 5)}


class TestRows:
    def test_class_labels_keep_their_order_and_texts_are_sorted(self, save, tmp_path: Path) -> None:
        assert load(save(train=part(BALANCED))).classes == NAMES
        text = part(["dog", " 猫 ", "10"] * 3, kind=datasets.Value("string"), label="kind")
        text.save_to_disk(str(tmp_path / "text"))
        task = load(f"hf/{tmp_path / 'text'}")
        assert task.classes == ("10", "dog", "猫")
        assert {task.classes[label] for label in task.val.labels} == {"10", "dog", "猫"}

    def test_a_name_without_rows_is_not_a_class(self, save) -> None:
        kind = datasets.ClassLabel(names=["cow", "dog", "eel", "cat"])
        assert load(save(train=part([3, 1] * 4, kind=kind))).classes == ("dog", "cat")

    def test_images_are_read_by_their_path(self, save) -> None:
        split = pickle.loads(pickle.dumps(load(save(train=part(BALANCED))).train))
        for path in split.paths:
            image = split.read(path)
            assert (image.mode, image.getpixel((0, 0))) == ("RGB", (int(path[-6:]), 0, 0))

    def test_rows_that_were_taken_out_or_moved(self, save) -> None:
        saved = part(BALANCED).select(range(15, 3, -1)).with_format("torch")
        task = load(save(train=saved))
        first = task.train.read("train/000000")
        assert (first.getpixel((0, 0)), len(task.train) + len(task.val)) == ((15, 0, 0), 12)
        labels = dict(zip(task.train.paths, task.train.labels, strict=True))
        assert all(label == (15 - int(path[-6:])) % 2 for path, label in labels.items())

    @pytest.mark.parametrize("shown", ["image", "label"])
    def test_a_format_that_was_saved_does_not_count(self, save, shown: str) -> None:
        saved = part(BALANCED).with_format("torch", columns=[shown])
        task = load(save(train=saved, test=saved))
        assert (task.classes, sizes(task)) == (NAMES, (14, 2, 16))
        assert task.train.read("train/000000").size == (6, 5)

    def test_images_are_decoded_as_those_of_files(self, save, tmp_path: Path) -> None:
        turned = Image.Exif()
        turned[0x0112] = 6
        file = io.BytesIO()
        Image.new("RGB", (8, 4)).save(file, "JPEG", exif=turned)
        Image.new("RGBA", (3, 2)).save(tmp_path / "clear.png")
        rows = [
            {"bytes": file.getvalue(), "path": None},
            {"bytes": None, "path": str(tmp_path / "clear.png")},
        ]
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
        content = {"image": rows * 2, "label": ["a", "b"] * 2}
        name = save(datasets.Dataset.from_dict(content, features=kinds))
        read = load(name).train.read
        assert (read("train/000000").size, read("train/000001").getpixel((0, 0))) == (
            (4, 8),
            (255, 255, 255),
        )

    def test_threads_read(self, save) -> None:
        split = load(save(train=part([0, 1] * 50))).train
        with ThreadPoolExecutor(4) as pool:
            reds = [image.getpixel((0, 0))[0] for image in pool.map(split.read, split.paths)]
        assert reds == [int(path[-6:]) for path in split.paths]

    def test_workers_read(self, save) -> None:
        task = load(save(train=part(BALANCED), test=part([0, 1] * 3)))
        assert task.test is not None
        loader = DataLoader(ImageDataset(task.test, v2.PILToTensor()), batch_size=3, num_workers=2)
        assert [int(red) for batch, _ in loader for red in batch[:, 0, 0, 0]] == list(range(6))

    @pytest.mark.slow
    def test_a_new_worker_process_reads(self, save) -> None:
        split = load(save(train=part(BALANCED), test=part([0, 1] * 3))).test
        assert split is not None
        loader = DataLoader(
            ImageDataset(split, v2.PILToTensor()),
            batch_size=3,
            num_workers=1,
            multiprocessing_context="spawn",
        )
        assert [int(red) for batch, _ in loader for red in batch[:, 0, 0, 0]] == list(range(6))

    @pytest.mark.parametrize("content", [b"no image", None])
    def test_a_broken_image_is_named(self, save, content: bytes | None) -> None:
        rows = [None if content is None else {"bytes": content, "path": None}] * 4
        kinds = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(2)})
        saved = datasets.Dataset.from_dict({"image": rows, "label": [0, 1] * 2}, features=kinds)
        read = load(save(saved)).train.read
        with pytest.raises(ImageError, match=r"train/000001 of 'hf/.*pets'"):
            read("train/000001")


class TestColumns:
    def test_other_names_and_columns_that_are_not_used(self, save) -> None:
        saved = part(BALANCED, label="kind", image="photo", owner=["x"] * 16)
        task = load(save(train=saved))
        assert (task.classes, task.notes[0]) == (NAMES, "unused columns: owner")

    def test_of_several_the_usual_names_count(self, save) -> None:
        saved = part(["a", "b"] * 8, kind=datasets.Value("string"), owner=["x"] * 16)
        saved = saved.add_column("mask", [None] * 16).cast_column("mask", datasets.Image())
        task = load(save(train=saved))
        assert (task.classes, task.notes[0]) == (
            ("a", "b"),
            "unused columns: owner, mask",
        )

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (
                lambda d: d.rename_columns({"label": "fine", "owner": "coarse"}),
                "more than one column of class labels or text, fine, coarse; its columns are "
                r"image \(Image\), fine \(Value\), coarse \(Value\)",
            ),
            (lambda d: d.remove_columns(["label", "owner"]), "no column of class labels or text"),
            (lambda d: d.remove_columns("image"), "no column of images; its columns are label"),
            (
                lambda d: (
                    d.rename_column("image", "a")
                    .add_column("b", [None] * 16)
                    .cast_column("b", datasets.Image())
                ),
                "more than one column of images, a, b",
            ),
        ],
    )
    def test_errors_list_the_columns(
        self, save, change: Callable[[Any], Any], message: str
    ) -> None:
        saved = part(["a", "b"] * 8, kind=datasets.Value("string"), owner=["x"] * 16)
        with pytest.raises(UserError, match=message):
            load(save(train=change(saved)))

    @pytest.mark.parametrize("label", ["label", "labels", "Label"])
    @pytest.mark.parametrize("kind", [datasets.Value("string"), datasets.ClassLabel(names=NAMES)])
    def test_a_column_called_label_counts_before_others(self, save, label: str, kind: Any) -> None:
        text = isinstance(kind, datasets.Value)
        saved = part(["cat", "dog"] * 8 if text else BALANCED, kind=kind, label=label)
        other = datasets.ClassLabel(names=["phone", "web"])
        saved = saved.add_column("camera", [0] * 16).cast_column("camera", other)
        task = load(save(train=saved))
        assert (set(task.classes), task.notes[0]) == (
            {"cat", "dog"},
            "unused columns: camera",
        )

    @pytest.mark.parametrize("other", [datasets.Value("string"), datasets.ClassLabel(names=["x"])])
    @pytest.mark.parametrize("label", ["label", "labels"])
    @pytest.mark.parametrize(
        ("kind", "message"),
        [
            (
                datasets.Value("int64"),
                r"has int64, .*cast_column\('labels?', Class",
            ),
            (
                datasets.Sequence(datasets.ClassLabel(names=NAMES)),
                r"has \w+, not class labels or text",
            ),
        ],
    )
    def test_another_column_is_not_taken_for_one_called_label(
        self, save, kind: Any, message: str, label: str, other: Any
    ) -> None:
        labels = BALANCED if isinstance(kind, datasets.Value) else [[0], [0, 1]] * 8
        saved = part(labels, kind=kind, label=label)
        saved = saved.add_column("camera", ["x"] * 16).cast_column("camera", other)
        with pytest.raises(UserError, match=rf"the column '{label}' {message}") as caught:
            load(save(train=saved))
        # `rename_column` refuses the name of a column that exists.
        assert re.search(r"remove this one \(.*\) and rename that one", str(caught.value))

    def test_the_columns_are_those_of_the_training_split(self, save) -> None:
        name = save(
            train=part(BALANCED, label="kind"),
            test=part([0, 1]).remove_columns("label"),
            val=part([0, 1], kind=datasets.Value("int64"), label="kind"),
            extra=datasets.Dataset.from_dict({"text": ["a"]}),
        )
        task = load(name)
        assert sizes(task) == (14, 2, None)
        assert task.notes[0] == "unused splits without labels: test, val, extra"
        assert sizes(load(name, test_split="0.25")) == (10, 2, 4)

    def test_leftover_splits_may_have_their_images_elsewhere(self, save) -> None:
        name = save(train=part(BALANCED), extra=part([0, 1], image="photo"))
        assert load(name).notes[0] == "unused splits: extra"

    def test_a_used_split_with_its_images_elsewhere(self, save) -> None:
        name = save(train=part(BALANCED), test=part([0, 1], image="photo"))
        message = r"the split train .* column 'image', but the split test has no .*photo, label\)"
        with pytest.raises(UserError, match=message):
            load(name)

    def test_the_split_without_the_columns_is_named(self, save) -> None:
        name = save(train=part(BALANCED).remove_columns("label"), test=part([0, 1]))
        with pytest.raises(UserError, match=r"the split train of 'hf/.*' has no column of class"):
            load(name)


class TestLabels:
    @pytest.mark.parametrize("blank", [-1, None])
    def test_a_row_without_one(self, save, blank: int | None) -> None:
        labels = [*BALANCED, blank]
        with pytest.raises(UserError, match=r"rows without a label: train/16"):
            load(save(train=part(labels)))

    def test_a_class_without_training_images(self, save) -> None:
        kind = datasets.Value("string")
        name = save(train=part(["a", "b"] * 4, kind=kind), test=part(["a", "c"], kind=kind))
        message = "every class.* train lacks 'c'; test lacks 'b': remove these"
        with pytest.raises(UserError, match=message):
            load(name)

    def test_a_class_that_is_not_tested_is_noted(self, save) -> None:
        task = load(save(train=part(BALANCED), test=part([0])))
        assert (sizes(task), task.notes[0]) == (
            (14, 2, 1),
            "no image of class 'cat' in test: its accuracy there is unknown",
        )

    def test_training_images_without_labels(self, save) -> None:
        with pytest.raises(UserError, match=r"no split 'train', but test, train \(without labels"):
            load(save(train=part([-1] * 4), test=part([0, 1])))

    def test_one_class(self, save) -> None:
        with pytest.raises(UserError, match="only one class, 'dog'"):
            load(save(train=part([0] * 4)))


class TestHub:
    @pytest.fixture
    def asked(self, monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
        """In the place of the hub, which has one data set; gives what was asked for."""
        questions = []

        def load_dataset(*args: object, **options: object) -> datasets.DatasetDict:
            questions.append((*args, *options.values()))
            return datasets.DatasetDict({"train": part(BALANCED)})

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        return questions

    def test_a_folder_is_not_looked_for_elsewhere(self, asked, save, tmp_path: Path) -> None:
        task = load(save(train=part(BALANCED)), data_root=str(tmp_path))
        assert task.notes[0].startswith(f"`data_root={tmp_path}` is ignored: 'hf/")
        assert asked == []

    def test_a_name_and_its_configuration(self, asked, tmp_path: Path) -> None:
        assert load("hf/org/pets").name == "hf/org/pets"
        load("hf/pets:small", data_root=str(tmp_path))
        assert asked == [
            ("org/pets", None, None),
            ("pets", "small", str(tmp_path / "huggingface")),
        ]

    @pytest.mark.parametrize(
        "error",
        [
            ConnectionError("Couldn't reach\n'org/pets' on the Hub"),
            datasets.exceptions.DatasetNotFoundError("'org/pets' is a gated dataset on the Hub."),
            ValueError("BuilderConfig 'small' not found. Available: ['large']"),
        ],
    )
    def test_its_errors_are_reported(
        self, monkeypatch: pytest.MonkeyPatch, error: Exception
    ) -> None:
        def fail(*args: object, **options: object) -> None:
            raise error

        monkeypatch.setattr(datasets, "load_dataset", fail)
        with pytest.raises(UserError, match=r"cannot load 'hf/org/pets' .*hf auth login") as caught:
            load("hf/org/pets")
        assert " ".join(str(error).split()) in str(caught.value)

    @pytest.mark.parametrize("name", ["", "/no/where", "./nowhere", "~/nowhere", "a/b/c"])
    def test_a_folder_that_is_not_there(self, asked, name: str) -> None:
        with pytest.raises(UserError, match=r"there is no folder '.*hf/ORG/NAME"):
            load(f"hf/{name}")
        assert asked == []

    def test_a_folder_that_is_not_of_the_library(self, asked, flat: Path) -> None:
        with pytest.raises(UserError, match=r"pets' was not written by save_to_disk.* without hf/"):
            load(f"hf/{flat}")
        assert asked == []

    def test_the_current_folder_has_a_name(self, save, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(save(train=part(BALANCED)).removeprefix("hf/"))
        assert load("hf/.").name == "pets"

    def test_a_damaged_folder(self, save) -> None:
        name = save(train=part(BALANCED))
        for file in Path(name.removeprefix("hf/")).rglob("*.arrow"):
            file.write_bytes(file.read_bytes()[:100])
        with pytest.raises(UserError, match="cannot be read"):
            load(name)

    def test_the_library_is_not_installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "datasets", None)
        with pytest.raises(UserError, match=r"pip install 'delta-transfer\[hf\]'"):
            load("hf/org/pets")
