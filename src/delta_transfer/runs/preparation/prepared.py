"""Data, network, features and probe of a run, and the same with another split."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone
from delta_transfer.data.task import Split, TaskData, pool_train_and_val
from delta_transfer.features.probe import LinearProbe, fit_probe
from delta_transfer.training.loaders import Dataloaders
from delta_transfer.utils.distributed import run_on_main_and_broadcast
from delta_transfer.utils.module_state import weights_fingerprint


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class RunSetup:
    """Everything that all methods share for one dataset, network and seed.

    Args:
        task: the dataset with its splits.
        backbone: the pretrained network with a random head; copied, never trained.
        source: the pretrained network without a head.
        taps: names of the tapped modules.
        loaders: make the batches of splits, with the options of `prepare`.
        features: split -> the head's inputs for each sample `[N, V, F]`, where the first of V
            views is the image and the second its horizontal flip; and targets.
        probe_seed: seed of the folds that choose the probe's strength.
        probe: the linear probe.
        probe_predictions: for the validation and the test split (None without one), `[N, K]`.
        probe_wall_time_s: time to fit the probe.
        description: log lines about data and network.
        content_hashes: hash of each sample, by path.
        data_fingerprint: fingerprint of the samples that may be trained on, with their labels.
        preprocessing: preparation of samples without augmentation, as JSON.
        shifted: images of the same classes from another source; None without.
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
    shifted: Split | None = None

    @property
    def device(self) -> torch.device:
        """Return the device that all of the run is on."""
        return self.loaders.device

    @property
    def probe_scores(self) -> dict[str, float | None]:
        """The probe's metric on the validation and the test split (None without one)."""
        found: dict[str, float | None] = {"test": None}
        task_type = self.task.task_type
        for name, split in (("val", self.task.val), ("test", self.task.test)):
            predictions = self.probe_predictions[name]
            if split is not None and predictions is not None:
                found[name] = task_type.score(predictions, split.targets, task_type.metric.name)
        return found

    @functools.cached_property
    def source_fingerprint(self) -> str:
        """Fingerprint of the pretrained weights."""
        return weights_fingerprint(self.source, head=self.backbone.head)


def resplit(prepared: RunSetup, *, train: Sequence[int], val: Sequence[int]) -> RunSetup:
    """Return the setup with another training and validation split, and a new probe.

    Args:
        prepared: setup of a dataset whose validation split was drawn from its training samples.
        train: positions among its training samples followed by its validation samples.
        val: positions of the new validation split; may overlap with `train`.
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
    probe, predictions = fit_probe_and_predict(task, features, seed=prepared.probe_seed)
    return dataclasses.replace(
        prepared, task=task, features=features, probe=probe, probe_predictions=predictions
    )


def fit_probe_and_predict(
    task: TaskData, features: dict[str, tuple[Tensor, Tensor]], *, seed: int
) -> tuple[LinearProbe, dict[str, Tensor | None]]:
    """Return the probe, and its predictions for the validation and the test split."""
    probe = fit_task_probe(task, features, seed=seed)
    return probe, {
        name: task.task_type.predictions(probe(features[name][0][:, 0]))
        if name in features
        else None
        for name in ("val", "test")
    }


def fit_task_probe(
    task: TaskData, features: dict[str, tuple[Tensor, Tensor]], *, seed: int
) -> LinearProbe:
    """Return the linear probe of the training features, fitted by the main process."""
    rows, targets = features["train"]
    return run_on_main_and_broadcast(
        lambda: fit_probe(
            rows,
            targets,
            num_outputs=len(task.classes),
            loss=task.task_type.loss,
            seed=seed,
        )
    )
