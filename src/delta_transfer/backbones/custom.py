"""Backbones from the user's own modules."""

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
from delta_transfer.errors import ModelError, unknown

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
    """Copy any pretrained network and replace its head by a new linear layer.

    Dropout and stochastic depth of the copy are zero; `requires_grad` of its parameters is kept.

    Args:
        network: maps images `[B, 3, H, W]` to logits `[B, K]`; not changed.
        num_outputs: outputs of the new head.
        head: name of the linear layer that returns the logits; `"auto"` uses timm's
            `get_classifier()` if the network has it, else the last `nn.Linear`.
        image_size: side of the images in pixels; that of `input_spec` if None.
        input_spec: preprocessing of images; if None, that of timm's `pretrained_cfg` of the
            network, else that of ImageNet.
        weights: a file to load weights from.

    Returns:
        The backbone; a note states if its preprocessing is a guess.

    Raises:
        UserError: if the network cannot be copied, has no such head, does not map images to
            `[B, num_outputs]` with the new one, or returns something else than the head's output;
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
    except Exception as error:  # the user's own network may fail in any way
        raise ModelError(
            f"{name} cannot be copied ({short_error_message(error)}): remove hooks that hold "
            "tensors, and wrappers for distributed training"
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
        raise ModelError(
            f"{type(module).__name__} has no nn.Linear as a head: pass a network that ends in one"
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
        f"the preprocessing of {name} is not known: ImageNet's is used, with {spec.size} pixels; "
        "pass input_spec=InputSpec(...) for another one"
    )
    return spec, (note,)


def _check_outputs(module: nn.Module, name: str, *, head: str, num_outputs: int, size: int) -> None:
    """Raise ModelError if images do not become the head's `[B, num_outputs]` in both modes."""
    # On a copy, as batch norm in train mode changes its statistics.
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
            raise ModelError(
                f"{name} fails on images {list(images.shape)} with a new head {head!r} "
                f"({short_error_message(error)}): pass its head, head=..., or another image_size"
            ) from error
        if not isinstance(output, Tensor) or output.shape != (2, num_outputs):
            found = list(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise ModelError(
                f"{name} with a new head {head!r} returns {found} in {mode} mode, not "
                f"[2, {num_outputs}]: pass the layer of its logits, head=..., and no other"
            )
        if not any(_equal(logits, output) for logits in made):
            raise ModelError(
                f"{name} does not return the output of its head {head!r} in {mode} mode: pass the "
                "layer that returns its logits, head=..., and do not change them afterwards"
            )


def _equal(one: Tensor, other: Tensor) -> bool:
    # Blank images may become NaN, for example where features are divided by their norm.
    return one.shape == other.shape and torch.allclose(
        one.float(), other.float(), rtol=0, atol=0, equal_nan=True
    )
