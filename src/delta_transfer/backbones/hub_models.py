"""Networks in timm's form, on the Hugging Face Hub or in a folder."""

import dataclasses
import functools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from timm.models import clean_state_dict
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone, channels_error, state_tensors
from delta_transfer.backbones.downloads import DOWNLOAD_ERRORS, download_error
from delta_transfer.backbones.timm_models import build_timm
from delta_transfer.backbones.weights import StateDicts, load_tensors
from delta_transfer.backbones.weights_file import read_classifier, read_weights
from delta_transfer.errors import ConfigError, ModelError, UserError

# Arguments with which a network of timm accepts images of any size.
_ANY_SIZE = {"dynamic_img_size": True, "strict_img_size": False, "use_naflex": True}
# Arguments that create no classifier, or make timm read unchecked files.
_REFUSED = (
    "features_only",
    "checkpoint_path",
    "cache_dir",
    "pretrained",
    "pretrained_cfg",
    "pretrained_cfg_overlay",
)
# Files of weights by priority: timm's names, then other files with a matching suffix.
_FILES = ("model.safetensors", "pytorch_model.bin")
_PATTERNS = ("*.safetensors", "*.pth", "*.pth.tar", "*.bin")
# The state dicts of a checkpoint that timm loads, by priority.
_STATE_DICT_PREFIXES = ("state_dict_ema.", "model_ema.", "state_dict.", "model.", "")


def load_hub(
    name: str, *, num_outputs: int, image_size: int | None, pretrained: bool = True
) -> Backbone:
    """Load a network from a repository in timm's form on the Hugging Face Hub.

    Args:
        name: `ORG/NAME`, after an @ the revision.
        num_outputs: outputs of the new head.
        image_size: side of the images in pixels; the network's own if None.
        pretrained: download its weights; its `config.json` is needed in either case.

    Raises:
        UserError: if the repository does not exist, cannot be reached or is gated, is not in timm's
            form, its weights do not fit, or as `load_timm`.
    """
    shown = f"hf-hub:{name}"
    repository, _, revision = name.partition("@")
    config = _download(shown, repository, revision, ("config.json",))
    backbone = _build(shown, config, num_outputs, image_size)
    if pretrained:
        return _load_all_weights(backbone, _download(shown, repository, revision, _FILES), shown)
    return backbone


def load_folder(
    name: str, *, num_outputs: int, image_size: int | None, pretrained: bool = True
) -> Backbone:
    """Load a network from a folder in the form of timm's `local-dir:`, such as `model/` of a run.

    Args:
        name: the folder.
        num_outputs: outputs of the new head.
        image_size: side of the images in pixels; the network's own if None.
        pretrained: load its weights.

    Raises:
        UserError: if the folder does not exist, is not in timm's form, its weights are missing or
            do not fit, or as `load_timm`.
    """
    folder = Path(name).expanduser()
    file = folder / "config.json"
    if not file.is_file():
        reason = "has no config.json" if folder.is_dir() else "does not exist"
        raise ModelError(
            f"model 'local-dir:{name}': the folder {reason}; use the folder model/ of a run, or "
            "one that timm saved"
        )
    shown = f"local-dir:{folder}"
    backbone = _build(shown, file, num_outputs, image_size)
    if pretrained:
        return _load_all_weights(backbone, _find_weights(shown, folder), shown)
    return backbone


def _download(shown: str, repository: str, revision: str, names: Sequence[str]) -> Path:
    """Download the first of some files that the repository has."""
    errors: list[BaseException] = []
    for name in names:
        try:
            return Path(hf_hub_download(repository, name, revision=revision or None))
        except EntryNotFoundError as error:
            errors.append(error)
        except DOWNLOAD_ERRORS as error:
            raise download_error(shown, error) from error
    raise download_error(shown, errors[0]) from errors[0]


def _find_weights(shown: str, folder: Path) -> Path:
    """Return the file of weights in a folder."""
    found = [folder / name for name in _FILES if (folder / name).is_file()]
    if found:
        return found[0]
    for pattern in _PATTERNS:
        found = sorted(folder.glob(pattern))
        if len(found) == 1:
            return found[0]
        if found:
            raise ModelError(
                f"model {shown!r}: the folder has several files of weights "
                f"({', '.join(file.name for file in found[:4])}): select one with `weights`"
            )
    raise ModelError(
        f"model {shown!r}: the folder has no weights: add {' or '.join(_FILES)}, or use `weights`"
    )


def _build(name: str, file: Path, num_outputs: int, image_size: int | None) -> Backbone:
    """Create the network of a `config.json`, without its weights."""
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        architecture = config["architecture"]
        model_args = dict(config.get("model_args", {}))
        pretrained_cfg = config.get(
            "pretrained_cfg", config
        )  # older versions of timm write one dict
        fixed = bool(pretrained_cfg.get("fixed_input_size", False))
        size = pretrained_cfg.get("input_size", (3, 224, 224))[-1]
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"model {name!r} is not in timm's form: its config.json has no architecture; choose "
            "one with the tag timm"
        ) from error
    _check_architecture(name, architecture, folder=file.parent)
    check_args(name, model_args)
    model_args.pop("num_classes", None)
    return build_timm(
        name,
        name=name,
        architecture=architecture,
        model_args=_with_image_size(model_args, image_size, size, fixed=fixed),
        num_outputs=num_outputs,
        image_size=image_size,
        pretrained=False,
    )


def _load_all_weights(backbone: Backbone, file: Path, name: str) -> Backbone:
    """Load all weights of a file into a network, or none, and add their classifier.

    Most files have timm's own names and shapes. timm converts those in an older form or for images
    of another size.

    Raises:
        ModelError: if the file cannot be read, or does not fit.
    """
    groups = read_weights(file)
    fill = functools.partial(
        load_tensors,
        backbone.module,
        head=backbone.head,
        name=f"model {name!r}",
        weights_name=f"weights {file}",
    )
    try:
        fill(groups)
    except UserError:
        converted = _convert_with_timm(backbone, groups, name)
        if not converted:
            raise
        fill({"": converted})
    group = next((groups[group] for group in _STATE_DICT_PREFIXES if group in groups), {})
    head = backbone.module.get_submodule(backbone.head)
    classifier = read_classifier(group, backbone.head, head=head)
    return dataclasses.replace(backbone, classifier=classifier)


def _convert_with_timm(backbone: Backbone, groups: StateDicts, name: str) -> dict[str, Tensor]:
    """Return the tensors that timm loads from a checkpoint, under the network's names."""
    group = next((group for group in _STATE_DICT_PREFIXES if group in groups), None)
    if group is None:
        return {}
    state = clean_state_dict(dict(groups[group]))
    # timm does not report tensors that the file lacks. Those that it has become NaN in a copy.
    blank = {
        key: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
        for key, tensor in state.items()
    }
    try:
        with torch.random.fork_rng(devices=[]):
            loaded, marked = (
                state_tensors(_load_with_timm(backbone, s, name)) for s in (state, blank)
            )
    except Exception:  # timm's conversions may fail in any way on other files
        return {}
    return {
        key: loaded[key]
        for key, tensor in marked.items()
        if not tensor.is_floating_point() or bool(tensor.isnan().all())
    }


def _load_with_timm(backbone: Backbone, state: Mapping[str, Tensor], name: str) -> nn.Module:
    """Create the same network with another head and let timm load a state dict into it."""
    head = backbone.module.get_submodule(backbone.head)
    assert isinstance(head, nn.Linear)
    # With another number of classes timm skips the head and does not check the rest strictly.
    overlay = {
        "source": "",
        "state_dict": state,
        "num_classes": 0,
        "classifier": backbone.head,
        "fixed_input_size": False,
    }
    return timm.create_model(
        name,
        pretrained=True,
        num_classes=head.out_features,
        pretrained_cfg_overlay=overlay,
        **backbone.model_args,
    )


def check_args(name: str, model_args: Mapping[str, Any]) -> None:
    """Raise ModelError if arguments in a `config.json` would make timm read other files."""
    for key in _REFUSED:
        if model_args.get(key):
            raise ModelError(
                f"model {name!r}: its config.json sets {key}, which is not allowed: remove it from "
                "model_args, or choose another model"
            )
    channels = model_args.get("in_chans", 3)
    if channels != 3:
        raise channels_error(name, channels)


def _check_architecture(name: str, architecture: object, *, folder: Path) -> None:
    if not isinstance(architecture, str):
        raise ModelError(
            f"model {name!r} was trained from Python: pass its module again, "
            f"wrap_network(network, num_outputs=..., weights='{folder}/model.safetensors')"
        )
    if architecture.startswith("torchvision/"):
        raise ConfigError(
            f"model {name!r} is a network of torchvision: use `model={architecture}` and "
            f"`weights={folder / 'model.safetensors'}`"
        )
    if not timm.is_model(architecture):
        raise ModelError(
            f"model {name!r} needs the architecture {architecture!r}, which timm "
            f"{timm.__version__} does not have: update timm, or choose another model"
        )


def _with_image_size(
    model_args: dict[str, Any], image_size: int | None, own_size: int, *, fixed: bool
) -> dict[str, Any]:
    """Return the arguments with the image size, if the network accepts one size only."""
    if image_size is not None and (fixed or "img_size" in model_args):
        return {**model_args, "img_size": image_size}
    any_size = any(model_args.get(key) == value for key, value in _ANY_SIZE.items())
    if fixed and not any_size and "img_size" not in model_args:
        # timm has it in its own config; the model folder of a run needs it here.
        return {**model_args, "img_size": own_size}
    return model_args
