"""The nearest training images in the feature space of a network."""

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
    """A training image that is similar to a given one.

    Args:
        path: of the training image.
        label: its class.
        cosine: similarity of the features.
        image: None if it can no longer be read.
    """

    path: str
    label: str
    cosine: float
    image: Image.Image | None


class NeighbourIndex:
    """Training images with the features that a network's head gets.

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
        """Return the nearest images, nearest first; ties keep their order.

        Args:
            features: of an image, `[F]`.
            count: most images to return.
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
        except UserError:  # it has been changed or deleted since its features were computed
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
    """Run a network on training images, leaving out unreadable ones.

    Args:
        network: the fine-tuned one.
        head: the name of its head.
        split: the images.
        load: returns their batches, in order and without augmentation.
        classes: the names of the classes.
        progress: called with the number of images that are done, and of all images.

    Raises:
        DataError: if none can be read.
    """
    stats = ReadStats(split.paths)
    features: list[Tensor] = []
    positions: list[int] = []
    with HeadInputs(network, [head]) as heads, eval_mode(network), torch.no_grad():
        batches: Any = stats.track(fault_tolerant_loader(load(split)))
        for inputs, batch_positions in batches:
            if len(inputs):
                network(inputs)
                features.append(heads.inputs()[head].float().cpu())
                positions += batch_positions
            if progress is not None:
                progress(len(positions) + len(stats.errors), len(split))
    stats.report_unreadable()
    return NeighbourIndex(split.subset(positions), torch.cat(features), classes)
