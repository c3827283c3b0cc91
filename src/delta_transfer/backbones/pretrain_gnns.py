"""The networks on molecules of Hu et al. 2020 (pretrain-gnns), as they released weights of them."""

import contextlib
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone, GraphInputs, GraphSpec, disable_dropout
from delta_transfer.backbones.downloads import DOWNLOAD_ERRORS, download_error, load_error
from delta_transfer.backbones.graph_network import AtomEmbedding, GraphNetwork, Pool
from delta_transfer.backbones.weights import load_tensors
from delta_transfer.errors import UserError, unknown

WIDTH, DEPTH = 300, 5
NUM_BOND_TYPES, NUM_BOND_DIRECTIONS = 6, 3
NUM_BOND_KINDS = NUM_BOND_TYPES + NUM_BOND_DIRECTIONS
SELF_LOOP = 4  # the type of the bond, without direction, that joins each atom to itself

_RELEASED = (
    "https://raw.githubusercontent.com/snap-stanford/pretrain-gnns/"
    "8b20528a83b8869ce16451305b32c827258d19a3/chem"
)
# name -> where the weights are that contexts of atoms and then known activities were learnt with.
WEIGHT_URLS = {
    "gin": f"{_RELEASED}/model_gin/supervised_contextpred.pth",
    "gcn": f"{_RELEASED}/model_architecture/gcn_supervised_contextpred.pth",
    "graphsage": f"{_RELEASED}/model_architecture/graphsage_supervised_contextpred.pth",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Bonds:
    """The edges of molecules, self-loops among them, as each layer of a network sees them.

    An atom i is given `sum_j w_ij (h_j + e_ij)` by its neighbours j and itself, of which the part
    of the bonds e_ij depends on the layer by its embeddings alone: their kinds are counted here
    once for all layers. The weights are `w_ij = after_i before_j`.

    Args:
        source: j of each edge but self-loops, `[E]`.
        target: i of each, `[E]`.
        kinds: sum over j of w_ij by bond type and, behind them, by direction, `[R, 9]`.
        source_weights: `[R, 1]`.
        target_weights: `[R, 1]`.
    """

    source: Tensor
    target: Tensor
    kinds: Tensor
    source_weights: Tensor
    target_weights: Tensor

    def aggregate(self, h: Tensor, kinds: Tensor) -> Tensor:
        """`sum_j w_ij (h_j + e_ij)`, `[R, C]`.

        Args:
            h: features of atoms, `[R, C]`.
            kinds: the embeddings of bond types and directions, `[9, C]`.
        """
        h = h * self.source_weights
        return h.index_add(0, self.target, h.index_select(0, self.source)) * self.target_weights + (
            self.kinds @ kinds
        )


def encode_bonds(graphs: GraphInputs, dtype: torch.dtype, *, kind: str) -> Bonds:
    """The edges of molecules, weighted as a kind of network does it.

    Args:
        graphs: molecules.
        dtype: of the weights.
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
    kinds = ones.new_zeros(len(ones) * NUM_BOND_KINDS)
    for column in (attributes[:, 0], NUM_BOND_TYPES + attributes[:, 1]):
        kinds = kinds.index_add(0, target * NUM_BOND_KINDS + column, weights)
    kinds = kinds.view(-1, NUM_BOND_KINDS)
    kinds[:, [SELF_LOOP, NUM_BOND_TYPES]] += after * before
    return Bonds(
        source=source, target=target, kinds=kinds, source_weights=before, target_weights=after
    )


@final
class BondLayer(nn.Module):
    """A layer: what neighbours and bonds say, batch norm, and ReLU but for the last layer.

    Args:
        kind: `"gin"`, `"gcn"` or `"graphsage"`.
        width: features of an atom.
        last: whether there is no ReLU.
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
        """Features of atoms `[R, C]` -> the same after this layer."""
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
    """A network of Hu et al.: `gin`, `gcn` or `graphsage`, of five layers with 300 features.

    Args:
        name: which.
        num_outputs: outputs of the new head.
        spec: what the graphs are: molecules.
        pretrained: whether to load (download, if need be) its weights.

    Raises:
        UserError: if the name is unknown, the graphs are no molecules, or the weights cannot be
            had.
    """
    shown = f"pretrain-gnns/{name}"
    if name not in WEIGHT_URLS:
        raise unknown("model", shown, [f"pretrain-gnns/{known}" for known in WEIGHT_URLS])
    if spec.node_features != "atoms":
        raise UserError(
            f"model {shown!r} is for molecules, and the nodes of these graphs are no atoms: give "
            "one of PyTorch Geometric, such as pyg/GIN"
        )
    layers = [BondLayer(name, WIDTH, last=i == DEPTH - 1) for i in range(DEPTH)]
    module = GraphNetwork(
        AtomEmbedding(WIDTH),
        layers,
        encode_edges=functools.partial(encode_bonds, kind=name),
        width=WIDTH,
        num_outputs=num_outputs,
        pool=Pool(1.0),
    )
    disable_dropout(module)
    if pretrained:
        state = _fetch(shown, WEIGHT_URLS[name])
        load_tensors(module, {"": state}, head="head", name=shown, weights_name=WEIGHT_URLS[name])
    return Backbone(module=module, head="head", input_spec=spec, architecture=shown, model_args={})


def _fetch(name: str, url: str) -> dict[str, Any]:
    """The released tensors, downloaded to torch's cache if they are not there."""
    # The files of one kind of network are called like those of another.
    file = f"{name.replace('/', '-')}-{url.rpartition('/')[2]}"
    try:
        # What a command prints may be read by a program, and torch prints that it downloads.
        with contextlib.redirect_stdout(sys.stderr):
            return torch.hub.load_state_dict_from_url(
                url, map_location="cpu", weights_only=True, file_name=file
            )
    except DOWNLOAD_ERRORS as error:
        raise download_error(name, error) from error
    except Exception as error:  # a damaged file may fail in any way
        path = Path(torch.hub.get_dir()) / "checkpoints" / file
        raise load_error(name, error, file=path if path.exists() else None) from error
