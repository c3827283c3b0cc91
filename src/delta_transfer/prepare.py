"""What every method starts from: pictures, network, cached features and the linear probe."""

import copy
import dataclasses
import logging
import os
import time
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from delta_transfer.backbones import Backbone, InputSpec, load_backbone, replace_module
from delta_transfer.borrow import device_of, evaluating
from delta_transfer.config import TrainConfig
from delta_transfer.data import EpochSampler, PictureDataset, Split, Task, load_task
from delta_transfer.data.augment import eval_transform, train_transform
from delta_transfer.data.seeds import derive_seed
from delta_transfer.errors import UserError
from delta_transfer.probe import LinearProbe, collect_features, fit_probe
from delta_transfer.taps import Taps, resolve_taps

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Everything that is the same for all methods of one data set, network and seed.

    Args:
        task: the pictures.
        backbone: the pretrained network with a random head; not trained, copied.
        source: the pretrained network without a head.
        taps: the modules that are tapped, by `--taps`.
        device: where it all runs.
        probe: the linear probe.
        probe_probabilities: of the validation and the test split (None without one), `[N, K]`.
        seconds_per_picture: of a forward pass, reading included, as measured.
        description: what was logged of the pictures and the network, line by line.
    """

    task: Task
    backbone: Backbone
    source: nn.Module
    taps: tuple[str, ...]
    device: torch.device
    probe: LinearProbe
    probe_probabilities: dict[str, Tensor | None]
    seconds_per_picture: float
    description: tuple[str, ...]

    @property
    def probe_accuracies(self) -> dict[str, float | None]:
        """Of the validation and the test split (None without one), in fractions."""
        found: dict[str, float | None] = {"test": None}
        for name, split in (("val", self.task.val), ("test", self.task.test)):
            probabilities = self.probe_probabilities[name]
            if split is not None and probabilities is not None:
                right = probabilities.argmax(dim=1) == torch.tensor(split.labels)
                found[name] = float(right.double().mean())
        return found


def prepare(config: TrainConfig) -> Prepared:
    """Loads data and network and fits the linear probe.

    Raises:
        UserError: if the data or the network are not as they must be, or a tap is unknown.
    """
    device = find_device(config.device)
    task = load_task(
        config.data,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_split=config.test_split,
        samples_per_class=config.samples_per_class,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.seed, "head"))
        backbone = load_backbone(
            config.model, num_outputs=len(task.classes), image_size=config.image_size
        )
    source = copy.deepcopy(backbone.module)
    replace_module(source, backbone.head, nn.Identity())
    taps = resolve_taps(source, _tap_names(config.taps))
    place(source, device)
    _try_taps(source, taps, backbone.input.size)
    description = _describe(config, task, device)
    for line in description:
        logger.info("%s", line)
    started = time.perf_counter()
    features = {
        name: _features(source, split, backbone, config, mirror=name == "train")
        for name, split in (("train", task.train), ("val", task.val), ("test", task.test))
        if split is not None
    }
    forwards = 2 * len(task.train) + len(task.val) + (len(task.test) if task.test else 0)
    seconds = (time.perf_counter() - started) / forwards
    rows, labels = features["train"]
    small = config.seed % 2**32  # scikit-learn, which draws the folds, takes no larger one
    probe = fit_probe(rows, labels, num_outputs=len(task.classes), seed=small)
    return Prepared(
        task=task,
        backbone=backbone,
        source=source,
        taps=taps,
        device=device,
        probe=probe,
        probe_probabilities={
            name: torch.softmax(probe(features[name][0][:, 0]), dim=1) if name in features else None
            for name in ("val", "test")
        },
        seconds_per_picture=seconds,
        description=description,
    )


def find_device(name: str) -> torch.device:
    """The device of that name; `"auto"` is the accelerator if there is one.

    Raises:
        UserError: if this machine has no such device.
    """
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if name == "cpu" or (name == "auto" and accelerator is None):
        return torch.device("cpu")
    if name == "auto" and accelerator is not None and accelerator.type not in ("cuda", "mps"):
        return torch.device("cpu")
    if accelerator is None or name not in ("auto", accelerator.type):
        found = "only a CPU" if accelerator is None else f"cpu and {accelerator.type}"
        raise UserError(f"--device {name}: this machine has {found}; leave the option out")
    return accelerator


def place(network: nn.Module, device: torch.device) -> None:
    """Moves a network to its device, in the memory layout in which convolutions are fastest."""
    network.to(device)
    network.to(memory_format=torch.channels_last)


def plain_loader(split: Split, spec: InputSpec, config: TrainConfig) -> DataLoader[Any]:
    """Pictures in their order, without augmentation."""
    dataset = PictureDataset(split, eval_transform(**dataclasses.asdict(spec)))
    return DataLoader(
        dataset,
        batch_size=config.batch_size,
        num_workers=min(count_workers(config.workers), len(split) // config.batch_size),
        # Its own, so that drawing the workers' seeds leaves the global random state alone.
        generator=torch.Generator(),
    )


def training_loader(split: Split, spec: InputSpec, config: TrainConfig) -> DataLoader[Any]:
    """Augmented pictures, in an order that seed and epoch determine."""
    workers = count_workers(config.workers)
    transform = train_transform(**dataclasses.asdict(spec))
    return DataLoader(
        PictureDataset(split, transform, seed=config.seed),
        batch_size=config.batch_size,
        sampler=EpochSampler(len(split), seed=config.seed),
        num_workers=workers,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # as above
    )


def count_workers(asked: int | None) -> int:
    """Processes that load pictures: as asked, else one core fewer than there are, at most 8.

    On two cores the network needs both, and none is started.
    """
    if asked is not None:
        return asked
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return 0 if (cores or 1) <= 2 else min(8, (cores or 1) - 1)


def _tap_names(taps: str) -> str | list[str]:
    return taps if taps == "auto" else [name.strip() for name in taps.split(",")]


def _try_taps(source: nn.Module, taps: tuple[str, ...], size: int) -> None:
    """Raises UserError where a tap is not called, called twice or gives no tensor."""
    picture = torch.zeros(1, 3, size, size, device=device_of(source))
    try:
        with Taps(source, taps) as recorder, evaluating(source), torch.no_grad():
            source(picture)
            missing = [tap for tap in taps if tap not in recorder.channel_dims]
            if missing:
                raise UserError(
                    f"--taps: the network does not use {', '.join(missing)}; choose from those "
                    "that delta-transfer layers MODEL lists"
                )
            recorder.outputs()
    except RuntimeError as error:
        raise UserError(f"--taps: {error}") from error


def _features(
    source: nn.Module, split: Split, backbone: Backbone, config: TrainConfig, *, mirror: bool
) -> tuple[Tensor, Tensor]:
    loader = plain_loader(split, backbone.input, config)
    return collect_features(source, loader, head=backbone.head, mirror=mirror)


def _describe(config: TrainConfig, task: Task, device: torch.device) -> tuple[str, ...]:
    test = "no" if task.test is None else len(task.test)
    return (
        f"data     {task.name}: {len(task.classes)} classes, {len(task.train)} training, "
        f"{len(task.val)} validation, {test} test pictures",
        *(f"         {note}" for note in task.notes),
        f"model    {config.model}, on {device}",
        *_larger(config, device),
    )


def _larger(config: TrainConfig, device: torch.device) -> tuple[str, ...]:
    if device.type == "cpu" or config.model != TrainConfig.model:
        return ()
    return ("         on this device larger ones are fast too, such as --model convnext_tiny",)
