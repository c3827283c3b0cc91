"""What `test_distributed` runs in two processes: a run on tiny pictures."""

from pathlib import Path

from delta_transfer import train
from tests.runs import tiny


def train_tiny(data: str, out: str, epochs: str) -> None:
    """Trains; what another process makes is waited for."""
    train(tiny(Path(data), Path(out), epochs=int(epochs)))
