"""A name becomes a Backbone for graphs: one file per library, one table."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from delta_transfer.backbones.base import Backbone, GraphSpec
from delta_transfer.backbones.pretrain_gnns import load_pretrain_gnns
from delta_transfer.backbones.pyg_models import load_pyg
from delta_transfer.backbones.weights import load_weights
from delta_transfer.errors import UserError

# How a name begins -> loader.
GRAPH_LIBRARIES: dict[str, Callable[..., Backbone]] = {
    "pretrain-gnns/": load_pretrain_gnns,
    "pyg/": load_pyg,
}


def load_graph_backbone(
    name: str,
    *,
    num_outputs: int,
    spec: GraphSpec,
    pretrained: bool = True,
    weights: str | Path | None = None,
) -> Backbone:
    """A pretrained network for graphs with a fresh linear head.

    Args:
        name: `pretrain-gnns/gin|gcn|graphsage`, or `pyg/GIN|GCN|GraphSAGE|GAT|PNA`, which start
            from weights in a file; `pyg/GIN-3x128` has 3 layers of 128 features.
        num_outputs: outputs of the new head.
        spec: what is known of the nodes of the graphs.
        pretrained: whether to load (download, if need be) its weights.
        weights: start from the weights in this file in their place; nothing is downloaded then.

    Returns:
        The backbone; its notes say what of the file matched.

    Raises:
        UserError: if there is no such network, it does not take such graphs, its weights cannot be
            had, or the file does not fit.
    """
    loader, rest = find_graph_loader(name)
    backbone = loader(
        rest,
        num_outputs=num_outputs,
        spec=spec,
        pretrained=pretrained and weights is None,
    )
    if weights is None:
        return backbone
    note = load_weights(backbone.module, weights, head=backbone.head, name=name)
    return dataclasses.replace(backbone, notes=(*backbone.notes, note))


def find_graph_loader(name: str) -> tuple[Callable[..., Backbone], str]:
    """What loads a network, and the rest of its name.

    Raises:
        UserError: if no name of a network for graphs begins so.
    """
    loaders = [
        (start, loader) for start, loader in GRAPH_LIBRARIES.items() if name.startswith(start)
    ]
    if not loaders:
        raise UserError(
            f"model {name!r} is none for graphs, whose names begin with one of "
            f"{', '.join(GRAPH_LIBRARIES)}: give one of these, such as pretrain-gnns/gin"
        )
    start, loader = loaders[0]
    return loader, name.removeprefix(start)
