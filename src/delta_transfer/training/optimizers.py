"""How the weights are moved: optimiser, learning rates and their schedule."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from delta_transfer.errors import UserError
from delta_transfer.features.stages import auto_taps


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights are moved.

    Args:
        optimizer: `"adamw"`, or `"sgd"` with momentum 0.9.
        lr: peak learning rate of the backbone.
        head_lr: peak learning rate of the head.
        weight_decay: decoupled weight decay (SGD: added to the gradient, as torch has it).
        schedule: what follows the warm-up, see `schedule_factor`.
        warmup_ratio: share of the steps over which the learning rate rises to its peak.
        num_head_cycles: how often the head's schedule runs, see `cycle_starts`.
        optimizer_context: what surrounds the optimiser's steps during the fit.
        lr_scales: parameters of the backbone that learn at a share of `lr`, by name.
        ema: decay of the weights' moving average, which is what is validated; None for none.
    """

    optimizer: Literal["adamw", "sgd"]
    lr: float
    head_lr: float
    weight_decay: float
    schedule: Literal["cosine", "step", "constant", "exponential"]
    warmup_ratio: float
    num_head_cycles: int = 1
    optimizer_context: Callable[[torch.optim.Optimizer], AbstractContextManager[object]] = (
        nullcontext
    )
    lr_scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ema: float | None = None


def schedule_factor(step: int, total: int, *, schedule: str, warmup_ratio: float) -> float:
    """The learning rate at a step, as a share of its peak.

    A linear warm-up, then `"cosine"` to zero, `"step"` (times 0.1 at 67% of all steps) or
    `"constant"`; `"exponential"`, of the learning-rate range test, rises from a millionth of the
    peak to the peak at the last step.

    Args:
        step: from 0.
        total: how many steps there are.
        schedule: what follows the warm-up.
        warmup_ratio: its share of all steps; at least one step, if there is any.

    Example:
        >>> shown = [0, 2, 3, 19]
        >>> [round(schedule_factor(i, 20, schedule="cosine", warmup_ratio=0.15), 2) for i in shown]
        [0.33, 1.0, 1.0, 0.01]
    """
    rising = max(1, round(warmup_ratio * total)) if warmup_ratio else 0
    if step < rising:
        return (step + 1) / rising
    if schedule == "exponential":
        return 10 ** (-6 * (1 - step / max(1, total - 1)))
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, total - rising)))
    return 0.1 if schedule == "step" and step >= 0.67 * total else 1.0


def cycle_starts(total: int, cycles: int) -> list[int]:
    """The steps at which so many equal parts of the training begin; fewer if it is too short.

    Example:
        >>> cycle_starts(10, 3)
        [0, 3, 6]
    """
    return sorted({i * total // cycles for i in range(cycles)})


def make_lr_lambda(options: OptimizerConfig, total: int, cycles: int) -> Callable[[int], float]:
    """The learning rate as a share of its peak, by the step, where the schedule runs so often."""
    starts = cycle_starts(total, cycles)

    def factor(step: int) -> float:
        start = max(start for start in starts if start <= step)
        end = min((later for later in starts if later > step), default=total)
        return schedule_factor(
            step - start, end - start, schedule=options.schedule, warmup_ratio=options.warmup_ratio
        )

    return factor


def layer_lr_scales(
    network: nn.Module, *, head: str, factor: float, example: Any
) -> dict[str, float]:
    """The share of the learning rate that each parameter of the backbone learns at.

    `factor ** n`, n layers below the head (as in BEiT, Bao et al., ICLR 2022,
    https://arxiv.org/abs/2106.08254). timm's networks say what their layers are, block by block; of
    others the stages between the taps that `auto` chooses are layers.

    Args:
        network: the target.
        head: the name of its head, which is the first layer and has a rate of its own.
        factor: above 0, at most 1.
        example: what the network takes, such as an image `[1, 3, H, W]`, on its device.

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


def moving_average(network: nn.Module, *, decay: float) -> AveragedModel:
    """A copy of the network whose `update_parameters(network)` moves it towards the network.

    `average = d average + (1 - d) weights` with `d = min(decay, (1 + n) / (10 + n))` after n
    updates, so that the start is soon forgotten however short the training is. The first update
    takes the weights as they are. Buffers (the statistics of batch norm) are averaged likewise.

    Args:
        network: in training.
        decay: above 0 and below 1; the average is over about `1 / (1 - decay)` steps.
    """

    def average(averaged: Any, weights: Any, count: Tensor | int) -> None:
        now = decay_after(int(count), decay=decay)
        get_ema_multi_avg_fn(now)(averaged, weights, count)  # type: ignore[no-untyped-call]

    found = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    found.requires_grad_(False)
    return found


def decay_after(updates: int, *, decay: float) -> float:
    """The decay of the next update after so many.

    Example:
        >>> [round(decay_after(n, decay=0.9), 2) for n in (1, 10, 100)]
        [0.18, 0.55, 0.9]
    """
    return min(decay, (1 + updates) / (10 + updates))
