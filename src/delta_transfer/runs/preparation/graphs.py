"""Graphs and the networks that take them, as a run prepares them."""

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
from delta_transfer.errors import UserError, first_few
from delta_transfer.utils.files import fingerprint

# Options that only images have.
_IMAGE_ONLY_OPTIONS = ("augment", "image_size", "mixup", "cutmix", "image_cache_gb")

_DEFAULTS = TrainOptions(data="graphs").resolve()

_LEAKS = (("train", "val"), ("train", "test"), ("val", "test"))


def load_network(
    config: TrainConfig, task: TaskData, network: nn.Module | None, spec: Any
) -> Backbone:
    """The pretrained network with a new head, drawn from the random state of torch.

    Raises:
        UserError: if an option is given that only images have, or the network takes no graphs.
    """
    if config.paper_protocol:
        raise UserError(
            f"--preset paper is for images, and {task.name} is made of graphs: leave it out"
        )
    for name in _IMAGE_ONLY_OPTIONS:
        if getattr(config, name) != getattr(_DEFAULTS, name):
            raise UserError(
                f"--{name.replace('_', '-')} is for images, and {task.name} is made of graphs: "
                "leave it out"
            )
    if network is not None:
        raise UserError(
            f"{task.name} is made of graphs, and a network of your own takes images here: give "
            "the name of one, or train it in your own loop with Regularizer"
        )
    return load_graph_backbone(
        config.model,
        num_outputs=len(task.classes),
        spec=_spec(task),
        weights=config.weights,
    )


def inspect_data(config: TrainConfig, task: TaskData, spec: GraphSpec) -> DatasetReport:
    """Makes every graph once; tells of those that are in two splits.

    In published splits nobody can mend that, and small graphs are often alike: it is a note there.
    """
    named = {"train": task.train, "val": task.val, "test": task.test}
    digests = {
        name: {path: _content_hash(split, path) for path in split.paths}
        for name, split in named.items()
        if split is not None
    }
    warnings, alike = [], []
    for one, other in _LEAKS:
        there = set(digests[one].values())
        copies = [path for path, found in digests.get(other, {}).items() if found in there]
        if copies and config.data.startswith((MOLECULENET, TU)):
            alike.append(f"{len(copies)} of the {len(digests[other])} of {other} in {one}")
        elif copies:
            shown = first_few([f"'{path}'" for path in copies])
            warnings.append(
                f"{len(copies)} of {len(digests[other])} graphs of the split {other} are in "
                f"{one}, too: {shown}; what is measured on them flatters: remove one of each"
            )
    if alike:
        note = f"graphs that are in two splits, as small ones may be: {', '.join(alike)}"
        task = dataclasses.replace(task, notes=(*task.notes, note))
    everything: Mapping[str, str] = {
        path: found for split in digests.values() for path, found in split.items()
    }
    return DatasetReport(task=task, warnings=tuple(warnings), content_hashes=everything)


def preprocessing(spec: GraphSpec, config: TrainConfig) -> dict[str, Any]:
    """What a node is described by."""
    return dataclasses.asdict(spec)


def suggest_models(config: TrainConfig, device: torch.device) -> tuple[str, ...]:
    """Nothing: networks on molecules are small."""
    return ()


def _spec(task: TaskData) -> GraphSpec:
    """What the nodes of a task's graphs are described by, as its first one shows."""
    return GraphSpec.from_node_features(task.train.read(task.train.paths[0]).x)


def _content_hash(split: Split, path: str) -> str:
    graph = split.read(path)
    parts = [graph.x, graph.edge_index, graph.edge_attr]
    return fingerprint(
        f"{list(part.shape)}".encode() + part.contiguous().numpy().tobytes()
        for part in parts
        if part is not None
    )
