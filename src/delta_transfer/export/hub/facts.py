"""The facts on a model card: metrics and options of a run, and nothing about its machine."""

import dataclasses
import getpass
import logging
import re
from pathlib import Path, PureWindowsPath
from typing import Any, Literal

from delta_transfer.backbones.base import GraphSpec, InputSpec
from delta_transfer.config.train import TrainConfig
from delta_transfer.data.registry import is_dataset_name
from delta_transfer.errors import UserError
from delta_transfer.export.formats import is_timm
from delta_transfer.inference.predictor import Predictor
from delta_transfer.methods.registry import METHODS
from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.per_target import TargetMetrics
from delta_transfer.metrics.run_result import RunResult
from delta_transfer.report.comparison.runs import Comparison, read_comparison
from delta_transfer.report.run_files import Predictions, read_predictions, read_result
from delta_transfer.report.targets import read_target_metrics
from delta_transfer.runs.folder import COMPARISON_FILE, LOG_FILE, RESULT_NEUTRAL_OPTIONS

logger = logging.getLogger(__name__)

_SUFFIXES = (".csv", ".smi", ".txt")
_HOMES = ("home", "users")  # folders that hold one for each user, named after them


@dataclasses.dataclass(frozen=True, kw_only=True)
class CardFacts:
    """The facts on the model card of a run."""

    repo: str  # ORG/NAME
    license: str | None
    data: str  # its public name
    sample_type: str  # image, molecule or graph
    config: TrainConfig  # as `public_config` returns it
    result: RunResult
    classes: tuple[str, ...]  # or targets
    input_spec: InputSpec | GraphSpec
    base: str | None  # the pretrained network; None if it was passed in Python
    timm: bool  # timm creates the network
    counts: tuple[int, ...] | None  # training, validation and test samples, if the log has them
    split: Literal["test", "validation"]  # of predictions and columns
    predictions: Predictions | None  # of classes, if the file is there
    columns: tuple[TargetMetrics, ...]  # metrics per target, if the file is there
    comparison: Comparison | None  # the runs of the same size, if the run is part of one

    @property
    def name(self) -> str:
        """Return the repository's name without the organisation."""
        return self.repo.rpartition("/")[2]

    @property
    def scores(self) -> tuple[float | None, float | None]:
        """Return the scores of the model and of the linear probe on `split`."""
        value = self.result.metric_value
        if self.split == "test":
            return value("test"), value("linear_probe_test")
        return value("val"), value("linear_probe_val")

    @property
    def trains(self) -> bool:
        """Return True if the method trains more than the linear probe."""
        method = METHODS.get(self.result.method)
        return method is None or method.trains_network


def collect_facts(
    predictor: Predictor, *, repo: str, license: str | None, data_name: str | None
) -> CardFacts:
    """Return the facts that the folder of a run has.

    Raises:
        UserError: if the run is not finished, or a file of it is damaged.
    """
    run, result = predictor.run, read_result(predictor.run)
    sample_type = (
        "image" if isinstance(predictor.backbone.input_spec, InputSpec) else result.sample_type
    )
    name = (
        public_name(predictor.config.data, sample_type=sample_type)
        if data_name is None
        else data_name
    )
    config = public_config(predictor.config, name=name)
    # People may delete it, as it names samples.
    has_predictions = (run / "predictions.csv").is_file()
    classification = result.metric is ACCURACY
    return CardFacts(
        repo=repo,
        license=license,
        data=name,
        sample_type=sample_type,
        config=config,
        result=result,
        classes=predictor.classes,
        input_spec=predictor.backbone.input_spec,
        base=None if predictor.backbone.architecture is None else config.model,
        timm=is_timm(predictor.backbone),
        counts=_count_splits(run / LOG_FILE),
        split="validation" if result.metric_value("test") is None else "test",
        predictions=read_predictions(run) if has_predictions and classification else None,
        columns=tuple(read_target_metrics(run)) if has_predictions and not classification else (),
        comparison=_find_comparison(run),
    )


def public_config(config: TrainConfig, *, name: str) -> TrainConfig:
    """Return the options of a run without those of its machine, and files without their paths.

    Data that is not a named data set gets its name in brackets, so that it is never mistaken for
    a folder of that name, such as the model's own.

    Args:
        config: the options.
        name: the public name of the data.
    """
    fields: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(config)}
    changed = {option: fields[option] for option in RESULT_NEUTRAL_OPTIONS}
    changed |= {"data": name if is_dataset_name(name) else f"({name})"}
    changed |= {"data_root": None, "shifted": None}
    if config.weights is not None:
        changed["weights"] = f"weights{PureWindowsPath(config.weights).suffix}"
    if config.model.startswith("local-dir:"):
        changed["model"] = "local-dir:model"
    if re.search(r"[/\\.]", config.attention):
        changed["attention"] = "attention.safetensors"
    return dataclasses.replace(config, **changed)


def public_name(data: str, *, sample_type: str) -> str:
    r"""Return the name of data without the folders that lead to it and without a user's name.

    Args:
        data: a named data set, a folder or a file.
        sample_type: image, molecule or graph.

    Example:
        >>> [public_name(data, sample_type="image") for data in ("torchvision/dtd", "/data/a/pets")]
        ['torchvision/dtd', 'pets']
        >>> [public_name(data, sample_type="image") for data in ("/home/ada", "C:\\my\\birds.csv")]
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
    return f"own {sample_type}s" if of_a_user or last.strip(".~:") == "" else last


def _is_path(text: str) -> bool:
    return text.startswith(("/", ".", "~")) or "\\" in text or Path(text).exists()


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # a user without a name
        return ""


def _count_splits(log: Path) -> tuple[int, ...] | None:
    """Return the training, validation and test samples that the log of a run states.

    The log of a resumed run states them again, and the last part is that of the saved network.
    """
    pattern = r"^data {5}.*, (\d+) training, (\d+) validation, (\d+|no) test \w+$"
    try:
        text = log.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    found = re.findall(pattern, text, re.MULTILINE)
    return tuple(0 if count == "no" else int(count) for count in found[-1]) if found else None


def _find_comparison(run: Path) -> Comparison | None:
    """Return the comparison that a run is part of: its runs of the same size."""
    own = run.resolve()
    for folder in own.parents[:2]:
        if not all((folder / name).is_file() for name in (COMPARISON_FILE, "results.csv")):
            continue
        try:
            found = read_comparison(folder)
        except UserError as error:
            logger.warning("the comparison is left out of the model card: %s", error)
            return None
        for entry in found.entries:
            if folder / entry.folder == own:
                return found.with_size(entry.samples_per_class)
    return None
