"""How long a run will take, from one step of it."""

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
from delta_transfer.runs.model_soup import CANDIDATE_COEFFICIENTS, SINGLE_MODELS
from delta_transfer.runs.plan import FineTunePlan
from delta_transfer.runs.preparation.prepared import RunSetup
from delta_transfer.runs.selection import should_refit
from delta_transfer.training.lr_finder import LR_RANGE_TEST_STEPS
from delta_transfer.training.trainer import Precision, autocast, find_precision
from delta_transfer.utils.devices import move_to_device
from delta_transfer.utils.distributed import world_size
from delta_transfer.utils.module_state import eval_mode, preserve_random_state

ABLATIONS_PER_FORWARD = 10
"""Channels that are switched off in the time of one forward pass: 8 to 30, by the network."""


def estimate_minutes(plan: FineTunePlan) -> float:
    """The minutes that a run will take, by the second of two measured training steps.

    Reading and augmenting images, validation, drift, keeping the weights, channel attention,
    folds, the refit, a second strength, a trial of rates, probes and the test are counted; what
    else a run does is not.
    """
    setup, config, task = plan.setup, plan.config, plan.setup.task
    size = min(config.micro_batch_size, len(task.train))
    loader = plan.loaders.train_dataloader(task.train.subset(range(size)))
    started = time.perf_counter()
    collated, labels = loader.collate_fn([loader.dataset[i] for i in range(size)])
    inputs = loader.preprocess(collated)
    reading = (time.perf_counter() - started) / size
    workers = loader.num_workers
    compares = plan.method.compares_features  # then the source runs too
    step = _seconds_per_sample(
        setup,
        inputs,
        labels,
        compares=compares,
        precision=find_precision(config.precision, setup.device),
    )
    training = max(step, reading / workers) if workers else step + reading
    training /= world_size()  # which were measured at the same time
    computing = step / (4 if compares else 3)  # a forward pass; backward is as long as two
    forward = max(computing, reading / workers) if workers else computing + reading

    taught, held_out, images = len(task.train), len(task.val), len(task.train) + len(task.val)
    kept = DRIFT_SAMPLES * computing + _seconds_to_save(setup)
    refitted, folds = should_refit(config, task), config.folds
    raw, branches = plan.method.head_init == "unstandardized_probe", len(plan.candidates)
    fits = (branches * folds + refitted) * (1 + raw) + (raw and not folds)
    probes = fits * setup.probe_wall_time_s
    attention = _attention_passes(plan) * computing
    if folds:
        epoch = (folds - 1) * images * training + images * forward + folds * kept
        attention *= folds + 1
    else:
        epoch = taught * training + held_out * forward + kept
        attention *= 2 if refitted else 1
    if refitted:
        epoch += images * training  # at most: it ends with the epoch that was chosen
    crops = 10 if config.paper_protocol else 1
    test = 0.0 if task.test is None else len(task.test) * (crops * computing + reading)
    trainings = branches * plan.epochs * epoch
    if config.lr == "find":
        trainings += LR_RANGE_TEST_STEPS * min(config.batch_size, taught) * training
    asked = images if folds else held_out
    same_head = len({branch.method.head_init for branch in plan.candidates}) <= 1
    candidates = len(CANDIDATE_COEFFICIENTS if same_head else SINGLE_MODELS)
    mixtures = candidates * asked * forward if branches > 1 else 0.0
    return (trainings + mixtures + attention + probes + test) / 60


def _seconds_per_sample(
    setup: RunSetup,
    inputs: Inputs,
    labels: torch.Tensor,
    *,
    compares: bool,
    precision: Precision,
) -> float:
    """Of a training step, of half the images where there is no memory for all."""
    count = len(labels)
    try:
        return _seconds_per_step(setup, inputs, labels, compares, precision) / count
    except torch.OutOfMemoryError:
        if count == 1:
            raise
    half = slice(count // 2)
    return _seconds_per_sample(
        setup, inputs[half], labels[half], compares=compares, precision=precision
    )


def _seconds_per_step(
    setup: RunSetup,
    inputs: Inputs,
    labels: torch.Tensor,
    compares: bool,
    precision: Precision,
) -> float:
    network = copy.deepcopy(setup.backbone.module)
    move_to_device(network, setup.device)
    inputs, labels = inputs.to(setup.device), labels.to(setup.device)
    seconds = math.inf
    with preserve_random_state(network):
        for _ in range(2):
            started = time.perf_counter()
            with autocast(precision, setup.device):
                loss = setup.task.task_type.loss(network(inputs), labels)
                if compares:
                    with eval_mode(setup.source), torch.no_grad():
                        setup.source(inputs)
            torch.autograd.backward(loss)
            _wait(setup.device)
            seconds = time.perf_counter() - started
    return seconds


def _seconds_to_save(setup: RunSetup) -> float:
    """How long it takes to keep the weights: an epoch may be the best until then."""
    started = time.perf_counter()
    torch.save(setup.backbone.module.state_dict(), io.BytesIO())
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)


def _attention_passes(plan: FineTunePlan) -> float:
    """Forward passes of one image that channel attention takes; a backward pass counts as two.

    At most: it may be known from an earlier run, or converge on fewer images.
    """
    config = plan.config
    if not plan.method.needs_attention or plan.attention is not None:
        return 0.0
    samples = len(attention_sample_order(config, len(plan.setup.task.train)))
    if config.attention == "gradient":
        return 3.0 * samples
    channels = _channels(plan.setup)
    if config.attention == "exact":
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
