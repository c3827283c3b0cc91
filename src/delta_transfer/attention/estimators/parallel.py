"""Scoring on several devices and in several processes, each with its shard of every batch."""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import final

import torch
from torch import Tensor, nn

from delta_transfer.attention.estimators.scorer import (
    BatchScores,
    ProgressUpdate,
    Scorer,
    concatenate_scores,
    to_fast_memory_format,
)
from delta_transfer.errors import ConfigError, EnvironmentError
from delta_transfer.features.inputs import Inputs, shard
from delta_transfer.utils.distributed import all_gather, rank, world_size
from delta_transfer.utils.module_state import device_of


@final
class MultiDeviceScorer:
    """A scorer that splits each batch between copies of a network.

    Args:
        networks: the same network on its devices.
        make: returns the scorer of a network.
    """

    def __init__(self, networks: Sequence[nn.Module], make: Callable[[nn.Module], Scorer]) -> None:
        self.scorers = [make(network) for network in networks]
        self._devices = [device_of(network) for network in networks]
        self._started = False

    def __call__(
        self, inputs: Inputs, targets: Tensor, *, progress: ProgressUpdate | None = None
    ) -> BatchScores:
        """Score a batch on any device."""
        count = min(len(self.scorers), len(targets))

        def score(number: int) -> BatchScores:
            device = self._devices[number]
            some = shard(inputs, number, num_shards=count), shard(targets, number, num_shards=count)
            moved = to_fast_memory_format(some[0], device), some[1].to(device)
            return self.scorers[number](*moved, progress=progress)

        if count == 1 or not self._started:
            # Sequentially at first: what scorers prepare, such as graphs of the network, is not
            # thread-safe.
            self._started = count == len(self.scorers)
            return concatenate_scores([score(number) for number in range(count)])
        with ThreadPoolExecutor(count) as pool:
            return concatenate_scores(list(pool.map(score, range(count))))


def replicate_on_devices(
    model: nn.Module, devices: Sequence[torch.device | str] | None
) -> list[nn.Module]:
    """Return the network for each device: itself for its own device (once), else a copy.

    Raises:
        ConfigError: if `devices` is empty.
        EnvironmentError: if a device cannot be used.
    """
    if devices is None:
        return [model]
    if not devices:
        raise ConfigError("devices is empty: name one or more, or leave it out")
    networks: list[nn.Module] = []
    for name in devices:
        try:
            device = torch.empty(0, device=name).device
            own = device == device_of(model) and model not in networks
            networks.append(model if own else copy.deepcopy(model).to(device))
        except (RuntimeError, AssertionError) as error:
            raise EnvironmentError(f"devices: {str(name)!r} cannot be used ({error})") from error
    return networks


@final
class ShardedScorer:
    """A scorer that scores a shard of each batch per process and gathers all scores.

    All processes pass the same batches. The features are those of the own shard alone; statistics
    of them are reduced at the end (`FeatureVariance.all_reduce`).

    Args:
        scorer: scorer of the shards.
    """

    def __init__(self, scorer: Scorer) -> None:
        self.scorer = scorer

    def __call__(
        self, inputs: Inputs, targets: Tensor, *, progress: ProgressUpdate | None = None
    ) -> BatchScores:
        """Score a batch; the scores are on the CPU."""
        count = min(world_size(), len(targets))
        own = None
        if rank() < count:
            some = shard(inputs, rank(), num_shards=count), shard(targets, rank(), num_shards=count)
            own = self.scorer(*some)
        scores = None if own is None else {tap: part.cpu() for tap, part in own.scores.items()}
        parts = [
            BatchScores(scores=part, features={}) for part in all_gather(scores) if part is not None
        ]
        found = concatenate_scores(parts)
        if progress is not None:
            progress(len(targets) * sum(part.shape[1] for part in found.scores.values()))
        return found if own is None else dataclasses.replace(found, features=own.features)


def check_shards_nonempty(batch_size: int) -> None:
    """Check that each process has a sample of the first batch.

    Raises:
        ConfigError: if one has none, and so could not tell the shape of the features.
    """
    if batch_size < world_size():
        raise ConfigError(
            f"{batch_size} samples cannot be sharded over {world_size()} processes: use fewer "
            "`devices` or more samples"
        )
