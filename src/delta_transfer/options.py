"""The options of the commands beside train, whose are in `config`."""

import dataclasses
from typing import Literal

Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of evaluate.

    Args:
        run: folder of a finished run.
        data: folder of labelled pictures (its test split, or all if it has none), or the named data
            set that the run was trained on.
        json: print JSON.
        device: auto, cpu, cuda or mps.
        batch_size: pictures at a time.
        workers: processes that load pictures; chosen by the number of cores if not given.
    """

    run: str
    data: str
    json: bool = False
    device: Device = "auto"
    batch_size: int = 32
    workers: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of predict.

    Args:
        run: folder of a finished run.
        paths: pictures, and folders of pictures.
        top: how many classes to print for each picture.
        json: print JSON, with all probabilities.
        device: auto, cpu, cuda or mps.
        batch_size: pictures at a time.
        workers: processes that load pictures; chosen by the number of cores if not given.
    """

    run: str
    paths: tuple[str, ...]
    top: int = 1
    json: bool = False
    device: Device = "auto"
    batch_size: int = 32
    workers: int | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersOptions:
    """Options of layers.

    Args:
        model: a timm name such as resnet50, or pypi/efficientnet_lite0|1|2; weights are not loaded.
        image_size: side of the pictures in pixels; the network's own if not given.
        json: print JSON.
    """

    model: str
    image_size: int | None = None
    json: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """No options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class DemoOptions:
    """Options of demo.

    Args:
        out: folder of the runs; runs/demo-TIME if not given.
        overwrite: replace what is in that folder.
        seeds: comma between; each draws other pictures.
        epochs: passes over the training pictures.
        device: auto, cpu, cuda or mps.
    """

    out: str | None = None
    overwrite: bool = False
    seeds: str = "0,1,2"
    epochs: int = 8
    device: Device = "auto"
