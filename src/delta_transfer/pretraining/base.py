"""The interface of pretext tasks, and their scores."""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from delta_transfer.backbones.graph_network import GraphNetwork

if TYPE_CHECKING:  # the libraries that only graph tasks need
    from delta_transfer.data.graphs.batch import GraphBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class BatchScore:
    """The mean loss and score of a batch.

    Args:
        loss: mean over the targets.
        score: mean over the targets, 1 at best.
        count: number of targets.
    """

    loss: Tensor
    score: float
    count: int


@dataclass(frozen=True, kw_only=True)
class MeanScore:
    """The mean loss and score over all batches."""

    loss: float
    score: float


class PretextTask(nn.Module, ABC):
    """A self-supervised task on graphs, with its own head beside the network.

    Attributes:
        metric_name: name of the score.
    """

    metric_name: str

    @abstractmethod
    def forward(
        self, network: GraphNetwork, graphs: "GraphBatch", generator: torch.Generator
    ) -> BatchScore | None:
        """Draw targets for a batch and score the network's predictions.

        Args:
            network: the network in training.
            graphs: a batch on its device.
            generator: a generator on the CPU, for the targets.

        Returns:
            The scores; None if the graphs have no targets.
        """

    @abstractmethod
    def score_baseline(self, graphs: "GraphBatch", generator: torch.Generator) -> BatchScore | None:
        """Score constant predictions for the same targets."""


def average_scores(parts: Iterable[BatchScore | None]) -> MeanScore:
    """Return the means over the targets of several batches; NaN without targets."""
    scored = [part for part in parts if part is not None]
    count = sum(part.count for part in scored)
    if not count:
        return MeanScore(loss=float("nan"), score=float("nan"))
    loss = sum(float(part.loss.detach()) * part.count for part in scored) / count
    return MeanScore(loss=loss, score=sum(part.score * part.count for part in scored) / count)
