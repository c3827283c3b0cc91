"""The command taps."""

import dataclasses
import json
from collections.abc import Sequence

from delta_transfer.cli.arguments import parse_command
from delta_transfer.config.commands import (
    TapsOptions,
)


def taps(args: Sequence[str]) -> None:
    """Run the command with its arguments."""
    options = parse_command("taps", TapsOptions, args, positional=["model"])
    from delta_transfer.backbones.base import InputSpec
    from delta_transfer.backbones.registry import load_untrained_backbone
    from delta_transfer.features.stages import auto_taps, list_modules

    backbone = load_untrained_backbone(options.model, image_size=options.image_size)
    example = backbone.input_spec.example()
    rows = [row for row in list_modules(backbone.module, example) if row.name != backbone.head]
    chosen = auto_taps(backbone.module, example=example)
    if options.json:
        print(json.dumps([{**dataclasses.asdict(row), "auto": row.name in chosen} for row in rows]))
        return
    width = max(len(row.name) for row in rows)
    for row in rows:
        mark = "*" if row.name in chosen else " "
        shape = "x".join(map(str, row.shape))
        print(f"{mark} {row.name:{width}}  {shape:>16}  channels in dim {row.channel_dim}")
    shown = backbone.input_spec
    of = f"image of {shown.size} pixels" if isinstance(shown, InputSpec) else "graph of 2 nodes"
    print(f"* chosen by --taps auto; shapes are for one {of}")
