"""A loader's batches, cut down to samples drawn at random, and where each sample comes from."""

import dataclasses
from collections.abc import Iterable, Iterator, Sized
from typing import final

import torch
from torch import Tensor

from delta_transfer.errors import UserError
from delta_transfer.features.inputs import Inputs, select


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """Some samples.

    Args:
        inputs: of B samples.
        targets: `[B, ...]`.
        indices: `[B]`, the place of each sample in the loader's order.
    """

    inputs: Inputs
    targets: Tensor
    indices: Tensor

    def __len__(self) -> int:
        """How many samples."""
        return len(self.targets)

    def chunks(self, size: int | None) -> Iterator["Batch"]:
        """The samples in order, so many at a time; all at once for None."""
        size = len(self) if size is None else size
        for start in range(0, len(self), size):
            yield self[slice(start, start + size)]

    def __getitem__(self, which: slice | Tensor) -> "Batch":
        """The samples of a slice, a mask or indices."""
        return Batch(
            inputs=select(self.inputs, which),
            targets=self.targets[which],
            indices=self.indices[which],
        )


@final
class Batches:
    """A loader's batches.

    Args:
        loader: batches (inputs, targets).
        samples: how many are drawn at random, for which the loader is run through once more; all
            if None.
        seed: of the draw.
    """

    def __init__(
        self, loader: Iterable[tuple[Inputs, Tensor]], *, samples: int | None, seed: int
    ) -> None:
        self._loader = loader
        self._samples = samples
        self._seed = seed
        self._picked: Tensor | None = None

    def __iter__(self) -> Iterator[Batch]:
        """The batches from the first one on.

        Raises:
            UserError: if there are none.
        """
        picked = self._draw()
        position = 0
        for inputs, targets in self._loader:
            batch = Batch(
                inputs=inputs,
                targets=targets,
                indices=torch.arange(position, position + len(targets)),
            )
            position += len(batch)
            if picked is not None:
                mine = picked[batch.indices]
                if not mine.any():
                    continue
                batch = batch[mine]
            if len(batch):
                yield batch
        if not position:
            raise UserError(
                "the loader is empty, or can be run through only once: channel attention needs "
                "training data from a loader such as DataLoader or a list of batches"
            )

    def count(self) -> int | None:
        """How many samples there will be, if it can be told without running through the loader."""
        picked = self._draw()
        if picked is not None:
            return int(picked.sum())
        if isinstance(self._loader, list | tuple):
            return sum(len(targets) for _, targets in self._loader)
        dataset = getattr(self._loader, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else None

    def _draw(self) -> Tensor | None:
        """A mask of the samples that are picked; None if all are."""
        if self._samples is not None and self._picked is None:
            total = sum(len(targets) for _, targets in self._loader)
            generator = torch.Generator().manual_seed(self._seed)
            self._picked = torch.zeros(total, dtype=torch.bool)
            self._picked[torch.randperm(total, generator=generator)[: self._samples]] = True
        return self._picked
