"""DELTA: the distance between the feature maps of target and source."""

import dataclasses
from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.errors import ConfigError, ModelError
from delta_transfer.functional import feature_distance, official_distance
from delta_transfer.methods.base import CandidateRun, Method, PenaltyContext
from delta_transfer.methods.l2 import head_penalties
from delta_transfer.methods.penalty import Penalty, Step


@final
class Delta(Penalty):
    """DELTA with a strength that needs no retuning: a unit-free distance between features.

    `strength * 1/L sum_l 1/2 mean_b sum_c a_lc mean_s (F_lbsc(w) - F_lbsc(w0))^2 / v_l` over the
    taps l, with channel attention `a` (Li et al., ICLR 2019, https://arxiv.org/abs/1901.09229,
    section 3) and the source's feature variance `v` (`delta_transfer.functional`). It depends
    neither on batch size, image size, number of taps nor architecture. Uniform attention equals no
    attention.

    Args:
        attention: taps, attention and variance, from `estimate_attention`. Without it every channel
            has the same weight, and `Regularizer.calibrate` measures the variance.
        strength: factor of the term.
        taps: without attention, the modules whose outputs are compared: names, glob patterns or
            `"auto"`.

    Raises:
        ValueError: if both attention and taps are given, or neither.
    """

    def __init__(
        self,
        attention: ChannelAttention | None = None,
        *,
        strength: float,
        taps: str | Sequence[str] | None = None,
    ) -> None:
        taps = _taps(attention, taps)
        super().__init__("delta", strength, taps=taps, needs_source=True, needs_variance=True)
        self.has_attention = attention is not None
        if attention is not None:
            self.calibrate(attention.variance)
            _register_attention(self, attention)

    def extra_repr(self) -> str:
        """Return the arguments that `print` shows."""
        return f"strength={self.strength}, taps={self.taps}, attention={self.has_attention}"

    def forward(self, step: Step) -> Tensor:
        """Return the term.

        Raises:
            ConfigError: if the penalty is not calibrated.
            ModelError: if the attention does not fit the network.
        """
        if not self.is_calibrated:
            raise ConfigError(
                "Delta is not calibrated: call regularizer.calibrate(loader) with training data "
                "without augmentation, or pass an attention, which has the variances"
            )
        terms = []
        for i, tap in enumerate(self.taps):
            target, source = step.target_features[tap], step.source_features[tap]
            terms.append(
                feature_distance(
                    target,
                    source,
                    variance=self.variance[i],
                    attention=_attention(self, i, target) if self.has_attention else None,
                    groups=step.groups_at(tap),
                )
            )
        return self.strength * torch.stack(terms).mean()

    @staticmethod
    def official(
        attention: ChannelAttention | None = None,
        *,
        strength: float = 0.01,
        taps: str | Sequence[str] | None = None,
    ) -> Penalty:
        """Return a penalty with the exact formula of the authors' published code.

        It is summed over the batch and over taps: with attention `strength * sum_l 1/2 sum_b sum_c
        C a_c / (H W) ||d||^2`, without it `strength * sum_l 1/2 sum ||d||^2`
        (https://github.com/lixingjian/DELTA). Its strength has to be retuned for each batch size,
        image size and network.

        Args:
            attention: see `Delta`; its variance is not used.
            strength: factor of the term; the authors' alpha.
            taps: see `Delta`. The authors use the last `conv3` of each stage of a ResNet.
        """
        return _OfficialDelta(attention, strength=strength, taps=taps)


@final
class _OfficialDelta(Penalty):
    """See `Delta.official`."""

    def __init__(
        self,
        attention: ChannelAttention | None,
        *,
        strength: float,
        taps: str | Sequence[str] | None,
    ) -> None:
        taps = _taps(attention, taps)
        super().__init__("delta", strength, taps=taps, needs_source=True, reduction="sum")
        self.has_attention = attention is not None
        if attention is not None:
            _register_attention(self, attention)

    def forward(self, step: Step) -> Tensor:
        terms = []
        for i, tap in enumerate(self.taps):
            target, source = step.target_features[tap], step.source_features[tap]
            attention = _attention(self, i, target) if self.has_attention else None
            groups = step.groups_at(tap)
            terms.append(official_distance(target, source, attention=attention, groups=groups))
        return self.strength * torch.stack(terms).sum()


def _taps(
    attention: ChannelAttention | None, taps: str | Sequence[str] | None
) -> str | Sequence[str]:
    if attention is not None and taps is None:
        return attention.taps
    if attention is None and taps is not None:
        return taps
    raise ValueError(
        "pass either attention (which has its taps) or taps (names or 'auto'), "
        f"got {'neither' if taps is None else 'both'}"
    )


def _register_attention(penalty: Penalty, attention: ChannelAttention) -> None:
    for i, weights in enumerate(attention.attention.values()):
        penalty.register_buffer(f"attention_{i}", weights)


def _attention(penalty: Penalty, i: int, features: Tensor) -> Tensor:
    weights = penalty.get_buffer(f"attention_{i}")
    if len(weights) != features.shape[-1]:
        raise ModelError(
            f"channel attention for tap {penalty.taps[i]!r} has {len(weights)} channels, "
            f"the features have {features.shape[-1]}: it was estimated for another network"
        )
    return weights


def _penalties(context: PenaltyContext) -> list[Penalty]:
    """Return DELTA's penalty and the head term."""
    make = Delta.official if context.official else Delta
    attention = context.attention
    taps = context.taps if attention is None else None
    return [make(attention, strength=context.strength, taps=taps), *head_penalties(context)]


def _penalties_without_attention(context: PenaltyContext) -> list[Penalty]:
    """Return DELTA's penalty with uniform attention at the given taps, and the head term."""
    return _penalties(dataclasses.replace(context, attention=None))


# The best strength depends on how far the data is from that of the pretraining.
AUTO = (CandidateRun(1.0), CandidateRun(0.1))
# On graphs the better initialization of the head depends on the data: one of the two is chosen.
AUTO_GRAPHS = (
    CandidateRun(1.0),
    CandidateRun(0.03, head_init="random"),
)


METHOD = Method(
    name="delta",
    summary="DELTA without channel attention: keeps features close to the source's",
    paper="https://arxiv.org/abs/1901.09229",
    build_penalties=_penalties_without_attention,
    compares_features=True,
    strength=AUTO[0].strength,
    candidates=AUTO,
    official_strength=0.01,
)


WITH_ATTENTION = dataclasses.replace(
    METHOD,
    name="delta_attention",
    summary="DELTA as published, channels weighted by attention; delta with --attention refined",
    build_penalties=_penalties,
    needs_attention=True,
)
