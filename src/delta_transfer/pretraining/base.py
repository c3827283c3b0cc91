"""What a network on graphs learns in pretraining, and how well it does."""

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
    """How well some questions were answered.

    Args:
        loss: the mean over the questions.
        score: the mean of their scores, which are 1 at best.
        count: how many there were.
    """

    loss: Tensor
    score: float
    count: int


@dataclass(frozen=True, kw_only=True)
class MeanScore:
    """The means over all questions.

    Args:
        loss: of the losses.
        score: of the scores.
    """

    loss: float
    score: float


class PretextTask(nn.Module, ABC):
    """Questions about graphs that need no labels, with whatever answers them beside the network.

    Attributes:
        metric_name: what a score is.
    """

    metric_name: str

    @abstractmethod
    def forward(
        self, network: GraphNetwork, graphs: "GraphBatch", generator: torch.Generator
    ) -> BatchScore | None:
        """Asks questions and scores the answers.

        Args:
            network: what is trained.
            graphs: on its device.
            generator: of the CPU; it draws the questions.

        Returns:
            The scores; None if there is nothing to ask about these graphs.
        """

    @abstractmethod
    def score_baseline(self, graphs: "GraphBatch", generator: torch.Generator) -> BatchScore | None:
        """The same questions answered without a look at the graphs."""


def average_scores(parts: Iterable[BatchScore | None]) -> MeanScore:
    """The means over all questions of several parts; no numbers where there were none."""
    there = [part for part in parts if part is not None]
    count = sum(part.count for part in there)
    if not count:
        return MeanScore(loss=float("nan"), score=float("nan"))
    loss = sum(float(part.loss.detach()) * part.count for part in there) / count
    return MeanScore(loss=loss, score=sum(part.score * part.count for part in there) / count)
