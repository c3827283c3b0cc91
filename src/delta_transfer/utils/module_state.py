"""Context managers that restore a module's state or global settings, also after an exception."""

import contextlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from delta_transfer.errors import ConfigError
from delta_transfer.utils.files import fingerprint


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Put a network in eval mode; restore each module's own train flag afterwards."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextlib.contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """Switch `requires_grad` off for all parameters; restore each flag afterwards."""
    flags = {parameter: parameter.requires_grad for parameter in model.parameters()}
    for parameter in flags:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, requires_grad in flags.items():
            parameter.requires_grad_(requires_grad)


@contextlib.contextmanager
def preserve_random_state(model: nn.Module) -> Iterator[None]:
    """Restore the global random states afterwards.

    Those are Python's, NumPy's, and torch's on the CPU and on the devices of the network's
    parameters.
    """
    devices = {p.device for p in model.parameters() if p.device.type not in ("cpu", "meta")}
    kind = next(iter(devices)).type if devices else "cuda"
    python, numpy = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=sorted(devices, key=str), device_type=kind):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


@contextlib.contextmanager
def deterministic_algorithms(enable: bool) -> Iterator[None]:
    """Make torch use deterministic algorithms only; restore its settings afterwards.

    Args:
        enable: False changes nothing.

    Raises:
        ConfigError: if an operation in the body has no deterministic algorithm.
    """
    if not enable:
        yield
        return
    cudnn, name = torch.backends.cudnn, "CUBLAS_WORKSPACE_CONFIG"
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    flags, workspace = (cudnn.deterministic, cudnn.benchmark), os.environ.get(name)
    os.environ.setdefault(name, ":4096:8")  # without which cuBLAS refuses
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        reason = str(error).split(".")[0]
        raise ConfigError(
            f"`deterministic`: {reason}: leave the option out, or use `device=cpu`, where every "
            "run is deterministic"
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            os.environ.pop(name, None)


def device_of(model: nn.Module) -> torch.device:
    """Return the device of the network's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def weights_fingerprint(model: nn.Module, *, head: str) -> str:
    """Return the SHA-256 of a network's parameters and buffers without those of its head."""
    state = model.state_dict()
    chunks: list[bytes | memoryview] = []
    for name in sorted(state):
        if name != head and not name.startswith(f"{head}."):
            tensor = state[name].detach().cpu().contiguous()
            chunks += [name.encode(), memoryview(tensor.flatten().view(torch.uint8).numpy())]
    return fingerprint(chunks)
