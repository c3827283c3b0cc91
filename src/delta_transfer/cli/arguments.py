"""From a dataclass to a command line: a thin adapter over jsonargparse."""

import dataclasses
import itertools
import re
import typing
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import docstring_parser
import yaml
from jsonargparse import ArgumentParser

from delta_transfer.cli.commands import COMMANDS
from delta_transfer.errors import UserError, unknown
from delta_transfer.utils.files import read_yaml
from delta_transfer.utils.type_hints import describe_type

Options = TypeVar("Options")


def parse_options(
    options: type[Options],
    args: Sequence[str],
    *,
    prog: str,
    summary: str,
    positional: Sequence[str],
    config_file: bool = False,
    exclusive: Sequence[str] = (),
) -> Options:
    """Options from arguments: the fields' names with dashes are the flags, its docstring the help.

    Args:
        options: a dataclass, documented with an `Args` section.
        args: the arguments.
        prog: what stands before them.
        summary: what the command does.
        positional: the fields that are given without a flag, in this order; the last takes all that
            are left if it is a tuple. One with a default may be left out.
        config_file: whether `-c FILE.yaml` gives defaults.
        exclusive: fields of which one as a flag takes the place of another one in a file.

    Raises:
        UserError: if an argument is unknown, missing or of the wrong type.
        SystemExit: after `--help`.
    """
    parser = _parser(options, prog, summary, positional, config_file)
    hints = typing.get_type_hints(options)
    usage = " ".join([prog, *(name.upper() for name in positional)])
    form = (
        f"the command is {usage}, its options have two dashes, and a name with spaces in it needs "
        "quotes"
    )
    names = ["help", *(["config"] if config_file else []), *hints]
    _check_flags(args, names, positional, usage)
    switches = [_flag(name) for name, hint in hints.items() if hint is bool]
    files, flags, rest = _split_arguments(
        args, ["--help", *switches], config_file=config_file, form=form
    )
    in_files = _read(files, hints)
    if any(flag.partition("=")[0] in map(_flag, exclusive) for flag in flags):
        in_files = {name: value for name, value in in_files.items() if name not in exclusive}
    # Files first, so that flags win wherever they stand.
    configs = ["--config", yaml.safe_dump(in_files)] if in_files else []
    try:
        found = parser.parse_args([*configs, *flags, *(["--", *rest] if rest else [])])
    except ArgumentError as error:
        raise UserError(
            f"{_reword(str(error), hints, positional, form)} (see: {prog} --help)"
        ) from error
    values: dict[str, Any] = found.as_dict()
    values.pop("config", None)
    default = {field.name: field.default for field in dataclasses.fields(options)}  # type: ignore[arg-type]
    for name in positional:
        # The parser lets a positional that was not given overwrite what a file says.
        value = values[name] or in_files.get(name)
        if not value and default[name] is dataclasses.MISSING:
            raise UserError(f"{name.upper()} is missing: {usage} (see: {prog} --help)")
        values[name] = tuple(value) if isinstance(value, list) else value or default[name]
    return options(**values)


def _parser(
    options: type[Any], prog: str, summary: str, positional: Sequence[str], config_file: bool
) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog, description=summary, exit_on_error=False, allow_abbrev=False, print_config=None
    )
    if config_file:
        parser.add_argument(
            "-c", "--config", action="config", help="YAML file with options; a flag overrides it"
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


def _check_flags(
    args: Sequence[str], names: Sequence[str], positional: Sequence[str], usage: str
) -> None:
    flags = [_flag(name) for name in names if name not in positional]
    for arg in itertools.takewhile(lambda arg: arg != "--", args):
        flag = arg.partition("=")[0]
        if flag in map(_flag, positional):
            raise UserError(f"{flag} is no option: give it without the dashes, {usage}")
        if flag.startswith("--") and flag not in flags:
            raise unknown("option", flag, flags)


def _split_arguments(
    args: Sequence[str], switches: Sequence[str], *, config_file: bool, form: str
) -> tuple[list[str], list[str], list[str]]:
    """The FILE of each `-c FILE`, the flags with their values, and the rest: positionals.

    The parser itself would give flags to files and lose positionals that stand behind a flag.
    """
    files: list[str] = []
    flags: list[str] = []
    rest: list[str] = []
    left = list(args)
    while left:
        arg = left.pop(0)
        if arg == "--":
            return files, flags, [*rest, *left]
        if config_file and arg in ("-c", "--config") and left:
            files.append(left.pop(0))
        elif config_file and re.match("--config=|-c.", arg):
            files.append(re.sub("^--config=|^-c", "", arg))
        elif arg.startswith("--") and "=" not in arg and arg not in switches and left:
            flags += [arg, left.pop(0)]
        elif arg.startswith("--") or arg == "-h" or (config_file and arg == "-c"):
            flags.append(arg)
        elif arg.startswith("-"):
            raise UserError(f"unrecognized arguments: {arg}; {form}")
        else:
            rest.append(arg)
    return files, flags, rest


def _read(files: Sequence[str], hints: Mapping[str, Any]) -> dict[str, Any]:
    """What the files say, the last one having the last word; their keys are checked.

    Where text is wanted, a number is taken as it stands there: `test_split: 0.2`.
    """
    names = list(hints)
    values: dict[str, Any] = {}
    for file in files:
        wanted = f"options, a line each, such as {names[0]}: VALUE"
        content = read_yaml(file, wanted=wanted, option="-c")
        for key in content:
            if key not in names:
                raise UserError(f"-c {file}: {unknown('option', str(key), names)}")
            value = content[key]
            # The parser takes anything for a switch.
            if hints[key] is bool and not isinstance(value, bool):
                raise UserError(f"-c {file}: {key} {value}: give {describe_type(bool)}")
            number = isinstance(value, int | float) and not isinstance(value, bool)
            values[key] = str(value) if hints[key] is str and number else value
    return values


def _reword(message: str, hints: Mapping[str, Any], positional: Sequence[str], form: str) -> str:
    """The parser's message in the words of a person, and how to mend it."""
    found = re.match(r'Parser key "(\w+)":.*(?:Got|Given) value: (.*)', message, re.DOTALL)
    if found is not None and found[1] in hints:
        name = found[1].upper() if found[1] in positional else _flag(found[1])
        return f"{name} {found[2]}: give {describe_type(hints[found[1]])}"
    found = re.match(r"argument (?:-c/)?(--[\w-]+): expected one argument", message)
    if found is not None:
        hint = hints.get(found[1][2:].replace("-", "_"))
        return f"{found[0][9:]}: give {'a YAML file' if hint is None else describe_type(hint)}"
    found = re.match(r"argument (--[\w-]+): ignored explicit argument (.*)", message)
    if found is not None:
        return f"{found[1]} takes no value such as {found[2]}: give it alone, or leave it out"
    found = re.match(r"unrecognized arguments: (?:-- )?(.*)", message, re.DOTALL)
    if found is not None:
        return f"unrecognized arguments: {found[1]}; {form}"
    return message


def parse_command(
    command: str,
    options: type[Options],
    args: Sequence[str],
    *,
    positional: Sequence[str] = (),
    config_file: bool = False,
    exclusive: Sequence[str] = (),
) -> Options:
    """Parse the arguments of a command of `COMMANDS`; see `parse`."""
    return parse_options(
        options,
        args,
        prog=f"delta-transfer {command}",
        summary=COMMANDS[command],
        positional=positional,
        config_file=config_file,
        exclusive=exclusive,
    )
