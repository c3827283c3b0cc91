"""One run from its options to its folder: the only place that knows every part."""

import copy
import dataclasses
import importlib.metadata
import logging
import platform
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from delta_transfer.announce import announce, conclude
from delta_transfer.attention import ESTIMATORS, estimate_attention
from delta_transfer.backbones.saved import save_model
from delta_transfer.channel_attention import ChannelAttention, weights_fingerprint
from delta_transfer.config import TrainConfig
from delta_transfer.errors import UserError, unknown
from delta_transfer.files import write_atomically
from delta_transfer.methods import Method, Parts, find_method
from delta_transfer.outputs import write_examples, write_predictions
from delta_transfer.prepare import Prepared, place, plain_loader, prepare, training_loader
from delta_transfer.probe import LinearProbe
from delta_transfer.regularizer import Regularizer
from delta_transfer.report import write_run_report
from delta_transfer.result import RunResult
from delta_transfer.run_folder import LOG, check_folder, default_folder, log_to, make_folder
from delta_transfer.training import (
    Fit,
    MeasureDrift,
    Optimization,
    accuracy,
    fit,
    predict_probabilities,
)

logger = logging.getLogger(__name__)

EXACT_SAMPLES = 64  # one forward pass a channel: all pictures would take hours
DRIFT_PICTURES = 32
RANDOM_HEAD_LR = 10  # times lr, for a head that starts at random
LIBRARIES = ("delta-transfer", "torch", "torchvision", "timm", "lightning", "scikit-learn")


def train(config: TrainConfig) -> RunResult:
    """Fine-tunes a network on a folder of pictures and leaves a run folder.

    Args:
        config: the options.

    Returns:
        The run's figures; `folder` says where it lies.

    Raises:
        UserError: if an option, the data or the network is not as it must be. Nothing is written
            then.

    Example:
        >>> from delta_transfer import TrainConfig, train
        >>> result = train(TrainConfig(data="pictures"))  # doctest: +SKIP
    """
    started = time.perf_counter()
    check(config)
    folder = Path(config.out or default_folder(config))
    check_folder(folder, data=config.data, overwrite=config.overwrite)
    return train_prepared(prepare(config), config, folder, started=started)


def train_prepared(
    prepared: Prepared, config: TrainConfig, folder: Path, *, started: float
) -> RunResult:
    """`train` for data, network and probe that are there already.

    Args:
        prepared: what `prepare` made of the same options, whatever the method.
        config: the options.
        folder: of the run; emptied if it holds an old one.
        started: `time.perf_counter()` at the start of the run.
    """
    method = find_method(config.method)
    given = given_attention(prepared, config)
    make_folder(folder, overwrite=config.overwrite)
    (folder / "checkpoints").mkdir()
    with log_to(folder / LOG, prepared.description):
        # Without overwrite: `train -c` with this file must not replace the very run.
        dataclasses.replace(config, overwrite=False).save(folder / "config.yaml")
        announce(prepared, config, method)
        network = copy.deepcopy(prepared.backbone.module)
        place(network, prepared.device)
        if method.head == "probe":
            _start_from_probe(network.get_submodule(prepared.backbone.head), prepared.probe)
        best_epoch, taps = 0, prepared.taps
        if method.trains:
            regularizer, taps = _regularizer(prepared, config, method, network, given, folder)
            best_epoch = _fit(prepared, config, method, network, regularizer, taps, folder)
        network.to(prepared.device)
        accuracies = _evaluate(prepared, config, network, folder)
        (folder / "model").mkdir()
        save_model(folder / "model", prepared.backbone, network, classes=prepared.task.classes)
        probe = prepared.probe_accuracies
        result = RunResult(
            folder=folder,
            method=method.name,
            seed=config.seed,
            test_accuracy=accuracies["test"],
            val_accuracy=accuracies["val"] or 0.0,
            linear_probe_test_accuracy=probe["test"],
            linear_probe_val_accuracy=probe["val"] or 0.0,
            best_epoch=best_epoch,
            epochs=config.epochs if method.trains else 0,
            seconds=round(time.perf_counter() - started, 1),
            pictures=len(prepared.task.train),
            classes=len(prepared.task.classes),
            strength=prepared.probe.strength if not method.trains else _strength(config, method),
            taps=taps,
            versions=_versions(),
        )
        write_atomically(folder / "result.json", result.to_json())
        write_run_report(folder)
        conclude(result)
    return result


def check(config: TrainConfig) -> None:
    """Checks the options that need no data: names, and options that the method does not use.

    Raises:
        UserError: if a name is unknown, or a file is no channel attention.
    """
    method = find_method(config.method)
    choices = ["none", *ESTIMATORS]
    if config.attention not in choices:
        if not Path(config.attention).is_file():
            raise UserError(
                f"{unknown('attention', config.attention, choices)}; or give the file "
                "attention.safetensors of another run (there is no such file)"
            )
        ChannelAttention.load(config.attention)
    if method.name == "delta" and config.attention == "none":
        raise UserError(
            "--method delta weighs channels by their attention: with --attention none use "
            "--method delta_no_attention"
        )
    if config.strength is not None and method.strength is None:
        logger.warning("--strength is ignored: it means nothing for method %s", method.name)
    if not method.attention and config.attention not in ("gradient", "none"):
        logger.warning("--attention is ignored: method %s has no attention", method.name)
    if not method.attention and config.attention_samples is not None:
        logger.warning("--attention-samples is ignored: method %s has no attention", method.name)


def _strength(config: TrainConfig, method: Method) -> float | None:
    return method.strength if config.strength is None else config.strength


def _start_from_probe(head: nn.Module, probe: LinearProbe) -> None:
    with torch.no_grad():
        head.get_parameter("weight").copy_(probe.weight)
        head.get_parameter("bias").copy_(probe.bias)


def given_attention(prepared: Prepared, config: TrainConfig) -> ChannelAttention | None:
    """The attention in the file that was named, if one was and the method needs it.

    Raises:
        UserError: if it does not fit the network.
    """
    if not find_method(config.method).attention or config.attention in ESTIMATORS:
        return None
    attention = ChannelAttention.load(config.attention)
    own = weights_fingerprint(prepared.source, head=prepared.backbone.head)
    if attention.source != own:
        raise UserError(
            f"--attention {config.attention} was made with other weights than {config.model} has: "
            "name the model that it was made with, or let it be estimated (--attention gradient)"
        )
    if config.taps != "auto":
        raise UserError(
            f"--taps {config.taps} and --attention {config.attention} exclude each other: the file "
            f"names its taps ({', '.join(attention.taps)})"
        )
    return attention


def _regularizer(
    prepared: Prepared,
    config: TrainConfig,
    method: Method,
    network: nn.Module,
    attention: ChannelAttention | None,
    folder: Path,
) -> tuple[Regularizer, tuple[str, ...]]:
    """The method's penalties on this network, calibrated; and the taps that they compare."""
    taps = prepared.taps
    loader = plain_loader(prepared.task.train, prepared.backbone.input, config)
    if method.attention and attention is None:
        samples = config.attention_samples
        if samples is None and config.attention == "exact":
            samples = EXACT_SAMPLES
        train = prepared.task.train
        if samples is not None and samples < len(train):
            # Drawn here, so that nothing else is read and the batches are full.
            draw = torch.Generator().manual_seed(config.seed)
            picked = torch.randperm(len(train), generator=draw)[:samples]
            loader = plain_loader(train.subset(picked), prepared.backbone.input, config)
        attention = estimate_attention(
            prepared.source,
            loader,
            probe=prepared.probe,
            head=prepared.backbone.head,
            taps=taps,
            loss=F.cross_entropy,
            method=config.attention,  # type: ignore[arg-type]  # checked against ESTIMATORS
        )
    if attention is not None:
        attention.save(folder / "attention.safetensors")
        taps = attention.taps
    parts = Parts(
        strength=_strength(config, method) or 0.0,
        head=prepared.backbone.head,
        taps=taps,
        attention=attention,
    )
    penalties = method.penalties(parts)
    regularizer = Regularizer(network, prepared.source, penalties, batch_norm=config.batch_norm)
    if regularizer.needs_calibration:
        regularizer.calibrate(loader)
    return regularizer, taps


def _fit(
    prepared: Prepared,
    config: TrainConfig,
    method: Method,
    network: nn.Module,
    regularizer: Regularizer,
    taps: tuple[str, ...],
    folder: Path,
) -> int:
    task, spec = prepared.task, prepared.backbone.input
    head_lr = config.lr if method.head == "probe" else RANDOM_HEAD_LR * config.lr
    count = min(DRIFT_PICTURES, len(task.train))
    some = task.train.subset(i * len(task.train) // count for i in range(count))
    drift = MeasureDrift(
        network,
        prepared.source,
        taps=taps,
        inputs=torch.cat([inputs for inputs, _ in plain_loader(some, spec, config)]),
        path=folder / "drift.csv",
    )
    return fit(
        network,
        regularizer,
        Fit(
            train=training_loader(task.train, spec, config),
            val=plain_loader(task.val, spec, config),
            epochs=config.epochs,
            folder=folder,
            accelerator=prepared.device.type,
        ),
        loss=F.cross_entropy,
        head=prepared.backbone.head,
        num_classes=len(task.classes),
        optimization=Optimization(
            optimizer=config.optimizer,
            lr=config.lr,
            head_lr=head_lr if config.head_lr is None else config.head_lr,
            weight_decay=(_strength(config, method) or 0.0) if method.decay else 0.0,
            schedule=config.schedule,
        ),
        callbacks=[drift],
    )


def _evaluate(
    prepared: Prepared, config: TrainConfig, network: nn.Module, folder: Path
) -> dict[str, float | None]:
    """Accuracies of both splits; predictions on the test split, or without one on validation."""
    task = prepared.task
    accuracies: dict[str, float | None] = {"test": None}
    for name, split in (("val", task.val), ("test", task.test)):
        if split is not None:
            loader = plain_loader(split, prepared.backbone.input, config)
            probabilities, labels = predict_probabilities(network, loader)
            accuracies[name] = accuracy(probabilities, labels)
            shown, found, probe = split, probabilities, prepared.probe_probabilities[name]
    assert probe is not None
    write_predictions(folder / "predictions.csv", shown, found, task.classes)
    write_examples(folder, shown, found, probe, task.classes)
    return accuracies


def _versions() -> dict[str, str]:
    found = {library: importlib.metadata.version(library) for library in LIBRARIES}
    return {"python": platform.python_version(), **found}
