"""Penalties on what a pretrained classifier says: Learning without Forgetting and Co-Tuning."""

import copy
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.errors import UserError
from delta_transfer.functional import at_least_float32, full_precision
from delta_transfer.functional_methods import distillation
from delta_transfer.penalties.base import Penalty, Step


@final
class LwF(Penalty):
    """Learning without Forgetting: the pretrained classifier goes on saying what it said.

    `strength * mean_b KL(softmax(S_b / t) || softmax(T_b / t))` with the logits S of the source
    network and T of the target on the same pictures, T through a copy of the classifier that is
    trained too (Li and Hoiem, ECCV 2016, https://arxiv.org/abs/1606.09282). The copy's parameters
    are the penalty's: give `regularizer.parameters()` to the optimiser.

    Args:
        classifier: the pretrained classifier, on the features that the head sees; copied.
        head: the name of the head in both networks, which tells these features.
        strength: factor of the term; 1 in the paper.
        temperature: of both outputs; 2 in the paper.
    """

    def __init__(
        self,
        classifier: nn.Linear,
        *,
        head: str,
        strength: float = 1.0,
        temperature: float = 2.0,
    ) -> None:
        super().__init__("lwf", strength, head=head, needs_source=True)
        self.temperature = temperature
        self.classifier = copy.deepcopy(classifier).requires_grad_()
        self.frozen = copy.deepcopy(classifier).requires_grad_(False)

    def forward(self, step: Step) -> Tensor:
        """The term."""
        now = _logits(self.classifier, step.head_inputs[self.head])
        with torch.no_grad():
            then = _logits(self.frozen, step.source_head_inputs[self.head])
        return self.strength * distillation(now, then, temperature=self.temperature)


@final
class CoTuning(Penalty):
    """Co-Tuning: the pretrained classifier learns the new labels, in its own classes.

    `strength * mean_b -sum_s R_{y_b s} log softmax(T_b)_s` with the logits T of a copy of the
    pretrained classifier, which is trained too, and R = p(source class | class), from
    `functional_methods.category_relationship` (You et al., NeurIPS 2020, https://proceedings.
    neurips.cc/paper/2020/hash/c8067ad1937f728f51288b3eb986afaa-Abstract.html). The source network
    is not run. The copy's parameters are the penalty's: give `regularizer.parameters()` to the
    optimiser.

    Args:
        classifier: the pretrained classifier, on the features that the head sees; copied.
        relationship: `[K, S]`, each row sums to 1.
        head: the name of the target's head, which tells these features.
        strength: factor of the term; 2.3 in the authors' code.

    Raises:
        ValueError: if the relationship does not fit the classifier.
    """

    relationship: Tensor

    def __init__(
        self, classifier: nn.Linear, relationship: Tensor, *, head: str, strength: float = 2.3
    ) -> None:
        super().__init__("co_tuning", strength, head=head)
        if relationship.ndim != 2 or relationship.shape[1] != classifier.out_features:
            raise ValueError(
                f"relationship must be [classes, {classifier.out_features}], a column for each "
                f"output of the classifier; got {tuple(relationship.shape)}"
            )
        self.classifier = copy.deepcopy(classifier).requires_grad_()
        self.register_buffer("relationship", relationship.detach().clone())

    def forward(self, step: Step) -> Tensor:
        """The term.

        Raises:
            UserError: if the labels are not there.
        """
        if step.targets is None:
            raise UserError("CoTuning needs the labels: regularizer(inputs, targets)")
        logits = _logits(self.classifier, step.head_inputs[self.head])
        with full_precision(logits.device):
            if step.targets.is_floating_point():  # shares of all classes, as MixUp gives
                wanted = step.targets.to(self.relationship) @ self.relationship
            else:
                wanted = self.relationship[step.targets]
            wanted = wanted.to(logits.dtype)
            return self.strength * F.cross_entropy(logits, wanted)


def _logits(classifier: nn.Linear, rows: Tensor) -> Tensor:
    bias = None if classifier.bias is None else at_least_float32(classifier.bias)
    with full_precision(rows.device):
        return F.linear(at_least_float32(rows), at_least_float32(classifier.weight), bias)
