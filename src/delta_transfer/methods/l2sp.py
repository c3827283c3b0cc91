"""L2-SP: the squared distance of the weights from the pretrained ones."""

from typing import final

from torch import Tensor

from delta_transfer.errors import ModelError
from delta_transfer.methods import sharded
from delta_transfer.methods.base import CandidateRun, Method, PenaltyContext
from delta_transfer.methods.l2 import head_penalties
from delta_transfer.methods.penalty import Penalty, Step


@final
class L2SP(Penalty):
    """Squared distance of the weights from their initialization: `strength * 1/2 ||w - w0||^2`.

    L2-SP of Li et al., ICML 2018 (https://arxiv.org/abs/1802.01483), over every parameter that the
    source has too (same name and shape), including those of batch norm. A head of the same shape in
    the source is included: replace the source's head (`nn.Identity()`) to leave it out. The head
    term of the paper is a separate `L2`. With sharded parameters (`fully_shard`) each process has
    its shard of the initialization, too.

    Args:
        strength: factor of the term.
    """

    def __init__(self, *, strength: float) -> None:
        super().__init__("l2sp", strength, needs_source=True, reduction="weights")
        self._initial_weights = sharded.InitialWeights()

    def forward(self, step: Step) -> Tensor:
        """Return the term.

        Raises:
            ModelError: if there is no source network, or the two networks share no parameter.
        """
        if step.source is None:
            raise ModelError("L2SP needs the source network: use Regularizer(target, source, ...)")
        sharded.reshard(step.target)
        start = dict(step.source.named_parameters())
        pairs = [
            (parameter, self._initial_weights.matching(parameter, name, start[name]))
            for name, parameter in step.target.named_parameters()
            if name in start and start[name].shape == parameter.shape
        ]
        if not pairs:
            raise ModelError(
                "L2SP: the target and the source share no parameter (name and shape): "
                "use two networks of one architecture"
            )
        return self.strength * 0.5 * sharded.sum_of_squares(pairs)


def _penalties(context: PenaltyContext) -> list[Penalty]:
    """Return L2-SP's penalty and the head term."""
    return [L2SP(strength=context.strength), *head_penalties(context)]


METHOD = Method(
    name="l2sp",
    summary="L2-SP: keeps weights close to the pretrained ones",
    paper="https://arxiv.org/abs/1802.01483",
    build_penalties=_penalties,
    strength=0.01,
    candidates=(CandidateRun(0.1), CandidateRun(0.01)),
    official_strength=0.01,
)
