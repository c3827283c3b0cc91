"""What every library of networks gives: a Backbone, ready for a new task."""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from delta_transfer.errors import UserError

# Under which names modules keep the probability of a functional dropout.
_DROPOUT_ATTRIBUTES = (
    "attention_dropout",
    "attn_drop_p",
    "drop_prob",
    "drop_rate",
    "dropout",
    "patch_drop_rate",
)
# Where the name says too little, by class so that no library is imported.
_DROPOUT_ATTRIBUTE_BY_CLASS = {
    "PatchDropout": "prob",
    "PatchDropoutWithIndices": "prob",
    "ResidualDrop": "drop",
    "StochasticDepth": "p",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """How images are prepared for a network.

    Args:
        size: side of the square crop, in pixels.
        crop_pct: the crop's share of the resized image's shorter side.
        mean: per channel, of images in [0, 1].
        std: per channel.
        interpolation: `"bilinear"` or `"bicubic"`.
    """

    size: int
    crop_pct: float
    mean: tuple[float, ...]
    std: tuple[float, ...]
    interpolation: str

    def example(self) -> Tensor:
        """What the network takes, with one sample in it: `[1, 3, S, S]`, all zeros."""
        return torch.zeros(1, 3, self.size, self.size)


class GraphInputs(Protocol):
    """Graphs side by side, as one large graph of which none is joined to another."""

    @property
    def x(self) -> Tensor:
        """What is known of each node, `[R, F]`."""
        ...  # pragma: no cover

    @property
    def edge_index(self) -> Tensor:
        """From which node to which each edge leads, `[2, E]`."""
        ...  # pragma: no cover

    @property
    def edge_attr(self) -> Tensor | None:
        """What is known of each edge, `[E, A]`; None for nothing."""
        ...  # pragma: no cover

    @property
    def groups(self) -> Tensor:
        """The graph of each node, `[R]`, ascending."""
        ...  # pragma: no cover

    def __len__(self) -> int:
        """How many graphs there are."""
        ...  # pragma: no cover

    def __getitem__(self, which: slice, /) -> Self:
        """The graphs of a slice."""
        ...  # pragma: no cover

    def to(self, device: torch.device, /) -> Self:
        """The graphs on a device."""
        ...  # pragma: no cover


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _ExampleGraph:
    """One graph of two nodes that are joined and of which nothing is known; see `GraphInputs`."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    groups: Tensor

    def __len__(self) -> int:
        return 1

    def __getitem__(self, which: slice) -> Self:
        return self

    def to(self, device: torch.device) -> Self:
        """The graph on a device."""
        return dataclasses.replace(
            self,
            x=self.x.to(device),
            edge_index=self.edge_index.to(device),
            edge_attr=None if self.edge_attr is None else self.edge_attr.to(device),
            groups=self.groups.to(device),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """What is known of the nodes of the graphs that a network is given.

    Args:
        node_features: `"atoms"`, a node's atomic number - 1 and chirality, with a bond's type and
            direction for each edge, as integers ([Hu et al.
            2020](https://arxiv.org/abs/1905.12265)); or `"numbers"`, columns of floats.
        num_node_features: how many of them a node has.
    """

    node_features: Literal["atoms", "numbers"] = "atoms"
    num_node_features: int = 2

    @staticmethod
    def from_node_features(x: Tensor) -> "GraphSpec":
        """What node features `[R, F]` are: numbers if they are floats, else atoms.

        Example:
            >>> GraphSpec.from_node_features(torch.zeros(4, 3))
            GraphSpec(node_features='numbers', columns=3)
        """
        numbers = x.is_floating_point()
        return GraphSpec(
            node_features="numbers" if numbers else "atoms", num_node_features=x.shape[1]
        )

    def example(self) -> GraphInputs:
        """What the network takes, with one sample in it: a graph of two nodes, all zeros."""
        atoms = self.node_features == "atoms"
        return _ExampleGraph(
            x=torch.zeros(2, self.num_node_features, dtype=torch.long if atoms else torch.float32),
            edge_index=torch.tensor([[0, 1], [1, 0]]),
            edge_attr=torch.zeros(2, 2, dtype=torch.long) if atoms else None,
            groups=torch.zeros(2, dtype=torch.long),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A pretrained network with a fresh head.

    Args:
        module: the network; its head is a new `nn.Linear` with the task's outputs.
        head: the name of the head.
        input_spec: how images are prepared, or what the graphs are.
        architecture: the name by which `timm.create_model` makes it, `torchvision/NAME`, the name
            of a network for graphs, or None for a module that was given in Python.
        model_args: what else `timm.create_model` needs; of networks for graphs the power of their
            `Pool`, if it is not 1.
        notes: sentences worth telling the user, such as what a file of weights lacked.
        classifier: what the head was in pretraining, with the source's classes as outputs; None
            where the network brings none (one given in Python, or a file of weights).
    """

    module: nn.Module
    head: str
    input_spec: InputSpec | GraphSpec
    architecture: str | None
    model_args: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    classifier: nn.Linear | None = None


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Puts a module in the place of another one, by name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def replace_head(model: nn.Module, name: str, *, num_outputs: int) -> None:
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


def disable_dropout(model: nn.Module) -> None:
    """Sets dropout and stochastic depth to zero: noise in the features is no distance."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        own = _DROPOUT_ATTRIBUTE_BY_CLASS.get(type(module).__name__)
        for name in _DROPOUT_ATTRIBUTES if own is None else (*_DROPOUT_ATTRIBUTES, own):
            rate = vars(module).get(name)
            if isinstance(rate, int | float) and not isinstance(rate, bool):
                setattr(module, name, 0.0)


def blank_images(model: nn.Module, size: int, *, count: int = 1) -> Tensor:
    """Images `[count, 3, size, size]` of zeros, on the device and of the dtype of a network."""
    like = next(model.parameters(), torch.zeros(()))
    return torch.zeros(count, 3, size, size, device=like.device, dtype=like.dtype)


def check_image_size(module: nn.Module, name: str, size: int) -> None:
    """Leaves a network in train mode, once it has shown that it takes images of a size.

    Raises:
        UserError: if it does not.
    """
    module.eval()
    try:
        with torch.no_grad():
            module(blank_images(module, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model {name!r} cannot take images of {size} pixels "
            f"({short_error_message(error)}): give another "
            "--image-size, or leave it out for the network's own"
        ) from error
    module.train()


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Name -> parameter or buffer, those of `state_dict()`; what it has beside tensors is left out.

    The tensors are the network's own: what is written to them is written to the network.
    """
    state = model.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def short_error_message(error: BaseException) -> str:
    """What an error says, in one line that is not long."""
    return textwrap.shorten(str(error), 200, placeholder=" ...") or type(error).__name__
