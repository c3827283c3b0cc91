"""The options of the commands beside train, whose are in `config`."""

import dataclasses
import typing
from collections.abc import Sequence
from typing import Any, Literal, TypeVar

from delta_transfer.config import TrainConfig
from delta_transfer.errors import UserError

Device = Literal["auto", "cpu", "cuda", "mps"]
Own = TypeVar("Own")


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Options of evaluate.

    Args:
        run: folder of a finished run.
        data: labelled pictures or molecules: a folder or a CSV file as for train, or a named data
            set. Its test split counts, or all of it if it has none.
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
        check_least("--batch-size", self.batch_size, 1)
        check_least("--workers", self.workers, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictOptions:
    """Options of predict.

    Args:
        run: folder of a finished run.
        paths: pictures, folders of pictures, and CSV files with a column path; or, of a run on
            molecules, SMILES and files of them (.csv, .smi, .txt).
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
        check_least("--top", self.top, 1)
        check_least("--batch-size", self.batch_size, 1)
        check_least("--workers", self.workers, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Options of export.

    Args:
        run: folder of a finished run.
        format: onnx (for onnxruntime and others), torch (a program of torch.export) or safetensors
            (a folder that timm loads by local-dir:, where the network is one of timm's).
        out: folder for the network and its preprocessing; RUN/export/FORMAT if not given.
        overwrite: replace an older export in that folder.
    """

    run: str
    format: Literal["safetensors", "onnx", "torch"] = "onnx"
    out: str | None = None
    overwrite: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayersOptions:
    """Options of layers.

    Args:
        model: a timm name such as resnet50, pypi/efficientnet_lite0|1|2, or a network for graphs
            such as pretrain-gnns/gin; weights are not loaded.
        image_size: side of the pictures in pixels; the network's own if not given.
        json: print JSON.
    """

    model: str
    image_size: int | None = None
    json: bool = False

    def __post_init__(self) -> None:
        check_least("--image-size", self.image_size, 16)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoOptions:
    """No options."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """Options of compare, in the place of some of train.

    Args:
        methods: names with commas between (see: delta-transfer methods).
        seeds: with commas between; each draws splits, subsets, batch order, augmentation and the
            head's start, the same for all methods.
        samples_per_class: training pictures of each class, drawn at random: numbers with commas
            between, a comparison each; "all" stands for all pictures, which are taken if not given.
        out: folder of the comparison; runs/compare-DATA-TIME if not given. One that was broken off
            goes on in its folder, and one that is there may be given more methods and seeds.
        overwrite: start anew, in the place of what is in that folder.
        jobs: runs at the same time; as many as there are GPUs, or as cores and memory allow, if not
            given.
        threads: of each run on the CPU, on which its last digits depend; a fair share of the cores
            if not given, and in a folder that is there those of before.
        ray: address of a Ray cluster that makes the runs: auto, HOST:PORT or ray://HOST:PORT, or
            local, which starts one here; all its nodes need the data and --out under the same path.
    """

    methods: str = "probe,l2,l2sp,delta"
    seeds: str = "0,1,2"
    samples_per_class: str | None = None
    out: str | None = None
    overwrite: bool = False
    jobs: int | None = None
    threads: int | None = None
    ray: str | None = None

    def __post_init__(self) -> None:
        check_least("--jobs", self.jobs, 1)
        check_least("--threads", self.threads, 1)


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
    epochs: int = 10
    device: Device = "auto"


def with_train(own: type[Any], *, without: Sequence[str]) -> type[Any]:
    """A data class with options of a command and those of train.

    Args:
        own: the command's, which take the place of train's of the same name.
        without: those of train that the command does not have.
    """
    import docstring_parser

    found: dict[str, tuple[str, Any, Any]] = {}
    texts: dict[str, str] = {}
    for options in (own, TrainConfig):
        hints = typing.get_type_hints(options)
        told = docstring_parser.parse(options.__doc__ or "").params
        texts = {doc.arg_name: " ".join((doc.description or "").split()) for doc in told} | texts
        for field in dataclasses.fields(options):
            default = dataclasses.field(default=field.default)
            found.setdefault(field.name, (field.name, hints[field.name], default))
    names = [name for name in found if name not in without]
    text = "".join(f"    {name}: {texts[name]}\n" for name in names)
    return dataclasses.make_dataclass(
        own.__name__,
        [found[name] for name in names],
        namespace={"__doc__": f"Options.\n\nArgs:\n{text}"},
        frozen=True,
        kw_only=True,
    )


def apart(parsed: Any, own: type[Own]) -> tuple[Own, dict[str, Any]]:
    """What `with_train` put together: a command's own options, and what is left, which is train's.

    Args:
        parsed: options of that class.
        own: the command's.
    """
    values = dataclasses.asdict(parsed)
    names = [field.name for field in dataclasses.fields(own)]  # type: ignore[arg-type]
    return own(**{name: values.pop(name) for name in names}), values


def seed_list(text: str) -> tuple[int, ...]:
    """The seeds that `--seeds` names.

    Raises:
        UserError: if something is no seed, or there twice.
    """
    try:
        seeds = tuple(int(seed) for seed in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds {text}: give whole numbers with commas between, 0,1,2") from error
    if len(set(seeds)) < len(seeds) or min(seeds) < 0:
        raise UserError(f"--seeds {text}: each seed once, 0 or more")
    return seeds


def size_list(text: str | None) -> tuple[int | None, ...]:
    """The pictures of each class that `--samples-per-class` names; None stands for all.

    Raises:
        UserError: if something is no number of pictures, or there twice.
    """
    parts = ["all"] if text is None else [part.strip() for part in text.split(",")]
    if not all(part == "all" or (part.isdecimal() and int(part) > 0) for part in parts):
        raise UserError(
            f'--samples-per-class {text}: give numbers above 0 with commas between, 5,10,20; "all" '
            "stands for all pictures"
        )
    if len(set(parts)) < len(parts):
        raise UserError(f"--samples-per-class {text}: give each once")
    return tuple(None if part == "all" else int(part) for part in parts)


def check_least(flag: str, value: int | None, least: int) -> None:
    """Raises UserError where a number that was given is too small."""
    if value is not None and value < least:
        raise UserError(f"{flag} must be at least {least}, got {value}")
