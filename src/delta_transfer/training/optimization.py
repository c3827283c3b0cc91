"""How the weights are moved: optimiser, learning rates and their schedule."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Literal

import torch


@dataclasses.dataclass(frozen=True, kw_only=True)
class Optimization:
    """How the weights are moved.

    Args:
        optimizer: `"adamw"`, or `"sgd"` with momentum 0.9.
        lr: peak learning rate of the backbone.
        head_lr: peak learning rate of the head.
        weight_decay: decoupled weight decay (SGD: added to the gradient, as torch has it).
        schedule: what follows the warm-up, see `schedule_factor`.
        warm_up: share of the steps over which the learning rate rises to its peak.
        head_cycles: how often the head's schedule runs, see `cycle_starts`.
        around: what surrounds the optimiser's steps during the fit.
        scales: parameters of the backbone that learn at a share of `lr`, by name.
        ema: decay of the weights' moving average, which is what is validated; None for none.
    """

    optimizer: Literal["adamw", "sgd"]
    lr: float
    head_lr: float
    weight_decay: float
    schedule: Literal["cosine", "step", "constant", "rising"]
    warm_up: float
    head_cycles: int = 1
    around: Callable[[torch.optim.Optimizer], AbstractContextManager[object]] = nullcontext
    scales: Mapping[str, float] = dataclasses.field(default_factory=dict)
    ema: float | None = None


def schedule_factor(step: int, total: int, *, schedule: str, warm_up: float) -> float:
    """The learning rate at a step, as a share of its peak.

    A linear warm-up, then `"cosine"` to zero, `"step"` (times 0.1 at 67% of all steps) or
    `"constant"`; `"rising"`, of a trial, reaches its peak with the last step, from a millionth.

    Args:
        step: from 0.
        total: how many steps there are.
        schedule: what follows the warm-up.
        warm_up: its share of all steps; at least one step, if there is any.

    Example:
        >>> shown = [0, 2, 3, 19]
        >>> [round(schedule_factor(i, 20, schedule="cosine", warm_up=0.15), 2) for i in shown]
        [0.33, 1.0, 1.0, 0.01]
    """
    rising = max(1, round(warm_up * total)) if warm_up else 0
    if step < rising:
        return (step + 1) / rising
    if schedule == "rising":
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


def factors_of(options: Optimization, total: int, cycles: int) -> Callable[[int], float]:
    """The learning rate as a share of its peak, by the step, where the schedule runs so often."""
    starts = cycle_starts(total, cycles)

    def factor(step: int) -> float:
        start = max(start for start in starts if start <= step)
        end = min((later for later in starts if later > step), default=total)
        return schedule_factor(
            step - start, end - start, schedule=options.schedule, warm_up=options.warm_up
        )

    return factor
