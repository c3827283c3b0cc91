"""A data loader that leaves out unreadable samples and reports them."""

import dataclasses
import functools
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from delta_transfer.data.images.loader import DeviceDataLoader
from delta_transfer.errors import DataError, UserError, first_few
from delta_transfer.report.formatting import pluralize

logger = logging.getLogger(__name__)

SHOWN = 20  # most unreadable samples that a warning lists

_NONE = torch.empty(0, 3, 1, 1)  # has the shape of images, so that it can be normalised


@dataclasses.dataclass(frozen=True)
class ReadResult:
    """The readable and unreadable samples of a batch.

    Args:
        positions: of its inputs in the data set.
        errors: position and reason of each unreadable sample.
    """

    positions: list[int]
    errors: list[tuple[int, str]]


def fault_tolerant_loader(loader: DeviceDataLoader) -> DeviceDataLoader:
    """Return a loader that leaves out unreadable samples instead of failing.

    Args:
        loader: yields samples and labels in order; its data set raises UserError for a sample
            that cannot be read.

    Returns:
        A loader of the same batches: the readable inputs, and a `ReadResult`.
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
    """The number of samples read, the throughput, and the unreadable samples.

    Args:
        paths: the name of each sample of the data set.
        sample_type: what one sample is called.
    """

    def __init__(self, paths: Sequence[str], sample_type: str = "image") -> None:
        self.paths = paths
        self.sample_type = sample_type
        self.num_samples = 0
        self.elapsed_s = 0.0
        self.errors: list[str] = []

    @property
    def samples_per_second(self) -> float:
        """The throughput, including reading."""
        return self.num_samples / self.elapsed_s if self.elapsed_s else 0.0

    def __str__(self) -> str:
        """Format as in `1,000 images, 243 images/s`."""
        digits = 0 if self.samples_per_second >= 10 else 1
        rate = f"{self.samples_per_second:.{digits}f} {self.sample_type}s/s"
        return f"{pluralize(self.num_samples, self.sample_type)}, {rate}"

    def track(
        self, batches: Iterable[tuple[Tensor, ReadResult]]
    ) -> Iterator[tuple[Tensor, list[int]]]:
        """Yield the inputs of each batch and their positions, and count them."""
        for inputs, read in batches:
            self.num_samples += len(read.positions)
            self.errors += [f"'{self.paths[index]}' ({reason})" for index, reason in read.errors]
            yield inputs, read.positions

    def report_unreadable(self) -> None:
        """Log a warning if samples were left out.

        Raises:
            DataError: if all were.
        """
        if not self.errors:
            return
        total, named = self.num_samples + len(self.errors), first_few(self.errors, SHOWN)
        if total == 1:
            raise DataError(f"cannot read the {self.sample_type} {named}: replace it")
        if not self.num_samples:
            raise DataError(
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
    """A data set of position and sample, or of position and reason if it is unreadable."""

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
