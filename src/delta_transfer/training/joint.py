"""The loss of a batch that several processes share, so that it is that of one process."""

from collections.abc import Mapping

import torch
from torch import Tensor

from delta_transfer.methods.penalty import Combines
from delta_transfer.utils.distributed import averaged, processes


def joint_loss(
    terms: Mapping[str, Tensor], combines: Mapping[str, Combines], *, own: int, whole: int
) -> tuple[Tensor, dict[str, Tensor]]:
    """What a process differentiates, and the terms of the whole batch.

    The mean over processes of the gradients, which is what `DistributedDataParallel` makes of them,
    is the gradient of the whole batch's loss.

    Args:
        terms: of this process's samples.
        combines: how each is put together, see `Penalty`.
        own: how many samples of the batch are this process's; with none, its terms count nothing.
        whole: how many it has.

    Returns:
        A scalar with its graph; and each term, the same in all processes.
    """
    factors = {
        "mean": own * processes() / whole,
        "sum": processes() if own else 0,
        "weights": 1,
    }
    scaled = [factors[combines[name]] * term for name, term in terms.items()]
    values = averaged([float(term.detach()) for term in scaled])
    found = {name: torch.tensor(value) for name, value in zip(terms, values, strict=True)}
    return torch.stack(scaled).sum(), found
