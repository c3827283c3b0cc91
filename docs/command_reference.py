"""List the options of every command as Markdown, from the data classes that parse them."""

import dataclasses
import re
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from unittest import mock

from delta_transfer.cli import arguments
from delta_transfer.cli.commands import COMMANDS, find_command
from delta_transfer.utils.type_hints import describe_placeholder

_PAGE = re.compile(r"docs/([\w/]+\.md)")


class _Asked(Exception):
    """Ends a command after it has named its options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Command:
    """A command and the arguments of its parser.

    Args:
        name: of the command.
        summary: a description in one line.
        options: the data class of its options.
        positional: the options without a flag.
        config_file: whether the command reads `-c FILE`.
    """

    name: str
    summary: str
    options: type[Any]
    positional: Sequence[str]
    config_file: bool


def list_commands() -> Iterator[Command]:
    """Yield all commands, each with the options that it passes to the parser."""
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
    """Return a section of Markdown for each command."""
    return "".join(f"\n{line}\n" for command in list_commands() for line in _section(command))


def _section(command: Command) -> Iterator[str]:
    texts = arguments.help_texts(command.options)
    hints = typing.get_type_hints(command.options, include_extras=True)
    words = [name.upper() for name in command.positional]
    yield f"## {command.name}"
    yield _plain(command.summary)
    usage = " ".join(["delta-transfer", command.name, *words])
    yield f"    {usage} [OPTIONS]" if len(texts) > len(words) else f"    {usage}"
    if command.config_file:
        yield "- `-c FILE`: YAML file with options; a flag overrides it."
    for name, text in texts.items():
        flag = name.upper() if name in command.positional else _flag(name, hints)
        yield f"- `{flag}`: {_plain(text)}"


def _flag(name: str, hints: Mapping[str, Any]) -> str:
    flag = "--" + name.replace("_", "-")
    return flag if hints[name] is bool else f"{flag} {describe_placeholder(hints[name])}"


def _plain(text: str) -> str:
    """Escape the characters that are markup in Markdown, and link the pages that a text names."""
    escaped = re.sub(r"([\\`*_{}\[\]<>|$])", r"\\\1", text)
    return _PAGE.sub(lambda page: f"[{page[0]}]({page[1]})", escaped)
