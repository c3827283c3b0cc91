"""Layer-wise decay of the learning rate: the further from the head, the slower a layer learns."""

from collections.abc import Callable
from typing import Any

from torch import nn

from delta_transfer.errors import UserError
from delta_transfer.features.stages import auto_taps


def layer_scales(network: nn.Module, *, head: str, factor: float, example: Any) -> dict[str, float]:
    """The share of the learning rate that each parameter of the backbone learns at.

    `factor ** n`, n layers below the head (as in BEiT, Bao et al., ICLR 2022,
    https://arxiv.org/abs/2106.08254). timm's networks say what their layers are, block by block; of
    others the stages between the taps that `auto` chooses are layers.

    Args:
        network: the target.
        head: the name of its head, which is the first layer and has a rate of its own.
        factor: above 0, at most 1.
        example: what the network takes, such as a picture `[1, 3, H, W]`, on its device.

    Returns:
        Parameter name -> share; the head's are left out.

    Raises:
        UserError: if the layers of the network are not known.
    """
    matcher = getattr(network, "group_matcher", None)
    layers = _of_timm(network, matcher) if callable(matcher) else _of_stages(network, example)
    body = {name: layer for name, layer in layers.items() if not name.startswith(f"{head}.")}
    top = max(layers.values()) if callable(matcher) else max(body.values()) + 1
    if top == 0:
        raise _unknown(network)
    return {name: factor ** (top - layer) for name, layer in body.items()}


def _of_timm(network: nn.Module, matcher: Callable[..., Any]) -> dict[str, int]:
    from timm.models import group_parameters

    found: dict[str, int] = group_parameters(network, matcher(coarse=False), reverse=True)
    return found


def _of_stages(network: nn.Module, example: Any) -> dict[str, int]:
    """Layers from 0; what comes after the last stage belongs to it."""
    try:
        stages = auto_taps(network, example=example)
    except UserError as error:
        raise _unknown(network) from error
    order = [name for name, _ in network.named_modules()]
    ends = [
        max(i for i, name in enumerate(order) if f"{name}.".startswith(f"{stage}."))
        for stage in stages
    ]
    if ends != sorted(ends):
        raise _unknown(network)  # not defined in the order in which it runs
    found = {}
    for name, _ in network.named_parameters():
        place = order.index(name.rpartition(".")[0])
        found[name] = min(sum(end < place for end in ends), len(ends) - 1)
    return found


def _unknown(network: nn.Module) -> UserError:
    return UserError(
        f"--layer-decay: what the layers of {type(network).__name__} are is not known: take a "
        "network of timm, or leave the option out"
    )
