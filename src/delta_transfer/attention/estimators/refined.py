"""The refined estimator: first order on all samples, corrected by exact scores of a few of them."""

import dataclasses
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from delta_transfer.attention.estimators.averaging import exact_scorer, first_order_scorer
from delta_transfer.attention.estimators.batches import Batch
from delta_transfer.attention.estimators.convergence import monte_carlo_error
from delta_transfer.attention.estimators.job import (
    Estimate,
    EstimationJob,
    ProgressCounter,
    check_finite,
)
from delta_transfer.attention.estimators.parallel import check_shards_nonempty
from delta_transfer.attention.estimators.running import RunningStatistics
from delta_transfer.attention.estimators.sampling import Reservoir, ReservoirItem
from delta_transfer.attention.estimators.scorer import BatchScores, concatenate_scores
from delta_transfer.features.inputs import concatenate as joined

EXACT_PAIRS = 32_000  # of a sample and a channel, that are scored exactly
MIN_BUDGET, MAX_BUDGET = 16, 64  # samples
SAMPLES_PER_EXACT, MIN_EXACT_SAMPLES = (
    4,
    8,
)  # no more than a fourth of the samples, or 8 where they are few
FIRST_ORDER_COST = 60  # one forward and backward pass takes about as long


def num_exact_samples(samples: int | None, *, channels: int) -> int:
    """How many samples are scored exactly, of so many with so many channels in all taps.

    Args:
        samples: how many there are; None for the most that there can be.
        channels: of all taps.

    Example:
        >>> [num_exact_samples(n, channels=552) for n in (5, 20, 60, 1000, None)]
        [5, 8, 15, 57, 57]
        >>> num_exact_samples(1000, channels=3840)
        16
    """
    most = min(MAX_BUDGET, max(MIN_BUDGET, EXACT_PAIRS // channels))
    if samples is None:
        return most
    return min(most, max(-(-samples // SAMPLES_PER_EXACT), min(MIN_EXACT_SAMPLES, samples)))


def refined_estimate(job: EstimationJob) -> Estimate:
    """First-order scores of all samples, and what exact scores of a few say of them.

    Each sample's exact growth `E` is near to `b1 G + b2 |G|`, `G` its first-order score, with one
    `(b1, b2)` per tap. On a few samples, drawn as `Reservoir` does, that is fitted; the mean over
    all samples of what it says, corrected by the mean of what it leaves unexplained, is the score
    (`combine`). Where there are so few samples that all are scored exactly, their mean is left.
    """
    first, work = _first_pass(job)
    plain = first.running.estimate(job.normalize)
    count = num_exact_samples(plain.samples, channels=work.num_channels)
    kept, probabilities = first.reservoir.draw(count)
    exact = _score_exactly(
        job, kept, work, chunk_size=job.chunk_size(kept[0].sample.inputs) or first.largest_batch
    ).scores
    check_finite(exact)
    scores, errors, uncertainty = {}, {}, {}
    for tap, statistics in first.running.statistics.items():
        found = combine(
            exact[tap].cpu(),
            torch.stack([sample.scores[tap] for sample in kept]),
            probabilities,
            mean=statistics.mean,
            mean_absolute=first.absolute_sums[tap] / plain.samples,
            samples=plain.samples,
        )
        scores[tap], errors[tap] = (part.to(plain.scores[tap]) for part in found)
        uncertainty[tap] = monte_carlo_error(scores[tap], errors[tap], job.normalize, seed=job.seed)
    return dataclasses.replace(
        plain, scores=scores, standard_errors=errors, uncertainty=uncertainty
    )


def combine(
    exact: Tensor,
    first: Tensor,
    probabilities: Tensor,
    *,
    mean: Tensor,
    mean_absolute: Tensor,
    samples: int,
) -> tuple[Tensor, Tensor]:
    """The scores of one tap from exact scores of m samples and first-order scores of all.

    `b1 G + b2 |G|` is fitted by least squares. A channel's mean residual is known to a variance
    `V_c`, and is shrunk towards that of all channels by `B = t / (t + V)`, with `V` the mean of
    `V_c` and `t` by how much the mean residuals vary more than that (Fay & Herriot, JASA 1979).

    Args:
        exact: `[m, C]`.
        first: `[m, C]`, of the same samples.
        probabilities: `[m]`, how likely each was drawn; it counts by its reciprocal (Hajek).
        mean: `[C]`, of the first-order scores of all samples.
        mean_absolute: `[C]`, of their absolute values.
        samples: how many there are.

    Returns:
        Scores `[C]`; and their standard errors `[C]`, with the variance `B V_c` of the draw of m
        samples, and that of the draw of all of them, `Var(E_c) / samples`; NaN if m is 1.
    """
    exact, first, probabilities = exact.double(), first.double(), probabilities.double()
    weights = 1 / probabilities / (1 / probabilities).sum()
    terms = torch.stack([first, first.abs()], dim=2)
    roots = weights.sqrt().view(-1, 1, 1)
    slopes = torch.linalg.lstsq(
        (terms * roots).flatten(0, 1), (exact.unsqueeze(2) * roots).flatten(0, 1)
    ).solution[:, 0]
    model = slopes[0] * mean + slopes[1] * mean_absolute
    residuals = exact - terms @ slopes
    offsets = weights @ residuals
    # Of the variance among m samples, as the mean of one of them more than there are.
    bessel = len(exact) / (len(exact) - 1) if len(exact) > 1 else torch.nan
    drawn = weights.square() * (1 - probabilities)
    variances = drawn @ (residuals - offsets).square() * bessel
    variance = variances.mean().item()
    between = max(0.0, offsets.var(correction=0).item() - variance)
    shrinkage = between / (between + variance) if variance > 0 else 1.0
    scores = model + offsets.mean() + shrinkage * (offsets - offsets.mean())
    spread = weights @ (exact - weights @ exact).square() * bessel
    return scores, (shrinkage * variances + spread / samples).sqrt()


class _FirstPass:
    """What a pass over the samples has left of their first-order scores."""

    def __init__(self, taps: Sequence[str], *, limit: int, seed: int) -> None:
        self.running = RunningStatistics(taps)
        self.absolute_sums = {tap: torch.zeros((), dtype=torch.float64) for tap in taps}  # sums
        self.reservoir = Reservoir(limit, seed=seed)
        self.largest_batch = 0  # batch

    def update(self, batch: Batch, scored: BatchScores) -> None:
        self.running.update(scored, batch.indices)
        for tap, scores in scored.scores.items():
            self.absolute_sums[tap] = self.absolute_sums[tap] + scores.cpu().double().abs().sum(
                dim=0
            )
        self.reservoir.add(batch, scored.scores)
        self.largest_batch = max(self.largest_batch, len(batch))


def _first_pass(job: EstimationJob) -> tuple[_FirstPass, ProgressCounter]:
    scorer = first_order_scorer(job)
    found: _FirstPass | None = None
    for batch in job.batches:
        if job.distributed and found is None:
            check_shards_nonempty(len(batch))
        scored = scorer(batch.inputs, batch.targets)
        if found is None:
            channels = sum(scores.shape[1] for scores in scored.scores.values())
            limit = num_exact_samples(None, channels=channels)
            found = _FirstPass(job.taps, limit=limit, seed=job.seed)
            work = _make_progress(job, channels)
        found.update(batch, scored)
        work.add(len(batch) * FIRST_ORDER_COST)
    assert found is not None  # no data at all are an error of the batches
    return found, work


def _make_progress(job: EstimationJob, channels: int) -> ProgressCounter:
    samples = job.batches.count()
    total = 0
    if samples is not None:
        total = (
            samples * FIRST_ORDER_COST + num_exact_samples(samples, channels=channels) * channels
        )
    return ProgressCounter(job.progress, total=total, num_channels=channels)


def _score_exactly(
    job: EstimationJob, items: Sequence[ReservoirItem], work: ProgressCounter, *, chunk_size: int
) -> BatchScores:
    scorer, parts = exact_scorer(job), []
    for _, alike in itertools.groupby(items, key=_shape):
        samples = [one.sample for one in alike]
        for start in range(0, len(samples), chunk_size):
            some = samples[start : start + chunk_size]
            inputs = joined([sample.inputs for sample in some])
            targets = torch.cat([sample.targets for sample in some])
            scored = scorer(inputs, targets, progress=work.add)
            parts.append(dataclasses.replace(scored, features={}))
    return concatenate_scores(parts)


def _shape(item: ReservoirItem) -> torch.Size | None:
    """Of a sample that is a tensor: those of one shape go through the network together."""
    inputs = item.sample.inputs
    return inputs.shape if isinstance(inputs, Tensor) else None
