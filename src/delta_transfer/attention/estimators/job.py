"""The input and the result of an estimator of channel attention."""

import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, final

import torch
from torch import Tensor, nn

from delta_transfer.attention.estimators.batches import Batch, Batches
from delta_transfer.attention.estimators.checkpoint import EstimateCheckpoint
from delta_transfer.attention.estimators.convergence import Normalize
from delta_transfer.attention.estimators.scorer import to_fast_memory_format
from delta_transfer.errors import DataError
from delta_transfer.features.inputs import Inputs
from delta_transfer.features.probe import Loss
from delta_transfer.features.taps import Taps
from delta_transfer.utils.distributed import world_size
from delta_transfer.utils.module_state import device_of

CHUNK_SIZE = 4  # samples that the exact estimator scores at once on the CPU


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class EstimationJob:
    """The input of an estimator.

    Args:
        networks: a network with its probe in eval mode, on one or more devices.
        batches: batches of the data.
        taps: module names.
        loss: task loss; each sample is passed as a batch of one.
        normalize: maps scores to attention.
        tolerance: the relative standard error of the attention at which an estimator may stop.
        memory: bytes for a pass of the exact estimator.
        precision: precision of the exact estimator.
        progress: called with the work done and the total work (0 if not known).
        checkpoint: checkpoint of the exact estimator, if any.
        seed: seed of all random draws.
        distributed: whether each of several processes scores its shard of each batch.
    """

    networks: Sequence[nn.Module]
    batches: Batches
    taps: tuple[str, ...]
    loss: Loss
    normalize: Normalize
    tolerance: float | None = None
    memory: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    progress: Callable[[int, int], None] | None = None
    checkpoint: EstimateCheckpoint | None = None
    seed: int = 0
    distributed: bool = False

    def chunk_size(self, inputs: Inputs) -> int | None:
        """Return how many samples the exact estimator scores at once; None for whole batches."""
        # Inputs that are not tensors take the slow loop, which makes no copies.
        if device_of(self.networks[0]).type != "cpu" or not isinstance(inputs, Tensor):
            return None
        return CHUNK_SIZE * world_size() if self.distributed else CHUNK_SIZE


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Estimate:
    """The result of an estimator.

    Args:
        scores: tap -> `[C]`.
        standard_errors: tap -> `[C]`, their standard errors.
        variance: tap -> scalar.
        influential_samples: tap -> `[C, k]`.
        uncertainty: tap -> the relative standard error of the attention.
        samples: number of samples.
    """

    scores: dict[str, Tensor]
    standard_errors: dict[str, Tensor]
    variance: dict[str, Tensor]
    influential_samples: dict[str, Tensor]
    uncertainty: dict[str, float]
    samples: int


@final
class ProgressCounter:
    """A thread-safe counter of the work done.

    Args:
        progress: as of `EstimationJob`.
        total: total number of units; 0 if not known.
        num_channels: channels of all taps, the units of a sample.
    """

    def __init__(
        self, progress: Callable[[int, int], None] | None, *, total: int, num_channels: int
    ) -> None:
        self.num_channels = num_channels
        self._progress = progress
        self._total = total
        self._done = 0
        self._lock = threading.Lock()

    def add(self, units: int) -> None:
        """Add units of work done."""
        with self._lock:
            self._done += units
            if self._progress is not None:
                self._progress(self._done, max(self._total, self._done) if self._total else 0)


def start_progress(job: EstimationJob, batch: Batch) -> ProgressCounter:
    """Make the counter at the first batch, with a unit for each channel of each sample."""
    if job.progress is None:
        return ProgressCounter(None, total=0, num_channels=0)
    network = job.networks[0]
    one = to_fast_memory_format(batch.inputs[:1], device_of(network))
    with torch.no_grad(), Taps(network, job.taps) as taps:
        outputs = taps.record(one)
        channels = sum(out.shape[taps.channel_dims[tap]] for tap, out in outputs.items())
    return ProgressCounter(
        job.progress, total=(job.batches.count() or 0) * channels, num_channels=channels
    )


def check_finite(scores: Mapping[str, Tensor]) -> None:
    """Raise `DataError` if a score, tap -> `[..., C]`, is not finite."""
    for tap, values in scores.items():
        if not torch.isfinite(values).all():
            raise DataError(
                f"channel scores of tap {tap!r} are not finite: check the inputs and the network's "
                "weights for NaNs, and the loss for overflow"
            )
