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
from delta_transfer.errors import UserError, unknown


def load_timm(
    name: str, *, num_outputs: int, image_size: int | None, pretrained: bool = True
) -> Backbone:
    """A network by its timm name, `resnet50` or `resnet50.a1_in1k`.

    Args:
        name: the name; after a dot the tag of the weights.
        num_outputs: outputs of the new head.
        image_size: side of the images in pixels; the network's own if None.
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
    sized: dict[str, Any] = {}
    if config is not None and config.fixed_input_size:
        # Its own size too: timm's `local-dir:` knows no other than this for the folder of a run.
        sized = {"img_size": image_size or config.input_size[-1]}
    return build_timm(
        name,
        name=name,
        architecture=architecture,
        model_args=sized,
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
    """A network as `timm.create_model` makes it, with a fresh head.

    Args:
        timm_name: what `timm.create_model` is given: a name, `hf-hub:...` or `local-dir:...`.
        name: what the user called it.
        architecture: its name without a tag.
        model_args: what else `timm.create_model` is given.
        num_outputs: outputs of the new head.
        image_size: side of the images in pixels; the network's own if None.
        pretrained: whether to load its weights.

    Raises:
        UserError: if the weights cannot be had, the size does not suit the network, or its head is
            not linear.
    """
    config = timm.get_pretrained_cfg(timm_name) if pretrained else None
    classes = 0 if config is None else config.num_classes  # none for weights without a classifier
    try:
        module = timm.create_model(
            timm_name,
            pretrained=pretrained,
            num_classes=classes or num_outputs,
            # The size is in `model_args`; some versions of timm add the config's by themselves.
            pretrained_cfg_overlay={"fixed_input_size": False},
            **model_args,
        )
    except DOWNLOAD_ERRORS as error:
        raise download_error(name, error) from error
    except (AssertionError, TypeError, ValueError) as error:
        raise UserError(
            f"model {name!r} cannot be made for these images: {short_error_message(error)}"
        ) from error
    except LOAD_ERRORS as error:
        raise load_error(name, error) from error
    classifier = None
    if classes:
        own = module.get_classifier()  # type: ignore[operator]  # every network of timm has both
        classifier = copy.deepcopy(own) if isinstance(own, nn.Linear) else None
        module.reset_classifier(num_outputs)  # type: ignore[operator]
    head = _linear_head(module, name)
    # The same start for every library's head; some of timm's own are many times larger.
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
        raise UserError(
            f"the head of model {name!r} is a {type(classifier).__name__}; only networks with one "
            "linear layer as their head can be fine-tuned, such as resnet50 or convnext_tiny"
        )
    return heads[0]


def resolve_input_spec(
    module: nn.Module, name: str, image_size: int | None
) -> tuple[InputSpec, tuple[str, ...]]:
    """How a network of timm wants its images, and notes on where we prepare them otherwise.

    Args:
        module: a network with a `pretrained_cfg`.
        name: what the user called it.
        image_size: side of the images in pixels; the network's own if None.

    Raises:
        UserError: if it takes no images with three channels.
    """
    config = resolve_data_config({}, model=module)  # type: ignore[no-untyped-call]  # timm's
    channels = config["input_size"][0]
    if channels != 3:
        raise UserError(
            f"model {name!r} takes images with {channels} channels: choose one for colour "
            "images, which have 3"
        )
    notes = []
    if config["crop_mode"] != "center":
        notes.append(
            f"images are cut out at the centre; the weights of {name} were measured with "
            f"timm's crop_mode {config['crop_mode']}"
        )
    interpolation = config["interpolation"]
    if interpolation not in ("bilinear", "bicubic"):
        notes.append(f"images are resized with bicubic in place of {interpolation} interpolation")
        interpolation = "bicubic"
    crop_pct = config["crop_pct"]
    if crop_pct > 1:
        notes.append(
            f"images fill the crop; the weights of {name} were measured with a margin around "
            f"them (timm's crop_pct {crop_pct})"
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
