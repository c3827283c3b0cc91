"""Recording of the outputs of named modules during forward passes."""

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
    """Return a function that calls `hook` outside of compiled graphs.

    Hooks write to Python state, which a compiled graph must not capture.
    """

    # Checked at each call: the compiler may be loaded after the hook is set, and loading it here
    # would take seconds even if nothing is compiled. A function, so that copies of a network share
    # it; a bound method would be copied together with its object.
    def call(*args: Any) -> Any:
        if torch.compiler.is_compiling():
            return torch.compiler.disable(hook)(*args)  # type: ignore[no-untyped-call]
        return hook(*args)

    return call


def _version(tensor: Tensor) -> int | None:
    """Return the number of in-place changes of a tensor; None for inference tensors."""
    return None if tensor.is_inference() else tensor._version


class _StopForward(Exception):
    """Raised to end a forward pass once every tap has been recorded."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _ForwardPass:
    """The current forward pass of the network.

    Args:
        image_size: height and width of the inputs.
        grad_enabled: True if gradients are enabled.
    """

    image_size: tuple[int, int]
    grad_enabled: bool


class Taps:
    """Record the outputs of named modules during each forward pass of a network.

    A context manager: hooks are removed on exit, also after an exception. Each forward pass of the
    (unwrapped) network replaces the recorded outputs; modules called outside of one, such as in
    the recomputation of checkpointed activations, are not recorded. If the network changes a tapped
    output in place (`ReLU(inplace=True)`, `+=`), the first pass detects it, and the network
    receives a copy from then on.

    Args:
        model: the network, wrapped (DDP, `torch.compile`, Fabric) or not. Enter the context before
            the first call of a compiled network: hooks set later have no effect on it.
        names: module names or glob patterns; `"auto"` selects them (`auto_taps`).
        edit: called as `edit(name, output)` on each tapped output; its result is recorded and
            passed to the network instead of the output.

    Raises:
        ConfigError: if a name or pattern selects no module, or there are no names.
        ModelError: if `"auto"` finds no taps.

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
        # Taps whose output is passed on as a copy: all of them, until the first pass has shown
        # which ones the network changes in place.
        self._copied = set(self.names)
        self._handed: dict[str, Tensor] = {}
        self._pass: _ForwardPass | None = None
        self._stop_early = False
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        if self._handles:
            raise RuntimeError("these Taps are recording already: create another Taps")
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
                changed in place that the first pass did not change.
        """
        missing = [name for name in self.names if name not in self._recorded]
        if missing == list(self.names):
            raise RuntimeError(
                "no forward pass was recorded: call the network inside the `with` block, before "
                "reading its taps (a compiled network must be called for the first time inside it)"
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
                    "in the first one: run the forward pass again (the network now gets a copy); "
                    "if that fails, the network changes its memory elsewhere: tap an earlier module"
                )
        return {name: self._recorded[name] for name in self.names}

    def features(self) -> dict[str, Tensor]:
        """Return the outputs as `[B, S, C]` (samples, positions, channels), or rows `[R, C]`.

        Raises:
            RuntimeError: in the same cases as `outputs`.
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
        """Release the recorded outputs and their autograd graph."""
        self._recorded.clear()
        self._versions.clear()
        self._handed.clear()

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if module is not self.model:  # a copy made in the context, such as a running average
            return
        self.clear()
        self._pass = _ForwardPass(
            image_size=input_image_size(inputs), grad_enabled=torch.is_grad_enabled()
        )

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module is not self.model:
            return
        self._pass = None
        # A pass that an error interrupted does not show which outputs the network changes.
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
                "is ambiguous: tap the block around it, or a module that is called once"
            )
        if running.grad_enabled and not torch.is_grad_enabled():
            raise ModelError(
                f"tap {name!r} runs without gradients inside a forward pass that has them "
                "(reentrant activation checkpointing, or a no_grad block): checkpoint with "
                "use_reentrant=False, or tap a module outside of it"
            )


def resolve_taps(model: nn.Module, names: str | Sequence[str]) -> tuple[str, ...]:
    """Return the module names that `names` select; `"auto"` is `auto_taps(model)`.

    Raises:
        ConfigError: if a name or pattern selects no module, or there are no names.
        ModelError: if `"auto"` finds no taps.
    """
    model = unwrap(model)
    patterns = [names] if isinstance(names, str) else list(names)
    if patterns == ["auto"]:
        return auto_taps(model)
    if not patterns:
        raise ConfigError("no taps: pass module names, glob patterns or 'auto'")
    choices = [name for name, _ in model.named_modules() if name]
    return tuple(match_names("tap", patterns, choices))
