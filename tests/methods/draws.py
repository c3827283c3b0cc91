"""Random tensors."""

import torch
from torch import Tensor


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Draw from a standard normal distribution."""
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
