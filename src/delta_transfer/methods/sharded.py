"""Sums of squares over parameters, which may be sharded over processes (FSDP)."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, final

import torch
from torch import Tensor, nn

from delta_transfer.utils.distributed import is_initialized

if TYPE_CHECKING:  # importing it takes a second, and without a process group nothing is sharded
    from torch.distributed.tensor import DTensor


def reshard(network: nn.Module) -> None:
    """Reshard parameters that a forward pass has gathered.

    `fully_shard` keeps those of the outermost module gathered until the backward pass, in the
    precision that it computes in.
    """
    if not is_initialized():
        return
    from torch.distributed.fsdp import FSDPModule

    for module in network.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def sum_of_squares(pairs: Iterable[tuple[Tensor, Tensor | None]]) -> Tensor:
    """Return `sum (now - then)^2`, where nothing is subtracted for None.

    For sharded parameters the value is summed over all shards, and each shard has its own gradient:
    gradients of processes are neither added nor averaged.

    Args:
        pairs: parameters, each with a tensor that is sharded in the same way, or None.
    """
    sums: dict[object, list[Tensor]] = {None: []}
    layouts: dict[object, DTensor] = {}
    for now, then in pairs:
        layout: object = None
        sharded = _as_dtensor(now)
        if sharded is not None:
            layout = (sharded.device_mesh, sharded.placements)
            layouts[layout] = sharded
        mine = _local(now) if then is None else _local(now) - _local(then)
        sums.setdefault(layout, []).append(mine.square().sum())
    plain = sums.pop(None)
    totals = [torch.stack(plain).sum()] if plain else []
    totals += [_sum_over_shards(terms, layouts[layout]) for layout, terms in sums.items()]
    return totals[0] if len(totals) == 1 else torch.stack(totals).sum()


def shard_like(whole: Tensor, like: "DTensor") -> Tensor:
    """Shard a tensor that each process has in full like another, without communication."""
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def _as_dtensor(tensor: Tensor) -> "DTensor | None":
    if not is_initialized():
        return None
    from torch.distributed.tensor import DTensor

    return tensor if isinstance(tensor, DTensor) else None


def _local(tensor: Tensor) -> Tensor:
    sharded = _as_dtensor(tensor)
    return tensor if sharded is None else sharded.to_local()


def _sum_over_shards(terms: list[Tensor], like: "DTensor") -> Tensor:
    """Return the sum over all shards, with the gradient of this process's shard."""
    from torch.distributed.tensor import DTensor, Partial

    own = torch.stack(terms).sum()
    placements = [Partial() if place.is_shard() else place for place in like.placements]
    shared = DTensor.from_local(own.detach(), like.device_mesh, placements, run_check=False)
    return own + (shared.full_tensor() - own.detach())


@final
class InitialWeights:
    """Initial values of parameters, sharded like them; each is sharded once."""

    def __init__(self) -> None:
        self._shards: dict[str, tuple[Tensor, Tensor]] = {}

    def matching(self, parameter: Tensor, name: str, source: Tensor) -> Tensor:
        """Return a parameter of the source, sharded like the target's.

        Args:
            parameter: the target's parameter.
            name: the name of both.
            source: the source's parameter, in full or sharded already.
        """
        sharded = _as_dtensor(parameter)
        if sharded is None or _as_dtensor(source) is not None:
            return source.detach()
        if name not in self._shards or self._shards[name][0] is not source:
            self._shards[name] = (source, shard_like(source.detach(), sharded))
        return self._shards[name][1]
