"""The networks for molecules of Hu et al. 2020 (pretrain-gnns), with their released weights."""

import functools
from dataclasses import dataclass
from typing import cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone, GraphInputs, GraphSpec, disable_dropout
from delta_transfer.backbones.downloads import fetch_state_dict
from delta_transfer.backbones.graph_network import AtomEmbedding, GraphNetwork, Pool
from delta_transfer.backbones.weights import load_tensors
from delta_transfer.errors import ConfigError, unknown

WIDTH, DEPTH = 300, 5
NUM_BOND_TYPES, NUM_BOND_DIRECTIONS = 6, 3
_NUM_BOND_KINDS = NUM_BOND_TYPES + NUM_BOND_DIRECTIONS
_SELF_LOOP = 4  # bond type of self-loops, which have no direction

_RELEASED = (
    "https://raw.githubusercontent.com/snap-stanford/pretrain-gnns/"
    "8b20528a83b8869ce16451305b32c827258d19a3/chem"
)
# name -> weights pretrained by context prediction, then on known activities.
WEIGHT_URLS = {
    "gin": f"{_RELEASED}/model_gin/supervised_contextpred.pth",
    "gcn": f"{_RELEASED}/model_architecture/gcn_supervised_contextpred.pth",
    "graphsage": f"{_RELEASED}/model_architecture/graphsage_supervised_contextpred.pth",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Bonds:
    """The edges of molecules with self-loops, encoded once for all layers.

    Atom i aggregates `sum_j w_ij (h_j + e_ij)` over its neighbours j and itself. The bonds' part
    e_ij depends on the layer only by its embeddings, so bond types are counted here. The weights
    factorise, `w_ij = target_weights_i source_weights_j`.

    Args:
        source: j of each edge without self-loops, `[E]`.
        target: i of each edge without self-loops, `[E]`.
        kinds: sum over j of w_ij per bond type, then per direction, `[R, 9]`.
        source_weights: `[R, 1]`.
        target_weights: `[R, 1]`.
    """

    source: Tensor
    target: Tensor
    kinds: Tensor
    source_weights: Tensor
    target_weights: Tensor

    def aggregate(self, h: Tensor, kinds: Tensor) -> Tensor:
        """Return `sum_j w_ij (h_j + e_ij)`, `[R, C]`.

        Args:
            h: features of atoms, `[R, C]`.
            kinds: the embeddings of bond types and directions, `[9, C]`.
        """
        h = h * self.source_weights
        return h.index_add(0, self.target, h.index_select(0, self.source)) * self.target_weights + (
            self.kinds @ kinds
        )


def _encode_bonds(graphs: GraphInputs, dtype: torch.dtype, *, kind: str) -> Bonds:
    """Encode the edges of molecules with the weights of a kind of network.

    Args:
        graphs: molecules.
        dtype: dtype of the weights.
        kind: `"gin"` (a sum), `"graphsage"` (a mean) or `"gcn"` (w_ij = 1 / sqrt(d_i d_j), where
            d counts an atom's edges and itself).
    """
    source, target = graphs.edge_index
    attributes = graphs.edge_attr
    assert attributes is not None
    ones = torch.ones(len(graphs.x), 1, dtype=dtype, device=target.device)
    degree = ones.index_add(0, target, ones[target])
    before = degree.rsqrt() if kind == "gcn" else ones
    after = {"gin": ones, "graphsage": 1 / degree, "gcn": before}[kind]
    weights = (after[target] * before[source])[:, 0]
    kinds = ones.new_zeros(len(ones) * _NUM_BOND_KINDS)
    for column in (attributes[:, 0], NUM_BOND_TYPES + attributes[:, 1]):
        kinds = kinds.index_add(0, target * _NUM_BOND_KINDS + column, weights)
    kinds = kinds.view(-1, _NUM_BOND_KINDS)
    kinds[:, [_SELF_LOOP, NUM_BOND_TYPES]] += after * before
    return Bonds(
        source=source, target=target, kinds=kinds, source_weights=before, target_weights=after
    )


@final
class BondLayer(nn.Module):
    """A message-passing layer: aggregation, batch norm, and ReLU except in the last layer.

    Args:
        kind: `"gin"`, `"gcn"` or `"graphsage"`.
        width: features of an atom.
        last: leave out the ReLU.
    """

    def __init__(self, kind: str, width: int, *, last: bool) -> None:
        super().__init__()
        self.kind = kind
        self.last = last
        if kind == "gin":
            self.mlp = nn.Sequential(
                nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width)
            )
        else:
            self.linear = nn.Linear(width, width)
        self.edge_embedding1 = nn.Embedding(NUM_BOND_TYPES, width)
        self.edge_embedding2 = nn.Embedding(NUM_BOND_DIRECTIONS, width)
        for table in (self.edge_embedding1, self.edge_embedding2):
            nn.init.xavier_uniform_(table.weight)
        self.norm = nn.BatchNorm1d(width)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, bonds: Bonds) -> Tensor:
        """Map features of atoms `[R, C]` to new ones of the same shape."""
        kinds = torch.cat([self.edge_embedding1.weight, self.edge_embedding2.weight])
        if self.kind == "gin":
            h = self.mlp(bonds.aggregate(x, kinds))
        else:
            h = bonds.aggregate(self.linear(x), kinds)
        if self.kind == "graphsage":
            h = F.normalize(h)
        h = self.norm(h)
        return cast("Tensor", self.dropout(h if self.last else F.relu(h)))


def load_pretrain_gnns(
    name: str, *, num_outputs: int, spec: GraphSpec, pretrained: bool = True
) -> Backbone:
    """Load a network of Hu et al. with five layers of 300 features.

    Args:
        name: `gin`, `gcn` or `graphsage`.
        num_outputs: outputs of the new head.
        spec: the node features of the graphs, which must be atoms.
        pretrained: load its weights, and download them if needed.

    Raises:
        UserError: if the name is unknown, the graphs are not molecules, or the weights cannot be
            loaded.
    """
    shown = f"pretrain-gnns/{name}"
    if name not in WEIGHT_URLS:
        raise unknown("model", shown, [f"pretrain-gnns/{known}" for known in WEIGHT_URLS])
    if spec.node_features != "atoms":
        raise ConfigError(
            f"model {shown!r} is for molecules, and the nodes of these graphs are not atoms: use "
            "another model, such as pyg/GIN"
        )
    layers = [BondLayer(name, WIDTH, last=i == DEPTH - 1) for i in range(DEPTH)]
    module = GraphNetwork(
        AtomEmbedding(WIDTH),
        layers,
        encode_edges=functools.partial(_encode_bonds, kind=name),
        width=WIDTH,
        num_outputs=num_outputs,
        pool=Pool(1.0),
    )
    disable_dropout(module)
    if pretrained:
        url = WEIGHT_URLS[name]
        # The files of one kind of network have the names of another's.
        file = f"{shown.replace('/', '-')}-{url.rpartition('/')[2]}"
        get = functools.partial(
            torch.hub.load_state_dict_from_url,
            url,
            map_location="cpu",
            weights_only=True,
            file_name=file,
        )
        state = fetch_state_dict(shown, file, get)
        load_tensors(module, {"": state}, head="head", name=shown, weights_name=url)
    return Backbone(module=module, head="head", input_spec=spec, architecture=shown, model_args={})
