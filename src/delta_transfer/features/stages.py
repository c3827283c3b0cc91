"""Inspection of networks: stages, channel dimensions and wrappers."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delta_transfer.errors import ModelError
from delta_transfer.features.inputs import groups_of
from delta_transfer.utils.module_state import eval_mode

# Wrapper class -> the attribute with the network; by name, to avoid importing the libraries.
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
    """Return the network inside DDP, FSDP, `torch.compile` and Lightning Fabric wrappers."""
    while type(model).__name__ in _WRAPPERS:
        model = getattr(model, _WRAPPERS[type(model).__name__])
    return model


def output_module(module: nn.Module) -> nn.Module:
    """Return the last child of a plain Sequential, recursively; another module itself.

    Networks that checkpoint activations may call the blocks of a stage one by one, without the
    Sequential; the last block, which has the same output, is called in both cases.
    """
    while type(module).forward is nn.Sequential.forward and len(module._modules) > 0:
        module = list(module.children())[-1]
    return module


def find_channel_dim(
    module: nn.Module, output: Tensor, *, image_size: tuple[int, int] = (1, 1)
) -> int:
    """Return the channel dimension of a module's output: 1, or the last.

    The two spatial sizes of a map have the aspect ratio of the image. If that does not decide, the
    channel dimension is the one whose size is the width (`out_channels`, ...) of the module's last
    layer with a width that fits; otherwise PyTorch's convention applies (second for maps, last for
    tokens and rows).

    Args:
        module: the module.
        output: its output.
        image_size: height and width of the network's inputs; a square if unknown.
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
    """Return height and width of images `[B, C, H, W]`; a square for other inputs."""
    first = inputs[0] if inputs else None
    if isinstance(first, Tensor) and first.ndim == 4:
        return first.shape[2], first.shape[3]
    return 1, 1


def auto_taps(model: nn.Module, *, example: Any = None) -> tuple[str, ...]:
    """Return the last four stage ends of a network.

    timm networks declare their stages (`feature_info`). If all blocks have the same resolution
    (plain vision transformers), four evenly spaced blocks are selected, including the last. In
    other networks, resolutions are measured in one forward pass, and the last outermost module at
    each of the last four is selected, before pooling. If features are rows (graph nodes), four of
    the layers that return rows are selected.

    Args:
        model: any network.
        example: inputs for the forward pass, such as `[B, 3, H, W]`; a 224-pixel image if None.

    Returns:
        Module names in call order.

    Raises:
        ModelError: if no stages are found.
    """
    model = unwrap(model)
    stages = _declared_stages(model)
    if not stages:
        stages = _observed_stages(model, example)
    if not stages:
        raise ModelError(
            f"no taps found in {type(model).__name__}: pass their names, "
            "for example taps=['layer3', 'layer4'] (`named_modules()` lists the names)"
        )
    return tuple(stages)


def _evenly(names: Sequence[str]) -> list[str]:
    """Return four evenly spaced names, or all if they are fewer; the last is one of them."""
    count = min(4, len(names))
    return [names[len(names) * (i + 1) // count - 1] for i in range(count)]


@dataclasses.dataclass(frozen=True)
class ModuleOutput:
    """A module that can be tapped.

    Args:
        name: its name.
        shape: the shape of its output.
        channel_dim: the channel dimension of its output.
    """

    name: str
    shape: tuple[int, ...]
    channel_dim: int

    @property
    def resolution(self) -> tuple[int, ...]:
        """Sizes of all dimensions except samples and channels."""
        return tuple(
            size for dim, size in enumerate(self.shape) if dim not in (0, self.channel_dim)
        )


def list_modules(model: nn.Module, example: Any) -> list[ModuleOutput]:
    """List the modules called once in a forward pass that return maps, tokens or rows, in order.

    Pooling layers are excluded.

    Raises:
        ModelError: if the network fails on the example.
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
    # From the outside in, and only as deep as needed: windows and attention maps inside a block
    # have other resolutions.
    for depth in sorted({name.count(".") for name, _ in calls}):
        outer = [(name, found) for name, found in calls if name.count(".") <= depth]
        resolutions = list(dict.fromkeys(found for _, found in outer))
        if len(resolutions) >= 4:
            break
        if len(resolutions) <= 2:  # one resolution, and perhaps that of a patch embedding
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
    """Return the largest set of sibling modules of one class: the blocks of a transformer."""
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
    except Exception as error:  # with unsuitable inputs a network may raise anything
        what = f"an image {list(example.shape)}" if groups is None else "the example"
        raise ModelError(
            f"cannot choose taps for {type(model).__name__}: it does not accept {what} "
            f"({error}); pass the names of the taps"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    counts = Counter(call.name for call in calls)
    return [call for call in calls if counts[call.name] == 1]


def _has_rows(output: Tensor, groups: Tensor | None) -> bool:
    """Return True if an output has one row for each row of inputs with groups."""
    return groups is not None and output.ndim == 2 and len(output) == len(groups)


def _example(model: nn.Module) -> Tensor:
    parameter = next(iter(model.parameters()), torch.zeros(()))
    return torch.zeros(1, 3, 224, 224, dtype=parameter.dtype, device=parameter.device)
