"""Gradient accumulation over micro-batches, more of them if memory runs out."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar, final

import torch
from torch import Tensor

from delta_transfer.errors import EnvironmentError
from delta_transfer.features.inputs import Inputs, split
from delta_transfer.training.checkpoints import random_states, set_random_states

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Batch = tuple[Inputs, Tensor]


@final
class GradientAccumulation:
    """Divides the batch of each step into micro-batches.

    Args:
        num_micro_batches: per step, as far as the batch has enough samples.
        can_split: use more of them if memory runs out.
        sample_type: name of a sample in messages.

    Attributes:
        num_micro_batches: the current number.
    """

    def __init__(
        self, num_micro_batches: int = 1, *, can_split: bool = True, sample_type: str = "image"
    ) -> None:
        self.num_micro_batches = num_micro_batches
        self._can_split = can_split
        self._sample_type = sample_type
        self._micro_batch_size = 0

    def split(self, batch: Batch) -> list[tuple[Batch, float]]:
        """Return the micro-batches of a batch, each with its fraction of the samples."""
        inputs, targets = batch
        size = -(-len(targets) // self.num_micro_batches)
        found = list(zip(split(inputs, size), split(targets, size), strict=True))
        self._micro_batch_size = size
        return [((rows, labels), len(labels) / len(targets)) for rows, labels in found]

    def run(self, step: Callable[[], Result], reset: Callable[[], None]) -> Result:
        """Return the result of a step, repeated with more micro-batches if memory runs out.

        Args:
            step: divides its batch by `split`; called again with the same random state.
            reset: discards what an unfinished step has left.

        Raises:
            EnvironmentError: if memory is too small for one sample, or the batch cannot be divided.
        """
        before = random_states()
        while True:
            try:
                return step()
            except torch.OutOfMemoryError as error:
                self._divide(error)
            # Outside of `except`, so that the tensors in the error's traceback are freed.
            reset()
            gc.collect()
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
            set_random_states(before)

    def _divide(self, error: torch.OutOfMemoryError) -> None:
        size, noun = self._micro_batch_size, self._sample_type
        sized = noun == "image"  # graphs have no size that could be reduced
        if size == 1:
            smaller = "`image_size` or `model`" if sized else "`model`"
            raise EnvironmentError(
                f"out of memory with a single {noun}: use a smaller {smaller}"
            ) from error
        if not self._can_split:
            smaller = "`batch_size` or `image_size`" if sized else "`batch_size`"
            raise EnvironmentError(
                f"out of memory with {size} {noun}s per step, which cannot be split into "
                "micro-batches (several processes, bss, or batch norm in train mode): use a "
                f"smaller {smaller}"
            ) from error
        self.num_micro_batches *= 2
        logger.warning(
            "out of memory with %d %ss at once: each step is split into %d micro-batches from now "
            "on, with the same gradients",
            size,
            noun,
            self.num_micro_batches,
        )
