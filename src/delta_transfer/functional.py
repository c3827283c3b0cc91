"""Pure functions: distances between feature maps, and attention from scores."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def flatten_positions(features: Tensor, channel_dim: int) -> Tensor:
    """Return a view of a feature map as `[B, S, C]`: samples, positions, channels.

    Args:
        features: `[B, C, ...]`, `[B, ..., C]` or rows `[R, C]`.
        channel_dim: the non-negative index of the channel dimension.

    Returns:
        `[B, S, C]`, or `[R, C]` unchanged.

    Example:
        >>> flatten_positions(torch.zeros(2, 3, 4, 5), 1).shape
        torch.Size([2, 20, 3])
    """
    if features.ndim == 2:
        return features
    moved = features.movedim(channel_dim, -1)
    return moved.flatten(1, -2)


def at_least_float32(features: Tensor) -> Tensor:
    """Cast half-precision features to float32, so that squares and means do not overflow."""
    if features.dtype in (torch.float16, torch.bfloat16):
        return features.float()
    return features


def without_autocast(device: torch.device) -> AbstractContextManager[None]:
    """Return a context without autocast, for products that need more than half precision."""
    if not torch.amp.is_autocast_available(device.type):
        return nullcontext()
    return torch.autocast(device.type, enabled=False)


def _check_same_shape(target: Tensor, source: Tensor) -> None:
    if target.shape != source.shape:
        raise ValueError(
            f"target features {tuple(target.shape)} and source features {tuple(source.shape)} "
            "differ in shape: run both networks on the same inputs"
        )


def feature_distance(
    target: Tensor,
    source: Tensor,
    *,
    variance: Tensor,
    attention: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Compute the unit-free squared distance between two feature maps, channel by channel.

    `1/2 mean_b sum_c a_c mean_s (T_bsc - S_bsc)^2 / v`: DELTA's regulariser (Li et al., ICLR 2019,
    https://arxiv.org/abs/1901.09229, section 3.2), with means instead of sums and with the source's
    variance as the unit, so that its size does not depend on batch size, image size or network.

    Args:
        target: `[B, S, C]`, or rows `[R, C]`.
        source: the same shape as `target`.
        variance: scalar `v > 0`, in squared units of the features.
        attention: `[C]`, sums to 1; uniform if None.
        groups: `[R]`, the sample that each row belongs to; rows are averaged per sample first, so
            that large samples do not dominate. By default each row is a sample.

    Returns:
        A dimensionless scalar.

    Raises:
        ValueError: if the shapes differ, or `groups` is passed with features that are not rows.

    Example:
        >>> feature_distance(torch.ones(2, 3, 4), torch.zeros(2, 3, 4), variance=torch.tensor(0.5))
        tensor(1.)
    """
    _check_same_shape(target, source)
    squares = (at_least_float32(target) - at_least_float32(source)).square()
    if groups is None:
        channels = squares.mean(dim=tuple(range(squares.ndim - 1)))
    else:
        # A product and a sum: autocast would run a matrix product in half precision.
        channels = (_row_weights(groups, squares).unsqueeze(1) * squares).sum(dim=0)
    weighted = channels.mean() if attention is None else (attention * channels).sum()
    return 0.5 * weighted / variance


def _row_weights(groups: Tensor, rows: Tensor) -> Tensor:
    """Return weights `[R]` of the mean over each sample's rows, then over the samples."""
    counts = _row_counts(groups, rows)
    samples = (counts > 0).sum()  # some may have no rows
    return 1 / (counts[groups] * samples)


def _row_counts(groups: Tensor, rows: Tensor) -> Tensor:
    """Return the number of rows of each sample, in the dtype of the rows."""
    if rows.ndim != 2 or groups.shape != rows.shape[:1]:
        raise ValueError(
            f"groups {tuple(groups.shape)} need features of shape [rows, channels], "
            f"one group per row; got {tuple(rows.shape)}"
        )
    return torch.bincount(groups).to(rows.dtype)


def official_distance(
    target: Tensor,
    source: Tensor,
    *,
    attention: Tensor | None = None,
    groups: Tensor | None = None,
) -> Tensor:
    """Compute the distance of the authors' published code, a sum over the batch, not unit-free.

    With attention `1/2 sum_b sum_c C a_c / S sum_s (T - S)^2`, without it just
    `1/2 sum (T - S)^2` (https://github.com/lixingjian/DELTA): the two differ in scale by the number
    of positions S.

    Args:
        target: `[B, S, C]`, or rows `[R, C]`.
        source: the same shape as `target`.
        attention: `[C]`, sums to 1.
        groups: `[R]`, the sample that each row belongs to: S is then its number of rows.
            By default each row is a sample, and S = 1.

    Returns:
        A scalar in squared units of the features.

    Raises:
        ValueError: if the shapes differ, or `groups` is passed with features that are not rows.
    """
    _check_same_shape(target, source)
    squares = (at_least_float32(target) - at_least_float32(source)).square()
    if attention is None:
        return 0.5 * squares.sum()
    if groups is None:
        positions = squares.shape[1] if squares.ndim == 3 else 1
        channels = squares.sum(dim=tuple(range(squares.ndim - 1)))
        return 0.5 * len(attention) / positions * (attention * channels).sum()
    counts = _row_counts(groups, squares)[groups]
    channels = (squares / counts.unsqueeze(1)).sum(dim=0)
    return 0.5 * len(attention) * (attention * channels).sum()


def normalize_scores(
    scores: Tensor,
    *,
    temperature: float,
    score_clip: float | None = None,
    clamp_negative_scores: bool = False,
) -> Tensor:
    """Convert scores to channel attention: standardise, divide by a temperature, apply softmax.

    `softmax((s - mean(s)) / std(s) / temperature)` with the population standard deviation (Li et
    al., ICLR 2019, section 3.3; the authors' code uses temperature 5).

    Args:
        scores: `[C]`, in any unit.
        temperature: positive; larger is closer to uniform.
        score_clip: standardised scores are clipped to ± this value; not clipped if None.
        clamp_negative_scores: set negative scores to zero: a channel whose ablation lowers the loss
            then counts as little as one whose ablation does not change it.

    Returns:
        `[C]`, sums to 1; uniform if all scores are equal.

    Raises:
        ValueError: if `temperature` or `score_clip` is not positive, or a score is not finite.

    Example:
        >>> normalize_scores(torch.zeros(4), temperature=5.0)
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        >>> scores = torch.tensor([-5.0, 0.0, 3.0])
        >>> normalize_scores(scores, temperature=1.0, clamp_negative_scores=True)
        tensor([0.0967, 0.0967, 0.8066])
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    if score_clip is not None and not score_clip > 0:
        raise ValueError(f"score_clip must be positive, got {score_clip}")
    if not torch.isfinite(scores).all():
        raise ValueError("channel scores must be finite: the loss overflowed or is NaN")
    scores = scores.clamp_min(0) if clamp_negative_scores else scores
    centred = scores - scores.mean()
    deviation = centred.square().mean().sqrt()
    # Equal scores differ by rounding errors, which standardisation must not amplify.
    noise = torch.finfo(scores.dtype).eps * scores.abs().max()
    if deviation <= noise:
        return torch.full_like(scores, 1 / len(scores))
    standard = centred / deviation
    if score_clip is not None:
        standard = standard.clamp(-score_clip, score_clip)
    return torch.softmax(standard / temperature, dim=0)


def effective_channels(attention: Tensor) -> Tensor:
    """Return the effective number of channels: the exponential of the entropy of attention.

    Args:
        attention: `[C]`, sums to 1.

    Returns:
        A scalar from 1 (all attention on one channel) to C (uniform).

    Example:
        >>> effective_channels(torch.tensor([0.5, 0.0, 0.5]))
        tensor(2.)
    """
    entropy: Tensor = torch.special.entr(attention).sum()
    return entropy.exp()


def normalized_entropy(attention: Tensor) -> Tensor:
    """Return the entropy of attention relative to that of uniform attention.

    `-sum_c a_c log a_c / log C`.

    Args:
        attention: `[C]`, sums to 1.

    Returns:
        A scalar from 0 (all attention on one channel) to 1 (uniform); 1 if there is one channel.

    Example:
        >>> normalized_entropy(torch.tensor([0.5, 0.0, 0.5, 0.0]))
        tensor(0.5000)
    """
    if len(attention) == 1:
        return torch.ones_like(attention[0])
    entropy: Tensor = torch.special.entr(attention).sum()
    return entropy / math.log(len(attention))
