"""SPD: after a step of the optimiser, weights that went the wrong way are drawn back."""

from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from delta_transfer.errors import ModelError
from delta_transfer.features.stages import unwrap
from delta_transfer.functional import at_least_float32
from delta_transfer.methods.base import Method, TrainingContext
from delta_transfer.methods.l2 import head_penalties


def selective_projection(
    updated: Tensor, previous: Tensor, initial: Tensor, gradient: Tensor, *, factor: float
) -> Tensor:
    """What a step leaves of some weights, once it is drawn back to where they started.

    With `c = -g . (w - w0)` before the step, `w' - factor r (w' - w0)` where `c < 0`, else `w'`;
    `r = max(0, ||w' - w0|| - ||w - w0||) / ||w' - w0||`: Selective Projection Decay (Tian et al.,
    NeurIPS 2024, https://arxiv.org/abs/2411.01713, section 3). Factor 1 keeps such a step on the
    sphere around the start that it came from.

    Args:
        updated: the weights w' after the optimiser's step.
        previous: the weights w before it.
        initial: the weights w0 that all began with.
        gradient: the gradient g at w.
        factor: 0 for none.

    Returns:
        The weights to go on with, of the shape and dtype of `updated`.

    Example:
        >>> two, one, zero = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0])
        >>> selective_projection(two, one, zero, torch.tensor([0.1]), factor=1.0)
        tensor([1.])
        >>> selective_projection(two, one, zero, torch.tensor([-0.1]), factor=1.0)
        tensor([2.])
    """
    way = at_least_float32(updated) - at_least_float32(initial)
    old_way = at_least_float32(previous) - at_least_float32(initial)
    disagree = (at_least_float32(gradient) * old_way).sum() > 0
    length = way.norm()
    growth = (length - old_way.norm()).clamp_min(0)
    # Nothing grows to length zero: the smallest number only keeps 0 / 0 away.
    share = growth / length.clamp_min(torch.finfo(length.dtype).tiny)
    drawn = way * torch.where(disagree, factor * share, torch.zeros_like(share))
    return (at_least_float32(updated) - drawn).to(updated.dtype)


@final
class SelectiveProjection:
    """Draws weights back towards the source after each step, but only where the gradient does too.

    Selective Projection Decay, for Adam and any other optimiser whose step moves weights against
    their gradient (Tian et al., NeurIPS 2024, https://arxiv.org/abs/2411.01713, formula:
    `selective_projection`). Each parameter that the source has too (same name
    and shape) is a layer of its own, as in the authors' code; a head of another shape is left
    alone. A context manager: on exit the optimiser is as it was. Its state is not changed.

    Args:
        optimizer: of the target's parameters; it needs no weight decay of its own.
        target: the network in training, wrapped or not.
        source: the network that it started from; its weights stay as they are.
        factor: 1 in the paper; 0 leaves every step as it is.

    Raises:
        ValueError: if the factor is negative or not a number.
        ModelError: if the two networks share no parameter.

    Example:
        >>> source, target = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> _ = target.load_state_dict(source.state_dict())
        >>> optimizer = torch.optim.AdamW(target.parameters(), weight_decay=0.0)
        >>> with SelectiveProjection(optimizer, target, source):
        ...     target(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        target: nn.Module,
        source: nn.Module,
        *,
        factor: float = 1.0,
    ) -> None:
        if not 0 <= factor < float("inf"):
            raise ValueError(f"spd: factor must be a number >= 0, got {factor}")
        start = dict(unwrap(source).named_parameters())
        self._pairs = [
            (parameter, start[name])
            for name, parameter in unwrap(target).named_parameters()
            if name in start and start[name].shape == parameter.shape
        ]
        if not self._pairs:
            raise ModelError(
                "SelectiveProjection: the target and the source share no parameter (name and "
                "shape): give two networks of one architecture"
            )
        self._optimizer = optimizer
        self._factor = factor
        self._before: list[Tensor] = []
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        before: Callable[..., None] = self._remember
        after: Callable[..., None] = self._project
        self._handles = [
            self._optimizer.register_step_pre_hook(before),
            self._optimizer.register_step_post_hook(after),
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles, self._before = [], []

    def _remember(self, *_: Any) -> None:
        self._before = [parameter.detach().clone() for parameter, _ in self._pairs]

    @torch.no_grad()
    def _project(self, *_: Any) -> None:
        # Gradients are looked at now: a step may be given a closure, which computes them.
        for (parameter, start), before in zip(self._pairs, self._before, strict=True):
            if parameter.grad is not None:
                left = selective_projection(
                    parameter,
                    before,
                    start.to(parameter.device),
                    parameter.grad,
                    factor=self._factor,
                )
                parameter.copy_(left)
        self._before = []


def _project(
    optimizer: Optimizer, target: nn.Module, source: nn.Module, factor: float
) -> TrainingContext:
    """Selective Projection Decay of the steps."""
    return SelectiveProjection(optimizer, target, source, factor=factor)


METHOD = Method(
    name="spd",
    summary="SPD: weights are drawn back where the gradient agrees, after each step",
    paper="https://arxiv.org/abs/2411.01713",
    build_penalties=head_penalties,
    optimizer_context=_project,
    projection_factor=1.0,  # lambda in section 3
    strength_option="projection_factor",
)
