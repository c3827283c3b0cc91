"""StochNorm: batch norm that uses its running statistics at random during training."""

from collections.abc import Callable
from typing import Any, Self, final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from delta_transfer.errors import ConfigError, ModelError
from delta_transfer.features.stages import unwrap
from delta_transfer.features.taps import exclude_from_compile
from delta_transfer.methods.base import WEIGHT_DECAY, Method, TrainingContext


@final
class StochasticNorm:
    """Batch norm whose channels use running statistics at random, in train mode.

    `s F_running + (1 - s) F_batch` with `s` sampled for each channel and forward pass, 1 with
    probability p (StochNorm, Kou et al., NeurIPS 2020,
    https://proceedings.neurips.cc/paper/2020/hash/bc573864331a9e42e4511de6f678aa83-Abstract.html).
    Running statistics are updated as usual, before they are used. In eval mode, and frozen, batch
    norm is unchanged. A context manager: hooks are registered on entry and removed on exit; the
    network's modules, parameters and state dict are those of the plain network throughout.

    Args:
        network: the network in training, wrapped or not, with batch norm in train mode:
            with a regularizer, use `Regularizer(..., batch_norm="train")`.
        probability: 0 is plain batch norm in train mode, 1 uses running statistics only; 0.5 in
            the paper.
        generator: a random generator on the CPU; None for the global one.

    Raises:
        ConfigError: if the probability is not from 0 to 1.
        ModelError: if the network has no batch norm with running statistics.

    Example:
        >>> net = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
        >>> with StochasticNorm(net, probability=0.5):
        ...     net(torch.randn(8, 2)).shape
        torch.Size([8, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        probability: float = 0.5,
        generator: torch.Generator | None = None,
    ) -> None:
        _check_probability("probability", probability)
        norms = [m for m in unwrap(network).modules() if isinstance(m, _BatchNorm)]
        self._norms = [norm for norm in norms if norm.running_mean is not None]
        if not self._norms:
            raise ModelError(
                f"stochnorm needs a network with batch norm, {type(unwrap(network)).__name__} has "
                "none with running statistics: choose another method or network, such as resnet50"
            )
        self._probability = probability
        self._generator = generator
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [norm.register_forward_hook(self._hook(norm)) for norm in self._norms]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _hook(self, own: _BatchNorm) -> Callable[..., Any]:
        def mix(norm: _BatchNorm, inputs: tuple[Tensor, ...], batch: Tensor) -> Tensor | None:
            if norm is not own or not norm.training:
                return None
            draw = torch.rand(batch.shape[1], generator=self._generator) < self._probability
            taken = draw.to(batch.device).view(-1, *[1] * (batch.ndim - 2))
            return torch.where(taken, _with_running_statistics(norm, inputs), batch)

        return exclude_from_compile(mix)


def _with_running_statistics(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> Tensor:
    """Return the output of the layer (and of an activation in it) in eval mode."""
    mean, variance = norm.running_mean, norm.running_var
    assert mean is not None
    assert variance is not None
    # Copies, because the next forward pass may change the statistics before this backward pass.
    norm.running_mean, norm.running_var, norm.training = mean.clone(), variance.clone(), False
    try:
        output: Tensor = norm.forward(*inputs)  # not the module itself, whose hooks would run again
    finally:
        norm.running_mean, norm.running_var, norm.training = mean, variance, True
    return output


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"stochnorm: `{name}` is a probability, from 0 to 1; got {value:g}")


def _stochastic_norm(
    network: nn.Module, probability: float, generator: torch.Generator
) -> TrainingContext:
    """Return the context of StochNorm."""
    _check_probability("strength", probability)  # the option of a run that sets it
    return StochasticNorm(network, probability=probability, generator=generator)


METHOD = Method(
    name="stochnorm",
    summary="StochNorm: batch norm that uses its running statistics at random",
    paper=(
        "https://proceedings.neurips.cc/paper/2020/hash/"
        "bc573864331a9e42e4511de6f678aa83-Abstract.html"
    ),
    head_init="random",
    probability=0.5,  # p of the paper
    strength_option="probability",
    weight_decay=WEIGHT_DECAY,
    batch_norm="train",
    network_context=_stochastic_norm,
)
