"""The training images that look most alike to a network: nearest in its feature space."""

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from delta_transfer.data.images.loader import DeviceDataLoader
from delta_transfer.data.task import Split
from delta_transfer.errors import UserError
from delta_transfer.features.head_inputs import HeadInputs
from delta_transfer.inference.fault_tolerant_loader import ReadStats, fault_tolerant_loader
from delta_transfer.utils.module_state import eval_mode


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Neighbour:
    """A training image near to another one.

    Args:
        path: what it is called.
        label: its class.
        cosine: of the angle between the features of both.
        image: None if it cannot be read any more.
    """

    path: str
    label: str
    cosine: float
    image: Image.Image | None


class NeighbourIndex:
    """Training images and what the head of a network is given of each.

    Args:
        split: the images.
        features: their features, `[N, F]`.
        classes: the names of the classes.
    """

    def __init__(self, split: Split, features: Tensor, classes: tuple[str, ...]) -> None:
        self._split = split
        self._features = F.normalize(features, dim=1)
        self._classes = classes

    def __len__(self) -> int:
        return len(self._split)

    def nearest(self, features: Tensor, count: int) -> list[Neighbour]:
        """The nearest images, nearest first; those as near as others in their order.

        Args:
            features: what the head is given of an image, `[F]`.
            count: how many, if there are so many.
        """
        cosines = self._features @ F.normalize(features.float().cpu(), dim=0)
        order = cosines.argsort(descending=True, stable=True)[:count].tolist()
        return [
            Neighbour(
                path=self._split.paths[i],
                label=self._classes[self._split.class_indices[i]],
                cosine=float(cosines[i]),
                image=self._read(self._split.paths[i]),
            )
            for i in order
        ]

    def _read(self, path: str) -> Image.Image | None:
        try:
            image: Image.Image = self._split.read(path)
        except UserError:  # it was there when its features were taken
            return None
        return image


def build_neighbour_index(
    network: nn.Module,
    head: str,
    split: Split,
    *,
    load: Callable[[Split], DeviceDataLoader],
    classes: tuple[str, ...],
    progress: Callable[[int, int], None] | None,
) -> NeighbourIndex:
    """Runs a network on training images; those that cannot be read are left out.

    Args:
        network: the fine-tuned one.
        head: the name of its head.
        split: the images.
        load: batches of them, in their order and without augmentation.
        classes: the names of the classes.
        progress: is told how many of how many are done.

    Raises:
        UserError: if none can be read.
    """
    tally = ReadStats(split.paths)
    found: list[Tensor] = []
    positions: list[int] = []
    with HeadInputs(network, [head]) as heads, eval_mode(network), torch.no_grad():
        batches: Any = tally.track(fault_tolerant_loader(load(split)))
        for inputs, places in batches:
            if len(inputs):
                network(inputs)
                found.append(heads.inputs()[head].float().cpu())
                positions += places
            if progress is not None:
                progress(len(positions) + len(tally.errors), len(split))
    tally.report_unreadable()
    return NeighbourIndex(split.subset(positions), torch.cat(found), classes)
