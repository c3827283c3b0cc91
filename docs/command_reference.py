"""The options of every command as Markdown, made from the data classes that parse them."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

import docstring_parser

from delta_transfer.cli import arguments
from delta_transfer.cli.commands import COMMANDS, find_command
from delta_transfer.utils.type_hints import describe_placeholder

_PAGE = re.compile(r"docs/([\w/]+\.md)")


class _Asked(Exception):
    """Ends a command that has said which options it has."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command as its parser knows it.

    Args:
        name: of the command.
        summary: what it does, in a line.
        options: the data class of its options.
        positional: those that are given without a flag.
        config_file: whether `-c FILE` is one of them.
    """

    name: str
    summary: str
    options: type[Any]
    positional: Sequence[str]
    config_file: bool


def list_commands() -> Iterator[Command]:
    """All commands, asked for their options one after the other."""
    for name, summary in COMMANDS.items():
        with mock.patch.object(arguments, "parse_options", side_effect=_Asked) as parse:
            try:
                find_command(name)([])
            except _Asked:
                (options, _), told = parse.call_args
        yield Command(
            name=name,
            summary=summary,
            options=options,
            positional=told["positional"],
            config_file=told["config_file"],
        )


def command_reference() -> str:
    """A section for each command."""
    return "".join(f"\n{line}\n" for command in list_commands() for line in _section(command))


def _section(command: Command) -> Iterator[str]:
    fields = {field.name: field for field in dataclasses.fields(command.options)}
    told = docstring_parser.parse(command.options.__doc__ or "").params
    texts = {doc.arg_name: " ".join((doc.description or "").split()) for doc in told}
    hints = typing.get_type_hints(command.options, include_extras=True)
    words = [name.upper() for name in command.positional]
    yield f"## {command.name}"
    yield _plain(command.summary)
    usage = " ".join(["delta-transfer", command.name, *words])
    yield f"    {usage} [OPTIONS]" if len(fields) > len(words) else f"    {usage}"
    if command.config_file:
        yield "- `-c FILE`: YAML file with options; a flag overrides it."
    for name, field in fields.items():
        flag = name.upper() if name in command.positional else _flag(name, hints)
        yield f"- `{flag}`{_default(field)}: {_plain(texts[name])}"


def _flag(name: str, hints: Mapping[str, Any]) -> str:
    flag = "--" + name.replace("_", "-")
    return flag if hints[name] is bool else f"{flag} {describe_placeholder(hints[name])}"


def _default(field: "dataclasses.Field[Any]") -> str:
    if field.default in (dataclasses.MISSING, None, False, ""):
        return ""
    return f" (default `{field.default}`)"


def _plain(text: str) -> str:
    """Text whose signs Markdown leaves alone, with links to the pages that it names."""
    escaped = re.sub(r"([\\`*_{}\[\]<>|$])", r"\\\1", text)
    return _PAGE.sub(lambda page: f"[{page[0]}]({page[1]})", escaped)
