"""From a dataclass to a command line: a thin adapter over jsonargparse."""

import dataclasses
import re
import typing
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any, TypeVar

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from delta_transfer.errors import UserError, unknown

Options = TypeVar("Options")


def parse(
    options: type[Options],
    args: Sequence[str],
    *,
    prog: str,
    summary: str,
    positional: Sequence[str],
    config_file: bool = False,
) -> Options:
    """Options from arguments: the fields' names with dashes are the flags, its docstring the help.

    Args:
        options: a dataclass, documented with an `Args` section.
        args: the arguments.
        prog: what stands before them.
        summary: what the command does.
        positional: the fields that are given without a flag, in this order; the last takes all that
            are left if it is a tuple.
        config_file: whether `-c FILE.yaml` gives defaults.

    Raises:
        UserError: if an argument is unknown, missing or of the wrong type.
        SystemExit: after `--help`.
    """
    parser = _parser(options, prog, summary, positional, config_file)
    flags = ["--help", "--config", *(_flag(f.name) for f in dataclasses.fields(options))]  # type: ignore[arg-type]
    for arg in args:
        name = arg.partition("=")[0]
        if name.startswith("--") and name not in flags:
            raise unknown("option", name, flags)
    files, rest = _files_first(args) if config_file else ([], list(args))
    try:
        found = parser.parse_args([*files, *rest])
    except ArgumentError as error:
        raise UserError(f"{_reword(str(error), options)} (see: {prog} --help)") from error
    values: dict[str, Any] = found.as_dict()
    values.pop("config", None)
    for name in positional:
        if values[name] is None:
            values[name] = _from_files(name, files[1::2])
        if values[name] is None:
            raise UserError(
                f"{name.upper()} is missing: {prog} {name.upper()} (see: {prog} --help)"
            )
        if isinstance(values[name], list):
            values[name] = tuple(values[name])
    return options(**values)


def _parser(
    options: type[Any], prog: str, summary: str, positional: Sequence[str], config_file: bool
) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog, description=summary, exit_on_error=False, allow_abbrev=False, print_config=None
    )
    if config_file:
        parser.add_argument(
            "-c", "--config", action="config", help="YAML file with options; flags go before it"
        )
    docs = docstring_parser.parse(options.__doc__ or "").params
    help_of = {doc.arg_name: doc.description for doc in docs}
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        name, hint = field.name, hints[field.name]
        if name in positional:
            several = typing.get_origin(hint) is tuple
            kind = typing.get_args(hint)[0] if several else hint
            parser.add_argument(
                name,
                type=kind,
                nargs="*" if several else "?",
                metavar=name.upper(),
                help=help_of[name],
            )
        elif hint is bool:
            parser.add_argument(_flag(name), action="store_true", help=help_of[name])
        else:
            parser.add_argument(_flag(name), type=hint, default=field.default, help=help_of[name])
    return parser


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _files_first(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """Moves `-c FILE` to the front, so that flags win wherever they stand."""
    files: list[str] = []
    rest: list[str] = []
    left = list(args)
    while left:
        arg = left.pop(0)
        if arg in ("-c", "--config") and left:
            files += ["--config", left.pop(0)]
        elif arg.startswith("--config="):
            files += ["--config", arg.partition("=")[2]]
        else:
            rest.append(arg)
    return files, rest


def _reword(message: str, options: type[Any]) -> str:
    """The parser's message of a wrong value in the words of a person; others as they are."""
    found = re.match(r'Parser key "(\w+)":.*Got value: (.*)', message, re.DOTALL)
    hints = typing.get_type_hints(options)
    if found is None or found[1] not in hints:
        return message
    return f"{_flag(found[1])} {found[2]}: give {_words(hints[found[1]])}"


def _words(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    if typing.get_origin(hint) is typing.Literal:
        return f"one of {', '.join(map(str, typing.get_args(hint)))}"
    return " or ".join(_words(part) for part in typing.get_args(hint) if part is not type(None))


_WORDS: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
}


def _from_files(name: str, files: Sequence[str]) -> Any:
    """A positional that was not given may stand in a file; the parser itself overwrites it."""
    for file in reversed(files):
        with open(file) as text:
            value = (yaml.safe_load(text) or {}).get(name)
        if value is not None:
            return value
    return None
