"""The plain networks of PyTorch Geometric, `torch_geometric.nn.models`."""

import importlib
import re
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone, GraphInputs, GraphSpec, disable_dropout
from delta_transfer.backbones.graph_network import AtomEmbedding, GraphNetwork, Pool
from delta_transfer.errors import UserError, unknown
from delta_transfer.utils.optional import require_graph_libraries

DEPTH, WIDTH = 5, 64
POOL_POWER = 0.5  # for how large a graph is may be what matters
ARCHITECTURES = ("GIN", "GCN", "GraphSAGE", "GAT", "PNA")

# What PNA is made of (Corso et al. 2020, https://arxiv.org/abs/2004.05718). It divides by a mean
# over the degrees of nodes, which the weights after it make up for: it is fixed, by nodes with
# three edges, so that networks do not depend on the data.
_PNA: dict[str, Any] = {
    "aggregators": ["mean", "min", "max", "std"],
    "scalers": ["identity", "amplification", "attenuation"],
    "deg": torch.tensor([0, 0, 0, 1]),
}


@final
class PlainLayer(nn.Module):
    """A convolution of PyTorch Geometric, batch norm and ReLU.

    Args:
        convolution: features of nodes and edges -> features of nodes.
        norm: batch norm.
    """

    def __init__(self, convolution: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = norm

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Features of nodes `[R, C]` -> the same after this layer."""
        return F.relu(self.norm(self.convolution(x, edge_index)))


def select_edge_index(graphs: GraphInputs, dtype: torch.dtype) -> Tensor:
    """What a layer is told of the edges: where they are, `[2, E]`."""
    return graphs.edge_index


def load_pyg(name: str, *, num_outputs: int, spec: GraphSpec, pretrained: bool = True) -> Backbone:
    """A network of PyTorch Geometric, `GIN`, or `GIN-3x128` for 3 layers of 128 features.

    Nodes are embedded first: atoms as in the networks of Hu et al., numbers by a linear layer.
    Features of edges are not used.

    Args:
        name: which.
        num_outputs: outputs of the new head.
        spec: what the graphs are.
        pretrained: must not be, for there are no published weights.

    Raises:
        UserError: if the name is unknown, PyTorch Geometric is not installed, or the network would
            start at random.
    """
    shown = f"pyg/{name}"
    parts = re.fullmatch(r"([^-]+)(?:-(\d{1,4})x(\d{1,4}))?", name)
    if parts is None or parts[1] not in ARCHITECTURES:
        choices = [f"pyg/{kind}" for kind in ARCHITECTURES]
        raise unknown("model", shown, [*choices, "pyg/GIN-3x128 (3 layers of 128 features)"])
    depth, width = int(parts[2] or DEPTH), int(parts[3] or WIDTH)
    if not depth or not width:
        raise UserError(f"model {shown!r} has nothing in it: give at least one layer and feature")
    if pretrained:
        raise UserError(
            f"there are no published weights of model {shown!r}, and from random ones there is "
            f"nothing to keep: make some, delta-transfer pretrain DATA --model {shown} --out DIR, "
            "and give them by --weights DIR/weights.safetensors"
        )
    require_graph_libraries(f"model {shown!r}")
    # The layers of a network that has a norm after each, the last one too.
    kind = getattr(importlib.import_module("torch_geometric.nn.models"), parts[1])
    options = _PNA if parts[1] == "PNA" else {}
    made = kind(width, width, depth, norm="batch_norm", jk="last", **options)
    module = GraphNetwork(
        AtomEmbedding(width)
        if spec.node_features == "atoms"
        else nn.Linear(spec.num_node_features, width),
        [PlainLayer(*parts) for parts in zip(made.convs, made.norms, strict=True)],
        encode_edges=select_edge_index,
        width=width,
        num_outputs=num_outputs,
        pool=Pool(POOL_POWER),
    )
    disable_dropout(module)
    return Backbone(
        module=module,
        head="head",
        input_spec=spec,
        architecture=shown,
        model_args={"pool": POOL_POWER},
    )
