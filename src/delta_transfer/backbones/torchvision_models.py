"""Networks of torchvision."""

import dataclasses
import functools
from typing import Any

import torchvision.models
from torch import nn
from torchvision.models.vision_transformer import interpolate_embeddings

from delta_transfer.backbones.base import (
    Backbone,
    InputSpec,
    check_image_size,
    disable_dropout,
    image_size_error,
    replace_head,
)
from delta_transfer.backbones.downloads import fetch_state_dict
from delta_transfer.backbones.weights import load_tensors
from delta_transfer.backbones.weights_file import read_classifier
from delta_transfer.errors import ModelError, unknown

# Networks whose weights expect images in [-1, 1]. torchvision converts them from ImageNet's
# normalisation inside of the network; here the input spec has it.
_SYMMETRIC_RANGE_MODELS = ("googlenet", "inception_v3")


def load_torchvision(
    name: str, *, num_outputs: int, image_size: int | None, pretrained: bool = True
) -> Backbone:
    """Load a classification network of torchvision, `resnet50` or `resnet50.IMAGENET1K_V1`.

    Args:
        name: the name; after a dot the tag of the weights, torchvision's `DEFAULT` without one.
        num_outputs: outputs of the new head.
        image_size: side of the images in pixels; that of the weights if None.
        pretrained: load its weights, and download them if needed.

    Raises:
        UserError: if the name or tag is unknown, the weights cannot be loaded, the network does
            not accept the image size, or its head is not linear.
    """
    architecture, _, tag = name.partition(".")
    known = torchvision.models.list_models(module=torchvision.models)
    if architecture not in known:
        raise unknown("model", f"torchvision/{name}", [f"torchvision/{other}" for other in known])
    tags = torchvision.models.get_model_weights(architecture)
    if tag and tag not in tags.__members__:
        raise unknown(f"weights of model {architecture!r}", tag, list(tags.__members__))
    weights = tags[tag or "DEFAULT"]
    shown = f"torchvision/{name}"
    spec = _input_spec(architecture, weights, image_size)
    module = _build(shown, architecture, num_outputs, spec.size)
    head = _linear_head(module, shown, num_outputs)
    replace_head(module, head, num_outputs=num_outputs)  # with a bias, which some heads lack
    disable_dropout(module)
    if image_size is not None:
        check_image_size(module, shown, image_size)
    classifier = None
    if pretrained:
        get = functools.partial(
            weights.get_state_dict, check_hash=True, map_location="cpu", weights_only=True
        )
        state = fetch_state_dict(shown, weights.url.rpartition("/")[2], get)
        classifier = read_classifier(state, head, head=module.get_submodule(head))
        if architecture.startswith("vit_"):
            state = interpolate_embeddings(spec.size, module.patch_size, state)
        load_tensors(module, {"": state}, head=head, name=shown, weights_name=str(weights))
    return Backbone(
        module=module,
        head=head,
        input_spec=spec,
        architecture=f"torchvision/{architecture}",
        model_args={},
        classifier=classifier,
    )


def _build(name: str, architecture: str, num_outputs: int, size: int) -> nn.Module:
    options: dict[str, Any] = {}
    if architecture in _SYMMETRIC_RANGE_MODELS:
        options = {"aux_logits": False, "transform_input": False, "init_weights": False}
    elif architecture.startswith("vit_"):
        options = {"image_size": size}
    elif architecture.startswith("maxvit_"):
        options = {"input_size": (size, size)}
    try:
        module: nn.Module = torchvision.models.get_model(
            architecture, weights=None, num_classes=num_outputs, **options
        )
    except (AssertionError, ValueError) as error:
        raise image_size_error(name, size, error) from error
    return module


def _linear_head(module: nn.Module, name: str, num_outputs: int) -> str:
    linear: list[str] = [
        path for path, part in module.named_modules() if isinstance(part, nn.Linear)
    ]
    if not linear or module.get_submodule(linear[-1]).out_features != num_outputs:
        raise ModelError(
            f"the head of model {name!r} is not one linear layer: use another model, such as "
            "torchvision/resnet50"
        )
    return linear[-1]


def _input_spec(architecture: str, weights: Any, image_size: int | None) -> InputSpec:
    preset = weights.transforms()
    size = preset.crop_size[0]
    spec = InputSpec(
        size=image_size or size,
        crop_pct=size / preset.resize_size[0],
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )
    if architecture in _SYMMETRIC_RANGE_MODELS:
        spec = dataclasses.replace(spec, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    return spec
