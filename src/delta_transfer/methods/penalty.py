"""The base class of penalties, and the data of a training step that they use."""

import abc
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.features.inputs import groups_at, groups_of
from delta_transfer.functional import at_least_float32, without_autocast

Reduction = Literal["mean", "sum", "weights", "batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """The data of one training step.

    Args:
        target: the network in training, unwrapped.
        source: the frozen network that it started from, unwrapped.
        inputs: the inputs of both networks.
        targets: the labels, or None.
        logits: the output of the target's forward pass.
        target_features: tap -> `[B, S, C]` (samples, positions, channels), or rows `[R, C]`.
        source_features: tap -> the source's features, without gradient.
        groups: `[R]`, the sample that each row belongs to, or None; `groups_at` returns those of a
            tap.
        head_inputs: head -> the input of the target's head, `[B, F]`.
        source_head_inputs: head -> the input of the source's head, without gradient.
    """

    target: nn.Module
    source: nn.Module | None
    inputs: Any = None
    targets: Any = None
    logits: Any = None
    target_features: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    source_features: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    groups: Tensor | None = None
    head_inputs: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    source_head_inputs: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)

    def groups_at(self, tap: str) -> Tensor | None:
        """Return the sample of each row of a tap's features; None if each row is a sample.

        Raises:
            ModelError: if the features have neither a row per group entry nor one per sample.
        """
        samples = None if groups_of(self.inputs) is None else len(self.inputs)
        return groups_at(tap, self.target_features[tap], self.groups, samples=samples)


class Penalty(nn.Module, abc.ABC):
    """A term that is added to the task loss: a strength times a scalar of the step.

    Args:
        name: name of the term in logs.
        strength: factor of the term; not negative.
        taps: the modules whose features the penalty needs: names, glob patterns or `"auto"`. A
            `Regularizer` resolves them in its own copy of the penalty.
        head: the module whose inputs the penalty needs (the target's head), if any.
        needs_source: needs the source network; with taps or a head, its features too.
        needs_variance: needs the source's feature variance at the taps, as the buffer `variance`
            `[taps]`, which `Regularizer.calibrate` measures.
        reduction: how the term of a batch follows from those of its parts on several
            processes: their mean, weighted by samples; their sum; `"weights"` if the term
            depends on weights only, so that all parts have the same one (`Regularizer` evaluates
            it at once, so that a wrong name fails early); or `"batch"` if it needs the whole batch.
    """

    variance: Tensor

    def __init__(
        self,
        name: str,
        strength: float,
        *,
        taps: str | Sequence[str] = (),
        head: str = "",
        needs_source: bool = False,
        needs_variance: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not 0 <= strength < math.inf:
            raise ValueError(f"{name}: strength must be a number >= 0, got {strength}")
        self.name = name
        self.strength = float(strength)
        self.taps = (taps,) if isinstance(taps, str) else tuple(taps)
        self.head = head
        self.needs_source = needs_source
        self.needs_variance = needs_variance
        self.reduction: Reduction = reduction
        if needs_variance:
            self.register_buffer("variance", torch.empty(0))
            self.register_load_state_dict_pre_hook(_resize_variance)  # type: ignore[no-untyped-call]

    @property
    def is_calibrated(self) -> bool:
        """True if the feature variances are set or not needed."""
        return not self.needs_variance or len(self.variance) == len(self.taps)

    def calibrate(self, variance: Mapping[str, Tensor]) -> None:
        """Set the feature variance of each tap.

        Args:
            variance: tap -> scalar.
        """
        values = torch.stack([variance[tap].detach() for tap in self.taps])
        self.variance = values.to(self.variance.device)

    @abc.abstractmethod
    def forward(self, step: Step) -> Tensor:
        """Return the term, strength included: a scalar."""


def _resize_variance(module: Penalty, state: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Let a penalty that is not calibrated load the state of one that is."""
    saved = state.get(f"{prefix}variance")
    if saved is not None and saved.shape != module.variance.shape:
        module.variance = torch.empty_like(saved, device=module.variance.device)


def classifier_logits(classifier: nn.Linear, rows: Tensor) -> Tensor:
    """Return a classifier's logits `[B, S]` for rows `[B, F]`, in float32 or wider."""
    bias = None if classifier.bias is None else at_least_float32(classifier.bias)
    with without_autocast(rows.device):
        return F.linear(at_least_float32(rows), at_least_float32(classifier.weight), bias)
