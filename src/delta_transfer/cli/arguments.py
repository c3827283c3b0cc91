"""Command-line parsers made from the data classes of options."""

import argparse
import dataclasses
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
    end = args.index("--") if "--" in args else len(args)
    for arg in args[:end]:
        flag = arg.partition("=")[0]
        if flag in map(_flag, positional):
            parser.error(f"{flag} is not an option: pass its value without a flag")
        if flag.startswith("--") and flag not in flags:
            raise unknown("option", flag, flags)
    namespace, extra = parser.parse_known_intermixed_args(args[:end])
    given: dict[str, Any] = vars(namespace)
    # argparse loses a "--" that comes before the first positional argument.
    words = [word for name in positional for word in _as_list(given.pop(name, None))]
    found, left = _assign(options, positional, [*words, *args[end + 1 :]])
    given |= found
    if extra or left:
        unknown_args = " ".join([*extra, *left])
        parser.error(f"unrecognized arguments: {unknown_args}; a name with spaces needs quotes")
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


def _as_list(value: str | list[str] | None) -> list[str]:
    """Return the values that argparse found for a positional argument."""
    return value if isinstance(value, list) else [value] if value else []


def _assign(
    options: type[Any], positional: Sequence[str], words: Sequence[str]
) -> tuple[dict[str, Any], list[str]]:
    """Return the values of positional fields, and the words that are left over."""
    hints, left = typing.get_type_hints(options), list(words)
    found: dict[str, Any] = {}
    for name in positional:
        if not left:
            break
        if typing.get_origin(hints[name]) is tuple:
            found[name], left = tuple(left), []
        else:
            found[name] = left.pop(0)
    return found, left


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
    for name, text in help_texts(options).items():
        hint = hints[name]
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


def help_texts(options: type[Any]) -> dict[str, str]:
    """Return the help of each field: its documentation, with its default if that is not there.

    Args:
        options: a data class, documented with an `Args` section.
    """
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    texts = {}
    for doc in docstring_parser.parse(options.__doc__ or "").params:
        text = " ".join((doc.description or "").split())
        default = defaults[doc.arg_name]
        has_default = default is not False and default not in (dataclasses.MISSING, None, "")
        if has_default and "default" not in text:
            end = "." if text.endswith(".") else ""
            text = f"{text.removesuffix('.')} (default {default}){end}"
        texts[doc.arg_name] = text
    return texts


def _converter(hint: Any) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            return convert(text, hint)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{error}, got {text!r}") from error

    return read


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
