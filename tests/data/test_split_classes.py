import pytest

from delta_transfer.data.splits import check_split_classes
from delta_transfer.errors import UserError


def check(**found: str) -> list[str]:
    """Of splits whose classes are letters."""
    return check_split_classes(
        found, display_name="pets", hint="fix it", locations={"b": " (line 7)"}
    )


def test_equal_classes_need_no_word() -> None:
    assert check(train="ab", val="ba", test="aab") == check(train="a") == []


def test_a_class_that_is_only_in_train_is_noted() -> None:
    assert check(train="abc", val="ac", test="c") == [
        "no image of class 'b' (line 7) in val: its accuracy there is unknown",
        "no image of class 'a', 'b' (line 7) in test: their accuracy there is unknown",
    ]


def test_a_class_that_is_not_in_train_is_an_error() -> None:
    with pytest.raises(UserError) as caught:
        check(train="ac", val="abc", test="b")
    assert str(caught.value) == (
        "pets: train must have every class of the other splits, but train lacks 'b' "
        "(line 7); test lacks 'a', 'c': fix it"
    )


def test_many_classes_make_a_short_message() -> None:
    with pytest.raises(UserError, match=r"train lacks 'a', .* 'e' and 2 more"):
        check(train="z", val="abcdefgz")
