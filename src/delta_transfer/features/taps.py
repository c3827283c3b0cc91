"""The outputs of named modules of any network, recorded while it runs."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from delta_transfer.errors import ConfigError, ModelError, match_names
from delta_transfer.features.stages import (
    auto_taps,
    find_channel_dim,
    input_image_size,
    output_module,
    unwrap,
)
from delta_transfer.functional import flatten_positions

Edit = Callable[[str, Tensor], Tensor]


def exclude_from_compile(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that calls `hook` and is left out of compiled graphs.

    Hooks write to Python state, which a compiled graph must not capture.
    """

    # Decided at each call: the compiler may be loaded after the hook was set, and loading it here
    # would cost seconds where nothing is compiled. A function, as copies of a network share it; a
    # bound method would be copied together with its object.
    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(hook)(*args)  # type: ignore[no-untyped-call]
        return hook(*args)

    return call


def _version(tensor: Tensor) -> int | None:
    """Return how often a tensor was changed in place; None for inference tensors."""
    return None if tensor.is_inference() else tensor._version


class _StopForward(Exception):
    """Ends a forward pass early: every tap has been recorded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ForwardPass:
    """The current forward pass of the network.

    Args:
        image_size: height and width of the inputs.
        grad_enabled: it has gradients.
    """

    image_size: tuple[int, int]
    grad_enabled: bool


class Taps:
    """Record the outputs of named modules during each forward pass of a network.

    A context manager: hooks are removed on exit, also after an exception. Recording
    starts over at each forward pass of the (unwrapped) network; what happens outside one, such as
    the recomputation of checkpointed activations, is not recorded. A tapped output that the network
    later changes in place (`ReLU(inplace=True)`, `+=`) is noticed in the first pass; from then on
    the network receives a copy.

    Args:
        model: the network, wrapped (DDP, `torch.compile`, Fabric) or not. Enter the context before
            the first call of a compiled network: hooks set later are not seen by it.
        names: module names, or glob patterns; `"auto"` chooses them (`auto_taps`).
        edit: called as `edit(name, output)` on each tapped output; what it returns is recorded and
            handed on to the network in its place.

    Raises:
        ModelError: if a name selects no module; near matches are listed.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=True))
        >>> with Taps(net, ["0"]) as taps:
        ...     _ = net(torch.randn(2, 3, 16, 16))
        >>> taps.outputs()["0"].shape, taps.channel_dims
        (torch.Size([2, 8, 14, 14]), {'0': 1})
    """

    def __init__(
        self, model: nn.Module, names: str | Sequence[str] = "auto", *, edit: Edit | None = None
    ) -> None:
        self.model = unwrap(model)
        self.names = resolve_taps(self.model, names)
        self.channel_dims: dict[str, int] = {}
        self._edit = edit
        self._modules = {name: output_module(self.model.get_submodule(name)) for name in self.names}
        self._recorded: dict[str, Tensor] = {}
        self._versions: dict[str, int | None] = {}
        # Taps whose output is handed on as a copy: all of them, until the first pass has shown
        # which ones the network changes in place.
        self._copied = set(self.names)
        self._handed: dict[str, Tensor] = {}
        self._pass: _ForwardPass | None = None
        self._stop_early = False
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        if self._handles:
            raise RuntimeError("these Taps are recording already; make another Taps")
        for name, module in self._modules.items():
            hook = exclude_from_compile(self._hook(name))
            self._handles.append(module.register_forward_hook(hook))
        before, after = exclude_from_compile(self._before), exclude_from_compile(self._after)
        self._handles.append(self.model.register_forward_pre_hook(before))
        self._handles.append(self.model.register_forward_hook(after, always_call=True))
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._pass = None

    def outputs(self) -> dict[str, Tensor]:
        """Return the raw outputs of the last forward pass, in the order of `names`.

        Raises:
            RuntimeError: if there was no forward pass, a tap was not called in it, or an output was
                changed in place by a pass that did not do so at first.
        """
        missing = [name for name in self.names if name not in self._recorded]
        if missing == list(self.names):
            raise RuntimeError(
                "no forward pass was recorded: call the network inside the `with` block, before "
                "reading its taps (a compiled network must be called for the first time in there)"
            )
        if missing:
            raise RuntimeError(
                f"tapped modules were not called in the last forward pass: {', '.join(missing)}; "
                "tap modules that every forward pass uses"
            )
        for name, version in self._versions.items():
            if _version(self._recorded[name]) != version:
                self._copied.add(name)
                raise RuntimeError(
                    f"the output of tap {name!r} was changed in place in this forward pass but not "
                    "in the first one: run the forward pass again (a copy is kept from now on); if "
                    "that does not help, the network changes it by another name: tap the module "
                    "that comes before"
                )
        return {name: self._recorded[name] for name in self.names}

    def features(self) -> dict[str, Tensor]:
        """Return the outputs as `[B, S, C]` (samples, positions, channels), or rows `[R, C]`.

        Raises:
            RuntimeError: as `outputs` does.
        """
        outputs = self.outputs()
        return {tap: flatten_positions(out, self.channel_dims[tap]) for tap, out in outputs.items()}

    def record(self, inputs: Any) -> dict[str, Tensor]:
        """Run the unwrapped network up to its last tap and return the raw outputs."""
        self._stop_early = True
        try:
            self.model(inputs)
        except _StopForward:
            pass
        finally:
            self._stop_early = False
        return self.outputs()

    def clear(self) -> None:
        """Release the recorded outputs (and the graph that they keep alive)."""
        self._recorded.clear()
        self._versions.clear()
        self._handed.clear()

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if module is not self.model:  # a copy made in the context (such as a running average)
            return
        self.clear()
        self._pass = _ForwardPass(
            image_size=input_image_size(inputs), grad_enabled=torch.is_grad_enabled()
        )

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module is not self.model:
            return
        self._pass = None
        # A pass that was cut short by an error has not shown what it would have changed.
        stopped = self._stop_early and len(self._recorded) == len(self.names)
        if output is not None or stopped:
            unchanged = {name for name, handed in self._handed.items() if _version(handed) == 0}
            self._copied -= unchanged
        self._handed.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            if self._pass is None:
                return None
            self._check(name, output, self._pass)
            if name not in self.channel_dims:
                tapped = self.model.get_submodule(name)
                dim = find_channel_dim(tapped, output, image_size=self._pass.image_size)
                self.channel_dims[name] = dim
            recorded = output if self._edit is None else self._edit(name, output)
            self._recorded[name] = recorded
            self._versions[name] = _version(recorded)
            if self._stop_early and len(self._recorded) == len(self.names):
                raise _StopForward
            if name not in self._copied:
                return recorded
            self._handed[name] = recorded.clone()
            return self._handed[name]

        return hook

    def _check(self, name: str, output: Any, running: _ForwardPass) -> None:
        if not isinstance(output, Tensor):
            raise ModelError(
                f"tap {name!r} returns a {type(output).__name__}, not a tensor: tap a module "
                "inside it that returns a single tensor"
            )
        if output.ndim < 2:
            raise ModelError(
                f"tap {name!r} returns a tensor of shape {tuple(output.shape)}: a tap needs "
                "samples and channels, [B, C, H, W], [B, H, W, C], [B, N, C] or [R, C]"
            )
        if name in self._recorded:
            raise ModelError(
                f"tapped module {name!r} is called twice in one forward pass, so that its output "
                "is ambiguous: tap the block around it, or one that is called once"
            )
        if running.grad_enabled and not torch.is_grad_enabled():
            raise ModelError(
                f"tap {name!r} runs without gradients inside a forward pass that has them "
                "(reentrant activation checkpointing, or a no_grad block): checkpoint with "
                "use_reentrant=False, or tap a module outside of it"
            )


def resolve_taps(model: nn.Module, names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the module names that `names` select; `"auto"` is `auto_taps(model)`."""
    model = unwrap(model)
    patterns = [names] if isinstance(names, str) else list(names)
    if patterns == ["auto"]:
        return auto_taps(model)
    if not patterns:
        raise ConfigError("no taps: pass module names, glob patterns or 'auto'")
    choices = [name for name, _ in model.named_modules() if name]
    return tuple(match_names("tap", patterns, choices))
