"""The inputs of a network's head, recorded while the network runs."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from delta_transfer.errors import ModelError, match_names
from delta_transfer.features.stages import unwrap
from delta_transfer.features.taps import exclude_from_compile


class HeadInputs:
    """Record the inputs of named modules in the last forward pass of a network.

    A context manager: hooks are set on entry and removed on exit, also after an exception.

    Args:
        model: the network, wrapped or not; not changed.
        names: names of the modules.

    Raises:
        ConfigError: if there is no such module.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> with HeadInputs(net, ["1"]) as heads:
        ...     _ = net(torch.ones(3, 2, 2))
        ...     heads.inputs()["1"].shape
        torch.Size([3, 4])
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        self.model = unwrap(model)
        choices = [name for name, _ in self.model.named_modules() if name]
        self.names = tuple(match_names("head", list(names), choices))
        self._found: dict[str, Any] = {}
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        self._handles = [
            self.model.get_submodule(name).register_forward_pre_hook(self._hook(name))
            for name in self.names
        ]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.clear()

    def inputs(self) -> dict[str, Tensor]:
        """Return name -> input of the module, `[B, F]`.

        Raises:
            RuntimeError: if the network was not called in the context before.
            ModelError: if the input of a module is not rows.
        """
        for name in self.names:
            if name not in self._found:
                raise RuntimeError(
                    f"no forward pass reached {name!r}: call the network inside the `with` block, "
                    "before reading the inputs of its head"
                )
            found = self._found[name]
            if not isinstance(found, Tensor) or found.ndim != 2:
                shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
                raise ModelError(
                    f"the inputs of head {name!r} must be rows [B, F], got {shape}: name the last "
                    "linear layer of the network"
                )
        return dict(self._found)

    def clear(self) -> None:
        """Release the recorded inputs (and the graph that they keep alive)."""
        self._found.clear()

    def _hook(self, name: str) -> Callable[..., Any]:
        own, found = self.model.get_submodule(name), self._found

        def keep(module: nn.Module, inputs: tuple[Any, ...]) -> None:
            if module is own:  # not a copy made in the context
                found[name] = inputs[0]

        return exclude_from_compile(keep)
