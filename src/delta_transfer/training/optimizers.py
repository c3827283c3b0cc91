"""Optimiser options, learning-rate schedules, layer-wise rates and weight averaging."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from delta_transfer.errors import ConfigError, UserError
from delta_transfer.features.stages import auto_taps


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Optimiser, learning rates and schedule of a fit.

    Args:
        optimizer: `"adamw"`, or `"sgd"` with momentum 0.9.
        lr: peak learning rate of the backbone.
        head_lr: peak learning rate of the head.
        weight_decay: decoupled weight decay (SGD: added to the gradient, as torch has it).
        schedule: after the warm-up, see `schedule_factor`.
        warmup_ratio: fraction of the steps in which the learning rate rises to its peak.
        num_head_cycles: number of cycles of the head's schedule, see `cycle_starts`.
        optimizer_context: entered with the optimiser, left after the fit.
        lr_scales: factors of `lr` for parameters of the backbone, by name.
        ema: decay of the weights' moving average, which is then validated; None for none.
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
    """Return the learning rate at a step, relative to its peak.

    A linear warm-up, then `"cosine"` to zero, `"step"` (times 0.1 at 67% of all steps) or
    `"constant"`; `"exponential"`, of the learning-rate range test, rises from a millionth of the
    peak to the peak at the last step.

    Args:
        step: from 0.
        total: number of steps.
        schedule: name of the schedule.
        warmup_ratio: fraction of all steps, at least one step; 0 for no warm-up.

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
    """Return the first steps of equal cycles; fewer if there are too few steps.

    Example:
        >>> cycle_starts(10, 3)
        [0, 3, 6]
    """
    return sorted({i * total // cycles for i in range(cycles)})


def make_lr_lambda(options: OptimizerConfig, total: int, cycles: int) -> Callable[[int], float]:
    """Return the learning rate relative to its peak, by step, for a schedule with cycles."""
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
    """Return the factor of the learning rate for each parameter of the backbone.

    It is `factor ** n` for a layer n layers below the head (as in BEiT, Bao et al., ICLR 2022,
    https://arxiv.org/abs/2106.08254). Networks of timm define their layers; for others the stages
    between automatic taps count as layers.

    Args:
        network: the target.
        head: the name of its head, the first layer, which has its own rate.
        factor: above 0, at most 1.
        example: an input, such as an image `[1, 3, H, W]`, on the network's device.

    Returns:
        Parameter name -> factor; without those of the head.

    Raises:
        ConfigError: if the layers of the network are unknown.
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
    """Return the layer of each parameter, from 0; those after the last stage belong to it."""
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
        raise _unknown(network)  # modules are not defined in the order of the forward pass
    found = {}
    for name, _ in network.named_parameters():
        place = order.index(name.rpartition(".")[0])
        found[name] = min(sum(end < place for end in ends), len(ends) - 1)
    return found


def _unknown(network: nn.Module) -> ConfigError:
    return ConfigError(
        f"`layer_decay`: the layers of {type(network).__name__} are unknown: use a network of "
        "timm, or leave the option out"
    )


def moving_average(network: nn.Module, *, decay: float) -> AveragedModel:
    """Return a copy of the network that averages its weights by `update_parameters(network)`.

    `average = d average + (1 - d) weights` with `d = min(decay, (1 + n) / (10 + n))` after n
    updates, so that the initialization fades also in short trainings. The first update copies the
    weights. Buffers (batch-norm statistics) are averaged in the same way.

    Args:
        network: in training.
        decay: above 0 and below 1, for an average over about `1 / (1 - decay)` steps.
    """

    def average(averaged: Any, weights: Any, count: Tensor | int) -> None:
        now = decay_after(int(count), decay=decay)
        get_ema_multi_avg_fn(now)(averaged, weights, count)  # type: ignore[no-untyped-call]

    found = AveragedModel(network, multi_avg_fn=average, use_buffers=True)
    found.requires_grad_(False)
    return found


def decay_after(updates: int, *, decay: float) -> float:
    """Return the decay of the next update.

    Example:
        >>> [round(decay_after(n, decay=0.9), 2) for n in (1, 10, 100)]
        [0.18, 0.55, 0.9]
    """
    return min(decay, (1 + updates) / (10 + updates))
