"""Inputs of networks: tensors of samples, or objects that can be sliced like them.

Features of such inputs may be rows `[R, C]`, several per sample (the nodes of a graph); `groups` of
the inputs is then the sample of each row.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor

from delta_transfer.errors import ModelError


class Inputs(Protocol):
    """A batch of samples: a tensor `[B, ...]`, or an object with these methods.

    Inputs whose features are rows also have the property `groups`: `[R]`, int64, ascending, the
    sample of each row. Classes other than tensors need `cat(parts)`, which concatenates inputs, for
    the refined estimator of channel attention and for sampling.
    """

    def __len__(self) -> int:
        """Return the number of samples."""
        ...  # pragma: no cover

    def __getitem__(self, which: slice, /) -> Self:
        """Return the samples of a slice."""
        ...  # pragma: no cover

    def to(self, device: torch.device, /) -> Self:
        """Return the inputs on a device."""
        ...  # pragma: no cover


InputsT = TypeVar("InputsT", bound=Inputs)


def groups_of(inputs: Any) -> Tensor | None:
    """Return the sample of each row of the inputs' features, `[R]`; None without `groups`."""
    return getattr(inputs, "groups", None)


def groups_at(
    tap: str, features: Tensor, groups: Tensor | None, *, samples: int | None = None
) -> Tensor | None:
    """Return the sample of each row of a tap's features; None if there is one row per sample.

    A network may be tapped before and after rows are pooled to samples. The number of features
    tells the two cases apart; if there are as many rows as samples, each sample has one row.

    Args:
        tap: the name of the tap.
        features: its features, `[B, S, C]` or rows `[R, C]`.
        groups: the sample of each row, `[R]`, or None.
        samples: the number of samples; by default that of `groups`.

    Raises:
        ModelError: if the number of features is neither that of the rows nor that of the samples.

    Example:
        >>> groups = torch.tensor([0, 0, 1])
        >>> groups_at("layer", torch.zeros(3, 4), groups)
        tensor([0, 0, 1])
        >>> groups_at("pool", torch.zeros(2, 4), groups) is None
        True
    """
    if groups is None or (features.ndim == 2 and len(features) == len(groups)):
        return groups
    if samples is None:
        samples = int(groups.max()) + 1
    if len(features) == samples:
        return None
    raise ModelError(
        f"tap {tap!r} returns features {tuple(features.shape)}, but there are {len(groups)} rows "
        f"[R, C] of {samples} samples: tap a module that returns features for each row (node) or "
        "each sample (graph)"
    )


def split(inputs: InputsT, size: int) -> list[InputsT]:
    """Split inputs into parts of `size` samples, in order; the last may be smaller."""
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def shard(inputs: InputsT, index: int, *, num_shards: int) -> InputsT:
    """Return one of several contiguous shards of the samples; the first may have one more.

    Example:
        >>> [shard(torch.arange(5), number, num_shards=3).tolist() for number in range(3)]
        [[0, 1], [2, 3], [4]]
    """
    size, more = divmod(len(inputs), num_shards)
    start = index * size + min(index, more)
    return inputs[start : start + size + (index < more)]


def concatenate(parts: Sequence[InputsT]) -> InputsT:
    """Concatenate several inputs."""
    first, all_of_them = parts[0], cast(Any, list(parts))
    if len(parts) == 1:
        return first
    joined = torch.cat if isinstance(first, Tensor) else cast(Any, type(first)).cat
    return cast(InputsT, joined(all_of_them))


def select(inputs: InputsT, which: slice | Tensor) -> InputsT:
    """Return the samples of a slice, a mask or indices."""
    if isinstance(which, slice):
        return inputs[which]
    if isinstance(inputs, Tensor):
        return cast(InputsT, inputs[which])
    positions = torch.arange(len(inputs))[which].tolist()
    return concatenate([inputs[position : position + 1] for position in positions])
