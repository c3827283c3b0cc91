"""Learning without Forgetting: the pretrained classifier keeps its outputs."""

import copy
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from delta_transfer.functional import at_least_float32
from delta_transfer.methods.base import Method, PenaltyContext
from delta_transfer.methods.l2 import head_penalties
from delta_transfer.methods.penalty import Penalty, Step, classifier_logits


def distillation(target: Tensor, source: Tensor, *, temperature: float) -> Tensor:
    """Return the divergence of the outputs from those of the source, at a temperature.

    `mean_b KL(softmax(S_b / t) || softmax(T_b / t))`: the loss of Learning without Forgetting (Li
    and Hoiem, ECCV 2016, https://arxiv.org/abs/1606.09282, section 3) less the source's entropy,
    which has no gradient, so that it is zero where the outputs are equal.

    Args:
        target: logits `[B, K]`.
        source: like `target`.
        temperature: positive; larger puts more weight on improbable classes.

    Returns:
        A scalar in nats.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0]])
        >>> distillation(logits, logits, temperature=2.0)
        tensor(0.)
    """
    now = F.log_softmax(at_least_float32(target) / temperature, dim=1)
    then = F.log_softmax(at_least_float32(source) / temperature, dim=1)
    return F.kl_div(now, then, reduction="batchmean", log_target=True)


@final
class LwF(Penalty):
    """Learning without Forgetting: the pretrained classifier keeps its outputs.

    `strength * mean_b KL(softmax(S_b / t) || softmax(T_b / t))` with the logits S of the source
    network and T of the target on the same images, T through a copy of the classifier that is
    trained too (Li and Hoiem, ECCV 2016, https://arxiv.org/abs/1606.09282). The copy's parameters
    belong to the penalty: pass `regularizer.parameters()` to the optimiser.

    Args:
        classifier: the pretrained classifier, which has the same inputs as the head; copied.
        head: the name of the head in both networks, whose inputs are used.
        strength: factor of the term; 1 in the paper.
        temperature: the temperature of both outputs; 2 in the paper.
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
        """Return the term."""
        now = classifier_logits(self.classifier, step.head_inputs[self.head])
        with torch.no_grad():
            then = classifier_logits(self.frozen, step.source_head_inputs[self.head])
        return self.strength * distillation(now, then, temperature=self.temperature)


def _penalties(context: PenaltyContext) -> list[Penalty]:
    """Return the penalty of Learning without Forgetting and the head term."""
    assert context.classifier is not None
    own = LwF(context.classifier, head=context.head, strength=context.strength)
    return [own, *head_penalties(context)]


METHOD = Method(
    name="lwf",
    summary="Learning without Forgetting: keeps the pretrained classifier's outputs",
    paper="https://arxiv.org/abs/1606.09282",
    build_penalties=_penalties,
    compares_features=True,
    needs_classifier=True,
    kinds=("images",),  # graph networks have no pretrained classifier of classes
    strength=1.0,  # lambda_o in section 3
)
