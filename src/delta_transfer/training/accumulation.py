"""A step worked through in parts, as many as memory needs."""

import gc
import logging
from collections.abc import Callable
from typing import TypeVar, final

import torch
from torch import Tensor

from delta_transfer.errors import UserError
from delta_transfer.features.inputs import Inputs, split
from delta_transfer.training.checkpoints import random_states, set_random_states

logger = logging.getLogger(__name__)

Result = TypeVar("Result")
Batch = tuple[Inputs, Tensor]


@final
class GradientAccumulation:
    """Into how many parts the samples of a step are divided.

    Args:
        num_micro_batches: of each step, if it has so many samples.
        can_split: whether more parts are taken where memory runs out.
        sample_type: what a sample is called in messages.

    Attributes:
        num_micro_batches: as many as there are by now.
    """

    def __init__(
        self, num_micro_batches: int = 1, *, can_split: bool = True, sample_type: str = "image"
    ) -> None:
        self.num_micro_batches = num_micro_batches
        self._can_split = can_split
        self._sample_type = sample_type
        self._micro_batch_size = 0

    def split(self, batch: Batch) -> list[tuple[Batch, float]]:
        """The parts of a batch, each with its share of the samples."""
        inputs, targets = batch
        size = -(-len(targets) // self.num_micro_batches)
        found = list(zip(split(inputs, size), split(targets, size), strict=True))
        self._micro_batch_size = size
        return [((rows, labels), len(labels) / len(targets)) for rows, labels in found]

    def run(self, step: Callable[[], Result], reset: Callable[[], None]) -> Result:
        """What a step gives, which is taken again in more parts where memory runs out.

        Args:
            step: divides its batch by `split`, and begins with the random numbers of before when
                it is called again.
            reset: lets go of what a step has left behind that was not finished.

        Raises:
            UserError: if there is no memory for a single sample, or the step cannot be divided.
        """
        before = random_states()
        while True:
            try:
                return step()
            except torch.OutOfMemoryError as error:
                self._divide(error)
            # Here the error, and all that it was holding, is gone.
            reset()
            gc.collect()
            if torch.accelerator.is_available():
                torch.accelerator.empty_cache()
            set_random_states(before)

    def _divide(self, error: torch.OutOfMemoryError) -> None:
        size, noun = self._micro_batch_size, self._sample_type
        sized = noun == "image"  # others have no size that could be lowered
        if size == 1:
            lower = "lower --image-size, or " if sized else ""
            raise UserError(
                f"there is too little memory to train on a single {noun}: {lower}choose a smaller "
                "--model"
            ) from error
        if not self._can_split:
            lower = "--batch-size or --image-size" if sized else "--batch-size"
            raise UserError(
                f"there is too little memory for a step with {size} {noun}s, and it cannot be "
                "worked through in parts (by several processes, with bss, or with batch norm in "
                f"train mode): lower {lower}"
            ) from error
        self.num_micro_batches *= 2
        logger.warning(
            "too little memory for %d %ss at once: each step is worked through in %d parts "
            "from now on, which changes nothing else",
            size,
            noun,
            self.num_micro_batches,
        )
