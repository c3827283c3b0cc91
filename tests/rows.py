"""Inputs that are no tensors and a network whose features are rows, as graphs have them."""

import dataclasses

import torch
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Graphs side by side: what networks of the tests take in the place of a tensor."""

    x: Tensor  # [R, F]
    edge_index: Tensor  # [2, E], over all rows
    groups: Tensor  # [R]
    samples: int

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, which: slice) -> "Rows":
        return Rows.cat([self._one(i) for i in range(self.samples)[which]])

    def _one(self, i: int) -> "Rows":
        mine = self.groups == i
        first = int(mine.nonzero().min())
        edges = self.edge_index[:, mine[self.edge_index[0]]] - first
        return Rows(self.x[mine], edges, torch.zeros_like(self.groups[mine]), 1)

    @staticmethod
    def cat(parts: "list[Rows]") -> "Rows":
        rows = torch.tensor([0, *(len(part.x) for part in parts)]).cumsum(0)
        samples = torch.tensor([0, *(len(part) for part in parts)]).cumsum(0)
        return Rows(
            torch.cat([part.x for part in parts]),
            torch.cat([p.edge_index + r for p, r in zip(parts, rows[:-1], strict=True)], dim=1),
            torch.cat([p.groups + s for p, s in zip(parts, samples[:-1], strict=True)]),
            int(samples[-1]),
        )

    def to(self, device: torch.device) -> "Rows":
        moved = (part.to(device) for part in (self.x, self.edge_index, self.groups))
        return Rows(*moved, self.samples)


def some_rows(sizes: tuple[int, ...] = (3, 1, 5, 2), *, seed: int = 0, width: int = 4) -> Rows:
    """A graph of each size: a ring, with a further edge now and then; both directions of each."""
    generator = torch.Generator().manual_seed(seed)
    graphs = []
    for size in sizes:
        pairs = {(i, (i + 1) % size) for i in range(size)} | {(0, size // 2)}
        both = sorted({(b, a) for a, b in pairs if a != b} | {(a, b) for a, b in pairs if a != b})
        edges = torch.tensor(both, dtype=torch.int64).reshape(-1, 2).T
        x = torch.randn(size, width, generator=generator)
        graphs.append(Rows(x, edges, torch.zeros(size, dtype=torch.int64), 1))
    return Rows.cat(graphs)


class Layer(nn.Module):
    """Each row is given the sum of its neighbours; batch norm on rows."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(inputs, outputs)
        self.norm = nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        start, end = edge_index
        around = torch.zeros_like(x).index_add_(0, end, x[start])
        return torch.tanh(self.norm(self.linear(x + around)))


class MeanPool(nn.Module):
    """The mean over the rows of each sample."""

    def forward(self, x: Tensor, groups: Tensor, samples: int) -> Tensor:
        sums = x.new_zeros(samples, x.shape[1]).index_add_(0, groups, x)
        return sums / torch.bincount(groups, minlength=samples).unsqueeze(1).to(x)


class GraphNet(nn.Module):
    """Three layers on rows, a pooling and a head."""

    def __init__(self, width: int = 4, outputs: int = 3) -> None:
        super().__init__()
        self.layers = nn.ModuleList([Layer(width, 5), Layer(5, 5), Layer(5, 6)])
        self.pool = MeanPool()
        self.head = nn.Linear(6, outputs)

    def forward(self, inputs: Rows) -> Tensor:
        x = inputs.x
        for layer in self.layers:
            x = layer(x, inputs.edge_index)
        return self.head(self.pool(x, inputs.groups, len(inputs)))


def graph_net(seed: int = 0, outputs: int = 3) -> GraphNet:
    """A GraphNet in eval mode with random weights, batch-norm statistics and affine parameters."""
    torch.manual_seed(seed)
    net = GraphNet(outputs=outputs)
    for layer in net.layers:
        nn.init.normal_(layer.norm.weight, 1.0, 0.3)
        nn.init.normal_(layer.norm.bias)
        nn.init.normal_(layer.norm.running_mean)
        nn.init.uniform_(layer.norm.running_var, 0.5, 2.0)
    return net.eval()
