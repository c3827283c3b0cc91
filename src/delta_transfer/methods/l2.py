"""L2: squared weights, also the head term of other methods, and plain fine-tuning."""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from delta_transfer.errors import ModelError, match_names
from delta_transfer.methods import sharded
from delta_transfer.methods.base import WEIGHT_DECAY, Method, PenaltyContext
from delta_transfer.methods.penalty import Penalty, Step


@final
class L2(Penalty):
    """Squared weights of some modules: `strength * 1/2 ||w||^2`, biases included.

    Args:
        modules: names or glob patterns of the target's modules, for example its head `"fc"`;
            `"*"` selects every parameter.
        strength: factor of the term.

    Example:
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False))
        >>> _ = nn.init.ones_(net[0].weight)
        >>> L2("0", strength=0.5)(Step(target=net, source=None)).item()
        1.0
    """

    def __init__(self, modules: str | Sequence[str], *, strength: float) -> None:
        super().__init__("l2", strength, reduction="weights")
        self.modules_named = (modules,) if isinstance(modules, str) else tuple(modules)

    def forward(self, step: Step) -> Tensor:
        """Return the term.

        Raises:
            ConfigError: if a name selects no module.
            ModelError: if the modules have no parameters.
        """
        choices = [name for name, _ in step.target.named_modules() if name]
        names = match_names("module", self.modules_named, choices)
        sharded.reshard(step.target)
        if "*" in self.modules_named:
            names = [""]  # the network itself, which may have parameters of its own (class tokens)
        parameters = {
            parameter: None
            for name in names
            for parameter in step.target.get_submodule(name).parameters()
        }
        if not parameters:
            raise ModelError(
                f"L2: no parameters in {', '.join(names)}; choose a module with parameters"
            )
        return self.strength * 0.5 * sharded.sum_of_squares((p, None) for p in parameters)


# The authors' beta: strength of 1/2 ||head||^2 with every penalty that constrains the backbone, if
# the head's inputs have a variance of about 1, as in networks for images.
HEAD_STRENGTH = 0.01


def head_penalties(context: PenaltyContext) -> list[Penalty]:
    """Return the head term: `0.01 v 1/2 ||head||^2`, v the mean variance of the head's inputs.

    The factor v makes the term unit-free, like the penalty on features: features of half the size
    need weights of twice the size. Without it, heads of graph networks with v = 0.007 were trained
    too little.
    """
    strength = HEAD_STRENGTH
    if not context.official and context.features is not None:
        variance = float(context.features.var(dim=0, correction=0).mean())
        # Rounded, because the last digits depend on how samples were split into batches.
        strength *= float(f"{variance:.3g}")
    return [L2(context.head, strength=strength)]


METHOD = Method(
    name="l2",
    summary="plain fine-tuning: random head, weight decay",
    paper="https://arxiv.org/abs/1411.1792",
    head_init="random",
    weight_decay=WEIGHT_DECAY,
    official_strength=1e-4,
    strength_option="weight_decay",
)
