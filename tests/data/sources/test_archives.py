import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import scipy.io

from delta_transfer.data.registry import is_available, load_data
from delta_transfer.data.sources.archives import ARCHIVES
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError
from tests.data.miniatures import (
    MAKERS,
    caltech256_whole,
    cub200,
    image,
    lines,
    mit67,
    stanford_dogs,
)

MINIATURES = {
    "cub200": cub200,
    "stanford_dogs": stanford_dogs,
    "mit67": mit67,
    "caltech256/30": caltech256_whole,
    "caltech256/60": caltech256_whole,
}


def load(name: str, root: Path, *, seed: int = 0) -> TaskData:
    return load_data(name, seed=seed, data_root=str(root))


def sizes(task: TaskData) -> tuple[int, int, int]:
    assert task.test is not None
    return len(task.train), len(task.val), len(task.test)


@pytest.mark.parametrize(
    ("name", "size", "classes"),
    [
        ("cub200", (4, 2, 4), ("001.Black_footed_Albatross", "200.Common_Yellowthroat")),
        ("stanford_dogs", (6, 2, 4), ("n02085620-Chihuahua", "n02116738-African_hunting_dog")),
        ("mit67", (6, 2, 4), ("airport_inside", "winecellar")),
        ("caltech256/30", (52, 8, 40), ("001.ak47", "002.dog")),
        ("caltech256/60", (102, 18, 40), ("001.ak47", "002.dog")),
    ],
)
def test_splits_and_classes_are_those_of_the_archive(tmp_path, name, size, classes):
    MINIATURES[name](tmp_path)
    task = load(name, tmp_path)
    assert (task.name, sizes(task), task.classes) == (name, size, classes)
    assert task.val_drawn
    splits = (task.train, task.val, task.test)
    paths = [path for split in splits for path in split.paths]
    assert len(set(paths)) == len(paths)
    for split in splits:
        assert set(Counter(split.labels).values()) == {len(split) // 2}
        read = pickle.loads(pickle.dumps(split)).read
        assert read(split.paths[0]).mode == "RGB"
        for path, label in zip(split.paths, split.labels, strict=True):
            assert classes[label] in path.split("/")
    assert any(note.startswith(f"{name} should have") for note in task.notes)


def test_cub_is_split_by_its_list(tmp_path):
    cub200(tmp_path)
    task = load("cub200", tmp_path)
    tested = {int(path.rpartition("_")[2].removesuffix(".jpg")) for path in task.test.paths}
    assert tested == {1, 3}


def test_caltech_256_is_drawn_by_seed(tmp_path):
    caltech256_whole(tmp_path)
    one, same, other = (load("caltech256/30", tmp_path, seed=seed) for seed in (0, 0, 1))
    assert one.test == same.test
    assert one.train == same.train
    assert set(one.test.paths) != set(other.test.paths)
    more = load("caltech256/60", tmp_path)
    assert not set(more.train.paths + more.val.paths) & set(more.test.paths)


@pytest.mark.parametrize("name", MINIATURES)
def test_the_folder_may_be_the_root_or_of_our_name(tmp_path, name):
    MINIATURES[name](tmp_path / name.partition("/")[0])
    (folder,) = (tmp_path / name.partition("/")[0]).iterdir()
    for root in (tmp_path, tmp_path / name.partition("/")[0], folder):
        assert is_available(name, data_root=str(root))
        assert len(load(name, root).classes) == 2


def test_lists_of_dogs_may_lie_in_a_folder(tmp_path):
    stanford_dogs(tmp_path)
    folder = tmp_path / "stanford_dogs"
    (folder / "lists").mkdir()
    for part in ("train", "test"):
        (folder / f"{part}_list.mat").rename(folder / "lists" / f"{part}_list.mat")
    assert sizes(load("stanford_dogs", tmp_path)) == (6, 2, 4)


@pytest.mark.parametrize("name", ARCHIVES)
def test_without_the_files_it_says_where_they_are(tmp_path, name):
    assert not is_available(name, data_root=str(tmp_path))
    with pytest.raises(UserError, match=r"not in .*: get .* from http") as error:
        load(name, tmp_path)
    assert ARCHIVES[name].contents[0] in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_half_an_archive_is_named(tmp_path):
    mit67(tmp_path)
    (tmp_path / "mit67/Images/winecellar/winecellar_2.jpg").unlink()
    with pytest.raises(UserError, match=r"lacks 1 of 8 images .*winecellar_2\.jpg; get indoor"):
        load("mit67", tmp_path)


def test_a_list_that_leads_elsewhere_is_refused(tmp_path):
    mit67(tmp_path)
    image(tmp_path / "elsewhere" / "a.jpg")
    lines(tmp_path / "mit67/TrainImages.txt", ["../../elsewhere/a.jpg"])
    with pytest.raises(UserError, match="mit67"):
        load("mit67", tmp_path)
    lines(tmp_path / "mit67/TrainImages.txt", [str(tmp_path / "elsewhere/a.jpg")])
    with pytest.raises(UserError, match="mit67"):
        load("mit67", tmp_path)


def test_damaged_lists_are_named(tmp_path):
    stanford_dogs(tmp_path)
    (tmp_path / "stanford_dogs/train_list.mat").write_bytes(b"Dear Sir")
    with pytest.raises(UserError, match=r"the files of stanford_dogs in .* cannot be used"):
        load("stanford_dogs", tmp_path)
    cells = np.empty((1, 1), dtype=object)
    cells[0, 0] = "n1-Wolf/a.jpg"
    scipy.io.savemat(tmp_path / "stanford_dogs/train_list.mat", {"other": cells})
    with pytest.raises(UserError, match=r"KeyError: 'file_list'\): get images.tar"):
        load("stanford_dogs", tmp_path)


def test_a_class_with_too_few_images_is_named(tmp_path):
    MAKERS["caltech256"](tmp_path)  # with 62 images of the first class
    with pytest.raises(UserError, match=r"needs at least 80 .*'001\.ak47' has 62"):
        load("caltech256/60", tmp_path)
    assert sizes(load("caltech256/30", tmp_path)) == (52, 8, 40)


def test_a_test_split_cannot_be_chosen(tmp_path):
    cub200(tmp_path)
    with pytest.raises(UserError, match="cub200 has its own test split"):
        load_data("cub200", seed=0, data_root=str(tmp_path), test_split="0.2")


@pytest.mark.parametrize("name", ["dtd", "cifar10", "oxford_iiit_pet"])
def test_sets_of_torchvision_are_there_once_they_are_whole(tmp_path, monkeypatch, name):
    assert is_available(f"torchvision/{name}", data_root=str(tmp_path)) is False
    MAKERS[name](tmp_path)
    assert is_available(f"torchvision/{name}", data_root=str(tmp_path)) is True
    assert is_available("sklearn/digits", data_root=None) is True
    assert is_available("hf/ORG/NAME", data_root=None) is None
