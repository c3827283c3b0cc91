"""The options of the commands beside train, whose are in `config`."""

import dataclasses
from typing import Literal

from delta_transfer.errors import UserError

Device = Literal["auto", "cpu", "cuda", "mps"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of evaluate.

    Args:
        run: folder of a finished run.
        data: labelled pictures: a folder or a CSV file as for train, or a named data set. Its test
            split counts, or all pictures if it has none.
        out: folder for the figures, predictions and confusion matrix; RUN/evaluation/DATA if not
            given. An older evaluation in it is replaced.
        json: print JSON.
        data_root: where named data sets lie or are downloaded to; that of the run if not given.
        device: auto, cpu, cuda or mps.
        batch_size: pictures at a time.
        workers: processes that load pictures; chosen by the number of cores if not given.
    """

    run: str
    data: str
    out: str | None = None
    json: bool = False
    data_root: str | None = None
    device: Device = "auto"
    batch_size: int = 32
    workers: int | None = None

    def __post_init__(self) -> None:
        _check("--batch-size", self.batch_size, 1)
        _check("--workers", self.workers, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of predict.

    Args:
        run: folder of a finished run.
        paths: pictures, folders of pictures, and CSV files with a column path.
        top: how many classes to print for each picture; 1 if not given, in JSON all.
        csv: write the predictions, with all probabilities, to this file instead of printing them.
        overwrite: replace that file.
        json: print JSON.
        device: auto, cpu, cuda or mps.
        batch_size: pictures at a time.
        workers: processes that load pictures; chosen by the number of cores if not given.
    """

    run: str
    paths: tuple[str, ...]
    top: int | None = None
    csv: str | None = None
    overwrite: bool = False
    json: bool = False
    device: Device = "auto"
    batch_size: int = 32
    workers: int | None = None

    def __post_init__(self) -> None:
        _check("--top", self.top, 1)
        _check("--batch-size", self.batch_size, 1)
        _check("--workers", self.workers, 0)


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

    def __post_init__(self) -> None:
        _check("--image-size", self.image_size, 16)


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


def _check(flag: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"{flag} must be at least {least}, got {value}")
