"""The options of attention."""

import dataclasses
from typing import Literal

from delta_transfer.errors import UserError
from delta_transfer.options import Device, check_least


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Options of attention.

    Args:
        data: folder of pictures, CSV file or named data set, as for train.
        model: pretrained network, as for train.
        weights: the network's weights, from this file in place of the model's own.
        estimator: refined (a forward and backward pass, corrected by a few exact pictures; the
            default), gradient (the pass alone) or exact (each channel switched off, slow;
            official).
        out: file for train --attention, with a picture beside it;
            runs/attention-DATA-TIME.safetensors if not given.
        overwrite: replace that file and its picture.
        preset: default, or official, the protocol of DELTA's authors.
        taps: modules whose channels are measured: auto, or names and glob patterns with commas
            between (see: delta-transfer layers MODEL).
        samples: training pictures that scores are averaged over, drawn at random; all if not given.
        tolerance: measure no more pictures once attention has converged: once its relative
            standard error is so small at every tap, for example 0.1. Refined measures all and says
            whether it has.
        temperature: of the softmax that makes attention of scores; larger is closer to uniform. 5
            if not given.
        clip: no score counts as more than so many standard deviations from the mean of its tap.
        floor: a score below zero, of a channel without which the loss is lower, counts as zero.
        image_size: side of the pictures in pixels; the network's own if not given.
        samples_per_class: training pictures of each class, drawn at random; all if not given.
        seed: draws splits and pictures.
        val_fraction: share of the training pictures held out where there is no validation split.
        test_split: name of the test split's folder, or a fraction of the training pictures to
            hold out for a test.
        data_root: where named data sets lie or are downloaded to; a cache folder if not given.
        smiles_column: of a CSV file of molecules, the column of their SMILES.
        label_columns: of such a file, the columns to learn, with commas between; all others that
            hold numbers if not given.
        split: how molecules are split: auto, scaffold or random, as for train.
        batch_size: pictures at a time; 32 (official: 64) if not given.
        device: auto, cpu, cuda or mps.
        workers: processes that load pictures; chosen by the number of cores if not given.
        json: print JSON.
    """

    data: str
    model: str = "pypi/efficientnet_lite0"
    weights: str | None = None
    estimator: Literal["gradient", "refined", "exact"] | None = None
    out: str | None = None
    overwrite: bool = False
    preset: Literal["default", "official"] = "default"
    taps: str = "auto"
    samples: int | None = None
    tolerance: float | None = None
    temperature: float | None = None
    clip: float | None = None
    floor: bool = False
    image_size: int | None = None
    samples_per_class: int | None = None
    seed: int = 0
    val_fraction: float = 0.15
    test_split: str = "test"
    data_root: str | None = None
    smiles_column: str | None = None
    label_columns: str | None = None
    split: Literal["auto", "scaffold", "random"] = "auto"
    batch_size: int | None = None
    device: Device = "auto"
    workers: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        # TrainConfig, which checks the other options, knows these by other names.
        check_least("--samples", self.samples, 1)
        for name in ("tolerance", "temperature", "clip"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise UserError(f"--{name} must be above 0, got {value}")
