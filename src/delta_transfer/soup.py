"""`--strength auto`: in place of a search, the average of two trainings' weights and the start's.

Averaged weights of networks that started from the same point are as good as an ensemble of them and
no slower than one (model soups, Wortsman et al., ICML 2022, https://arxiv.org/abs/2203.05482;
towards the start: WiSE-FT, CVPR 2022, https://arxiv.org/abs/2109.01903). One training is held
strongly and one weakly; the start is one that is held infinitely strongly.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

State = Mapping[str, Tensor]

Shares = tuple[float, float, float]

SHARES: tuple[Shares, ...] = (
    (0.0, 0.5, 0.5),
    (0.25, 0.375, 0.375),
    (0.5, 0.25, 0.25),
    (0.0, 1.0, 0.0),
    (0.0, 0.0, 1.0),
    (1.0, 0.0, 0.0),
)
"""Shares of the start, the strongly and the weakly held network; the first is the default."""

ALONE: tuple[Shares, ...] = ((0.0, 1.0, 0.0), (0.0, 0.0, 1.0), (1.0, 0.0, 0.0))
"""Of trainings that began with heads of their own: too far apart for an average, one is taken."""


def average(states: Sequence[State], shares: Sequence[float]) -> dict[str, Tensor]:
    """The weighted average of equal networks' states, on the CPU.

    Whole numbers, such as counts of batches, are the last one's.

    Args:
        states: tensors by name, of equal shapes.
        shares: of each; they sum to 1.
    """
    mixed = {}
    for name, last in states[-1].items():
        if not last.is_floating_point():
            mixed[name] = last.cpu()
            continue
        # On the CPU: not every device has float64, and the start may lie there.
        parts = [s * state[name].cpu().double() for s, state in zip(shares, states, strict=True)]
        mixed[name] = torch.stack(parts).sum(dim=0).to(last.dtype)
    return mixed


def choose(losses: Sequence[Tensor], candidates: tuple[Shares, ...] = SHARES) -> Shares:
    """The shares with the lowest held-out loss; of `SHARES` if it is clearly below the default's.

    Clearly: by more than one standard error of the paired difference. Few pictures tell little, and
    the default is seldom far from the best.

    Args:
        losses: for each of the candidates the loss of each held-out sample `[N]`.
        candidates: `SHARES` or `ALONE`.
    """
    means = torch.stack([loss.mean() for loss in losses]).nan_to_num(nan=math.inf)
    best, count = int(means.argmin()), len(losses[0])
    if candidates is ALONE or means[0] == math.inf:
        return candidates[best]
    gain = losses[0] - losses[best]
    error = float(gain.std()) / math.sqrt(count) if count > 1 else math.inf
    return candidates[best] if float(gain.mean()) > error else candidates[0]


def percent(shares: Sequence[float]) -> str:
    """Shares in percent.

    Example:
        >>> percent((0.25, 0.375, 0.375))
        '25/37.5/37.5'
    """
    return "/".join(f"{100 * share:g}" for share in shares)
