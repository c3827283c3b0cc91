"""The command pretrain."""

from collections.abc import Sequence

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import (
    PretrainOptions,
)


def pretrain(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("pretrain", PretrainOptions, args, positional=["data"])
    from delta_transfer.pretraining import pretrain as pretraining

    found = pretraining.pretrain(options)
    print(f"{found.metric_name} on held-out graphs:")
    for score, when in (
        (found.chance.score, "chance"),
        (found.before.score, "before pretraining"),
        (found.after.score, "after pretraining"),
    ):
        print(f"{score:8.4f} {when}")
    print(f"weights  {found.folder / pretraining.WEIGHTS}")
