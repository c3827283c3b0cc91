"""The device to compute on, and the number of CPU cores."""

import joblib
import torch
from torch import nn

from delta_transfer.errors import EnvironmentError


def find_device(name: str) -> torch.device:
    """Return the device of a name; `"auto"` is the accelerator if there is one, else the CPU.

    Raises:
        EnvironmentError: if this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu" or (name == "auto" and accelerator is None):
        return torch.device("cpu")
    if name == "auto" and accelerator is not None and accelerator.type not in ("cuda", "mps"):
        return torch.device("cpu")
    if accelerator is None or name not in ("auto", accelerator.type):
        found = "only a CPU" if accelerator is None else f"cpu and {accelerator.type}"
        raise EnvironmentError(f"`device={name}`: this machine has {found}; leave the option out")
    return accelerator


def move_to_device(network: nn.Module, device: torch.device) -> None:
    """Move a network to a device, in the memory layout that is fastest for convolutions."""
    network.to(device)
    network.to(memory_format=torch.channels_last)


def cpu_count() -> int:
    """Return the number of cores this process may use, which a container may limit."""
    return int(joblib.cpu_count())
