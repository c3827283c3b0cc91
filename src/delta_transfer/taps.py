"""The outputs of named modules of any network, recorded while it runs."""

import dataclasses
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from delta_transfer.borrow import evaluating
from delta_transfer.errors import UserError, match_names

# Wrapper class -> the attribute that holds the network; by name, so that nothing is imported.
_WRAPPERS = {
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "FullyShardedDataParallel": "module",
    "AveragedModel": "module",
    "OptimizedModule": "_orig_mod",
    "_FabricModule": "_original_module",
    "_FabricOptimizedModule": "_orig_mod",
}

Edit = Callable[[str, Tensor], Tensor]


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DDP, FSDP, `torch.compile` and Lightning Fabric wrappers."""
    while type(model).__name__ in _WRAPPERS:
        model = getattr(model, _WRAPPERS[type(model).__name__])
    return model


def producer(module: nn.Module) -> nn.Module:
    """The module whose output is `module`'s output: the last child of a plain Sequential.

    Some networks call a stage's blocks one by one when they checkpoint activations; the last block
    is called in either case.
    """
    while type(module).forward is nn.Sequential.forward and len(module._modules) > 0:
        module = list(module.children())[-1]
    return module


def find_channel_dim(
    module: nn.Module, output: Tensor, *, picture: tuple[int, int] = (1, 1)
) -> int:
    """Where the channels of a module's output are: dimension 1, or the last.

    Of a map's three sizes the two that are not the channels have the picture's height to width.
    Where that does not decide, the channels are as many as the module's last layer with a width
    that fits says; else they are where PyTorch's layers have them (second for maps, last for tokens
    and rows).

    Args:
        module: the module.
        output: what it returned.
        picture: height and width of what the network was given; a square if it is not known.
    """
    last = output.ndim - 1
    if last <= 1:
        return last
    sizes = output.shape
    if last == 3:
        height, width = picture
        second_off = abs(sizes[2] * width - sizes[3] * height)
        last_off = abs(sizes[1] * width - sizes[2] * height)
        if second_off != last_off:
            return 1 if second_off < last_off else last
    for layer in reversed(list(module.modules())):
        fits = [dim for dim in (1, last) if sizes[dim] == _width(layer) and sizes[dim] > 1]
        if len(fits) == 1:
            return fits[0]
    return last if last == 2 else 1


def _width(layer: nn.Module) -> int | None:
    for attribute in ("out_channels", "out_features", "num_features"):
        width = layer.__dict__.get(attribute)
        if isinstance(width, int):
            return width
    shape = layer.__dict__.get("normalized_shape")
    return shape[0] if isinstance(shape, tuple) and len(shape) == 1 else None


def outside_graphs(hook: Callable[..., Any]) -> Callable[..., Any]:
    """The hook as a plain function that compiled graphs leave out.

    Hooks write to Python state, which a graph must not swallow. Loading the compiler takes seconds:
    where nothing else has done so, nothing is compiled. A plain function is shared by copies of a
    network; a bound method would be copied with all that it holds.
    """
    if "torch._dynamo" in sys.modules:
        return torch.compiler.disable(hook)  # type: ignore[no-any-return, no-untyped-call]
    return lambda *args: hook(*args)


def _version(tensor: Tensor) -> int | None:
    """How often a tensor was changed in place; None for inference tensors, which do not count."""
    return None if tensor.is_inference() else tensor._version


def _picture(inputs: Any) -> tuple[int, int]:
    """Height and width of pictures `[B, C, H, W]`; a square for anything else."""
    first = inputs[0] if inputs else None
    if isinstance(first, Tensor) and first.ndim == 4:
        return first.shape[2], first.shape[3]
    return 1, 1


class _AllRecorded(Exception):
    """Ends a forward pass early: every tap has been recorded."""


class Taps:
    """Records the outputs of named modules during each forward pass of a network.

    A context manager: hooks are set on entry and gone on exit, also after an exception. Recording
    starts anew at each forward pass of the (unwrapped) network; what happens outside one, such as
    the recomputation of checkpointed activations, is not recorded. A tapped output that the network
    later changes in place (`ReLU(inplace=True)`, `+=`) is noticed in the first pass, and from then
    on the network is handed a copy.

    Args:
        model: the network, wrapped (DDP, `torch.compile`, Fabric) or not. Enter the context before
            the first call of a compiled network: hooks set later are not seen by it.
        names: module names, or glob patterns; `"auto"` chooses them (`auto_taps`).
        edit: called as `edit(name, output)` on each tapped output; what it returns is recorded and
            handed on to the network in its place.

    Raises:
        UserError: if a name selects no module; near matches are listed.

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
        self._modules = {name: producer(self.model.get_submodule(name)) for name in self.names}
        self._recorded: dict[str, Tensor] = {}
        self._versions: dict[str, int | None] = {}
        # Taps whose output is handed on as a copy: all of them, until the first pass has shown
        # which ones the network changes in place.
        self._copied = set(self.names)
        self._handed: dict[str, Tensor] = {}
        self._running = False
        self._picture = (1, 1)
        self._grad_enabled = False
        self._stop_early = False
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        if self._handles:
            raise RuntimeError("these Taps are recording already; make another Taps")
        for name, module in self._modules.items():
            hook = outside_graphs(self._hook(name))
            self._handles.append(module.register_forward_hook(hook))
        before, after = outside_graphs(self._before), outside_graphs(self._after)
        self._handles.append(self.model.register_forward_pre_hook(before, prepend=True))
        self._handles.append(self.model.register_forward_hook(after, always_call=True))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._running = False

    def outputs(self) -> dict[str, Tensor]:
        """The recorded outputs of the last forward pass, raw, in the order of `names`.

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

    def record(self, inputs: Any) -> dict[str, Tensor]:
        """Runs the unwrapped network on `inputs`, no further than its last tap; the raw outputs."""
        self._stop_early = True
        try:
            self.model(inputs)
        except _AllRecorded:
            pass
        finally:
            self._stop_early = False
        return self.outputs()

    def clear(self) -> None:
        """Lets go of what was recorded (and of the graph that it keeps alive)."""
        self._recorded.clear()
        self._versions.clear()
        self._handed.clear()

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if module is not self.model:  # a copy made in the context (such as a running average)
            return
        self.clear()
        self._running = True
        self._picture = _picture(inputs)
        self._grad_enabled = torch.is_grad_enabled()

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module is not self.model:
            return
        self._running = False
        # A pass that was cut short by an error has not shown what it would have changed.
        if output is not None or len(self._recorded) == len(self.names):
            unchanged = {name for name, handed in self._handed.items() if _version(handed) == 0}
            self._copied -= unchanged
        self._handed.clear()

    def _hook(self, name: str) -> Callable[[nn.Module, Any, Any], Tensor | None]:
        def hook(module: nn.Module, inputs: Any, output: Any) -> Tensor | None:
            if not self._running:
                return None
            self._check(name, output)
            if name not in self.channel_dims:
                tapped = self.model.get_submodule(name)
                dim = find_channel_dim(tapped, output, picture=self._picture)
                self.channel_dims[name] = dim
            recorded = output if self._edit is None else self._edit(name, output)
            self._recorded[name] = recorded
            self._versions[name] = _version(recorded)
            if self._stop_early and len(self._recorded) == len(self.names):
                raise _AllRecorded
            if name not in self._copied:
                return recorded
            self._handed[name] = recorded.clone()
            return self._handed[name]

        return hook

    def _check(self, name: str, output: Any) -> None:
        if not isinstance(output, Tensor):
            raise UserError(
                f"tap {name!r} returns a {type(output).__name__}, not a tensor: tap a module "
                "inside it that returns a single tensor"
            )
        if output.ndim < 2:
            raise UserError(
                f"tap {name!r} returns a tensor of shape {tuple(output.shape)}: a tap needs "
                "samples and channels, [B, C, H, W], [B, H, W, C], [B, N, C] or [R, C]"
            )
        if name in self._recorded:
            raise UserError(
                f"tapped module {name!r} is called twice in one forward pass, so that its output "
                "is ambiguous: tap the block around it, or one that is called once"
            )
        if self._grad_enabled and not torch.is_grad_enabled():
            raise UserError(
                f"tap {name!r} runs without gradients inside a forward pass that has them "
                "(reentrant activation checkpointing, or a no_grad block): checkpoint with "
                "use_reentrant=False, or tap a module outside of it"
            )


def resolve_taps(model: nn.Module, names: str | Sequence[str]) -> tuple[str, ...]:
    """The module names that `names` stand for; `"auto"` is `auto_taps(model)`."""
    model = unwrap(model)
    if names == "auto":
        return auto_taps(model)
    patterns = [names] if isinstance(names, str) else list(names)
    if not patterns:
        raise UserError("no taps are named: give module names, glob patterns or 'auto'")
    choices = [name for name, _ in model.named_modules() if name]
    return tuple(match_names("tap", patterns, choices))


def auto_taps(model: nn.Module, *, example: Tensor | None = None) -> tuple[str, ...]:
    """The last four stage ends of a network.

    timm networks say where their stages end (`feature_info`); of blocks that all have one
    resolution (plain vision transformers) four are taken, evenly spaced, the last included. In
    other networks one forward pass shows the resolutions, and the outermost module that comes last
    at each of the last four is taken, before pooling.

    Args:
        model: any network.
        example: inputs for the pass, `[B, 3, H, W]`; a 224-pixel picture if None.

    Returns:
        Module names, in the order in which they are called.

    Raises:
        UserError: if nothing fits; it says how to name taps.
    """
    model = unwrap(model)
    stages = _declared_stages(model)
    if not stages:
        stages = _observed_stages(model, example)
    if not stages:
        raise UserError(
            f"no taps found in {type(model).__name__}: name them, "
            "for example taps=['layer3', 'layer4'] (`named_modules()` lists the names)"
        )
    return tuple(stages)


def _evenly(names: Sequence[str], count: int = 4) -> list[str]:
    count = min(count, len(names))
    return [names[len(names) * (i + 1) // count - 1] for i in range(count)]


@dataclasses.dataclass(frozen=True)
class ModuleOutput:
    """A module that can be tapped.

    Args:
        name: its name.
        shape: of its output.
        channel_dim: where the channels are.
    """

    name: str
    shape: tuple[int, ...]
    channel_dim: int

    @property
    def resolution(self) -> tuple[int, ...]:
        """The sizes of all dimensions but samples and channels."""
        return tuple(size for dim, size in enumerate(self.shape) if dim not in (0, self.channel_dim))


def list_modules(model: nn.Module, example: Tensor) -> list[ModuleOutput]:
    """The modules that one forward pass calls once and that give a map or tokens, as they end.

    Pooling layers are left out.

    Raises:
        UserError: if the network does not take the example.
    """
    return _observe(unwrap(model), example)


def _declared_stages(model: nn.Module) -> list[str]:
    info = getattr(model, "feature_info", None)
    if info is None or isinstance(info, (nn.Module, Tensor)):
        return []
    known = {name for name, _ in model.named_modules()}
    entries = [entry for entry in info if entry["module"] in known]
    names = [entry["module"] for entry in entries]
    reductions = {entry["reduction"] for entry in entries}
    return _evenly(names) if len(reductions) == 1 else names[-4:]


def _observed_stages(model: nn.Module, example: Tensor | None) -> list[str]:
    observed = [(output.name, output.resolution) for output in _observe(model, example)]
    calls = [(name, found) for name, found in observed if max(found) > 1]
    resolutions: list[tuple[int, ...]] = []
    # From the outside in, no further than needed: windows and attention maps inside a block have
    # resolutions of their own.
    for depth in sorted({name.count(".") for name, _ in calls}):
        outer = [(name, found) for name, found in calls if name.count(".") <= depth]
        resolutions = list(dict.fromkeys(found for _, found in outer))
        if len(resolutions) >= 4:
            break
        if len(resolutions) <= 2:  # one resolution, perhaps after that of a patch embedding
            last = {name for name, found in outer if found == resolutions[-1]}
            blocks = _repeated_blocks(model, last)
            if len(blocks) >= 4:
                return _evenly(blocks)
    stages = []
    for resolution in resolutions[-4:]:
        names = [name for name, found in calls if found == resolution]
        depth = min(name.count(".") for name in names)
        stages.append([name for name in names if name.count(".") == depth][-1])
    return stages


def _repeated_blocks(model: nn.Module, called: set[str]) -> list[str]:
    """The longest run of sibling modules of one class: the blocks of a transformer."""
    best: list[str] = []
    for parent, module in model.named_modules():
        by_class: dict[type, list[str]] = {}
        for name, child in module.named_children():
            full = f"{parent}.{name}" if parent else name
            if full in called:
                by_class.setdefault(type(child), []).append(full)
        best = max([best, *by_class.values()], key=len)
    return best


def _observe(model: nn.Module, example: Tensor | None) -> list[ModuleOutput]:
    calls: list[ModuleOutput] = []
    example = _example(model) if example is None else example

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.ndim >= 3:
                channel_dim = find_channel_dim(module, output, picture=_picture([example]))
                calls.append(ModuleOutput(name, tuple(output.shape), channel_dim))

        return record

    handles = []
    try:
        for name, module in model.named_modules():
            if name and "pool" not in type(producer(module)).__name__.lower():
                handles.append(module.register_forward_hook(hook(name)))
        with evaluating(model), torch.no_grad():
            model(example)
    except Exception as error:  # a network for other inputs may fail in any way
        raise UserError(
            f"taps could not be chosen for {type(model).__name__}: it does not take a picture "
            f"[1, 3, 224, 224] ({error}); name the taps"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    counts = Counter(call.name for call in calls)
    return [call for call in calls if counts[call.name] == 1]


def _example(model: nn.Module) -> Tensor:
    parameter = next(iter(model.parameters()), torch.zeros(()))
    return torch.zeros(1, 3, 224, 224, dtype=parameter.dtype, device=parameter.device)
