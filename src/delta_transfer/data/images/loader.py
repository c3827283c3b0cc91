"""Batches: images are loaded as bytes, made numbers on the device where they are used."""

import signal
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class DeviceDataLoader(DataLoader[Any]):
    """A DataLoader whose batches are normalised at once, on their device.

    Of images, which are bytes until then, a quarter of the data is moved, and processes that load
    have less to do. Graphs need no more than to be moved.

    Args:
        dataset: gives bytes `[..., 3, S, S]`, or graphs, and what stands beside them.
        normalise: what becomes of the inputs of a batch.
        device: where that happens.
        options: those of DataLoader.
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
        """The batches; what stands beside the inputs stays where it is."""
        return map(self._preprocess_batch, super().__iter__())

    def preprocess(self, inputs: Tensor) -> Tensor:
        """The inputs of a batch as the network takes them."""
        return self.normalise(inputs.to(self.device, non_blocking=True))

    def _preprocess_batch(self, batch: Sequence[Any]) -> tuple[Tensor, Any]:
        inputs, beside = batch
        return self.preprocess(inputs), beside


def ignore_stops(worker_id: int) -> None:
    """Ctrl-C and SIGTERM reach a group of processes; those that load follow the main one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
