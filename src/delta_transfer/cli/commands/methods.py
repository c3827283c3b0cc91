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
        several = " and ".join(f"{one.strength:g}" for one in method.candidates)
        auto = f"; auto: {several}" if several else ""
        own = method.default_strength
        strength = "" if own is None else f" (strength {own:g}{auto})"
        kinds = "" if len(method.kinds) > 1 else f"; for {method.kinds[0]}"
        print(f"{method.name:{width}}  {method.summary}{strength}{kinds}")
        print(f"{'':{width}}  {method.paper}")
