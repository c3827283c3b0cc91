"""L2: squared weights; the head term of other methods; and plain fine-tuning."""

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
            `"*"` is every parameter there is.
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
        """The term.

        Raises:
            ModelError: if a name selects no module, or the modules have no parameters.
        """
        choices = [name for name, _ in step.target.named_modules() if name]
        names = match_names("module", self.modules_named, choices)
        sharded.reshard(step.target)
        if "*" in self.modules_named:
            names = [""]  # the network itself, which may hold parameters of its own (class tokens)
        parameters = {
            parameter: None
            for name in names
            for parameter in step.target.get_submodule(name).parameters()
        }
        if not parameters:
            raise ModelError(
                f"L2: no parameters in {', '.join(names)}; name a module that has some"
            )
        return self.strength * 0.5 * sharded.sum_of_squares((p, None) for p in parameters)


# The authors' beta: strength of 1/2 ||head||^2 beside every penalty that holds the backbone, where
# what the head sees varies by about 1, as in networks for images.
HEAD_STRENGTH = 0.01


def head_penalties(context: PenaltyContext) -> list[Penalty]:
    """The head term alone: `0.01 v 1/2 ||head||^2`, v the mean variance of what the head sees.

    With it the term is free of units, as the penalty on features is: features of half the size need
    weights of twice the size. Graph networks with v = 0.007 learnt little under 0.01 alone.
    """
    strength = HEAD_STRENGTH
    if not context.official and context.features is not None:
        variance = float(context.features.var(dim=0, correction=0).mean())
        # Without the last digits, which depend on how samples were shared out in batches.
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
