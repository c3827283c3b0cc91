"""Read and check the files of one run; optional files that are missing are None."""

import base64
import dataclasses
import io
import json
import math
from pathlib import Path

from PIL import Image
from safetensors import SafetensorError, safe_open

from delta_transfer.errors import DataError, ModelError
from delta_transfer.metrics.metrics import ACCURACY
from delta_transfer.metrics.run_result import ModelSelection, RunResult, parse_percent
from delta_transfer.report.tables import Row, read_lines, read_table
from delta_transfer.utils.files import read_yaml


@dataclasses.dataclass(frozen=True)
class PredictionRow:
    """The prediction for one image, and its probability."""

    path: str
    label: str
    prediction: str
    probability: float

    @property
    def is_correct(self) -> bool:
        """True if the prediction is the label."""
        return self.label == self.prediction


@dataclasses.dataclass(frozen=True)
class Example:
    """A prediction with its image, as a data: URI."""

    prediction: PredictionRow
    image: str


@dataclasses.dataclass(frozen=True)
class Molecule:
    """A molecule, its drawing as a data: URI, and how far its features moved."""

    smiles: str
    distance: float
    image: str


@dataclasses.dataclass(frozen=True)
class CorruptionRow:
    """The accuracy on images of one corruption and severity; "none" and 0 are the images as is."""

    corruption: str
    severity: int
    num_images: int
    accuracy: float
    probe_accuracy: float


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The predictions of a split, and the names of all classes in their order."""

    classes: tuple[str, ...]
    rows: tuple[PredictionRow, ...]


def read_result(folder: Path) -> RunResult:
    """Read the results of a run.

    Raises:
        ModelError: if there are none, or a result is not a number.
    """
    result = RunResult.load(folder)
    scores = [result.metric_value("val"), result.metric_value("linear_probe_val")]
    if result.metric_value("test") is not None:  # then the probe has one as well
        scores += [result.metric_value("test"), result.metric_value("linear_probe_test")]
    if result.metric is not ACCURACY:  # others may be undefined
        scores = [score for score in scores if score is not None]
    counts = [result.seed, result.epochs, result.num_train_samples, result.num_classes]
    numbers = [*scores, *counts, result.wall_time_s]
    selection, compared = result.model_selection, result.probe_comparison
    if selection is not None:
        numbers += [*selection.mixing_coefficients, selection.folds]
        if len(selection.mixing_coefficients) != 1 + len(selection.strengths):
            raise ModelError(f"{folder / 'result.json'} is damaged: coefficients are missing")
        if not _are_valid_fractions(selection):
            raise ModelError(f"{folder / 'result.json'} is damaged: a fraction is not valid")
    if compared is not None:
        numbers += dataclasses.astuple(compared)
    if (
        not all(isinstance(value, int | float) and math.isfinite(value) for value in numbers)
        or not all(result.metric.is_valid(score) for score in scores if score is not None)
        or not isinstance(result.versions, dict)
        or not isinstance(result.sample_type, str)
    ):
        raise ModelError(f"{folder / 'result.json'} is damaged: a result is not a valid number")
    return result


def _are_valid_fractions(selection: ModelSelection) -> bool:
    """Return True if accuracies and agreements are fractions by coefficients in percent."""
    for found in (selection.accuracies, selection.agreements):
        if not isinstance(found, dict) or not found.keys() <= selection.losses.keys():
            return False
        if not all(isinstance(v, int | float) and 0 <= v <= 1 for v in found.values()):
            return False
    try:
        lengths = {len(parse_percent(key)) for key in selection.agreements}
    except ValueError:
        return False
    return lengths <= {1 + len(selection.strengths)}


def probe_validation_score(folder: Path) -> float:
    """Read the linear probe's score on the validation split, NaN where it is undefined.

    Raises:
        ModelError: as `read_result` does.
    """
    found = read_result(folder).metric_value("linear_probe_val")
    return math.nan if found is None else found


def read_config(folder: Path) -> dict[str, str]:
    """Read the options of a run, as text; those that were not set are empty.

    Raises:
        UserError: if the file is missing or is not a flat mapping.
    """
    path = folder / "config.yaml"
    if not path.exists():
        raise ModelError(f"{path} is missing: is the run finished?")
    wanted = "options of a run, one a line"
    values = read_yaml(path, wanted=wanted)
    if any(isinstance(value, dict) for value in values.values()):
        raise ModelError(f"{path} must contain {wanted}")
    return {str(name): _option(value) for name, value in values.items()}


def read_metrics(folder: Path) -> dict[int, dict[str, float]] | None:
    """Read the values of each epoch by name, in order; None if nothing was trained.

    Raises:
        DataError: if the file is damaged.
    """
    path = folder / "metrics.csv"
    if not path.exists():
        return None
    epochs: dict[int, dict[str, float]] = {}
    for row in read_table(path, ["epoch"]):
        values = epochs.setdefault(row.integer("epoch"), {})
        values |= {
            name: row.number(name)
            for name, text in row.cells.items()
            if text and name not in ("epoch", "step")
        }
    return {epoch: epochs[epoch] for epoch in sorted(epochs)} if len(epochs) > 1 else None


def read_drift(folder: Path) -> dict[str, dict[int, float]] | None:
    """Read how far each tap moved, by epoch; None if it was not measured over epochs.

    Raises:
        DataError: if the file is damaged.
    """
    path = folder / "drift.csv"
    if not path.exists():
        return None
    taps: dict[str, dict[int, float]] = {}
    for row in read_table(path, ["epoch", "tap", "distance"]):
        taps.setdefault(row.cells["tap"], {})[row.integer("epoch")] = row.number("distance")
    return taps if any(len(epochs) > 1 for epochs in taps.values()) else None


def read_attention(folder: Path) -> dict[str, tuple[float, ...]] | None:
    """Read the attention of each tap's channels, which sums to 1; None if the method has none.

    Raises:
        ModelError: if the file is damaged.
    """
    path = folder / "attention.safetensors"
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            taps = json.loads((file.metadata() or {})["delta-transfer"])["taps"]
            return {tap: tuple(file.get_tensor(f"attention/{tap}").tolist()) for tap in taps}
    except (OSError, SafetensorError, ValueError, TypeError, KeyError) as error:
        raise ModelError(f"{path} is not a channel attention file: {error}") from error


def read_predictions(folder: Path) -> Predictions:
    """Read a classifier's predictions of the test split, or else of the validation split.

    Raises:
        DataError: if the file is missing or damaged.
    """
    path = folder / "predictions.csv"
    header, lines = read_lines(path)
    classes = header[3:]
    if header[:3] != ["path", "label", "prediction"] or not classes:
        raise DataError(f"{path} must start with path, label, prediction and a column per class")
    index = {name: position for position, name in enumerate(classes)}
    rows = []
    for line, cells in lines:
        # By position, because a class may have the name of another column.
        values = Row(path, line, {"probability": ""})
        for name in cells[1:3]:
            if name not in index:
                raise values.error(f"{name!r} is not a class of the first line")
        values.cells["probability"] = cells[3 + index[cells[2]]]
        image, label, prediction = cells[:3]
        rows.append(PredictionRow(image, label, prediction, values.fraction("probability")))
    if not rows:
        raise DataError(f"{path} has no predictions")
    return Predictions(tuple(classes), tuple(rows))


def count_predictions(folder: Path) -> int:
    """Return the number of samples with predictions.

    Raises:
        DataError: if the file is missing or damaged.
    """
    return len(read_lines(folder / "predictions.csv")[1])


def read_examples(folder: Path) -> tuple[Example, ...] | None:
    """Read the example predictions with their images, in the order of the file; None if none.

    Raises:
        DataError: if the file is damaged, or an image is missing or damaged.
    """
    path = folder / "examples.csv"
    if not path.exists():
        return None
    examples = []
    for row in read_table(path, ["file", "path", "label", "prediction", "probability"]):
        cells, image = row.cells, _image_uri(folder, row)
        prediction = PredictionRow(
            cells["path"], cells["label"], cells["prediction"], row.fraction("probability")
        )
        examples.append(Example(prediction, image))
    return tuple(examples) or None


def read_molecules(folder: Path) -> tuple[Molecule, ...]:
    """Read the molecules that were drawn for the report, the one that moved most first.

    Raises:
        DataError: if the file is damaged, or an image is missing or damaged.
    """
    path = folder / "molecules.csv"
    if not path.exists():
        return ()
    return tuple(
        Molecule(row.cells["path"], row.number("distance"), _image_uri(folder, row))
        for row in read_table(path, ["file", "path", "distance"])
    )


def read_corruptions(folder: Path) -> tuple[CorruptionRow, ...]:
    """Read the accuracy by corruption and severity; empty if it was not measured.

    Raises:
        DataError: if the file is damaged.
    """
    path = folder / "corruptions.csv"
    if not path.exists():
        return ()
    columns = ["corruption", "severity", "num_images", "accuracy", "linear_probe_accuracy"]
    return tuple(
        CorruptionRow(
            row.cells["corruption"],
            row.integer("severity"),
            row.integer("num_images"),
            row.fraction("accuracy"),
            row.fraction("linear_probe_accuracy"),
        )
        for row in read_table(path, columns)
    )


def _image_uri(folder: Path, row: Row) -> str:
    """Return the image that a row of a table names, as a data: URI."""
    name = row.cells["file"]
    if not name or Path(name).name != name:
        raise row.error(f"file must be the name of an image in examples, got {name!r}")
    path = folder / "examples" / name
    try:
        content = path.read_bytes()
        with Image.open(io.BytesIO(content), formats=("JPEG", "PNG", "WEBP")) as image:
            image.load()
            kind = str(image.format).lower()
    except FileNotFoundError:
        raise DataError(f"{path} is missing, but {row.path.name} lists it") from None
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} is not an image, or is damaged: {error}") from error
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _option(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return str(value)
