"""The batches of a loader, reduced to randomly drawn samples, with the index of each sample."""

import dataclasses
from collections.abc import Iterable, Iterator, Sized
from typing import final

import torch
from torch import Tensor

from delta_transfer.errors import DataError
from delta_transfer.features.inputs import Inputs, select


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """A batch of samples.

    Args:
        inputs: inputs of B samples.
        targets: `[B, ...]`.
        indices: `[B]`, the position of each sample in the loader's order.
    """

    inputs: Inputs
    targets: Tensor
    indices: Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.targets)

    def chunks(self, size: int | None) -> Iterator["Batch"]:
        """Yield chunks of so many samples in order; the whole batch for None."""
        size = len(self) if size is None else size
        for start in range(0, len(self), size):
            yield self[slice(start, start + size)]

    def __getitem__(self, which: slice | Tensor) -> "Batch":
        """Select samples by a slice, a mask or indices."""
        return Batch(
            inputs=select(self.inputs, which),
            targets=self.targets[which],
            indices=self.indices[which],
        )


@final
class Batches:
    """The batches of a loader.

    Args:
        loader: batches (inputs, targets).
        samples: number of randomly drawn samples, which iterates the loader once more; all if None.
        seed: seed of the draw.
    """

    def __init__(
        self, loader: Iterable[tuple[Inputs, Tensor]], *, samples: int | None, seed: int
    ) -> None:
        self._loader = loader
        self._samples = samples
        self._seed = seed
        self._picked: Tensor | None = None

    def __iter__(self) -> Iterator[Batch]:
        """Iterate from the first batch.

        Raises:
            DataError: if there are none.
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
            raise DataError(
                "the loader is empty, or can be iterated only once: pass a DataLoader or a list of "
                "batches"
            )

    def count(self) -> int | None:
        """Return the number of samples, if known without iterating the loader."""
        picked = self._draw()
        if picked is not None:
            return int(picked.sum())
        if isinstance(self._loader, list | tuple):
            return sum(len(targets) for _, targets in self._loader)
        dataset = getattr(self._loader, "dataset", None)
        return len(dataset) if isinstance(dataset, Sized) else None

    def _draw(self) -> Tensor | None:
        """Return a mask of the drawn samples; None for all."""
        if self._samples is not None and self._picked is None:
            total = sum(len(targets) for _, targets in self._loader)
            generator = torch.Generator().manual_seed(self._seed)
            self._picked = torch.zeros(total, dtype=torch.bool)
            self._picked[torch.randperm(total, generator=generator)[: self._samples]] = True
        return self._picked
