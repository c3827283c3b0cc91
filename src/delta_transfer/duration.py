"""How long a run will take, from one step of it."""

import copy
import math
import time

import torch
import torch.nn.functional as F

from delta_transfer.borrow import evaluating, same_random_state
from delta_transfer.devices import place
from delta_transfer.loaders import count_workers, training_loader
from delta_transfer.prepare import Prepared
from delta_transfer.selection import refits
from delta_transfer.taps import Taps
from delta_transfer.tuning import EXACT_SAMPLES, Tuning


def estimate_minutes(prepared: Prepared, tuning: Tuning) -> float:
    """The minutes that a run will take, by the second of two measured training steps.

    Reading and augmenting pictures, validation, channel attention, folds and the refit are counted;
    what else a run does is not.
    """
    config, task = tuning.config, prepared.task
    size = min(config.batch_size, len(task.train))
    loader = training_loader(task.train.subset(range(size)), prepared.backbone.input, config)
    started = time.perf_counter()
    inputs, labels = torch.utils.data.default_collate([loader.dataset[i] for i in range(size)])
    reading = (time.perf_counter() - started) / size
    workers = count_workers(config.workers)
    computing = _seconds_per_step(prepared, tuning, inputs, labels) / size
    training = max(computing, reading / workers) if workers else computing + reading
    forward = prepared.seconds_per_picture
    if workers:
        forward = max(computing / 3, reading / workers)
    pictures = len(task.train) + len(task.val)
    attention = _attention_passes(prepared, tuning) * forward
    if config.folds:
        share = (config.folds - 1) / config.folds
        epoch = config.folds * pictures * (share * training + (1 - share) * forward)
        attention *= config.folds + 1
    else:
        epoch = len(task.train) * training + len(task.val) * forward
        attention *= 2 if refits(config, task) else 1
    if refits(config, task):
        epoch += pictures * training  # at most: it ends with the epoch that was chosen
    return (tuning.epochs * epoch + attention) / 60


def _seconds_per_step(
    prepared: Prepared, tuning: Tuning, inputs: torch.Tensor, labels: torch.Tensor
) -> float:
    network = copy.deepcopy(prepared.backbone.module)
    place(network, prepared.device)
    inputs, labels = inputs.to(prepared.device), labels.to(prepared.device)
    compares = tuning.method.name.startswith("delta")  # then the source runs too
    seconds = math.inf
    with same_random_state(network):
        for _ in range(2):
            started = time.perf_counter()
            torch.autograd.backward(F.cross_entropy(network(inputs), labels))
            if compares:
                with evaluating(prepared.source), torch.no_grad():
                    prepared.source(inputs)
            _wait(prepared.device)
            seconds = time.perf_counter() - started
    return seconds


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _attention_passes(prepared: Prepared, tuning: Tuning) -> int:
    """Forward passes of one picture that channel attention takes; a backward pass counts as two."""
    config = tuning.config
    if not tuning.method.attention or tuning.attention is not None:
        return 0
    if config.attention != "exact":
        return 3 * min(
            config.attention_samples or len(prepared.task.train), len(prepared.task.train)
        )
    samples = min(config.attention_samples or EXACT_SAMPLES, len(prepared.task.train))
    return samples * (1 + _channels(prepared))


def _channels(prepared: Prepared) -> int:
    size = prepared.backbone.input.size
    picture = torch.zeros(1, 3, size, size, device=prepared.device)
    source = prepared.source
    with Taps(source, prepared.taps) as taps, evaluating(source), torch.no_grad():
        taps.record(picture)
        return sum(features.shape[-1] for features in taps.features().values())
