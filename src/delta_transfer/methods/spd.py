"""SPD: projects weights back towards the source after steps in the wrong direction."""

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
    """Return weights after a step, projected back towards their initialization.

    With `c = -g . (w - w0)` before the step, `w' - factor r (w' - w0)` where `c < 0`, else `w'`;
    `r = max(0, ||w' - w0|| - ||w - w0||) / ||w' - w0||`: Selective Projection Decay (Tian et al.,
    NeurIPS 2024, https://arxiv.org/abs/2411.01713, section 3). With factor 1 such a step does not
    increase the distance to w0.

    Args:
        updated: the weights w' after the optimiser's step.
        previous: the weights w before it.
        initial: the weights w0 at initialization.
        gradient: the gradient g at w.
        factor: factor of the projection; 0 disables it.

    Returns:
        The projected weights, of the shape and dtype of `updated`.

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
    # Avoids 0 / 0; if the length is zero, so is the growth.
    share = growth / length.clamp_min(torch.finfo(length.dtype).tiny)
    drawn = way * torch.where(disagree, factor * share, torch.zeros_like(share))
    return (at_least_float32(updated) - drawn).to(updated.dtype)


@final
class SelectiveProjection:
    """Project weights back towards the source after each step, where the gradient agrees.

    Selective Projection Decay, for Adam and any other optimiser whose step moves weights against
    their gradient (Tian et al., NeurIPS 2024, https://arxiv.org/abs/2411.01713, formula:
    `selective_projection`). Each parameter that the source has too (same name
    and shape) is projected separately, as in the authors' code; a head of another shape is not
    changed. A context manager: its hooks are removed on exit. The optimiser's state is not changed.

    Args:
        optimizer: the optimiser of the target's parameters; it needs no weight decay.
        target: the network in training, wrapped or not.
        source: the network that it started from; its weights are not changed.
        factor: 1 in the paper; 0 changes nothing.

    Raises:
        ValueError: if the factor is negative, infinite or NaN.
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
                "shape): use two networks of one architecture"
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
        # Gradients are read after the step, because its closure may compute them.
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
    """Return the context of Selective Projection Decay."""
    return SelectiveProjection(optimizer, target, source, factor=factor)


METHOD = Method(
    name="spd",
    summary="SPD: projects weights back after each step, where the gradient agrees",
    paper="https://arxiv.org/abs/2411.01713",
    build_penalties=head_penalties,
    optimizer_context=_project,
    projection_factor=1.0,  # lambda in section 3
    strength_option="projection_factor",
)
