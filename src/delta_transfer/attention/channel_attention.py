"""Channel attention: how much each channel of each tap matters, and its file."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from delta_transfer.attention.storage import (
    damaged_file_error,
    read_attention_file,
    write_attention_file,
)
from delta_transfer.functional import (
    effective_channels,
    normalize_scores,
    normalized_entropy,
)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ChannelAttention:
    """Scores, attention and feature variance per tap, and what they were made from.

    Args:
        scores: tap -> `[C]`, how much the mean task loss grows when the channel is switched off.
        variance: tap -> scalar `v`, the mean over channels of the source's variance over samples
            and positions, in squared units of the features.
        temperature: of the softmax that turns scores into attention.
        score_clip: standardised scores are limited to plus and minus this; not at all if None.
        clamp_negative_scores: whether scores below zero count as zero.
        estimator: the estimator, such as `"refined"`.
        samples: how many images the scores are averaged over.
        source: fingerprint of the source network's weights (`weights_fingerprint`).
        standard_errors: tap -> `[C]`, standard errors of the scores, as estimates for all images
            of the kind; no entry where they are not known.
        influential_samples: tap -> `[C, k]`, int64, where in the data the samples are whose loss
            grows most without the channel, most first; no entry where it is not known.
        uncertainty: tap -> the standard error of the attention, relative to its distance from
            uniform attention; NaN or no entry where it is not known.
        head_weight: `[K, F]`, of the head that the task loss was measured with.
        head_bias: `[K]`, of the same.
        data: fingerprint of the images and their classes, None where it is not known.
        preprocessing: what was done to the images, as JSON can hold it.

    Raises:
        ValueError: if something does not fit the scores.
    """

    scores: dict[str, Tensor]
    variance: dict[str, Tensor]
    temperature: float
    score_clip: float | None = None
    clamp_negative_scores: bool = False
    estimator: str
    samples: int
    source: str
    standard_errors: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    influential_samples: dict[str, Tensor] = dataclasses.field(default_factory=dict)
    uncertainty: dict[str, float] = dataclasses.field(default_factory=dict)
    head_weight: Tensor | None = None
    head_bias: Tensor | None = None
    data: str | None = None
    preprocessing: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if set(self.variance) != set(self.scores):
            raise ValueError("scores and variance must be of the same taps")
        for tap, scores in self.scores.items():
            if scores.ndim != 1 or len(scores) == 0 or not scores.is_floating_point():
                raise ValueError(f"scores/{tap} must be floats [C], got {_kind(scores)}")
            if self.variance[tap].ndim != 0:
                raise ValueError(f"variance/{tap} must be a scalar")
            errors, drivers = self.standard_errors.get(tap), self.influential_samples.get(tap)
            if errors is not None and errors.shape != scores.shape:
                raise ValueError(
                    f"standard_errors/{tap} must be [{len(scores)}], got {_kind(errors)}"
                )
            if drivers is not None and (
                drivers.ndim != 2 or len(drivers) != len(scores) or drivers.dtype != torch.int64
            ):
                raise ValueError(
                    f"influential_samples/{tap} must be int64 [C, k], got {_kind(drivers)}"
                )
        if self.head_weight is not None or self.head_bias is not None:
            weight, bias = self.head_weight, self.head_bias
            if weight is None or bias is None or bias.shape != weight.shape[:1] or weight.ndim != 2:
                raise ValueError("head.weight and head.bias must be [K, F] and [K]")

    @property
    def taps(self) -> tuple[str, ...]:
        """The names of the taps."""
        return tuple(self.scores)

    @property
    def attention(self) -> dict[str, Tensor]:
        """Tap -> `[C]`, sums to 1."""
        return {
            tap: normalize_scores(
                scores,
                temperature=self.temperature,
                score_clip=self.score_clip,
                clamp_negative_scores=self.clamp_negative_scores,
            )
            for tap, scores in self.scores.items()
        }

    @property
    def entropy(self) -> dict[str, float]:
        """Tap -> the entropy of its attention, where that of uniform attention is 1."""
        return {tap: normalized_entropy(found).item() for tap, found in self.attention.items()}

    @property
    def effective_channels(self) -> dict[str, float]:
        """Tap -> how many channels its attention is spread over, the exponential of its entropy."""
        return {tap: effective_channels(found).item() for tap, found in self.attention.items()}

    def save(self, path: str | Path) -> None:
        """Writes one safetensors file, whole or not at all."""
        kinds = {
            "scores": self.scores,
            "standard_errors": self.standard_errors,
            "attention": self.attention,  # for readers that do not have this package
            "variance": self.variance,
            "influential_samples": self.influential_samples,
        }
        tensors = {
            f"{kind}/{tap}": values[tap]
            for kind, values in kinds.items()
            for tap in self.taps
            if tap in values
        }
        if self.head_weight is not None and self.head_bias is not None:
            tensors |= {"head.weight": self.head_weight, "head.bias": self.head_bias}
        about = {
            "taps": self.taps,
            "estimator": self.estimator,
            "samples": self.samples,
            "temperature": self.temperature,
            "score_clip": self.score_clip,
            "clamp_negative_scores": self.clamp_negative_scores,
            # JSON has no NaN.
            "uncertainty": {
                tap: value if math.isfinite(value) else None
                for tap, value in self.uncertainty.items()
            },
            "preprocessing": self.preprocessing,
            "source": self.source,
            "data": self.data,
        }
        write_attention_file(Path(path), tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> "ChannelAttention":
        """Reads what `save` wrote.

        Raises:
            UserError: if the file is missing, is no channel attention, or is damaged.
        """
        path = Path(path)
        tensors, about = read_attention_file(path)

        def of(kind: str) -> dict[str, Tensor]:
            names = {tap: f"{kind}/{tap}" for tap in about["taps"]}
            return {tap: tensors[name] for tap, name in names.items() if name in tensors}

        uncertainty = about.pop("uncertainty")
        try:
            loaded = cls(
                scores=of("scores"),
                standard_errors=of("standard_errors"),
                variance=of("variance"),
                influential_samples=of("influential_samples"),
                uncertainty={
                    tap: math.nan if value is None else value for tap, value in uncertainty.items()
                },
                estimator=about["estimator"],
                head_weight=tensors.get("head.weight"),
                head_bias=tensors.get("head.bias"),
                **{name: about[name] for name in _SAME},
            )
            attention = loaded.attention
        except ValueError as error:
            raise damaged_file_error(path, str(error)) from error
        for tap, written in of("attention").items():
            if written.shape != attention[tap].shape or not torch.allclose(
                written, attention[tap], rtol=1e-3
            ):
                raise damaged_file_error(path, f"attention/{tap} is not that of its scores")
        return loaded


# What goes by the same name in the file.
_SAME = (
    "samples",
    "temperature",
    "score_clip",
    "clamp_negative_scores",
    "preprocessing",
    "source",
    "data",
)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
