"""Preparation of runs on graphs."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from delta_transfer.backbones.base import Backbone, GraphSpec
from delta_transfer.backbones.registry import load_graph_backbone
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.inspection import DatasetReport
from delta_transfer.data.names import MOLECULENET, TU
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import ConfigError, first_few
from delta_transfer.utils.files import fingerprint

# Options for images only, which no preset decides.
_IMAGE_ONLY_OPTIONS = ("augment", "image_size", "mixup", "cutmix", "image_cache_gb")

_LEAKS = (("train", "val"), ("train", "test"), ("val", "test"))


def load_network(
    config: TrainConfig, task: TaskData, network: nn.Module | None, spec: Any
) -> Backbone:
    """Return the pretrained network with a new random head, from torch's random state.

    Raises:
        UserError: if an option is for images only, or the network does not take graphs.
    """
    if config.paper_protocol:
        raise ConfigError(
            f"`preset=paper` is for images, but {task.name} contains graphs: leave it out"
        )
    for name in _IMAGE_ONLY_OPTIONS:
        if getattr(config, name) != getattr(TrainOptions, name):
            raise ConfigError(
                f"`{name}` is for images, but {task.name} contains graphs: leave it out"
            )
    if network is not None:
        raise ConfigError(
            f"`network` has to take images, but {task.name} contains graphs: use the name of a "
            "model, or train your own network in your own loop with Regularizer"
        )
    return load_graph_backbone(
        config.model,
        num_outputs=len(task.classes),
        spec=_spec(task),
        weights=config.weights,
    )


def inspect_data(config: TrainConfig, task: TaskData, spec: GraphSpec) -> DatasetReport:
    """Read every graph once, and report those that are in two splits.

    For published splits, which cannot be fixed, that is a note instead of a warning.
    """
    named = {"train": task.train, "val": task.val, "test": task.test}
    hashes = {
        name: {path: _content_hash(split, path) for path in split.paths}
        for name, split in named.items()
        if split is not None
    }
    warnings, published = [], []
    for one, other in _LEAKS:
        known = set(hashes[one].values())
        copies = [path for path, found in hashes.get(other, {}).items() if found in known]
        if copies and config.data.startswith((MOLECULENET, TU)):
            published.append(f"{len(copies)} of the {len(hashes[other])} of {other} in {one}")
        elif copies:
            shown = first_few([f"'{path}'" for path in copies])
            warnings.append(
                f"{len(copies)} of {len(hashes[other])} graphs of the split {other} are in {one} "
                f"too: {shown}; metrics on them are optimistic: remove one of each"
            )
    if published:
        note = f"graphs that are in two splits: {', '.join(published)}"
        task = dataclasses.replace(task, notes=(*task.notes, note))
    everything: Mapping[str, str] = {
        path: found for split in hashes.values() for path, found in split.items()
    }
    return DatasetReport(task=task, warnings=tuple(warnings), content_hashes=everything)


def preprocessing(spec: GraphSpec, config: TrainConfig) -> dict[str, Any]:
    """Return the features of nodes."""
    return dataclasses.asdict(spec)


def suggest_models(config: TrainConfig, device: torch.device) -> tuple[str, ...]:
    """Return no lines: networks for graphs are small."""
    return ()


def _spec(task: TaskData) -> GraphSpec:
    """Return the features of nodes, from the first graph."""
    return GraphSpec.from_node_features(task.train.read(task.train.paths[0]).x)


def _content_hash(split: Split, path: str) -> str:
    graph = split.read(path)
    parts = [graph.x, graph.edge_index, graph.edge_attr]
    return fingerprint(
        f"{list(part.shape)}".encode() + part.contiguous().numpy().tobytes()
        for part in parts
        if part is not None
    )
