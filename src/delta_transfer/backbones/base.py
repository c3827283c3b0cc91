"""What every library of networks gives: a Backbone, ready for a new task."""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from delta_transfer.errors import UserError

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
        architecture: the name by which `timm.create_model` makes it, `torchvision/NAME`, or None
            for a module that was given in Python.
        model_args: what else `timm.create_model` needs.
        notes: sentences worth telling the user, such as what a file of weights lacked.
    """

    module: nn.Module
    head: str
    input: InputSpec
    architecture: str | None
    model_args: Mapping[str, Any]
    notes: tuple[str, ...] = ()


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another one, by name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def fresh_head(model: nn.Module, name: str, *, num_outputs: int) -> None:
    """Puts a new linear layer, on the same device and of the same dtype, in a linear head's place.

    Args:
        model: the network; changed in place.
        name: of its head, an `nn.Linear`.
        num_outputs: of the new one, which has a bias.
    """
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    device, dtype = old.weight.device, old.weight.dtype
    head = nn.Linear(old.in_features, num_outputs, device=device, dtype=dtype)
    replace_module(model, name, head)


def turn_off_dropout(model: nn.Module) -> None:
    """Sets dropout and stochastic depth to zero: noise in the features is no distance."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        elif isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
        elif type(module).__name__ in _STOCHASTIC_DEPTH:
            setattr(module, _STOCHASTIC_DEPTH[type(module).__name__], 0.0)


def blank_pictures(model: nn.Module, size: int, *, count: int = 1) -> Tensor:
    """Pictures `[count, 3, size, size]` of zeros, on the device and of the dtype of a network."""
    like = next(model.parameters(), torch.zeros(()))
    return torch.zeros(count, 3, size, size, device=like.device, dtype=like.dtype)


def try_size(module: nn.Module, name: str, size: int) -> None:
    """Leaves a network in train mode, once it has shown that it takes pictures of a size.

    Raises:
        UserError: if it does not.
    """
    module.eval()
    try:
        with torch.no_grad():
            module(blank_pictures(module, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model {name!r} cannot take pictures of {size} pixels ({brief(error)}): give another "
            "--image-size, or leave it out for the network's own"
        ) from error
    module.train()


def own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or buffer, those of `state_dict()`; what it has beside tensors is left out.

    The tensors are the network's own: what is written to them is written to the network.
    """
    state = model.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def tensors_in_order(
    state: Mapping[str, Tensor], model: nn.Module, *, but: str
) -> dict[str, Tensor]:
    """A checkpoint's tensors under the names of a model that has them in the same order.

    Args:
        state: the checkpoint, with a head of any number of outputs or without one.
        model: the model.
        but: the name of the head, which is left out.

    Raises:
        ValueError: if number or shapes differ.
    """
    own = own_tensors(model)
    names = list(own)
    if len(names) != len(state):
        names = [name for name in own if not name.startswith(f"{but}.")]
    if len(names) != len(state):
        raise ValueError(f"the checkpoint has {len(state)} tensors, the model has {len(own)}")
    found = dict(zip(names, state.values(), strict=True))
    for name, tensor in found.items():
        head = name.startswith(f"{but}.")
        wanted = own[name]
        # Heads may differ in their outputs, not in what they see.
        same = tensor.ndim == wanted.ndim and tensor.shape[head:] == wanted.shape[head:]
        if not same or tensor.is_floating_point() != wanted.is_floating_point():
            raise ValueError(
                f"{name}: {tuple(tensor.shape)} in the checkpoint, {tuple(wanted.shape)} in the "
                "model"
            )
    return {name: tensor for name, tensor in found.items() if not name.startswith(f"{but}.")}


def brief(error: BaseException) -> str:
    """What an error says, in one line that is not long."""
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
