"""DELTA: the distance between the feature maps of target and source."""

from collections.abc import Mapping, Sequence
from typing import final

import torch
from torch import Tensor

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.errors import UserError
from delta_transfer.functional import feature_distance, official_distance
from delta_transfer.methods.base import CandidateRun, Method, PenaltyContext
from delta_transfer.methods.l2 import head_penalties
from delta_transfer.methods.penalty import Penalty, Step


@final
class Delta(Penalty):
    """DELTA with a scale that needs no retuning: strength times the unit-free feature distance.

    `strength * 1/L sum_l 1/2 mean_b sum_c a_lc mean_s (F_lbsc(w) - F_lbsc(w0))^2 / v_l` over the
    taps l, with channel attention `a` (Li et al., ICLR 2019, https://arxiv.org/abs/1901.09229,
    section 3) and the source's feature variance `v` (`delta_transfer.functional`). It depends
    neither on batch size, image size, number of taps nor architecture. Uniform attention equals no
    attention.

    Args:
        attention: taps, attention and variance, from `estimate_attention`. Without it every channel
            counts the same, and `Regularizer.calibrate` measures the variance.
        strength: factor of the term.
        taps: with no attention, the modules whose outputs are compared: names, glob patterns or
            `"auto"`.

    Raises:
        ValueError: if both attention and taps are given, or neither.
    """

    variance: Tensor

    def __init__(
        self,
        attention: ChannelAttention | None = None,
        *,
        strength: float,
        taps: str | Sequence[str] | None = None,
    ) -> None:
        super().__init__("delta", strength, taps=_taps(attention, taps), needs_source=True)
        self.has_attention = attention is not None
        self.register_buffer("variance", torch.empty(0))
        self.register_load_state_dict_pre_hook(_resize_variance)  # type: ignore[no-untyped-call]
        if attention is not None:
            self.calibrate(attention.variance)
            _register_attention(self, attention)

    def calibrate(self, variance: Mapping[str, Tensor]) -> None:
        """Sets the feature variance of each tap: tap -> scalar."""
        values = torch.stack([variance[tap].detach() for tap in self.taps])
        self.variance = values.to(self.variance.device)

    def extra_repr(self) -> str:
        """What `print` shows of it."""
        return f"strength={self.strength}, taps={self.taps}, attention={self.has_attention}"

    def forward(self, step: Step) -> Tensor:
        """The term.

        Raises:
            UserError: if it was not calibrated, or the attention does not fit the network.
        """
        if len(self.variance) != len(self.taps):
            raise UserError(
                "Delta is not calibrated: call regularizer.calibrate(loader) with training data "
                "without augmentation, or give Delta an attention, which carries the variances"
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
        """The formula of the authors' published code, to the letter.

        Summed over the batch and over taps: with attention `strength * sum_l 1/2 sum_b sum_c
        C a_c / (H W) ||d||^2`, without it a bare `strength * sum_l 1/2 sum ||d||^2`
        (https://github.com/lixingjian/DELTA). Its strength has to be tuned anew for each batch
        size, image size and network.

        Args:
            attention: as for `Delta`; its variance is not used.
            strength: factor of the term; the authors' alpha.
            taps: as for `Delta`. The authors': the last `conv3` of each stage of a ResNet.

        Returns:
            A penalty that is called like any other.
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
        named = _taps(attention, taps)
        super().__init__("delta", strength, taps=named, needs_source=True, reduction="sum")
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
) -> str | tuple[str, ...]:
    if (attention is None) == (taps is None):
        raise ValueError(
            "give either attention (which names its taps) or taps (names or 'auto'), "
            f"got {'neither' if taps is None else 'both'}"
        )
    if attention is not None:
        return attention.taps
    return "auto" if taps == "auto" else (taps,) if isinstance(taps, str) else tuple(taps or ())


def _resize_variance(module: Delta, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """A Delta that is not calibrated yet takes the state of one that is."""
    saved = state.get(f"{prefix}variance")
    if saved is not None and saved.shape != module.variance.shape:
        module.variance = torch.empty_like(saved, device=module.variance.device)


def _register_attention(penalty: Penalty, attention: ChannelAttention) -> None:
    for i, weights in enumerate(attention.attention.values()):
        penalty.register_buffer(f"attention_{i}", weights)


def _attention(penalty: Penalty, i: int, features: Tensor) -> Tensor:
    weights = penalty.get_buffer(f"attention_{i}")
    if len(weights) != features.shape[-1]:
        raise UserError(
            f"channel attention for tap {penalty.taps[i]!r} has {len(weights)} channels, "
            f"the features have {features.shape[-1]}: it was made for another network"
        )
    return weights


def _penalties(parts: PenaltyContext) -> list[Penalty]:
    """DELTA with channel attention, and the head term."""
    return _feature_penalties(parts, parts.attention, None)


def _penalties_without_attention(parts: PenaltyContext) -> list[Penalty]:
    """DELTA without attention, and the head term."""
    return _feature_penalties(parts, None, parts.taps)


def _feature_penalties(
    context: PenaltyContext, attention: ChannelAttention | None, taps: Sequence[str] | None
) -> list[Penalty]:
    if context.official:
        delta = Delta.official(attention, strength=context.strength, taps=taps)
    else:
        delta = Delta(attention, strength=context.strength, taps=taps)
    return [delta, *head_penalties(context)]


# The two trainings of DELTA by `--strength auto`: averages gain the more, the more these differ.
AUTO = (CandidateRun(1.0, lr_scale=1.0), CandidateRun(0.1, lr_scale=2.0))
# On graphs it depends on the data which head to begin with: one of the two is taken.
AUTO_GRAPHS = (
    CandidateRun(1.0, lr_scale=1.0),
    CandidateRun(0.03, lr_scale=1.0, head_init="random"),
)


NO_ATTENTION = Method(
    name="delta_no_attention",
    summary="DELTA with every channel alike: features are held close",
    paper="https://arxiv.org/abs/1901.09229",
    head_init="unstandardized_probe",
    build_penalties=_penalties_without_attention,
    compares_features=True,
    strength=AUTO[0].strength,
    candidates=AUTO,
    official_strength=0.01,
)


METHOD = Method(
    name="delta",
    summary="DELTA: features are held close, each channel as much as it matters",
    paper="https://arxiv.org/abs/1901.09229",
    head_init="unstandardized_probe",
    build_penalties=_penalties,
    compares_features=True,
    strength=AUTO[0].strength,
    candidates=AUTO,
    official_strength=0.01,
    needs_attention=True,
)
