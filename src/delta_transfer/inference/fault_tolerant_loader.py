"""Samples of which some cannot be read: these are left out of the batches, and told of."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from delta_transfer.data.images.loader import DeviceDataLoader
from delta_transfer.errors import UserError, first_few

logger = logging.getLogger(__name__)

SHOWN = 20  # unreadable samples that are named

_NONE = torch.empty(0, 3, 1, 1)  # which can be normalised as images are


@dataclasses.dataclass(frozen=True)
class ReadResult:
    """What could be read of a batch.

    Args:
        positions: of its inputs in the data set.
        errors: the position of each other image, and why it cannot be read.
    """

    positions: list[int]
    errors: list[tuple[int, str]]


def fault_tolerant_loader(loader: DeviceDataLoader) -> DeviceDataLoader:
    """A loader that leaves unreadable images out instead of failing.

    Args:
        loader: gives images and labels in their order; its data set raises UserError for a
            image that cannot be read.

    Returns:
        A loader of the same batches: the inputs that could be read, and `Read`, what is known of
        them.
    """
    return DeviceDataLoader(
        _Tolerant(loader.dataset),
        normalise=loader.normalise,
        device=loader.device,
        batch_size=loader.batch_size,
        num_workers=loader.num_workers,
        collate_fn=functools.partial(_collate, collate=loader.collate_fn),
    )


class ReadStats:
    """How many images were read, how fast they were answered, and which could not be read.

    Args:
        paths: what each sample of the data set is called.
        sample_type: what it is, one of them.
    """

    def __init__(self, paths: Sequence[str], sample_type: str = "image") -> None:
        self.paths = paths
        self.sample_type = sample_type
        self.num_samples = 0
        self.elapsed_s = 0.0
        self.errors: list[str] = []

    @property
    def samples_per_second(self) -> float:
        """Images a second, from the reading to the answer."""
        return self.num_samples / self.elapsed_s if self.elapsed_s else 0.0

    def __str__(self) -> str:
        """Such as `1000 images, 243 images/s`."""
        digits = 0 if self.samples_per_second >= 10 else 1
        plural = "" if self.num_samples == 1 else "s"
        rate = f"{self.samples_per_second:.{digits}f} {self.sample_type}s/s"
        return f"{self.num_samples} {self.sample_type}{plural}, {rate}"

    def track(
        self, batches: Iterable[tuple[Tensor, ReadResult]]
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """The inputs of each batch and their positions, counted."""
        for inputs, read in batches:
            self.num_samples += len(read.positions)
            self.errors += [f"'{self.paths[index]}' ({reason})" for index, reason in read.errors]
            yield inputs, read.positions

    def report_unreadable(self) -> None:
        """Logs a warning if images are left out.

        Raises:
            UserError: if all are.
        """
        if not self.errors:
            return
        total, named = self.num_samples + len(self.errors), first_few(self.errors, SHOWN)
        if total == 1:
            raise UserError(f"cannot read the {self.sample_type} {named}: replace it")
        if not self.num_samples:
            raise UserError(
                f"none of the {total} {self.sample_type}s can be read; replace them: {named}"
            )
        logger.warning(
            "%d of %d %ss cannot be read and are left out; replace or remove them: %s",
            len(self.errors),
            total,
            self.sample_type,
            named,
        )


class _Tolerant(Dataset[tuple[int, Any]]):
    """Position and sample or, where it cannot be read, position and reason."""

    def __init__(self, samples: Dataset[tuple[Any, Any]]) -> None:
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)  # type: ignore[arg-type]  # torch's base class has no length

    def __getitem__(self, index: int) -> tuple[int, Any]:
        try:
            return index, self.samples[index][0]
        except UserError as error:
            return index, getattr(error, "reason", str(error))


def _collate(
    samples: Sequence[tuple[int, Any]], *, collate: Callable[[list[Any]], Any]
) -> tuple[Any, ReadResult]:
    good = {index: sample for index, sample in samples if not isinstance(sample, str)}
    errors = [(index, sample) for index, sample in samples if isinstance(sample, str)]
    inputs = collate([(sample, 0) for sample in good.values()])[0] if good else _NONE
    return inputs, ReadResult([*good], errors)
