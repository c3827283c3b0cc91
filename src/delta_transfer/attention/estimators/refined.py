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
from delta_transfer.features.inputs import concatenate

EXACT_PAIRS = 32_000  # pairs of a sample and a channel that are scored exactly
MIN_BUDGET, MAX_BUDGET = 16, 64  # samples
# At most a fourth of the samples is scored exactly; 8 if that is more, or all if there are fewer.
SAMPLES_PER_EXACT = 4
MIN_EXACT_SAMPLES = 8
FIRST_ORDER_COST = 60  # time of a forward and backward pass, in exact pairs


def num_exact_samples(samples: int | None, *, channels: int) -> int:
    """Return how many samples are scored exactly.

    Args:
        samples: number of samples; None for the maximum over all numbers.
        channels: number of channels of all taps.

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
    """Correct the first-order scores of all samples by exact scores of a few.

    Each sample's exact score `E` is close to `b1 G + b2 |G|`, `G` its first-order score, with one
    `(b1, b2)` per tap, which is fitted on a few samples drawn by `Reservoir`. The score is the mean
    prediction over all samples plus the mean residual of the few (`combine`). If so few samples
    exist that all are scored exactly, it is their mean.
    """
    first, work = _first_pass(job)
    plain = first.running.estimate(job.normalize)
    count = num_exact_samples(plain.samples, channels=work.num_channels)
    items, probabilities = first.reservoir.draw(count)
    exact = _score_exactly(
        job, items, work, chunk_size=job.chunk_size(items[0].sample.inputs) or first.largest_batch
    ).scores
    check_finite(exact)
    scores, errors, uncertainty = {}, {}, {}
    for tap, statistics in first.running.statistics.items():
        found = combine(
            exact[tap].cpu(),
            torch.stack([item.scores[tap] for item in items]),
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
    """Return the scores of one tap from exact scores of m samples and first-order scores of all.

    `b1 G + b2 |G|` is fitted by least squares. A channel's mean residual has variance `V_c` and
    is shrunk towards the mean of all channels by `B = t / (t + V)`, with `V` the mean of `V_c` and
    `t` the variance of the mean residuals in excess of `V` (Fay & Herriot, JASA 1979).

    Args:
        exact: `[m, C]`, exact scores.
        first: `[m, C]`, first-order scores of the same samples.
        probabilities: `[m]`, inclusion probabilities, for weights by their reciprocal (Hajek).
        mean: `[C]`, mean first-order scores of all samples.
        mean_absolute: `[C]`, means of their absolute values.
        samples: number of all samples.

    Returns:
        Scores `[C]`; and their standard errors `[C]`, from the variance `B V_c` of the draw of m
        samples and that of the draw of all samples, `Var(E_c) / samples`; NaN if m is 1.
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
    if len(exact) == 1:  # nothing is known of the variance of residuals: no shrinkage, no errors
        return model + offsets, torch.full_like(offsets, torch.nan)
    bessel = len(exact) / (len(exact) - 1)  # weighted variances are biased like plain ones
    drawn = weights.square() * (1 - probabilities)
    variances = drawn @ (residuals - offsets).square() * bessel
    variance = variances.mean().item()
    between = max(0.0, offsets.var(correction=0).item() - variance)
    shrinkage = between / (between + variance) if variance > 0 else 1.0
    scores = model + offsets.mean() + shrinkage * (offsets - offsets.mean())
    spread = weights @ (exact - weights @ exact).square() * bessel
    return scores, (shrinkage * variances + spread / samples).sqrt()


class _FirstPass:
    """Statistics of the first-order scores of all samples."""

    def __init__(self, taps: Sequence[str], *, limit: int, seed: int) -> None:
        self.running = RunningStatistics(taps)
        self.absolute_sums = {tap: torch.zeros((), dtype=torch.float64) for tap in taps}
        self.reservoir = Reservoir(limit, seed=seed)
        self.largest_batch = 0

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
    assert found is not None  # `Batches` raises if there is no data
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
            inputs = concatenate([sample.inputs for sample in some])
            targets = torch.cat([sample.targets for sample in some])
            scored = scorer(inputs, targets, progress=work.add)
            parts.append(dataclasses.replace(scored, features={}))
    return concatenate_scores(parts)


def _shape(item: ReservoirItem) -> torch.Size | None:
    """Return the shape of a tensor: samples of one shape go through the network together."""
    inputs = item.sample.inputs
    return inputs.shape if isinstance(inputs, Tensor) else None
