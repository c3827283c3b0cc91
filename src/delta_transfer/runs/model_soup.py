"""Averages of networks' weights, and the choice among them by held-out losses."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]

Mixture = tuple[float, ...]
"""Coefficients of the initialization and of the network of each candidate run; their sum is 1."""

SHARES = (1.0, 0.75, 0.5, 0.25)
"""Shares of trained networks in an average with the initialization."""


def mixtures(num_candidates: int, *, averaged: bool) -> tuple[Mixture, ...]:
    """Return the mixtures to choose from, the default first and the initialization last.

    Args:
        num_candidates: the number of networks besides the initialization.
        averaged: whether weights may be averaged.

    Example:
        >>> mixtures(2, averaged=False)
        ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
        >>> mixtures(1, averaged=True)
        ((0.0, 1.0), (0.25, 0.75), (0.5, 0.5), (0.75, 0.25), (1.0, 0.0))
    """
    numbers = range(num_candidates)
    singles = [(number,) for number in numbers]
    # Neighbours in strength: the best one may lie between two candidates.
    neighbours = [(number, number + 1) for number in numbers[:-1]]
    subsets = [tuple(numbers), *neighbours, *singles] if averaged else singles
    shares = SHARES if averaged else (1.0,)
    found = {
        (1 - share, *(share / len(some) * (number in some) for number in numbers)): None
        for some, share in itertools.product(subsets, shares)
    }
    return (*found, (1.0, *(0.0 for _ in numbers)))


def choose_mixture(losses: Mapping[Mixture, Tensor], *, tolerance: float = 1.0) -> Mixture:
    """Return the mixture with the lowest held-out loss, or the default.

    Another one has to be better than the default by more than some standard errors of the paired
    difference: few samples are noisy, and an average of all is seldom far from the best.

    Args:
        losses: for each of the `mixtures`, in their order, the loss of each held-out sample `[N]`.
        tolerance: the number of standard errors; 0 where the default is no better a guess than
            others.
    """
    default, count = next(iter(losses)), len(next(iter(losses.values())))
    means = {one: _finite(float(loss.mean())) for one, loss in losses.items()}
    best = min(means, key=means.__getitem__)
    if means[default] == math.inf or means[best] == math.inf:
        return best if means[best] < math.inf else list(losses)[-1]
    gain = losses[default] - losses[best]
    error = tolerance * float(gain.std()) / math.sqrt(count) if count > 1 else math.inf
    return best if float(gain.mean()) > error else default


def _finite(loss: float) -> float:
    return loss if math.isfinite(loss) else math.inf


def average_states(states: Sequence[State], coefficients: Sequence[float]) -> dict[str, Tensor]:
    """Return the weighted average of networks' states, on the CPU.

    Model soups (Wortsman et al., ICML 2022, https://arxiv.org/abs/2203.05482) and, with the
    initialization, WiSE-FT (CVPR 2022, https://arxiv.org/abs/2109.01903). Integers, such as numbers
    of batches, are those of the last state.

    Args:
        states: tensors by name, of equal shapes.
        coefficients: weight of each state; they sum to 1.
    """
    mixed = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            mixed[name] = last.cpu()
            continue
        # On the CPU: not every device has float64. Without states of coefficient 0, as NaN times 0
        # is NaN.
        parts = [
            s * state[name].cpu().double()
            for s, state in zip(coefficients, states, strict=True)
            if s
        ]
        mixed[name] = torch.stack(parts).sum(dim=0).to(last.dtype)
    return mixed


def has_loss_barrier(losses: Tensor, parts: Sequence[float], coefficients: Sequence[float]) -> bool:
    """Return True if an average of weights is worse than its parts are on average.

    The loss barrier of Frankle et al. (ICML 2020, https://arxiv.org/abs/1912.05671), on training
    samples and by more than a standard error: networks with one between them are in different
    basins.

    Args:
        losses: of the average, for each sample `[N]`.
        parts: the mean loss of each part.
        coefficients: weight of each part; they sum to 1.

    Example:
        >>> has_loss_barrier(torch.tensor([0.4, 0.6]), (0.1, 0.3), (0.5, 0.5))
        True
    """
    expected = sum(one * part for one, part in zip(coefficients, parts, strict=True) if one)
    error = float(losses.std()) / math.sqrt(len(losses)) if len(losses) > 1 else 0.0
    return not float(losses.mean()) <= expected + error  # True for NaN


def format_percent(coefficients: Sequence[float]) -> str:
    """Format coefficients in percent.

    Example:
        >>> format_percent((0.25, 0.375, 0.375))
        '25/37.5/37.5'
    """
    return "/".join(f"{100 * one:g}" for one in coefficients)
