import pytest

from delta_transfer.errors import (
    ConfigError,
    DataError,
    EnvironmentError,
    ModelError,
    UserError,
    as_flags,
    match_names,
    near,
    reworded,
    unknown,
)

NAMES = "stem layer1 layer1.0 layer1.0.conv1 layer2 layer2.0.conv1 fc".split()
MANY = [*NAMES, *(f"blocks.{i}.mlp" for i in range(20))]


def test_a_user_error_is_a_value_error():
    assert issubclass(UserError, ValueError)


def test_near_gives_all_of_few_choices():
    assert near("x", ["a", "b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("layer3", "layer2"),
        ("backbone.layer1.0.conv1", "layer1.0.conv1"),
        ("conv1", "layer1.0.conv1"),
    ],
)
def test_near_finds_misspelt_names_and_names_with_another_prefix(name, expected):
    found = near(name, MANY)
    assert expected in found
    assert len(found) <= 5


def test_unknown_lists_near_names_else_examples_else_all():
    assert "did you mean layer2" in str(unknown("tap", "layer22", MANY))
    assert "there are 27, for example stem, layer1" in str(unknown("tap", "qqqqqq", MANY))
    assert str(unknown("method", "x", ["a", "b"])) == "unknown method 'x': choose from a, b"


def test_match_names_keeps_the_order_of_patterns_and_each_name_once():
    found = match_names("tap", ["layer2", "layer?", "*.conv1"], NAMES)
    assert found == ["layer2", "layer1", "layer1.0.conv1", "layer2.0.conv1"]


def test_an_exact_name_is_no_pattern():
    assert match_names("tap", ["a[0]"], ["a[0]", "a0"]) == ["a[0]"]


def test_a_pattern_without_a_match_is_an_error_with_near_names():
    with pytest.raises(UserError, match=r"unknown tap 'layer9\*'.*layer1"):
        match_names("tap", ["fc", "layer9*"], NAMES)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("`val_fraction=1.5`: must be below 1", "--val-fraction 1.5: must be below 1"),
        ("leave `smiles_column` out", "leave --smiles-column out"),
        ("pass `resume=True`", "pass --resume"),
        ("run `pip install x`, see `Model.fit()`", "run `pip install x`, see `Model.fit()`"),
    ],
)
def test_the_command_line_shows_arguments_as_flags(message, expected):
    assert as_flags(message) == expected


def test_a_reworded_error_is_of_the_same_kind_whatever_its_constructor():
    class Own(DataError):
        def __init__(self, name: str, reason: str) -> None:
            super().__init__(f"{name}: {reason}")

    found = reworded(Own("a.png", "empty"), "a.png is empty")
    assert (type(found), str(found)) == (DataError, "a.png is empty")
    for kind in (UserError, ConfigError, ModelError, EnvironmentError):
        assert type(reworded(kind("x"), "y")) is kind
