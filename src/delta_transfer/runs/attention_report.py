"""The command `attention`: from its options to a file, a summary per tap and a figure."""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.backbones.base import GraphSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.task import SampleType, TaskData
from delta_transfer.errors import ConfigError, UserError
from delta_transfer.report.attention_figure import (
    PIXELS,
    InfluentialSamples,
    TapFigure,
    draw_attention_figure,
)
from delta_transfer.report.formatting import pluralize
from delta_transfer.runs.attention import attention_sample_order, estimate
from delta_transfer.runs.folder import check_output_location, data_name, time_stamp
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.utils.files import write_atomically
from delta_transfer.utils.progress import progress_bar

TOP = 3  # channels of a tap that are listed


@dataclasses.dataclass(frozen=True, kw_only=True)
class TapSummary:
    """Summary of one tap.

    Args:
        tap: name of the tap.
        channels: number of channels.
        effective_channels: number of equally weighted channels with the same entropy.
        entropy: entropy of the attention: 1 if uniform, 0 if one channel has all of it.
        uncertainty: standard error of the attention over its distance from uniform; None if not
            known.
        min_attention: smallest attention, times the number of channels: 1 is uniform.
        max_attention: largest attention, in the same unit.
        top: channels with the largest scores, in order.
    """

    tap: str
    channels: int
    effective_channels: float
    entropy: float
    uncertainty: float | None
    min_attention: float
    max_attention: float
    top: tuple[int, ...]


def describe_estimation(attention: ChannelAttention, sample_type: SampleType = "image") -> str:
    """Describe the estimator and the normalization of the scores."""
    parts = [
        f"{attention.estimator} on {pluralize(attention.samples, sample_type)}",
        f"temperature {attention.temperature:g}",
    ]
    if attention.score_clip is not None:
        parts.append(f"clipped at {attention.score_clip:g} standard deviations")
    if attention.clamp_negative_scores:
        parts.append("negative scores set to zero")
    return ", ".join(parts)


def summarize(attention: ChannelAttention) -> list[TapSummary]:
    """Summarize each tap."""
    rows = []
    for tap, weights in attention.attention.items():
        uncertainty = float(attention.uncertainty.get(tap, math.nan))
        rows.append(
            TapSummary(
                tap=tap,
                channels=len(weights),
                effective_channels=float(attention.effective_channels[tap]),
                entropy=float(attention.entropy[tap]),
                uncertainty=uncertainty if math.isfinite(uncertainty) else None,
                min_attention=float(weights.min()) * len(weights),
                max_attention=float(weights.max()) * len(weights),
                top=tuple(_by_score(attention.scores[tap].tolist())[:TOP]),
            )
        )
    return rows


def _by_score(scores: Sequence[float]) -> list[int]:
    return sorted(range(len(scores)), key=lambda channel: -scores[channel])


def tap_figures(
    attention: ChannelAttention, task: TaskData, order: Sequence[int]
) -> list[TapFigure]:
    """Collect the contents of the figure of each tap.

    Args:
        attention: attention estimated on training images.
        task: the data.
        order: indices of these training images, in the order of the estimate.
    """
    weights = attention.attention
    found = []
    for row in summarize(attention):
        scores, errors = attention.scores[row.tap], attention.standard_errors.get(row.tap)
        found.append(
            TapFigure(
                tap=row.tap,
                note=_note(row),
                scores=scores.tolist(),
                standard_errors=[math.nan] * row.channels if errors is None else errors.tolist(),
                attention=weights[row.tap].tolist(),
                influential_samples=_influential_samples(attention, row, task, order),
            )
        )
    return found


def _note(row: TapSummary) -> str:
    parts = [
        pluralize(row.channels, "channel"),
        f"effective {row.effective_channels:,.1f}",
        f"entropy {row.entropy:.3f}",
    ]
    if row.uncertainty is not None:
        parts.append(f"error {100 * row.uncertainty:.0f}%")
    return " \N{MIDDLE DOT} ".join(parts)


def _influential_samples(
    attention: ChannelAttention, row: TapSummary, task: TaskData, order: Sequence[int]
) -> list[InfluentialSamples]:
    """Load the most influential images of the top channels, with the names of their classes."""
    found = attention.influential_samples.get(row.tap)
    if found is None or not _has_images(task):
        return []
    influential = []
    for channel in row.top:
        drawn = task.train.subset(order[position] for position in found[channel].tolist())
        images = []
        for path, label in zip(drawn.paths, drawn.labels, strict=True):
            small = ImageOps.fit(_load_image(task, path), (PIXELS, PIXELS))
            images.append((small, task.describe(label)))
        influential.append(InfluentialSamples(channel=channel, images=images))
    return influential


def _has_images(task: TaskData) -> bool:
    """Return whether samples have images; of graphs, only molecules do."""
    if task.kind == "images":
        return True
    return (
        GraphSpec.from_node_features(task.train.read(task.train.paths[0]).x).node_features
        == "atoms"
    )


def _load_image(task: TaskData, path: str) -> Image.Image:
    found = task.train.read(path)
    if isinstance(found, Image.Image):
        return found
    from delta_transfer.data.molecules.drawing import draw_molecule  # needs an optional package

    return draw_molecule(path, [0.0] * len(found.x))


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class AttentionResult:
    """Result of the command.

    Args:
        attention: the estimate.
        file: its file.
        figure_file: figure of the attention, in the same folder.
        sample_type: type of the samples.
    """

    attention: ChannelAttention
    file: Path
    figure_file: Path
    sample_type: SampleType

    @property
    def tap_summaries(self) -> list[TapSummary]:
        """A summary of each tap."""
        return summarize(self.attention)

    @property
    def title(self) -> str:
        """One-line title."""
        return f"Channel attention: {describe_estimation(self.attention, self.sample_type)}"

    def to_json(self) -> str:
        """Return everything except the scores, which are in the file, as JSON."""
        values = {
            "file": str(self.file),
            "figure": str(self.figure_file),
            "estimator": self.attention.estimator,
            "samples": self.attention.samples,
            "temperature": self.attention.temperature,
            "score_clip": self.attention.score_clip,
            "clamp_negative_scores": self.attention.clamp_negative_scores,
            "taps": [dataclasses.asdict(tap) for tap in self.tap_summaries],
        }
        return json.dumps(values, indent=2)


def measure_attention(
    config: TrainConfig, *, out: str | None = None, overwrite: bool = False
) -> AttentionResult:
    """Measure channel attention, and write it and a figure next to it.

    Args:
        config: options of a run that uses the same attention.
        out: the file (default runs/attention-DATA-TIME.safetensors).
        overwrite: replace an existing file of channel attention.

    Raises:
        UserError: if an option, the data or the network cannot be used, or the file may not be
            written; nothing is written then.
    """
    file = _default_file(config.data) if out is None else Path(out).expanduser()
    if out is None:
        check_output_location(file.parent, data=config.data)
    else:
        _check_output_file(file, data=Path(config.data), overwrite=overwrite)
    prepared = prepare(config)
    sample_type = prepared.task.sample_type
    with progress_bar("channels", f"{sample_type}s x channels") as progress:
        attention = estimate(prepared, config, progress=progress)
    order = attention_sample_order(config, len(prepared.task.train))
    figure = draw_attention_figure(
        tap_figures(attention, prepared.task, order),
        title=f"Channel attention of {config.model} on {prepared.task.name}",
        note=describe_estimation(attention, sample_type),
    )
    figure_file = file.with_suffix(".png")
    _write(file, attention, figure_file, figure)
    return AttentionResult(
        attention=attention, file=file, figure_file=figure_file, sample_type=sample_type
    )


def _default_file(data: str) -> Path:
    first = Path("runs") / f"attention-{data_name(data)}-{time_stamp()}"
    for number in itertools.count(1):
        file = Path(f"{first}{'' if number == 1 else f'-{number}'}.safetensors")
        if not file.exists() and not file.with_suffix(".png").exists():
            return file
    raise AssertionError


def _check_output_file(file: Path, *, data: Path, overwrite: bool) -> None:
    """Check that the file may be written, before anything slow.

    Raises:
        ConfigError: if it exists and may not be replaced, or its folder is not writable.
    """
    if file.suffix != ".safetensors":
        raise ConfigError(
            f"`out={file}` must end in .safetensors, for example attention.safetensors"
        )
    for path in (file, file.with_suffix(".png")):
        if path.exists() and not path.is_file():
            raise ConfigError(f"`out={file}`: {path} is not a file: use another name")
        if path.exists() and not overwrite:
            raise ConfigError(f"`out={file}`: {path} exists: use another name, or `overwrite`")
    if file.exists():
        try:
            ChannelAttention.load(file)
        except UserError as error:
            raise ConfigError(
                f"`out={file}`: `overwrite` replaces channel attention only, but {error}"
            ) from error
    folder = file.parent
    if not folder.is_dir():
        raise ConfigError(f"`out={file}`: folder {folder} does not exist: create it")
    if data.is_dir() and folder.resolve().is_relative_to(data.resolve()):
        raise ConfigError(
            f"`out={file}` is in the data folder {data}, where the figure would count as "
            "data: use a file outside of it"
        )
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"`out={file}`: folder {folder} is not writable: use another")


def _write(file: Path, attention: ChannelAttention, figure_file: Path, png: bytes) -> None:
    """Write both files; a figure of another file never stays."""
    file.parent.mkdir(parents=True, exist_ok=True)
    figure_file.unlink(missing_ok=True)
    attention.save(file)
    write_atomically(figure_file, png)
