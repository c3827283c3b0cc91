"""Prepare data, network, features and linear probe, which all methods start from."""

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
from delta_transfer.runs.preparation.folds import count_folds, training_pool
from delta_transfer.runs.preparation.prepared import RunSetup, fit_probe_and_predict
from delta_transfer.runs.preparation.shifted import (
    describe_shifted,
    inspect_shifted,
    load_shifted,
)
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
    """What differs between kinds of samples, such as images and graphs.

    Args:
        load_network: returns the pretrained network with a new random head, from torch's random
            state; takes options, dataset, the user's own network and its input spec.
        inspect_data: inspects every sample; takes options, dataset and `Backbone.input_spec`.
        preprocessing: returns the preparation of samples without augmentation, as JSON.
        suggest_models: returns lines about models that suit the device better.
        horizontal_flip: train the probe on flipped images too.
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
    device: torch.device | None = None,
) -> RunSetup:
    """Load data and network, and fit the linear probe.

    Args:
        config: the options.
        network: your own pretrained network, instead of `config.model`.
        spec: how images are prepared for it.
        check: called with the dataset before samples are read; raises UserError if it does not fit.
        device: the device of `config.device`; looked up if None.

    Raises:
        UserError: if data or network are invalid, or a tap is unknown.
    """
    device = device or find_device(config.device)
    with first_on_each_node():  # it may download
        task = find_data(config)
    if check is not None:
        check(task)
    check_splits(config, task)
    shifted = load_shifted(config, task)
    kind = DATA_HANDLERS[task.kind]
    with first_on_each_node(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.seed, "head"))
        backbone = kind.load_network(config, task, network, spec)
    source = copy.deepcopy(backbone.module)
    replace_module(source, backbone.head, nn.Identity())
    taps = choose_taps(config, backbone, source)
    move_to_device(source, device)
    local = task
    report = run_on_main_and_broadcast(
        lambda: kind.inspect_data(config, local, backbone.input_spec)
    )
    task = use_local_files(report.task, local)
    check_splits(config, task)  # again, without unreadable samples
    description = (*_describe(config, task, backbone, device), *kind.suggest_models(config, device))
    warnings = report.warnings
    if shifted is not None:
        found = shifted
        shifted, others = run_on_main_and_broadcast(
            lambda: inspect_shifted(config, found, task, report.content_hashes)
        )
        description = (*description, describe_shifted(config, shifted))
        warnings = (*warnings, *others)
    for line in description:
        logger.info("%s", line)
    for warning in warnings:
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
    probe_seed = config.seed % 2**32  # scikit-learn, which draws the folds, takes no larger one
    probe, predictions = fit_probe_and_predict(task, features, seed=probe_seed)
    return RunSetup(
        task=task,
        backbone=backbone,
        source=source,
        taps=taps,
        loaders=loaders,
        features=features,
        probe_seed=probe_seed,
        probe=probe,
        probe_predictions=predictions,
        probe_wall_time_s=time.perf_counter() - started,
        description=(*description, *(f"warning: {warning}" for warning in warnings)),
        content_hashes=report.content_hashes,
        data_fingerprint=_fingerprint(task, report.content_hashes),
        preprocessing=kind.preprocessing(backbone.input_spec, config),
        shifted=shifted,
    )


def _fingerprint(task: TaskData, content_hashes: Mapping[str, str]) -> str:
    """Return the fingerprint of the samples that may be trained on, with labels, in any order."""
    splits = [task.train, task.val] if task.val_drawn else [task.train]
    samples = sorted(
        f"{content_hashes[path]} {task.describe(label)}\n"
        for split in splits
        for path, label in zip(split.paths, split.labels, strict=True)
    )
    return fingerprint(sample.encode() for sample in samples)


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


def _describe_folds(config: TrainConfig, task: TaskData) -> tuple[str, ...]:
    folds, pool = count_folds(config, task), len(training_pool(config, task))
    if not folds:
        return ()
    both = pool > len(task.train)
    which = "training and validation" if both else "training"
    unused = "" if both else "; the validation split is not used"
    return (
        f"{folds} folds of the {pool} {which} {task.sample_type}s: each is held out once{unused}",
    )


def _describe(
    config: TrainConfig, task: TaskData, backbone: Backbone, device: torch.device
) -> tuple[str, ...]:
    test = "no" if task.test is None else len(task.test)
    outputs = f"{len(task.classes)} {task.task_type.target_kind}"
    return (
        f"data     {task.name}: {outputs}, {len(task.train)} training, "
        f"{len(task.val)} validation, {test} test {task.sample_type}s",
        *(f"         {note}" for note in (*task.notes, *_describe_folds(config, task))),
        f"model    {config.model}, on {device}",
        *(f"         {note}" for note in backbone.notes),
    )
