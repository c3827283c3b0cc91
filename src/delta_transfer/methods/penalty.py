"""What every penalty is given at each step, and the one method it has."""

import abc
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.features.inputs import groups_at, groups_of
from delta_transfer.functional import at_least_float32, without_autocast

Reduction = Literal["mean", "sum", "weights", "batch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """One training step, as a penalty sees it.

    Args:
        target: the network in training, unwrapped.
        source: the frozen network that it started from, unwrapped.
        inputs: what both were called with.
        targets: the labels, or None.
        logits: what the target's forward pass returned.
        target_features: tap -> `[B, S, C]` (samples, positions, channels), or rows `[R, C]`.
        source_features: the same of the source, without gradient.
        groups: `[R]`, the sample that each row belongs to, or None; `groups_at` has that of a tap.
        head_inputs: head -> what the target's head was given, `[B, F]`.
        source_head_inputs: the same of the source, without gradient.
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
        """The sample of each row of a tap's features; None where each is a sample of its own.

        Raises:
            UserError: if the features are neither the groups' rows nor of the samples.
        """
        samples = None if groups_of(self.inputs) is None else len(self.inputs)
        return groups_at(tap, self.target_features[tap], self.groups, samples=samples)


class Penalty(nn.Module, abc.ABC):
    """A term that is added to the task loss: a strength times a scalar of the step.

    Args:
        name: what the term is called in logs.
        strength: factor of the term; not negative.
        taps: the modules whose features the penalty needs (names, patterns or `"auto"`), none if
            empty.
        head: the module whose inputs the penalty needs (the target's head), none if empty.
        needs_source: whether it needs the source network; with taps or a head, its features too.
        reduction: what the term of a batch is of those of its parts, which several processes have:
            their mean, weighted by samples; their sum; the same in each, being one of weights
            alone; or `"batch"`, which only the whole batch tells.
    """

    def __init__(
        self,
        name: str,
        strength: float,
        *,
        taps: str | tuple[str, ...] = (),
        head: str = "",
        needs_source: bool = False,
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__()
        if not 0 <= strength < math.inf:
            raise ValueError(f"{name}: strength must be a number >= 0, got {strength}")
        self.name = name
        self.strength = float(strength)
        self.taps = taps
        self.head = head
        self.needs_source = needs_source
        self.reduction: Reduction = reduction

    @abc.abstractmethod
    def forward(self, step: Step) -> Tensor:
        """The term, strength included: a scalar."""


def classifier_logits(classifier: nn.Linear, rows: Tensor) -> Tensor:
    """Return a classifier's logits `[B, S]` for rows `[B, F]`, in float32 or wider."""
    bias = None if classifier.bias is None else at_least_float32(classifier.bias)
    with without_autocast(rows.device):
        return F.linear(at_least_float32(rows), at_least_float32(classifier.weight), bias)
