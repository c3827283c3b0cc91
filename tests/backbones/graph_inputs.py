"""Random molecule-like graphs, for networks that use the properties of inputs only."""

import dataclasses

import torch
from torch import Tensor


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Inputs:
    """Inputs of a network for graphs."""

    x: Tensor
    edge_index: Tensor
    edge_attr: Tensor | None
    groups: Tensor
    count: int

    def __len__(self) -> int:
        return self.count


def molecules(*sizes: int, seed: int = 0) -> Inputs:
    """Return graphs of these sizes, with bonds in both directions and some isolated atoms."""
    draw = torch.Generator().manual_seed(seed)

    def integers(high: int, *shape: int) -> Tensor:
        return torch.randint(high, shape, generator=draw)

    pairs, first = set(), 0
    for size in sizes:
        for _ in range(size):
            one, other = (first + integers(size, 2)).tolist()
            if one != other:
                pairs.add((min(one, other), max(one, other)))
        first += size
    half = torch.tensor(sorted(pairs), dtype=torch.long).reshape(-1, 2).T
    attributes = torch.stack([integers(4, half.shape[1]), integers(3, half.shape[1])], dim=1)
    return Inputs(
        x=torch.stack([integers(118, sum(sizes)), integers(3, sum(sizes))], dim=1),
        edge_index=torch.cat([half, half.flip(0)], dim=1),
        edge_attr=torch.cat([attributes, attributes]),
        groups=torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
        count=len(sizes),
    )
