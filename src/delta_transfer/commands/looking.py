"""Commands around runs: what there is to choose from, and what a run may start from."""

import dataclasses
import json
from collections.abc import Sequence

from delta_transfer.commands.parsing import parse
from delta_transfer.config.commands import (
    AttentionOptions,
    LayersOptions,
    NoOptions,
    PretrainOptions,
)
from delta_transfer.console_tables import print_attention


def attention(args: Sequence[str]) -> None:
    """Measure how much each channel of a pretrained network matters for a data set."""
    options = parse(AttentionOptions, args, attention, ["data"])
    from delta_transfer.runs.attention_report import measure

    measured = measure(options)
    if options.json:
        print(measured.to_json())
        return
    print_attention(measured.taps, title=measured.title)
    print(f"attention  {measured.file}")
    print(f"picture    {measured.picture}")


def layers(args: Sequence[str]) -> None:
    """List the modules of a network that can be tapped, and those that auto takes."""
    options = parse(LayersOptions, args, layers, ["model"])
    from delta_transfer.backbones.base import InputSpec
    from delta_transfer.backbones.registry import load_blank
    from delta_transfer.features.stages import auto_taps, list_modules

    backbone = load_blank(options.model, image_size=options.image_size)
    example = backbone.input.example()
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
    shown = backbone.input
    of = f"picture of {shown.size} pixels" if isinstance(shown, InputSpec) else "graph of 2 nodes"
    print(f"* taken by --taps auto; shapes are those of one {of}")


def methods(args: Sequence[str]) -> None:
    """List the methods of fine-tuning, a line each."""
    parse(NoOptions, args, methods, [])
    from delta_transfer.methods.registry import METHODS

    width = max(map(len, METHODS))
    for method in METHODS.values():
        own = [one.strength for one in method.branches or (method,) if one.strength is not None]
        strength = f" (strength {' and '.join(f'{one:g}' for one in own)})" if own else ""
        kinds = "" if len(method.kinds) > 1 else f"; for {method.kinds[0]}"
        print(f"{method.name:{width}}  {method.summary}{strength}{kinds}")
        print(f"{'':{width}}  {method.paper}")


def pretrain(args: Sequence[str]) -> None:
    """Train a network on molecules or graphs without labels: weights for train to start from."""
    options = parse(PretrainOptions, args, pretrain, ["data"])
    from delta_transfer.pretraining import pretrain as pretraining

    found = pretraining.pretrain(options)
    print(f"{found.unit} on graphs held out:")
    for score, when in (
        (found.chance.score, "without a look at them"),
        (found.before.score, "at the start"),
        (found.after.score, "at the end"),
    ):
        print(f"{score:8.4f} {when}")
    print(f"weights  {found.folder / pretraining.WEIGHTS}")
