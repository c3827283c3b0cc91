"""The basic networks of PyTorch Geometric, `torch_geometric.nn.models`."""

import importlib
import re
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone, GraphInputs, GraphSpec, disable_dropout
from delta_transfer.backbones.graph_network import AtomEmbedding, GraphNetwork, Pool
from delta_transfer.errors import ConfigError, unknown
from delta_transfer.utils.optional import require_graph_libraries

DEPTH, WIDTH = 5, 64
_POOL_POWER = 0.5  # the size of a graph may matter, which a mean hides
_ARCHITECTURES = ("GIN", "GCN", "GraphSAGE", "GAT", "PNA")

# Arguments of PNA (Corso et al. 2020, https://arxiv.org/abs/2004.05718). It divides by a mean over
# the degrees of nodes, which later weights can undo: it is fixed to that of nodes with three edges,
# so that networks do not depend on the data.
_PNA: dict[str, Any] = {
    "aggregators": ["mean", "min", "max", "std"],
    "scalers": ["identity", "amplification", "attenuation"],
    "deg": torch.tensor([0, 0, 0, 1]),
}


@final
class PlainLayer(nn.Module):
    """A convolution of PyTorch Geometric, batch norm and ReLU.

    Args:
        convolution: node features and edges -> node features.
        norm: batch norm.
    """

    def __init__(self, convolution: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution
        self.norm = norm

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        """Map node features `[R, C]` to new ones of the same shape."""
        return F.relu(self.norm(self.convolution(x, edge_index)))


def _select_edge_index(graphs: GraphInputs, dtype: torch.dtype) -> Tensor:
    """Return the edges as PyTorch Geometric's layers take them, `[2, E]`."""
    return graphs.edge_index


def load_pyg(name: str, *, num_outputs: int, spec: GraphSpec, pretrained: bool = True) -> Backbone:
    """Create a network of PyTorch Geometric, `GIN`, or `GIN-3x128` for 3 layers of 128 features.

    Nodes are embedded first: atoms as in the networks of Hu et al., numbers by a linear layer.
    Edge features are not used.

    Args:
        name: the name, with depth and width if they are not the default.
        num_outputs: outputs of the new head.
        spec: the node features of the graphs.
        pretrained: must be False, as there are no published weights.

    Raises:
        UserError: if the name is unknown, PyTorch Geometric is not installed, or pretrained
            weights are requested.
    """
    shown = f"pyg/{name}"
    parts = re.fullmatch(r"([^-]+)(?:-(\d{1,4})x(\d{1,4}))?", name)
    if parts is None or parts[1] not in _ARCHITECTURES:
        choices = [f"pyg/{kind}" for kind in _ARCHITECTURES]
        raise unknown("model", shown, [*choices, "pyg/GIN-3x128 (3 layers of 128 features)"])
    depth, width = int(parts[2] or DEPTH), int(parts[3] or WIDTH)
    if not depth or not width:
        raise ConfigError(f"model {shown!r} is empty: use at least one layer and one feature")
    if pretrained:
        raise ConfigError(
            f"model {shown!r} has no published weights: pretrain it, delta-transfer pretrain DATA "
            f"--model {shown} --out DIR, then pass --weights DIR/weights.safetensors"
        )
    require_graph_libraries(f"model {shown!r}")
    # With jk the last layer has a norm, too.
    model_class = getattr(importlib.import_module("torch_geometric.nn.models"), parts[1])
    options = _PNA if parts[1] == "PNA" else {}
    network = model_class(width, width, depth, norm="batch_norm", jk="last", **options)
    module = GraphNetwork(
        AtomEmbedding(width)
        if spec.node_features == "atoms"
        else nn.Linear(spec.num_node_features, width),
        [PlainLayer(*parts) for parts in zip(network.convs, network.norms, strict=True)],
        encode_edges=_select_edge_index,
        width=width,
        num_outputs=num_outputs,
        pool=Pool(_POOL_POWER),
    )
    disable_dropout(module)
    return Backbone(
        module=module,
        head="head",
        input_spec=spec,
        architecture=shown,
        model_args={"pool": _POOL_POWER},
    )
