"""The part of a network after a tap, run for many copies with one ablated channel in each."""

import dataclasses
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from delta_transfer.attention.graph.graph import (
    CONVOLUTION,
    LINEAR,
    ComputationGraph,
    batch_dim,
    downstream_nodes,
    is_size,
    shape,
)

NodeValues = Mapping[Node, Tensor]

# Defaults of a convolution's stride, padding, dilation and groups.
CONVOLUTION_DEFAULTS = ((1, 1), (0, 0), (1, 1), 1)

# Differences below this, in units of the largest feature's rounding error, count as zero.
UNCHANGED = 8

_aten = torch.ops.aten

# Operations beside the pointwise ones that leave channels apart: pooling and resampling act on each
# map by itself, batch norm in eval mode is a factor and an offset, the others move values.
_PER_CHANNEL = frozenset(
    {
        *(_aten.adaptive_avg_pool1d, _aten.adaptive_avg_pool2d, _aten.adaptive_avg_pool3d),
        *(_aten.adaptive_max_pool1d, _aten.adaptive_max_pool2d, _aten.adaptive_max_pool3d),
        *(_aten.avg_pool1d, _aten.avg_pool2d, _aten.avg_pool3d),
        *(_aten.max_pool1d, _aten.max_pool2d, _aten.max_pool3d, _aten.batch_norm),
        *(_aten.upsample_nearest2d, _aten.upsample_bilinear2d, _aten.pad, _aten.prelu),
        *(_aten.hardswish, _aten.hardswish_, _aten.log_sigmoid),  # lack the tag of pointwise ones
        *(_aten.dropout, _aten.dropout_, _aten.feature_dropout),
        *(_aten.flatten, _aten.view, _aten.reshape, _aten._unsafe_view, _aten.squeeze),
        *(_aten.unsqueeze, _aten.permute, _aten.transpose, _aten.movedim, _aten.contiguous),
        *(_aten.clone, _aten.alias, _aten.detach, _aten._to_copy, _aten.to),
    }
)

# Reductions, which leave channels apart if they are over other dimensions.
_REDUCTIONS = frozenset({_aten.mean, _aten.sum, _aten.amax})


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DownstreamGraph:
    """The part of a network that depends on a tap.

    It starts at the cut point: the last value in which ablating a channel of the tap changes that
    channel alone. Pointwise linear layers of the cut point get a rank-one update,
    `y - W_c (F_c - ablated_c)`, in place of a new pass. If all is channel-wise up to the pooling,
    the cut point is the input of the head, and the update gives all logits at once.

    Args:
        graph: graph of the network.
        tap: the tapped value.
        cut_point: the value where the part starts.
        channel_dim: channel dimension of the cut point.
        num_channels: number of channels.
        channelwise_prefix: operations from the tap to the cut point.
        operations: operations after the cut point.
        rank_one_updates: those of them with a rank-one update.
    """

    graph: ComputationGraph
    tap: Node
    cut_point: Node
    channel_dim: int
    num_channels: int
    channelwise_prefix: tuple[Node, ...]
    operations: tuple[Node, ...]
    rank_one_updates: tuple[Node, ...]

    @property
    def copies_cut_point(self) -> bool:
        """Whether an operation needs the cut point itself, with an ablated channel."""
        return self.cut_point is self.graph.logits or any(
            user in self.operations and user not in self.rank_one_updates
            for user in self.cut_point.users
        )

    @property
    def required_values(self) -> set[Node]:
        """Values of a plain pass that the copies are made from."""
        known = {self.tap, *self.channelwise_prefix, *self.operations, *self.graph.constants}
        beside = {
            node
            for operation in (*self.channelwise_prefix, *self.operations)
            if operation not in self.rank_one_updates
            for node in operation.all_input_nodes
            if node not in known and not is_size(node)
        }
        return beside | {self.tap, self.cut_point, *self.rank_one_updates}

    def ablated_cut_point(self, base: NodeValues) -> Tensor:
        """Return the cut point with all channels of the tap ablated."""
        zeros = torch.zeros_like(base[self.tap])
        if self.cut_point is self.tap:
            return zeros
        found: dict[Node, Tensor] = self.graph.run(
            self.channelwise_prefix,
            {self.tap: zeros},
            batch_size=len(base[self.graph.logits]),
            keep=[self.cut_point],
            resolve=base.__getitem__,
        )
        return found[self.cut_point]

    def logits(self, base: NodeValues, ablated: Tensor, channels: Tensor) -> Tensor:
        """Return the logits of a batch, once for each ablated channel.

        Args:
            base: values of a plain pass of B samples, at least `required_values`.
            ablated: result of `ablated_cut_point`.
            channels: `[K]`, indices.

        Returns:
            `[K, B, ...]`.
        """
        logits = self.graph.logits
        rows, count = len(base[logits]), len(channels)
        # The logits may not depend on the tap.
        if self.cut_point is not logits and logits not in self.operations:
            return base[logits].expand(count, *base[logits].shape)
        delta = _delta(base[self.cut_point], ablated, self.channel_dim, channels)
        instead: dict[Node, Callable[[], Tensor]] = {
            operation: lambda operation=operation: _rank_one_update(  # type: ignore[misc]
                self.graph, operation, base[operation], delta, channels, self.channel_dim
            )
            for operation in self.rank_one_updates
        }
        values: dict[Node, Any] = {}
        if self.copies_cut_point:
            values[self.cut_point] = _ablated_copies(
                base[self.cut_point], ablated, self.cut_point, self.channel_dim, channels
            )
        found: dict[Node, Tensor] = self.graph.run(
            self.operations,
            values,
            batch_size=rows * count,
            keep=[logits],
            overrides=instead,
            resolve=lambda node: _repeat(base[node], node, count),
        )
        return found[logits].reshape(count, rows, *found[logits].shape[1:])


def required_values(subgraphs: Iterable[DownstreamGraph]) -> set[Node]:
    """Return the values of a plain pass that several subgraphs need."""
    subgraphs = list(subgraphs)
    return {subgraphs[0].graph.logits}.union(*(subgraph.required_values for subgraph in subgraphs))


def baseline_pass(subgraphs: Mapping[str, DownstreamGraph], inputs: Tensor) -> dict[Node, Tensor]:
    """Run the network with all channels, and return the values that subgraphs need."""
    graph = next(iter(subgraphs.values())).graph
    return graph.run(
        graph.operations,
        {graph.inputs: inputs},
        batch_size=len(inputs),
        keep=required_values(subgraphs.values()),
    )


def initial_subgraph(graph: ComputationGraph, tap: str) -> DownstreamGraph:
    """Return the subgraph whose cut point is the tap itself."""
    node, dim = graph.taps[tap], graph.channel_dims[tap]
    return _make_subgraph(graph, node, node, dim, shape(node, 2)[dim])


def most_active(subgraph: DownstreamGraph, base: NodeValues, count: int) -> Tensor:
    """Return the channels with the largest features at the tap: `[count]`."""
    size = base[subgraph.tap].abs().movedim(subgraph.channel_dim, 0).flatten(1).sum(dim=1)
    return size.topk(min(count, subgraph.num_channels)).indices


def advance_cut_point(subgraph: DownstreamGraph, base: NodeValues) -> DownstreamGraph:
    """Return the subgraph with its cut point as late as possible.

    It moves over operations of kinds that leave channels apart. As a check, at each value that all
    paths from the tap lead through, three copies with an ablated channel (those with the largest
    features) are compared with the expected value: that of all channels ablated in the channel,
    and the plain one elsewhere.

    Args:
        subgraph: from `initial_subgraph`.
        base: values of a plain pass, at least `required_values`.
    """
    output, channels = base[subgraph.tap], most_active(subgraph, base, 3)
    off = torch.zeros_like(output)
    changed = _ablated_copies(output, off, subgraph.tap, subgraph.channel_dim, channels)
    # The compared rows go through the operations together, for equal rounding.
    values = {subgraph.tap: torch.cat([output, off, changed])}
    count = 2 + len(channels)
    begin, operations = 0, subgraph.operations
    for end in _bottlenecks(subgraph.tap, operations):
        step = operations[begin : end + 1]
        begin, node = end + 1, step[-1]
        if not _is_channelwise(step, subgraph.channel_dim, subgraph.graph.constants):
            break
        values = subgraph.graph.run(
            step,
            values,
            batch_size=len(base[subgraph.graph.logits]) * count,
            keep=[node],
            resolve=lambda beside: _repeat(base[beside], beside, count),
        )
        dim = _find_channelwise_dim(node, values[node], channels, subgraph.num_channels)
        if dim is None:
            break
        subgraph = _make_subgraph(subgraph.graph, subgraph.tap, node, dim, subgraph.num_channels)
    return subgraph


def _is_channelwise(
    step: Sequence[Node], channel_dim: int, constants: Mapping[Node, Tensor]
) -> bool:
    """Return whether operations are of kinds that leave channels apart.

    Args:
        step: operations whose first input has the channel dimension.
        channel_dim: that dimension; where it moves within the step is not followed.
        constants: the weights in the graph.
    """
    if len(step) == 1 and getattr(step[0].target, "overloadpacket", None) in _REDUCTIONS:
        dims: Any = step[0].args[1] if len(step[0].args) > 1 else None
        of: Any = step[0].args[0]
        count = len(of.meta["val"].shape)
        return isinstance(dims, list | tuple) and channel_dim not in {d % count for d in dims}
    return all(_leaves_channels_apart(node, constants) for node in step)


def _leaves_channels_apart(node: Node, constants: Mapping[Node, Tensor]) -> bool:
    if node.target is CONVOLUTION:
        weight: Any = node.args[1]
        depthwise = weight in constants and constants[weight].shape[1] == 1
        return depthwise and _geometry(node)[-1] == len(constants[weight])
    if not isinstance(node.target, torch._ops.OpOverload):
        return is_size(node) or node.target is operator.getitem
    return torch.Tag.pointwise in node.target.tags or node.target.overloadpacket in _PER_CHANNEL


def _find_channelwise_dim(node: Node, value: Tensor, channels: Tensor, width: int) -> int | None:
    """Return the dimension along which only the given channels have changed, if there is one.

    Args:
        node: the node of the value.
        value: the samples with all channels, with none, and without each of `channels`.
        channels: `[K]`.
        width: number of channels.
    """
    if batch_dim(node) != 0 or not value.is_floating_point():
        return None
    on, off, *changed = value.chunk(2 + len(channels))
    rounding = UNCHANGED * torch.finfo(value.dtype).eps * on.abs().max()
    for dim in range(1, value.ndim):
        if value.shape[dim] == width:
            expected = _ablated_copies(on, off, node, dim, channels)
            if ((torch.cat(changed) - expected).abs() <= rounding).all():
                return dim
    return None


def _make_subgraph(
    graph: ComputationGraph, tap: Node, cut_point: Node, channel_dim: int, width: int
) -> DownstreamGraph:
    after = downstream_nodes(cut_point)
    before = downstream_nodes(tap) - after
    operations = tuple(node for node in graph.operations if node in after)
    return DownstreamGraph(
        graph=graph,
        tap=tap,
        cut_point=cut_point,
        channel_dim=channel_dim,
        num_channels=width,
        channelwise_prefix=tuple(node for node in graph.operations if node in before),
        operations=operations,
        rank_one_updates=tuple(
            node
            for node in operations
            if _is_pointwise(node, cut_point, channel_dim, graph.constants)
        ),
    )


def _bottlenecks(start: Node, operations: Sequence[Node]) -> Iterator[int]:
    """Yield the positions of the operations that all paths from the start lead through."""
    among = set(operations)
    waiting = {start: set(start.users) & among}
    for position, operation in enumerate(operations):
        for node in list(waiting):
            waiting[node].discard(operation)
            if not waiting[node]:
                del waiting[node]
        if not waiting and isinstance(operation.meta.get("val"), Tensor):
            yield position
        users = set(operation.users) & among
        if users:
            waiting[operation] = users


def _is_pointwise(
    node: Node, cut_point: Node, channel_dim: int, constants: Mapping[Node, Tensor]
) -> bool:
    """Return whether an operation is a linear map of the cut point's channels at each position."""
    if node.target not in (LINEAR, CONVOLUTION) or node.kwargs or batch_dim(cut_point) != 0:
        return False
    weight: Any = node.args[1]
    if node.args[0] is not cut_point or weight not in constants:
        return False
    last = len(cut_point.meta["val"].shape) - 1
    if node.target is LINEAR:
        return channel_dim == last
    kernel = constants[weight].shape[2:]
    _, padding, _, groups = _geometry(node)
    plain = (*kernel, *padding, groups) == (1, 1, 0, 0, 1)
    return plain and channel_dim == 1 and last == 3


def _geometry(convolution: Node) -> tuple[Any, ...]:
    """Return stride, padding, dilation and groups."""
    return (*convolution.args[3:], *CONVOLUTION_DEFAULTS[len(convolution.args[3:]) :])


def _rank_one_update(
    graph: ComputationGraph,
    node: Node,
    output: Tensor,
    delta: Tensor,
    channels: Tensor,
    channel_dim: int,
) -> Tensor:
    """Return the output of a pointwise layer without one input channel, for each of `channels`.

    Args:
        graph: graph of the network.
        node: the layer.
        output: its output with all channels.
        delta: `[K, B, ..., 1]`, the difference that ablation makes to each channel.
        channels: `[K]`.
        channel_dim: channel dimension of input and output.
    """
    kernel: Any = node.args[1]
    weight = graph.constants[kernel]
    if node.target is CONVOLUTION:
        down, right = _geometry(node)[0]
        delta = delta[:, :, ::down, ::right]
    columns = weight.flatten(1)[:, channels].T.to(output.dtype)
    columns = columns.reshape(-1, *[1] * (delta.ndim - 2), columns.shape[1])
    last = output.movedim(channel_dim, -1)
    # The memory layout of other values' copies; addcmul would choose another one.
    updated = output.new_empty(len(channels), *last.shape)
    torch.addcmul(last, delta.to(output.dtype), columns, value=-1, out=updated)
    return updated.flatten(0, 1).movedim(-1, channel_dim)


def _delta(base: Tensor, ablated: Tensor, channel_dim: int, channels: Tensor) -> Tensor:
    """Return the difference that ablation makes to each channel, `[K, B, ..., 1]`."""
    on, without = (part.movedim(channel_dim, -1)[..., channels] for part in (base, ablated))
    return (on - without).movedim(-1, 0).unsqueeze(-1)


def _ablated_copies(
    base: Tensor, ablated: Tensor, node: Node, channel_dim: int, channels: Tensor
) -> Tensor:
    """Repeat a value K times along its batch, with one channel of `ablated` in each copy."""
    dims, count = (batch_dim(node) or 0, channel_dim), len(channels)
    last, off_last = base.movedim(dims, (0, -1)), ablated.movedim(dims, (0, -1))
    tiles = last.expand(count, *last.shape).clone(memory_format=torch.contiguous_format)
    each = torch.arange(count, device=channels.device)
    tiles[each, ..., channels] = off_last[..., channels].movedim(-1, 0)
    return tiles.flatten(0, 1).movedim((0, -1), dims)


def _repeat(value: Tensor, node: Node, count: int) -> Tensor:
    """Repeat a value K times along its batch; values without a batch stay as they are."""
    dim = batch_dim(node)
    return value if dim is None else torch.cat([value] * count, dim=dim)
