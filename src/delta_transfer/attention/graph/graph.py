"""A network as a graph of operations, which can be run from any value on."""

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
    """The operations of a network on a batch of any size.

    Args:
        operations: in execution order; none changes a value in place.
        constants: weights and other values that do not depend on the inputs.
        inputs: the batch.
        logits: the network's output.
        taps: tap -> its output.
        channel_dims: tap -> the channel dimension of its output.
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
        """Run some operations.

        Args:
            operations: in execution order.
            values: known values; each is released after its last use.
            batch_size: size of the batch.
            keep: values to return.
            overrides: functions that replace some of the operations.
            resolve: computes a value that is neither known nor an output; it is not stored.

        Returns:
            The values in `keep`.
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
    """Return all values that depend on one, without itself."""
    seen: set[Node] = set()
    waiting = [start]
    while waiting:
        users = {user for user in waiting.pop().users if user.op != "output"}
        waiting += users - seen
        seen |= users
    return seen


def last_uses(operations: Sequence[Node]) -> dict[Node, list[Node]]:
    """Return the values that no later operation uses, by operation."""
    last: dict[Node, list[Node]] = {}
    seen: set[Node] = set()
    for operation in reversed(operations):
        for node in {operation, *operation.all_input_nodes} - seen:
            seen.add(node)
            last.setdefault(operation, []).append(node)
    return last


def is_size(node: Node) -> bool:
    """Return whether a value is a number that depends on the batch size alone."""
    return isinstance(node.meta.get("val"), torch.SymInt | int)


def concrete_size(size: Any, batch_size: int) -> int:
    """Return a size for a given batch size."""
    return _evaluate(size.node.expr, batch_size) if isinstance(size, torch.SymInt) else int(size)


@functools.cache
def _evaluate(expression: Any, batch_size: int) -> int:
    return int(expression.subs({symbol: batch_size for symbol in expression.free_symbols}))


def shape(node: Node, batch_size: int) -> tuple[int, ...]:
    """Return the shape of a tensor for a given batch size."""
    return tuple(concrete_size(size, batch_size) for size in node.meta["val"].shape)


def batch_dim(node: Node) -> int | None:
    """Return the dimension that grows with the batch; None if there is none."""
    pairs = zip(shape(node, 2), shape(node, 3), strict=True)
    return next((dim for dim, (two, three) in enumerate(pairs) if two != three), None)


def is_view(node: Node) -> bool:
    """Return whether a value may share the memory of its first input."""
    if node.op != "call_function" or not node.all_input_nodes:
        return False
    if not isinstance(node.target, torch._ops.OpOverload):
        return True  # an item of a tuple
    if node.target is aten._unsafe_view.default:
        return True
    return any(part.alias_info is not None for part in node.target._schema.returns)


def owner(node: Node) -> Node:
    """Return the value that owns the memory of a view; a value that is not a view owns its own."""
    while is_view(node):
        node = node.all_input_nodes[0]
    return node
