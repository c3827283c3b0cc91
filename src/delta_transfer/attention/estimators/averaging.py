"""Estimators that average what a scorer says of each sample: first order and exact."""

import logging

from torch import Tensor

from delta_transfer.attention.estimators.ablation import Exact
from delta_transfer.attention.estimators.batches import Batch
from delta_transfer.attention.estimators.checkpoint import PartialFile
from delta_transfer.attention.estimators.gradient import FirstOrder
from delta_transfer.attention.estimators.job import Estimate, Job, start_work
from delta_transfer.attention.estimators.parallel import ProcessShares, Shares, check_shares
from delta_transfer.attention.estimators.running import Running
from delta_transfer.attention.estimators.scorer import Scorer
from delta_transfer.utils.module_state import device_of

logger = logging.getLogger(__name__)


def first_order(job: Job) -> Estimate:
    """The mean of the first-order scores of all samples, or of enough for the tolerance."""
    return _average(job, first_order_scorer(job)).estimate(job.normalize)


def exact(job: Job) -> Estimate:
    """The mean of the exact scores of all samples, or of enough for the tolerance.

    With a partial file it goes on where an earlier call was broken off, and ends with the very
    numbers that one call gives.
    """
    scorer, running = exact_scorer(job), None
    if job.partial is not None and (kept := job.partial.read()) is not None:
        try:
            running = _go_on(job, scorer, *kept)
        except _OtherData as error:
            logger.warning("%s is not gone on with (%s): starting anew", job.partial.path, error)
    if running is None:
        running = _average(job, scorer, in_pieces=True, partial=job.partial)
    estimate = running.estimate(job.normalize)
    if job.partial is not None:
        job.partial.remove()
    return estimate


def first_order_scorer(job: Job) -> Scorer:
    """First order on the job's devices, and in its processes."""
    scorer = Shares(job.networks, lambda net: FirstOrder(net, taps=job.taps, loss=job.loss))
    return ProcessShares(scorer) if job.in_processes else scorer


def exact_scorer(job: Job) -> Scorer:
    """Exact scores on the job's devices, and in its processes."""
    scorer = Shares(
        job.networks,
        lambda net: Exact(
            net, taps=job.taps, loss=job.loss, memory=job.memory, precision=job.precision
        ),
    )
    return ProcessShares(scorer) if job.in_processes else scorer


class _OtherData(Exception):
    """The data are not those that a partial estimate has seen."""


def _go_on(job: Job, scorer: Scorer, state: dict[str, Tensor], digest: str) -> Running:
    try:
        running = Running.from_state(state, job.taps, device=device_of(job.networks[0]))
    except KeyError as error:
        raise _OtherData(f"{error} is missing") from error
    logger.info("exact channel attention: going on after %d samples", running.samples)
    return _average(
        job, scorer, in_pieces=True, partial=job.partial, running=running, digest=digest
    )


def _average(
    job: Job,
    scorer: Scorer,
    *,
    in_pieces: bool = False,
    partial: PartialFile | None = None,
    running: Running | None = None,
    digest: str = "",
) -> Running:
    """Scores what is not in `running` yet, to the end or until the attention has settled."""
    running = running or Running(job.taps)
    old, seen, work = running.samples, 0, None
    if partial is not None:
        partial.digest = ""
    for number, batch in enumerate(job.batches, start=1):
        piece = job.piece(batch.inputs) if in_pieces else None
        if job.in_processes and number == 1:
            check_shares(min(len(batch), piece or len(batch)))
        work = work or start_work(job, batch)
        for part in batch.pieces(piece):
            seen += len(part)
            if partial is not None:
                partial.see(part)
                if _is_old(part, seen, old, same=partial.digest == digest):
                    work.add(len(part) * work.channels)
                    continue
            scored = scorer(part.inputs, part.targets, progress=work.add)
            running.update(scored, part.positions)
            if partial is not None and partial.is_due:
                _keep(partial, running)
        if job.tolerance is not None and seen >= old:
            settled = running.has_settled(job.normalize, tolerance=job.tolerance, batches=number)
            if settled:
                break
    if seen < old:
        raise _OtherData(f"there are only {seen} samples where there were {old}")
    return running


def _keep(partial: PartialFile, running: Running) -> None:
    """Writes what there is; a full disk must not end what has taken hours."""
    try:
        partial.write(running.state())
    except OSError as error:
        logger.warning(
            "%s could not be written, so it cannot be gone on from: %s", partial.path, error
        )


def _is_old(part: Batch, seen: int, old: int, *, same: bool) -> bool:
    """Whether the batch that ends after so many samples is among the old ones."""
    if seen - len(part) < old < seen:
        raise _OtherData("its batches were of another size")
    if seen == old and not same:
        raise _OtherData("its data were others, in another order or in other batches")
    return seen <= old
