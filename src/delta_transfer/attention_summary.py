"""Channel attention in figures: a summary and a drawing of each tap."""

import dataclasses
import math
from collections.abc import Sequence

from PIL import Image, ImageOps

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.backbones.base import GraphSpec
from delta_transfer.data.task import Noun, Task
from delta_transfer.report.attention_figure import PIXELS, Driver, TapFigure
from delta_transfer.report.formatting import count

TOP = 3  # channels of a tap that are named


@dataclasses.dataclass(frozen=True, kw_only=True)
class TapSummary:
    """What is said of one tap.

    Args:
        tap: its name.
        channels: how many it has.
        effective: how many channels with equal attention would have the same entropy.
        entropy: of the attention: 1 where it is uniform, 0 where one channel has all of it.
        uncertainty: standard error of the attention over its distance from uniform; None where it
            is not known.
        least: the smallest attention, times the number of channels: 1 is uniform.
        most: the largest.
        top: the channels with the largest scores, the largest first.
    """

    tap: str
    channels: int
    effective: float
    entropy: float
    uncertainty: float | None
    least: float
    most: float
    top: tuple[int, ...]


def origin(attention: ChannelAttention, noun: Noun = "picture") -> str:
    """How it was measured, and how scores became attention."""
    parts = [
        f"{attention.method} on {count(attention.samples, noun)}",
        f"temperature {attention.temperature:g}",
    ]
    if attention.clip is not None:
        parts.append(f"clipped at {attention.clip:g} standard deviations")
    if attention.floor:
        parts.append("scores below zero count as zero")
    return ", ".join(parts)


def summarize(attention: ChannelAttention) -> list[TapSummary]:
    """A summary of each tap."""
    rows = []
    for tap, weights in attention.attention.items():
        uncertainty = float(attention.uncertainty.get(tap, math.nan))
        rows.append(
            TapSummary(
                tap=tap,
                channels=len(weights),
                effective=float(attention.effective[tap]),
                entropy=float(attention.entropy[tap]),
                uncertainty=uncertainty if math.isfinite(uncertainty) else None,
                least=float(weights.min()) * len(weights),
                most=float(weights.max()) * len(weights),
                top=tuple(_by_score(attention.scores[tap].tolist())[:TOP]),
            )
        )
    return rows


def _by_score(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda channel: -scores[channel])


def figures(attention: ChannelAttention, task: Task, order: Sequence[int]) -> list[TapFigure]:
    """What is drawn of each tap.

    Args:
        attention: measured on training pictures of a task.
        task: the task.
        order: positions of these pictures among its training pictures, as they were measured on.
    """
    weights = attention.attention
    found = []
    for row in summarize(attention):
        scores, errors = attention.scores[row.tap], attention.errors.get(row.tap)
        found.append(
            TapFigure(
                tap=row.tap,
                note=_note(row),
                scores=scores.tolist(),
                errors=[math.nan] * row.channels if errors is None else errors.tolist(),
                attention=weights[row.tap].tolist(),
                drivers=_drivers(attention, row, task, order),
            )
        )
    return found


def _note(row: TapSummary) -> str:
    parts = [
        count(row.channels, "channel"),
        f"effective {row.effective:,.1f}",
        f"entropy {row.entropy:.3f}",
    ]
    if row.uncertainty is not None:
        parts.append(f"error {100 * row.uncertainty:.0f}%")
    return " \N{MIDDLE DOT} ".join(parts)


def _drivers(
    attention: ChannelAttention, row: TapSummary, task: Task, order: Sequence[int]
) -> list[Driver]:
    """The pictures that drive the top channels, with the names of their classes."""
    found = attention.drivers.get(row.tap)
    if found is None or not _is_drawn(task):
        return []
    drivers = []
    for channel in row.top:
        drawn = task.train.subset(order[position] for position in found[channel].tolist())
        pictures = []
        for path, label in zip(drawn.paths, drawn.labels, strict=True):
            small = ImageOps.fit(_picture(task, path), (PIXELS, PIXELS))
            pictures.append((small, task.describe(label)))
        drivers.append(Driver(channel=channel, pictures=pictures))
    return drivers


def _is_drawn(task: Task) -> bool:
    """Whether there are pictures of what is learnt from: of graphs, of molecules alone."""
    if task.kind == "pictures":
        return True
    return GraphSpec.of(task.train.read(task.train.paths[0]).x).node_features == "atoms"


def _picture(task: Task, path: str) -> Image.Image:
    found = task.train.read(path)
    if isinstance(found, Image.Image):
        return found
    from delta_transfer.data.molecules.drawing import draw_molecule  # which needs an extra

    return draw_molecule(path, [0.0] * len(found.x))
