"""Networks of timm."""

import copy
from collections.abc import Mapping
from typing import Any

import timm
from timm.data.config import resolve_data_config
from torch import nn

from delta_transfer.backbones.base import (
    Backbone,
    InputSpec,
    channels_error,
    check_image_size,
    disable_dropout,
    replace_head,
    short_error_message,
)
from delta_transfer.backbones.downloads import (
    DOWNLOAD_ERRORS,
    LOAD_ERRORS,
    download_error,
    load_error,
)
from delta_transfer.errors import ConfigError, ModelError, unknown


def load_timm(
    name: str, *, num_outputs: int, image_size: int | None, pretrained: bool = True
) -> Backbone:
    """Load a network by its timm name, `resnet50` or `resnet50.a1_in1k`.

    Args:
        name: the name; after a dot the tag of the weights.
        num_outputs: outputs of the new head.
        image_size: side of the images in pixels; the network's own if None.
        pretrained: load its weights, and download them if needed.

    Raises:
        UserError: if the name or tag is unknown, the weights cannot be downloaded, the network
            does not accept the image size, or its head is not linear.
    """
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("model", name, timm.list_models())
    tags = [model.partition(".")[2] for model in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown(f"weights of model {architecture!r}", tag, tags)
    if pretrained and not tags:
        raise ConfigError(
            f"timm has no pretrained weights for {architecture!r}: choose a model from "
            "timm.list_pretrained()"
        )
    config = timm.get_pretrained_cfg(name)
    model_args: dict[str, Any] = {}
    if config is not None and config.fixed_input_size:
        # Its own size too: timm's `local-dir:` reads the size of a run's folder from here.
        model_args = {"img_size": image_size or config.input_size[-1]}
    return build_timm(
        name,
        name=name,
        architecture=architecture,
        model_args=model_args,
        num_outputs=num_outputs,
        image_size=image_size,
        pretrained=pretrained,
    )


def build_timm(
    timm_name: str,
    *,
    name: str,
    architecture: str,
    model_args: Mapping[str, Any],
    num_outputs: int,
    image_size: int | None,
    pretrained: bool,
) -> Backbone:
    """Create a network with `timm.create_model` and replace its head.

    Args:
        timm_name: argument of `timm.create_model`: a name, `hf-hub:...` or `local-dir:...`.
        name: the name that the user passed.
        architecture: its name without a tag.
        model_args: further arguments of `timm.create_model`.
        num_outputs: outputs of the new head.
        image_size: side of the images in pixels; the network's own if None.
        pretrained: load its weights.

    Raises:
        UserError: if the weights cannot be loaded, the network does not accept the image size, or
            its head is not linear.
    """
    config = timm.get_pretrained_cfg(timm_name) if pretrained else None
    classes = 0 if config is None else config.num_classes  # 0 for weights without a classifier
    try:
        module = timm.create_model(
            timm_name,
            pretrained=pretrained,
            num_classes=classes or num_outputs,
            # The size is in `model_args`; some versions of timm add that of the config.
            pretrained_cfg_overlay={"fixed_input_size": False},
            **model_args,
        )
    except DOWNLOAD_ERRORS as error:
        raise download_error(name, error) from error
    except (AssertionError, TypeError, ValueError) as error:
        raise ConfigError(
            f"model {name!r} cannot be created for these images: {short_error_message(error)}"
        ) from error
    except LOAD_ERRORS as error:
        raise load_error(name, error) from error
    classifier = None
    if classes:
        own = module.get_classifier()  # type: ignore[operator]  # every network of timm has both
        classifier = copy.deepcopy(own) if isinstance(own, nn.Linear) else None
        module.reset_classifier(num_outputs)  # type: ignore[operator]
    head = _linear_head(module, name)
    # The same initialization for every library's head; some of timm's are many times larger.
    replace_head(module, head, num_outputs=num_outputs)
    disable_dropout(module)
    spec, notes = resolve_input_spec(module, name, image_size)
    if image_size is not None:
        check_image_size(module, name, image_size)
    return Backbone(
        module=module,
        head=head,
        input_spec=spec,
        architecture=architecture,
        model_args=model_args,
        notes=notes,
        classifier=classifier,
    )


def _linear_head(module: nn.Module, name: str) -> str:
    classifier = module.get_classifier()  # type: ignore[operator]  # every network of timm has it
    heads: list[str] = [path for path, part in module.named_modules() if part is classifier]
    if not heads or not isinstance(classifier, nn.Linear):
        raise ModelError(
            f"the head of model {name!r} is a {type(classifier).__name__}, not one linear layer: "
            "use another model, such as resnet50 or convnext_tiny"
        )
    return heads[0]


def resolve_input_spec(
    module: nn.Module, name: str, image_size: int | None
) -> tuple[InputSpec, tuple[str, ...]]:
    """Return the preprocessing of a network of timm, and notes on differences from timm's.

    Args:
        module: a network with a `pretrained_cfg`.
        name: the name that the user passed.
        image_size: side of the images in pixels; the network's own if None.

    Raises:
        ModelError: if it does not expect images with three channels.
    """
    config = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]  # timm's
    channels = config["input_size"][0]
    if channels != 3:
        raise channels_error(name, channels)
    notes = []
    if config["crop_mode"] != "center":
        notes.append(
            f"images are cropped at the centre; timm evaluated the weights of {name} with "
            f"crop_mode {config['crop_mode']}"
        )
    interpolation = config["interpolation"]
    if interpolation not in ("bilinear", "bicubic"):
        notes.append(f"images are resized with bicubic instead of {interpolation} interpolation")
        interpolation = "bicubic"
    crop_pct = config["crop_pct"]
    if crop_pct > 1:
        notes.append(
            f"images fill the crop; timm evaluated the weights of {name} with a margin around them "
            f"(crop_pct {crop_pct})"
        )
        crop_pct = 1.0
    spec = InputSpec(
        size=image_size or config["input_size"][-1],
        crop_pct=crop_pct,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=interpolation,
    )
    return spec, tuple(notes)
