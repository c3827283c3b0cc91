"""The regularizer, which computes penalties from the target and the frozen source."""

import copy
import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from delta_transfer.errors import ConfigError, ModelError
from delta_transfer.features.frozen_source import FrozenSource
from delta_transfer.features.head_inputs import HeadInputs
from delta_transfer.features.inputs import groups_of
from delta_transfer.features.stages import unwrap
from delta_transfer.features.taps import Taps, exclude_from_compile, resolve_taps
from delta_transfer.features.variance import FeatureVariance
from delta_transfer.methods.penalty import Penalty, Step
from delta_transfer.utils.module_state import device_of


@dataclasses.dataclass(frozen=True)
class Terms:
    """The penalties of one step.

    Args:
        values: name -> scalar with its autograd graph, multiplied by the strength.
        total: their sum, to add to the task loss.
    """

    values: Mapping[str, Tensor]
    total: Tensor


class Regularizer(nn.Module):
    """Compute the penalties of a training step from the target's last forward pass.

    A context manager for any training loop. Inside it the target's tapped features are recorded in
    each forward pass; calling the regularizer runs the source on the same inputs (if a penalty
    needs its features; without gradients, in eval mode, up to the last tap needed, with batch norm
    fused into convolutions) and returns the terms. On exit the target's hooks are removed and its
    train flags restored.

    Penalties are copied, so that the same objects can be used for another network; copies share
    the parameters, and refer to the same target and source. Penalties that train a classifier have
    theirs in `regularizer.parameters()`.

    Batch norm in train mode makes the features differ from the source's even with equal weights, so
    its statistics are frozen by default. Disable dropout and stochastic depth in the backbone for
    the same reason.

    Args:
        target: the network in training, wrapped (DDP, `torch.compile`, Fabric) or not.
        source: the pretrained network, a separate module. It is moved to the target's device; its
            weights and train flags are not changed. None if no penalty needs it.
        penalties: the terms.
        batch_norm: `"frozen"` keeps the target's batch-norm layers in eval mode in each of its
            forward passes, even after `target.train()`; `"train"` does not change their mode.
        source_cache_gb: GiB of memory to cache the source's features of samples that recur exactly,
            without augmentation or with few variants of each; 0 disables the cache.
        source_precision: precision of the source; `"bfloat16"` is less precise, and faster on
            hardware that supports it. It has no effect under your own autocast.

    Raises:
        ConfigError: if an option has an unknown value, or a tap or module is unknown.
        ModelError: if a penalty lacks its source, or source and target share parameters.

    Example:
        >>> from delta_transfer import L2SP
        >>> source, target = nn.Linear(2, 1), nn.Linear(2, 1)
        >>> _ = target.load_state_dict(source.state_dict())
        >>> with Regularizer(target, source, [L2SP(strength=0.1)]) as regularizer:
        ...     x = torch.randn(4, 2)
        ...     loss = target(x).square().mean() + regularizer(x).total
        >>> regularizer(x).values["l2sp"].item()
        0.0
    """

    def __init__(
        self,
        target: nn.Module,
        source: nn.Module | None,
        penalties: Sequence[Penalty],
        *,
        batch_norm: Literal["frozen", "train"] = "frozen",
        source_cache_gb: float = 0.0,
        source_precision: Literal["float32", "bfloat16"] = "float32",
    ) -> None:
        super().__init__()
        if not 0 <= source_cache_gb < math.inf:
            raise ConfigError(
                f"source_cache_gb must be a number of GiB >= 0, got {source_cache_gb}"
            )
        if source_precision not in ("float32", "bfloat16"):
            raise ConfigError(
                f"source_precision must be 'float32' or 'bfloat16', got {source_precision!r}"
            )
        if batch_norm not in ("frozen", "train"):
            raise ConfigError(f"batch_norm must be 'frozen' or 'train', got {batch_norm!r}")
        # In a tuple, so that they are not submodules: only penalties are moved and saved.
        self._networks = (unwrap(target), None if source is None else unwrap(source))
        _check_networks(*self._networks, penalties)
        own_penalties = [_copy(penalty, target, source) for penalty in penalties]
        for penalty in own_penalties:
            if penalty.taps:
                penalty.taps = resolve_taps(self._networks[1] or self._networks[0], penalty.taps)
        self.penalties = nn.ModuleList(own_penalties)
        self._uncalibrated = [penalty for penalty in own_penalties if not penalty.is_calibrated]
        self.term_names = _term_names(penalties)
        self._freeze = batch_norm == "frozen"
        taps = list({tap: None for penalty in own_penalties for tap in penalty.taps})
        self._taps = Taps(target, taps) if taps else None
        heads = {penalty.head: None for penalty in penalties if penalty.head}
        compared = {p.head: None for p in penalties if p.head and p.needs_source}
        self._heads = HeadInputs(target, list(heads))
        own = self._networks[1]
        self._source = (
            None
            if own is None
            else FrozenSource(
                own,
                taps=taps,
                heads=list(compared),
                cache_gb=source_cache_gb,
                precision=source_precision,
            )
        )
        self._norms: dict[nn.Module, bool] = {}
        self._exit_stack: ExitStack | None = None
        self._logits: Any = None
        self._autocast: AbstractContextManager[None] = nullcontext()
        self._check_weight_penalties(own_penalties)

    def __enter__(self) -> Self:
        target = self._networks[0]
        if self._exit_stack is not None:
            raise RuntimeError("this Regularizer is already in use")
        device = device_of(target)
        self.to(device)
        with ExitStack() as stack:  # undo the earlier steps if a later one fails
            stack.callback(self._restore_norms, target.training)
            if self._freeze:
                self._norms = {m: m.training for m in target.modules() if isinstance(m, _BatchNorm)}
            before, after = exclude_from_compile(self._before), exclude_from_compile(self._after)
            stack.callback(target.register_forward_pre_hook(before, prepend=True).remove)
            stack.callback(target.register_forward_hook(after).remove)
            stack.callback(self.clear)
            if self._source is not None:
                self._source.network.to(device)
                stack.callback(self._source.close)
                self._source.open()
            if self._taps is not None:
                stack.enter_context(self._taps)
            stack.enter_context(self._heads)
            self._before(target, None)
            self._exit_stack = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        stack, self._exit_stack = self._exit_stack, None
        if stack is not None:
            stack.close()

    def _restore_norms(self, target_training: bool) -> None:
        target = self._networks[0]
        changed = target.training != target_training
        for norm, training in self._norms.items():
            norm.training = target.training if changed else training
        self._norms = {}

    def forward(self, inputs: Any, targets: Any = None, *, groups: Tensor | None = None) -> Terms:
        """Return the terms of one step.

        Args:
            inputs: the inputs of the target's last forward pass.
            targets: the labels; some penalties need them.
            groups: for features that are rows (graph nodes): `[R]`, the sample of each row; by
                default the inputs' `groups`, if any. They apply to every tap with R rows; a tap
                with one row per sample is compared per sample.

        Returns:
            Each penalty's term by name, and their total: scalars on the target's device.

        Raises:
            RuntimeError: if the target was not called inside the context first.
            ConfigError: if the features of target and source differ in shape.
        """
        target, source = self._networks
        if self._exit_stack is not None and any(norm.training for norm in self._norms):
            raise RuntimeError(
                "batch_norm='frozen', but the target's layers are in train mode: call the target "
                "before the regularizer (a compiled network for the first time inside the `with` "
                "block), or pass batch_norm='train'"
            )
        with self._autocast:
            source_features, source_head_inputs = (
                ({}, {}) if self._source is None else self._source.run(inputs)
            )
        step = Step(
            target=target,
            source=source,
            inputs=inputs,
            targets=targets,
            logits=self._logits,
            target_features={} if self._taps is None else self._taps.features(),
            source_features=source_features,
            groups=groups_of(inputs) if groups is None else groups,
            head_inputs=self._heads.inputs(),
            source_head_inputs=source_head_inputs,
        )
        for tap, features in step.source_features.items():
            if features.shape != step.target_features[tap].shape:
                raise ConfigError(
                    f"tap {tap!r}: the target's features {tuple(step.target_features[tap].shape)} "
                    f"and the source's {tuple(features.shape)} differ in shape: call "
                    "the regularizer with the inputs of the target's last forward pass"
                )
        named = zip(self.term_names, self.penalties, strict=True)
        values = {name: penalty(step) for name, penalty in named}
        zero = torch.zeros((), device=device_of(target))
        return Terms(values, torch.stack(list(values.values())).sum() if values else zero)

    def clear(self) -> None:
        """Release the outputs of the target's last forward pass and their autograd graph."""
        if self._taps is not None:
            self._taps.clear()
        self._heads.clear()
        self._logits = None

    def calibrate(self, loader: Iterable[Any]) -> None:
        """Measure the source's feature variance for the penalties that need it.

        These are the penalties that were not calibrated when they were passed, such as a `Delta`
        without attention. If features are rows (graph nodes), the variance is over all rows, so
        large samples have more weight.

        Args:
            loader: batches of training data without augmentation: inputs, or tuples that start with
                them. With `torch.distributed` every process has to call this; the variance is over
                the data of all processes, which may be shards or copies.

        Raises:
            DataError: if the loader is empty.
        """
        source = self._networks[1]
        if not self._uncalibrated or source is None or self._source is None or self._taps is None:
            return
        variances = {tap: FeatureVariance() for tap in self._taps.names}
        source.to(device_of(self._networks[0]))
        for batch in loader:
            inputs = batch[0] if isinstance(batch, (tuple, list)) else batch
            for tap, features in self._source.run(inputs.to(device_of(source)))[0].items():
                variances[tap].update(features)
        shared = {tap: variance.all_reduce() for tap, variance in variances.items()}
        measured = {tap: variance.compute() for tap, variance in shared.items()}
        for penalty in self._uncalibrated:
            penalty.calibrate(measured)

    @property
    def needs_calibration(self) -> bool:
        """True if a penalty has no feature variances yet."""
        return not all(penalty.is_calibrated for penalty in self._uncalibrated)

    def _before(self, module: nn.Module, inputs: Any) -> None:
        if module is self._networks[0]:  # not a copy made in the context
            self._autocast = _same_autocast(device_of(module))
            for norm in self._norms:
                norm.eval()

    def _after(self, module: nn.Module, inputs: Any, output: Any) -> None:
        if module is self._networks[0]:
            self._logits = output

    def _check_weight_penalties(self, penalties: Sequence[Penalty]) -> None:
        """Evaluate the penalties on weights, so that unknown names raise at construction."""
        target, source = self._networks
        with torch.no_grad():
            for penalty in penalties:
                if penalty.reduction == "weights":
                    penalty(Step(target=target, source=source))


def _copy(penalty: Penalty, *networks: nn.Module | None) -> Penalty:
    """Copy a penalty but share its parameters, which an optimiser may already have.

    The networks are shared, too: a penalty may refer to one of them, or to one of its modules or
    tensors, and a copy of that would not be trained.
    """
    shared: list[object] = [*penalty.parameters()]
    for network in networks:
        if network is not None:
            shared += [*network.modules(), *network.parameters(), *network.buffers()]
    return copy.deepcopy(penalty, {id(part): part for part in shared})


def _same_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context with the current autocast settings, to run the source in them."""
    kind = device.type
    if not torch.amp.is_autocast_available(kind):
        return nullcontext()
    enabled, dtype = torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)
    return torch.autocast(kind, dtype=dtype, enabled=enabled)


def _term_names(penalties: Sequence[Penalty]) -> tuple[str, ...]:
    names: list[str] = []
    for penalty in penalties:
        count = sum(name.split("#")[0] == penalty.name for name in names)
        names.append(f"{penalty.name}#{count + 1}" if count else penalty.name)
    return tuple(names)


def _check_networks(
    target: nn.Module, source: nn.Module | None, penalties: Sequence[Penalty]
) -> None:
    needing = [penalty.name for penalty in penalties if penalty.needs_source]
    if source is None:
        if needing:
            raise ModelError(
                f"{', '.join(needing)} needs the source network: Regularizer(target, source, ...)"
            )
        return
    own = {id(parameter) for parameter in target.parameters()}
    shared = [name for name, parameter in source.named_parameters() if id(parameter) in own]
    if shared:
        raise ModelError(
            f"source and target share parameters ({shared[0]}): the source must be a separate "
            "network, for example copy.deepcopy(target) before training"
        )
