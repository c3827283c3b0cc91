import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from delta_transfer.data.registry import load_data
from delta_transfer.data.sources import digits
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError


@pytest.fixture(scope="module")
def task() -> TaskData:
    return load_data("sklearn/digits", seed=0)


def splits(task: TaskData) -> list[tuple[str, ...]]:
    assert task.test is not None
    return [task.train.paths, task.val.paths, task.test.paths]


def test_half_is_for_testing_and_a_part_of_the_rest_for_validation(task: TaskData) -> None:
    assert [len(paths) for paths in splits(task)] == [763, 136, 898]
    assert len({path for paths in splits(task) for path in paths}) == 1797
    assert task.classes == tuple("0123456789")


def test_every_digit_is_split_alike(task: TaskData) -> None:
    assert task.test is not None
    whole = Counter(task.train.labels + task.val.labels + task.test.labels)
    for label, count in Counter(task.test.labels).items():
        assert abs(count - whole[label] / 2) <= 1


def test_a_seed_draws_and_a_fraction_counts(task: TaskData) -> None:
    assert splits(load_data("sklearn/digits", seed=0)) == splits(task)
    other = splits(load_data("sklearn/digits", seed=1))
    assert all(one != two for one, two in zip(other, splits(task), strict=True))
    larger = load_data("sklearn/digits", seed=0, val_fraction=0.5)
    assert 440 <= len(larger.val) <= 460
    assert splits(larger)[2] == splits(task)[2]


def test_images_are_rgb_and_use_the_whole_range(task: TaskData) -> None:
    data = load_digits()
    for path, label in zip(task.train.paths[:5], task.train.labels[:5], strict=True):
        image = task.train.read(path)
        index = int(path.split("/")[1])
        assert (image.mode, image.size) == ("RGB", (8, 8))
        assert data.target[index] == label
        pixels = np.asarray(image)
        np.testing.assert_allclose(pixels[..., 0] / 255 * 16, data.images[index], atol=0.04)
        assert np.array_equal(pixels[..., 0], pixels[..., 2])


def test_another_test_split_is_refused() -> None:
    with pytest.raises(UserError, match="`test_split=mine`: sklearn/digits has its own test"):
        load_data("sklearn/digits", seed=0, test_split="mine")


def test_without_scikit_learn_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        digits._digits.__wrapped__()
