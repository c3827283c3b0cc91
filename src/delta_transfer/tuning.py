"""One fine-tuning: network, penalties and attention from what was prepared, trained in a folder."""

import copy
import dataclasses
import logging
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.channel_attention import ChannelAttention
from delta_transfer.config import TrainConfig
from delta_transfer.devices import place
from delta_transfer.loaders import plain_loader, training_loader
from delta_transfer.methods import Method, Parts
from delta_transfer.prepare import Prepared
from delta_transfer.presets import find_preset
from delta_transfer.probe import LinearProbe
from delta_transfer.regularizer import Regularizer
from delta_transfer.run_attention import describe, estimate
from delta_transfer.training import Fit, Fitted, MeasureDrift, Optimization, fit

logger = logging.getLogger(__name__)

DRIFT_PICTURES = 32
RANDOM_HEAD_LR = 10  # times lr, for a head that starts at random


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tuning:
    """What to fine-tune by, the same for every fold and the refit.

    Args:
        config: the options.
        method: the method.
        epochs: how many, by which the schedule goes.
        attention: channel attention that was given; None to estimate it, if the method needs it.
    """

    config: TrainConfig
    method: Method
    epochs: int
    attention: ChannelAttention | None

    @property
    def strength(self) -> float | None:
        """Of the method's penalty, or its weight decay; None where it has none."""
        given = self.config.strength
        return self.method.strength if given is None else given


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """A fine-tuned network.

    Args:
        network: with the weights of the epoch that was kept.
        fitted: that epoch, and what the network said of the validation split in each.
        taps: the modules whose features were compared or measured.
    """

    network: nn.Module
    fitted: Fitted
    taps: tuple[str, ...]


def fine_tune(
    prepared: Prepared, tuning: Tuning, folder: Path, *, stop_after: int | None = None
) -> Tuned:
    """Fine-tunes a copy of the prepared network.

    Args:
        prepared: the pictures, the network and its probe.
        tuning: options and method.
        folder: for metrics, drift, attention and checkpoints.
        stop_after: train for so many epochs, looking at no validation pictures; None for all
            epochs, of which the best on validation is kept.

    Raises:
        UserError: if training diverges.
    """
    config, method = tuning.config, tuning.method
    network = copy.deepcopy(prepared.backbone.module)
    place(network, prepared.device)
    if method.head == "probe":
        _start_from(prepared.probe, network.get_submodule(prepared.backbone.head))
    attention = tuning.attention
    if method.attention:
        attention = attention or estimate(prepared, config)
        logger.info("channel attention: %s", describe(attention))
        folder.mkdir(parents=True, exist_ok=True)
        attention.save(folder / "attention.safetensors")
    taps = prepared.taps if attention is None else attention.taps
    if not method.trains or stop_after == 0:
        return Tuned(network=network, fitted=Fitted(epoch=0, validations=[]), taps=taps)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    parts = Parts(
        strength=tuning.strength or 0.0,
        head=prepared.backbone.head,
        taps=taps,
        attention=attention,
    )
    penalties = method.penalties(parts)
    regularizer = Regularizer(network, prepared.source, penalties, batch_norm=config.batch_norm)
    if regularizer.needs_calibration:
        regularizer.calibrate(plain_loader(prepared.task.train, prepared.backbone.input, config))
    fitted = _fit(prepared, tuning, network, regularizer, taps, folder, stop_after)
    network.to(prepared.device)
    return Tuned(network=network, fitted=fitted, taps=taps)


def _start_from(probe: LinearProbe, head: nn.Module) -> None:
    with torch.no_grad():
        head.get_parameter("weight").copy_(probe.weight)
        head.get_parameter("bias").copy_(probe.bias)


def _fit(
    prepared: Prepared,
    tuning: Tuning,
    network: nn.Module,
    regularizer: Regularizer,
    taps: tuple[str, ...],
    folder: Path,
    stop_after: int | None,
) -> Fitted:
    task, spec, config = prepared.task, prepared.backbone.input, tuning.config
    preset = find_preset(config.preset)
    validates = stop_after is None
    callbacks = []
    if validates:
        inputs, path = _some_inputs(prepared, config), folder / "drift.csv"
        callbacks = [MeasureDrift(network, prepared.source, taps=taps, inputs=inputs, path=path)]
    return fit(
        network,
        regularizer,
        Fit(
            train=training_loader(task.train, spec, config),
            val=plain_loader(task.val, spec, config) if validates else None,
            epochs=tuning.epochs,
            stop_after=stop_after,
            clip=preset.clip,
            keep_last=config.official,
            folder=folder,
            accelerator=prepared.device.type,
        ),
        loss=F.cross_entropy,
        head=prepared.backbone.head,
        num_classes=len(task.classes),
        optimization=Optimization(
            optimizer=config.optimizer,
            lr=config.lr,
            head_lr=_head_lr(config, tuning.method),
            weight_decay=(tuning.strength or 0.0) if tuning.method.decay else 0.0,
            schedule=config.schedule,
            warm_up=preset.warm_up,
        ),
        callbacks=callbacks,
    )


def _some_inputs(prepared: Prepared, config: TrainConfig) -> Tensor:
    """A few training pictures, evenly spaced, to measure drift on."""
    train = prepared.task.train
    count = min(DRIFT_PICTURES, len(train))
    some = train.subset(i * len(train) // count for i in range(count))
    return torch.cat([inputs for inputs, _ in plain_loader(some, prepared.backbone.input, config)])


def _head_lr(config: TrainConfig, method: Method) -> float:
    if config.head_lr is not None:
        return config.head_lr
    same = method.head == "probe" or config.official
    return config.lr if same else RANDOM_HEAD_LR * config.lr
