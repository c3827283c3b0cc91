"""Process groups for distributed training: setup, ranks, and collectives on Python objects.

Outside of a group all functions work as in a group of one, and nothing is initialised. Objects are
exchanged over gloo, on the CPU; NCCL carries the gradients alone.
"""

import datetime
import logging
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from delta_transfer.errors import ConfigError

T = TypeVar("T")

_TIMEOUT = datetime.timedelta(hours=6)  # the main process may prepare data alone


def world_size() -> int:
    """Return the number of processes; 1 outside of a group."""
    return torch.distributed.get_world_size() if is_initialized() else 1


def rank() -> int:
    """Return the index of this process; 0 outside of a group."""
    return torch.distributed.get_rank() if is_initialized() else 0


def is_rank_zero() -> bool:
    """Return True in the process that writes files and logs."""
    return rank() == 0


def is_initialized() -> bool:
    """Return True if this process belongs to a group, which may have one member."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


@contextmanager
def init_process_group(
    device_type: str, *, devices: int | str = 1, num_nodes: int = 1
) -> Iterator[None]:
    """Join the process group that torchrun or SLURM describes in the environment, if there is one.

    Only the main process logs.

    Args:
        device_type: type of the device to compute on.
        devices: requested processes per node; 1 and `"auto"` accept any number.
        num_nodes: requested nodes; 1 accepts any number.

    Raises:
        ConfigError: if torchrun or SLURM has started another number.
    """
    if _world_size_from_env() == 1 or is_initialized():
        yield
        return
    _check_requested(devices, num_nodes)
    if device_type == "cuda":
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo", timeout=_TIMEOUT
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


def _world_size_from_env() -> int:
    """Return the number of processes in the environment; translate SLURM's to torchrun's."""
    if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        _translate_slurm()
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def local_world_size() -> int:
    """Return the number of processes on this node."""
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


def _check_requested(devices: int | str, num_nodes: int) -> None:
    local = int(os.environ.get("LOCAL_WORLD_SIZE", _world_size_from_env()))
    nodes = _world_size_from_env() // local
    for name, value, started in (("devices", devices, local), ("num_nodes", num_nodes, nodes)):
        if value not in (1, "auto", started):
            raise ConfigError(
                f"`{name}={value}`, but torchrun or SLURM has started {started}: leave the "
                "option out"
            )


def run_on_main_and_broadcast(function: Callable[[], T]) -> T:
    """Run a function in the main process and return its result in all of them.

    An error in it is raised in all of them: none waits for a result that never comes.
    """
    if world_size() == 1:
        return function()
    sent: list[Any] = [None, None]  # the result, pickled before the others wait for it, or an error
    error: Exception | None = None
    if is_rank_zero():
        try:
            result = function()
            sent[0] = pickle.dumps(result)
        except Exception as caught:
            error, sent[1] = caught, _picklable(caught)
    torch.distributed.broadcast_object_list(sent, src=0, device=torch.device("cpu"))
    if error is not None:
        raise error  # itself, with its traceback
    if is_rank_zero():
        return result
    content, error = sent
    if error is not None:
        raise error
    received: T = pickle.loads(content)  # nosec B301  # from the main process of this run
    return received


@contextmanager
def first_on_each_node() -> Iterator[None]:
    """Run the body in one process of each node before the others, for example a download."""
    with _before_the_others(first=int(os.environ.get("LOCAL_RANK", "0")) == 0):
        yield


@contextmanager
def rank_zero_first() -> Iterator[None]:
    """Run the body in the main process before the others."""
    with _before_the_others(first=is_rank_zero()):
        yield


@contextmanager
def _before_the_others(*, first: bool) -> Iterator[None]:
    """Run the body in some processes first; an error there is raised in all."""
    if not first:
        _raise_any(all_gather(None))
        yield
        return
    try:
        yield
    except Exception as error:
        all_gather(_picklable(error))
        raise
    _raise_any(all_gather(None))


def _raise_any(errors: Sequence[Exception | None]) -> None:
    for error in errors:
        if error is not None:
            raise error


def _picklable(error: Exception) -> Exception:
    """Return the error, or one with its type and text where it cannot be sent."""
    try:
        pickle.loads(pickle.dumps(error))  # nosec B301  # our own bytes
    except Exception:  # pickling may fail in any way
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def all_gather(own: T) -> list[T]:
    """Return the objects of all processes, by rank; tensors have to be on the CPU."""
    if world_size() == 1:
        return [own]
    gathered: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(gathered, own)
    return gathered


def all_reduce_mean(values: Sequence[float]) -> list[float]:
    """Return the mean over processes of each number."""
    if world_size() == 1:
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64)
    torch.distributed.all_reduce(tensor)
    return (tensor / world_size()).tolist()


def all_reduce_any(*flags: bool) -> list[bool]:
    """Return, for each flag, True if it is set in any process."""
    return [mean > 0 for mean in all_reduce_mean([float(flag) for flag in flags])]


def shard_and_gather(
    count: int, size: int, make: Callable[[Sequence[int]], tuple[Tensor, ...]]
) -> tuple[Tensor, ...]:
    """Compute rows for samples, a shard of whole batches in each process, and gather them.

    Batches are those of a single process, so that results are the same to the last bit.

    Args:
        count: number of samples.
        size: samples in a batch.
        make: returns tensors on the CPU with one row per sample index that it is passed.

    Returns:
        The rows of all samples, in order of their indices.
    """
    if world_size() == 1:
        return make(range(count))
    own = local_sample_indices(count, size)
    shards = all_gather((own, make(own) if own else None))
    order = torch.tensor([index for indices, _ in shards for index in indices]).argsort()
    rows = zip(*(rows for _, rows in shards if rows is not None), strict=True)
    return tuple(torch.cat(parts)[order] for parts in rows)


def local_sample_indices(count: int, size: int) -> list[int]:
    """Return the indices of the samples in every n-th batch, for n processes."""
    starts = range(rank() * size, count, world_size() * size)
    return [index for start in starts for index in range(start, min(start + size, count))]
