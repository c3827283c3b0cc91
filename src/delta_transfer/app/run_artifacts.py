"""Find the training images and the pretrained weights of a run on this machine."""

from pathlib import Path

import torch
from torch import nn

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.backbones.base import InputSpec, replace_module
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import is_available
from delta_transfer.data.task import Split, pool_train_and_val
from delta_transfer.errors import DataError, ModelError
from delta_transfer.runs.preparation.folds import count_folds, training_pool
from delta_transfer.runs.preparation.task import find_data
from delta_transfer.utils.module_state import weights_fingerprint

ATTENTION = "attention.safetensors"


def find_training(config: TrainConfig, *, classes: tuple[str, ...]) -> Split:
    """Return the images that a run was trained on, without downloading anything.

    Args:
        config: of the run.
        classes: its classes.

    Raises:
        UserError: if they are not available, or have changed.
    """
    if not is_available(config.data, data_root=config.data_root):
        raise DataError(f"{config.data} is not available on this machine")
    task = find_data(config)
    if task.classes != classes:
        raise DataError(f"the classes of {config.data} have changed since the run was trained")
    pool = training_pool(config, task)
    # With folds the networks of all of them are averaged, or the final one is trained on all.
    return pool_train_and_val(task).subset(pool) if count_folds(config, task) else task.train


def load_source(
    config: TrainConfig, spec: InputSpec, *, attention: ChannelAttention | None
) -> nn.Module:
    """Load the pretrained network of a run, without its head.

    Args:
        config: of the run.
        spec: of its inputs.
        attention: of the run; None if it has none.

    Raises:
        UserError: if the network is not available, or its weights differ from those that the
            attention was estimated on.
    """
    with torch.random.fork_rng(devices=[]):
        backbone = load_backbone(
            config.model, num_outputs=2, image_size=spec.size, weights=config.weights
        )
    if attention is not None and attention.source != weights_fingerprint(
        backbone.module, head=backbone.head
    ):
        source = config.weights or config.model
        raise ModelError(f"the weights of {source} have changed since the run was trained")
    replace_module(backbone.module, backbone.head, nn.Identity())
    return backbone.module


def find_attention(run: Path) -> ChannelAttention | None:
    """Load the attention of a run, which contains the variance of features; None without."""
    file = run / ATTENTION
    return ChannelAttention.load(file) if file.is_file() else None
