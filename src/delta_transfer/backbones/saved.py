"""The model folder of a run: weights and a config that timm reads without this package."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from delta_transfer.backbones.base import Backbone, InputSpec
from delta_transfer.backbones.timm_models import load_timm
from delta_transfer.errors import UserError
from delta_transfer.files import write_atomically

WEIGHTS, CONFIG = "model.safetensors", "config.json"


def save_model(
    folder: Path, backbone: Backbone, network: nn.Module, *, classes: Sequence[str]
) -> None:
    """Writes `model.safetensors` and `config.json` in the form of timm's `local-dir:`.

    They hold no times and no paths: equal networks give equal bytes.

    Args:
        folder: an existing folder.
        backbone: what the network is.
        network: its trained weights.
        classes: the names of the outputs.
    """
    state = {name: tensor.cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_atomically(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    spec = backbone.input
    config = {
        "architecture": backbone.architecture,
        "num_classes": len(classes),
        "label_names": list(classes),
        "model_args": backbone.model_args,
        "pretrained_cfg": {
            "input_size": [3, spec.size, spec.size],
            "crop_pct": spec.crop_pct,
            "interpolation": spec.interpolation,
            "mean": list(spec.mean),
            "std": list(spec.std),
            "num_classes": len(classes),
            "classifier": backbone.head,
        },
    }
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_model(folder: Path) -> tuple[Backbone, tuple[str, ...]]:
    """The network that `save_model` wrote, and its class names.

    Raises:
        UserError: if the folder or a file is missing or damaged.
    """
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise UserError(
                f"no model in {folder}: there is no {name}; give the folder of a finished run"
            )
    try:
        config = json.loads((folder / CONFIG).read_text())
        state = load_file(folder / WEIGHTS)
        classes = tuple(config["label_names"])
        cfg = config["pretrained_cfg"]
        backbone = load_timm(
            config["architecture"],
            num_outputs=len(classes),
            image_size=cfg["input_size"][-1],
            pretrained=False,
        )
        backbone.module.load_state_dict(state)
        spec = InputSpec(
            size=cfg["input_size"][-1],
            crop_pct=cfg["crop_pct"],
            mean=tuple(cfg["mean"]),
            std=tuple(cfg["std"]),
            interpolation=cfg["interpolation"],
        )
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"the model in {folder} is damaged: {error}") from error
    return dataclasses.replace(backbone, input=spec), classes
