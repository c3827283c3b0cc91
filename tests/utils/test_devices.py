import pytest
import torch
from torch import nn

from delta_transfer.errors import EnvironmentError
from delta_transfer.utils.devices import find_device, move_to_device


def test_a_missing_device_is_rejected(monkeypatch):
    def machine(kind: str | None):
        device = None if kind is None else torch.device(kind)
        monkeypatch.setattr(
            torch.accelerator, "current_accelerator", lambda check_available: device
        )

    machine(None)
    assert find_device("auto") == find_device("cpu") == torch.device("cpu")
    with pytest.raises(EnvironmentError, match="`device=cuda`: this machine has only a CPU"):
        find_device("cuda")
    machine("cuda")
    assert find_device("auto") == find_device("cuda") == torch.device("cuda")
    assert find_device("cpu") == torch.device("cpu")
    with pytest.raises(EnvironmentError, match="`device=mps`: this machine has cpu and cuda"):
        find_device("mps")
    machine("xpu")  # which is not supported
    assert find_device("auto") == torch.device("cpu")


def test_a_network_is_placed_in_channels_last():
    network = nn.Conv2d(3, 4, 3)
    move_to_device(network, torch.device("cpu"))
    assert network.weight.is_contiguous(memory_format=torch.channels_last)
