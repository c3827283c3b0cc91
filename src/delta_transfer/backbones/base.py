"""The Backbone that every library's loader returns, its input specs, and helpers on modules."""

import dataclasses
import textwrap
from collections.abc import Mapping
from typing import Any, Literal, Protocol, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from delta_transfer.errors import ConfigError, ModelError

# Attributes of modules with the probability of a functional dropout.
_DROPOUT_ATTRIBUTES = (
    "attention_dropout",
    "attn_drop_p",
    "drop_prob",
    "drop_rate",
    "dropout",
    "patch_drop_rate",
)
# Attributes with ambiguous names, by class name so that no library is imported.
_DROPOUT_ATTRIBUTE_BY_CLASS = {
    "PatchDropout": "prob",
    "PatchDropoutWithIndices": "prob",
    "ResidualDrop": "drop",
    "StochasticDepth": "p",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class InputSpec:
    """The images that a network expects.

    Args:
        size: side of the square crop, in pixels.
        crop_pct: side of the crop divided by the shorter side of the resized image.
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
        """Return a batch of one sample, `[1, 3, S, S]` of zeros."""
        return torch.zeros(1, 3, self.size, self.size)


class GraphInputs(Protocol):
    """A batch of graphs, as one large graph of separate components."""

    @property
    def x(self) -> Tensor:
        """Node features, `[R, F]`."""
        ...  # pragma: no cover

    @property
    def edge_index(self) -> Tensor:
        """Source and target node of each edge, `[2, E]`."""
        ...  # pragma: no cover

    @property
    def edge_attr(self) -> Tensor | None:
        """Edge features, `[E, A]`, or None."""
        ...  # pragma: no cover

    @property
    def groups(self) -> Tensor:
        """Index of each node's graph, `[R]`, ascending."""
        ...  # pragma: no cover

    def __len__(self) -> int:
        """Return the number of graphs."""
        ...  # pragma: no cover

    def __getitem__(self, which: slice, /) -> Self:
        """Return the graphs of a slice."""
        ...  # pragma: no cover

    def to(self, device: torch.device, /) -> Self:
        """Return the graphs on a device."""
        ...  # pragma: no cover


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class _ExampleGraph:
    """A graph of two connected nodes with features of zero; see `GraphInputs`."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    groups: Tensor

    def __len__(self) -> int:
        return 1

    def __getitem__(self, which: slice) -> Self:
        return self

    def to(self, device: torch.device) -> Self:
        """Return the graph on a device."""
        tensors = {name: value for name, value in vars(self).items() if value is not None}
        return dataclasses.replace(self, **{n: tensor.to(device) for n, tensor in tensors.items()})


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphSpec:
    """The node features that a network for graphs expects.

    Args:
        node_features: `"atoms"` for a node's atomic number - 1 and chirality, with an edge's bond
            type and direction, as integers ([Hu et al.
            2020](https://arxiv.org/abs/1905.12265)); or `"numbers"` for floats.
        num_node_features: features of a node.
    """

    node_features: Literal["atoms", "numbers"] = "atoms"
    num_node_features: int = 2

    @staticmethod
    def from_node_features(x: Tensor) -> "GraphSpec":
        """Return the spec of node features `[R, F]`: numbers if they are floats, else atoms.

        Example:
            >>> GraphSpec.from_node_features(torch.zeros(4, 3))
            GraphSpec(node_features='numbers', num_node_features=3)
        """
        kind: Literal["atoms", "numbers"] = "numbers" if x.is_floating_point() else "atoms"
        return GraphSpec(node_features=kind, num_node_features=x.shape[1])

    def example(self) -> GraphInputs:
        """Return a batch of one graph of two nodes with features of zero."""
        atoms = self.node_features == "atoms"
        return _ExampleGraph(
            x=torch.zeros(2, self.num_node_features, dtype=torch.long if atoms else torch.float32),
            edge_index=torch.tensor([[0, 1], [1, 0]]),
            edge_attr=torch.zeros(2, 2, dtype=torch.long) if atoms else None,
            groups=torch.zeros(2, dtype=torch.long),
        )


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Backbone:
    """A pretrained network with a new head.

    Args:
        module: the network; its head is a new `nn.Linear` with the task's outputs.
        head: name of the head.
        input_spec: the images or graphs that it expects.
        architecture: its name for `timm.create_model`, `torchvision/NAME`, the name of a network
            for graphs, or None for a module passed in Python.
        model_args: further arguments of `timm.create_model`; for networks for graphs the power of
            their `Pool`, if it is not 1.
        notes: messages for the user, such as tensors missing in a file of weights.
        classifier: the head of pretraining, with the source's classes as outputs; None if unknown
            (a module passed in Python, or a file of weights).
    """

    module: nn.Module
    head: str
    input_spec: InputSpec | GraphSpec
    architecture: str | None
    model_args: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    classifier: nn.Linear | None = None


def replace_module(model: nn.Module, name: str, module: nn.Module) -> None:
    """Replace a submodule, by name."""
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def replace_head(model: nn.Module, name: str, *, num_outputs: int) -> None:
    """Replace a linear head by a new one with a bias, on the same device and of the same dtype.

    Args:
        model: the network; changed in place.
        name: name of its head, an `nn.Linear`.
        num_outputs: outputs of the new head.
    """
    old = model.get_submodule(name)
    assert isinstance(old, nn.Linear)
    device, dtype = old.weight.device, old.weight.dtype
    head = nn.Linear(old.in_features, num_outputs, device=device, dtype=dtype)
    replace_module(model, name, head)


def disable_dropout(model: nn.Module) -> None:
    """Set dropout and stochastic depth to zero: feature distances must not measure noise."""
    for module in model.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        own = _DROPOUT_ATTRIBUTE_BY_CLASS.get(type(module).__name__)
        for name in _DROPOUT_ATTRIBUTES if own is None else (*_DROPOUT_ATTRIBUTES, own):
            rate = vars(module).get(name)
            if isinstance(rate, int | float) and not isinstance(rate, bool):
                setattr(module, name, 0.0)


def blank_images(model: nn.Module, size: int, *, count: int = 1) -> Tensor:
    """Return images `[count, 3, size, size]` of zeros, with a network's device and dtype."""
    like = next(model.parameters(), torch.zeros(()))
    return torch.zeros(count, 3, size, size, device=like.device, dtype=like.dtype)


def check_image_size(module: nn.Module, name: str, size: int) -> None:
    """Check that a network accepts images of a size; leave it in train mode.

    Raises:
        ConfigError: if it does not.
    """
    module.eval()
    try:
        with torch.no_grad():
            module(blank_images(module, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise image_size_error(name, size, error) from error
    module.train()


def image_size_error(name: str, size: int, error: BaseException) -> ConfigError:
    """Return the error for a network that does not accept images of a size."""
    return ConfigError(
        f"model {name!r} does not accept images of {size} pixels ({short_error_message(error)}): "
        "use another `image_size`, or leave it out for the network's own"
    )


def channels_error(name: str, channels: int) -> ModelError:
    """Return the error for a network that is not for RGB images."""
    return ModelError(
        f"model {name!r} expects images with {channels} channels: use one for RGB images, which "
        "have 3"
    )


def state_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Return the tensors of `state_dict()` by name, without other values.

    They are the network's own: writing to them changes the network.
    """
    state = model.state_dict()
    return {name: value for name, value in state.items() if isinstance(value, Tensor)}


def short_error_message(error: BaseException) -> str:
    """Return an error's message in one short line."""
    text = str(error).replace("`", "'")  # backticks mark arguments of ours, see `as_flags`
    return textwrap.shorten(text, 200, placeholder=" ...") or type(error).__name__
