"""Borrow a network and give it back as it was, also after an exception."""

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
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
def same_random_state(model: nn.Module) -> Iterator[None]:
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


def device_of(model: nn.Module) -> torch.device:
    """The device of the network's first parameter or buffer; the CPU if it has none."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")
