"""Channel attention, the importance of each channel of each tap, and its file."""

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
    """Scores, attention and feature variance per tap, and their provenance.

    Args:
        scores: tap -> `[C]`, increase of the mean task loss when the channel is ablated.
        variance: tap -> scalar `v`, the mean over channels of the source's variance over samples
            and positions, in squared units of the features.
        temperature: of the softmax that turns scores into attention.
        score_clip: standardised scores are clipped to plus and minus this; not clipped if None.
        clamp_negative_scores: whether scores below zero are set to zero.
        estimator: name of the estimator, such as `"refined"`.
        samples: number of images that the scores are averaged over.
        source: fingerprint of the source network's weights (`weights_fingerprint`).
        standard_errors: tap -> `[C]`, standard errors of the scores, as estimates of the
            population mean; no entry where they are not known.
        influential_samples: tap -> `[C, k]`, int64, positions in the data of the samples whose
            loss increases most without the channel, largest first; no entry where not known.
        uncertainty: tap -> the standard error of the attention, relative to its distance from
            uniform attention; NaN or no entry where it is not known.
        head_weight: `[K, F]`, weight of the head that the task loss was computed with.
        head_bias: `[K]`, its bias.
        data: fingerprint of the images and their classes, None if not known.
        preprocessing: preprocessing of the images, as JSON values.

    Raises:
        ValueError: if a value does not fit the scores.
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
            errors, influential = self.standard_errors.get(tap), self.influential_samples.get(tap)
            if errors is not None and errors.shape != scores.shape:
                raise ValueError(
                    f"standard_errors/{tap} must be [{len(scores)}], got {_kind(errors)}"
                )
            if influential is not None and (
                influential.ndim != 2
                or len(influential) != len(scores)
                or influential.dtype != torch.int64
            ):
                raise ValueError(
                    f"influential_samples/{tap} must be int64 [C, k], got {_kind(influential)}"
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
        """Tap -> entropy of its attention, relative to that of uniform attention."""
        return {tap: normalized_entropy(found).item() for tap, found in self.attention.items()}

    @property
    def effective_channels(self) -> dict[str, float]:
        """Tap -> number of channels its attention is spread over, exponential of its entropy."""
        return {tap: effective_channels(found).item() for tap, found in self.attention.items()}

    def save(self, path: str | Path) -> None:
        """Write one safetensors file atomically."""
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
        header = {
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
        write_attention_file(Path(path), tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> "ChannelAttention":
        """Read a file that `save` wrote.

        Raises:
            DataError: if the file is missing, is not channel attention, or is damaged.
        """
        path = Path(path)
        tensors, header = read_attention_file(path)

        def of(kind: str) -> dict[str, Tensor]:
            names = {tap: f"{kind}/{tap}" for tap in header["taps"]}
            return {tap: tensors[name] for tap, name in names.items() if name in tensors}

        uncertainty = header.pop("uncertainty")
        try:
            loaded = cls(
                scores=of("scores"),
                standard_errors=of("standard_errors"),
                variance=of("variance"),
                influential_samples=of("influential_samples"),
                uncertainty={
                    tap: math.nan if value is None else value for tap, value in uncertainty.items()
                },
                estimator=header["estimator"],
                head_weight=tensors.get("head.weight"),
                head_bias=tensors.get("head.bias"),
                **{name: header[name] for name in _SAME},
            )
            attention = loaded.attention
        except ValueError as error:
            raise damaged_file_error(path, str(error)) from error
        for tap, written in of("attention").items():
            if written.shape != attention[tap].shape or not torch.allclose(
                written, attention[tap], rtol=1e-3
            ):
                raise damaged_file_error(path, f"attention/{tap} does not match its scores")
        return loaded


# Fields with the same name in the file's header.
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
