"""The mathematics of the methods that DELTA is compared with, as pure functions."""

import math

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from delta_transfer.functional import at_least_float32


def distillation(target: Tensor, source: Tensor, *, temperature: float) -> Tensor:
    """How far the outputs are from those of the source network, at a temperature.

    `mean_b KL(softmax(S_b / t) || softmax(T_b / t))`: the loss of Learning without Forgetting (Li
    and Hoiem, ECCV 2016, https://arxiv.org/abs/1606.09282, section 3) less the source's entropy,
    which has no gradient, so that it is zero where the outputs are equal.

    Args:
        target: logits `[B, K]`.
        source: like `target`.
        temperature: larger gives more weight to the improbable classes; positive.

    Returns:
        A scalar in nats.

    Example:
        >>> logits = torch.tensor([[1.0, 0.0]])
        >>> distillation(logits, logits, temperature=2.0)
        tensor(0.)
    """
    now = F.log_softmax(at_least_float32(target) / temperature, dim=1)
    then = F.log_softmax(at_least_float32(source) / temperature, dim=1)
    return F.kl_div(now, then, reduction="batchmean", log_target=True)


def smallest_singular_values(rows: Tensor, *, count: int) -> Tensor:
    """The sum of the smallest squared singular values of a matrix.

    `sum_i sigma_{-i}^2` over the `count` smallest of the min(B, F) that there are: Batch Spectral
    Shrinkage (Chen et al., NeurIPS 2019, https://proceedings.neurips.cc/paper/2019/hash/
    c6bff625bdb0393992c9d4db0c6bbe45-Abstract.html, section 4).

    Args:
        rows: `[B, F]`, the features of each sample.
        count: how many; all if there are fewer.

    Returns:
        A scalar in squared units of the features.

    Example:
        >>> smallest_singular_values(torch.diag(torch.tensor([3.0, 2.0, 1.0])), count=2)
        tensor(5.)
    """
    wide = at_least_float32(rows)
    try:
        values: Tensor = torch.linalg.svdvals(wide)
    # Of what is no number: the fit says so in its own words.
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return wide.new_tensor(math.nan)
    return values[-count:].square().sum()


def pooled_distance(target: Tensor, source: Tensor, *, groups: Tensor | None = None) -> Tensor:
    """Squared distance between features that are pooled over positions and of length 1.

    `mean_b ||p(T_b) - p(S_b)||^2` with `p(F) = mean_s F_s / ||mean_s F_s||`: a layer's part of the
    feature distance of LDIFS (Mukhoti et al., TMLR 2024, https://arxiv.org/abs/2308.13320). Lengths
    are taken away as in the authors' code, so that it is between 0 and 4 in any network.

    Args:
        target: `[B, S, C]`, or rows `[R, C]`.
        source: like `target`.
        groups: `[R]`, the sample that each row belongs to; without it each row is a sample.

    Returns:
        A scalar without unit.

    Example:
        >>> pooled_distance(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
        tensor(2.)
    """
    return (_pooled(target, groups) - _pooled(source, groups)).square().sum(dim=1).mean()


def _pooled(features: Tensor, groups: Tensor | None) -> Tensor:
    wide = at_least_float32(features)
    if features.ndim == 3:
        wide = wide.mean(dim=1)
    elif groups is not None:
        # Sums point where means do. Samples are numbered anew: some numbers may have no rows.
        _, numbers = torch.unique(groups, return_inverse=True)
        count = int(numbers.max()) + 1
        wide = wide.new_zeros(count, wide.shape[1]).index_add(0, numbers, wide)
    return F.normalize(wide, dim=1)


def source_temperature(logits: Tensor, targets: Tensor) -> float:
    """The temperature at which the source's outputs say most about the classes of the new task.

    With `P = softmax(logits / t)` and `n_ys` the sum of `P_js` over the samples j of class y other
    than i, the source's classes tell the class y of sample i with probability
    `sum_s P_is n_ys / sum_y' n_y's`. The temperature, between 1/20 and 20, has the lowest mean
    negative logarithm of this.
    Co-Tuning calibrates on pictures of the source's task, which are not at hand here.

    Args:
        logits: `[N, S]` over the source's classes.
        targets: class indices `[N]` of the new task.
    """
    wide, labels = logits.detach().cpu().double(), targets.cpu()
    members = F.one_hot(labels).double()

    def loss(log_temperature: float) -> float:
        probabilities = torch.softmax(wide / math.exp(log_temperature), dim=1)
        classes = members.T @ probabilities
        others = classes[labels] - probabilities
        total = (classes.sum(dim=0) - probabilities).clamp_min(1e-300)
        found = (probabilities * others / total).sum(dim=1)
        return -float(found.clamp_min(1e-12).log().mean())

    limit = math.log(20)
    found = minimize_scalar(loss, bounds=(-limit, limit), method="bounded")
    return math.exp(found.x)


def category_relationship(
    logits: Tensor, targets: Tensor, *, num_outputs: int, temperature: float
) -> Tensor:
    """Which classes of the source stand for a class of the new task.

    `R_ys = mean_{i: y_i = y} softmax(L_i / t)_s`, an estimate of p(source class s | class y): the
    direct approach of Co-Tuning (You et al., NeurIPS 2020, https://proceedings.neurips.cc/paper/
    2020/hash/c8067ad1937f728f51288b3eb986afaa-Abstract.html, section 3).

    Args:
        logits: `[N, S]` over the source's classes.
        targets: class indices `[N]` of the new task.
        num_outputs: K, the classes of the new task.
        temperature: of the source's outputs.

    Returns:
        `[K, S]`, each row sums to 1; the mean of all samples for a class that has none.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0], [0.0, 9e9], [9e9, 0.0]])
        >>> category_relationship(logits, torch.tensor([0, 0, 1]), num_outputs=2, temperature=1.0)
        tensor([[0.2500, 0.7500],
                [1.0000, 0.0000]])
    """
    probabilities = torch.softmax(at_least_float32(logits) / temperature, dim=1)
    members = F.one_hot(targets, num_outputs).to(probabilities)
    sizes = members.sum(dim=0).unsqueeze(1)
    means = members.T @ probabilities / sizes.clamp_min(1)
    return torch.where(sizes > 0, means, probabilities.mean(dim=0))


def selective_projection(
    moved: Tensor, before: Tensor, start: Tensor, gradient: Tensor, *, strength: float
) -> Tensor:
    """What a step leaves of some weights, once it is drawn back to where they started.

    With `c = -g . (w - w0)` before the step, `w' - strength r (w' - w0)` where `c < 0`, else `w'`;
    `r = max(0, ||w' - w0|| - ||w - w0||) / ||w' - w0||`: Selective Projection Decay (Tian et al.,
    NeurIPS 2024, https://arxiv.org/abs/2411.01713, section 3). Strength 1 keeps such a step on the
    sphere around the start that it came from.

    Args:
        moved: the weights w' after the optimiser's step.
        before: the weights w before it.
        start: the weights w0 that all began with.
        gradient: the gradient g at w.
        strength: 0 for none.

    Returns:
        The weights to go on with, of the shape and dtype of `moved`.

    Example:
        >>> two, one, zero = torch.tensor([2.0]), torch.tensor([1.0]), torch.tensor([0.0])
        >>> selective_projection(two, one, zero, torch.tensor([0.1]), strength=1.0)
        tensor([1.])
        >>> selective_projection(two, one, zero, torch.tensor([-0.1]), strength=1.0)
        tensor([2.])
    """
    way = at_least_float32(moved) - at_least_float32(start)
    old_way = at_least_float32(before) - at_least_float32(start)
    disagree = (at_least_float32(gradient) * old_way).sum() > 0
    length = way.norm()
    growth = (length - old_way.norm()).clamp_min(0)
    # Nothing grows to length zero: the smallest number only keeps 0 / 0 away.
    share = growth / length.clamp_min(torch.finfo(length.dtype).tiny)
    drawn = way * torch.where(disagree, strength * share, torch.zeros_like(share))
    return (at_least_float32(moved) - drawn).to(moved.dtype)
