"""A network of the user's own becomes a Backbone."""

import copy
import dataclasses
from pathlib import Path

import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import (
    Backbone,
    InputSpec,
    blank_images,
    disable_dropout,
    replace_head,
    short_error_message,
)
from delta_transfer.backbones.timm_models import resolve_input_spec
from delta_transfer.backbones.weights import load_weights
from delta_transfer.errors import UserError, unknown

IMAGENET = InputSpec(
    size=224,
    crop_pct=0.875,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    interpolation="bilinear",
)


def wrap_network(
    network: nn.Module,
    *,
    num_outputs: int,
    head: str = "auto",
    image_size: int | None = None,
    input_spec: InputSpec | None = None,
    weights: str | Path | None = None,
) -> Backbone:
    """Any pretrained network, copied and with a fresh linear head.

    Dropout and stochastic depth of the copy are off. Whether its parameters require gradients
    stays as it is.

    Args:
        network: takes images `[B, 3, H, W]`, gives logits `[B, K]`; left as it was.
        num_outputs: outputs of the new head.
        head: name of the linear layer that makes the logits; `"auto"` asks timm's
            `get_classifier()` where there is one, else takes the last `nn.Linear`.
        image_size: side of the images in pixels; that of `input_spec` if None.
        input_spec: how images are prepared; if None, as timm's `pretrained_cfg` of the network
            says, and without one as for ImageNet.
        weights: start from the weights in this file.

    Returns:
        The backbone; a note says where its images are prepared by a guess.

    Raises:
        UserError: if the network cannot be copied, has no such head, does not turn images into
            `[B, num_outputs]` with the new one, or gives something else than this one's output;
            or the file does not fit.

    Example:
        >>> network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        >>> network.append(nn.Linear(8, 1000))[-1]
        Linear(in_features=8, out_features=1000, bias=True)
        >>> backbone = wrap_network(network, num_outputs=2, image_size=32)
        >>> backbone.head, backbone.module[-1]
        ('3', Linear(in_features=8, out_features=2, bias=True))
    """
    name = type(network).__name__
    try:
        module = copy.deepcopy(network)
    except Exception as error:  # a network of the user's own may fail in any way
        raise UserError(
            f"{name} cannot be copied ({short_error_message(error)}): give a network without "
            "hooks that hold "
            "tensors, and none that is wrapped for training on several devices"
        ) from error
    module.zero_grad()
    head = _find_head(module, head)
    spec, notes = _find_input(module, name, input_spec, image_size)
    replace_head(module, head, num_outputs=num_outputs)
    disable_dropout(module)
    _check_outputs(module, name, head=head, num_outputs=num_outputs, size=spec.size)
    if weights is not None:
        notes = (*notes, load_weights(module, weights, head=head, name=name))
    return Backbone(
        module=module.train(),
        head=head,
        input_spec=spec,
        architecture=None,
        model_args={},
        notes=notes,
    )


def _find_head(module: nn.Module, head: str) -> str:
    parts = {part: name for name, part in module.named_modules() if name}
    linear: dict[nn.Module, str] = {
        part: name for part, name in parts.items() if isinstance(part, nn.Linear)
    }
    names: list[str] = list(linear.values())
    if head != "auto":
        if head not in names:
            raise unknown("linear head", head, names)
        return head
    if not names:
        raise UserError(
            f"{type(module).__name__} has no nn.Linear that could be its head: give a network that "
            "ends in one"
        )
    classifier = getattr(module, "get_classifier", None)
    found = classifier() if callable(classifier) else None
    return linear[found] if isinstance(found, nn.Linear) and found in linear else names[-1]


def _find_input(
    module: nn.Module, name: str, input_spec: InputSpec | None, image_size: int | None
) -> tuple[InputSpec, tuple[str, ...]]:
    if input_spec is not None:
        size = input_spec.size if image_size is None else image_size
        return dataclasses.replace(input_spec, size=size), ()
    if isinstance(getattr(module, "pretrained_cfg", None), dict):
        return resolve_input_spec(module, name, image_size)
    spec = dataclasses.replace(IMAGENET, size=IMAGENET.size if image_size is None else image_size)
    note = (
        f"how {name} wants its images is not known: they are prepared as for ImageNet, with "
        f"{spec.size} pixels; give input=InputSpec(...) if it wants them otherwise"
    )
    return spec, (note,)


def _check_outputs(module: nn.Module, name: str, *, head: str, num_outputs: int, size: int) -> None:
    """Raises UserError where the head does not make `[B, num_outputs]` of images, in any mode."""
    # Batch norm in train mode changes its statistics, so that this is done to a copy.
    module = copy.deepcopy(module)
    made: list[Tensor] = []
    module.get_submodule(head).register_forward_hook(
        lambda _, inputs, output: made.append(output.clone())  # may be changed in place
    )
    images = blank_images(module, size, count=2)
    for mode in ("eval", "train"):
        made.clear()
        try:
            with torch.no_grad():
                output = module.train(mode == "train")(images)
        except Exception as error:  # as above
            raise UserError(
                f"{name} fails on images {list(images.shape)} once its head {head!r} is "
                f"replaced ({short_error_message(error)}): name its head, head=..., or give "
                "another image_size"
            ) from error
        if not isinstance(output, Tensor) or output.shape != (2, num_outputs):
            found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise UserError(
                f"{name} with a new head {head!r} turns images {list(images.shape)} into "
                f"{found} in {mode} mode: it must give [2, {num_outputs}]; name the layer that "
                "makes its logits, head=..., and switch other outputs off"
            )
        if not any(_equal(logits, output) for logits in made):
            raise UserError(
                f"{name} gives something else than the output of its head {head!r} in {mode} mode: "
                "name the layer that makes its logits, head=..., and leave them as they are"
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    # The values of blank images may be no numbers, as where something is divided by its length.
    return one.shape == other.shape and torch.allclose(
        one.float(), other.float(), rtol=0, atol=0, equal_nan=True
    )
