"""Splits become batches: plain, augmented or cropped for the test, as the preset has it."""

import dataclasses
from collections.abc import Mapping
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
from delta_transfer.data.images.loader import PictureLoader, ignore_stops
from delta_transfer.data.images.resize import Resize
from delta_transfer.data.samplers import EpochSampler, ShareSampler
from delta_transfer.data.task import PictureDataset, Split
from delta_transfer.utils.devices import cores, find_device
from delta_transfer.utils.distributed import local_processes, processes, rank

_FOR_KEPT = 2  # processes that crop what is kept


def plain_loader(split: Split, spec: InputSpec | GraphSpec, config: TrainConfig) -> PictureLoader:
    """Samples in their order, without augmentation."""
    if isinstance(spec, GraphSpec):
        return _graphs(split, config, batch_size=config.at_once)
    return _in_order(split, _plain(spec, config), config, batch_size=config.at_once)


def evaluation_loader(
    split: Split, spec: InputSpec | GraphSpec, config: TrainConfig
) -> PictureLoader:
    """Samples in their order as the final model is tested on them: the preset's crops of pictures.

    Batches of pictures are `[B, 3, S, S]`, or `[B, 10, 3, S, S]` with ten crops (see
    `CropAverage`).
    """
    if isinstance(spec, GraphSpec):
        return plain_loader(split, spec, config)
    transform = _tested(spec, config)
    batch_size = max(1, config.at_once // 10) if config.official else config.at_once
    return _in_order(split, transform, config, batch_size=batch_size)


def training_loader(
    split: Split, spec: InputSpec | GraphSpec, config: TrainConfig
) -> PictureLoader:
    """Samples in an order that seed and epoch determine, pictures augmented."""
    labels = split.class_indices if config.class_weights == "sampler" else None
    sampler = EpochSampler(len(split), seed=config.seed, labels=labels)
    alone = len(split) > config.batch_size > 1 and len(split) % config.batch_size == 1
    own_size = config.batch_size // processes()
    order = sampler if processes() == 1 else _share(sampler, config.batch_size)
    # Batch norm has no variance over a batch of one; the sample comes in other epochs.
    drop_last = alone and config.batch_norm == "train"
    if isinstance(spec, GraphSpec):
        return _graphs(split, config, batch_size=own_size, sampler=order, drop_last=drop_last)
    transform, device = _augmented(spec, config), find_device(config.device)
    workers = _workers(split, transform, config, device)
    return PictureLoader(
        PictureDataset(split, transform.resize, transform.cut, seed=config.seed),
        normalise=transform.normalise,
        device=device,
        batch_size=own_size,
        drop_last=drop_last,
        sampler=order,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=ignore_stops,
    )


def _graphs(
    split: Split,
    config: TrainConfig,
    *,
    batch_size: int,
    sampler: EpochSampler | ShareSampler | None = None,
    drop_last: bool = False,
) -> PictureLoader:
    from delta_transfer.data.graphs.loader import graph_loader  # which needs an extra

    device = find_device(config.device)
    return graph_loader(
        split,
        batch_size=batch_size,
        device=device,
        sampler=sampler,
        drop_last=drop_last,
        workers=config.workers or 0,
    )


def needed_resizes(
    spec: InputSpec, config: TrainConfig, *, val_drawn: bool
) -> Mapping[str, tuple[Resize, ...]]:
    """How the pictures of each split are resized for these loaders, by its name.

    Args:
        spec: what the network takes.
        config: the options.
        val_drawn: whether validation pictures are learnt from, too, in other folds or a refit.
    """
    plain, augmented = _plain(spec, config).resize, _augmented(spec, config).resize
    learnt_from = tuple(dict.fromkeys([plain, augmented]))
    return {
        "train": learnt_from,
        "val": learnt_from if val_drawn else (plain,),
        "test": tuple(dict.fromkeys([plain, _tested(spec, config).resize])),
    }


def _plain(spec: InputSpec, config: TrainConfig) -> Transform:
    if config.official:
        return official_eval_transform(**_square(spec))
    return eval_transform(**dataclasses.asdict(spec))


def _tested(spec: InputSpec, config: TrainConfig) -> Transform:
    return ten_crop_transform(**_square(spec)) if config.official else _plain(spec, config)


def _augmented(spec: InputSpec, config: TrainConfig) -> Transform:
    if config.augment == "none":
        return _plain(spec, config)
    if config.official:
        return official_train_transform(**_square(spec), augment=config.augment)
    return train_transform(**dataclasses.asdict(spec), augment=config.augment)


def _share(sampler: EpochSampler, batch_size: int) -> ShareSampler:
    return ShareSampler(sampler, batch_size=batch_size, rank=rank(), processes=processes())


def _in_order(
    split: Split, transform: Transform, config: TrainConfig, *, batch_size: int
) -> PictureLoader:
    device = find_device(config.device)
    workers = _workers(split, transform, config, device)
    return PictureLoader(
        PictureDataset(split, transform.resize, transform.cut),
        normalise=transform.normalise,
        device=device,
        batch_size=batch_size,
        num_workers=min(workers, len(split) // batch_size),
        worker_init_fn=ignore_stops,
    )


def _workers(split: Split, transform: Transform, config: TrainConfig, device: torch.device) -> int:
    """Processes that load these pictures: few, or none, where all of them are kept."""
    kept = split.kept
    if config.workers is not None or kept is None:
        return count_workers(config.workers)
    if not all(kept.has(path, transform.resize) for path in split.paths):
        return count_workers(None)
    # A CPU has better things to do; an accelerator is not to wait for crops.
    return 0 if device.type == "cpu" else min(_FOR_KEPT, count_workers(None))


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


def loaders_of(run: TrainConfig, at_once: int, share: int) -> int | None:
    """Processes that load pictures for a run, where several share the cores (as in `loaders`)."""
    if run.workers is not None or at_once == 1:
        return run.workers
    return 0 if share <= 2 else min(8, share - 1)
