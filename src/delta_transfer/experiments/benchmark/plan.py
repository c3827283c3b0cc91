"""Estimate the downloads and the training time of a benchmark."""

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

_MAX_BATCH_SIZE = 8  # most samples of the step that is timed


@dataclasses.dataclass(frozen=True, kw_only=True)
class DownloadStatus:
    """A required file or data set.

    Args:
        download: to get it.
        is_available: whether it is on this machine; None if unknown.
    """

    download: Download
    is_available: bool | None


def list_downloads(plan: BenchmarkPlan) -> list[DownloadStatus]:
    """List the downloads of a benchmark, and whether each is available."""
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
    """Estimate the time of all runs' training steps on this machine, in hours, one after another.

    A step with random weights is timed on a few samples: blank images, or graphs of the data set.

    Returns:
        None for graphs that are not available.

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
            trainings = max(1, len(method.candidates)) if config.strength == "auto" else 1
            # Comparing features requires a forward pass of the source, too.
            each = step + (forward if method.compares_features else 0)
            whole += trainings * config.count_epochs(samples) * samples * each
    return whole * len(plan.seeds) / 3600


def _measure(config: TrainConfig) -> tuple[float, float] | None:
    """Time a forward pass and a training step, in seconds per sample."""
    size = min(config.batch_size, _MAX_BATCH_SIZE)
    config = dataclasses.replace(config, batch_size=size, gradient_accumulation_steps=1)
    device = find_device(config.device)
    if config.model.startswith(tuple(GRAPH_LIBRARIES)):
        if not is_available(config.data, data_root=config.data_root):
            return None
        network, inputs = _graphs(config, device)
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
    """Return a network, and a batch of graphs for it."""
    task = find_data(config)
    spec = GraphSpec.from_node_features(task.train.read(task.train.paths[0]).x)
    backbone = load_graph_backbone(config.model, num_outputs=2, spec=spec, pretrained=False)
    batches = Dataloaders(spec, config, device).train_dataloader(task.train)
    return backbone.module, next(iter(batches))[0]


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    """Time the second of two calls, as the first warms up."""
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        work()
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        seconds = time.perf_counter() - started
    return seconds
