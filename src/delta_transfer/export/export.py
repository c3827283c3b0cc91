"""The command export: write the network of a run for other programs, and verify the file."""

import contextlib
import copy
import dataclasses
import json
import os
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal

from torch import nn

from delta_transfer.backbones.base import GraphSpec
from delta_transfer.backbones.saved import CONFIG
from delta_transfer.errors import ConfigError, ModelError, unknown
from delta_transfer.export.formats import FORMATS, Exportable, Format, silence_warnings
from delta_transfer.export.verification import compare_outputs, find_samples
from delta_transfer.inference.predictor import Predictor, model_folder
from delta_transfer.metrics.task_types import task_type_to_dict
from delta_transfer.runs.folder import check_output_location
from delta_transfer.training.loaders import resizes_by_split
from delta_transfer.utils.files import write_atomically

TOLERANCE = 1e-4
"""Largest difference allowed between the outputs of the exported and the original network.

For outputs above 10, which float32 rounds in proportion, it is 1e-5 of the largest output.
"""

PREPROCESSING = "preprocessing.json"
_FILES = (PREPROCESSING, CONFIG, "model.onnx.data", *(way.file for way in FORMATS.values()))

_INPUTS = (
    "float32 [batch, 3, size, size]: RGB images, upright, resized with antialiasing, center-"
    "cropped, divided by 255, minus mean, divided by std"
)
_PREDICTIONS = {
    "multiclass": "softmax of the logits: the probability of each class",
    "multilabel_binary": "sigmoid of each logit: the probability of the positive label",
    "regression": "logit times std plus mean of each target, which task_type has",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportResult:
    """The result of an export and its verification.

    Args:
        file: the file with the weights.
        opset: the opset of ONNX; None in other formats.
        size_bytes: size of the folder.
        max_difference: largest difference of outputs from the original network's.
        checked_on: description of the samples for the comparison.
    """

    file: Path
    opset: int | None
    size_bytes: int
    max_difference: float
    checked_on: str


def resolve_run_folder(path: str) -> Path:
    """Return the folder of a run, of which `path` may be the model folder."""
    folder = Path(path)
    inside = (folder / CONFIG).is_file() and model_folder(folder) != folder
    inside = inside and not (folder / "model").exists()
    return folder.resolve().parent if inside else folder


def export_run(
    predictor: Predictor,
    *,
    format: Literal["safetensors", "onnx", "torch"] = "onnx",
    out: str | Path | None = None,
    overwrite: bool = False,
) -> ExportResult:
    """Export the network of a run, load it again and compare its outputs.

    Args:
        predictor: the run; for a custom network `Predictor(run, network=...)`.
        format: safetensors (timm's form, for networks of timm), onnx or torch (`torch.export`).
        out: the folder; RUN/export/FORMAT if None.
        overwrite: replace an older export there.

    Returns:
        The file and its difference from the original.

    Raises:
        UserError: if the folder is in use, the network cannot be exported in this format, or its
            outputs differ by more than `TOLERANCE`; nothing is written then.
    """
    if format not in FORMATS:
        raise unknown("format", format, list(FORMATS))
    export_format, spec = FORMATS[format], predictor.backbone.input_spec
    folder = predictor.run / "export" / format if out is None else Path(out)
    check_folder(
        folder, data=predictor.config.data, overwrite=overwrite, mark=PREPROCESSING, files=_FILES
    )
    if isinstance(spec, GraphSpec) and not export_format.supports_graphs:
        raise ConfigError(
            f"`format={format}`: the network of {predictor.run} is for graphs: use "
            "`format=safetensors`"
        )
    module = copy.deepcopy(predictor.backbone.module).cpu().eval()
    network = Exportable(
        folder=model_folder(predictor.run),
        backbone=dataclasses.replace(predictor.backbone, module=module),
        metadata=_preprocessing_metadata(predictor),
    )
    with write_folder_atomically(folder) as new, silence_warnings():
        exported = _write_and_verify(network, export_format, new, predictor)
    return dataclasses.replace(exported, file=folder / export_format.file)


def _write_and_verify(
    network: Exportable, export_format: Format, folder: Path, predictor: Predictor
) -> ExportResult:
    """Write the network to a new folder; raise ModelError if it differs when loaded again."""
    write_atomically(folder / PREPROCESSING, json.dumps(network.metadata, indent=2) + "\n")
    opset = export_format.write(network, folder)
    samples = find_samples(predictor.config, predictor.backbone.input_spec)
    module: nn.Module = network.backbone.module
    exported = export_format.read(network, folder)
    difference, largest = compare_outputs(module, exported, samples.batches)
    allowed = TOLERANCE * max(1.0, largest / 10)
    if not difference <= allowed:  # NaN is refused, too
        raise ModelError(
            f"the outputs of {export_format.file} differ from those of {predictor.run} by "
            f"{difference:.1e}, more than {allowed:.1e}, on {samples.description}; nothing is "
            f"written. Use another `format`, one of {', '.join(FORMATS)}"
        )
    return ExportResult(
        file=folder / export_format.file,
        opset=opset,
        size_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        max_difference=difference,
        checked_on=samples.description,
    )


def _preprocessing_metadata(predictor: Predictor) -> dict[str, Any]:
    """Describe preprocessing and outputs, for users of the exported file alone."""
    spec = predictor.backbone.input_spec
    outputs = {
        "outputs": "logits, float32 [batch, classes]",
        "predictions": _PREDICTIONS[predictor.task_type.name],
        "classes": list(predictor.classes),
        "task_type": task_type_to_dict(predictor.task_type),
    }
    if isinstance(spec, GraphSpec):
        return {**dataclasses.asdict(spec), **outputs}
    (resize,) = resizes_by_split(spec, predictor.config, val_drawn=False)["val"]
    return {
        "inputs": _INPUTS,
        "size": spec.size,
        "resize": resize.side,
        "resize_mode": "both sides" if resize.square else "shorter side",
        "interpolation": resize.interpolation,
        "crop": "center",
        "mean": list(spec.mean),
        "std": list(spec.std),
        **outputs,
    }


def check_folder(
    folder: Path, *, data: str, overwrite: bool, mark: str, files: Collection[str]
) -> None:
    """Check that an export may be written to a folder.

    Args:
        folder: the folder to write to.
        data: the training data, which the folder must not be part of.
        overwrite: an older export may be replaced.
        mark: the file that identifies an export.
        files: all files that an export may have.

    Raises:
        UserError: if the folder is in use, part of the data, or cannot be written.
    """
    check_output_location(folder, data=data)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names:
        return
    if not overwrite:
        raise ConfigError(
            f"`out={folder}` is not empty: use another folder, or `overwrite` to replace the "
            "export there"
        )
    foreign = min(names - set(files), default=None)
    if mark not in names or foreign is not None:
        found = f"no {mark}" if foreign is None else foreign
        raise ConfigError(
            f"`out={folder}` contains files that are not of an export ({found}), which "
            "`overwrite` does not replace: use another folder"
        )


@contextlib.contextmanager
def write_folder_atomically(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of the folder on success."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryDirectory(dir=there, prefix=".export.") as temporary:
        yield Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        news = sorted(Path(temporary).iterdir())
        for new in news:
            os.replace(new, folder / new.name)
        for old in folder.iterdir():  # files of another format
            if old.is_file() and old.name not in {new.name for new in news}:
                old.unlink()
