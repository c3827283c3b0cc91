"""SPD: after a step of the optimiser, weights that went the wrong way are drawn back."""

from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor, nn

from delta_transfer.errors import UserError
from delta_transfer.features.stages import unwrap
from delta_transfer.functional_methods import selective_projection


@final
class SelectiveProjection:
    """Draws weights back towards the source after each step, but only where the gradient does too.

    Selective Projection Decay, for Adam and any other optimiser whose step moves weights against
    their gradient (Tian et al., NeurIPS 2024, https://arxiv.org/abs/2411.01713, formula:
    `functional_methods.selective_projection`). Each parameter that the source has too (same name
    and shape) is a layer of its own, as in the authors' code; a head of another shape is left
    alone. A context manager: on exit the optimiser is as it was. Its state is not changed.

    Args:
        optimizer: of the target's parameters; it needs no weight decay of its own.
        target: the network in training, wrapped or not.
        source: the network that it started from; its weights stay as they are.
        strength: 1 is where the paper starts from; 0 leaves every step as it is.

    Raises:
        ValueError: if the strength is negative or no number.
        UserError: if the two networks share no parameter.

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
        strength: float = 1.0,
    ) -> None:
        if not 0 <= strength < float("inf"):
            raise ValueError(f"spd: strength must be a number >= 0, got {strength}")
        start = dict(unwrap(source).named_parameters())
        self._pairs = [
            (parameter, start[name])
            for name, parameter in unwrap(target).named_parameters()
            if name in start and start[name].shape == parameter.shape
        ]
        if not self._pairs:
            raise UserError(
                "SelectiveProjection: the target and the source share no parameter (name and "
                "shape): give two networks of one architecture"
            )
        self._optimizer = optimizer
        self._strength = strength
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
                    strength=self._strength,
                )
                parameter.copy_(left)
        self._before = []
