"""The device that a run is on, and how a network is put there."""

import joblib
import torch
from torch import nn

from delta_transfer.errors import UserError


def find_device(name: str) -> torch.device:
    """The device of that name; `"auto"` is the accelerator if there is one.

    Raises:
        UserError: if this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu" or (name == "auto" and accelerator is None):
        return torch.device("cpu")
    if name == "auto" and accelerator is not None and accelerator.type not in ("cuda", "mps"):
        return torch.device("cpu")
    if accelerator is None or name not in ("auto", accelerator.type):
        found = "only a CPU" if accelerator is None else f"cpu and {accelerator.type}"
        raise UserError(f"--device {name}: this machine has {found}; leave the option out")
    return accelerator


def move_to_device(network: nn.Module, device: torch.device) -> None:
    """Moves a network to its device, in the memory layout in which convolutions are fastest."""
    network.to(device)
    network.to(memory_format=torch.channels_last)


def cpu_count() -> int:
    """How many cores this process may use, of which a container may allow fewer than there are."""
    return int(joblib.cpu_count())
