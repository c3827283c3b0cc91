"""Temperature scaling: held-out losses that overconfidence does not change."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor


def temperature_scaled_nll(logits: Tensor, targets: Tensor) -> float:
    """Return the cross entropy at the best temperature, between 1/20 and 20.

    `min_t CE(logits / t, targets)` measures how well logits separate the classes, without the cost
    of over- or underconfidence: fine-tuned networks are overconfident long before they get worse.
    One temperature for all samples (Guo et al., ICML 2017, https://arxiv.org/abs/1706.04599).

    Args:
        logits: `[N, K]`.
        targets: class indices `[N]`.

    Returns:
        The loss in nats; NaN if the logits are not finite.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]])
        >>> targets = torch.tensor([0, 1, 1])
        >>> round(temperature_scaled_nll(logits, targets), 3)  # two of three right: H(1/3)
        0.637
        >>> round(temperature_scaled_nll(10 * logits, targets), 3)
        0.637
    """
    return temperature_scaled_losses(logits, targets).mean().item()


def temperature_scaled_losses(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the loss of each sample; their mean is `temperature_scaled_nll`.

    Args:
        logits: `[N, K]`.
        targets: class indices `[N]`.

    Returns:
        `[N]`, in nats, in float64 on the CPU; NaN if the logits are not finite.
    """
    return losses_at_best_temperature(_cross_entropies, logits, targets)


def losses_at_best_temperature(
    losses: Callable[[Tensor, Tensor], Tensor], logits: Tensor, targets: Tensor
) -> Tensor:
    """Return per-sample losses at the temperature with the lowest mean loss.

    Args:
        losses: maps logits `[N, K]` and targets to losses `[N]`.
        logits: `[N, K]`.
        targets: as `losses` expects them.

    Returns:
        `[N]`, in float64 on the CPU; NaN if the logits are not finite.
    """
    labels = targets.cpu()
    if not torch.isfinite(logits).all():
        return torch.full(labels.shape[:1], math.nan, dtype=torch.float64)
    wide = logits.detach().cpu().double()

    def loss(log_temperature: float) -> float:
        return losses(wide / math.exp(log_temperature), labels).mean().item()

    limit = math.log(20)
    best = float(minimize_scalar(loss, bounds=(-limit, limit)).x)
    return losses(wide / math.exp(best), labels)


def _cross_entropies(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits, targets, reduction="none")
