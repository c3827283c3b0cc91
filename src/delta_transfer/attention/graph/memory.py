"""Memory use of a part of a graph while it runs."""

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from delta_transfer.attention.graph.downstream import DownstreamGraph, required_values
from delta_transfer.attention.graph.graph import ComputationGraph, concrete_size, is_size, is_view
from delta_transfer.errors import ConfigError

aten = torch.ops.aten

# These return a view where possible; they are counted as copies.
COPIES = (aten.reshape.default, aten.flatten.using_ints, aten.contiguous.default)

MIB = 2**20
CPU_MEMORY = 96 * MIB  # larger batches of copies leave the caches and are slower
OTHER_MEMORY = 1024 * MIB
GPU_FRACTION = 0.5  # of the free memory
USABLE_FRACTION = 0.9  # of the memory, as small values are not counted
LOSS_COPIES = 6  # copies of the logits that a loss in double precision needs


def default_memory(device: torch.device) -> int:
    """Return the default number of bytes for the values of a pass."""
    if device.type == "cuda":
        return int(GPU_FRACTION * torch.cuda.mem_get_info(device)[0])
    return CPU_MEMORY if device.type == "cpu" else OTHER_MEMORY


class Budget:
    """The number of samples, and of copies of them, that fit into memory.

    Args:
        subgraphs: those of the taps of one network.
        memory: bytes.
    """

    def __init__(self, subgraphs: Mapping[str, DownstreamGraph], memory: int) -> None:
        self._subgraphs = subgraphs
        self._memory = memory
        self._graph = next(iter(subgraphs.values())).graph
        self._needed = required_values(subgraphs.values())
        # Cached results: traversing the graph is slow.
        self._samples: dict[int, int] = {}
        self._copies: dict[tuple[str, int], int] = {}

    def max_samples(self, most: int) -> int:
        """Return how many samples a plain pass may have, so that one copy fits for each tap.

        Raises:
            ConfigError: if not even one sample fits.
        """
        if most not in self._samples:
            self._samples[most] = self._most_samples(most)
        return self._samples[most]

    def max_copies(self, tap: str, samples: int) -> int:
        """Return how many copies of so many samples can be run at once, at least 1."""
        if (tap, samples) not in self._copies:
            rest = int(USABLE_FRACTION * self._memory - self._fixed(tap, samples))
            self._copies[tap, samples] = max(1, rest // max(1, self._per_copy(tap, samples)))
        return self._copies[tap, samples]

    def _most_samples(self, most: int) -> int:
        while most > 1 and self._min_bytes(most) > USABLE_FRACTION * self._memory:
            most = (most + 1) // 2
        if self._min_bytes(most) > USABLE_FRACTION * self._memory:
            raise ConfigError(
                f"exact attention: memory of {self._memory / MIB:.1f} MiB is too little for one "
                f"sample, which needs {self._min_bytes(1) / USABLE_FRACTION / MIB:.1f} MiB: "
                "raise memory, or use smaller inputs"
            )
        return most

    def _min_bytes(self, samples: int) -> int:
        plain = peak_bytes(
            self._graph,
            self._graph.operations,
            samples,
            known=[self._graph.inputs],
            keep=self._needed,
        )
        copies = (
            self._fixed(tap, samples) + self._per_copy(tap, samples) for tap in self._subgraphs
        )
        return max(plain, *copies)

    def _fixed(self, tap: str, samples: int) -> int:
        """Return the bytes of the plain pass and of the cut point with all channels ablated."""
        subgraph = self._subgraphs[tap]
        kept = {_storage(node) for node in (*self._needed, self._graph.inputs)}
        off = 2 * size_in_bytes(_storage(subgraph.cut_point), samples)
        return off + sum(size_in_bytes(node, samples) for node in kept)

    def _per_copy(self, tap: str, samples: int) -> int:
        subgraph = self._subgraphs[tap]
        values = peak_bytes(
            self._graph,
            subgraph.operations,
            samples,
            known=[subgraph.cut_point] if subgraph.copies_cut_point else [],
            keep=[self._graph.logits],
        )
        return values + LOSS_COPIES * size_in_bytes(_storage(self._graph.logits), samples)


def peak_bytes(
    graph: ComputationGraph,
    operations: Sequence[Node],
    batch_size: int,
    *,
    known: Iterable[Node] = (),
    keep: Iterable[Node] = (),
) -> int:
    """Return the peak memory of some operations, in bytes.

    Temporary memory inside of layers is not known and not counted.

    Args:
        graph: their graph.
        operations: in execution order.
        batch_size: size of the batch.
        known: values that exist from the start until their last use.
        keep: values that stay to the end.
    """
    kept = {_storage(node) for node in keep}
    start = {_storage(node) for node in known}
    own = start | set(operations)
    last: dict[Node, int] = {}
    for position, operation in enumerate(operations):
        for node in (operation, *operation.all_input_nodes):
            last[_storage(node)] = position
    total = sum(size_in_bytes(node, batch_size) for node in start)
    most = total
    for position, operation in enumerate(operations):
        # Values from other branches are repeated for the operation only.
        beside = {_storage(node) for node in operation.all_input_nodes} - own - set(graph.constants)
        total += size_in_bytes(operation, batch_size)
        most = max(most, total + sum(size_in_bytes(node, batch_size) for node in beside))
        used = {_storage(node) for node in (operation, *operation.all_input_nodes)}
        over = {node for node in used & own if last[node] == position} - kept
        total -= sum(size_in_bytes(node, batch_size) for node in over)
    return most


def size_in_bytes(node: Node, batch_size: int) -> int:
    """Return the bytes that a value owns; 0 for a view of another."""
    if is_size(node) or _storage(node) is not node:
        return 0
    value = node.meta["val"]
    parts = value if isinstance(value, tuple | list) else (value,)
    return sum(
        math.prod(concrete_size(size, batch_size) for size in part.shape) * part.element_size()
        for part in parts
        if isinstance(part, Tensor)
    )


def _storage(node: Node) -> Node:
    """Return the value that owns the memory of a view."""
    while is_view(node) and node.target not in COPIES:
        node = node.all_input_nodes[0]
    return node
