"""What every method starts from: pictures, network, cached features and the linear probe."""

import copy
import dataclasses
import functools
import logging
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delta_transfer import prepare_graphs, prepare_pictures
from delta_transfer.backbones import (
    Backbone,
    InputSpec,
    replace_module,
)
from delta_transfer.borrow import deterministic
from delta_transfer.channel_attention import weights_fingerprint
from delta_transfer.config import TrainConfig
from delta_transfer.data import (
    COLLECTIONS,
    SOURCES,
    MoleculeOptions,
    Split,
    Task,
    load_task,
)
from delta_transfer.data.check import CheckedPictures
from delta_transfer.data.seeds import derive_seed
from delta_transfer.devices import find_device, place
from delta_transfer.distributed import (
    first_on_each_node,
    from_main,
    gathered,
    in_shares,
    processes,
)
from delta_transfer.errors import UserError, first_few
from delta_transfer.files import fingerprint
from delta_transfer.loaders import plain_loader
from delta_transfer.objective import Classes
from delta_transfer.probe import LinearProbe, collect_features, fit_probe
from delta_transfer.run_taps import choose_taps
from delta_transfer.task_loss import check_options

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
        load_network=prepare_pictures.load_network,
        look=prepare_pictures.look,
        preprocessing=prepare_pictures.preprocessing,
        advise=prepare_pictures.advise,
        mirrors=True,
    ),
    "graphs": Kind(
        load_network=prepare_graphs.load_network,
        look=prepare_graphs.look,
        preprocessing=prepare_graphs.preprocessing,
        advise=prepare_graphs.advise,
        mirrors=False,
    ),
}
"""By `Task.kind`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Prepared:
    """Everything that is the same for all methods of one data set, network and seed.

    Args:
        task: the pictures.
        backbone: the pretrained network with a random head; not trained, copied.
        source: the pretrained network without a head.
        taps: the modules that are tapped, by `--taps`.
        device: where it all runs.
        features: split -> what the head sees of each picture `[N, V, F]`, the first of V views
            being the picture itself and the second its mirror image; and targets.
        probe_seed: draws the folds by which strengths of probes are chosen.
        probe: the linear probe.
        probe_answers: to the validation and the test split (None without one), `[N, K]`.
        probe_seconds: how long the probe took to fit.
        description: what was logged of the pictures and the network, line by line.
        digests: a hash of each picture, by its path.
        data: fingerprint of what can be learnt from: training pictures, the drawn validation
            pictures among them, and their classes.
        preprocessing: how pictures are prepared where nothing is augmented, as JSON.
    """

    task: Task
    backbone: Backbone
    source: nn.Module
    taps: tuple[str, ...]
    device: torch.device
    features: dict[str, tuple[Tensor, Tensor]]
    probe_seed: int
    probe: LinearProbe
    probe_answers: dict[str, Tensor | None]
    probe_seconds: float
    description: tuple[str, ...]
    digests: Mapping[str, str]
    data: str
    preprocessing: dict[str, Any]

    @property
    def probe_scores(self) -> dict[str, float | None]:
        """By the objective's measure, of the validation and the test split (None without one)."""
        found: dict[str, float | None] = {"test": None}
        objective = self.task.objective
        for name, split in (("val", self.task.val), ("test", self.task.test)):
            answers = self.probe_answers[name]
            if split is not None and answers is not None:
                found[name] = objective.score(answers, split.targets, objective.measure.name)
        return found

    @functools.cached_property
    def source_fingerprint(self) -> str:
        """Of the pretrained weights."""
        return weights_fingerprint(self.source, head=self.backbone.head)

    @functools.cached_property
    def raw_probe(self) -> LinearProbe:
        """The probe on features that keep their scales, from which DELTA's head starts."""
        return _fit_head(self.task, self.features, seed=self.probe_seed, standardize=False)


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
    _check_splits(config, task)
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
    task = _read_here(checked.task, found)
    _check_splits(config, task)  # again, now that unreadable pictures are left out
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
    probe, answers = _fit_probe(task, features, seed=small)
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


def _read_here(task: Task, own: Task) -> Task:
    """The main process's task with the pictures of this one's machine.

    Args:
        task: with what the main process reads and has kept.
        own: as this process has found it.

    Raises:
        UserError: in all processes, if one of them does not find a picture.
    """
    if processes() == 1:
        return task
    pairs = [(task.train, own.train), (task.val, own.val), (task.test, own.test)]
    there = {path for _, split in pairs if split is not None for path in split.paths}
    lost = [path for split, _ in pairs if split is not None for path in split.paths]
    lost = [path for path in lost if path not in there]
    told = gathered((socket.gethostname(), first_few(lost)))
    for host, paths in told:
        if paths:
            raise UserError(
                f"{task.name}: a process on {host} does not find {paths}, which the main "
                "process does: all machines need the same pictures"
            )
    train, val, test = (None if t is None or o is None else _local(t, o) for t, o in pairs)
    assert train is not None
    assert val is not None
    return dataclasses.replace(task, train=train, val=val, test=test)


def _local(split: Split, own: Split) -> Split:
    kept = None if split.kept is None else split.kept.here()
    return dataclasses.replace(split, read=own.read, kept=kept)


def find_task(config: TrainConfig) -> Task:
    """The pictures that the options name, in their splits; none is read.

    Raises:
        UserError: if the data is not as it must be.
    """
    task = load_task(
        config.data,
        seed=config.seed,
        val_fraction=config.val_fraction,
        test_split=config.test_split,
        samples_per_class=config.samples_per_class,
        data_root=config.data_root,
        molecules=molecule_options(config),
    )
    check_options(config, task.objective, name=task.name)
    return task


def molecule_options(config: TrainConfig) -> MoleculeOptions:
    """What the options of a run say of molecules."""
    return MoleculeOptions(
        smiles_column=config.smiles_column,
        label_columns=config.label_columns,
        split=config.split,
    )


def regroup(prepared: Prepared, *, train: Sequence[int], val: Sequence[int]) -> Prepared:
    """The same with training and validation pictures split otherwise, and a probe of its own.

    Args:
        prepared: of a task whose validation split was drawn from its training pictures.
        train: positions among its training pictures followed by its validation pictures.
        val: likewise; may overlap with `train`.
    """
    task, everything = prepared.task, pool(prepared.task)
    both = [prepared.features["train"], prepared.features["val"]]
    rows = torch.cat([views for views, _ in both])
    labels = torch.cat([labels for _, labels in both])
    features = {
        **prepared.features,
        "train": (rows[list(train)], labels[list(train)]),
        "val": (rows[list(val)], labels[list(val)]),
    }
    task = dataclasses.replace(task, train=everything.subset(train), val=everything.subset(val))
    probe, answers = _fit_probe(task, features, seed=prepared.probe_seed)
    return dataclasses.replace(
        prepared, task=task, features=features, probe=probe, probe_answers=answers
    )


def pool(task: Task) -> Split:
    """The training pictures followed by the validation pictures that were drawn from them."""
    return dataclasses.replace(
        task.train,
        paths=(*task.train.paths, *task.val.paths),
        labels=(*task.train.labels, *task.val.labels),
    )


def _check_splits(config: TrainConfig, task: Task) -> None:
    """Checks that options about the validation split suit a task.

    Raises:
        UserError: if folds are asked for that the data does not allow.
    """
    if config.folds and not task.val_drawn:
        named = config.data in SOURCES or config.data.startswith(tuple(COLLECTIONS))
        mend = "" if named else f", or move the validation {task.noun}s to the training ones"
        raise UserError(
            f"--folds {config.folds}: {task.name} has its own validation split, on which the epoch "
            f"is chosen; leave the option out{mend}"
        )
    if config.folds and task.group is not None:
        count = len({task.group(path) for path in pool(task).paths})
        if config.folds > count:
            raise UserError(
                f"--folds {config.folds}: molecules with the same scaffold (ring system) stay "
                f"together, and there are only {count} scaffolds to learn from; give {count} or "
                "fewer, or --split random"
            )
    most = max(Counter(pool(task).class_indices).values()) if config.folds else 0
    if config.folds > most:
        whose = "the largest class has" if isinstance(task.objective, Classes) else "there are"
        raise UserError(
            f"--folds {config.folds}: {whose} only {most} {task.noun}s to learn from; "
            f"give {most} or fewer"
        )


def _fit_probe(
    task: Task, features: dict[str, tuple[Tensor, Tensor]], *, seed: int
) -> tuple[LinearProbe, dict[str, Tensor | None]]:
    """The probe, and its answers to the validation and the test split."""
    probe = _fit_head(task, features, seed=seed, standardize=True)
    return probe, {
        name: task.objective.answers(probe(features[name][0][:, 0])) if name in features else None
        for name in ("val", "test")
    }


def _fit_head(
    task: Task, features: dict[str, tuple[Tensor, Tensor]], *, seed: int, standardize: bool
) -> LinearProbe:
    rows, targets = features["train"]
    return from_main(
        lambda: fit_probe(
            rows,
            targets,
            num_outputs=len(task.classes),
            loss=task.objective.loss,
            seed=seed,
            standardize=standardize,
        )
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
