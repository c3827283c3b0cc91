"""The arguments of a command become its options."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Options = TypeVar("Options")


def parse(
    options: type[Options],
    args: Sequence[str],
    command: Callable[[Sequence[str]], None],
    positional: Sequence[str],
    *,
    config_file: bool = False,
    exclusive: Sequence[str] = (),
) -> Options:
    """The options of a command."""
    from delta_transfer import arguments

    return arguments.parse(
        options,
        args,
        prog=f"delta-transfer {command.__name__}",
        summary=summary(command),
        positional=positional,
        config_file=config_file,
        exclusive=exclusive,
    )


def summary(command: Callable[..., Any]) -> str:
    """What a command does, in a line."""
    return (command.__doc__ or "").splitlines()[0]
