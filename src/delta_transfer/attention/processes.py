"""A scorer of which each process has its share of every batch."""

import dataclasses
from typing import Generic, TypeVar, final

from torch import Tensor

from delta_transfer.attention.scored import Progress, Scored, Scorer, concatenate
from delta_transfer.errors import UserError
from delta_transfer.features.inputs import Inputs, share
from delta_transfer.utils.distributed import gathered, processes, rank

S = TypeVar("S", bound=Scorer)


@final
class ProcessShares(Generic[S]):
    """A scorer that is given whole batches, scores a part of each and learns the other scores.

    All processes give it the same batches. The features are those of its own part alone: what is
    made of them is put together in the end (`FeatureVariance.of_all_processes`).

    Args:
        scorer: scores the parts.
    """

    def __init__(self, scorer: S) -> None:
        self.scorer = scorer

    def __call__(
        self, inputs: Inputs, targets: Tensor, *, progress: Progress | None = None
    ) -> Scored:
        """Scores of a batch, on the CPU."""
        count = min(processes(), len(targets))
        own = None
        if rank() < count:
            some = share(inputs, rank(), of=count), share(targets, rank(), of=count)
            own = self.scorer(*some)
        scores = None if own is None else {tap: part.cpu() for tap, part in own.scores.items()}
        parts = [Scored(scores=part, features={}) for part in gathered(scores) if part is not None]
        found = concatenate(parts)
        if progress is not None:
            progress(len(targets) * sum(part.shape[1] for part in found.scores.values()))
        return found if own is None else dataclasses.replace(found, features=own.features)


def check_shares(first: int) -> None:
    """Checks that each process has a sample of the first batch, which has so many.

    Raises:
        UserError: if one has none, and so would not know what features are like.
    """
    if first < processes():
        raise UserError(
            f"channel attention of {first} pictures cannot be shared by {processes()} processes: "
            "give fewer --devices, or more --attention-samples"
        )
