"""The plan of a fine-tuning, and its data, loss and optimiser options."""

import dataclasses
import functools
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.config.presets import find_preset
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.task import Split
from delta_transfer.methods.base import Method
from delta_transfer.methods.registry import check_classifier, method_of
from delta_transfer.runs.attention import load_given_attention
from delta_transfer.runs.preparation.folds import count_fit_samples, count_folds, split_folds
from delta_transfer.runs.preparation.loss import task_loss
from delta_transfer.runs.preparation.prepared import RunSetup, resplit
from delta_transfer.training.checkpoint_callbacks import CheckpointInterval
from delta_transfer.training.distributed import find_fsdp_units
from delta_transfer.training.loaders import Dataloaders
from delta_transfer.training.mixing import Mixing
from delta_transfer.training.optimizers import OptimizerConfig, layer_lr_scales
from delta_transfer.training.trainer import FitConfig, find_precision
from delta_transfer.utils.distributed import world_size
from delta_transfer.utils.files import fingerprint
from delta_transfer.utils.seeds import derive_seed

RANDOM_HEAD_LR_FACTOR = 10  # times lr, for a randomly initialised head


@dataclasses.dataclass(frozen=True, kw_only=True)
class FineTunePlan:
    """The setup, options and method of a fine-tuning.

    Args:
        setup: data, network and probe; each fold has its own.
        config: the options.
        method: the method.
        epochs: number of epochs of the schedule.
        folds: number of cross-validation folds; 0 for a single validation split.
        attention: channel attention from a file; None to estimate it, if the method needs it.
        data_order: number of the sample order and augmentation that the seed determines.
        on_checkpoint: called after each save of a fit's state.
        on_epoch_end: called after each validated epoch with the folder, the epoch, the number of
            epochs and the validation loss; an exception of it ends the training.
    """

    setup: RunSetup
    config: TrainConfig
    method: Method
    epochs: int
    folds: int = 0
    attention: ChannelAttention | None
    data_order: int = 0
    on_checkpoint: Callable[[], None] = lambda: None
    on_epoch_end: Callable[[Path, int, int, float], None] | None = None

    @property
    def loaders(self) -> Dataloaders:
        """The data loaders, with the options of the plan."""
        return self.setup.loaders.with_config(self.config)

    @property
    def strength(self) -> float | None:
        """The value of `--strength` for the method; None if it has none."""
        given = self.config.strength
        return self.method.default_strength if given is None or given == "auto" else given

    @property
    def configured_method(self) -> Method:
        """The method with the strength of the options."""
        return self.method.with_strength(self.strength)

    @property
    def lr(self) -> float:
        """The peak learning rate of the backbone; `--lr find` is resolved before."""
        assert not isinstance(self.config.lr, str)
        return self.config.lr

    @functools.cached_property
    def held_out_setups(self) -> tuple[RunSetup, ...]:
        """The setup of each fold, or the only one; each holds out its validation split."""
        if not self.folds:
            return (self.setup,)
        folds = split_folds(self.config, self.setup.task, self.folds)
        return tuple(resplit(self.setup, train=train, val=val) for train, val in folds)

    @property
    def held_out(self) -> Split:
        """The validation split; with folds all samples, each of which is held out once."""
        splits = [setup.task.val for setup in self.held_out_setups]
        return dataclasses.replace(
            splits[0],
            paths=tuple(path for split in splits for path in split.paths),
            labels=tuple(label for split in splits for label in split.labels),
        )

    @property
    def held_out_probe_predictions(self) -> Tensor:
        """The predictions `[N, K]` of linear probes that were not trained on these samples."""
        found = [setup.probe_predictions["val"] for setup in self.held_out_setups]
        return torch.cat([predictions for predictions in found if predictions is not None])

    @property
    def averages_weights(self) -> bool:
        """Whether the weights of several trainings are averaged.

        With batch norm in train mode they are not, since averaged statistics fit no network.
        """
        fixed = self.config.batch_norm == "frozen" and self.method.batch_norm != "train"
        return fixed and self.config.average == "all" and not self.config.paper_protocol

    @property
    def candidates(self) -> "tuple[FineTunePlan, ...]":
        """The candidate runs of `--strength auto`, from strong to weak; else this plan alone."""
        config = self.config
        if config.strength != "auto" or not self.method.candidates:
            return (self,)
        return tuple(
            dataclasses.replace(
                self,
                config=dataclasses.replace(config, strength=candidate.strength),
                method=dataclasses.replace(
                    self.method,
                    head_init=self.method.head_init
                    if candidate.head_init is None
                    else candidate.head_init,
                ),
                data_order=order,
            )
            for order, candidate in enumerate(self.method.candidates)
        )


def make_plan(
    setup: RunSetup, config: TrainConfig, *, on_checkpoint: Callable[[], None] = lambda: None
) -> FineTunePlan:
    """Return the plan of a run.

    Args:
        setup: from `prepare`, with the same options of data and network.
        config: the options.
        on_checkpoint: called after each save of a fit's state.

    Raises:
        UserError: if the network does not suit the method, or the attention file does not fit.
    """
    plan = FineTunePlan(
        setup=setup,
        config=config,
        method=_with_head_init(method_of(config), config),
        epochs=config.count_epochs(count_fit_samples(config, setup.task)),
        folds=count_folds(config, setup.task),
        attention=load_given_attention(setup, config),
        on_checkpoint=on_checkpoint,
    )
    check_classifier(plan.method, setup.backbone.classifier, config.model)
    return plan


def _with_head_init(method: Method, config: TrainConfig) -> Method:
    if config.head_init == "auto" or not method.trains_network:
        return method
    # A candidate's own head would override the option.
    candidates = tuple(dataclasses.replace(one, head_init=None) for one in method.candidates)
    return dataclasses.replace(method, head_init=config.head_init, candidates=candidates)


def make_fit_config(plan: FineTunePlan, folder: Path, *, validate: bool = True) -> FitConfig:
    """Return data, duration, precision and folder of a fit.

    Args:
        plan: data, network, options and method.
        folder: of the fit.
        validate: validate after epochs, for curves.
    """
    setup, config, loaders = plan.setup, plan.config, plan.loaders
    task, ordered = setup.task, _config_with_data_order(plan)
    units = None
    if is_sharded(config):
        units = find_fsdp_units(setup.backbone.module, setup.backbone.input_spec.example())
    return FitConfig(
        train_dataloader=loaders.with_config(ordered).train_dataloader(task.train),
        val_dataloader=loaders.eval_dataloader(task.val) if validate else None,
        epochs=plan.epochs,
        grad_clip=config.grad_clip,
        mixing=_mixing(ordered, len(task.classes)),
        sample_type=task.sample_type,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        can_split=_can_split(plan),
        precision=find_precision(config.precision, setup.device),
        folder=folder,
        checkpoint_interval=CheckpointInterval(
            minutes=config.checkpoint_minutes, steps=config.checkpoint_steps
        ),
        on_checkpoint=plan.on_checkpoint,
        resume=config.resume,
        fingerprint=run_fingerprint(setup),
        accelerator=setup.device.type,
        loggers=config.logger_names,
        fsdp_units=units,
    )


def is_sharded(config: TrainConfig) -> bool:
    """Return True if each process has only its shard of the weights during training."""
    return config.strategy == "fsdp" and world_size() > 1


def _can_split(plan: FineTunePlan) -> bool:
    """Return True if steps may be split into micro-batches."""
    single = world_size() == 1
    return single and plan.config.batch_norm == "frozen" and not plan.method.needs_whole_batch


def make_task_loss(plan: FineTunePlan) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the task loss."""
    task = plan.setup.task
    labels, classes = task.train.class_indices, len(task.classes)
    return task_loss(plan.config, task.task_type, labels, num_classes=classes)


def run_fingerprint(setup: RunSetup) -> str:
    """Return a hash of the samples, their splits and the pretrained weights."""
    task = setup.task
    rows = [
        f"{split} {label} {path}\n"
        for split, part in (("train", task.train), ("val", task.val))
        for path, label in zip(part.paths, part.labels, strict=True)
    ]
    parts = [setup.data_fingerprint, setup.source_fingerprint, *rows]
    return fingerprint(part.encode() for part in parts)


def _config_with_data_order(plan: FineTunePlan) -> TrainConfig:
    """Return the options with the seed of the plan's sample order."""
    if not plan.data_order:
        return plan.config
    seed = derive_seed(plan.config.seed, "order", str(plan.data_order))
    return dataclasses.replace(plan.config, seed=seed)


def _mixing(config: TrainConfig, num_classes: int) -> Mixing | None:
    if not config.mixup and not config.cutmix:
        return None
    return Mixing(
        mixup=config.mixup, cutmix=config.cutmix, num_classes=num_classes, seed=config.seed
    )


def make_optimizer_config(plan: FineTunePlan, network: nn.Module) -> OptimizerConfig:
    """Return optimiser, learning rates and schedule."""
    config, method = plan.config, plan.configured_method
    context = method.optimizer_context

    def optimizer_context(optimizer: torch.optim.Optimizer) -> AbstractContextManager[object]:
        if context is None:
            return nullcontext()
        return context(optimizer, network, plan.setup.source, method.projection_factor or 0.0)

    return OptimizerConfig(
        optimizer=config.optimizer,
        lr=plan.lr,
        head_lr=_head_lr(plan),
        weight_decay=method.weight_decay,
        schedule=config.schedule,
        warmup_ratio=find_preset(config.preset).warmup_ratio,
        num_head_cycles=method.num_head_cycles,
        optimizer_context=optimizer_context,
        lr_scales=_lr_scales(plan, network),
        ema=config.ema,
    )


def _lr_scales(plan: FineTunePlan, network: nn.Module) -> dict[str, float]:
    """Return the factors of the learning rate by parameter; empty without layer decay."""
    factor, backbone = plan.config.layer_decay, plan.setup.backbone
    if factor == 1:
        return {}
    example = backbone.input_spec.example().to(plan.setup.device)
    return layer_lr_scales(network, head=backbone.head, factor=factor, example=example)


def _head_lr(plan: FineTunePlan) -> float:
    config = plan.config
    if config.head_lr is not None:
        return config.head_lr
    same = plan.method.head_init != "random" or config.paper_protocol
    return plan.lr if same else RANDOM_HEAD_LR_FACTOR * plan.lr
