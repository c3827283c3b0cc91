"""The mathematics as pure functions: distances between feature maps, attention from scores."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor


def temperature_scaled_nll(logits: Tensor, targets: Tensor) -> float:
    """Cross entropy at the best temperature: `min_t CE(logits / t, targets)`, t from 1/20 to 20.

    How well logits tell the classes apart, without the cost of being too sure or not sure enough:
    fine-tuned networks are overconfident long before they get worse. One temperature for all
    samples as of Guo et al., ICML 2017 (https://arxiv.org/abs/1706.04599).

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
    """The loss of each sample, whose mean is `temperature_scaled_nll`.

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
    """The losses of samples with their logits divided by what makes the mean loss lowest.

    Args:
        losses: of logits `[N, K]` and targets, `[N]`.
        logits: `[N, K]`.
        targets: whatever `losses` takes.

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
