"""A DataLoader that moves bytes to the device and normalises them there."""

import signal
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class DeviceDataLoader(DataLoader[Any]):
    """A DataLoader whose batches are normalised on their device.

    Images are bytes until then, so that only a quarter of the data is moved, and workers have less
    to do.

    Args:
        dataset: returns bytes `[..., 3, S, S]`, or graphs, with a label or the like.
        normalise: applied to the inputs of a batch.
        device: of the inputs.
        options: of DataLoader.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        *,
        normalise: Callable[[Tensor], Tensor],
        device: torch.device,
        **options: Any,
    ) -> None:
        self.normalise = normalise
        self.device = device
        super().__init__(
            dataset,
            # Its own, so that drawing the workers' seeds leaves the global random state alone.
            generator=torch.Generator(),
            pin_memory=device.type == "cuda",
            **options,
        )

    def __iter__(self) -> Any:
        """Iterate over the batches; only inputs are moved."""
        return map(self._preprocess_batch, super().__iter__())

    def preprocess(self, inputs: Tensor) -> Tensor:
        """Return the inputs of a batch as the network takes them."""
        return self.normalise(inputs.to(self.device, non_blocking=True))

    def _preprocess_batch(self, batch: Sequence[Any]) -> tuple[Tensor, Any]:
        inputs, rest = batch
        return self.preprocess(inputs), rest


def ignore_stops(worker_id: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach all processes: workers end with the main one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
