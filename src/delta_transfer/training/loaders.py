"""Data loaders of a run: for training, evaluation, and the final test."""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from delta_transfer.backbones.base import GraphSpec, InputSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.images.augment import (
    Transform,
    eval_transform,
    official_eval_transform,
    official_train_transform,
    ten_crop_transform,
    train_transform,
)
from delta_transfer.data.images.loader import DeviceDataLoader, ignore_stops
from delta_transfer.data.images.resize import Resize
from delta_transfer.data.samplers import DistributedEpochSampler, EpochSampler
from delta_transfer.data.task import ImageDataset, Split
from delta_transfer.utils.devices import cpu_count
from delta_transfer.utils.distributed import local_world_size, rank, world_size

_WORKERS_FOR_CACHED = 2  # processes that crop cached images


@dataclasses.dataclass(frozen=True)
class Dataloaders:
    """The data loaders of a run: batches of a split, as network, options and device need them.

    Args:
        input_spec: what the network takes.
        config: the options.
        device: where the batches go.
    """

    input_spec: InputSpec | GraphSpec
    config: TrainConfig
    device: torch.device

    def with_config(self, config: TrainConfig) -> "Dataloaders":
        """Return the loaders for other options of the same run."""
        return dataclasses.replace(self, config=config)

    def eval_dataloader(self, split: Split) -> DeviceDataLoader:
        """Return the samples in order, without augmentation."""
        return self._sequential(split, _eval_transform, self.config.micro_batch_size)

    def test_dataloader(self, split: Split) -> DeviceDataLoader:
        """Return the samples in order, as the final model is tested on them.

        Batches of images are `[B, 3, S, S]`, or `[B, 10, 3, S, S]` with ten crops (see
        `CropAverage`).
        """
        size = self.config.micro_batch_size
        if self.config.paper_protocol and isinstance(self.input_spec, InputSpec):
            size = max(1, size // 10)
        return self._sequential(split, _test_transform, size)

    def train_dataloader(self, split: Split) -> DeviceDataLoader:
        """Return the samples in an order that seed and epoch determine, images augmented."""
        config, size = self.config, even_batch_size(len(split), self.config)
        labels = split.class_indices if config.class_weights == "sampler" else None
        sampler = EpochSampler(len(split), seed=config.seed, labels=labels)
        order = sampler if world_size() == 1 else _distributed_sampler(sampler, size)
        own_size = size // world_size()
        # Batch norm has no variance over a batch of one; the sample comes in other epochs.
        alone = len(split) > size > 1 and len(split) % size == 1
        drop_last = alone and config.batch_norm == "train"
        if isinstance(self.input_spec, GraphSpec):
            return self._graphs(split, own_size, sampler=order, drop_last=drop_last)
        transform = _train_transform(self.input_spec, config)
        workers = _count_workers(split, transform, config, self.device)
        return DeviceDataLoader(
            ImageDataset(split, transform.resize, transform.crop, seed=config.seed),
            normalise=transform.normalise,
            device=self.device,
            batch_size=own_size,
            drop_last=drop_last,
            sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=ignore_stops,
        )

    def _sequential(
        self,
        split: Split,
        make_transform: Callable[[InputSpec, TrainConfig], Transform],
        batch_size: int,
    ) -> DeviceDataLoader:
        if isinstance(self.input_spec, GraphSpec):
            return self._graphs(split, batch_size)
        transform = make_transform(self.input_spec, self.config)
        workers = _count_workers(split, transform, self.config, self.device)
        return DeviceDataLoader(
            ImageDataset(split, transform.resize, transform.crop),
            normalise=transform.normalise,
            device=self.device,
            batch_size=batch_size,
            num_workers=min(workers, len(split) // batch_size),
            worker_init_fn=ignore_stops,
        )

    def _graphs(self, split: Split, batch_size: int, **options: Any) -> DeviceDataLoader:
        from delta_transfer.data.graphs.loader import graph_dataloader  # which needs an extra

        return graph_dataloader(
            split,
            batch_size=batch_size,
            device=self.device,
            num_workers=self.config.num_workers or 0,
            **options,
        )


def even_batch_size(num_samples: int, config: TrainConfig) -> int:
    """Return a batch size, at most that of the options, that makes batches about equally large.

    A step of the optimiser is as long for a batch of three samples as for one of 32, and so undoes
    what the others have done. Several processes need a multiple of their number. The protocol of
    DELTA's authors has a smaller last batch.

    Example:
        >>> from delta_transfer.config.train import TrainOptions
        >>> even_batch_size(67, TrainOptions(data="x").resolve())
        23
    """
    if config.paper_protocol:
        return config.batch_size
    even = math.ceil(num_samples / math.ceil(num_samples / config.batch_size))
    processes = world_size()
    return math.ceil(even / processes) * processes


def resizes_by_split(
    spec: InputSpec, config: TrainConfig, *, val_drawn: bool
) -> Mapping[str, tuple[Resize, ...]]:
    """Return how the images of each split are resized for these loaders.

    Args:
        spec: what the network takes.
        config: the options.
        val_drawn: validation images are trained on too, in other folds.
    """
    plain, augmented = _eval_transform(spec, config).resize, _train_transform(spec, config).resize
    both = tuple(dict.fromkeys([plain, augmented]))
    return {
        "train": both,
        "val": both if val_drawn else (plain,),
        "test": tuple(dict.fromkeys([plain, _test_transform(spec, config).resize])),
    }


def _eval_transform(spec: InputSpec, config: TrainConfig) -> Transform:
    if config.paper_protocol:
        return official_eval_transform(**_official_transform_args(spec))
    return eval_transform(**dataclasses.asdict(spec))


def _test_transform(spec: InputSpec, config: TrainConfig) -> Transform:
    return (
        ten_crop_transform(**_official_transform_args(spec))
        if config.paper_protocol
        else _eval_transform(spec, config)
    )


def _train_transform(spec: InputSpec, config: TrainConfig) -> Transform:
    if config.augment == "none":
        return _eval_transform(spec, config)
    if config.paper_protocol:
        return official_train_transform(**_official_transform_args(spec), augment=config.augment)
    return train_transform(**dataclasses.asdict(spec), augment=config.augment)


def _distributed_sampler(sampler: EpochSampler, batch_size: int) -> DistributedEpochSampler:
    return DistributedEpochSampler(
        sampler, batch_size=batch_size, rank=rank(), world_size=world_size()
    )


def _count_workers(
    split: Split, transform: Transform, config: TrainConfig, device: torch.device
) -> int:
    """Return the number of loading processes: few or none for cached images."""
    cache = split.image_cache
    if config.num_workers is not None or cache is None:
        return count_workers(config.num_workers)
    if not all(cache.has(path, transform.resize) for path in split.paths):
        return count_workers(None)
    # On a CPU the network needs all cores; an accelerator must not wait for crops.
    return 0 if device.type == "cpu" else min(_WORKERS_FOR_CACHED, count_workers(None))


def _official_transform_args(spec: InputSpec) -> dict[str, Any]:
    """Return the arguments of the authors' transforms, which have no `crop_pct`."""
    values = dataclasses.asdict(spec)
    del values["crop_pct"]
    return values


def count_workers(num_workers: int | None, *, cores: int | None = None) -> int:
    """Return the number of loading processes: as given, or all cores but one, at most 8.

    On one or two cores none is started, since the network needs them.

    Args:
        num_workers: the given number, if any.
        cores: cores to use; if None, this process's share of the machine's.
    """
    if num_workers is not None:
        return num_workers
    available = cpu_count() // local_world_size() if cores is None else cores
    return 0 if available <= 2 else min(8, available - 1)


def loaders_of(run: TrainConfig, at_once: int, share: int) -> int | None:
    """Return the number of loading processes of a run that shares the machine with others."""
    return run.num_workers if at_once == 1 else count_workers(run.num_workers, cores=share)
