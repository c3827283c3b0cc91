"""Penalties on weights: L2 and L2-SP."""

from collections.abc import Sequence
from typing import final

from torch import Tensor

from delta_transfer.errors import UserError, match_names
from delta_transfer.penalties import shards
from delta_transfer.penalties.base import Penalty, Step


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
        super().__init__("l2", strength, combines="weights")
        self.modules_named = (modules,) if isinstance(modules, str) else tuple(modules)

    def forward(self, step: Step) -> Tensor:
        """The term.

        Raises:
            UserError: if a name selects no module, or the modules have no parameters.
        """
        choices = [name for name, _ in step.target.named_modules() if name]
        names = match_names("module", self.modules_named, choices)
        shards.reshard(step.target)
        if "*" in self.modules_named:
            names = [""]  # the network itself, which may hold parameters of its own (class tokens)
        parameters = {
            parameter: None
            for name in names
            for parameter in step.target.get_submodule(name).parameters()
        }
        if not parameters:
            raise UserError(f"L2: no parameters in {', '.join(names)}; name a module that has some")
        return self.strength * 0.5 * shards.sum_of_squares((p, None) for p in parameters)


@final
class L2SP(Penalty):
    """Squared distance of the weights from where they started: `strength * 1/2 ||w - w0||^2`.

    L2-SP of Li et al., ICML 2018 (https://arxiv.org/abs/1802.01483), over every parameter that the
    source has too (same name and shape), batch-norm ones included. A head that the source has in
    the same shape takes part: replace the source's head (`nn.Identity()`) to leave it out. The head
    term of the paper is an `L2` of its own. Of sharded parameters (`fully_shard`) each process has
    its shard of the start, too.

    Args:
        strength: factor of the term.
    """

    def __init__(self, *, strength: float) -> None:
        super().__init__("l2sp", strength, needs_source=True, combines="weights")
        self._start = shards.Start()

    def forward(self, step: Step) -> Tensor:
        """The term.

        Raises:
            UserError: if the two networks share no parameter.
        """
        if step.source is None:
            raise UserError("L2SP needs the source network: Regularizer(target, source, ...)")
        shards.reshard(step.target)
        start = dict(step.source.named_parameters())
        pairs = [
            (parameter, self._start.like(parameter, name, start[name]))
            for name, parameter in step.target.named_parameters()
            if name in start and start[name].shape == parameter.shape
        ]
        if not pairs:
            raise UserError(
                "L2SP: the target and the source share no parameter (name and shape): "
                "give two networks of one architecture"
            )
        return self.strength * 0.5 * shards.sum_of_squares(pairs)
