"""What to fine-tune by, and what it comes to as a fit: data, loss and how the weights are moved."""

import dataclasses
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.config.presets import find_preset
from delta_transfer.config.train import TrainConfig
from delta_transfer.methods.base import Method
from delta_transfer.runs.preparation.loss import task_loss
from delta_transfer.runs.preparation.prepared import Prepared
from delta_transfer.training.checkpoint_callbacks import Saving
from delta_transfer.training.loaders import plain_loader, training_loader
from delta_transfer.training.mixing import Mixing
from delta_transfer.training.optimizers import Optimization, layer_scales
from delta_transfer.training.trainer import Fit, find_precision
from delta_transfer.utils.distributed import processes
from delta_transfer.utils.files import fingerprint
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

RANDOM_HEAD_LR = 10  # times lr, for a head that starts at random


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """What to fine-tune by, the same for every fold and the refit.

    Args:
        config: the options.
        method: the method.
        epochs: how many, by which the schedule goes.
        attention: channel attention that was given; None to estimate it, if the method needs it.
        order: which of several orders and augmentations of the pictures that the seed gives.
        saved: called whenever a fit has saved its state.
        listener: hears of each epoch of a training that is validated: in which folder it is, which
            of how many, and its calibrated validation loss; what it raises ends the training.
    """

    config: TrainConfig
    method: Method
    epochs: int
    attention: ChannelAttention | None
    order: int = 0
    saved: Callable[[], None] = lambda: None
    listener: Callable[[Path, int, int, float], None] | None = None

    @property
    def strength(self) -> float | None:
        """Of the method's penalty, or its weight decay; None where it has none."""
        given = self.config.strength
        return self.method.strength if given == "auto" else given

    @property
    def lr(self) -> float:
        """The peak learning rate of the backbone; one that is to be found is found by now."""
        assert not isinstance(self.config.lr, str)
        return self.config.lr

    @property
    def branches(self) -> "tuple[Tuning, ...]":
        """The trainings that `--strength auto` takes, from strong to weak; else this one alone.

        Averages of batch-norm statistics that have moved are no network's, so that there is one
        training where they do.
        """
        config, head_lr = self.config, self.config.head_lr
        if config.strength != "auto" or config.batch_norm == "train" or not self.method.branches:
            return (self,)
        return tuple(
            dataclasses.replace(
                self,
                config=dataclasses.replace(
                    config,
                    strength=branch.strength,
                    lr="find" if config.lr == "find" else branch.pace * config.lr,
                    head_lr=None if head_lr is None else branch.pace * head_lr,
                ),
                method=dataclasses.replace(
                    self.method, head=self.method.head if branch.head is None else branch.head
                ),
                order=order,
            )
            for order, branch in enumerate(self.method.branches)
        )


def plan_fit(prepared: Prepared, tuning: Tuning, folder: Path, stop_after: int | None) -> Fit:
    """What to train on, how, for how long and where."""
    task, spec, config = prepared.task, prepared.backbone.input, tuning.config
    return Fit(
        train=training_loader(task.train, spec, _in_order(tuning)),
        val=plain_loader(task.val, spec, config) if stop_after is None else None,
        epochs=tuning.epochs,
        stop_after=stop_after,
        clip=config.clip,
        mixing=_mixing(_in_order(tuning), len(task.classes)),
        noun=task.noun,
        parts=config.accumulate,
        divisible=_is_divisible(tuning),
        precision=find_precision(config.precision, prepared.device),
        keep_last=config.official,
        folder=folder,
        keep_validations=bool(config.folds),
        saving=Saving(minutes=config.checkpoint_minutes, steps=config.checkpoint_steps),
        saved=tuning.saved,
        resume=config.resume,
        identity=identity(prepared),
        accelerator=prepared.device.type,
        loggers=config.logger_names,
        units=_units(prepared) if is_sharded(config) else None,
    )


def is_sharded(config: TrainConfig) -> bool:
    """Whether each process keeps but its shard of the weights while it trains."""
    return config.strategy == "fsdp" and processes() > 1


def _units(prepared: Prepared) -> tuple[str, ...]:
    from delta_transfer.training.distributed import find_units  # loading it takes a second

    return find_units(prepared.backbone.module, prepared.backbone.input.example())


def _is_divisible(tuning: Tuning) -> bool:
    """Whether a step may be worked through in parts."""
    alone = processes() == 1
    return alone and tuning.config.batch_norm == "frozen" and not tuning.method.whole_batch


def loss_of(prepared: Prepared, tuning: Tuning) -> Callable[[Tensor, Tensor], Tensor]:
    """The task loss."""
    task = prepared.task
    labels, classes = task.train.class_indices, len(task.classes)
    return task_loss(tuning.config, task.objective, labels, num_classes=classes)


def identity(prepared: Prepared) -> str:
    """Of the pictures, their splits and the pretrained weights."""
    task = prepared.task
    rows = [
        f"{split} {label} {path}\n"
        for split, part in (("train", task.train), ("val", task.val))
        for path, label in zip(part.paths, part.labels, strict=True)
    ]
    parts = [prepared.data, prepared.source_fingerprint, *rows]
    return fingerprint(part.encode() for part in parts)


def _in_order(tuning: Tuning) -> TrainConfig:
    """With the seed of the order of pictures."""
    if not tuning.order:
        return tuning.config
    seed = derive_seed(tuning.config.seed, "order", str(tuning.order))
    return dataclasses.replace(tuning.config, seed=seed)


def _mixing(config: TrainConfig, num_classes: int) -> Mixing | None:
    if not config.mixup and not config.cutmix:
        return None
    return Mixing(
        mixup=config.mixup, cutmix=config.cutmix, num_classes=num_classes, seed=config.seed
    )


def optimization(prepared: Prepared, tuning: Tuning, network: nn.Module) -> Optimization:
    """How the weights are moved."""
    config, method, strength = tuning.config, tuning.method, tuning.strength or 0.0
    change = method.step_change

    def around(optimizer: torch.optim.Optimizer) -> AbstractContextManager[object]:
        if change is None:
            return nullcontext()
        return change(optimizer, network, prepared.source, strength)

    return Optimization(
        optimizer=config.optimizer,
        lr=tuning.lr,
        head_lr=_head_lr(tuning),
        weight_decay=strength if method.decay else method.weight_decay,
        schedule=config.schedule,
        warm_up=find_preset(config.preset).warm_up,
        head_cycles=method.head_cycles,
        around=around,
        scales=_scales(prepared, config, network),
        ema=config.ema,
    )


def _scales(prepared: Prepared, config: TrainConfig, network: nn.Module) -> dict[str, float]:
    """What layers learn at, as shares of the learning rate; nothing if all learn alike."""
    if config.layer_decay == 1:
        return {}
    head = prepared.backbone.head
    example = prepared.backbone.input.example().to(prepared.device)
    return layer_scales(network, head=head, factor=config.layer_decay, example=example)


def _head_lr(tuning: Tuning) -> float:
    config = tuning.config
    if config.head_lr is not None:
        return config.head_lr
    same = tuning.method.head != "random" or config.official
    return tuning.lr if same else RANDOM_HEAD_LR * tuning.lr
