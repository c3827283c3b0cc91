"""What a network computes after a tap, for many copies with one channel switched off in each."""

import dataclasses
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

# What a convolution is given if its stride, padding, dilation and groups are not.
CONVOLUTION_DEFAULTS = ((1, 1), (0, 0), (1, 1), 1)

# A feature that differs by less, in units of the largest one's rounding error, is unchanged.
UNCHANGED = 8


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class DownstreamGraph:
    """The part of a network that a channel of a tap can change.

    It starts at the front: the last value in which switching off a channel of the tap changes that
    channel alone. Linear layers with one weight for each pair of channels that take the front are
    updated, `y - W_c (F_c - off_c)`, and not computed anew (rank one). Where all is channel-wise up
    to the pooling, the front is what the head takes, and the update gives all logits at once.

    Args:
        graph: of the network.
        tap: the tapped value.
        cut_point: where the suffix starts.
        channel_dim: where the channels of the front are.
        num_channels: how many channels there are.
        channelwise_prefix: the operations from the tap to the front.
        operations: those after the front.
        rank_one_updates: those of them that are updated.
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
        """Whether anything needs the front itself, with a channel switched off."""
        return self.cut_point is self.graph.logits or any(
            user in self.operations and user not in self.rank_one_updates
            for user in self.cut_point.users
        )

    @property
    def required_values(self) -> set[Node]:
        """The values of a plain pass that the copies are made from."""
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
        """The front when all channels of the tap are off, of which each is used by itself."""
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
        """Logits of a batch, once for each channel that is off.

        Args:
            base: values of a plain pass of B samples, at least those in `needs`.
            ablated: as `ablated_cut_point` returns it.
            channels: `[K]`, indices.

        Returns:
            `[K, B, ...]`.
        """
        logits = self.graph.logits
        rows, count = len(base[logits]), len(channels)
        if self.cut_point is not logits and logits not in self.operations:  # the tap leads nowhere
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
    """The values of a plain pass that the copies of several suffixes are made from."""
    subgraphs = list(subgraphs)
    return {subgraphs[0].graph.logits}.union(*(suffix.required_values for suffix in subgraphs))


def baseline_pass(subgraphs: Mapping[str, DownstreamGraph], inputs: Tensor) -> dict[Node, Tensor]:
    """What the network computes from a batch with all channels on: the values that are needed."""
    graph = next(iter(subgraphs.values())).graph
    return graph.run(
        graph.operations,
        {graph.inputs: inputs},
        batch_size=len(inputs),
        keep=required_values(subgraphs.values()),
    )


def initial_subgraph(graph: ComputationGraph, tap: str) -> DownstreamGraph:
    """The suffix whose front is the tap itself."""
    node, dim = graph.taps[tap], graph.channel_dims[tap]
    return _make_subgraph(graph, node, node, dim, shape(node, 2)[dim])


def most_active(subgraph: DownstreamGraph, base: NodeValues, count: int) -> Tensor:
    """The channels with the largest features at the tap, where the suffix starts: `[count]`."""
    size = base[subgraph.tap].abs().movedim(subgraph.channel_dim, 0).flatten(1).sum(dim=1)
    return size.topk(min(count, subgraph.num_channels)).indices


def advance_cut_point(subgraph: DownstreamGraph, base: NodeValues) -> DownstreamGraph:
    """The suffix with its front as late as it is channel-wise, found by trying it.

    At each value that all paths from the tap lead through, three copies with a channel off (those
    with the largest features) are compared with what they would be if nothing but that channel had
    changed, and to what it is if all are off.

    Args:
        subgraph: from `initial_subgraph`.
        base: of a plain pass, the values in `needs`.
    """
    output, channels = base[subgraph.tap], most_active(subgraph, base, 3)
    off = torch.zeros_like(output)
    changed = _ablated_copies(output, off, subgraph.tap, subgraph.channel_dim, channels)
    # The rows that are compared go through the operations together, so that rounding is alike.
    values = {subgraph.tap: torch.cat([output, off, changed])}
    count = 2 + len(channels)
    begin, operations = 0, subgraph.operations
    for end in _bottlenecks(subgraph.tap, operations):
        step = operations[begin : end + 1]
        begin, node = end + 1, step[-1]
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


def _find_channelwise_dim(node: Node, value: Tensor, channels: Tensor, width: int) -> int | None:
    """The dimension along which nothing but the given channels has changed, if there is one.

    Args:
        node: the value.
        value: the samples with all channels on, with all off, and with each of `channels` off.
        channels: `[K]`.
        width: how many channels there are.
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
    """Positions of the operations that all paths from the start lead through."""
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
    """Whether an operation is a linear map of the front's channels, position by position."""
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
    """Stride, padding, dilation and groups."""
    return (*convolution.args[3:], *CONVOLUTION_DEFAULTS[len(convolution.args[3:]) :])


def _rank_one_update(
    graph: ComputationGraph,
    node: Node,
    output: Tensor,
    delta: Tensor,
    channels: Tensor,
    channel_dim: int,
) -> Tensor:
    """The output of a pointwise layer without one channel of its input, for each of `channels`.

    Args:
        graph: of the network.
        node: the layer.
        output: with all channels.
        delta: `[K, B, ..., 1]`, what is taken away from each channel.
        channels: `[K]`.
        channel_dim: of input and output.
    """
    kernel: Any = node.args[1]
    weight = graph.constants[kernel]
    if node.target is CONVOLUTION:
        down, right = _geometry(node)[0]
        delta = delta[:, :, ::down, ::right]
    columns = weight.flatten(1)[:, channels].T.to(output.dtype)
    columns = columns.reshape(-1, *[1] * (delta.ndim - 2), columns.shape[1])
    last = output.movedim(channel_dim, -1)
    # Laid out like other values' copies; left to itself, the result would be in another order.
    updated = output.new_empty(len(channels), *last.shape)
    torch.addcmul(last, delta.to(output.dtype), columns, value=-1, out=updated)
    return updated.flatten(0, 1).movedim(-1, channel_dim)


def _delta(base: Tensor, ablated: Tensor, channel_dim: int, channels: Tensor) -> Tensor:
    """What switching off takes away from each channel, `[K, B, ..., 1]`."""
    on, without = (part.movedim(channel_dim, -1)[..., channels] for part in (base, ablated))
    return (on - without).movedim(-1, 0).unsqueeze(-1)


def _ablated_copies(
    base: Tensor, ablated: Tensor, node: Node, channel_dim: int, channels: Tensor
) -> Tensor:
    """A value K times along its batch, in each copy one channel as it is in `ablated`."""
    dims, count = (batch_dim(node) or 0, channel_dim), len(channels)
    last, off_last = base.movedim(dims, (0, -1)), ablated.movedim(dims, (0, -1))
    tiles = last.expand(count, *last.shape).clone(memory_format=torch.contiguous_format)
    each = torch.arange(count, device=channels.device)
    tiles[each, ..., channels] = off_last[..., channels].movedim(-1, 0)
    return tiles.flatten(0, 1).movedim((0, -1), dims)


def _repeat(value: Tensor, node: Node, count: int) -> Tensor:
    """A value K times along its batch; values without a batch as they are."""
    dim = batch_dim(node)
    return value if dim is None else torch.cat([value] * count, dim=dim)
