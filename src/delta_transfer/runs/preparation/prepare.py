"""What every method starts from: images, network, cached features and the linear probe."""

import copy
import dataclasses
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone, InputSpec, replace_module
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.inspection import DatasetReport
from delta_transfer.data.task import Split, TaskData
from delta_transfer.features.probe import collect_features
from delta_transfer.runs.preparation import graphs, images
from delta_transfer.runs.preparation.prepared import RunSetup, fit_probe_and_predict
from delta_transfer.runs.preparation.taps import choose_taps
from delta_transfer.runs.preparation.task import check_splits, find_data, use_local_files
from delta_transfer.training.loaders import Dataloaders
from delta_transfer.utils.devices import find_device, move_to_device
from delta_transfer.utils.distributed import (
    first_on_each_node,
    run_on_main_and_broadcast,
    shard_and_gather,
)
from delta_transfer.utils.files import fingerprint
from delta_transfer.utils.module_state import deterministic_algorithms
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataHandler:
    """What a run does otherwise for one kind of samples than for another.

    Args:
        load_network: the pretrained network with a new head, drawn by torch's random state; of
            options, task, a network of the user's own and how its inputs are prepared.
        inspect_data: looks at every sample, of options, task and `Backbone.input_spec`.
        preprocessing: how samples are prepared where nothing is augmented, as JSON.
        suggest_models: lines on networks that suit the device better.
        horizontal_flip: whether the probe learns from mirror images too.
    """

    load_network: Callable[[TrainConfig, TaskData, nn.Module | None, Any], Backbone]
    inspect_data: Callable[[TrainConfig, TaskData, Any], DatasetReport]
    preprocessing: Callable[[Any, TrainConfig], dict[str, Any]]
    suggest_models: Callable[[TrainConfig, torch.device], tuple[str, ...]]
    horizontal_flip: bool


DATA_HANDLERS = {
    "images": DataHandler(
        load_network=images.load_network,
        inspect_data=images.inspect_data,
        preprocessing=images.preprocessing,
        suggest_models=images.suggest_models,
        horizontal_flip=True,
    ),
    "graphs": DataHandler(
        load_network=graphs.load_network,
        inspect_data=graphs.inspect_data,
        preprocessing=graphs.preprocessing,
        suggest_models=graphs.suggest_models,
        horizontal_flip=False,
    ),
}
"""By `TaskData.kind`."""


def prepare(
    config: TrainConfig,
    *,
    network: nn.Module | None = None,
    spec: InputSpec | None = None,
    check: Callable[[TaskData], object] | None = None,
) -> RunSetup:
    """Loads data and network and fits the linear probe.

    Args:
        config: the options.
        network: a pretrained network, in place of the one that the options name.
        spec: how images are prepared for it.
        check: raises UserError if the task does not suit what comes after, before much is read.

    Raises:
        UserError: if the data or the network are not as they must be, or a tap is unknown.
    """
    device = find_device(config.device)
    with first_on_each_node():  # which may download
        task = find_data(config)
    if check is not None:
        check(task)
    check_splits(config, task)
    if config.refit == "always" and not task.val_drawn:
        logger.warning(
            "--refit always is ignored: %s has its own validation split, which is never trained on",
            task.name,
        )
    kind = DATA_HANDLERS[task.kind]
    with first_on_each_node(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.seed, "head"))
        backbone = kind.load_network(config, task, network, spec)
    source = copy.deepcopy(backbone.module)
    replace_module(source, backbone.head, nn.Identity())
    taps = choose_taps(config, backbone, source)
    move_to_device(source, device)
    found = task
    checked = run_on_main_and_broadcast(
        lambda: kind.inspect_data(config, found, backbone.input_spec)
    )
    task = use_local_files(checked.task, found)
    check_splits(config, task)  # again, now that unreadable images are left out
    description = (*_describe(config, task, backbone, device), *kind.suggest_models(config, device))
    for line in description:
        logger.info("%s", line)
    for warning in checked.warnings:
        logger.warning("%s", warning)
    loaders = Dataloaders(backbone.input_spec, config, device)
    with deterministic_algorithms(config.deterministic):
        features = {
            name: _features(
                source,
                split,
                loaders,
                head=backbone.head,
                horizontal_flip=kind.horizontal_flip and name != "test",
            )
            for name, split in (("train", task.train), ("val", task.val), ("test", task.test))
            if split is not None
        }
    started = time.perf_counter()
    small = config.seed % 2**32  # scikit-learn, which draws the folds, takes no larger one
    probe, answers = fit_probe_and_predict(task, features, seed=small)
    return RunSetup(
        task=task,
        backbone=backbone,
        source=source,
        taps=taps,
        loaders=loaders,
        features=features,
        probe_seed=small,
        probe=probe,
        probe_predictions=answers,
        probe_wall_time_s=time.perf_counter() - started,
        description=(*description, *(f"warning: {warning}" for warning in checked.warnings)),
        content_hashes=checked.content_hashes,
        data_fingerprint=_fingerprint(task, checked.content_hashes),
        preprocessing=kind.preprocessing(backbone.input_spec, config),
    )


def _fingerprint(task: TaskData, content_hashes: Mapping[str, str]) -> str:
    """Of the images that attention may be measured on, with their labels, in any order."""
    splits = [task.train, task.val] if task.val_drawn else [task.train]
    images = sorted(
        f"{content_hashes[path]} {task.describe(label)}\n"
        for split in splits
        for path, label in zip(split.paths, split.labels, strict=True)
    )
    return fingerprint(image.encode() for image in images)


def _features(
    source: nn.Module,
    split: Split,
    loaders: Dataloaders,
    *,
    head: str,
    horizontal_flip: bool,
) -> tuple[Tensor, Tensor]:
    def collect(positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        loader = loaders.eval_dataloader(split.subset(positions))
        return collect_features(source, loader, head=head, horizontal_flip=horizontal_flip)

    rows, labels = shard_and_gather(len(split), loaders.config.batch_size, collect)
    return rows, labels


def _describe(
    config: TrainConfig, task: TaskData, backbone: Backbone, device: torch.device
) -> tuple[str, ...]:
    test = "no" if task.test is None else len(task.test)
    outputs = f"{len(task.classes)} {task.task_type.target_kind}"
    return (
        f"data     {task.name}: {outputs}, {len(task.train)} training, "
        f"{len(task.val)} validation, {test} test {task.sample_type}s",
        *(f"         {note}" for note in task.notes),
        f"model    {config.model}, on {device}",
        *(f"         {note}" for note in backbone.notes),
    )
