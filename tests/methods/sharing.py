"""What `test_sharing` runs in two processes: training with penalties, shared out both ways."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from delta_transfer import L2, L2SP, Delta, Regularizer
from delta_transfer.methods import Penalty
from delta_transfer.methods.penalty import Reduction
from delta_transfer.training.distributed import all_reduce_loss
from delta_transfer.utils.distributed import init_process_group, rank, world_size
from tests.networks import conv_net, moved

STEPS = 4
WAYS = ("ddp", "fully_shard")


def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(5)
    return [
        (torch.randn(8, 3, 12, 12, generator=generator), torch.arange(8) % 3) for _ in range(STEPS)
    ]


def penalties() -> dict[str, list[Penalty]]:
    def delta() -> Penalty:
        return Delta(taps=("conv2", "conv3"), strength=2.0)

    return {
        "l2": [L2("*", strength=0.3)],
        "l2sp": [L2SP(strength=0.5)],
        "delta": [delta()],
        "all": [delta(), L2SP(strength=0.1), L2("fc", strength=0.2)],
    }


def shard(network: nn.Module) -> nn.Module:
    """The largest layers by themselves, as is usual, and the rest with the network itself."""
    fully_shard(network.conv2)
    fully_shard(network.conv3)
    fully_shard(network)
    return network


def train(name: str, way: str) -> tuple[list[list[float]], dict[str, torch.Tensor]]:
    """The terms of each step, and the weights in the end; of the joint batch for `"alone"`."""
    source = conv_net()
    network = moved(source)
    wrapped = {
        "alone": lambda: network,
        "ddp": lambda: DistributedDataParallel(network),
        "fully_shard": lambda: shard(network),
    }[way]()
    share = slice(None) if way == "alone" else slice(rank(), None, world_size())
    rows = []
    with Regularizer(wrapped, source, penalties()[name]) as regularizer:
        regularizer.calibrate([inputs[share] for inputs, _ in batches()])
        optimizer = torch.optim.SGD(wrapped.parameters(), lr=0.005, momentum=0.9)
        for inputs, targets in batches():
            wrapped.train()
            network.drop.eval()
            task = F.cross_entropy(wrapped(inputs[share]), targets[share])
            terms = regularizer(inputs[share])
            optimizer.zero_grad()
            (task + terms.total).backward()
            optimizer.step()
            rows.append([float(value.detach()) for value in (task, *terms.values.values())])
    weights = {
        key: value.detach().full_tensor() if isinstance(value, DTensor) else value.detach()
        for key, value in network.named_parameters()
    }
    return rows, weights


def check() -> None:
    """Each penalty gives what it gives with one process, whichever way the work is shared."""
    torch.set_num_threads(1)
    alone = {name: train(name, "alone") for name in penalties()}
    with init_process_group("cpu"):
        for whole in (8, 5, 1):
            check_uneven(whole)
        for way in WAYS:
            for name, (rows, weights) in alone.items():
                found, moved_to = train(name, way)
                # Terms of features are each process's own, and their mean is that of the batch.
                mean = torch.tensor(found, dtype=torch.float64)
                torch.distributed.all_reduce(mean)
                mean /= world_size()
                expected = torch.tensor(rows, dtype=torch.float64)
                said = f"{name}, {way}: {{}}".format
                torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6, msg=said)
                for key, value in weights.items():
                    torch.testing.assert_close(moved_to[key], value, rtol=1e-5, atol=1e-6, msg=said)
                weights_alone = name in ("l2", "l2sp")
                if weights_alone:  # the whole value in each process, not its share
                    own = torch.tensor(found, dtype=torch.float64)[:, 1]
                    torch.testing.assert_close(own, expected[:, 1], rtol=1e-5, atol=1e-6)


def check_uneven(whole: int) -> None:
    """A batch that cannot be shared evenly, or has no sample for a process at all."""
    torch.manual_seed(3)
    weight = torch.randn(4, 3, requires_grad=True)
    inputs, targets = torch.randn(whole, 4), torch.arange(whole) % 3

    def terms(rows: slice) -> dict[str, torch.Tensor]:
        logits = inputs[rows] @ weight
        return {
            "task": F.cross_entropy(logits, targets[rows]),
            "summed": logits.square().sum(),
            "l2": weight.square().sum(),
        }

    combines: dict[str, Reduction] = {"task": "mean", "summed": "sum", "l2": "weights"}
    joint = terms(slice(None))
    (expected,) = torch.autograd.grad(torch.stack(list(joint.values())).sum(), weight)
    own = len(range(rank(), whole, world_size()))
    mine = terms(slice(rank(), None, world_size()) if own else slice(1))
    total, values = all_reduce_loss(mine, combines, local_samples=own, global_samples=whole)
    (gradient,) = torch.autograd.grad(total, weight)
    torch.distributed.all_reduce(gradient)
    torch.testing.assert_close(gradient / world_size(), expected, rtol=1e-5, atol=1e-6)
    for name, value in joint.items():
        torch.testing.assert_close(values[name], value.detach(), rtol=1e-5, atol=1e-6)
