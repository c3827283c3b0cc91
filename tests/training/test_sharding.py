"""Training with sharded weights: the figures, the files and the weights of one process."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from delta_transfer import train
from delta_transfer.errors import UserError
from delta_transfer.training.distributed import find_fsdp_units
from tests.networks import conv_net
from tests.run_folders import flags, tiny
from tests.runs.test_plan import SPEC
from tests.runs.test_resume import left_in, traces
from tests.several import run
from tests.utils.test_distributed import COMMAND, check_same_results, wait_for_epoch


class Block(nn.Sequential):
    """With a pass of its own, so that it is no mere sequence."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows + super().forward(rows)


def block() -> Block:
    return Block(nn.Linear(4, 4), nn.GELU())


class Network(nn.Module):
    """Blocks that are called in all the ways in which networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 4)
        self.sequence = nn.Sequential(block(), nn.Sequential(block()))
        self.several = nn.ModuleList([block(), block()])
        self.shared = block()
        self.opened = block()
        self.unused = block()
        self.empty = Block(nn.GELU())

    def forward(self, rows: Tensor) -> Tensor:
        rows = self.sequence[1](self.sequence[0](self.stem(rows)))
        for one in self.several:
            rows = one(rows)
        rows = self.shared(self.shared(rows))
        return self.empty(nn.functional.linear(rows, self.opened[0].weight))


def test_units_are_blocks_that_are_called_as_such():
    network = Network().train()
    units = find_fsdp_units(network, torch.zeros(1, 4))
    assert units == ("sequence.0", "sequence.1.0", "several.0", "several.1")
    assert network.training
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_a_weight_without_dimensions_is_named():
    network = nn.Linear(2, 2)
    network.scale = nn.Parameter(torch.ones(()))
    with pytest.raises(UserError, match="`strategy=fsdp`: scale is a scalar"):
        find_fsdp_units(network, torch.zeros(1, 2))


def check_same_states(run: Path, other: Path) -> None:
    """Whole weights and moments, in the same form."""
    found, wanted = (
        torch.load(one / "checkpoints" / "last.ckpt", weights_only=True) for one in (run, other)
    )
    assert found.keys() == wanted.keys()
    for part, atol in (("state_dict", 1e-5), ("optimizer_states", 1e-4)):  # gradients are larger
        torch.testing.assert_close(found[part], wanted[part], rtol=1e-3, atol=atol)


@pytest.mark.slow
def test_sharded_weights_are_trained_to_those_of_one_process(images, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    run("train_sharded", images, two, "small", module="tests.sharded_runs")
    train(tiny(images, one, method="l2", lr=1e-3), network=conv_net(), spec=SPEC)
    check_same_results(two, one)
    check_same_states(two, one)
    assert left_in(two) == left_in(one)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["l2", "l2sp", "delta"])
def test_so_are_those_of_a_network_with_blocks(images, tmp_path, method):
    one, two = tmp_path / "one", tmp_path / "two"
    run("train_sharded", images, two, method, module="tests.sharded_runs")
    train(tiny(images, one, method=method))
    check_same_results(two, one)
    check_same_states(two, one)
    assert left_in(two) == left_in(one)


def start(images: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [*COMMAND, str(images), f"--out={out}", *flags(epochs=6, method="l2sp"), *more]
    environment = {**os.environ, "DELTA_TRANSFER_CACHE": os.devnull}
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def finish(started: subprocess.Popen[str]) -> str:
    _, said = started.communicate(timeout=200)
    assert started.returncode == 0, said
    return said


@pytest.mark.slow
@pytest.mark.usefixtures("ctrl_c")
def test_stopped_it_goes_on_in_shards_or_whole(images, tmp_path):
    sharded = ["--devices=2", "--strategy=fsdp"]
    whole, out, alone = tmp_path / "whole", tmp_path / "out", tmp_path / "alone"
    finish(start(images, whole, *sharded))
    started = start(images, out, *sharded)
    wait_for_epoch(out, started, 3)
    started.send_signal(signal.SIGINT)
    _, said = started.communicate(timeout=60)
    assert started.returncode == 1
    assert "to resume" in said
    shutil.copytree(out, alone)
    assert "resuming in epoch" in finish(start(images, out, *sharded, "--resume"))
    assert traces(out) == traces(whole)
    assert "resuming in epoch" in finish(start(images, alone, "--resume"))
    check_same_results(alone, whole)
