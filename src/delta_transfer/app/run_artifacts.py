"""What a run was made from, where it still is on this machine: images and pretrained weights."""

from pathlib import Path

import torch
from torch import nn

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.backbones.base import InputSpec, replace_module
from delta_transfer.backbones.registry import load_backbone
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import is_available
from delta_transfer.data.task import Split, pool_train_and_val
from delta_transfer.errors import UserError
from delta_transfer.runs.preparation.task import find_data
from delta_transfer.utils.module_state import weights_fingerprint

ATTENTION = "attention.safetensors"


def find_training(config: TrainConfig, *, refitted: bool, classes: tuple[str, ...]) -> Split:
    """The images that a run has learnt from; nothing is downloaded.

    Args:
        config: of the run.
        refitted: whether it has learnt from the validation images, too.
        classes: its classes, by which labels are understood.

    Raises:
        UserError: if they are not there any more, or are others.
    """
    if not is_available(config.data, data_root=config.data_root):
        raise UserError(f"{config.data} is not at hand")
    task = find_data(config)
    if task.classes != classes:
        raise UserError(f"{config.data} has other classes now than when the run was made")
    return pool_train_and_val(task) if refitted and task.val_drawn else task.train


def load_source(config: TrainConfig, spec: InputSpec, *, run: Path) -> nn.Module:
    """The pretrained network that a run started from, without its head.

    Raises:
        UserError: if it cannot be had, or its weights are not those that the run's attention was
            measured on.
    """
    with torch.random.fork_rng(devices=[]):
        backbone = load_backbone(
            config.model, num_outputs=2, image_size=spec.size, weights=config.weights
        )
    attention = find_attention(run)
    if attention is not None and attention.source != weights_fingerprint(
        backbone.module, head=backbone.head
    ):
        raise UserError(f"{config.weights or config.model} has other weights now than in the run")
    replace_module(backbone.module, backbone.head, nn.Identity())
    return backbone.module


def find_attention(run: Path) -> ChannelAttention | None:
    """The attention that a run was held by, which knows the variance of features; None without."""
    file = run / ATTENTION
    return ChannelAttention.load(file) if file.is_file() else None
