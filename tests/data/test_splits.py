import dataclasses
from collections import Counter

import pytest
from PIL import Image

from delta_transfer.data.splits import (
    PartialTaskData,
    SplitOptions,
    check_min_per_class,
    draw_missing_splits,
    hold_out,
    parse_fraction,
    sample_per_class,
    split_per_class,
)
from delta_transfer.data.task import Split
from delta_transfer.errors import ConfigError, DataError


def read(path: str) -> Image.Image:
    raise AssertionError("a draw must not read images")


def of(*counts: int) -> Split:
    """A split with so many images of class 0, 1, ..."""
    labels = tuple(label for label, count in enumerate(counts) for _ in range(count))
    return Split(tuple(f"{index:03d}" for index in range(len(labels))), labels, read)


class TestHoldOut:
    def test_parts_every_class_alike(self) -> None:
        rest, drawn = hold_out(of(10, 20, 100), 0.2, seed=0)
        assert Counter(drawn.labels) == {0: 2, 1: 4, 2: 20}
        assert Counter(rest.labels) == {0: 8, 1: 16, 2: 80}

    def test_the_two_parts_are_the_whole_in_order(self) -> None:
        rest, drawn = hold_out(of(10, 20), 0.3, seed=0)
        assert sorted(rest.paths + drawn.paths) == list(of(10, 20).paths)
        assert list(rest.paths) == sorted(rest.paths)
        assert list(drawn.paths) == sorted(drawn.paths)

    @pytest.mark.parametrize(
        ("fraction", "keep", "drawn"), [(0.01, 1, 1), (0.99, 1, 3), (0.9, 2, 2)]
    )
    def test_draws_at_least_one_and_keeps_enough(
        self, fraction: float, keep: int, drawn: int
    ) -> None:
        assert len(hold_out(of(4), fraction, seed=0, min_left=keep)[1]) == drawn

    def test_a_seed_decides(self) -> None:
        draws = [hold_out(of(50, 50), 0.2, seed=seed)[1].paths for seed in (0, 0, 1)]
        assert draws[0] == draws[1] != draws[2]

    def test_does_not_draw_the_same_positions_of_every_class(self) -> None:
        drawn = hold_out(of(50, 50), 0.2, seed=0)[1]
        first, second = ([int(p) % 50 for p in drawn.paths[i : i + 10]] for i in (0, 10))
        assert first != second


class TestDrawMissingSplits:
    @staticmethod
    def given(*, val: Split | None = None, test: Split | None = None) -> PartialTaskData:
        return PartialTaskData(
            name="pets",
            display_name="'data/pets'",
            classes=("cat", "dog"),
            train=of(10, 20),
            val=val,
            test=test,
            notes=("first",),
            metric="mean_class_accuracy",
        )

    def test_existing_splits_stay(self) -> None:
        given = self.given(val=of(1, 1), test=of(2, 2))
        task = draw_missing_splits(given, SplitOptions(seed=0), test_fraction=None)
        assert (task.train, task.val, task.test) == (given.train, given.val, given.test)
        assert (task.name, task.classes, task.notes) == ("pets", ("cat", "dog"), ("first",))
        assert (task.metric, task.val_drawn) == ("mean_class_accuracy", False)

    def test_missing_splits_are_drawn_and_noted(self) -> None:
        options = SplitOptions(seed=3, val_fraction=0.2)
        task = draw_missing_splits(self.given(), options, test_fraction=0.1)
        assert task.test is not None
        assert [len(split) for split in (task.train, task.val, task.test)] == [21, 6, 3]
        assert task.val_drawn
        assert task.notes == (
            "first",
            "no test split: 10% of train (3 images), stratified, seed 3, is held out",
            "no validation split: 20% of train (6 images), stratified, seed 3, is held out",
        )

    def test_too_few_images(self) -> None:
        given = PartialTaskData(
            name="", display_name="", classes=("a", "b"), train=of(5, 2), val=None, test=None
        )
        with pytest.raises(DataError, match=r"a validation and a test .*'b' has 2: add images"):
            draw_missing_splits(given, SplitOptions(seed=0), test_fraction=0.2)


class TestSplitPerClass:
    def test_the_two_parts_are_the_whole_in_order(self) -> None:
        rest, drawn = split_per_class(of(5, 9), 3, seed=0)
        assert (Counter(rest.labels), Counter(drawn.labels)) == ({0: 2, 1: 6}, {0: 3, 1: 3})
        assert sorted(rest.paths + drawn.paths) == list(of(5, 9).paths)
        assert drawn == sample_per_class(of(5, 9), 3, classes=("cat", "dog"), seed=0)


class TestSamplePerClass:
    def test_takes_so_many_of_every_class(self) -> None:
        subset = sample_per_class(of(5, 9), 5, classes=("cat", "dog"), seed=0)
        assert Counter(subset.labels) == {0: 5, 1: 5}
        assert list(subset.paths) == sorted(set(subset.paths))

    def test_a_class_with_fewer_is_named(self) -> None:
        with pytest.raises(DataError, match=r"`samples_per_class=6`.*class 'cat' has 5: lower"):
            sample_per_class(of(5, 9), 6, classes=("cat", "dog"), seed=0)
        graphs = dataclasses.replace(of(5, 9), sample_type="graph")
        with pytest.raises(DataError, match=r"6 training graphs .* add graphs or leave"):
            sample_per_class(graphs, 6, classes=("cat", "dog"), seed=0)


def test_many_short_classes_are_summed_up() -> None:
    with pytest.raises(DataError, match="'c4' has 1 and 3 more: add some"):
        check_min_per_class(
            of(*[1] * 8), 2, classes=[f"c{i}" for i in range(8)], purpose="it", hint="add some"
        )


def test_fractions() -> None:
    assert parse_fraction("0.2") == 0.2
    assert parse_fraction("1e-1") == 0.1
    assert parse_fraction("holdout") is None


@pytest.mark.parametrize("text", ["0", "1", "1.5", "-0.2", "20", "nan", "inf"])
def test_numbers_outside_of_0_to_1_are_errors(text: str) -> None:
    with pytest.raises(ConfigError, match=f"`test_split={text}`: .*0.2"):
        parse_fraction(text)


def fraction(test_split: str, *, has_test: bool = False) -> float | None:
    return SplitOptions(seed=0, test_split=test_split).test_fraction("it", has_test=has_test)


def test_a_fraction_of_train() -> None:
    assert fraction("test", has_test=True) is None
    assert fraction("test") is None
    assert fraction("0.2") == 0.2
    with pytest.raises(ConfigError, match=r"`test_split=0\.2`: it has its own test split"):
        fraction("0.2", has_test=True)
    with pytest.raises(ConfigError, match=r"`test_split=dev`: it has no split .* such as 0\.2"):
        fraction("dev")
