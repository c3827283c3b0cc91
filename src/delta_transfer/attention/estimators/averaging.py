"""Estimators that average the scores of samples: first order and exact."""

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
    """Average the first-order scores of all samples, or of enough for the tolerance."""
    return _average_scores(job, first_order_scorer(job)).estimate(job.normalize)


def exact_estimate(job: EstimationJob) -> Estimate:
    """Average the exact scores of all samples, or of enough for the tolerance.

    A checkpoint resumes an interrupted call, with exactly the result of an uninterrupted one.
    """
    scorer, running = exact_scorer(job), None
    if job.checkpoint is not None and (saved := job.checkpoint.read()) is not None:
        try:
            running = _resume(job, scorer, *saved)
        except _DataMismatch as error:
            logger.warning(
                "%s cannot be resumed (%s): starting from scratch", job.checkpoint.path, error
            )
    if running is None:
        running = _average_scores(job, scorer, in_chunks=True, checkpoint=job.checkpoint)
    estimate = running.estimate(job.normalize)
    if job.checkpoint is not None:
        job.checkpoint.remove()
    return estimate


def first_order_scorer(job: EstimationJob) -> Scorer:
    """Make the first-order scorer for the job's devices and processes."""
    scorer = MultiDeviceScorer(
        job.networks, lambda net: FirstOrderScorer(net, taps=job.taps, loss=job.loss)
    )
    return ShardedScorer(scorer) if job.distributed else scorer


def exact_scorer(job: EstimationJob) -> Scorer:
    """Make the exact scorer for the job's devices and processes."""
    scorer = MultiDeviceScorer(
        job.networks,
        lambda net: ExactScorer(
            net, taps=job.taps, loss=job.loss, memory=job.memory, precision=job.precision
        ),
    )
    return ShardedScorer(scorer) if job.distributed else scorer


class _DataMismatch(Exception):
    """The data differ from those that the checkpoint was made with."""


def _resume(
    job: EstimationJob, scorer: Scorer, state: dict[str, Tensor], data_hash: str
) -> RunningStatistics:
    try:
        running = RunningStatistics.from_state(state, job.taps, device=device_of(job.networks[0]))
    except KeyError as error:
        raise _DataMismatch(f"{error} is missing") from error
    logger.info("exact channel attention: resuming after %d samples", running.samples)
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
    """Score what is not in `running` yet, to the end or until the attention has converged."""
    running = running or RunningStatistics(job.taps)
    old, seen, work = running.samples, 0, None
    if checkpoint is not None:
        checkpoint.data_hash = ""
    for number, batch in enumerate(job.batches, start=1):
        chunk_size = job.chunk_size(batch.inputs) if in_chunks else None
        if job.distributed and number == 1:
            check_shards_nonempty(min(len(batch), chunk_size or len(batch)))
        work = work or start_progress(job, batch)
        for part in batch.chunks(chunk_size):
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
            converged = running.has_converged(
                job.normalize, tolerance=job.tolerance, batches=number
            )
            if converged:
                break
    if seen < old:
        raise _DataMismatch(f"there are only {seen} samples where there were {old}")
    return running


def _write_checkpoint(checkpoint: EstimateCheckpoint, running: RunningStatistics) -> None:
    """Write a checkpoint; a full disk must not end an estimate of hours."""
    try:
        checkpoint.write(running.state())
    except OSError as error:
        logger.warning(
            "%s could not be written, so the estimate cannot be resumed: %s", checkpoint.path, error
        )


def _already_scored(part: Batch, seen: int, old: int, *, same: bool) -> bool:
    """Return whether the batch that ends after `seen` samples is in the checkpoint."""
    if seen - len(part) < old < seen:
        raise _DataMismatch("its batches had another size")
    if seen == old and not same:
        raise _DataMismatch("its data, their order or their batches were others")
    return seen <= old
