"""What every library of networks gives: a Backbone, ready for a new task."""

import dataclasses
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

# Stochastic depth, by class name so that no library is imported: name -> its probability.
_STOCHASTIC_DEPTH = {"DropPath": "drop_prob", "StochasticDepth": "p"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How pictures are prepared for a network.

    Args:
        size: side of the square crop, in pixels.
        crop_pct: the crop's share of the resized picture's shorter side.
        mean: per channel, of pictures in [0, 1].
        std: per channel.
        interpolation: `"bilinear"` or `"bicubic"`.
    """

    size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A pretrained network with a fresh head.

    Args:
        module: the network; its head is a new `nn.Linear` with the task's outputs.
        head: the name of the head.
        input: how pictures are prepared.
        architecture: the name by which `timm.create_model` makes it.
        model_args: what else `timm.create_model` needs.
    """

    module: nn.Module
    head: str
    input: InputSpec
    architecture: str
    model_args: dict[str, int]


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another one, by name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def turn_off_dropout(model: nn.Module) -> None:
    """Sets dropout and stochastic depth to zero: noise in the features is no distance."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        elif type(module).__name__ in _STOCHASTIC_DEPTH:
            setattr(module, _STOCHASTIC_DEPTH[type(module).__name__], 0.0)


def tensors_in_order(
    state: Mapping[str, Tensor], model: nn.Module, *, but: str
) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of a model that has them in the same order.

    Args:
        state: the checkpoint, with a head of any number of outputs.
        model: the model.
        but: the name of the head, which is left out.

    Raises:
        ValueError: if number or shapes differ.
    """
    own = model.state_dict()
    if len(own) != len(state):
        raise ValueError(f"the checkpoint has {len(state)} tensors, the model has {len(own)}")
    named = {
        name: tensor
        for name, tensor in zip(own, state.values(), strict=True)
        if not name.startswith(f"{but}.")
    }
    for name, tensor in named.items():
        if tensor.shape != own[name].shape:
            raise ValueError(
                f"{name}: {tuple(tensor.shape)} in the checkpoint, {tuple(own[name].shape)} in the "
                "model"
            )
    return named
