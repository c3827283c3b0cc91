"""What `test_distributed` runs in two processes: a run on tiny images."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from delta_transfer import train
from delta_transfer.data.images.decode import ImageError
from delta_transfer.data.task import Split, TaskData
from delta_transfer.errors import UserError
from delta_transfer.runs.preparation.prepare import prepare
from delta_transfer.runs.run import train_prepared
from delta_transfer.training.distributed import shard
from delta_transfer.training.loaders import resizes_by_split
from delta_transfer.training.module import FineTuneModule
from delta_transfer.utils.distributed import all_gather, init_process_group, is_rank_zero, rank
from tests.networks import conv_net
from tests.run_folders import tiny
from tests.runs.test_plan import SPEC


def train_tiny(data: str, out: str, epochs: str) -> None:
    """Trains; what another process makes is waited for."""
    train(tiny(Path(data), Path(out), epochs=int(epochs)))


def train_sharded(data: str, out: str, method: str) -> None:
    """Trains with sharded weights; `small` is a network of its own.

    Of each weight, its gradient and its moments each process has a part, and both have the whole.
    """
    seen = []

    def look(module: FineTuneModule, optimizer: torch.optim.Optimizer) -> None:
        own = {name: p for name, p in module.network.named_parameters() if p.requires_grad}
        assert all(isinstance(p, DTensor) and isinstance(p.grad, DTensor) for p in own.values())
        kept = [tensor for p in own.values() for tensor in (p, p.grad)]
        kept += [v for p in own.values() for v in optimizer.state[p].values() if v.shape == p.shape]
        count = sum(tensor.to_local().numel() for tensor in kept)
        whole = sum(tensor.numel() for tensor in kept)
        assert sum(all_gather(count)) == whole
        assert 0.3 < count / whole < 0.7
        units = [name for name, m in module.network.named_modules() if isinstance(m, FSDPModule)]
        seen.append(len(units))

    small = {"method": "l2", "lr": 1e-3}
    options = small if method == "small" else {"method": method}
    config = tiny(Path(data), Path(out), strategy="fsdp", **options)
    with pytest.MonkeyPatch.context() as patch, init_process_group("cpu"):
        check_the_main_one_s_weights()
        patch.setattr(FineTuneModule, "on_before_optimizer_step", look)
        if method == "small":
            assert train(config, network=conv_net(), spec=SPEC).epochs > 0
        else:
            train(config)
            assert min(seen) > 10  # blocks by themselves
    assert seen


def check_the_main_one_s_weights() -> None:
    """Networks that differ are sharded to one, also where the strides are not those of shards."""
    network = conv_net(seed=rank()).to(memory_format=torch.channels_last)
    shard(network, ["fc"], device_type="cpu")
    whole = {
        name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        for name, tensor in network.state_dict().items()
    }
    torch.testing.assert_close(whole, dict(conv_net(seed=0).state_dict()), rtol=0, atol=0)


def refused(folder: str) -> None:
    """Each process is told why nothing can be written into a folder that is locked meanwhile."""
    nothing = Split(("a",), (0,), Image.open)
    prepared: Any = SimpleNamespace(
        device=torch.device("cpu"),
        task=TaskData(name="images", classes=("a", "b"), train=nothing, val=nothing, test=None),
        backbone=SimpleNamespace(classifier=None),
    )
    config = tiny(Path("images"), Path(folder), method="probe")
    with (
        init_process_group("cpu"),
        pytest.raises(UserError, match=f"is writing to {folder}: wait"),
    ):
        train_prepared(prepared, config, Path(folder), started=time.perf_counter())


def apart(root: str) -> None:
    """Each process has its own images and its own cache, as on a machine of its own."""
    rank, folder = os.environ["RANK"], Path(root)
    os.environ["DELTA_TRANSFER_CACHE"] = str(folder / f"cache{rank}")
    with init_process_group("cpu"):
        config = tiny(folder / f"data{rank}", folder / "out")
        task = prepare(config, network=conv_net(), spec=SPEC).task
        all_gather(None)
        if is_rank_zero():
            shutil.rmtree(folder / "data1")
        all_gather(None)
        (resize,) = resizes_by_split(SPEC, config, val_drawn=False)["test"]
        assert task.test is not None
        assert task.test.image_cache is not None
        path = task.test.paths[0]
        assert task.test.image_cache.has(path, resize)  # which both see here
        if is_rank_zero():
            task.test.read(path)
        else:
            with pytest.raises(ImageError, match="data1"):
                task.test.read(path)


def unlike(root: str) -> None:
    """One of the machines lacks an image."""
    folder = Path(root)
    with init_process_group("cpu"):
        config = tiny(folder / f"data{os.environ['RANK']}", folder / "out")
        with pytest.raises(UserError, match=r"train/checks/0\.png not found on"):
            prepare(config, network=conv_net(), spec=SPEC)
