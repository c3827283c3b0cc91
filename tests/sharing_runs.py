"""What `test_distributed` runs in two processes: a run on tiny pictures."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from delta_transfer import train
from delta_transfer.distributed import joined
from delta_transfer.errors import UserError
from delta_transfer.run import train_prepared
from tests.runs import tiny


def train_tiny(data: str, out: str, epochs: str) -> None:
    """Trains; what another process makes is waited for."""
    train(tiny(Path(data), Path(out), epochs=int(epochs)))


def refused(folder: str) -> None:
    """Each process is told why nothing can be written into a folder that is locked meanwhile."""
    prepared: Any = SimpleNamespace(
        device=torch.device("cpu"),
        task=SimpleNamespace(train=[None]),
        backbone=SimpleNamespace(classifier=None),
    )
    config = tiny(Path("pictures"), Path(folder), method="probe")
    with joined(lambda: "cpu"), pytest.raises(UserError, match=f"writes into {folder}: wait until"):
        train_prepared(prepared, config, Path(folder), started=time.perf_counter())
