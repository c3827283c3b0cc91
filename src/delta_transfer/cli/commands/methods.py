"""The command methods."""

from collections.abc import Sequence

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import (
    NoOptions,
)


def methods(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    parse_command("methods", NoOptions, args)
    from delta_transfer.methods.registry import METHODS

    width = max(map(len, METHODS))
    for method in METHODS.values():
        candidates = [one.strength for one in method.candidates]
        own = candidates or [value for value in (method.default_strength,) if value is not None]
        strength = f" (strength {' and '.join(f'{one:g}' for one in own)})" if own else ""
        kinds = "" if len(method.kinds) > 1 else f"; for {method.kinds[0]}"
        print(f"{method.name:{width}}  {method.summary}{strength}{kinds}")
        print(f"{'':{width}}  {method.paper}")
