import dataclasses
from pathlib import Path
from typing import Literal

import pytest

from delta_transfer.cli.arguments import parse_options
from delta_transfer.errors import UserError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a dish.

    Args:
        dish: what to cook.
        guests: how many come.
        oven_heat: in degrees; cold if not given.
        salt: in grams.
        diet: what nobody eats.
        loud: say everything.
    """

    dish: str
    guests: int = 2
    oven_heat: float | None = None
    salt: float = 1.5
    diet: Literal["none", "vegan"] = "none"
    loud: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Several:
    """Several of them.

    Args:
        pot: where to.
        things: what.
        lid: put it on.
        heat: how hot.
    """

    pot: str
    things: tuple[str, ...]
    lid: bool = False
    heat: int = 0


def cook(*args: str, config_file: bool = True) -> Options:
    return parse_options(
        Options, args, prog="cook", summary="Cook.", positional=["dish"], config_file=config_file
    )


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    file = tmp_path / "recipe.yaml"
    file.write_text("dish: soup\nguests: 5\noven_heat: 1e2\nsalt: 3\nloud: true\n")
    return str(file)


def test_without_flags_everything_has_its_default():
    assert cook("soup") == Options(dish="soup")


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--guests", "3"], {"guests": 3}),
        (["--guests=3"], {"guests": 3}),
        (["--oven-heat", "180"], {"oven_heat": 180.0}),
        (["--oven-heat", "1e2"], {"oven_heat": 100.0}),
        (["--salt", "-1"], {"salt": -1.0}),
        (["--diet", "vegan", "--loud"], {"diet": "vegan", "loud": True}),
    ],
)
def test_flags_have_dashes_and_stand_before_or_after(args, expected):
    assert cook("soup", *args) == cook(*args, "soup") == Options(dish="soup", **expected)


def test_a_positional_is_text_whatever_it_looks_like():
    assert cook("3").dish == "3"
    assert cook("null", "--guests=1").dish == "null"


@pytest.mark.parametrize("flag", [["-c"], ["--config"]])
def test_a_file_gives_defaults_and_the_positional(recipe, flag):
    expected = Options(dish="soup", guests=5, oven_heat=100.0, salt=3.0, loud=True)
    assert cook(*flag, recipe) == expected
    assert cook("stew", *flag, recipe) == dataclasses.replace(expected, dish="stew")


def test_flags_win_wherever_they_stand(recipe):
    for args in (
        ("-c", recipe, "--guests", "9"),
        ("--guests", "9", "-c", recipe),
        ("--guests=9", f"--config={recipe}"),
        ("--guests=9", f"-c{recipe}"),
    ):
        assert cook(*args).guests == 9
        assert cook(*args).salt == 3.0


def test_the_last_file_has_the_last_word(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("guests: 7\ndish: stew\n")
    found = cook("-c", recipe, "-c", str(other))
    assert (found.guests, found.dish, found.salt) == (7, "stew", 3.0)


def test_the_last_positional_takes_all_that_are_left():
    def parsed(*args: str) -> Several:
        return parse_options(
            Several, args, prog="put", summary="Put.", positional=["pot", "things"]
        )

    expected = Several(pot="big", things=("a", "b"))
    assert parsed("big", "a", "b") == expected
    assert parsed("--lid", "big", "a", "--heat", "3", "b") == dataclasses.replace(
        expected, lid=True, heat=3
    )
    assert parsed("big", "--", "--odd").things == ("--odd",)
    with pytest.raises(UserError, match="THINGS is missing"):
        parsed("big")
    with pytest.raises(UserError, match="POT is missing"):
        parsed()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], r"DISH is missing: cook DISH \(see: cook --help\)"),
        (["soup", "stew"], "unrecognized arguments: stew"),
        (["soup", "--gests", "3"], "unknown option '--gests': .*--guests"),
        (["soup", "--oven_heat", "3"], "unknown option '--oven_heat': .*--oven-heat"),
        (["soup", "-x"], "unrecognized arguments: -x"),
        (["soup", "--guests"], "--guests: expected one argument"),
        (["soup", "--guests", "many"], "--guests many: give a whole number"),
        (["soup", "--guests", "2.5"], "--guests 2.5: give a whole number"),
        (["soup", "--oven-heat", "hot"], "--oven-heat hot: give a number"),
        (["soup", "--oven-heat", "nan"], "--oven-heat nan: give a number"),
        (["soup", "--diet", "paleo"], "--diet paleo: give one of none, vegan"),
        (["soup", "--loud", "yes"], "unrecognized arguments: yes"),
        (["soup", "-c"], "expected one argument"),
    ],
)
def test_what_is_wrong_is_said_by_the_name_of_the_flag(args, message):
    with pytest.raises(UserError, match=message) as caught:
        cook(*args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gests: 3", "unknown option 'gests': .*guests"),
        ("oven-heat: 3", "unknown option 'oven-heat': .*oven_heat"),
        ("config: other.yaml", "unknown option 'config'"),
        ("3: 4", "unknown option '3'"),
        ("guests: many", "--guests many: give a whole number"),
        ("dish: true", "DISH True: give text"),
        ("- soup", "must contain options"),
        ("", "must contain options"),
        ("dish: [", "is not YAML"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path, content, message):
    file = tmp_path / "recipe.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(UserError, match=message):
        cook("soup", "-c", str(file))


def test_a_command_without_files_knows_no_config(recipe):
    with pytest.raises(UserError, match="unknown option '--config'"):
        cook("soup", "--config", recipe, config_file=False)
    with pytest.raises(UserError, match="unrecognized arguments"):
        cook("soup", "-c", recipe, config_file=False)


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit) as caught:
        cook("--help")
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in ("Cook.", "DISH what to cook", "--oven-heat", "in degrees; cold if not given"):
        assert part in text
