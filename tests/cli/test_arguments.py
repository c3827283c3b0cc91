import dataclasses
import re
from pathlib import Path
from typing import Literal

import pytest

from delta_transfer.cli.arguments import parse_options
from delta_transfer.errors import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options:
    """Options of a dish.

    Args:
        dish: what to cook.
        guests: number of guests.
        oven_heat: in degrees (default cold).
        salt: in grams.
        diet: what to avoid.
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
def test_flags_have_dashes_and_any_position(args, expected):
    assert cook("soup", *args) == cook(*args, "soup") == Options(dish="soup", **expected)


def test_a_positional_is_text_whatever_it_looks_like():
    assert cook("3").dish == "3"
    assert cook("null", "--guests=1").dish == "null"


def test_what_follows_two_dashes_is_no_option():
    assert cook("--", "-d") == Options(dish="-d")
    assert cook("--guests=3", "--", "--loud") == Options(dish="--loud", guests=3)
    assert cook("soup", "--") == Options(dish="soup")
    with pytest.raises(ConfigError, match="unrecognized arguments: --loud"):
        cook("soup", "--", "--loud")


@pytest.mark.parametrize("flag", [["-c"], ["--config"]])
def test_a_file_sets_defaults_and_the_positional(recipe, flag):
    expected = Options(dish="soup", guests=5, oven_heat=100.0, salt=3.0, loud=True)
    assert cook(*flag, recipe) == expected
    assert cook("stew", *flag, recipe) == dataclasses.replace(expected, dish="stew")


def test_flags_override_files_at_any_position(recipe):
    for args in (
        ("-c", recipe, "--guests", "9"),
        ("--guests", "9", "-c", recipe),
        ("--guests=9", f"--config={recipe}"),
        ("--guests=9", f"-c{recipe}"),
    ):
        assert cook(*args).guests == 9
        assert cook(*args).salt == 3.0


def test_later_files_override_earlier_ones(recipe, tmp_path):
    other = tmp_path / "other.yaml"
    other.write_text("guests: 7\ndish: stew\n")
    found = cook("-c", recipe, "-c", str(other))
    assert (found.guests, found.dish, found.salt) == (7, "stew", 3.0)


def test_a_tuple_takes_all_remaining_arguments():
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
    assert parsed("--lid", "--", "big", "-a", "--") == Several(
        pot="big", things=("-a", "--"), lid=True
    )
    with pytest.raises(ConfigError, match="THINGS is missing"):
        parsed("big")
    with pytest.raises(ConfigError, match="POT is missing"):
        parsed()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], r"DISH is missing .*cook DISH"),
        (["soup", "stew"], "unrecognized arguments: stew"),
        (["soup", "--gests", "3"], "unknown option '--gests': .*--guests"),
        (["soup", "--oven_heat", "3"], "unknown option '--oven_heat': .*--oven-heat"),
        (["--dish=soup"], "--dish is not an option.*cook DISH"),
        (["soup", "-x"], "unrecognized arguments: -x"),
        (["soup", "--guests"], "--guests: expected one argument"),
        (["soup", "--guests", "many"], "--guests: .*whole number, got 'many'"),
        (["soup", "--guests", "2.5"], "--guests: .*whole number, got '2.5'"),
        (["soup", "--oven-heat", "hot"], "--oven-heat: .*a number, got 'hot'"),
        (["soup", "--oven-heat", "nan"], "--oven-heat: .*a number, got 'nan'"),
        (["soup", "--diet", "paleo"], "--diet: .*one of none, vegan, got 'paleo'"),
        (["soup", "--loud", "yes"], "unrecognized arguments: yes"),
        (["soup", "--loud=yes"], "--loud: .*'yes'"),
        (["soup", "-c"], "--config: expected one argument"),
    ],
)
def test_a_wrong_argument_is_named(args, message):
    with pytest.raises(ConfigError, match=message) as caught:
        cook(*args)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("gests: 3", "unknown option 'gests': .*guests"),
        ("oven-heat: 3", "unknown option 'oven-heat': .*oven_heat"),
        ("config: other.yaml", "unknown option 'config'"),
        ("3: 4", "unknown option '3'"),
        ("guests: many", "`guests` .*whole number, got 'many'"),
        ("dish: true", "`dish` .*text, got True"),
        ("loud: 1", "`loud` .*true or false, got 1"),
        ("- soup", "must contain options"),
        ("", "must contain options"),
        ("dish: [", "is not YAML"),
        (None, "cannot be read: .*No such file"),
    ],
)
def test_a_wrong_file_is_named(tmp_path, content, message):
    file = tmp_path / "recipe.yaml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=f"-c {re.escape(str(file))}.*{message}"):
        cook("soup", "-c", str(file))


def test_a_command_without_files_knows_no_config(recipe):
    with pytest.raises(ConfigError, match="unknown option '--config'"):
        cook("soup", "--config", recipe, config_file=False)
    with pytest.raises(ConfigError, match="unrecognized arguments"):
        cook("soup", "-c", recipe, config_file=False)


def help_of(capsys: pytest.CaptureFixture[str], options: type, *positional: str) -> str:
    with pytest.raises(SystemExit) as caught:
        parse_options(options, ["--help"], prog="cook", summary="Cook.", positional=positional)
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_help_is_the_docstring(capsys):
    text = help_of(capsys, Options, "dish")
    for part in ("Cook.", "DISH what to cook", "--oven-heat", "in degrees (default cold)"):
        assert part in text


def test_help_states_a_default_that_the_docstring_leaves_out(capsys):
    text = help_of(capsys, Options, "dish")
    for part in ("number of guests (default 2).", "in grams (default 1.5).", "(default none)."):
        assert part in text
    assert text.count("(default") == 4
    assert "how hot (default 0)." in help_of(capsys, Several, "pot", "things")
