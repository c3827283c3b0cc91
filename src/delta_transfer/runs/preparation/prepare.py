"""What every method starts from: pictures, network, cached features and the linear probe."""

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
from delta_transfer.data.inspection import CheckedPictures
from delta_transfer.data.task import Split, Task
from delta_transfer.features.probe import collect_features
from delta_transfer.runs.preparation import graphs, images
from delta_transfer.runs.preparation.prepared import Prepared, fit_and_ask
from delta_transfer.runs.preparation.taps import choose_taps
from delta_transfer.runs.preparation.task import check_splits, find_task, read_here
from delta_transfer.training.loaders import plain_loader
from delta_transfer.utils.devices import find_device, place
from delta_transfer.utils.distributed import first_on_each_node, from_main, in_shares
from delta_transfer.utils.files import fingerprint
from delta_transfer.utils.module_state import deterministic
from delta_transfer.utils.seeds import derive_seed

logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Kind:
    """What a run does otherwise for one kind of samples than for another.

    Args:
        load_network: the pretrained network with a new head, drawn by torch's random state; of
            options, task, a network of the user's own and how its inputs are prepared.
        look: looks at every sample, of options, task and `Backbone.input`.
        preprocessing: how samples are prepared where nothing is augmented, as JSON.
        advise: lines on networks that suit the device better.
        mirrors: whether the probe learns from mirror images too.
    """

    load_network: Callable[[TrainConfig, Task, nn.Module | None, Any], Backbone]
    look: Callable[[TrainConfig, Task, Any], CheckedPictures]
    preprocessing: Callable[[Any, TrainConfig], dict[str, Any]]
    advise: Callable[[TrainConfig, torch.device], tuple[str, ...]]
    mirrors: bool


KINDS = {
    "pictures": Kind(
        load_network=images.load_network,
        look=images.look,
        preprocessing=images.preprocessing,
        advise=images.advise,
        mirrors=True,
    ),
    "graphs": Kind(
        load_network=graphs.load_network,
        look=graphs.look,
        preprocessing=graphs.preprocessing,
        advise=graphs.advise,
        mirrors=False,
    ),
}
"""By `Task.kind`."""


def prepare(
    config: TrainConfig,
    *,
    network: nn.Module | None = None,
    spec: InputSpec | None = None,
    check: Callable[[Task], object] | None = None,
) -> Prepared:
    """Loads data and network and fits the linear probe.

    Args:
        config: the options.
        network: a pretrained network, in place of the one that the options name.
        spec: how pictures are prepared for it.
        check: raises UserError if the task does not suit what comes after, before much is read.

    Raises:
        UserError: if the data or the network are not as they must be, or a tap is unknown.
    """
    device = find_device(config.device)
    with first_on_each_node():  # which may download
        task = find_task(config)
    if check is not None:
        check(task)
    check_splits(config, task)
    if config.refit == "always" and not task.val_drawn:
        logger.warning(
            "--refit always is ignored: %s has its own validation split, which is never trained on",
            task.name,
        )
    kind = KINDS[task.kind]
    with first_on_each_node(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(derive_seed(config.seed, "head"))
        backbone = kind.load_network(config, task, network, spec)
    source = copy.deepcopy(backbone.module)
    replace_module(source, backbone.head, nn.Identity())
    taps = choose_taps(config, backbone, source)
    place(source, device)
    found = task
    checked = from_main(lambda: kind.look(config, found, backbone.input))
    task = read_here(checked.task, found)
    check_splits(config, task)  # again, now that unreadable pictures are left out
    description = (*_describe(config, task, backbone, device), *kind.advise(config, device))
    for line in description:
        logger.info("%s", line)
    for warning in checked.warnings:
        logger.warning("%s", warning)
    with deterministic(config.deterministic):
        features = {
            name: _features(source, split, backbone, config, mirror=kind.mirrors and name != "test")
            for name, split in (("train", task.train), ("val", task.val), ("test", task.test))
            if split is not None
        }
    started = time.perf_counter()
    small = config.seed % 2**32  # scikit-learn, which draws the folds, takes no larger one
    probe, answers = fit_and_ask(task, features, seed=small)
    return Prepared(
        task=task,
        backbone=backbone,
        source=source,
        taps=taps,
        device=device,
        features=features,
        probe_seed=small,
        probe=probe,
        probe_answers=answers,
        probe_seconds=time.perf_counter() - started,
        description=(*description, *(f"warning: {warning}" for warning in checked.warnings)),
        digests=checked.digests,
        data=_fingerprint(task, checked.digests),
        preprocessing=kind.preprocessing(backbone.input, config),
    )


def _fingerprint(task: Task, digests: Mapping[str, str]) -> str:
    """Of the pictures that attention may be measured on, with their labels, in any order."""
    splits = [task.train, task.val] if task.val_drawn else [task.train]
    pictures = sorted(
        f"{digests[path]} {task.describe(label)}\n"
        for split in splits
        for path, label in zip(split.paths, split.labels, strict=True)
    )
    return fingerprint(picture.encode() for picture in pictures)


def _features(
    source: nn.Module, split: Split, backbone: Backbone, config: TrainConfig, *, mirror: bool
) -> tuple[Tensor, Tensor]:
    def collect(positions: Sequence[int]) -> tuple[Tensor, Tensor]:
        loader = plain_loader(split.subset(positions), backbone.input, config)
        return collect_features(source, loader, head=backbone.head, mirror=mirror)

    rows, labels = in_shares(len(split), config.batch_size, collect)
    return rows, labels


def _describe(
    config: TrainConfig, task: Task, backbone: Backbone, device: torch.device
) -> tuple[str, ...]:
    test = "no" if task.test is None else len(task.test)
    outputs = f"{len(task.classes)} {task.objective.outputs}"
    return (
        f"data     {task.name}: {outputs}, {len(task.train)} training, "
        f"{len(task.val)} validation, {test} test {task.noun}s",
        *(f"         {note}" for note in task.notes),
        f"model    {config.model}, on {device}",
        *(f"         {note}" for note in backbone.notes),
    )
