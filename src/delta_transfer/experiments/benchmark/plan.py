"""What a recipe would take here: what is to be downloaded, and how long its runs would be."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from delta_transfer.backbones.base import GraphSpec, InputSpec
from delta_transfer.backbones.registry import (
    GRAPH_LIBRARIES,
    load_graph_backbone,
    load_untrained_backbone,
)
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import is_available
from delta_transfer.experiments.benchmark.benchmark import BenchmarkPlan
from delta_transfer.experiments.benchmark.definition import Download
from delta_transfer.methods.registry import method_of
from delta_transfer.runs.preparation.task import find_data
from delta_transfer.training.loaders import Dataloaders
from delta_transfer.utils.devices import find_device, move_to_device

_MAX_BATCH_SIZE = 8  # samples of the step that is measured, if a step has no fewer


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownloadStatus:
    """Something that a recipe needs.

    Args:
        download: what it is.
        is_available: whether it is on this machine; None where that cannot be told.
    """

    download: Download
    is_available: bool | None


def list_downloads(plan: BenchmarkPlan) -> list[DownloadStatus]:
    """What a recipe needs, and whether it is there."""
    cache, config = Path(torch.hub.get_dir()) / "checkpoints", plan.config
    return [
        DownloadStatus(
            download=one,
            is_available=is_available(config.data, data_root=config.data_root)
            if one.file is None
            else (cache / one.file).is_file(),
        )
        for one in plan.benchmark.downloads
        if one.file is None or config.weights is None
    ]


def estimate_hours(plan: BenchmarkPlan) -> float | None:
    """How long the training steps of all runs would take here one after another, in hours.

    A step of the network with random weights is measured, of a few samples at a time: of images
    without content, or of graphs of the data set.

    Returns:
        None of graphs that are not there.

    Raises:
        UserError: if there is no such network or method.
    """
    config, samples = plan.config, plan.benchmark.num_train_samples
    methods = [method_of(dataclasses.replace(config, method=name)) for name in plan.methods]
    measured = _measure(config)
    if measured is None:
        return None
    forward, step = measured
    whole = 0.0
    for method in methods:
        if method.trains_network:
            twice = config.strength == "auto" and config.batch_norm == "frozen"
            trainings = max(1, len(method.candidates)) if twice else 1
            each = step + (forward if method.compares_features else 0)  # then the source runs too
            whole += trainings * config.count_epochs(samples) * samples * each
    return whole * len(plan.seeds) / 3600


def _measure(config: TrainConfig) -> tuple[float, float] | None:
    """Seconds of a sample: of a forward pass, and of a training step."""
    size = min(config.batch_size, _MAX_BATCH_SIZE)
    device = find_device(config.device)
    if config.model.startswith(tuple(GRAPH_LIBRARIES)):
        if not is_available(config.data, data_root=config.data_root):
            return None
        network, inputs = _graphs(dataclasses.replace(config, batch_size=size), device)
    else:
        backbone = load_untrained_backbone(config.model, image_size=config.image_size)
        assert isinstance(backbone.input_spec, InputSpec)
        network, side = backbone.module, backbone.input_spec.size
        inputs = torch.zeros(size, 3, side, side)
    move_to_device(network, device)
    inputs = inputs.to(device)
    with torch.no_grad():
        forward = _seconds(lambda: network(inputs), device)
    step = _seconds(lambda: network(inputs).square().sum().backward(), device)
    return forward / size, step / size


def _graphs(config: TrainConfig, device: torch.device) -> tuple[torch.nn.Module, Any]:
    """A network, and a batch of the graphs that it is for."""
    task = find_data(config)
    spec = GraphSpec.from_node_features(task.train.read(task.train.paths[0]).x)
    backbone = load_graph_backbone(config.model, num_outputs=2, spec=spec, pretrained=False)
    batches = Dataloaders(spec, config, device).train_dataloader(task.train)
    return backbone.module, next(iter(batches))[0]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Of the second time that something is done."""
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds = time.perf_counter() - started
    return seconds
