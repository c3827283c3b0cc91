"""The command export: the network of a run in a format that other programs read, checked."""

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
from delta_transfer.errors import UserError, unknown
from delta_transfer.export.formats import FORMATS, Exportable, Format, silence_warnings
from delta_transfer.export.verification import compare_outputs, find_samples
from delta_transfer.inference.predictor import Predictor, model_folder
from delta_transfer.metrics.task_types import task_type_to_dict
from delta_transfer.runs.folder import check_output_location
from delta_transfer.training.loaders import resizes_by_split
from delta_transfer.utils.files import write_atomically

TOLERANCE = 1e-4
"""By how much outputs of an exported network may differ from those of its original.

Of outputs above 10, which float32 rounds in proportion, by a hundred-thousandth of the largest.
"""

PREPROCESSING = "preprocessing.json"
_FILES = (PREPROCESSING, CONFIG, "model.onnx.data", *(way.file for way in FORMATS.values()))

_INPUTS = (
    "float32 [batch, 3, size, size]: RGB images, upright, resized with antialiasing, the centre "
    "cut out, divided by 255, less mean, divided by std"
)
_PREDICTIONS = {
    "multiclass": "softmax of the logits: the probability of each class",
    "multilabel_binary": "sigmoid of each logit: the probability of the positive label",
    "regression": "logit times std plus mean of each value, which task type has",
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A network that was exported, and what its check found.

    Args:
        file: the one with the weights.
        opset: that of ONNX; None in other formats.
        size_bytes: of the folder, in bytes.
        max_difference: of outputs to those of the original, at most.
        checked_on: the samples on which.
    """

    file: Path
    opset: int | None
    size_bytes: int
    max_difference: float
    checked_on: str


def resolve_run_folder(path: str) -> Path:
    """The folder of a run, of which `path` may be the model folder."""
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
    """Writes the network of a run into a folder, reads it again and compares the two.

    Args:
        predictor: the run; of a network of your own `Predictor(run, network=...)`.
        format: safetensors (for timm, where the network is one of timm's), onnx or torch
            (`torch.export`).
        out: the folder; RUN/export/FORMAT if None.
        overwrite: replace an older export there.

    Returns:
        Where it is and how near to the original.

    Raises:
        UserError: if the folder is in use, the network cannot be exported in this format, or its
            outputs differ by more than `TOLERANCE`; nothing is written then.
    """
    if format not in FORMATS:
        raise unknown("format", format, list(FORMATS))
    way, spec = FORMATS[format], predictor.backbone.input_spec
    folder = predictor.run / "export" / format if out is None else Path(out)
    check_folder(
        folder, data=predictor.config.data, overwrite=overwrite, mark=PREPROCESSING, files=_FILES
    )
    if isinstance(spec, GraphSpec) and not way.supports_graphs:
        raise UserError(
            f"--format {format}: the network of {predictor.run} is for graphs, whose sizes are no "
            "batch of equal inputs: give --format safetensors"
        )
    module = copy.deepcopy(predictor.backbone.module).cpu().eval()
    network = Exportable(
        folder=model_folder(predictor.run),
        backbone=dataclasses.replace(predictor.backbone, module=module),
        metadata=_preprocessing_metadata(predictor),
    )
    with write_folder_atomically(folder) as new, silence_warnings():
        exported = _write_checked(network, way, new, predictor)
    return dataclasses.replace(exported, file=folder / way.file)


def _write_checked(
    network: Exportable, way: Format, folder: Path, predictor: Predictor
) -> ExportResult:
    """The network written into a new folder.

    Raises:
        UserError: if it is not the same when it is read again.
    """
    write_atomically(folder / PREPROCESSING, json.dumps(network.metadata, indent=2) + "\n")
    opset = way.write(network, folder)
    samples = find_samples(predictor.config, predictor.backbone.input_spec)
    module: nn.Module = network.backbone.module
    difference, largest = compare_outputs(module, way.read(network, folder), samples.batches)
    allowed = TOLERANCE * max(1.0, largest / 10)
    if not difference <= allowed:  # nor if it is no number
        raise UserError(
            f"{way.file} would not be the network of {predictor.run}: its outputs differ by "
            f"{difference:.1e}, more than {allowed:.1e}, on {samples.description}; nothing is "
            "written. "
            f"Give another --format, one of {', '.join(FORMATS)}"
        )
    return ExportResult(
        file=folder / way.file,
        opset=opset,
        size_bytes=sum(file.stat().st_size for file in folder.iterdir()),
        max_difference=difference,
        checked_on=samples.description,
    )


def _preprocessing_metadata(predictor: Predictor) -> dict[str, Any]:
    """How inputs are made and what outputs mean, for those who have the exported file alone."""
    spec = predictor.backbone.input_spec
    outputs = {
        "outputs": "logits, float32 [batch, classes]",
        "answers": _PREDICTIONS[predictor.task_type.name],
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
        "resized": "both sides" if resize.square else "shorter side",
        "interpolation": resize.interpolation,
        "crop": "center",
        "mean": list(spec.mean),
        "std": list(spec.std),
        **outputs,
    }


def check_folder(
    folder: Path, *, data: str, overwrite: bool, mark: str, files: Collection[str]
) -> None:
    """Checks that an export may be written into a folder.

    Args:
        folder: where it is to lie.
        data: the images that it must not lie among.
        overwrite: whether an older one may be replaced.
        mark: the file by which an export is known.
        files: all that one may have.

    Raises:
        UserError: if it is in use, lies among the images or cannot be written.
    """
    check_output_location(folder, data=data)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if not names:
        return
    if not overwrite:
        raise UserError(
            f"--out {folder} is not empty: give another folder, or --overwrite to replace the "
            "export there"
        )
    strange = min(names - set(files), default=None)
    if mark not in names or strange is not None:
        found = f"no {mark}" if strange is None else strange
        raise UserError(
            f"--out {folder} holds something that is no export ({found}), which --overwrite does "
            "not replace: give another folder"
        )


@contextlib.contextmanager
def write_folder_atomically(folder: Path) -> Iterator[Path]:
    """A folder elsewhere, whose files take the place of what is there if they are made in peace."""
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    with tempfile.TemporaryDirectory(dir=there, prefix=".export.") as temporary:
        yield Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        news = sorted(Path(temporary).iterdir())
        for new in news:
            os.replace(new, folder / new.name)
        for old in folder.iterdir():  # of another format, now that there is something in its place
            if old.is_file() and old.name not in {new.name for new in news}:
                old.unlink()
