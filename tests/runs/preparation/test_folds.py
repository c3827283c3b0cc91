import dataclasses
from typing import Any

import pytest

from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.registry import load_data
from delta_transfer.data.task import Split, TaskData, pool_train_and_val
from delta_transfer.runs.preparation.folds import (
    DEFAULT_FOLDS,
    FOLDS_BELOW,
    count_folds,
    max_folds,
    split_folds,
    training_pool,
)


def config(**options: Any) -> TrainConfig:
    return TrainOptions(data="x", **options).resolve()


@pytest.fixture(scope="module")
def digits() -> TaskData:
    """Drawn validation split, no group."""
    return load_data("sklearn/digits", seed=0)


def few(task: TaskData, train: int, val: int, **changes: Any) -> TaskData:
    return dataclasses.replace(
        task, train=task.train.subset(range(train)), val=task.val.subset(range(val)), **changes
    )


def labelled(task: TaskData, labels: list[int], **changes: Any) -> TaskData:
    """With training samples of these classes alone."""
    paths = tuple(f"{i}.png" for i in range(len(labels)))
    train = dataclasses.replace(task.train, paths=paths, labels=tuple(labels))
    return dataclasses.replace(task, train=train, val=_empty(task.val), **changes)


def _empty(split: Split) -> Split:
    return dataclasses.replace(split, paths=(), labels=())


class TestHowMany:
    @pytest.mark.parametrize(
        ("options", "drawn", "count", "expected"),
        [
            ({}, True, FOLDS_BELOW - 1, DEFAULT_FOLDS),
            ({}, True, FOLDS_BELOW, 0),
            ({}, False, 100, 0),  # the data brings its own validation split
            ({"preset": "paper"}, True, 100, 0),
            ({"folds": 0}, True, 100, 0),
            ({"folds": 5}, True, FOLDS_BELOW, 5),
            ({"folds": 5, "preset": "paper"}, True, 100, 5),
            ({"samples_per_class": 9}, True, 100, DEFAULT_FOLDS),
        ],
    )
    def test_small_sets_whose_validation_split_was_drawn(
        self, digits, options, drawn, count, expected
    ):
        task = labelled(digits, [i % 10 for i in range(count)], val_drawn=drawn)
        assert count_folds(config(**options), task) == expected

    def test_not_more_than_the_largest_class_has_samples(self, digits):
        for labels, most in (([0, 0, 1], 2), ([0, 1, 2], 1), ([0] * 5 + [1], 5)):
            task = labelled(digits, labels)
            assert max_folds(config(), task) == most
            assert count_folds(config(), task) == (0 if most == 1 else min(most, DEFAULT_FOLDS))

    def test_not_more_than_there_are_groups(self, digits):
        task = labelled(digits, [0, 1] * 4, group=lambda path: str(int(path[0]) % 2))
        assert max_folds(config(), task) == count_folds(config(), task) == 2


class TestPool:
    def test_a_drawn_validation_split_belongs_to_it(self, digits):
        task = few(digits, 30, 10)
        assert training_pool(config(), task) == list(range(40))

    def test_that_of_the_data_does_not(self, digits):
        task = few(digits, 30, 10, val_drawn=False)
        assert training_pool(config(), task) == list(range(30))

    def test_a_number_of_samples_per_class_is_exact(self, digits):
        task = few(digits, 30, 10)
        assert training_pool(config(samples_per_class=3), task) == list(range(30))


class TestSplit:
    def test_each_sample_is_held_out_once_and_not_trained_on_then(self, digits):
        task = few(digits, 90, 30)
        labels = pool_train_and_val(task).labels
        folds = split_folds(config(), task, 3)
        assert sorted(i for _, val in folds for i in val) == list(range(120))
        for train, val in folds:
            assert sorted([*train, *val]) == list(range(120))
            for one in range(10):
                count, total = (sum(labels[i] == one for i in of) for of in (val, range(120)))
                assert abs(count - total / 3) < 1

    def test_the_seed_draws_them(self, digits):
        task = few(digits, 60, 20)
        found = [split_folds(config(seed=seed), task, 3) for seed in (0, 0, 2**64 - 1)]
        assert found[0] == found[1] != found[2]

    def test_samples_per_class_are_those_of_the_training_split_alone(self, digits):
        task = labelled(digits, [0, 1, 2] * 4)
        task = dataclasses.replace(task, val=digits.val.subset(range(6)))
        folds = split_folds(config(samples_per_class=4), task, 2)
        assert sorted(i for _, val in folds for i in val) == list(range(12))
        for train, _ in folds:
            assert sorted(task.train.labels[i] for i in train) == [0, 0, 1, 1, 2, 2]

    def test_groups_are_held_out_together_in_folds_of_equal_size(self, digits):
        sizes = {name: 1 + number % 3 for number, name in enumerate("abcdefghijkl")}
        paths = tuple(f"{name}{i}" for name, size in sizes.items() for i in range(size))
        task = labelled(digits, [0] * len(paths), group=lambda path: path[0])
        task = dataclasses.replace(task, train=dataclasses.replace(task.train, paths=paths))
        found = [split_folds(config(seed=seed), task, 3) for seed in (0, 0, 1)]
        assert found[0] == found[1] != found[2]
        for folds in found:
            assert sorted(i for _, val in folds for i in val) == list(range(len(paths)))
            assert [len(val) for _, val in folds] == [8, 8, 8]
            for train, val in folds:
                assert not {paths[i][0] for i in train} & {paths[i][0] for i in val}

    def test_a_class_with_fewer_samples_than_folds_is_no_warning(self, digits):
        labels = [0, 0, *[1] * 8, *[2] * 8]
        folds = split_folds(config(), labelled(digits, labels), 4)
        assert sorted(i for _, val in folds for i in val) == list(range(len(labels)))
