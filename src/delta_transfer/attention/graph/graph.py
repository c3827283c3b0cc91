"""A network as the graph of its operations, which can be run from any of its values on."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

aten = torch.ops.aten

CONVOLUTION = aten.conv2d.default
LINEAR = aten.linear.default


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ComputationGraph:
    """What a network computes from a batch of any size.

    Args:
        operations: in the order in which they are run; none changes a value in place.
        constants: the network's weights and whatever else does not depend on its inputs.
        inputs: the batch.
        logits: what the network returns.
        taps: tap -> its output, as it is handed on.
        channel_dims: tap -> where the channels of its output are.
    """

    operations: tuple[Node, ...]
    constants: dict[Node, Tensor]
    inputs: Node
    logits: Node
    taps: dict[str, Node]
    channel_dims: dict[str, int]

    def run(
        self,
        operations: Sequence[Node],
        values: dict[Node, Any],
        *,
        batch_size: int,
        keep: Iterable[Node],
        overrides: Mapping[Node, Callable[[], Tensor]] | None = None,
        resolve: Callable[[Node], Tensor] | None = None,
    ) -> dict[Node, Any]:
        """Runs some operations.

        Args:
            operations: in their order.
            values: those that are known already; each is let go of after its last use.
            batch_size: size of the batch.
            keep: values that are wanted.
            overrides: how some of the operations are to be computed.
            resolve: makes a value that is neither known nor among the results; it is not kept.

        Returns:
            The values that are wanted.
        """
        wanted, otherwise = set(keep), overrides or {}
        last = last_uses(operations)

        def look_up(node: Node) -> Any:
            if node in values:
                return values[node]
            if node in self.constants:
                return self.constants[node]
            if is_size(node):
                return concrete_size(node.meta["val"], batch_size)
            assert resolve is not None, node
            return resolve(node)

        for operation in operations:
            if operation in otherwise:
                values[operation] = otherwise[operation]()
            elif not is_size(operation):
                target: Any = operation.target
                values[operation] = target(
                    *map_arg(operation.args, look_up), **map_arg(operation.kwargs, look_up)
                )
            for node in last.get(operation, ()):
                if node not in wanted:
                    values.pop(node, None)
        return {node: values[node] for node in wanted}


def downstream_nodes(start: Node) -> set[Node]:
    """The values that depend on one, itself left out."""
    seen: set[Node] = set()
    waiting = [start]
    while waiting:
        users = {user for user in waiting.pop().users if user.op != "output"}
        waiting += users - seen
        seen |= users
    return seen


def last_uses(operations: Sequence[Node]) -> dict[Node, list[Node]]:
    """Operation -> the values that no later one uses."""
    last: dict[Node, list[Node]] = {}
    seen: set[Node] = set()
    for operation in reversed(operations):
        for node in {operation, *operation.all_input_nodes} - seen:
            seen.add(node)
            last.setdefault(operation, []).append(node)
    return last


def is_size(node: Node) -> bool:
    """Whether a value is a number that follows from the size of the batch."""
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def concrete_size(size: Any, batch_size: int) -> int:
    """A size for a batch of so many rows."""
    return _evaluate(size.node.expr, batch_size) if isinstance(size, torch.SymInt) else int(size)


@functools.cache
def _evaluate(expression: Any, batch_size: int) -> int:
    return int(expression.subs({symbol: batch_size for symbol in expression.free_symbols}))


def shape(node: Node, batch_size: int) -> tuple[int, ...]:
    """The shape of a tensor for a batch of so many rows."""
    return tuple(concrete_size(size, batch_size) for size in node.meta["val"].shape)


def batch_dim(node: Node) -> int | None:
    """The dimension that grows with the batch; None if none does."""
    pairs = zip(shape(node, 2), shape(node, 3), strict=True)
    return next((dim for dim, (two, three) in enumerate(pairs) if two != three), None)


def is_view(node: Node) -> bool:
    """Whether a value shares the memory of its first input, or may do so."""
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # an item of a tuple
    if node.target is aten._unsafe_view.default:
        return True
    return any(part.alias_info is not None for part in node.target._schema.returns)


def owner(node: Node) -> Node:
    """The value whose memory a view shows; the value itself if it is none."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node
