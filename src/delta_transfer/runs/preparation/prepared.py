"""What every method starts from, and the same split otherwise."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone
from delta_transfer.data.task import TaskData, pool_train_and_val
from delta_transfer.features.probe import LinearProbe, fit_probe
from delta_transfer.training.loaders import Dataloaders
from delta_transfer.utils.distributed import run_on_main_and_broadcast
from delta_transfer.utils.module_state import weights_fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunSetup:
    """Everything that is the same for all methods of one data set, network and seed.

    Args:
        task: the images.
        backbone: the pretrained network with a random head; not trained, copied.
        source: the pretrained network without a head.
        taps: the modules that are tapped, by `--taps`.
        loaders: make the batches of splits, with the options of `prepare`.
        features: split -> what the head sees of each image `[N, V, F]`, the first of V views
            being the image itself and the second its mirror image; and targets.
        probe_seed: draws the folds by which strengths of probes are chosen.
        probe: the linear probe.
        probe_predictions: to the validation and the test split (None without one), `[N, K]`.
        probe_wall_time_s: how long the probe took to fit.
        description: what was logged of the images and the network, line by line.
        content_hashes: a hash of each image, by its path.
        data_fingerprint: fingerprint of what can be learnt from: training images, the drawn
            validation images among them, and their classes.
        preprocessing: how images are prepared where nothing is augmented, as JSON.
    """

    task: TaskData
    backbone: Backbone
    source: nn.Module
    taps: tuple[str, ...]
    loaders: Dataloaders
    features: dict[str, tuple[Tensor, Tensor]]
    probe_seed: int
    probe: LinearProbe
    probe_predictions: dict[str, Tensor | None]
    probe_wall_time_s: float
    description: tuple[str, ...]
    content_hashes: Mapping[str, str]
    data_fingerprint: str
    preprocessing: dict[str, Any]

    @property
    def device(self) -> torch.device:
        """Return the device that all of the run is on."""
        return self.loaders.device

    @property
    def probe_scores(self) -> dict[str, float | None]:
        """By the task_type's measure, of the validation and the test split (None without one)."""
        found: dict[str, float | None] = {"test": None}
        task_type = self.task.task_type
        for name, split in (("val", self.task.val), ("test", self.task.test)):
            answers = self.probe_predictions[name]
            if split is not None and answers is not None:
                found[name] = task_type.score(answers, split.targets, task_type.metric.name)
        return found

    @functools.cached_property
    def source_fingerprint(self) -> str:
        """Of the pretrained weights."""
        return weights_fingerprint(self.source, head=self.backbone.head)

    @functools.cached_property
    def unstandardized_probe(self) -> LinearProbe:
        """The probe on features that keep their scales, from which DELTA's head starts."""
        return fit_task_probe(self.task, self.features, seed=self.probe_seed, standardize=False)


def resplit(prepared: RunSetup, *, train: Sequence[int], val: Sequence[int]) -> RunSetup:
    """The same with training and validation images split otherwise, and a probe of its own.

    Args:
        prepared: of a task whose validation split was drawn from its training images.
        train: positions among its training images followed by its validation images.
        val: likewise; may overlap with `train`.
    """
    task, everything = prepared.task, pool_train_and_val(prepared.task)
    both = [prepared.features["train"], prepared.features["val"]]
    rows = torch.cat([views for views, _ in both])
    labels = torch.cat([labels for _, labels in both])
    features = {
        **prepared.features,
        "train": (rows[list(train)], labels[list(train)]),
        "val": (rows[list(val)], labels[list(val)]),
    }
    task = dataclasses.replace(task, train=everything.subset(train), val=everything.subset(val))
    probe, answers = fit_probe_and_predict(task, features, seed=prepared.probe_seed)
    return dataclasses.replace(
        prepared, task=task, features=features, probe=probe, probe_predictions=answers
    )


def fit_probe_and_predict(
    task: TaskData, features: dict[str, tuple[Tensor, Tensor]], *, seed: int
) -> tuple[LinearProbe, dict[str, Tensor | None]]:
    """The probe, and its answers to the validation and the test split."""
    probe = fit_task_probe(task, features, seed=seed, standardize=True)
    return probe, {
        name: task.task_type.predictions(probe(features[name][0][:, 0]))
        if name in features
        else None
        for name in ("val", "test")
    }


def fit_task_probe(
    task: TaskData, features: dict[str, tuple[Tensor, Tensor]], *, seed: int, standardize: bool
) -> LinearProbe:
    """The linear probe of the training features, fitted by the main process."""
    rows, targets = features["train"]
    return run_on_main_and_broadcast(
        lambda: fit_probe(
            rows,
            targets,
            num_outputs=len(task.classes),
            loss=task.task_type.loss,
            seed=seed,
            standardize=standardize,
        )
    )
