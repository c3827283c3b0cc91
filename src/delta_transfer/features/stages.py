"""What a network looks like from outside: its stages, where channels are, what wraps it."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delta_transfer.errors import ModelError
from delta_transfer.features.inputs import groups_of
from delta_transfer.utils.module_state import eval_mode

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


def unwrap(model: nn.Module) -> nn.Module:
    """The network inside DDP, FSDP, `torch.compile` and Lightning Fabric wrappers."""
    while type(model).__name__ in _WRAPPERS:
        model = getattr(model, _WRAPPERS[type(model).__name__])
    return model


def output_module(module: nn.Module) -> nn.Module:
    """The module whose output is `module`'s output: the last child of a plain Sequential.

    Some networks call a stage's blocks one by one when they checkpoint activations; the last block
    is called in either case.
    """
    while type(module).forward is nn.Sequential.forward and len(module._modules) > 0:
        module = list(module.children())[-1]
    return module


def find_channel_dim(
    module: nn.Module, output: Tensor, *, image_size: tuple[int, int] = (1, 1)
) -> int:
    """Where the channels of a module's output are: dimension 1, or the last.

    Of a map's three sizes the two that are not the channels have the image's height to width.
    Where that does not decide, the channels are as many as the module's last layer with a width
    that fits says; else they are where PyTorch's layers have them (second for maps, last for tokens
    and rows).

    Args:
        module: the module.
        output: what it returned.
        image_size: height and width of what the network was given; a square if it is not known.
    """
    last = output.ndim - 1
    if last <= 1:
        return last
    sizes = output.shape
    if last == 3:
        height, width = image_size
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


def input_image_size(inputs: Any) -> tuple[int, int]:
    """Height and width of images `[B, C, H, W]`; a square for anything else."""
    first = inputs[0] if inputs else None
    if isinstance(first, Tensor) and first.ndim == 4:
        return first.shape[2], first.shape[3]
    return 1, 1


def auto_taps(model: nn.Module, *, example: Any = None) -> tuple[str, ...]:
    """The last four stage ends of a network.

    timm networks say where their stages end (`feature_info`); of blocks that all have one
    resolution (plain vision transformers) four are taken, evenly spaced, the last included. In
    other networks one forward pass shows the resolutions, and the outermost module that comes last
    at each of the last four is taken, before pooling. Where features are rows (graph nodes) these
    are four of the layers that give rows.

    Args:
        model: any network.
        example: inputs for the pass, such as `[B, 3, H, W]`; a 224-pixel image if None.

    Returns:
        Module names, in the order in which they are called.

    Raises:
        ModelError: if nothing fits; it says how to name taps.
    """
    model = unwrap(model)
    stages = _declared_stages(model)
    if not stages:
        stages = _observed_stages(model, example)
    if not stages:
        raise ModelError(
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
        return tuple(
            size for dim, size in enumerate(self.shape) if dim not in (0, self.channel_dim)
        )


def list_modules(model: nn.Module, example: Any) -> list[ModuleOutput]:
    """The modules that one forward pass calls once and that give a map, tokens or rows, in order.

    Pooling layers are left out.

    Raises:
        ModelError: if the network does not take the example.
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


def _observed_stages(model: nn.Module, example: Any) -> list[str]:
    if groups_of(example) is not None:
        return _evenly(_repeated_blocks(model, {out.name for out in _observe(model, example)}))
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


def _observe(model: nn.Module, example: Any) -> list[ModuleOutput]:
    calls: list[ModuleOutput] = []
    example = _example(model) if example is None else example
    groups = groups_of(example)

    def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and (output.ndim >= 3 or _has_rows(output, groups)):
                channel_dim = find_channel_dim(
                    module, output, image_size=input_image_size([example])
                )
                calls.append(ModuleOutput(name, tuple(output.shape), channel_dim))

        return record

    handles = []
    try:
        for name, module in model.named_modules():
            if name and "pool" not in type(output_module(module)).__name__.lower():
                handles.append(module.register_forward_hook(hook(name)))
        with eval_mode(model), torch.no_grad():
            model(example)
    except Exception as error:  # a network for other inputs may fail in any way
        what = f"an image {list(example.shape)}" if groups is None else "the example"
        raise ModelError(
            f"taps could not be chosen for {type(model).__name__}: it does not take {what} "
            f"({error}); name the taps"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    counts = Counter(call.name for call in calls)
    return [call for call in calls if counts[call.name] == 1]


def _has_rows(output: Tensor, groups: Tensor | None) -> bool:
    """Whether an output has the rows that inputs with groups have."""
    return groups is not None and output.ndim == 2 and len(output) == len(groups)


def _example(model: nn.Module) -> Tensor:
    parameter = next(iter(model.parameters()), torch.zeros(()))
    return torch.zeros(1, 3, 224, 224, dtype=parameter.dtype, device=parameter.device)
