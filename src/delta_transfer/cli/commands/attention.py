"""The command attention."""

from collections.abc import Sequence

from delta_transfer.cli.arguments import parse_command
from delta_transfer.cli.tables import print_attention
from delta_transfer.config.commands import (
    AttentionOptions,
)


def attention(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("attention", AttentionOptions, args, positional=["data"])
    from delta_transfer.runs.attention_report import measure_attention

    measured = measure_attention(options)
    if options.json:
        print(measured.to_json())
        return
    print_attention(measured.tap_summaries, title=measured.title)
    print(f"attention  {measured.file}")
    print(f"figure     {measured.figure_file}")
