"""Preparation of runs on images."""

import dataclasses
from typing import Any

import torch
from torch import nn

from delta_transfer.attention.official import official_image_size
from delta_transfer.backbones.base import Backbone, InputSpec
from delta_transfer.backbones.custom import wrap_network
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.image_cache.writer import GIB, ImageCacheWriter
from delta_transfer.data.inspection import DatasetReport, inspect_images
from delta_transfer.data.task import TaskData
from delta_transfer.training.loaders import count_workers, resizes_by_split


def load_network(
    config: TrainConfig, task: TaskData, network: nn.Module | None, spec: InputSpec | None
) -> Backbone:
    """Return the pretrained network with a new random head, from torch's random state."""
    outputs, size = len(task.classes), config.image_size
    official = config.paper_protocol
    if official and size is None:
        size = official_image_size(config.model)
    if network is None:
        backbone = load_backbone(
            config.model, num_outputs=outputs, image_size=size, weights=config.weights
        )
    else:
        backbone = wrap_network(
            network, num_outputs=outputs, image_size=size, input_spec=spec, weights=config.weights
        )
    if not official:
        return backbone
    assert isinstance(backbone.input_spec, InputSpec)
    whole = dataclasses.replace(backbone.input_spec, crop_pct=1.0, interpolation="bilinear")
    return dataclasses.replace(backbone, input_spec=whole)


def inspect_data(config: TrainConfig, task: TaskData, spec: InputSpec) -> DatasetReport:
    """Inspect every image, and cache it resized unless the cache is disabled."""
    threads = count_workers(config.num_workers) or None
    if config.image_cache_gb == 0:
        return inspect_images(task, num_threads=threads)
    limit = None if config.image_cache_gb is None else int(config.image_cache_gb * GIB)
    wanted = resizes_by_split(spec, config, val_drawn=task.val_drawn)
    with ImageCacheWriter(wanted, max_bytes=limit) as writer:
        return inspect_images(task, num_threads=threads, cache_writer=writer)


def preprocessing(spec: InputSpec, config: TrainConfig) -> dict[str, Any]:
    """Return the preprocessing, by names of options; the paper's preset has its own transforms."""
    return {
        "image_size": spec.size,
        "crop_pct": spec.crop_pct,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "preset": "paper" if config.paper_protocol else "default",
    }


def suggest_models(config: TrainConfig, device: torch.device) -> tuple[str, ...]:
    """Return a line about larger models if the default one runs on an accelerator."""
    if device.type == "cpu" or config.model != TrainConfig.model:
        return ()
    return ("         larger models are fast on this device too, such as `model=convnext_tiny`",)
