"""Command-line parsers made from the data classes of options."""

import argparse
import dataclasses
import itertools
import typing
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import docstring_parser

from delta_transfer.cli.commands import COMMANDS
from delta_transfer.config.train import OPTION_GROUPS, convert_values
from delta_transfer.errors import ConfigError, UserError, unknown
from delta_transfer.utils.files import read_yaml
from delta_transfer.utils.type_hints import convert, describe_placeholder

Options = TypeVar("Options")


def parse_command(
    command: str,
    options: type[Options],
    args: Sequence[str],
    *,
    positional: Sequence[str] = (),
    config_file: bool = False,
    exclusive: Sequence[str] = (),
) -> Options:
    """Parse the arguments of a command of `COMMANDS`; see `parse_options`."""
    return parse_options(
        options,
        args,
        prog=f"delta-transfer {command}",
        summary=COMMANDS[command],
        positional=positional,
        config_file=config_file,
        exclusive=exclusive,
    )


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
    """Return options from arguments: fields are flags, and their documentation is the help.

    Args:
        options: a data class, documented with an `Args` section.
        args: the arguments.
        prog: the words before the arguments.
        summary: one sentence on the command.
        positional: fields without a flag, in this order; a tuple takes all remaining arguments.
        config_file: accept `-c FILE.yaml`, whose values flags override.
        exclusive: fields that replace each other: one of them as a flag removes all of them from
            the files.

    Raises:
        ConfigError: if an argument is unknown, missing or of the wrong type.
        SystemExit: after `--help`.
    """
    parser = _parser(options, prog, summary, positional, config_file)
    names = [field.name for field in dataclasses.fields(options)]  # type: ignore[arg-type]
    flags = [_flag(name) for name in names if name not in positional]
    flags += ["--help", "--config"] if config_file else ["--help"]
    for arg in itertools.takewhile(lambda arg: arg != "--", args):
        flag = arg.partition("=")[0]
        if flag in map(_flag, positional):
            parser.error(f"{flag} is not an option: pass its value without a flag")
        if flag.startswith("--") and flag not in flags:
            raise unknown("option", flag, flags)
    namespace, extra = parser.parse_known_intermixed_args(args)
    if extra:
        parser.error(f"unrecognized arguments: {' '.join(extra)}; a name with spaces needs quotes")
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(namespace).items()
        if name not in positional or value
    }
    in_files: dict[str, Any] = {}
    for file in given.pop("config", ()):
        content = read_yaml(file, wanted=f"options, such as {names[0]}: VALUE", option="-c")
        try:
            in_files |= convert_values(content, options)
        except UserError as error:
            raise ConfigError(f"-c {file}: {error}") from error
    if given.keys() & set(exclusive):
        in_files = {name: value for name, value in in_files.items() if name not in exclusive}
    values = in_files | given
    for field in dataclasses.fields(options):  # type: ignore[arg-type]
        if field.default is dataclasses.MISSING and field.name not in values:
            parser.error(f"{field.name.upper()} is missing")
    return options(**values)


class _Parser(argparse.ArgumentParser):
    """A parser that raises an error of ours, with the usage and without exiting."""

    def error(self, message: str) -> NoReturn:
        positional = [str(action.metavar) for action in self._get_positional_actions()]
        usage = " ".join([self.prog, *positional])
        text = message.removeprefix("argument ")
        raise ConfigError(f"{text} (usage: {usage}; see: {self.prog} --help)")


def _parser(
    options: type[Any], prog: str, summary: str, positional: Sequence[str], config_file: bool
) -> _Parser:
    # Without defaults, so that what was given is known; the data class has them.
    parser = _Parser(
        prog=prog,
        usage=" ".join([prog, *(name.upper() for name in positional), "[OPTIONS]"]),
        description=summary,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    if config_file:
        parser.add_argument(
            "-c",
            "--config",
            action="append",
            metavar="FILE",
            help="YAML file with options; flags override it",
        )
    groups = {title: parser.add_argument_group(title) for title in OPTION_GROUPS}
    hints = typing.get_type_hints(options, include_extras=True)
    for doc in docstring_parser.parse(options.__doc__ or "").params:
        name, hint, text = doc.arg_name, hints[doc.arg_name], (doc.description or "")
        titles = [title for title, members in OPTION_GROUPS.items() if name in members]
        group = groups[titles[0]] if titles else parser
        help_text = text.replace("%", "%%")
        if name in positional:
            nargs = "*" if typing.get_origin(hint) is tuple else "?"
            parser.add_argument(name, nargs=nargs, metavar=name.upper(), help=help_text)
        elif hint is bool:
            group.add_argument(_flag(name), action="store_true", help=help_text)
        else:
            group.add_argument(
                _flag(name),
                type=_converter(hint),
                metavar=describe_placeholder(hint),
                help=help_text,
            )
    return parser


def _converter(hint: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return convert(text, hint)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from error

    return read


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
