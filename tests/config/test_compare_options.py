import dataclasses

import pytest

from delta_transfer.cli.arguments import parse_options
from delta_transfer.config.commands import (
    CompareOptions,
    merge_with_train_options,
    parse_samples_per_class,
    parse_seeds,
)
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.errors import UserError

WITHOUT = ("method", "seed", "resume", "devices", "num_nodes", "strategy")
KIND = merge_with_train_options(CompareOptions, without=WITHOUT)


def test_they_are_those_of_train_and_its_own():
    train = {field.name for field in dataclasses.fields(TrainConfig)}
    own = {field.name for field in dataclasses.fields(CompareOptions)}
    assert {field.name for field in dataclasses.fields(KIND)} == (train | own) - set(WITHOUT)


def test_those_of_train_have_its_defaults_and_its_help(capsys):
    options = parse_options(KIND, ["images"], prog="x", summary="", positional=["data"])
    own = [field.name for field in dataclasses.fields(CompareOptions)]
    values = {k: v for k, v in dataclasses.asdict(options).items() if k not in own}
    assert TrainOptions(**values).resolve() == TrainOptions(data="images").resolve()
    with pytest.raises(SystemExit):
        parse_options(KIND, ["--help"], prog="x", summary="", positional=["data"])
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "numbers with commas between, a comparison each",  # not what train says of it
        "passes over the training images; 10 (graphs: 15) if not given",
        "runs/compare-DATA-TIME if not given",
    ):
        assert part in said
    assert "runs/DATA-METHOD-TIME" not in said


def test_lists_are_read():
    assert parse_seeds("3, 0,18446744073709551615") == (3, 0, 2**64 - 1)
    assert parse_samples_per_class(None) == (None,)
    assert parse_samples_per_class("all") == (None,)
    assert parse_samples_per_class("20, 5,all") == (20, 5, None)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0.5", "[0]", "1,1", "-1"])
def test_what_are_no_seeds_is_refused(text):
    with pytest.raises(UserError, match="--seeds "):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["", "5,", "0", "-5", "5,5", "all,all", "many", "5 10", "²"])
def test_what_are_no_sizes_is_refused(text):
    with pytest.raises(UserError, match="--samples-per-class "):
        parse_samples_per_class(text)
