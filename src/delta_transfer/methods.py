"""The methods of fine-tuning that can be compared, in one table."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from delta_transfer.channel_attention import ChannelAttention
from delta_transfer.errors import UserError, unknown
from delta_transfer.penalties import L2, L2SP, Delta, Penalty

# The authors' beta: strength of 1/2 ||head||^2 beside every penalty that holds the backbone.
HEAD_STRENGTH = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True)
class Parts:
    """What a method may build its penalties from.

    Args:
        strength: of the method's own penalty.
        head: the name of the target's head.
        taps: the modules whose features are compared.
        attention: channel attention, for methods that need it.
        official: the penalties as the authors of DELTA published them, which take other strengths;
            `find_method(name, official=True)` gives a method that sets it.
    """

    strength: float
    head: str
    taps: Sequence[str]
    attention: ChannelAttention | None
    official: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One method: where its head starts and what is added to the task loss.

    Args:
        name: as on the command line.
        summary: one line for a list of methods.
        paper: where it comes from.
        head: the head starts as the linear probe, or at random.
        penalties: makes the penalties.
        strength: the default of `--strength`; None where there is nothing to set.
        official_strength: the same in the official form; None for methods that have none.
        decay: `--strength` is the optimiser's (decoupled) weight decay, not a penalty's.
        features: whether it compares features, so that the source runs at each step.
        attention: whether it needs channel attention.
        trains: whether anything but the probe is trained.
    """

    name: str
    summary: str
    paper: str
    head: Literal["probe", "random"] = "probe"
    penalties: Callable[[Parts], list[Penalty]] = lambda parts: []
    strength: float | None
    official_strength: float | None = None
    decay: bool = False
    features: bool = False
    attention: bool = False
    trains: bool = True


def _l2sp(parts: Parts) -> list[Penalty]:
    return [L2SP(strength=parts.strength), L2(parts.head, strength=HEAD_STRENGTH)]


def _delta(parts: Parts) -> list[Penalty]:
    return _hold_features(parts, parts.attention, None)


def _delta_no_attention(parts: Parts) -> list[Penalty]:
    return _hold_features(parts, None, parts.taps)


def _hold_features(
    parts: Parts, attention: ChannelAttention | None, taps: Sequence[str] | None
) -> list[Penalty]:
    if parts.official:
        delta = Delta.official(attention, strength=parts.strength, taps=taps)
    else:
        delta = Delta(attention, strength=parts.strength, taps=taps)
    return [delta, L2(parts.head, strength=HEAD_STRENGTH)]


METHODS = {
    method.name: method
    for method in (
        Method(
            name="probe",
            summary="linear probe: logistic regression on frozen features, nothing else trains",
            paper="https://arxiv.org/abs/1805.08974",
            strength=None,
            trains=False,
        ),
        Method(
            name="l2",
            summary="plain fine-tuning: random head, weight decay",
            paper="https://arxiv.org/abs/1411.1792",
            head="random",
            strength=0.01,
            official_strength=1e-4,
            decay=True,
        ),
        Method(
            name="lp_ft",
            summary="plain fine-tuning that starts from the linear probe's head",
            paper="https://arxiv.org/abs/2202.10054",
            strength=0.01,
            decay=True,
        ),
        Method(
            name="l2sp",
            summary="L2-SP: weights are held close to the pretrained ones",
            paper="https://arxiv.org/abs/1802.01483",
            penalties=_l2sp,
            strength=0.01,
            official_strength=0.01,
        ),
        Method(
            name="delta_no_attention",
            summary="DELTA with every channel alike: features are held close",
            paper="https://arxiv.org/abs/1901.09229",
            penalties=_delta_no_attention,
            features=True,
            strength=3.0,
            official_strength=0.01,
        ),
        Method(
            name="delta",
            summary="DELTA: features are held close, each channel as much as it matters",
            paper="https://arxiv.org/abs/1901.09229",
            penalties=_delta,
            features=True,
            strength=3.0,
            official_strength=0.01,
            attention=True,
        ),
    )
}


def find_method(name: str, *, official: bool = False) -> Method:
    """The method of that name.

    Args:
        name: as on the command line.
        official: the form that it has in the code of DELTA's authors: their penalties, their
            strength as the default, and a head that starts at random.

    Raises:
        UserError: if there is no such method, or it has no official form; those that have one are
            listed.
    """
    if name not in METHODS:
        raise unknown("method", name, list(METHODS))
    return _official(METHODS[name]) if official else METHODS[name]


def _official(method: Method) -> Method:
    if method.official_strength is None:
        choices = [other.name for other in METHODS.values() if other.official_strength is not None]
        raise UserError(
            f"method {method.name!r} has no official form, the authors' code does not have it: "
            f"choose from {', '.join(choices)}, or leave --preset official out"
        )

    def penalties(parts: Parts) -> list[Penalty]:
        return method.penalties(dataclasses.replace(parts, official=True))

    return dataclasses.replace(
        method, head="random", strength=method.official_strength, penalties=penalties
    )
