from typing import Annotated, Literal

import pytest

from delta_transfer.utils.type_hints import Bounds, convert, matches_type

HUGE = 10**400  # has no float

Positive = Annotated[float, Bounds(above=0)]
Count = Annotated[int, Bounds(at_least=1)]


@pytest.mark.parametrize("hint", [float, Positive, Count, Positive | Literal["find"]], ids=str)
@pytest.mark.parametrize("value", [HUGE, -HUGE], ids=["above", "below"])
def test_a_number_that_no_float_can_be_is_refused(hint, value):
    assert not matches_type(value, hint)
    with pytest.raises(ValueError, match="must be"):
        convert(value, hint)


def test_an_integer_without_bounds_may_be_larger_than_any_float():
    assert matches_type(HUGE, int)


@pytest.mark.parametrize(
    ("value", "inside"), [(0, False), (1, True), (1.5, True), (float("inf"), False)]
)
def test_a_number_has_to_be_within_bounds(value, inside):
    assert Bounds(above=0).contains(value) is inside
