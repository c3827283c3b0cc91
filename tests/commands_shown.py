"""Checks of a command that the documentation shows, by the program that it calls."""

import dataclasses
import re
import tomllib
from collections.abc import Callable, Sequence
from typing import Any
from unittest import mock

import timm

from delta_transfer.backbones.registry import GRAPH_LIBRARIES, LIBRARIES
from delta_transfer.cli import arguments
from delta_transfer.cli.commands import COMMANDS, find_command
from delta_transfer.cli.main import main
from delta_transfer.config.commands import parse_samples_per_class, parse_seeds
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.registry import is_dataset_name
from delta_transfer.experiments.benchmark.definition import list_benchmarks
from delta_transfer.methods.registry import METHODS
from tests.blocks import ROOT

# What takes no time is run and not only parsed.
CHEAP = (["methods"], ["bench", "--list"], ["--help"], ["--version"])


class _Parsed(Exception):
    """Ends a command that has understood its options."""

    def __init__(self, options: Any) -> None:
        super().__init__()
        self.options = options


def check_command(words: Sequence[str]) -> None:
    """Raises an error if the command would not be understood."""
    while re.match(r"\w+=", words[0]):
        words = words[1:]
    _PROGRAMS[words[0]](list(words[1:]))


def parse_command(args: Sequence[str]) -> Any:
    """The options that the command's own parser makes of its arguments; nothing is begun."""
    parse = arguments.parse_options

    def parse_and_end(*args: Any, **options: Any) -> None:
        raise _Parsed(parse(*args, **options))

    with mock.patch.object(arguments, "parse_options", parse_and_end):
        try:
            find_command(args[0])(args[1:])
        except _Parsed as parsed:
            return parsed.options
    raise AssertionError(f"{args[0]} has not asked for its options")


def _delta_transfer(args: list[str]) -> None:
    if args in CHEAP or args[0] == "taps":
        assert main(args) == 0
        return
    if args[-1] in ("--help", "-h"):
        assert args[0] in COMMANDS
        return
    options = parse_command([_sample(arg) for arg in args])
    for name, check in _VALUES.items():
        value = getattr(options, name, None)
        if value is not None:
            check(value)
    if hasattr(options, "methods") and hasattr(options, "data"):  # compare resolves them later
        own = [field.name for field in dataclasses.fields(TrainConfig)]
        shared = {name: getattr(options, name) for name in own if hasattr(options, name)}
        TrainOptions(**shared | {"samples_per_class": None}).resolve()


def _sample(word: str) -> str:
    """A word in capitals stands for any value: one that can be."""
    return word if word not in ("K", "N") else "2"


def _methods(names: str) -> None:
    for name in names.split(","):
        assert name in METHODS, f"there is no method {name}"


def _model(name: str) -> None:
    known = name.startswith((*LIBRARIES, *GRAPH_LIBRARIES)) or timm.is_model(name.split(".")[0])
    assert known, f"there is no model {name}"
    if "." in name and not name.startswith((*LIBRARIES, *GRAPH_LIBRARIES)):
        assert timm.models.is_model_pretrained(name), f"there are no weights {name}"


def _data(name: str) -> None:
    a_path = "/" not in name.removesuffix("/") or name.startswith(("runs/", "../"))
    assert a_path or is_dataset_name(name) or name == "rdkit/nci", f"there is no data set {name}"


def _recipe(name: str) -> None:
    assert name.endswith(".yaml") or name in [recipe.name for recipe in list_benchmarks()], name


_VALUES: dict[str, Callable[[Any], object]] = {
    "method": _methods,
    "methods": _methods,
    "model": _model,
    "data": _data,
    "name": _recipe,
    "seeds": parse_seeds,
    "samples_per_class": lambda sizes: (
        sizes if isinstance(sizes, int) else parse_samples_per_class(sizes)
    ),
}


def _make(args: list[str]) -> None:
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(args) <= set(targets), f"make has not all of {args}"


def _pip(args: list[str]) -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert args[0] == "install"
    for what in args[1:]:
        found = re.fullmatch(r"(?:\.|delta-transfer)(?:\[([\w,]+)\])?", what)
        assert found is not None, f"pip install {what}"
        assert set((found[1] or "").split(",")) <= {*extras, ""}, f"there is no extra in {what}"


def _python(args: list[str]) -> None:
    """A script or module of this repository, `-m venv`, or a file of the reader's."""
    if args[:2] == ["-m", "venv"] or (len(args) == 1 and "/" not in args[0]):
        return
    path = args[1].replace(".", "/") + ".py" if args[0] == "-m" else args[0]
    script = (ROOT / path).read_text()
    for other in re.findall(r"^from (\w+) import", script, re.MULTILINE):  # whose options it shares
        beside = (ROOT / path).with_name(f"{other}.py")
        script += beside.read_text() if beside.exists() else ""
    for flag in (word.partition("=")[0] for word in args[1:] if word.startswith("--")):
        assert f'"{flag}"' in script, f"{args[0]} has no option {flag}"


def _launched(args: list[str]) -> None:
    """What torchrun or srun starts on each machine."""
    module = "delta_transfer"
    start = args.index(module if module in args else "delta-transfer")
    _delta_transfer(args[start + 1 :])


def _anything(args: list[str]) -> None:
    """Of a shell or of a program of others: nothing of ours to check."""


_PROGRAMS: dict[str, Callable[[list[str]], None]] = {
    "delta-transfer": _delta_transfer,
    "make": _make,
    "pip": _pip,
    "python": _python,
    "python3": _python,
    "torchrun": _launched,
    "srun": _launched,
    "git": _anything,
    "cd": _anything,
    "export": _anything,
    ".": _anything,
    "ssh": _anything,
    "hf": _anything,
}
