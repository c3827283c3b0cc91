"""The description of a fine-tuning method."""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from delta_transfer.attention.channel_attention import ChannelAttention
from delta_transfer.methods.penalty import Penalty

TrainingContext = AbstractContextManager[object]

# For plain fine-tuning, and for the methods that only add a term to it.
WEIGHT_DECAY = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PenaltyContext:
    """Everything a method may build its penalties from.

    Args:
        strength: factor of the method's own penalty.
        head: the name of the target's head.
        taps: the modules whose features are compared.
        attention: channel attention, for methods that need it.
        classifier: the pretrained classifier, for methods that need it.
        features: the head's inputs for the training images before training, `[N, F]`.
        labels: class indices `[N]` of these images.
        num_outputs: number of classes.
        official: use the penalties as the authors of DELTA published them, which need other
            strengths; `find_method(name, preset="paper")` returns a method that sets it.
    """

    strength: float
    head: str
    taps: Sequence[str]
    attention: ChannelAttention | None
    classifier: nn.Linear | None = None
    features: Tensor | None = None
    labels: Tensor | None = None
    num_outputs: int = 0
    official: bool = False


DataKind = Literal["images", "graphs"]
StrengthOption = Literal["strength", "weight_decay", "probability", "projection_factor"]
HeadInit = Literal["probe", "random"]


@dataclasses.dataclass(frozen=True)
class CandidateRun:
    """One of the trainings of `--strength auto`.

    Args:
        strength: factor of the penalty.
        head_init: initialization of the head; None for that of the method.
    """

    strength: float
    head_init: HeadInit | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One method: its head initialization, penalties and other changes to training.

    Args:
        name: the name on the command line.
        summary: one line for a list of methods.
        paper: link to the paper.
        head_init: initialize the head with the linear probe, or at random.
        build_penalties: builds the penalties.
        strength: factor of the penalty; None without one.
        weight_decay: the optimiser's (decoupled) weight decay.
        probability: probability of the change made by `network_context`; None without one.
        projection_factor: factor of the projection of `optimizer_context`; None without one.
        strength_option: the one of these four fields that `--strength` sets; None for none.
        candidates: the trainings of `--strength auto`, from strong to weak, whose weights are
            averaged or chosen from (`runs.selection`); empty for a single one.
        official_strength: default of `--strength` with `--preset paper`; None for methods that do
            not support the preset.
        compares_features: compares features, so that the source runs at each step.
        needs_attention: needs channel attention.
        needs_classifier: needs the pretrained classifier.
        multiclass_only: supports multiclass targets only.
        needs_whole_batch: the penalty depends on the whole batch, which then cannot be split into
            micro-batches.
        num_head_cycles: number of training cycles; the head is re-initialised at the start of each.
        batch_norm: the mode that batch norm must be in, overriding the option; None for either.
        network_context: returns a context manager that changes the network during training, from
            the network, the probability and a random generator.
        optimizer_context: returns a context manager that changes the optimiser's steps, from the
            optimiser, target, source and projection factor.
        trains_network: trains more than the linear probe.
        kinds: the kinds of samples that it supports.
    """

    name: str
    summary: str
    paper: str
    head_init: HeadInit = "probe"
    build_penalties: Callable[[PenaltyContext], list[Penalty]] = lambda context: []
    strength: float | None = None
    weight_decay: float = 0.0
    probability: float | None = None
    projection_factor: float | None = None
    strength_option: StrengthOption | None = "strength"
    candidates: tuple[CandidateRun, ...] = ()
    official_strength: float | None = None
    compares_features: bool = False
    needs_attention: bool = False
    needs_classifier: bool = False
    multiclass_only: bool = False
    needs_whole_batch: bool = False
    num_head_cycles: int = 1
    batch_norm: Literal["train"] | None = None
    network_context: Callable[[nn.Module, float, torch.Generator], TrainingContext] | None = None
    optimizer_context: (
        Callable[[Optimizer, nn.Module, nn.Module, float], TrainingContext] | None
    ) = None
    trains_network: bool = True
    kinds: tuple[DataKind, ...] = ("images", "graphs")

    @property
    def default_strength(self) -> float | None:
        """The default of `--strength`; None if the method does not have the option."""
        option = self.strength_option
        value: float | None = None if option is None else getattr(self, option)
        return value

    def with_strength(self, value: float | None) -> "Method":
        """Return the method with another value of `--strength`; None keeps the default."""
        if self.strength_option is None or value is None:
            return self
        changes: dict[str, Any] = {self.strength_option: value}
        return dataclasses.replace(self, **changes)
