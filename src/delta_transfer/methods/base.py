"""What a method of fine-tuning is."""

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

# Of the plain methods, and of those that add to them.
WEIGHT_DECAY = 0.01


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class PenaltyContext:
    """What a method may build its penalties from.

    Args:
        strength: of the method's own penalty.
        head: the name of the target's head.
        taps: the modules whose features are compared.
        attention: channel attention, for methods that need it.
        classifier: the pretrained classifier, for methods that need it.
        features: what the head sees of each training image `[N, F]`, before training.
        labels: class indices `[N]` of these images.
        num_outputs: how many classes there are.
        official: the penalties as the authors of DELTA published them, which take other strengths;
            `find_method(name, preset="paper")` gives a method that sets it.
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
HeadInit = Literal["probe", "unstandardized_probe", "random"]


@dataclasses.dataclass(frozen=True)
class CandidateRun:
    """One of the two trainings of `--strength auto`.

    Args:
        strength: of the penalty.
        lr_scale: how fast it learns, times `--lr`.
        head_init: where its head starts, if not as the method says.
    """

    strength: float
    lr_scale: float
    head_init: HeadInit | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method:
    """One method: where its head starts, what is added to the task loss, what else it changes.

    Args:
        name: as on the command line.
        summary: one line for a list of methods.
        paper: where it comes from.
        head_init: the head starts as the linear probe, as one on features that keep their scales
            (`fit_probe`, `standardize=False`), or at random.
        build_penalties: makes the penalties.
        strength: factor of its penalty; None without one.
        weight_decay: the optimiser's (decoupled) weight decay.
        probability: probability of the change that `network_context` makes; None without one.
        projection_factor: factor of the projection of `optimizer_context`; None without one.
        strength_option: the field of these four that `--strength` sets; None for none.
        candidates: where it means two trainings instead, held strongly and weakly (see `soup`).
        official_strength: the same in the official form; None for methods that have none.
        compares_features: whether it compares features, so that the source runs at each step.
        needs_attention: whether it needs channel attention.
        needs_classifier: whether it needs the pretrained classifier.
        multiclass_only: whether it learns classes alone.
        needs_whole_batch: whether its penalty looks at a batch as a whole, which then cannot be
            worked through in parts.
        num_head_cycles: in how many cycles the head is trained, drawn anew at the start of each.
        batch_norm: the mode that batch norm has to be in, whatever is asked for; None for either.
        network_context: what changes the network while it trains: a context manager of the network,
            its probability and a generator of random numbers.
        optimizer_context: what changes the steps of the optimiser: a context manager of the
            optimiser, target, source and the projection factor.
        trains_network: whether anything but the probe is trained.
        kinds: of samples that it is for.
    """

    name: str
    summary: str
    paper: str
    head_init: HeadInit = "probe"
    build_penalties: Callable[[PenaltyContext], list[Penalty]] = lambda parts: []
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
        """The value of the field that `--strength` sets."""
        option = self.strength_option
        value: float | None = None if option is None else getattr(self, option)
        return value

    def with_strength(self, value: float | None) -> "Method":
        """Return the method with the value of `--strength`."""
        if self.strength_option is None or value is None:
            return self
        changes: dict[str, Any] = {self.strength_option: value}
        return dataclasses.replace(self, **changes)
