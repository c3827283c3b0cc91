"""Estimators that average what a scorer says of each sample: first order and exact."""

import logging

from torch import Tensor

from delta_transfer.attention.estimators.ablation import ExactScorer
from delta_transfer.attention.estimators.batches import Batch
from delta_transfer.attention.estimators.checkpoint import EstimateCheckpoint
from delta_transfer.attention.estimators.gradient import FirstOrderScorer
from delta_transfer.attention.estimators.job import Estimate, EstimationJob, start_progress
from delta_transfer.attention.estimators.parallel import (
    MultiDeviceScorer,
    ShardedScorer,
    check_shards_nonempty,
)
from delta_transfer.attention.estimators.running import RunningStatistics
from delta_transfer.attention.estimators.scorer import Scorer
from delta_transfer.utils.module_state import device_of

logger = logging.getLogger(__name__)


def first_order_estimate(job: EstimationJob) -> Estimate:
    """The mean of the first-order scores of all samples, or of enough for the tolerance."""
    return _average_scores(job, first_order_scorer(job)).estimate(job.normalize)


def exact_estimate(job: EstimationJob) -> Estimate:
    """The mean of the exact scores of all samples, or of enough for the tolerance.

    With a partial file it goes on where an earlier call was broken off, and ends with the very
    numbers that one call gives.
    """
    scorer, running = exact_scorer(job), None
    if job.checkpoint is not None and (kept := job.checkpoint.read()) is not None:
        try:
            running = _resume(job, scorer, *kept)
        except _DataMismatch as error:
            logger.warning("%s is not gone on with (%s): starting anew", job.checkpoint.path, error)
    if running is None:
        running = _average_scores(job, scorer, in_chunks=True, checkpoint=job.checkpoint)
    estimate = running.estimate(job.normalize)
    if job.checkpoint is not None:
        job.checkpoint.remove()
    return estimate


def first_order_scorer(job: EstimationJob) -> Scorer:
    """First order on the job's devices, and in its processes."""
    scorer = MultiDeviceScorer(
        job.networks, lambda net: FirstOrderScorer(net, taps=job.taps, loss=job.loss)
    )
    return ShardedScorer(scorer) if job.distributed else scorer


def exact_scorer(job: EstimationJob) -> Scorer:
    """Exact scores on the job's devices, and in its processes."""
    scorer = MultiDeviceScorer(
        job.networks,
        lambda net: ExactScorer(
            net, taps=job.taps, loss=job.loss, memory=job.memory, precision=job.precision
        ),
    )
    return ShardedScorer(scorer) if job.distributed else scorer


class _DataMismatch(Exception):
    """The data are not those that a partial estimate has seen."""


def _resume(
    job: EstimationJob, scorer: Scorer, state: dict[str, Tensor], data_hash: str
) -> RunningStatistics:
    try:
        running = RunningStatistics.from_state(state, job.taps, device=device_of(job.networks[0]))
    except KeyError as error:
        raise _DataMismatch(f"{error} is missing") from error
    logger.info("exact channel attention: going on after %d samples", running.samples)
    return _average_scores(
        job, scorer, in_chunks=True, checkpoint=job.checkpoint, running=running, data_hash=data_hash
    )


def _average_scores(
    job: EstimationJob,
    scorer: Scorer,
    *,
    in_chunks: bool = False,
    checkpoint: EstimateCheckpoint | None = None,
    running: RunningStatistics | None = None,
    data_hash: str = "",
) -> RunningStatistics:
    """Scores what is not in `running` yet, to the end or until the attention has settled."""
    running = running or RunningStatistics(job.taps)
    old, seen, work = running.samples, 0, None
    if checkpoint is not None:
        checkpoint.data_hash = ""
    for number, batch in enumerate(job.batches, start=1):
        piece = job.chunk_size(batch.inputs) if in_chunks else None
        if job.distributed and number == 1:
            check_shards_nonempty(min(len(batch), piece or len(batch)))
        work = work or start_progress(job, batch)
        for part in batch.chunks(piece):
            seen += len(part)
            if checkpoint is not None:
                checkpoint.hash_batch(part)
                if _already_scored(part, seen, old, same=checkpoint.data_hash == data_hash):
                    work.add(len(part) * work.num_channels)
                    continue
            scored = scorer(part.inputs, part.targets, progress=work.add)
            running.update(scored, part.indices)
            if checkpoint is not None and checkpoint.is_due:
                _write_checkpoint(checkpoint, running)
        if job.tolerance is not None and seen >= old:
            settled = running.has_converged(job.normalize, tolerance=job.tolerance, batches=number)
            if settled:
                break
    if seen < old:
        raise _DataMismatch(f"there are only {seen} samples where there were {old}")
    return running


def _write_checkpoint(checkpoint: EstimateCheckpoint, running: RunningStatistics) -> None:
    """Writes what there is; a full disk must not end what has taken hours."""
    try:
        checkpoint.write(running.state())
    except OSError as error:
        logger.warning(
            "%s could not be written, so it cannot be gone on from: %s", checkpoint.path, error
        )


def _already_scored(part: Batch, seen: int, old: int, *, same: bool) -> bool:
    """Whether the batch that ends after so many samples is among the old ones."""
    if seen - len(part) < old < seen:
        raise _DataMismatch("its batches were of another size")
    if seen == old and not same:
        raise _DataMismatch("its data were others, in another order or in other batches")
    return seen <= old
