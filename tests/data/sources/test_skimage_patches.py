import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import skimage
from PIL import Image

from delta_transfer.data.images.augment import eval_transform
from delta_transfer.data.registry import load_data
from delta_transfer.data.sources import skimage_patches
from delta_transfer.data.task import ImageDataset, TaskData
from delta_transfer.errors import UserError


@pytest.fixture(scope="module")
def task() -> TaskData:
    return load_data("skimage/patches", seed=0)


def splits(task: TaskData) -> dict[str, tuple[str, ...]]:
    assert task.test is not None
    return {"train": task.train.paths, "val": task.val.paths, "test": task.test.paths}


def test_five_ten_and_up_to_forty_of_seventeen_classes(task: TaskData) -> None:
    assert task.test is not None
    assert task.classes == tuple(sorted(skimage_patches.IMAGES))
    assert len(task.classes) == 17
    assert set(Counter(task.train.labels).values()) == {5}
    assert set(Counter(task.val.labels).values()) == {10}
    left = Counter(task.test.labels)
    assert len(left) == 17
    assert min(left.values()) >= 10
    assert max(left.values()) == 40
    assert task.notes == ()


def test_cells_are_disjoint(task: TaskData) -> None:
    every = [path for paths in splits(task).values() for path in paths]
    assert len(set(every)) == len(every)
    for path in every:
        row, column = (int(number) for number in path.split("/r")[1].split("c"))
        size = skimage_patches._image(path.split("/")[0]).size
        assert (column + 1) * 40 <= size[0]
        assert (row + 1) * 40 <= size[1]


def test_no_two_cells_look_the_same(task: TaskData) -> None:
    every = [path for paths in splits(task).values() for path in paths]
    assert len({skimage_patches.read_cell(path).tobytes() for path in every}) == len(every)


def test_a_label_names_the_image(task: TaskData) -> None:
    for split in (task.train, task.val):
        assert all(
            path.split("/")[0] == task.classes[label]
            for path, label in zip(split.paths, split.labels, strict=True)
        )


def test_a_seed_draws_the_cells(task: TaskData) -> None:
    again, other = (load_data("skimage/patches", seed=seed) for seed in (0, 1))
    assert splits(again) == splits(task)
    assert all(splits(other)[name] != paths for name, paths in splits(task).items())


def test_a_cell_is_the_part_of_its_image() -> None:
    cell = skimage_patches.read_cell("astronaut/r03c05")
    file = Path(skimage.__file__).parent / "data" / "astronaut.png"
    with Image.open(file) as image:
        whole = np.asarray(image)
    assert (cell.mode, cell.size) == ("RGB", (40, 40))
    assert np.array_equal(np.asarray(cell), whole[120:160, 200:240])


def test_every_cell_shows_something(task: TaskData) -> None:
    for path in splits(task)["test"]:
        assert len(skimage_patches.read_cell(path).getcolors(40 * 40) or []) > 1


def test_grey_images_are_rgb_and_become_tensors(task: TaskData) -> None:
    transform = eval_transform(
        size=32, crop_pct=0.9, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic"
    )
    dataset = ImageDataset(task.val, transform)
    first = task.val.labels.index(task.classes.index("camera"))
    assert dataset[first][0].shape == (3, 32, 32)


def test_an_ignored_val_fraction_is_mentioned() -> None:
    task = load_data("skimage/patches", seed=0, val_fraction=0.3)
    assert task.notes == (
        "`val_fraction=0.3` is ignored: skimage/patches has its own validation split",
    )
    assert len(task.val) == 170


def test_another_test_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"`test_split=0.2`: skimage/patches has its own"):
        load_data("skimage/patches", seed=0, test_split="0.2")


def test_there_are_five_of_a_class() -> None:
    assert len(load_data("skimage/patches", seed=0, samples_per_class=2).train) == 34
    with pytest.raises(UserError, match=r"`samples_per_class=6` .* 'astronaut' has 5"):
        load_data("skimage/patches", seed=0, samples_per_class=6)


def test_without_scikit_image_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(UserError, match="pip install scikit-image"):
        skimage_patches._image.__wrapped__("astronaut")


def test_a_image_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(skimage_patches.IMAGES, "gone", "gone.png")
    with pytest.raises(UserError, match=r"lacks the image 'gone\.png'"):
        skimage_patches._image.__wrapped__("gone")
