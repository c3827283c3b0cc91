"""The model folder of a run: weights and a config, which timm can load for its own networks."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from delta_transfer.backbones.base import (
    Backbone,
    GraphSpec,
    InputSpec,
    short_error_message,
    state_tensors,
)
from delta_transfer.backbones.custom import wrap_network
from delta_transfer.backbones.graph_network import Pool
from delta_transfer.backbones.hub_models import check_args
from delta_transfer.backbones.registry import load_graph_backbone
from delta_transfer.backbones.timm_models import build_timm
from delta_transfer.backbones.torchvision_models import load_torchvision
from delta_transfer.backbones.weights import copy_tensors
from delta_transfer.errors import ConfigError, ModelError
from delta_transfer.metrics.task_types import (
    MULTICLASS,
    TaskType,
    task_type_from_dict,
    task_type_to_dict,
)
from delta_transfer.utils.files import write_atomically

WEIGHTS, CONFIG = "model.safetensors", "config.json"
_TORCHVISION = "torchvision/"


def save_model(
    folder: Path,
    backbone: Backbone,
    network: nn.Module,
    *,
    classes: Sequence[str],
    task_type: TaskType = MULTICLASS,
) -> None:
    """Write `model.safetensors` and `config.json`, for timm's networks as its `local-dir:`.

    They have no times and no paths: equal networks have equal bytes.

    Args:
        folder: an existing folder.
        backbone: description of the network.
        network: the trained network.
        classes: names of the outputs.
        task_type: meaning of the outputs.
    """
    # Copies, as tensors that share memory cannot be saved.
    state = {name: t.cpu().contiguous().clone() for name, t in state_tensors(network).items()}
    write_atomically(folder / WEIGHTS, save(state, metadata={"format": "pt"}))
    config = {
        "architecture": backbone.architecture,
        "num_classes": len(classes),
        "label_names": list(classes),
        "task_type": task_type_to_dict(task_type),
        "model_args": dict(backbone.model_args),
        "pretrained_cfg": {
            **_describe(backbone.input_spec),
            "num_classes": len(classes),
            "classifier": backbone.head,
        },
    }
    write_atomically(folder / CONFIG, json.dumps(config, indent=2) + "\n")


def load_model(
    folder: Path, *, network: nn.Module | None = None
) -> tuple[Backbone, tuple[str, ...]]:
    """Load the network that `save_model` wrote, and its class names.

    Args:
        folder: the folder.
        network: the module, if the run used one from Python; its weights do not matter.

    Raises:
        UserError: if the folder or a file is missing or damaged, or a module is missing or is not
            the one that was saved.
    """
    for name in (WEIGHTS, CONFIG):
        if not (folder / name).is_file():
            raise ModelError(f"no model in {folder}: {name} is missing; use a finished run")
    try:
        config = json.loads((folder / CONFIG).read_text())
        architecture = config["architecture"]
        state = load_file(folder / WEIGHTS)
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error
    _check_network(folder, architecture, network)
    try:
        classes = tuple(config["label_names"])
        spec = _input_spec(config["pretrained_cfg"])
        if network is None:
            backbone = _build(folder, config, spec, len(classes))
        elif isinstance(spec, GraphSpec):
            raise ValueError("it is for graphs")
        else:
            head = config["pretrained_cfg"]["classifier"]
            backbone = wrap_network(network, num_outputs=len(classes), head=head, input_spec=spec)
        _fill_all(backbone.module, state)
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        if network is None:
            raise _damaged(folder, error) from error
        raise ModelError(f"the model in {folder} does not fit this network: {error}") from error
    return dataclasses.replace(backbone, input_spec=spec), classes


def load_task_type(folder: Path) -> TaskType:
    """Return the meaning of the outputs of the network that `save_model` wrote.

    Raises:
        ModelError: if the file is damaged.
    """
    try:
        return task_type_from_dict(json.loads((folder / CONFIG).read_text())["task_type"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _damaged(folder, error) from error


def _damaged(folder: Path, error: Exception) -> ModelError:
    missing = isinstance(error, KeyError)
    reason = f"{error} is missing" if missing else short_error_message(error)
    return ModelError(
        f"the model in {folder} is damaged ({reason}): copy it again, or train again; do not edit "
        f"{WEIGHTS} and {CONFIG}"
    )


def _check_network(folder: Path, architecture: object, network: nn.Module | None) -> None:
    """Raise UserError if a module is missing, or passed without need."""
    if architecture is None and network is None:
        raise ModelError(
            f"the model in {folder} was trained from Python; commands cannot load it: pass its "
            "module, load_model(folder, network=...) or Predictor(run, network=...)"
        )
    if architecture is not None and network is not None:
        raise ConfigError(f"the model in {folder} is a {architecture}: leave network out")


def _build(
    folder: Path, config: Mapping[str, Any], spec: InputSpec | GraphSpec, num_outputs: int
) -> Backbone:
    architecture = config["architecture"]
    if isinstance(spec, GraphSpec):
        backbone = load_graph_backbone(
            architecture, num_outputs=num_outputs, spec=spec, pretrained=False
        )
        args = dict(config["model_args"])
        backbone.module.pool = Pool(float(args.get("pool", 1.0)))
        return dataclasses.replace(backbone, model_args=args)
    if architecture.startswith(_TORCHVISION):
        return load_torchvision(
            architecture.removeprefix(_TORCHVISION),
            num_outputs=num_outputs,
            image_size=spec.size,
            pretrained=False,
        )
    check_args(f"local-dir:{folder}", config["model_args"])
    return build_timm(
        f"local-dir:{folder}",
        name=architecture,
        architecture=architecture,
        model_args=config["model_args"],
        num_outputs=num_outputs,
        image_size=None,
        pretrained=False,
    )


def _describe(spec: InputSpec | GraphSpec) -> dict[str, Any]:
    """Return a spec under timm's names, if it is for images."""
    if isinstance(spec, GraphSpec):
        return dataclasses.asdict(spec)
    return {
        "input_size": [3, spec.size, spec.size],
        "crop_pct": spec.crop_pct,
        "interpolation": spec.interpolation,
        "mean": list(spec.mean),
        "std": list(spec.std),
    }


def _input_spec(config: Mapping[str, Any]) -> InputSpec | GraphSpec:
    if "node_features" in config:
        return GraphSpec(
            node_features=config["node_features"], num_node_features=config["num_node_features"]
        )
    return InputSpec(
        size=config["input_size"][-1],
        crop_pct=config["crop_pct"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        interpolation=config["interpolation"],
    )


def _fill_all(module: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Copy tensors; raise ValueError if they are not exactly those of the network."""
    own = state_tensors(module)
    odd = sorted(own.keys() ^ state.keys())
    odd += [name for name in own if name in state and own[name].shape != state[name].shape]
    if odd:
        raise ValueError(f"{odd[0]} differs between the weights and the network")
    copy_tensors(module, state)
