"""Checks of a run's options against each other, its method and its processes."""

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
from delta_transfer.errors import ConfigError, EnvironmentError, UserError, reworded, unknown
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
    *("class_weights", "label_smoothing", "head_init", "average"),
    *("gradient_accumulation_steps", "grad_clip", "ema", "layer_decay", "precision"),
    *("augment", "mixup", "cutmix"),
    "strategy",
]

# Options that several processes do not support, and their defaults.
_SINGLE_PROCESS_OPTIONS = {"gradient_accumulation_steps": 1, "mixup": 0, "cutmix": 0}


def check_run_config(config: TrainConfig, *, device: torch.device | None = None) -> None:
    """Check the options that need no data, and warn about options that the method ignores.

    Args:
        config: the options.
        device: the device of `config.device`; looked up where it is needed if None, since the
            runs of a comparison may be on other machines.

    Raises:
        UserError: if a name is unknown, a file is not channel attention, or options conflict.
    """
    method = method_of(config)
    choices = ["auto", "none", *ESTIMATORS]
    if config.attention not in choices:
        if not Path(config.attention).is_file():
            raise ConfigError(
                f"{unknown('attention', config.attention, choices)}; or use the file "
                "attention.safetensors of another run (there is no such file)"
            )
        try:
            ChannelAttention.load(config.attention)
        except UserError as error:
            raise reworded(
                error,
                f"`attention`: {error}; use the attention.safetensors of another run, or one of "
                f"{', '.join(ESTIMATORS)}",
            ) from error
    check_loggers(config.logger_names)
    if config.precision != "32":
        find_precision(config.precision, device or find_device(config.device))
    _check_gradient_accumulation(config, method)
    if config.strategy == "fsdp" and method.trains_network:
        _check_sharded(config, method, device)
    for name in _ignored_options(config, method):
        logger.warning("`%s` is ignored: method %s does not use it", name, method.name)
    if method.needs_attention and config.attention_source not in ESTIMATORS:
        for name in _non_default_options(config, _ATTENTION_ESTIMATION_OPTIONS):
            logger.warning("`%s` is ignored: attention comes from %s", name, config.attention)


def _check_gradient_accumulation(config: TrainConfig, method: Method) -> None:
    """Check that steps may be split into micro-batches, if the options say so.

    Raises:
        ConfigError: if something needs the whole batch.
    """
    trained = "train" in (config.batch_norm, method.batch_norm)
    if (
        config.gradient_accumulation_steps == 1
        or not method.trains_network
        or not (trained or method.needs_whole_batch)
    ):
        return
    what = "batch norm in train mode" if trained else f"method {method.name}"
    hint = "`batch_norm=frozen`, or " if trained and method.batch_norm is None else ""
    raise ConfigError(
        f"`gradient_accumulation_steps={config.gradient_accumulation_steps}`: {what} needs the "
        f"whole batch: use {hint}a smaller `batch_size` without gradient accumulation"
    )


def _check_sharded(config: TrainConfig, method: Method, device: torch.device | None) -> None:
    """Check that the weights may be sharded.

    Raises:
        ConfigError: if there is one process, or something needs whole weights during training.
    """
    if world_size() == 1:
        raise ConfigError(
            "`strategy=fsdp` needs several processes: use `devices=2` or more, or leave the option "
            "out"
        )
    if (
        method.num_head_cycles > 1
        or method.optimizer_context
        or method.network_context
        or method.needs_classifier
    ):
        raise ConfigError(
            f"`strategy=fsdp`: method {method.name} changes weights outside of the optimiser or "
            "trains weights of its own: use `strategy=ddp`, or another method"
        )
    if config.ema is not None:
        raise ConfigError(
            f"`ema={config.ema:g}` needs whole weights, which `strategy=fsdp` shards: leave it "
            "out, or use `strategy=ddp`"
        )
    if find_precision(config.precision, device or find_device(config.device)) == "16-mixed":
        raise ConfigError(
            f"`precision={config.precision}` is float16 here, whose loss scaling does not support "
            "`strategy=fsdp`: use bf16 or 32, or `strategy=ddp`"
        )


def _ignored_options(config: TrainConfig, method: Method) -> list[str]:
    """Return the given options that the method does not use."""
    names = [] if method.strength_option else ["strength"]
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
    """Return those of some options that differ from the preset."""
    plain = TrainOptions(data=config.data, preset=config.preset).resolve()
    return [name for name in names if getattr(config, name) != getattr(plain, name)]


def check_data(config: TrainConfig, task: TaskData) -> None:
    """Check that the method supports the kind of samples and the task type.

    Raises:
        ConfigError: naming the methods that do.
    """
    method = method_of(config)
    check_kind(method, task.kind, task.name)
    if method.multiclass_only and not isinstance(task.task_type, Multiclass):
        fit = [other for other in METHODS.values() if task.kind in other.kinds]
        others = [other.name for other in fit if not other.multiclass_only]
        raise ConfigError(
            f"`method={method.name}` needs classes, but {task.name} has "
            f"{task.task_type.target_kind}: use one of {', '.join(others)}"
        )


def adapt_to_processes(config: TrainConfig) -> TrainConfig:
    """Return the options for several processes, with `resume` if torchrun has restarted them.

    Raises:
        ConfigError: if several processes do not support an option.
    """
    count = world_size()
    if config.batch_size % count:
        raise ConfigError(
            f"`batch_size={config.batch_size}` must be a multiple of the {count} processes that "
            "share each batch"
        )
    if method_of(config).trains_network:
        _check_distributed(config, count)
    if config.out is None or config.overwrite:
        raise ConfigError(
            f"{'`overwrite`' if config.overwrite else 'no `out`'}: several processes, which may be "
            "restarted, need a fixed folder: use `out` with a new one"
        )
    again = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    return dataclasses.replace(config, resume=config.resume or again)


def _check_distributed(config: TrainConfig, count: int) -> None:
    """Check that several processes can train with these options.

    Raises:
        ConfigError: if they cannot.
    """
    method = method_of(config)
    if "train" in (config.batch_norm, method.batch_norm):
        raise ConfigError(
            f"`batch_norm=train` (an option, or part of `method={method.name}`) needs whole "
            f"batches, which {count} processes split: use `batch_norm=frozen` and a method that "
            "allows it, or one device"
        )
    if config.lr == "find":
        raise ConfigError(
            f"`lr=find` does not support {count} processes: find the rate with one device, then "
            "use `lr=RATE`"
        )
    for name, plain in _SINGLE_PROCESS_OPTIONS.items():
        if getattr(config, name) != plain:
            raise ConfigError(
                f"`{name}={getattr(config, name)}` needs whole batches, which "
                f"{count} processes split: leave it out, or use one device"
            )


def count_processes(config: TrainConfig) -> int:
    """Return the number of processes that a command has to start.

    Raises:
        UserError: if there are too few devices, or several machines need a launcher.
    """
    if config.devices == 1 and config.num_nodes == 1:
        return 1
    device = find_device(config.device)
    available = 1 if device.type == "cpu" else torch.accelerator.device_count()
    if config.num_nodes > 1:
        raise ConfigError(
            f"`num_nodes={config.num_nodes}`: start the command on each machine by torchrun or "
            "SLURM's srun, see docs/scaling.md"
        )
    if config.devices == "auto":
        return available
    if device.type != "cpu" and config.devices > available:
        raise EnvironmentError(
            f"`devices={config.devices}`: this machine has {available}; use fewer, or auto"
        )
    return config.devices
