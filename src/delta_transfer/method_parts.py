"""What methods of fine-tuning are made of: their penalties, and what else they change."""

import copy
import dataclasses
from collections.abc import Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from delta_transfer.channel_attention import ChannelAttention
from delta_transfer.functional_methods import category_relationship, source_temperature
from delta_transfer.penalties import BSS, GTOT, L2, L2SP, LDIFS, CoTuning, Delta, LwF, Penalty
from delta_transfer.projection import SelectiveProjection
from delta_transfer.stochastic_norm import StochasticNorm

Change = AbstractContextManager[object]

# The authors' beta: strength of 1/2 ||head||^2 beside every penalty that holds the backbone, where
# what the head sees varies by about 1, as in networks for pictures.
HEAD_STRENGTH = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Parts:
    """What a method may build its penalties from.

    Args:
        strength: of the method's own penalty.
        head: the name of the target's head.
        taps: the modules whose features are compared.
        attention: channel attention, for methods that need it.
        classifier: the pretrained classifier, for methods that need it.
        features: what the head sees of each training picture `[N, F]`, before training.
        labels: class indices `[N]` of these pictures.
        num_outputs: how many classes there are.
        official: the penalties as the authors of DELTA published them, which take other strengths;
            `find_method(name, preset="official")` gives a method that sets it.
    """

    strength: float
    head: str
    taps: Sequence[str]
    attention: ChannelAttention | None
    classifier: nn.Linear | None = None
    features: Tensor | None = None
    labels: Tensor | None = None
    num_outputs: int = 0
    official: bool = False


def l2sp(parts: Parts) -> list[Penalty]:
    """L2-SP, and the head term."""
    return [L2SP(strength=parts.strength), *head_term(parts)]


def delta(parts: Parts) -> list[Penalty]:
    """DELTA with channel attention, and the head term."""
    return _hold_features(parts, parts.attention, None)


def delta_no_attention(parts: Parts) -> list[Penalty]:
    """DELTA without attention, and the head term."""
    return _hold_features(parts, None, parts.taps)


def _hold_features(
    parts: Parts, attention: ChannelAttention | None, taps: Sequence[str] | None
) -> list[Penalty]:
    if parts.official:
        delta = Delta.official(attention, strength=parts.strength, taps=taps)
    else:
        delta = Delta(attention, strength=parts.strength, taps=taps)
    return [delta, *head_term(parts)]


def lwf(parts: Parts) -> list[Penalty]:
    """Learning without Forgetting, and the head term."""
    assert parts.classifier is not None
    own = LwF(parts.classifier, head=parts.head, strength=parts.strength)
    return [own, *head_term(parts)]


def bss(parts: Parts) -> list[Penalty]:
    """Batch Spectral Shrinkage."""
    return [BSS(parts.head, strength=parts.strength)]


def co_tuning(parts: Parts) -> list[Penalty]:
    """Co-Tuning, with the relationship of the classes on the training pictures."""
    assert parts.classifier is not None
    assert parts.features is not None
    assert parts.labels is not None
    classifier = copy.deepcopy(parts.classifier).to(parts.features)
    with torch.no_grad():
        logits = classifier(parts.features)
    relationship = category_relationship(
        logits,
        parts.labels,
        num_outputs=parts.num_outputs,
        temperature=source_temperature(logits, parts.labels),
    )
    return [CoTuning(parts.classifier, relationship, head=parts.head, strength=parts.strength)]


def ldifs(parts: Parts) -> list[Penalty]:
    """LDIFS, and the head term."""
    own = LDIFS(parts.taps, strength=parts.strength)
    return [own, *head_term(parts)]


def gtot(parts: Parts) -> list[Penalty]:
    """GTOT at the last tap, and the head term."""
    return [GTOT(parts.taps[-1], strength=parts.strength), *head_term(parts)]


def head_term(parts: Parts) -> list[Penalty]:
    """The head term alone: `0.01 v 1/2 ||head||^2`, v the mean variance of what the head sees.

    With it the term is free of units, as the penalty on features is: features of half the size need
    weights of twice the size. Graph networks with v = 0.007 learnt little under 0.01 alone.
    """
    strength = HEAD_STRENGTH
    if not parts.official and parts.features is not None:
        variance = float(parts.features.var(dim=0, correction=0).mean())
        # Without the last digits, which depend on how samples were shared out in batches.
        strength *= float(f"{variance:.3g}")
    return [L2(parts.head, strength=strength)]


def project(optimizer: Optimizer, target: nn.Module, source: nn.Module, strength: float) -> Change:
    """Selective Projection Decay of the steps."""
    return SelectiveProjection(optimizer, target, source, strength=strength)


def stochastic_norm(network: nn.Module, strength: float, generator: torch.Generator) -> Change:
    """StochNorm, whose strength is its probability."""
    return StochasticNorm(network, probability=strength, generator=generator)
