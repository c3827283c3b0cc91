"""Estimate the duration of a run from one of its steps."""

import copy
import io
import math
import time

import torch

from delta_transfer.attention.estimators.refined import num_exact_samples
from delta_transfer.features.inputs import Inputs
from delta_transfer.features.taps import Taps
from delta_transfer.runs.attention import attention_sample_order
from delta_transfer.runs.fine_tune import DRIFT_SAMPLES
from delta_transfer.runs.model_soup import mixtures
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.preparation.folds import training_pool
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.training.lr_finder import LR_RANGE_TEST_STEPS
from delta_transfer.training.trainer import autocast, epochs_per_validation, find_precision
from delta_transfer.utils.devices import move_to_device
from delta_transfer.utils.distributed import world_size
from delta_transfer.utils.module_state import eval_mode, preserve_random_state

ABLATIONS_PER_FORWARD = 10
"""Channels ablated in the time of one forward pass: 8 to 30, depending on the network."""


def estimate_minutes(plan: FineTunePlan) -> float:
    """Return the expected duration of a run, from the second of two measured training steps.

    It includes reading and augmentation, validation, drift, checkpoints, channel attention, folds,
    several candidates, the learning-rate range test, probes and the test.
    """
    setup, config, task = plan.setup, plan.config, plan.setup.task
    size = min(config.micro_batch_size, len(task.train))
    loader = plan.loaders.train_dataloader(task.train.subset(range(size)))
    started = time.perf_counter()
    collated, labels = loader.collate_fn([loader.dataset[i] for i in range(size)])
    inputs = loader.preprocess(collated)
    reading = (time.perf_counter() - started) / size
    workers = loader.num_workers
    compares = plan.method.compares_features  # with a forward pass of the source
    step = _seconds_per_sample(plan, inputs, labels)
    training = max(step, reading / workers) if workers else step + reading
    training /= world_size()  # all processes measure at the same time
    computing = step / (4 if compares else 3)  # a forward pass; backward takes as long as two
    forward = max(computing, reading / workers) if workers else computing + reading

    fits, num_candidates = _fits(plan), len(plan.candidates)
    validations = plan.epochs // epochs_per_validation(plan.epochs)
    total = LR_RANGE_TEST_STEPS * config.batch_size * training if config.lr == "find" else 0.0
    for num_train, num_val in fits:
        curves = validations * (num_val * forward + DRIFT_SAMPLES * computing)
        total += num_candidates * (plan.epochs * num_train * training + curves)
        total += 2 * num_candidates * _seconds_to_save(setup)
        total += len(mixtures(num_candidates, averaged=plan.averages_weights)) * num_val * forward
        total += _attention_passes(plan, num_train) * computing
    if plan.folds:  # and what was chosen is trained on all samples
        total += (len(fits) + 1) * setup.probe_wall_time_s
        num_train, averaged = len(training_pool(config, task)), plan.averages_weights
        epochs = config.count_epochs(num_train)
        total += (num_candidates if averaged else 1) * epochs * num_train * training
        total += (num_candidates + 2 if averaged else 0) * num_train * forward
        total += _attention_passes(plan, num_train) * computing
    crops = 10 if config.paper_protocol else 1
    total += 0.0 if task.test is None else len(task.test) * (crops * computing + reading)
    return total / 60


def _fits(plan: FineTunePlan) -> list[tuple[int, int]]:
    """Return the numbers of samples that each fold trains on and holds out."""
    task = plan.setup.task
    if not plan.folds:
        return [(len(task.train), len(task.val))]
    pool = len(training_pool(plan.config, task))
    held_out = pool // plan.folds
    return [(pool - held_out, held_out)] * plan.folds


def _seconds_per_sample(plan: FineTunePlan, inputs: Inputs, labels: torch.Tensor) -> float:
    """Measure a training step, with half of the samples if memory runs out."""
    count = len(labels)
    try:
        return _seconds_per_step(plan, inputs, labels) / count
    except torch.OutOfMemoryError:
        if count == 1:
            raise
    half = slice(count // 2)
    return _seconds_per_sample(plan, inputs[half], labels[half])


def _seconds_per_step(plan: FineTunePlan, inputs: Inputs, labels: torch.Tensor) -> float:
    setup = plan.setup
    precision = find_precision(plan.config.precision, setup.device)
    network = copy.deepcopy(setup.backbone.module)
    move_to_device(network, setup.device)
    inputs, labels = inputs.to(setup.device), labels.to(setup.device)
    seconds = math.inf
    with preserve_random_state(network):
        for _ in range(2):
            started = time.perf_counter()
            with autocast(precision, setup.device):
                loss = setup.task.task_type.loss(network(inputs), labels)
                if plan.method.compares_features:
                    with eval_mode(setup.source), torch.no_grad():
                        setup.source(inputs)
            torch.autograd.backward(loss)
            if setup.device.type != "cpu":
                torch.accelerator.synchronize(setup.device)
            seconds = time.perf_counter() - started
    return seconds


def _seconds_to_save(setup: RunSetup) -> float:
    """Measure how long a checkpoint takes."""
    started = time.perf_counter()
    torch.save(setup.backbone.module.state_dict(), io.BytesIO())
    return time.perf_counter() - started


def _attention_passes(plan: FineTunePlan, num_train: int) -> float:
    """Return the forward passes for channel attention, a backward pass counting as two.

    It is an upper bound: attention may be cached, or converge on fewer samples.
    """
    config = plan.config
    if not plan.method.needs_attention or plan.attention is not None:
        return 0.0
    samples = len(attention_sample_order(config, num_train))
    if config.attention_source == "gradient":
        return 3.0 * samples
    channels = _channels(plan.setup)
    if config.attention_source == "exact":
        return samples * channels / ABLATIONS_PER_FORWARD
    return (
        3.0 * samples
        + num_exact_samples(samples, channels=channels) * channels / ABLATIONS_PER_FORWARD
    )


def _channels(setup: RunSetup) -> int:
    example = setup.backbone.input_spec.example().to(setup.device)
    source = setup.source
    with Taps(source, setup.taps) as taps, eval_mode(source), torch.no_grad():
        taps.record(example)
        return sum(features.shape[-1] for features in taps.features().values())
