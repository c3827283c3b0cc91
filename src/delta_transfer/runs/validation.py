"""The options of a run against each other, its method and the processes that share it."""

import dataclasses
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch

from delta_transfer.attention import ESTIMATORS
from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.config.train import TrainConfig, TrainOptions
from delta_transfer.data.task import TaskData
from delta_transfer.errors import UserError, unknown
from delta_transfer.methods.base import Method
from delta_transfer.methods.registry import METHODS, check_kind, method_of
from delta_transfer.metrics.task_types import Multiclass
from delta_transfer.training.loggers import check_loggers
from delta_transfer.training.trainer import find_precision
from delta_transfer.utils.devices import find_device
from delta_transfer.utils.distributed import world_size

logger = logging.getLogger(__name__)

# Options that only some methods use.
_ATTENTION_ESTIMATION_OPTIONS = ["attention_samples", "attention_tolerance"]
_ATTENTION_NORMALIZATION_OPTIONS = ["attention_temperature", "score_clip", "clamp_negative_scores"]
_TRAINING_OPTIONS = [
    *("epochs", "steps", "lr", "head_lr", "optimizer", "schedule", "batch_norm"),
    *("class_weights", "label_smoothing", "patience"),
    *("gradient_accumulation_steps", "grad_clip", "ema", "layer_decay", "precision"),
    *("augment", "mixup", "cutmix"),
    "strategy",
]

# What several processes cannot do together, and its value without.
_SINGLE_PROCESS_OPTIONS = {"gradient_accumulation_steps": 1, "mixup": 0, "cutmix": 0}


def check_run_config(config: TrainConfig) -> None:
    """Checks the options that need no data: names, and options that the method does not use.

    Raises:
        UserError: if a name is unknown, or a file is no channel attention.
    """
    method = method_of(config)
    choices = ["none", *ESTIMATORS]
    if config.attention not in choices:
        if not Path(config.attention).is_file():
            raise UserError(
                f"{unknown('attention', config.attention, choices)}; or give the file "
                "attention.safetensors of another run (there is no such file)"
            )
        try:
            ChannelAttention.load(config.attention)
        except UserError as error:
            raise UserError(
                f"--attention: {error}; give the attention.safetensors of another run, or one of "
                f"{', '.join(ESTIMATORS)}"
            ) from error
    if method.needs_attention and config.attention == "none":
        raise UserError(
            f"--method {method.name} weighs channels by their attention: with --attention none use "
            "--method delta_no_attention"
        )
    check_loggers(config.logger_names)
    if config.precision != "32":
        find_precision(config.precision, find_device(config.device))
    _check_gradient_accumulation(config, method)
    if config.strategy == "fsdp" and method.trains_network:
        _check_sharded(config, method)
    for name in _ignored_options(config, method):
        logger.warning("--%s is ignored: it means nothing for method %s", name, method.name)
    if method.needs_attention and config.attention not in ESTIMATORS:
        for name in _non_default_options(config, _ATTENTION_ESTIMATION_OPTIONS):
            logger.warning("--%s is ignored: attention is that of %s", name, config.attention)


def _check_gradient_accumulation(config: TrainConfig, method: Method) -> None:
    """Checks that a step may be worked through in parts, if it is to be.

    Raises:
        UserError: if something looks at the batch as a whole.
    """
    trained = "train" in (config.batch_norm, method.batch_norm)
    if (
        config.gradient_accumulation_steps == 1
        or not method.trains_network
        or not (trained or method.needs_whole_batch)
    ):
        return
    what = "batch norm in train mode" if trained else f"method {method.name}"
    mend = "--batch-norm frozen, or " if trained and method.batch_norm is None else ""
    raise UserError(
        f"--gradient-accumulation-steps {config.gradient_accumulation_steps}: {what} needs the "
        f"whole batch: use {mend}a smaller --batch-size without gradient accumulation"
    )


def _check_sharded(config: TrainConfig, method: Method) -> None:
    """Checks that the weights may be sharded.

    Raises:
        UserError: if there is one process, or something looks at whole weights while they train.
    """
    mend = "leave it out, or take --strategy ddp"
    if world_size() == 1:
        raise UserError(
            "--strategy fsdp shards weights over several processes, and there is one: give "
            "--devices 2 or more, or leave --strategy out"
        )
    if (
        method.num_head_cycles > 1
        or method.optimizer_context
        or method.network_context
        or method.needs_classifier
    ):
        raise UserError(
            f"--strategy fsdp: method {method.name} changes weights beside the optimiser or trains "
            "some of its own, which are not sharded: take --strategy ddp, or another method"
        )
    if config.ema is not None:
        raise UserError(
            f"--ema {config.ema:g} averages whole weights, of which each process has its shard by "
            f"--strategy fsdp: {mend}"
        )
    if find_precision(config.precision, find_device(config.device)) == "16-mixed":
        raise UserError(
            f"--precision {config.precision} is float16 here, whose losses are scaled by whole "
            "gradients, not by shards of them (--strategy fsdp): give bf16 or 32, or --strategy ddp"
        )


def _ignored_options(config: TrainConfig, method: Method) -> list[str]:
    """The options that were given but that the method does not use."""
    names = [] if method.strength is not None else ["strength"]
    if not method.needs_attention:
        names += [
            *([] if config.attention == "none" else ["attention"]),
            *_ATTENTION_ESTIMATION_OPTIONS,
            *_ATTENTION_NORMALIZATION_OPTIONS,
        ]
    if not method.trains_network:
        names += _TRAINING_OPTIONS
    return _non_default_options(config, names)


def _non_default_options(config: TrainConfig, names: Sequence[str]) -> list[str]:
    """Those of some options that are not as the preset has them, as flags."""
    plain = TrainOptions(data=config.data, preset=config.preset).resolve()
    given = [name for name in names if getattr(config, name) != getattr(plain, name)]
    return [name.replace("_", "-") for name in given]


def check_data(config: TrainConfig, task: TaskData) -> None:
    """Checks that the method of a run can learn what is to be learnt, of samples of this kind.

    Raises:
        UserError: if it cannot; the methods that can are listed.
    """
    method = method_of(config)
    check_kind(method, task.kind, task.name)
    if method.multiclass_only and not isinstance(task.task_type, Multiclass):
        fit = [other for other in METHODS.values() if task.kind in other.kinds]
        others = [other.name for other in fit if not other.multiclass_only]
        raise UserError(
            f"--method {method.name} learns classes, and {task.name} has "
            f"{task.task_type.target_kind}: take one of {', '.join(others)}"
        )


def adapt_to_processes(config: TrainConfig) -> TrainConfig:
    """The options of a run of several processes; it goes on where torchrun has started them again.

    Raises:
        UserError: if an option cannot be kept to by several.
    """
    count = world_size()
    if config.batch_size % count:
        raise UserError(
            f"--batch-size {config.batch_size} is that of all processes together and must be a "
            f"multiple of them: there are {count}"
        )
    if method_of(config).trains_network:
        _check_distributed(config, count)
    if config.out is None or config.overwrite:
        raise UserError(
            f"{'--overwrite' if config.overwrite else 'no --out'}: processes that may be started "
            "again need a folder by which they find the run; give --out, one that is not in use"
        )
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return dataclasses.replace(config, resume=config.resume or again)


def _check_distributed(config: TrainConfig, count: int) -> None:
    """Checks that several processes can train as the options say.

    Raises:
        UserError: if they cannot.
    """
    method = method_of(config)
    if "train" in (config.batch_norm, method.batch_norm):
        raise UserError(
            f"--batch-norm train, which is asked for or is part of --method {method.name}, would "
            "take its statistics from a share of each batch: use --batch-norm frozen and a method "
            "that has it, or one device"
        )
    if config.lr == "find":
        raise UserError(
            f"--lr find: {count} processes cannot try rates together: find one with one device, "
            "and give it"
        )
    for name, plain in _SINGLE_PROCESS_OPTIONS.items():
        if getattr(config, name) != plain:
            raise UserError(
                f"--{name.replace('_', '-')} {getattr(config, name)}: {count} processes share each "
                f"batch, which this needs as a whole: leave it out, or use one device"
            )


def count_processes(config: TrainConfig) -> int:
    """How many processes a command is to start.

    Raises:
        UserError: if there are not so many devices, or nothing has started it on several machines.
    """
    if config.devices == 1 and config.num_nodes == 1:
        return 1
    device = find_device(config.device)
    there = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if config.num_nodes > 1:
        raise UserError(
            f"--num-nodes {config.num_nodes}: on several machines start the command by torchrun or "
            "SLURM's srun on each of them, see docs/scaling.md"
        )
    if config.devices == "auto":
        return there
    if device.type != "cpu" and config.devices > there:
        raise UserError(
            f"--devices {config.devices}: this machine has {there}; give as many or fewer, or auto"
        )
    return config.devices
