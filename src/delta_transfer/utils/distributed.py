"""Several processes that train one network together: who they are, and what they tell each other.

Alone, each of these functions does what it says of a group of one, and nothing is initialised. What
they tell each other goes over gloo, from memory to memory; NCCL is left to the network's gradients.
"""

import datetime
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from delta_transfer.errors import UserError

T = TypeVar("T")

TIMEOUT = datetime.timedelta(hours=6)  # while the main process does something alone


def world_size() -> int:
    """How many there are; 1 outside of a group."""
    return torch.distributed.get_world_size() if is_initialized() else 1


def rank() -> int:
    """Which of them this one is, from 0."""
    return torch.distributed.get_rank() if is_initialized() else 0


def is_rank_zero() -> bool:
    """Whether this is the one that writes files and logs."""
    return rank() == 0


def is_initialized() -> bool:
    """Whether this process belongs to a group at all, be it one of its own."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def init_process_group(
    find_device_type: Callable[[], str], *, devices: int | str = 1, num_nodes: int = 1
) -> Iterator[None]:
    """Inside, this process is one of those that the environment tells of, if it tells of several.

    Those are processes of torchrun (or of anything that sets its variables) and of SLURM. All but
    the main one log nothing.

    Args:
        find_device_type: tells the kind of device that they compute on, if there are several.
        devices: how many processes a node was asked for; 1 and `"auto"` are content with any.
        num_nodes: likewise of the nodes; 1 is content with any.

    Raises:
        UserError: if there are others than were asked for.
    """
    if world_size_from_env() == 1 or is_initialized():
        yield
        return
    _check_asked(devices, num_nodes)
    kind = find_device_type()
    if kind == "cuda":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo", timeout=TIMEOUT
    )
    log = logging.getLogger("delta_transfer")
    level = log.level
    try:
        if not is_rank_zero():
            log.setLevel(logging.CRITICAL)
        yield
    finally:
        log.setLevel(level)
        torch.distributed.destroy_process_group()


def world_size_from_env() -> int:
    """How many processes the environment tells of; SLURM's variables are put as torchrun's."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        _translate_slurm()
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def local_world_size() -> int:
    """How many of them are on this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", world_size()))


def _translate_slurm() -> None:
    if int(os.environ.get("SLURM_NTASKS", "1")) == 1 or "SLURM_PROCID" not in os.environ:
        return
    from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

    slurm = SLURMEnvironment()
    if not slurm.detect():  # a shell in an allocation, outside of srun
        return
    nodes = int(os.environ.get("SLURM_NNODES", "1"))
    os.environ |= {
        "RANK": str(slurm.global_rank()),
        "WORLD_SIZE": str(slurm.world_size()),
        "LOCAL_RANK": str(slurm.local_rank()),
        "LOCAL_WORLD_SIZE": str(slurm.world_size() // nodes),
        "GROUP_RANK": str(slurm.node_rank()),
        "MASTER_ADDR": slurm.main_address,
        "MASTER_PORT": str(slurm.main_port),
    }


def _check_asked(devices: int | str, num_nodes: int) -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", world_size_from_env()))
    nodes = world_size_from_env() // local
    for flag, asked, there in (("--devices", devices, local), ("--num-nodes", num_nodes, nodes)):
        if asked not in (1, "auto", there):
            raise UserError(
                f"{flag} {asked}, but torchrun or SLURM has started {there}: leave the option out"
            )


def run_on_main_and_broadcast(make: Callable[[], T]) -> T:
    """What the main process makes, for all of them; the others wait.

    Raises:
        UserError: in all of them, if it is raised in the main one.
    """
    if world_size() == 1:
        return make()
    told: list[Any] = [None, None]
    if is_rank_zero():
        try:
            told[0] = make()
        except UserError as error:
            told[1] = error
    torch.distributed.broadcast_object_list(told, src=0, device=torch.device("cpu"))
    if told[1] is not None:
        raise told[1]
    made: T = told[0]
    return made


@contextmanager
def first_on_each_node() -> Iterator[None]:
    """One process of each node runs what is inside before the others do, for example a download."""
    first = int(os.environ.get("LOCAL_RANK", "0")) == 0
    if world_size() > 1 and not first:
        all_gather(None)
    yield
    if world_size() > 1 and first:
        all_gather(None)


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """The main process runs what is inside before the others do."""
    if world_size() > 1 and not is_rank_zero():
        all_gather(None)
    yield
    if world_size() > 1 and is_rank_zero():
        all_gather(None)


def all_gather(own: T) -> list[T]:
    """What each process gives, in their order; tensors have to be on the CPU."""
    if world_size() == 1:
        return [own]
    found: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(found, own)
    return found


def all_reduce_mean(values: Sequence[float]) -> list[float]:
    """The mean over processes of each of some numbers."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(tensor)
    return (tensor / world_size()).tolist()


def all_reduce_any(*flags: bool) -> list[bool]:
    """Whether each of some flags is set in any process."""
    return [share > 0 for share in all_reduce_mean([float(flag) for flag in flags])]


def shard_and_gather(
    count: int, size: int, make: Callable[[Sequence[int]], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """What is made of samples, of which each process takes its share of whole batches.

    So that each batch is one that a single process would have had, to the last bit.

    Args:
        count: of all samples.
        size: of a batch.
        make: makes rows, one a sample, on the CPU, of samples at some positions.

    Returns:
        The rows of all samples, in their order.
    """
    if world_size() == 1:
        return make(range(count))
    own = local_sample_indices(count, size)
    found = [part for part in all_gather((own, make(own) if own else None)) if part[1] is not None]
    order = torch.tensor([position for positions, _ in found for position in positions])
    back = order.argsort()
    return tuple(torch.cat(rows)[back] for rows in zip(*(rows for _, rows in found), strict=True))


def local_sample_indices(count: int, size: int) -> list[int]:
    """The positions of the samples in every n-th batch, n being the number of processes."""
    starts = range(rank() * size, count, world_size() * size)
    return [place for start in starts for place in range(start, min(start + size, count))]
