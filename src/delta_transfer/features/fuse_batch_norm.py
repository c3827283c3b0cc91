"""Fuse batch norm into the preceding convolutions, in a copy of a frozen network."""

import copy
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from delta_transfer.utils.module_state import eval_mode

# Largest error of the copy's outputs, relative to the largest output. Rounding errors are 1e-7 to
# 1e-5, or 1e-3 if a GPU multiplies in TF32; a wrongly fused network has larger errors.
TOLERANCE = 1e-2

# A fused convolution has its own copy of the weights. More than this many weights for each
# activation of a sample are not worth the memory.
MAX_WEIGHTS_PER_ACTIVATION = 8

_PLAIN = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def fuse_batch_norm(
    network: nn.Module,
    inputs: Tensor,
    record: Callable[[nn.Module, Tensor], Sequence[Tensor]],
    *,
    keep: Collection[nn.Module] = (),
) -> nn.Module:
    """Return a copy of the network that computes the same features in eval mode, but faster.

    A batch norm with stored statistics scales and shifts each channel by constants. If only the
    batch norm uses the output of a convolution, both can be fused into the convolution (Jacob et
    al., CVPR 2018, https://arxiv.org/abs/1712.05877, section 3.2). One forward pass finds these
    layers, and another checks the outputs of the copy. The copy shares all other weights with the
    network. Convolutions with many weights and small maps, as in the last stages, are not fused.

    Args:
        network: a network; it is not changed.
        inputs: a few samples.
        record: runs a network on inputs and returns the outputs to compare.
        keep: modules of the network whose outputs must not change.

    Returns:
        The copy; the network itself if there is nothing to fuse or the outputs of the copy differ.
    """
    if not len(inputs) or inputs.dtype not in (torch.float32, torch.float64):
        return network  # half precision would round differently
    if not _may_be_copied(network):
        return network
    with eval_mode(network), torch.no_grad():
        pairs = _pairs(network, inputs, keep)
        if not pairs:
            return network
        expected = record(network, inputs)
        try:
            fused = _make_fused_copy(network, pairs)
        except (TypeError, RuntimeError):  # it contains objects that cannot be copied
            return network
        if not _agree(expected, record(fused, inputs)):
            return network
    return fused


def _may_be_copied(network: nn.Module) -> bool:
    """Return True if the network has no hooks and all its weights are plain parameters."""
    return not any(
        module._forward_hooks or module._forward_pre_hooks for module in network.modules()
    ) and all(type(parameter) is nn.Parameter for parameter in network.parameters())


class _TensorUseCounter(TorchFunctionMode):
    """Count the operations that use each tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[int] = Counter()

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(found)):  # not .shape and the like
            leaves = tree_leaves((args, kwargs))
            self.counts.update({id(leaf) for leaf in leaves if isinstance(leaf, Tensor)})
        return found


def _pairs(network: nn.Module, inputs: Tensor, keep: Collection[nn.Module]) -> dict[str, str]:
    """Return convolution -> the batch norm that alone uses its output; both are called once."""
    returned: list[tuple[nn.Module, Tensor]] = []  # kept alive, so that ids are unique
    given: dict[int, list[nn.Module]] = {}
    calls: Counter[nn.Module] = Counter()
    uses = _TensorUseCounter()

    def after(module: nn.Module, args: Any, output: Any) -> None:
        calls[module] += 1
        if isinstance(module, _ConvNd):
            returned.append((module, output))
            uses.counts[id(output)] = 0  # the id may be that of an earlier, freed tensor
        elif args:
            given.setdefault(id(args[0]), []).append(module)

    names = {module: name for name, module in network.named_modules()}
    layers = [module for module in names if _is_plain(module) or _has_fixed_statistics(module)]
    handles = [layer.register_forward_hook(after) for layer in layers]
    try:
        with uses:
            network(inputs)
    finally:
        for handle in handles:
            handle.remove()
    found = {}
    for convolution, output in returned:
        norms = given.get(id(output), [])
        if len(norms) != 1 or uses.counts[id(output)] != 1:
            continue
        weights = convolution.get_parameter("weight").numel()
        if weights > MAX_WEIGHTS_PER_ACTIVATION * output[0].numel():
            continue
        if calls[convolution] == calls[norms[0]] == 1 and not {convolution, norms[0]} & set(keep):
            found[names[convolution]] = names[norms[0]]
    return found


def _is_plain(module: nn.Module) -> bool:
    """Return True for a convolution whose weight is not computed from other parameters."""
    return isinstance(module, _PLAIN) and "weight" in module._parameters


def _has_fixed_statistics(module: nn.Module) -> bool:
    """Return True for a batch norm that scales and shifts by constants in eval mode."""
    return isinstance(module, _BatchNorm) and module.running_mean is not None


def _make_fused_copy(network: nn.Module, pairs: Mapping[str, str]) -> nn.Module:
    shared: dict[int, Any] = {id(t): t for t in (*network.parameters(), *network.buffers())}
    found = copy.deepcopy(network, shared)
    for conv_name, norm_name in pairs.items():
        conv, norm = found.get_submodule(conv_name), found.get_submodule(norm_name)
        assert isinstance(conv, _ConvNd)
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        weight, bias = fuse_conv_bn_weights(
            conv.weight,
            conv.bias,
            norm.running_mean,
            norm.running_var,
            norm.eps,
            norm.weight,
            norm.bias,
        )
        conv.weight = nn.Parameter(weight.detach(), requires_grad=False)
        conv.bias = nn.Parameter(bias.detach(), requires_grad=False)
        parent, _, own = norm_name.rpartition(".")
        found.get_submodule(parent).register_module(own, _rest(norm))
    return found


def _rest(norm: nn.Module) -> nn.Module:
    """Return the rest of a batch norm: timm's include dropout and an activation."""
    inner = [child for name, child in norm.named_children() if name in ("drop", "act")]
    return nn.Sequential(*inner) if inner else nn.Identity()


def _agree(expected: Sequence[Tensor], found: Sequence[Tensor]) -> bool:
    return all(
        was.shape == now.shape and bool((was - now).abs().max() <= TOLERANCE * was.abs().max())
        for was, now in zip(expected, found, strict=True)
    )
