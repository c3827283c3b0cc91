"""Images and the networks that take them, as a run prepares them."""

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
    """The pretrained network with a new head, drawn from the random state of torch."""
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
    """Looks at every image, and keeps it resized unless it is not to be."""
    threads = count_workers(config.num_workers) or None
    if config.image_cache_gb == 0:
        return inspect_images(task, num_threads=threads)
    limit = None if config.image_cache_gb is None else int(config.image_cache_gb * GIB)
    wanted = resizes_by_split(spec, config, val_drawn=task.val_drawn)
    with ImageCacheWriter(wanted, max_bytes=limit) as keeper:
        return inspect_images(task, num_threads=threads, cache_writer=keeper)


def preprocessing(spec: InputSpec, config: TrainConfig) -> dict[str, Any]:
    """By the names of the options, where there are such; official has transforms of its own."""
    return {
        "image_size": spec.size,
        "crop_pct": spec.crop_pct,
        "mean": list(spec.mean),
        "std": list(spec.std),
        "interpolation": spec.interpolation,
        "preset": "paper" if config.paper_protocol else "default",
    }


def suggest_models(config: TrainConfig, device: torch.device) -> tuple[str, ...]:
    """A line on networks that suit the device better, if the default is used."""
    if device.type == "cpu" or config.model != TrainConfig.model:
        return ()
    return ("         on this device larger ones are fast too, such as --model convnext_tiny",)
