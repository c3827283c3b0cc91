"""Co-Tuning: trains the pretrained classifier too, on the labels mapped to its classes."""

import copy
import math
from typing import final

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor, nn

from delta_transfer.errors import ConfigError
from delta_transfer.functional import at_least_float32, without_autocast
from delta_transfer.methods.base import WEIGHT_DECAY, Method, PenaltyContext
from delta_transfer.methods.penalty import Penalty, Step, classifier_logits


@final
class CoTuning(Penalty):
    """Co-Tuning: train the pretrained classifier too, on the labels mapped to its classes.

    `strength * mean_b -sum_s R_{y_b s} log softmax(T_b)_s` with the logits T of a copy of the
    pretrained classifier, which is trained too, and R = p(source class | class), from
    `category_relationship` (You et al., NeurIPS 2020,
    https://proceedings.neurips.cc/paper/2020/hash/c8067ad1937f728f51288b3eb986afaa-Abstract.html).
    The source network is not run. The copy's parameters belong to the penalty: pass
    `regularizer.parameters()` to the optimiser.

    Args:
        classifier: the pretrained classifier, which has the same inputs as the head; copied.
        relationship: `[K, S]`, each row sums to 1.
        head: the name of the target's head, whose inputs are used.
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
        """Return the term.

        Raises:
            ConfigError: if the step has no labels.
        """
        if step.targets is None:
            raise ConfigError("CoTuning needs the labels: call regularizer(inputs, targets)")
        logits = classifier_logits(self.classifier, step.head_inputs[self.head])
        with without_autocast(logits.device):
            if step.targets.is_floating_point():  # class probabilities, as from MixUp
                wanted = step.targets.to(self.relationship) @ self.relationship
            else:
                wanted = self.relationship[step.targets]
            wanted = wanted.to(logits.dtype)
            return self.strength * F.cross_entropy(logits, wanted)


def source_temperature(logits: Tensor, targets: Tensor) -> float:
    """Return the temperature at which the source's outputs best predict the new task's classes.

    With `P = softmax(logits / t)` and `n_ys` the sum of `P_js` over the samples j of class y other
    than i, the source's classes predict the class y of sample i with probability
    `sum_s P_is n_ys / sum_y' n_y's`. The temperature, between 1/20 and 20, minimises the mean
    negative log-likelihood. Co-Tuning calibrates on images of the source's task, which are not
    available here.

    Args:
        logits: `[N, S]` over the source's classes.
        targets: class indices `[N]` of the new task.
    """
    wide, labels = logits.detach().cpu().double(), targets.cpu()
    members = F.one_hot(labels).double()

    def loss(log_temperature: float) -> float:
        probabilities = torch.softmax(wide / math.exp(log_temperature), dim=1)
        classes = members.T @ probabilities
        others = classes[labels] - probabilities
        total = (classes.sum(dim=0) - probabilities).clamp_min(1e-300)
        found = (probabilities * others / total).sum(dim=1)
        return -float(found.clamp_min(1e-12).log().mean())

    limit = math.log(20)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded")
    return math.exp(found.x)


def category_relationship(
    logits: Tensor, targets: Tensor, *, num_outputs: int, temperature: float
) -> Tensor:
    """Return the probability of each source class given a class of the new task.

    `R_ys = mean_{i: y_i = y} softmax(L_i / t)_s`, an estimate of p(source class s | class y): the
    direct approach of Co-Tuning (You et al., NeurIPS 2020, section 3,
    https://proceedings.neurips.cc/paper/2020/hash/c8067ad1937f728f51288b3eb986afaa-Abstract.html).

    Args:
        logits: `[N, S]` over the source's classes.
        targets: class indices `[N]` of the new task.
        num_outputs: K, the number of classes of the new task.
        temperature: the temperature of the source's outputs.

    Returns:
        `[K, S]`, each row sums to 1; a class without samples has the mean of all samples.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 9e9], [9e9, 0.0]])
        >>> category_relationship(logits, torch.tensor([0, 0, 1]), num_outputs=2, temperature=1.0)
        tensor([[0.2500, 0.7500],
                [1.0000, 0.0000]])
    """
    probabilities = torch.softmax(at_least_float32(logits) / temperature, dim=1)
    members = F.one_hot(targets, num_outputs).to(probabilities)
    sizes = members.sum(dim=0).unsqueeze(1)
    means = members.T @ probabilities / sizes.clamp_min(1)
    return torch.where(sizes > 0, means, probabilities.mean(dim=0))


def _penalties(context: PenaltyContext) -> list[Penalty]:
    """Return Co-Tuning, with the category relationship on the training images."""
    assert context.classifier is not None
    assert context.features is not None
    assert context.labels is not None
    classifier = copy.deepcopy(context.classifier).to(context.features)
    with torch.no_grad():
        logits = classifier(context.features)
    relationship = category_relationship(
        logits,
        context.labels,
        num_outputs=context.num_outputs,
        temperature=source_temperature(logits, context.labels),
    )
    return [
        CoTuning(context.classifier, relationship, head=context.head, strength=context.strength)
    ]


METHOD = Method(
    name="co_tuning",
    summary="Co-Tuning: trains the pretrained classifier too, on labels mapped to its classes",
    paper=(
        "https://proceedings.neurips.cc/paper/2020/hash/"
        "c8067ad1937f728f51288b3eb986afaa-Abstract.html"
    ),
    head_init="random",
    build_penalties=_penalties,
    needs_classifier=True,
    multiclass_only=True,
    kinds=("images",),
    strength=2.3,  # the authors' code
    weight_decay=WEIGHT_DECAY,
)
