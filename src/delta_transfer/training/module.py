"""The Lightning module of a fine-tuning: task loss plus regularizer."""

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import lightning
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from delta_transfer.data.samplers import DistributedEpochSampler
from delta_transfer.errors import ConfigError
from delta_transfer.features.inputs import Inputs
from delta_transfer.functional import without_autocast
from delta_transfer.methods.penalty import Penalty, Reduction
from delta_transfer.metrics.task_types import TaskType
from delta_transfer.regularizer import Regularizer
from delta_transfer.training.accumulation import GradientAccumulation
from delta_transfer.training.distributed import all_reduce_loss
from delta_transfer.training.mixing import Mixing
from delta_transfer.training.optimizers import OptimizerConfig, make_lr_lambda, moving_average
from delta_transfer.utils.distributed import world_size

# Training has diverged at this many times the loss of the first step (or 1, if that is less).
DIVERGENCE_FACTOR = 1e4

_PROGRESS = ("_first_loss", "_sums", "_samples")


class FineTuneModule(lightning.LightningModule):
    """Task loss plus the regularizer's terms, each of which is logged.

    Args:
        network: the target.
        regularizer: its penalties, whose parameters (a source's classifier) are trained with the
            backbone; entered when the fit starts.
        loss: the task loss, a mean over the batch.
        head: the name of the network's head.
        task_type: scores the validation split.
        optimizer_config: optimiser, learning rates and schedule.
        exit_stack: restores the network (hooks, train flags) when the fit is over.
        accumulation: divides steps into micro-batches.
        mixing: MixUp or CutMix of training images; None for neither.

    Attributes:
        ema_network: the moving average of the network's weights, if one is used.
    """

    def __init__(
        self,
        network: nn.Module,
        regularizer: Regularizer,
        *,
        loss: Callable[[Tensor, Tensor], Tensor],
        head: str,
        task_type: TaskType,
        optimizer_config: OptimizerConfig,
        exit_stack: ExitStack,
        accumulation: GradientAccumulation | None = None,
        mixing: Mixing | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.regularizer = regularizer
        self.loss = loss
        self.head = head
        self.optimizer_config = optimizer_config
        ema = optimizer_config.ema
        self.ema_network = None if ema is None else moving_average(network, decay=ema)
        self.task_type = task_type
        self.val_loss = MeanMetric()
        self.mixing = mixing
        self._first_loss: float | None = None
        self._sums: dict[str, float] = {}
        self._samples = 0
        self._step_losses: tuple[list[str], Tensor, int] = ([], torch.empty(0, 0), 0)
        self._val_logits: list[Tensor] = []
        self._val_targets: list[Tensor] = []
        self._exit_stack = exit_stack
        self._accumulation = accumulation or GradientAccumulation()

    def on_fit_start(self) -> None:
        """Enter the regularizer, now that the network is on its device."""
        self.network.train()  # Lightning keeps the mode that it finds
        self._exit_stack.enter_context(self.regularizer)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None
    ) -> None:
        """Take a step, in more micro-batches if memory runs out."""

        def reset() -> None:
            self.regularizer.clear()

        def closure() -> Any:
            loss = self._accumulation.run(optimizer_closure, reset)
            self._count_losses(optimizer)  # now that the whole step is queued on the device
            return loss

        super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        """Do nothing: `training_step` zeroes gradients before the first micro-batch."""

    def training_step(self, batch: tuple[Inputs, Tensor], index: int) -> Tensor:
        """Return the loss of the batch's last micro-batch, after backward passes of the others.

        Optimisation stays automatic, so that Lightning clips, scales and schedules the step. No
        loss is read here: that would make a GPU finish all queued work first.
        """
        self.trainer.optimizers[0].zero_grad()
        if self.mixing is not None:
            images, labels = batch
            assert isinstance(images, Tensor)
            batch = self.mixing(images, labels, step=self.global_step)
        parts = self._accumulation.split(batch)
        samples, terms = len(batch[1]), []
        for number, ((inputs, targets), fraction) in enumerate(parts, start=1):
            losses = self._losses(inputs, targets, fraction)
            loss = losses["loss"]
            if world_size() > 1:  # with a single micro-batch
                loss, losses, samples = self._all_reduce_losses(losses, index)
            terms.append(torch.stack([value.detach() for value in losses.values()]))
            if number < len(parts):
                with without_autocast(loss.device):
                    self.trainer.strategy.backward(loss, None)
        self._step_losses = list(losses), torch.stack(terms), samples
        total = torch.stack(terms).sum(dim=0)
        shown = {f"train_{name}": value for name, value in zip(losses, total, strict=True)}
        self.log_dict(shown, logger=False, prog_bar=True, batch_size=len(batch[1]))
        return loss

    def _count_losses(self, optimizer: Any) -> None:
        """Read the losses of a step, once, and add them to those of the epoch.

        Raises:
            ConfigError: if training has diverged; the weights are still those before the step.
        """
        names, terms, samples = self._step_losses
        found = dict(zip(names, map(sum, zip(*terms.tolist(), strict=True)), strict=True))
        self._check_finite(found)
        shown = {f"train_{name}": value for name, value in found.items()}
        for name, value in {**shown, "lr": optimizer.param_groups[0]["lr"]}.items():
            self._sums[name] = self._sums.get(name, 0.0) + samples * value
        self._samples += samples

    def _losses(self, inputs: Inputs, targets: Tensor, fraction: float) -> dict[str, Tensor]:
        """Return the terms of a micro-batch with this fraction of the batch's samples."""
        task = fraction * self.loss(self.network(inputs), targets)
        terms = self.regularizer(inputs, targets).values
        named = zip(terms.items(), self.regularizer.penalties, strict=True)
        values = {
            name: value if p.reduction == "sum" else fraction * value for (name, value), p in named
        }
        penalty = torch.stack(list(values.values())).sum() if values else 0.0
        return {"loss": task + penalty, "task": task, **values}

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Update the moving average of the weights."""
        if self.ema_network is not None:
            self.ema_network.update_parameters(self.network)

    def _all_reduce_losses(
        self, losses: Mapping[str, Tensor], index: int
    ) -> tuple[Tensor, dict[str, Tensor], int]:
        """Return the loss to differentiate, the terms of the whole batch, and its sample count."""
        sampler = self.trainer.train_dataloader.sampler  # type: ignore[union-attr]
        assert isinstance(sampler, DistributedEpochSampler)
        own, whole = sampler.sizes(index)
        reductions: dict[str, Reduction] = {"task": "mean"}
        for name, penalty in zip(
            self.regularizer.term_names, self.regularizer.penalties, strict=True
        ):
            assert isinstance(penalty, Penalty)
            reductions[name] = penalty.reduction
        parts = {name: value for name, value in losses.items() if name != "loss"}
        total, values = all_reduce_loss(parts, reductions, local_samples=own, global_samples=whole)
        return total, {"loss": torch.stack(list(values.values())).sum(), **values}, whole

    def on_train_epoch_end(self) -> None:
        """Log the means over the epoch's samples, also if the epoch was interrupted and resumed."""
        self.log_dict({name: total / self._samples for name, total in self._sums.items()})
        self.log("epoch", float(self.current_epoch + 1))
        self._log_step()
        self._sums, self._samples = {}, 0

    def _log_step(self) -> None:
        """Log the last step; Lightning's own count is off by one in a resumed fit."""
        self.log("step", float(max(0, self.global_step - 1)))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the losses so far to the checkpoint."""
        checkpoint["progress"] = {name: getattr(self, name) for name in _PROGRESS}
        checkpoint["num_micro_batches"] = self._accumulation.num_micro_batches

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state saved by `on_save_checkpoint`."""
        for name in _PROGRESS:
            setattr(self, name, checkpoint["progress"][name])
        self._accumulation.num_micro_batches = checkpoint["num_micro_batches"]

    def _check_finite(self, losses: Mapping[str, float]) -> None:
        """Check that the loss is finite and has not exploded.

        Raises:
            ConfigError: naming the term that diverged.
        """
        total = losses["loss"]
        if self._first_loss is None:
            self._first_loss = total
        if math.isfinite(total) and total <= DIVERGENCE_FACTOR * max(1.0, self._first_loss):
            return
        values = {name: value for name, value in losses.items() if name != "loss"}
        values = {"task loss": values.pop("task"), **values}
        worst = max(values, key=lambda name: math.inf if math.isnan(values[name]) else values[name])
        weaker = ", or a smaller `strength`" if len(values) > 1 else ""
        raise ConfigError(
            f"training diverged in epoch {self.current_epoch + 1}: {worst} is {values[worst]:.3g} "
            f"(initial loss {self._first_loss:.3g}); use a smaller `lr` than "
            f"{self.optimizer_config.lr:g}{weaker}"
        )

    def validation_step(self, batch: tuple[Inputs, Tensor], index: int) -> None:
        """Add a batch to the validation loss and store its logits."""
        inputs, targets = batch
        logits = (self.network if self.ema_network is None else self.ema_network)(inputs)
        self.val_loss.update(self.loss(logits, targets), weight=len(targets))
        self._val_logits.append(logits.float().cpu())
        self._val_targets.append(targets.cpu())
        # Epoch 0 is the initialization, which `fit` validates before the first step.
        epoch = self.current_epoch + 1 if self.trainer.state.fn == "fit" else 0
        count = len(targets)  # Lightning cannot infer it from graphs
        self.log("val_loss", self.val_loss, prog_bar=True, batch_size=count)
        self.log("epoch", float(epoch), batch_size=count)

    def on_validation_epoch_end(self) -> None:
        """Log the metric, and the temperature-scaled loss."""
        logits, targets = torch.cat(self._val_logits), torch.cat(self._val_targets)
        metric = self.task_type.metric.name
        score = self.task_type.score(self.task_type.predictions(logits), targets, metric)
        self.log(f"val_{metric}", score, prog_bar=True)
        losses = self.task_type.held_out_losses(logits, targets)
        self.log("val_calibrated_loss", losses.mean().item())
        self._log_step()
        self._val_logits.clear()
        self._val_targets.clear()

    def configure_optimizers(self) -> Any:
        """Return the optimiser, and its schedule by step."""
        options = self.optimizer_config
        head = list(self.network.get_submodule(self.head).parameters())
        own = set(head)
        body: dict[float, list[nn.Parameter]] = {1.0: []}
        for name, parameter in self.network.named_parameters():
            if parameter not in own:
                body.setdefault(options.lr_scales.get(name, 1.0), []).append(parameter)
        body[1.0] += [p for p in self.regularizer.parameters() if p.requires_grad]
        groups = [
            *({"params": some, "lr": scale * options.lr} for scale, some in body.items()),
            {"params": head, "lr": options.head_lr},
        ]
        if options.optimizer == "adamw":
            optimizer: torch.optim.Optimizer = torch.optim.AdamW(
                groups, weight_decay=options.weight_decay
            )
        else:
            optimizer = torch.optim.SGD(groups, momentum=0.9, weight_decay=options.weight_decay)
        self._exit_stack.enter_context(options.optimizer_context(optimizer))
        total = int(self.trainer.estimated_stepping_batches)
        factors = [make_lr_lambda(options, total, 1)] * len(body)
        factors.append(make_lr_lambda(options, total, options.num_head_cycles))
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }
