"""A single fine-tuning: initialise the network, build the regularizer, train."""

import copy
import dataclasses
import functools
import logging
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import lightning
import torch
from torch import Tensor, nn

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.errors import ConfigError
from delta_transfer.features.inputs import Inputs
from delta_transfer.features.probe import LinearProbe
from delta_transfer.methods.base import Method, PenaltyContext
from delta_transfer.methods.penalty import Penalty
from delta_transfer.methods.registry import check_classifier
from delta_transfer.regularizer import Regularizer
from delta_transfer.runs.attention import describe_attention, estimate
from delta_transfer.runs.plan import (
    FineTunePlan,
    is_sharded,
    make_fit_config,
    make_optimizer_config,
    make_task_loss,
)
from delta_transfer.training.callbacks import MeasureDrift, ReinitializeHead, ReportLoss
from delta_transfer.training.fit import fit
from delta_transfer.utils.devices import move_to_device
from delta_transfer.utils.distributed import is_rank_zero, local_sample_indices, world_size
from delta_transfer.utils.module_state import preserve_random_state
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)

DRIFT_SAMPLES = 32


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class FineTuneResult:
    """A fine-tuned network.

    Args:
        network: with the weights after the last epoch.
        taps: the modules whose features were compared or measured.
        initial_state: the network's state before the first step, on the CPU.
    """

    network: nn.Module
    taps: tuple[str, ...]
    initial_state: Mapping[str, Tensor]


def fine_tune(plan: FineTunePlan, folder: Path, *, validate: bool = True) -> FineTuneResult:
    """Fine-tune a copy of the prepared network.

    Args:
        plan: data, network, options and method.
        folder: folder for metrics, drift, attention and checkpoints.
        validate: validate after epochs, for curves.

    Raises:
        UserError: if training diverges, or the network does not suit the method.
    """
    plan = apply_batch_norm_mode(plan)
    config, method = plan.config, plan.method
    network, attention = initialize_model(plan)
    initial = {name: tensor.cpu().clone() for name, tensor in network.state_dict().items()}
    if attention is not None:
        logger.info("channel attention: %s", describe_attention(attention))
        if is_rank_zero():
            folder.mkdir(parents=True, exist_ok=True)
            attention.save(folder / "attention.safetensors")
    taps = plan.setup.taps if attention is None else attention.taps
    if not method.trains_network:
        return FineTuneResult(network=network, taps=taps, initial_state=initial)
    sharded = is_sharded(config)
    trained = copy.deepcopy(network) if sharded else network
    if sharded:
        network.cpu()  # until it gets the final weights
    regularizer = build_regularizer(plan, trained, attention)
    # For random numbers that the method draws during training.
    generator = torch.Generator().manual_seed(derive_seed(config.seed, "method"))
    with preserve_random_state(trained), network_context(plan, trained, generator):
        torch.manual_seed(derive_seed(config.seed, "training"))  # for dropout
        _fit(
            *(plan, trained, regularizer, taps, folder),
            validate=validate,
            generator=generator,
            into=network,
        )
    network.to(plan.setup.device)
    return FineTuneResult(network=network, taps=taps, initial_state=initial)


def initialize_model(plan: FineTunePlan) -> tuple[nn.Module, ChannelAttention | None]:
    """Return a copy of the network with the method's initial head, and channel attention if used.

    Raises:
        UserError: if the network does not suit the method.
    """
    setup = plan.setup
    check_classifier(plan.method, setup.backbone.classifier, plan.config.model)
    network = initialize_network(plan)
    if not plan.method.needs_attention:
        return network, plan.attention
    return network, plan.attention or estimate(setup, plan.config)


def initialize_network(plan: FineTunePlan) -> nn.Module:
    """Return a copy of the network with the method's initial head."""
    setup = plan.setup
    network = copy.deepcopy(setup.backbone.module)
    move_to_device(network, setup.device)
    probe = _initial_head(plan)
    if probe is not None:
        _copy_probe_to_head(probe, network.get_submodule(setup.backbone.head))
    return network


def build_regularizer(
    plan: FineTunePlan, network: nn.Module, attention: ChannelAttention | None
) -> Regularizer:
    """Return the penalties that the method adds to the task loss, calibrated."""
    config, setup = plan.config, plan.setup
    taps = setup.taps if attention is None else attention.taps
    penalties = plan.method.build_penalties(_penalty_context(plan, taps, attention))
    _check_distributed_penalties(plan.method, penalties)
    regularizer = Regularizer(network, setup.source, penalties, batch_norm=config.batch_norm)
    if regularizer.needs_calibration:
        train = setup.task.train
        shard = train.subset(local_sample_indices(len(train), config.batch_size))
        regularizer.calibrate(plan.loaders.eval_dataloader(shard))
    return regularizer


def _check_distributed_penalties(method: Method, penalties: Sequence[Penalty]) -> None:
    """Check that batches may be split over processes, if there are several.

    Raises:
        ConfigError: if a penalty needs the whole batch.
    """
    if world_size() > 1 and any(penalty.reduction == "batch" for penalty in penalties):
        raise ConfigError(
            f"`method={method.name}` needs whole batches, which {world_size()} processes split: "
            "use one device, or another method"
        )


def apply_batch_norm_mode(plan: FineTunePlan) -> FineTunePlan:
    """Return the plan with batch norm in the mode that the method requires."""
    needed = plan.method.batch_norm
    if needed is None or plan.config.batch_norm == needed:
        return plan
    logger.info("%s requires batch norm in %s mode: enabling it", plan.method.name, needed)
    config = dataclasses.replace(plan.config, batch_norm=needed)
    return dataclasses.replace(plan, config=config)


def _penalty_context(
    plan: FineTunePlan, taps: tuple[str, ...], attention: ChannelAttention | None
) -> PenaltyContext:
    setup = plan.setup
    views, labels = setup.features["train"]
    return PenaltyContext(
        strength=plan.configured_method.strength or 0.0,
        head=setup.backbone.head,
        taps=taps,
        attention=attention,
        classifier=setup.backbone.classifier,
        features=views[:, 0],  # of the original images, not the flipped ones
        labels=labels,
        num_outputs=len(setup.task.classes),
    )


def network_context(
    plan: FineTunePlan, network: nn.Module, generator: torch.Generator
) -> AbstractContextManager[object]:
    """Return the context in which the method changes the network during training."""
    method = plan.configured_method
    change = method.network_context
    if change is None:
        return nullcontext()
    return change(network, method.probability or 0.0, generator)


def _initial_head(plan: FineTunePlan) -> LinearProbe | None:
    """Return the initial head; None for a random one."""
    return plan.setup.probe if plan.method.head_init == "probe" else None


def _copy_probe_to_head(probe: LinearProbe, head: nn.Module) -> None:
    with torch.no_grad():
        head.get_parameter("weight").copy_(probe.weight)
        head.get_parameter("bias").copy_(probe.bias)


def _fit(
    plan: FineTunePlan,
    network: nn.Module,
    regularizer: Regularizer,
    taps: tuple[str, ...],
    folder: Path,
    *,
    validate: bool,
    generator: torch.Generator,
    into: nn.Module,
) -> None:
    drift = folder / "drift.csv" if validate else None
    callbacks = _callbacks(plan, network, taps, drift, generator=generator)
    if plan.on_epoch_end is not None and validate:
        callbacks.append(ReportLoss(functools.partial(plan.on_epoch_end, folder)))
    fit(
        network,
        regularizer,
        make_fit_config(plan, folder, validate=validate),
        loss=make_task_loss(plan),
        head=plan.setup.backbone.head,
        task_type=plan.setup.task.task_type,
        optimizer_config=make_optimizer_config(plan, network),
        callbacks=callbacks,
        generators=[generator],
        into=into,
    )


def _callbacks(
    plan: FineTunePlan,
    network: nn.Module,
    taps: tuple[str, ...],
    drift: Path | None,
    *,
    generator: torch.Generator,
) -> list[lightning.Callback]:
    """Return the callbacks; with drift measurement if `drift` is a file."""
    callbacks: list[lightning.Callback] = []
    if drift is not None:
        inputs = _some_inputs(plan)
        source = plan.setup.source
        callbacks.append(MeasureDrift(network, source, taps=taps, inputs=inputs, path=drift))
    cycles = plan.method.num_head_cycles
    if cycles > 1:
        head = network.get_submodule(plan.setup.backbone.head)
        assert isinstance(head, nn.Linear)
        callbacks.append(ReinitializeHead(head, num_cycles=cycles, generator=generator))
    return callbacks


def _some_inputs(plan: FineTunePlan) -> Inputs:
    """Return a few training samples, evenly spaced, to measure drift on."""
    train = plan.setup.task.train
    count = min(DRIFT_SAMPLES, len(train))
    some = train.subset(i * len(train) // count for i in range(count))
    one_batch = dataclasses.replace(plan.config, batch_size=count, gradient_accumulation_steps=1)
    ((inputs, _),) = plan.loaders.with_config(one_batch).eval_dataloader(some)
    samples: Inputs = inputs
    return samples
