"""Splits become batches: plain, augmented or cropped for the test, as the preset has it."""

import dataclasses
import signal
from typing import Any

import torch
from torch.utils.data import DataLoader

from delta_transfer.backbones import InputSpec
from delta_transfer.config import TrainConfig
from delta_transfer.data import EpochSampler, PictureDataset, ShareSampler, Split
from delta_transfer.data.augment import (
    Transform,
    eval_transform,
    official_eval_transform,
    official_train_transform,
    ten_crop_transform,
    train_transform,
)
from delta_transfer.data.look import cores
from delta_transfer.distributed import local_processes, processes, rank


def plain_loader(split: Split, spec: InputSpec, config: TrainConfig) -> DataLoader[Any]:
    """Pictures in their order, without augmentation."""
    if config.official:
        transform = official_eval_transform(**_square(spec))
    else:
        transform = eval_transform(**dataclasses.asdict(spec))
    return _in_order(split, transform, config.batch_size, config.workers)


def evaluation_loader(split: Split, spec: InputSpec, config: TrainConfig) -> DataLoader[Any]:
    """Pictures in their order as the final model is tested on them: the preset's crops of each.

    Batches are `[B, 3, S, S]`, or `[B, 10, 3, S, S]` with ten crops (see `CropAverage`).
    """
    if not config.official:
        return plain_loader(split, spec, config)
    batch_size = max(1, config.batch_size // 10)
    return _in_order(split, ten_crop_transform(**_square(spec)), batch_size, config.workers)


def training_loader(split: Split, spec: InputSpec, config: TrainConfig) -> DataLoader[Any]:
    """Augmented pictures, in an order that seed and epoch determine."""
    workers = count_workers(config.workers)
    if config.official:
        transform = official_train_transform(**_square(spec))
    else:
        transform = train_transform(**dataclasses.asdict(spec))
    sampler = EpochSampler(len(split), seed=config.seed)
    alone = len(split) > config.batch_size > 1 and len(split) % config.batch_size == 1
    return DataLoader(
        PictureDataset(split, transform, seed=config.seed),
        batch_size=config.batch_size // processes(),
        # Batch norm has no variance over a batch of one; the picture comes in other epochs.
        drop_last=alone and config.batch_norm == "train",
        sampler=sampler if processes() == 1 else _share(sampler, config.batch_size),
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=_ignore_stops,
        generator=torch.Generator(),  # as in `_in_order`
    )


def _share(sampler: EpochSampler, batch_size: int) -> ShareSampler:
    return ShareSampler(sampler, batch_size=batch_size, rank=rank(), processes=processes())


def _in_order(
    split: Split, transform: Transform, batch_size: int, workers: int | None
) -> DataLoader[Any]:
    return DataLoader(
        PictureDataset(split, transform),
        batch_size=batch_size,
        num_workers=min(count_workers(workers), len(split) // batch_size),
        worker_init_fn=_ignore_stops,
        # Its own, so that drawing the workers' seeds leaves the global random state alone.
        generator=torch.Generator(),
    )


def _ignore_stops(worker: int) -> None:
    """Ctrl-C and SIGTERM reach a group of processes; those that load follow the main one."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _square(spec: InputSpec) -> dict[str, Any]:
    """What the authors' transforms take of it: no `crop_pct`."""
    values = dataclasses.asdict(spec)
    del values["crop_pct"]
    return values


def count_workers(asked: int | None) -> int:
    """Processes that load pictures: as asked, else one core fewer than there are, at most 8.

    Of several processes that train each has its part of the cores.

    On two cores the network needs both, and none is started.
    """
    if asked is not None:
        return asked
    available = cores() // local_processes()
    return 0 if available <= 2 else min(8, available - 1)
