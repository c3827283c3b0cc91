"""What a model card tells of a run: its figures and options, and nothing of the machine."""

import dataclasses
import getpass
import logging
import re
from pathlib import Path, PureWindowsPath
from typing import Literal

from delta_transfer.backbones.base import GraphSpec, InputSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import is_dataset_name
from delta_transfer.errors import UserError
from delta_transfer.export.formats import is_timm
from delta_transfer.inference.predictor import Predictor
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.per_target import TargetMetrics
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.metrics.task_types import Multiclass, TaskType
from delta_transfer.report.comparison.columns import read_target_metrics
from delta_transfer.report.comparison.runs import Comparison, read_comparison
from delta_transfer.report.run_files import Predictions, read_predictions, read_result
from delta_transfer.runs.folder import COMPARISON_FILE, LOG_FILE, RESULT_NEUTRAL_OPTIONS

logger = logging.getLogger(__name__)

_SUFFIXES = (".csv", ".smi", ".txt")
_HOMES = ("home", "users")  # folders that hold one for each user, named after them


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What there is to tell of a run that goes to the hub.

    Args:
        repo: where it goes, ORG/NAME.
        license: of the model, None where nobody said.
        data: what the data is called.
        config: the options, as `public_config` has them.
        result: the figures.
        classes: the names of the outputs.
        task_type: what they mean.
        input: what the network takes.
        base: the name of what was fine-tuned; None where it was given in Python.
        timm: whether timm makes the network.
        counts: samples for training, validation and test, where the log has them.
        split: what the predictions are of.
        predictions: of classes; None if they are gone.
        columns: figures of questions or values; empty if they are gone.
        comparison: the runs of the same size that this one is compared with, None for none.
    """

    repo: str
    license: str | None
    data: str
    config: TrainConfig
    result: RunResult
    classes: tuple[str, ...]
    task_type: TaskType
    input: InputSpec | GraphSpec
    base: str | None
    timm: bool
    counts: tuple[int, int, int] | None
    split: Literal["test", "validation"]
    predictions: Predictions | None
    columns: tuple[TargetMetrics, ...]
    comparison: Comparison | None

    @property
    def noun(self) -> str:
        """What one of the samples is called."""
        return self.result.sample_type

    @property
    def chooses_epoch(self) -> bool:
        """Whether an epoch was chosen by validation, as neither the probe nor the authors do."""
        method = METHODS.get(self.result.method)
        return (method is None or method.trains_network) and not self.config.paper_protocol

    @property
    def name(self) -> str:
        """The name behind the organisation's."""
        return self.repo.rpartition("/")[2]


def collect_facts(
    predictor: Predictor, *, repo: str, license: str | None, data_name: str | None
) -> CardFacts:
    """What the folder of a run tells.

    Raises:
        UserError: if the run is not finished, or a file of it is damaged.
    """
    run, result = predictor.run, read_result(predictor.run)
    of_classes = isinstance(predictor.task_type, Multiclass)
    there = (run / "predictions.csv").is_file()  # which may have been deleted for what it tells
    name = (
        public_name(predictor.config.data, noun=result.sample_type)
        if data_name is None
        else data_name
    )
    config = public_config(predictor.config, name=name)
    return CardFacts(
        repo=repo,
        license=license,
        data=name,
        config=config,
        result=result,
        classes=predictor.classes,
        task_type=predictor.task_type,
        input=predictor.backbone.input_spec,
        base=None if predictor.backbone.architecture is None else config.model,
        timm=is_timm(predictor.backbone),
        counts=_count_splits(run / LOG_FILE),
        split="validation" if result.metric_value("test") is None else "test",
        predictions=read_predictions(run) if there and of_classes else None,
        columns=tuple(read_target_metrics(run)) if there and not of_classes else (),
        comparison=_find_comparison(run),
    )


def public_config(config: TrainConfig, *, name: str) -> TrainConfig:
    """The options of a run without what is of its machine; files go by what they are.

    Data without a name of its own goes by one in brackets, so that no folder that happens to be
    called so, such as that of the model itself, is taken for it.

    Args:
        config: the options.
        name: what the data is called.
    """
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    kept = {
        name: value
        for name, value in dataclasses.asdict(config).items()
        if name not in RESULT_NEUTRAL_OPTIONS
    }
    kept |= {name: fields[name] for name in RESULT_NEUTRAL_OPTIONS}
    kept |= {"data": name if is_dataset_name(name) else f"({name})", "data_root": None}
    if config.weights is not None:
        kept["weights"] = f"weights{PureWindowsPath(config.weights).suffix}"
    if config.model.startswith("local-dir:"):
        kept["model"] = "local-dir:model"
    if re.search(r"[/\\.]", config.attention):
        kept["attention"] = "attention.safetensors"
    return TrainConfig(**kept)


def public_name(data: str, *, noun: str) -> str:
    r"""What data is called before strangers: no folder on the way to it, and no user's name.

    Args:
        data: a named data set, a folder or a file.
        noun: what it is of, one of them.

    Example:
        >>> [public_name(data, noun="image") for data in ("torchvision/dtd", "/data/a/pets")]
        ['torchvision/dtd', 'pets']
        >>> [public_name(data, noun="image") for data in ("/home/ada", "C:\\my\\birds.csv")]
        ['own images', 'birds']
    """
    path = data.removeprefix("hf/")
    if is_dataset_name(data) and (path == data or not _is_path(path)):
        return data
    *folders, last = re.split(r"[/\\]", path.rstrip("/\\"))
    own = {Path.home().name.casefold(), _user().casefold()}
    of_a_user = last.casefold() in own or (folders and folders[-1].casefold() in _HOMES)
    for suffix in _SUFFIXES:
        last = last.removesuffix(suffix)
    return f"own {noun}s" if of_a_user or last.strip(".~:") == "" else last


def _is_path(text: str) -> bool:
    return text.startswith(("/", ".", "~")) or "\\" in text or Path(text).exists()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # one without a name
        return ""


def _count_splits(log: Path) -> tuple[int, int, int] | None:
    """Samples for training, validation and test, as the log of a run has them at its start."""
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    pattern = r"^data {5}.*, (\d+) training, (\d+) validation, (\d+|no) test \w+$"
    found = re.search(pattern, text, re.MULTILINE)
    if found is None:
        return None
    training, validation, test = (0 if count == "no" else int(count) for count in found.groups())
    return training, validation, test


def _find_comparison(run: Path) -> Comparison | None:
    """The comparison that a run is part of: its runs of the same size."""
    own = run.resolve()
    for folder in own.parents[:2]:
        if not all((folder / name).is_file() for name in (COMPARISON_FILE, "results.csv")):
            continue
        try:
            found = read_comparison(folder)
        except UserError as error:
            logger.warning("the comparison is left out of the model card: %s", error)
            return None
        path = own.relative_to(folder).as_posix()
        for entry in found.entries:
            if entry.folder.as_posix() == path:
                return found.with_size(entry.samples_per_class)
    return None
