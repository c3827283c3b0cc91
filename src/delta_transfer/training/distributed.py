"""Sharded weights by torch's `fully_shard`, and losses of batches split over processes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from delta_transfer.errors import ModelError
from delta_transfer.methods.penalty import Reduction
from delta_transfer.methods.sharded import shard_like
from delta_transfer.utils.distributed import all_reduce_mean, world_size
from delta_transfer.utils.module_state import device_of, eval_mode


class FullyShardStrategy(DDPStrategy):
    """Lightning's DDP strategy with a sharded instead of a replicated network.

    Checkpoints contain whole weights, as those of one process, so that a fit may resume with
    another number of processes. Lightning's own FSDP strategy saves shards, or files without our
    checksums, and needs a GPU. The network is sharded when the fit starts, and stays sharded.

    Args:
        units: names of modules whose weights are gathered when they are called, and freed after;
            all other weights are one more unit.
    """

    def __init__(self, units: Sequence[str]) -> None:
        super().__init__()
        self._units = units

    def configure_ddp(self) -> None:
        """Shard the network, before optimisers are created."""
        assert self.lightning_module is not None
        network = self.lightning_module.get_submodule("network")
        shard(network, self._units, device_type=self.root_device.type)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """Return whole weights; a collective call."""
        state = super().lightning_module_state_dict()
        for name, tensor in state.items():  # in place, to keep its metadata
            state[name] = _whole(tensor)
        return state

    def optimizer_state(self, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Return the whole state; a collective call."""
        state: dict[str, Any] = super().optimizer_state(optimizer)
        moments = {
            place: {name: _whole(value) for name, value in values.items()}
            for place, values in state["state"].items()
        }
        return {**state, "state": moments}

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Load this process's shard of the state."""
        for optimizer, saved in zip(self.optimizers, checkpoint["optimizer_states"], strict=True):
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            moments = {
                place: {name: _shard_of(value, parameters[place]) for name, value in values.items()}
                for place, values in saved["state"].items()
            }
            optimizer.load_state_dict({**saved, "state": moments})


def shard(network: nn.Module, units: Sequence[str], *, device_type: str) -> None:
    """Shard a network over all processes, with the weights of the main one.

    Args:
        network: of the same architecture in all processes.
        units: see `FullyShardStrategy`.
        device_type: type of its device.
    """
    network.to(memory_format=torch.contiguous_format)  # required for sharding
    for tensor in network.state_dict().values():
        torch.distributed.broadcast(tensor, src=0)
    mesh = init_device_mesh(device_type, (world_size(),))
    for name in units:
        fully_shard(network.get_submodule(name), mesh=mesh)
    fully_shard(network, mesh=mesh)


def find_fsdp_units(network: nn.Module, example: Any) -> tuple[str, ...]:
    """Return the names of the outermost blocks, whose weights are sharded together.

    A block is a module with children that a forward pass calls once; sequences are divided into
    their blocks. All other weights belong to the unit of the network itself.

    Args:
        network: outside of contexts that change its weights.
        example: inputs for a forward pass.

    Raises:
        ModelError: if a weight has no dimensions and cannot be sharded.
    """
    for name, parameter in network.named_parameters():
        if not parameter.ndim:
            raise ModelError(
                f"`strategy=fsdp`: {name} is a scalar, which cannot be sharded: leave the "
                "option out, or use another `model`"
            )
    calls: Counter[nn.Module] = Counter()

    def count(module: nn.Module) -> Callable[..., None]:
        return lambda *_: calls.update([module])

    handles = [m.register_forward_pre_hook(count(m)) for m in network.modules()]
    try:
        with eval_mode(network), torch.no_grad():
            network(example.to(device_of(network)))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_blocks(network, "", calls))


def _blocks(parent: nn.Module, prefix: str, calls: Mapping[nn.Module, int]) -> Iterator[str]:
    for name, child in parent.named_children():
        sequence = type(child).forward is nn.Sequential.forward
        has_parts = next(child.children(), None) is not None
        if calls.get(child) == 1 and has_parts and not sequence:
            if next(child.parameters(), None) is not None:
                yield prefix + name
        else:
            yield from _blocks(child, f"{prefix}{name}.", calls)


def _whole(value: Any) -> Any:
    return value.full_tensor().cpu() if isinstance(value, DTensor) else value


def _shard_of(value: Any, parameter: Tensor) -> Any:
    alike = isinstance(value, Tensor) and value.shape == parameter.shape
    return shard_like(value, parameter) if alike and isinstance(parameter, DTensor) else value


def all_reduce_loss(
    terms: Mapping[str, Tensor],
    reductions: Mapping[str, Reduction],
    *,
    local_samples: int,
    global_samples: int,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss to differentiate, and the terms of the whole batch.

    `DistributedDataParallel` averages gradients over processes; with this loss the average is the
    gradient of the whole batch's loss.

    Args:
        terms: of this process's samples.
        reductions: of each term, see `Penalty`.
        local_samples: samples of the batch in this process; with none, its terms have no weight.
        global_samples: samples of the batch.

    Returns:
        A scalar with its graph; and each term, the same in all processes.
    """
    factors = {
        "mean": local_samples * world_size() / global_samples,
        "sum": world_size() if local_samples else 0,
        "weights": 1,
    }
    scaled = [factors[reductions[name]] * term for name, term in terms.items()]
    values = all_reduce_mean(torch.stack([term.detach() for term in scaled]).tolist())
    found = {name: torch.tensor(value) for name, value in zip(terms, values, strict=True)}
    return torch.stack(scaled).sum(), found
