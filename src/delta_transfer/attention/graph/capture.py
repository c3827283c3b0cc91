"""Capture a network as a graph of operations."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.graph_signature import ExportGraphSignature, InputKind, OutputKind
from torch.fx import Node
from torch.nn.utils import fuse_conv_bn_weights

from delta_transfer.attention.graph.graph import CONVOLUTION, ComputationGraph, is_view, owner
from delta_transfer.features.taps import Taps

aten = torch.ops.aten


class CaptureError(Exception):
    """The network cannot be captured as a graph."""


def capture(model: nn.Module, inputs: Tensor, taps: Sequence[str]) -> ComputationGraph:
    """Capture a network in eval mode, with batch norm fused into convolutions.

    Args:
        model: the network, in eval mode.
        inputs: a batch `[B, ...]`, of which only shape and type matter.
        taps: module names.

    Raises:
        CaptureError: if torch.export cannot follow the network.
    """
    channel_dims: dict[str, int] = {}
    try:
        with torch.no_grad():
            program = torch.export.export(
                _Tapped(model, taps, channel_dims),
                (torch.cat([inputs[:1], inputs[:1]]),),  # a batch of one would be a constant size
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                strict=False,
            )
            if not _functionalize(program.graph_module.graph):
                program = program.run_decompositions({})
    except Exception as error:  # a network may do anything in Python
        raise CaptureError(str(error).strip().partition("\n")[0]) from error
    graph, signature = program.graph_module.graph, program.graph_signature
    constants, inputs_node = _placeholders(
        graph.nodes, signature, {**program.constants, **program.state_dict}
    )
    recorded = _results(graph)[1:]
    for node in recorded:
        for user in list(node.users):
            # The copy that Taps passes on.
            if user.target is aten.clone.default and not user.kwargs:
                user.replace_all_uses_with(node)
                graph.erase_node(user)
    _fuse_batch_norms(graph, constants, keep=recorded)
    logits, *recorded = _results(graph)
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return ComputationGraph(
        operations=tuple(node for node in graph.nodes if node.op == "call_function"),
        constants={
            node: _kernel_to_channels_last(tensor)
            for node, tensor in constants.items()
            if node.users
        },
        inputs=inputs_node,
        logits=logits,
        taps=dict(zip(taps, recorded, strict=True)),
        channel_dims=channel_dims,
    )


def _results(graph: torch.fx.Graph) -> list[Node]:
    """Return the logits and the tapped outputs."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    results: Any = output.args[0]
    if not all(isinstance(node, Node) for node in results):
        raise CaptureError("a tap or the logits do not depend on the inputs")
    return list(results)


class _Tapped(nn.Module):
    """The network, returning its logits and the tapped outputs."""

    def __init__(self, model: nn.Module, taps: Sequence[str], channel_dims: dict[str, int]) -> None:
        super().__init__()
        self.model = model
        self.taps = tuple(taps)
        self.found = channel_dims

    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        with Taps(self.model, self.taps) as recorder:
            logits = self.model(inputs)
        self.found |= recorder.channel_dims
        return logits, *recorder.outputs().values()


def _placeholders(
    nodes: Iterable[Node], signature: ExportGraphSignature, tensors: Mapping[str, Any]
) -> tuple[dict[Node, Tensor], Node]:
    """Return the values of all placeholders except the batch, and the batch."""
    if any(spec.kind != OutputKind.USER_OUTPUT for spec in signature.output_specs):
        raise CaptureError("it changes its own buffers in eval mode")
    by_name = {node.name: node for node in nodes if node.op == "placeholder"}
    constants: dict[Node, Tensor] = {}
    batches = []
    for spec in signature.input_specs:
        node = by_name[spec.arg.name]
        if spec.kind == InputKind.USER_INPUT:
            batches.append(node)
        else:
            constants[node] = tensors[spec.target].detach()  # type: ignore[index]
    (batch,) = batches
    return constants, batch


def _kernel_to_channels_last(tensor: Tensor) -> Tensor:
    """Convert kernels to channels_last, in which convolutions of many small maps are fastest."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _functionalize(graph: torch.fx.Graph) -> bool:
    """Replace in-place operations by out-of-place ones; return False if that is not possible.

    It is not if the changed memory is read through another value later.
    """
    position = {node: index for index, node in enumerate(graph.nodes)}
    family: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        family.setdefault(owner(node), []).append(node)
    changes = [node for node in graph.nodes if _mutates_input(node)]
    for node in changes:
        # They are all replaced, one by one.
        same = set(_alias_chain(node.args[0], through=_mutates_input))
        others = [
            value
            for value in family[owner(node)]
            if value not in same and node not in _alias_chain(value, through=is_view)
        ]
        seen = any(position[user] > position[node] for value in others for user in value.users)
        if seen or _out_of_place(node.target) is None:
            return False
    for node in changes:
        changed = node.args[0]
        node.target = _out_of_place(node.target)
        for user in list(changed.users):
            if position[user] > position[node]:
                user.replace_input_with(changed, node)
    return True


def _mutates_input(node: Node) -> bool:
    """Return whether an operation overwrites its first input."""
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _alias_chain(node: Node, *, through: Callable[[Node], bool]) -> list[Node]:
    """Return a value and its ancestors that share its memory."""
    line = [node]
    while through(line[-1]):
        line.append(line[-1].all_input_nodes[0])
    return line


def _out_of_place(operation: Any) -> Any:
    """Return the out-of-place form of an in-place operation; None if there is none."""
    name = operation._schema.name.partition("::")[2]
    packet = getattr(aten, name.removesuffix("_"), None) if name.endswith("_") else None
    return getattr(packet, operation._overloadname, None)


def _fuse_batch_norms(
    graph: torch.fx.Graph, constants: dict[Node, Tensor], *, keep: Sequence[Node]
) -> None:
    """Fuse batch norm that follows a convolution into its weights."""
    for norm in list(graph.nodes):
        if norm.target is aten.batch_norm.default and not norm.args[5]:
            output, eps = norm, norm.args[7]
        elif norm.target is aten._native_batch_norm_legit_no_training.default:
            output, eps = next(iter(norm.users)), norm.args[6]
        else:
            continue
        convolution = norm.args[0]
        weight, bias, mean, variance = (constants.get(node) for node in norm.args[1:5])
        if (
            mean is not None
            and variance is not None
            and convolution.target is CONVOLUTION
            and convolution not in keep
            and len(convolution.users) == 1
            and convolution.args[1] in constants
        ):
            _fuse(graph, constants, convolution, (mean, variance, eps, weight, bias))
            output.replace_all_uses_with(convolution)
            graph.erase_node(output)
            if output is not norm:
                graph.erase_node(norm)


def _fuse(
    graph: torch.fx.Graph,
    constants: dict[Node, Tensor],
    convolution: Node,
    norm: tuple[Tensor, Tensor, float, Tensor | None, Tensor | None],
) -> None:
    given: Any = (*convolution.args, None)[: max(3, len(convolution.args))]
    source, kernel, bias, *rest = given
    mean, variance, eps, weight, shift = norm
    fused = fuse_conv_bn_weights(
        _double(constants[kernel]),
        _double(constants.get(bias)),
        _double(mean),
        _double(variance),
        eps,
        _double(weight),
        _double(shift),
    )
    nodes = []
    with graph.inserting_before(convolution):
        for name, tensor in zip(("kernel", "bias"), fused, strict=True):
            nodes.append(graph.placeholder(f"{convolution.name}_{name}"))
            constants[nodes[-1]] = tensor.detach().to(constants[kernel])
    convolution.args = (source, *nodes, *rest)


def _double(tensor: Tensor | None) -> Any:
    """Convert to double precision on the CPU, as not every device supports it."""
    return None if tensor is None else tensor.cpu().double()
