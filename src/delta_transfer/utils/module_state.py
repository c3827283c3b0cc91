"""Borrow a network and give it back as it was, also after an exception."""

import contextlib
import os
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn

from delta_transfer.errors import UserError
from delta_transfer.utils.files import fingerprint


@contextlib.contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Puts the network in eval mode; afterwards each module has its own train flag again."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training


@contextlib.contextmanager
def without_parameter_gradients(model: nn.Module) -> Iterator[None]:
    """No parameter requires a gradient inside; afterwards each has its own flag again."""
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
    """Whatever is drawn inside, the global random states are the old ones afterwards.

    Covers Python, NumPy, and torch on the CPU and on the devices that the network's parameters are
    on.
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
    """Inside, torch runs no algorithm whose results vary; afterwards its settings are the old ones.

    Args:
        enable: False changes nothing.

    Raises:
        UserError: if there is no other algorithm for something that runs inside.
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
        what = str(error).split(".")[0]
        raise UserError(
            f"--deterministic: {what}: leave the option out, or give --device cpu, where every run "
            "is deterministic"
        ) from error
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = flags
        if workspace is None:
            os.environ.pop(name, None)


def device_of(model: nn.Module) -> torch.device:
    """The device of the network's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def weights_fingerprint(model: nn.Module, *, head: str) -> str:
    """SHA-256 of a network's parameters and buffers, those of its head left out."""
    state = model.state_dict()
    chunks: list[bytes | memoryview] = []
    for name in sorted(state):
        if name != head and not name.startswith(f"{head}."):
            tensor = state[name].detach().cpu().contiguous()
            chunks += [name.encode(), memoryview(tensor.flatten().view(torch.uint8).numpy())]
    return fingerprint(chunks)
