import mmap
import sys

import pytest
import torch

from delta_transfer.utils import memory as module
from delta_transfer.utils.memory import PeakMemory

CPU = torch.device("cpu")


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not forget a peak")
def test_it_is_the_peak_since_creation():
    before = PeakMemory(CPU)
    start = before.mib
    with mmap.mmap(-1, 100 * module.MIB) as fresh:  # memory that this process has not used before
        for _ in range(100):
            fresh.write(bytes(module.MIB))
    assert 90 < before.mib - start < 130
    assert PeakMemory(CPU).mib < start + 50


@pytest.mark.parametrize(("platform", "unit"), [("darwin", 2**20), ("freebsd", 2**10)])
def test_other_systems_say_it_in_units_of_their_own(monkeypatch, platform, unit):
    import resource

    class Usage:
        ru_maxrss = 300 * unit

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(resource, "getrusage", lambda who: Usage)
    assert PeakMemory(CPU).mib == 300


def test_where_the_system_does_not_say_it_is_0(monkeypatch):
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert PeakMemory(CPU).mib == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_it_is_that_of_tensors():
    gpu = torch.device("cuda")
    large = torch.ones(64, module.MIB // 4, device=gpu)
    del large
    memory = PeakMemory(gpu)
    tensor = torch.ones(8, module.MIB // 4, device=gpu)
    assert 8 <= memory.mib < 32
    del tensor
    assert 8 <= memory.mib < 32
