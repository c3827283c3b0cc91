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
from delta_transfer.errors import ConfigError

WITHOUT = ("method", "seed", "resume", "devices", "num_nodes", "strategy")
KIND = merge_with_train_options(CompareOptions, without=WITHOUT)


def test_options_of_train_and_of_the_command_are_merged():
    train = {field.name for field in dataclasses.fields(TrainConfig)}
    own = {field.name for field in dataclasses.fields(CompareOptions)}
    assert {field.name for field in dataclasses.fields(KIND)} == (train | own) - set(WITHOUT)


def test_merged_options_have_the_defaults_and_help_of_train(capsys):
    options = parse_options(KIND, ["images"], prog="x", summary="", positional=["data"])
    own = [field.name for field in dataclasses.fields(CompareOptions)]
    values = {k: v for k, v in dataclasses.asdict(options).items() if k not in own}
    assert TrainOptions(**values).resolve() == TrainOptions(data="images").resolve()
    with pytest.raises(SystemExit):
        parse_options(KIND, ["--help"], prog="x", summary="", positional=["data"])
    said = " ".join(capsys.readouterr().out.split())
    for part in (
        "one comparison each",  # not the text of train
        "number of epochs (default: 30, at most 1000 steps",
        "(default runs/compare-DATA-TIME)",
    ):
        assert part in said
    assert "runs/DATA-METHOD-TIME" not in said


def test_lists_are_read():
    assert parse_seeds("3, 0,18446744073709551615") == (3, 0, 2**64 - 1)
    assert parse_samples_per_class(None) == (None,)
    assert parse_samples_per_class("all") == (None,)
    assert parse_samples_per_class("20, 5,all") == (20, 5, None)


@pytest.mark.parametrize("text", ["", "a", "1,,2", "0.5", "[0]", "1,1", "-1"])
def test_wrong_seeds_are_refused(text):
    with pytest.raises(ConfigError, match="`seeds="):
        parse_seeds(text)


@pytest.mark.parametrize("text", ["", "5,", "0", "-5", "5,5", "all,all", "many", "5 10", "²"])
def test_wrong_sizes_are_refused(text):
    with pytest.raises(ConfigError, match="`samples_per_class="):
        parse_samples_per_class(text)
