"""Networks of timm that lie on the Hugging Face Hub or in a folder."""

import json
from pathlib import Path
from typing import Any

import timm
from huggingface_hub import hf_hub_download

from delta_transfer.backbones.base import Backbone
from delta_transfer.backbones.downloads import NOT_FETCHED, not_fetched
from delta_transfer.backbones.timm_models import build_timm
from delta_transfer.errors import UserError

# Arguments with which a network of timm takes pictures of any size.
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False, "use_naflex": True}


def load_hub(
    name: str, *, num_outputs: int, image_size: int | None, pretrained: bool = True
) -> Backbone:
    """A network in a repository of the Hugging Face Hub, in timm's form.

    Args:
        name: `ORG/NAME`, after an @ the revision.
        num_outputs: outputs of the new head.
        image_size: side of the pictures in pixels; the network's own if None.
        pretrained: whether to download its weights; its `config.json` is needed in either case.

    Raises:
        UserError: if there is no such repository, it cannot be reached or is gated, it is none of
            timm's, or what `load_timm` raises.
    """
    shown = f"hf-hub:{name}"
    repository, _, revision = name.partition("@")
    try:
        file = hf_hub_download(repository, "config.json", revision=revision or None)
    except NOT_FETCHED as error:
        raise not_fetched(shown, error) from error
    return _load(shown, Path(file), num_outputs, image_size, pretrained)


def load_folder(
    name: str, *, num_outputs: int, image_size: int | None, pretrained: bool = True
) -> Backbone:
    """A network in a folder in the form of timm's `local-dir:`, such as `model/` of a run.

    Args:
        name: the folder.
        num_outputs: outputs of the new head.
        image_size: side of the pictures in pixels; the network's own if None.
        pretrained: whether to load its weights.

    Raises:
        UserError: if there is no such folder, it is none of timm's, or what `load_timm` raises.
    """
    folder = Path(name).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        lacks = "holds no config.json" if folder.is_dir() else "does not exist"
        raise UserError(
            f"model 'local-dir:{name}': the folder {lacks}; give the folder model/ of a run, or "
            "one that timm saved"
        )
    return _load(f"local-dir:{folder}", file, num_outputs, image_size, pretrained)


def _load(
    name: str, file: Path, num_outputs: int, image_size: int | None, pretrained: bool
) -> Backbone:
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        architecture = config["architecture"]
        model_args = dict(config.get("model_args", {}))
        pretrained_cfg = config.get("pretrained_cfg", config)  # once all of it was in one dict
        fixed = bool(pretrained_cfg.get("fixed_input_size", False))
        size = pretrained_cfg.get("input_size", (3, 224, 224))[-1]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"model {name!r} is none of timm's: its config.json is no JSON with an architecture; "
            "choose one with the tag timm"
        ) from error
    _check_architecture(name, architecture, folder=file.parent)
    model_args.pop("num_classes", None)
    return build_timm(
        name,
        name=name,
        architecture=architecture,
        model_args=_sized(model_args, image_size, size, fixed=fixed),
        num_outputs=num_outputs,
        image_size=image_size,
        pretrained=pretrained,
    )


def _check_architecture(name: str, architecture: object, *, folder: Path) -> None:
    if not isinstance(architecture, str):
        raise UserError(
            f"model {name!r}: the network of this folder was given in Python; give it again, and "
            f"its weights: wrap_network(network, num_outputs=..., weights='{folder}/"
            "model.safetensors')"
        )
    if architecture.startswith("torchvision/"):
        raise UserError(
            f"model {name!r} is a network of torchvision: use --model {architecture} --weights "
            f"{folder / 'model.safetensors'}"
        )
    if not timm.is_model(architecture):
        raise UserError(
            f"model {name!r} needs the architecture {architecture!r}, which timm "
            f"{timm.__version__} does not have: update timm, or choose another model"
        )


def _sized(
    model_args: dict[str, Any], image_size: int | None, own_size: int, *, fixed: bool
) -> dict[str, Any]:
    """The arguments with the size of the pictures, where the network is made for one size."""
    if image_size is not None and (fixed or "img_size" in model_args):
        return {**model_args, "img_size": image_size}
    any_size = any(model_args.get(key) == value for key, value in _ANY_SIZE.items())
    if fixed and not any_size and "img_size" not in model_args:
        # timm takes it from the config by itself; the model folder of a run needs it here.
        return {**model_args, "img_size": own_size}
    return model_args
