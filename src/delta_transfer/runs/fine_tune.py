"""One fine-tuning: network, penalties and attention from what was prepared, trained in a folder."""

import copy
import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.config.train import TrainConfig
from delta_transfer.errors import UserError
from delta_transfer.features.inputs import Inputs
from delta_transfer.features.probe import LinearProbe
from delta_transfer.methods.base import Method, Parts
from delta_transfer.methods.penalty import Penalty
from delta_transfer.methods.registry import check_classifier
from delta_transfer.regularizer import Regularizer
from delta_transfer.runs.attention import describe, estimate
from delta_transfer.runs.plan import Tuning, is_sharded, loss_of, optimization, plan_fit
from delta_transfer.runs.preparation.prepared import Prepared
from delta_transfer.training.callbacks import MeasureDrift, RedrawHead, TellLoss
from delta_transfer.training.fit import Fitted, fit
from delta_transfer.training.loaders import plain_loader
from delta_transfer.utils.devices import place
from delta_transfer.utils.distributed import is_main, own_batches, processes
from delta_transfer.utils.module_state import same_random_state
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

DRIFT_PICTURES = 32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tuned:
    """A fine-tuned network.

    Args:
        network: with the weights of the epoch that was kept.
        fitted: that epoch, and what the network said of the validation split in each.
        taps: the modules whose features were compared or measured.
        start: the network's state before the first step, on the CPU.
    """

    network: nn.Module
    fitted: Fitted
    taps: tuple[str, ...]
    start: Mapping[str, Tensor]


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
        UserError: if training diverges, or the network does not suit the method.
    """
    tuning = in_its_mode(tuning)
    config, method = tuning.config, tuning.method
    network, attention = begin(prepared, tuning)
    start = {name: tensor.cpu().clone() for name, tensor in network.state_dict().items()}
    if attention is not None:
        logger.info("channel attention: %s", describe(attention))
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)
            attention.save(folder / "attention.safetensors")
    taps = prepared.taps if attention is None else attention.taps
    if not method.trains or stop_after == 0:
        return Tuned(
            network=network, fitted=Fitted(epoch=0, validations=[]), taps=taps, start=start
        )
    sharded = is_sharded(config)
    trained = copy.deepcopy(network) if sharded else network
    if sharded:
        network.cpu()  # until it gets the weights in the end
    regularizer = hold(prepared, tuning, trained, attention)
    # What a method draws while it trains.
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "method"))
    with same_random_state(trained), network_change(tuning, trained, generator):
        torch.manual_seed(derive_seed(config.seed, "training"))  # for dropout
        fitted = _fit(
            *(prepared, tuning, trained, regularizer, taps, folder, stop_after),
            generator=generator,
            into=network,
        )
    network.to(prepared.device)
    return Tuned(network=network, fitted=fitted, taps=taps, start=start)


def begin(prepared: Prepared, tuning: Tuning) -> tuple[nn.Module, ChannelAttention | None]:
    """A copy of the network as the method begins with it, and channel attention if it needs it.

    Raises:
        UserError: if the network does not suit the method.
    """
    method = tuning.method
    check_classifier(method, prepared.backbone.classifier, tuning.config.model)
    network = copy.deepcopy(prepared.backbone.module)
    place(network, prepared.device)
    probe = _first_head(prepared, tuning)
    if probe is not None:
        _start_from(probe, network.get_submodule(prepared.backbone.head))
    if not method.attention:
        return network, tuning.attention
    return network, tuning.attention or estimate(prepared, tuning.config)


def hold(
    prepared: Prepared, tuning: Tuning, network: nn.Module, attention: ChannelAttention | None
) -> Regularizer:
    """What the method adds to the task loss, ready to train with."""
    config, taps = tuning.config, prepared.taps if attention is None else attention.taps
    penalties = tuning.method.penalties(_parts(prepared, tuning, taps, attention))
    _check_shares(tuning.method, penalties)
    regularizer = Regularizer(network, prepared.source, penalties, batch_norm=config.batch_norm)
    if regularizer.needs_calibration:
        train = prepared.task.train
        own = train.subset(own_batches(len(train), config.batch_size))
        regularizer.calibrate(plain_loader(own, prepared.backbone.input, config))
    return regularizer


def _check_shares(method: Method, penalties: Sequence[Penalty]) -> None:
    """Checks that a batch can be shared by several processes, if there are several.

    Raises:
        UserError: if a penalty has to see the whole of it.
    """
    if processes() > 1 and any(penalty.combines == "batch" for penalty in penalties):
        raise UserError(
            f"--method {method.name} looks at each batch as a whole, which {processes()} processes "
            "share: use one device, or another method"
        )


def in_its_mode(tuning: Tuning) -> Tuning:
    """With batch norm in the mode that the method needs."""
    needed = tuning.method.batch_norm
    if needed is None or tuning.config.batch_norm == needed:
        return tuning
    logger.info("batch norm is in %s mode, without which %s is nothing", needed, tuning.method.name)
    config = dataclasses.replace(tuning.config, batch_norm=needed)
    return dataclasses.replace(tuning, config=config)


def _parts(
    prepared: Prepared,
    tuning: Tuning,
    taps: tuple[str, ...],
    attention: ChannelAttention | None,
) -> Parts:
    views, labels = prepared.features["train"]
    return Parts(
        strength=tuning.strength or 0.0,
        head=prepared.backbone.head,
        taps=taps,
        attention=attention,
        classifier=prepared.backbone.classifier,
        features=views[:, 0],  # of the pictures themselves, not their mirror images
        labels=labels,
        num_outputs=len(prepared.task.classes),
    )


def network_change(
    tuning: Tuning, network: nn.Module, generator: torch.Generator
) -> AbstractContextManager[object]:
    """What the method changes of the network while it trains."""
    change = tuning.method.network_change
    if change is None:
        return nullcontext()
    return change(network, tuning.strength or 0.0, generator)


def _first_head(prepared: Prepared, tuning: Tuning) -> LinearProbe | None:
    """What the head starts as; None for at random."""
    if tuning.method.head == "raw_probe":
        return prepared.raw_probe
    return prepared.probe if tuning.method.head == "probe" else None


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
    *,
    generator: torch.Generator,
    into: nn.Module,
) -> Fitted:
    drift = folder / "drift.csv" if stop_after is None else None
    callbacks = _callbacks(prepared, tuning, network, taps, drift, generator=generator)
    if tuning.listener is not None and stop_after is None:
        callbacks.append(TellLoss(functools.partial(tuning.listener, folder)))
    fitted = fit(
        network,
        regularizer,
        plan_fit(prepared, tuning, folder, stop_after),
        loss=loss_of(prepared, tuning),
        head=prepared.backbone.head,
        objective=prepared.task.objective,
        optimization=optimization(prepared, tuning, network),
        callbacks=callbacks,
        generators=[generator],
        into=into,
    )
    for callback in callbacks:
        if isinstance(callback, EarlyStopping) and callback.stopped_epoch:
            epoch = callback.stopped_epoch + 1
            logger.info("stopped after epoch %d, by --patience %d", epoch, callback.patience)
    return fitted


def _callbacks(
    prepared: Prepared,
    tuning: Tuning,
    network: nn.Module,
    taps: tuple[str, ...],
    drift: Path | None,
    *,
    generator: torch.Generator,
) -> list[lightning.Callback]:
    """What happens beside the steps; drift is measured if it has a file."""
    found: list[lightning.Callback] = []
    if drift is not None:
        inputs = _some_inputs(prepared, tuning.config)
        found.append(MeasureDrift(network, prepared.source, taps=taps, inputs=inputs, path=drift))
        if tuning.config.patience is not None:
            found.append(
                EarlyStopping(
                    "val_calibrated_loss",
                    patience=tuning.config.patience,
                    check_finite=False,  # what is no number is no better
                )
            )
    cycles = tuning.method.head_cycles
    if cycles > 1:
        head = network.get_submodule(prepared.backbone.head)
        assert isinstance(head, nn.Linear)
        found.append(RedrawHead(head, cycles=cycles, generator=generator))
    return found


def _some_inputs(prepared: Prepared, config: TrainConfig) -> Inputs:
    """A few training pictures, evenly spaced, to measure drift on."""
    train = prepared.task.train
    count = min(DRIFT_PICTURES, len(train))
    some = train.subset(i * len(train) // count for i in range(count))
    at_once = dataclasses.replace(config, batch_size=count, accumulate=1)
    ((inputs, _),) = plain_loader(some, prepared.backbone.input, at_once)
    found: Inputs = inputs
    return found
