"""What networks are called with: a tensor of samples, or anything cut like one.

Features of such inputs may be rows `[R, C]`, of which a sample has many (the nodes of a graph); the
inputs' `groups` then say whose each row is.
"""

from collections.abc import Sequence
from typing import Any, Protocol, Self, TypeVar, cast

import torch
from torch import Tensor

from delta_transfer.errors import ModelError


class Inputs(Protocol):
    """Some samples, in order: a tensor `[B, ...]`, or an object with these.

    Inputs whose features are rows have the property `groups` too: `[R]`, int64, ascending, the
    sample of each row. For inputs that are no tensors, `cat(parts)` on their class puts several
    together again, which the refined estimator of channel attention and drawn samples need.
    """

    def __len__(self) -> int:
        """How many samples there are."""
        ...  # pragma: no cover

    def __getitem__(self, which: slice, /) -> Self:
        """The samples of a slice."""
        ...  # pragma: no cover

    def to(self, device: torch.device, /) -> Self:
        """The same on a device."""
        ...  # pragma: no cover


InputsT = TypeVar("InputsT", bound=Inputs)


def groups_of(inputs: Any) -> Tensor | None:
    """The sample of each row of the inputs' features, `[R]`; None where the inputs do not say."""
    return getattr(inputs, "groups", None)


def groups_at(
    tap: str, features: Tensor, groups: Tensor | None, *, samples: int | None = None
) -> Tensor | None:
    """The sample of each row of a tap's features; None where each is a sample of its own.

    A network may be tapped where it has rows and where it has pooled them to samples. Which one a
    tap gives is told by how many there are; where both are as many, each sample has one row.

    Args:
        tap: its name.
        features: what it gave, `[B, S, C]` or rows `[R, C]`.
        groups: the sample of each row, `[R]`, or None.
        samples: how many samples there are; by default as many as the groups tell.

    Raises:
        ModelError: if the features are neither of these rows nor of the samples.

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
        f"tap {tap!r} gives features {tuple(features.shape)}, but there are {len(groups)} rows "
        f"[R, C] of {samples} samples: tap a module that gives features of each row (node), or of "
        "each sample (graph)"
    )


def split(inputs: InputsT, size: int) -> list[InputsT]:
    """Parts of so many samples, in order; the last one may be smaller."""
    return [inputs[start : start + size] for start in range(0, len(inputs), size)]


def shard(inputs: InputsT, index: int, *, num_shards: int) -> InputsT:
    """One of several shares of the samples, in order; the first ones may have one more.

    Example:
        >>> [shard(torch.arange(5), number, num_shards=3).tolist() for number in range(3)]
        [[0, 1], [2, 3], [4]]
    """
    size, more = divmod(len(inputs), num_shards)
    start = index * size + min(index, more)
    return inputs[start : start + size + (index < more)]


def concatenate(parts: Sequence[InputsT]) -> InputsT:
    """The samples of several parts as those of one."""
    first, all_of_them = parts[0], cast(Any, list(parts))
    if len(parts) == 1:
        return first
    joined = torch.cat if isinstance(first, Tensor) else cast(Any, type(first)).cat
    return cast(InputsT, joined(all_of_them))


def select(inputs: InputsT, which: slice | Tensor) -> InputsT:
    """The samples of a slice, a mask or indices."""
    if isinstance(which, slice):
        return inputs[which]
    if isinstance(inputs, Tensor):
        return cast(InputsT, inputs[which])
    positions = torch.arange(len(inputs))[which].tolist()
    return concatenate([inputs[position : position + 1] for position in positions])
