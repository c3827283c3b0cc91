"""The command attention."""

from collections.abc import Sequence

from delta_transfer.cli.arguments import parse_command
from delta_transfer.cli.tables import print_attention
from delta_transfer.config.commands import (
    AttentionOptions,
    merge_with_train_options,
    split_options,
)
from delta_transfer.config.train import TrainOptions


def attention(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    kind = merge_with_train_options(AttentionOptions, only=AttentionOptions.SHARED)
    options, shared = split_options(
        parse_command("attention", kind, args, positional=["data"]), AttentionOptions
    )
    config = TrainOptions(
        **shared,
        preset=options.preset,
        attention=options.estimator or "auto",
        attention_samples=options.samples,
        attention_tolerance=options.tolerance,
        attention_temperature=options.temperature,
    ).resolve()
    from delta_transfer.runs.attention_report import measure_attention

    measured = measure_attention(config, out=options.out, overwrite=options.overwrite)
    if options.json:
        print(measured.to_json())
        return
    print_attention(measured.tap_summaries, title=measured.title)
    print(f"attention  {measured.file}")
    print(f"figure     {measured.figure_file}")
