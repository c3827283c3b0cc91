"""Convert the outputs of a network's modules to spatial maps."""

import math

from torch import Tensor

_MAX_PREFIX_TOKENS = 8  # most tokens without a position: a class token and registers


def as_spatial_map(output: Tensor, channel_dim: int) -> Tensor | None:
    """Return the output of a module as a map `[B, C, H, W]`.

    Tokens are arranged row by row in a square, without leading tokens that have no position.

    Args:
        output: `[B, C, H, W]`, `[B, H, W, C]`, tokens `[B, N, C]`, or rows.
        channel_dim: the dimension of the channels.

    Returns:
        None if there are no positions, or only one.

    Example:
        >>> import torch
        >>> as_spatial_map(torch.zeros(1, 50, 8), 2).shape  # a class token, and 7 by 7 positions
        torch.Size([1, 8, 7, 7])
    """
    if output.ndim == 4:
        found = output.movedim(channel_dim, 1)
        return found if found.shape[2] * found.shape[3] > 1 else None
    if output.ndim != 3:
        return None
    tokens = output.movedim(channel_dim, -1)
    prefix = _num_prefix_tokens(tokens.shape[1])
    if prefix is None:
        return None
    side = math.isqrt(tokens.shape[1] - prefix)
    positions = tokens[:, prefix:].movedim(-1, 1)
    return positions.reshape(*positions.shape[:2], side, side)


def _num_prefix_tokens(count: int) -> int | None:
    """Return the number of tokens before those of a square; None if no square fits."""
    for prefix in range(min(_MAX_PREFIX_TOKENS, count - 4) + 1):
        if math.isqrt(count - prefix) ** 2 == count - prefix:
            return prefix
    return None
