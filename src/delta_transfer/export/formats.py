"""Export formats: how each is written, and loaded again without this package."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from delta_transfer.backbones.base import Backbone, blank_images, short_error_message
from delta_transfer.backbones.saved import CONFIG, WEIGHTS, load_model
from delta_transfer.errors import EnvironmentError, ModelError

INPUT, OUTPUT = "images", "logits"
"""Names of inputs and outputs in ONNX."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exportable:
    """A network to export.

    Args:
        folder: the model folder of its run.
        backbone: the network, with `module` in eval mode on the CPU.
        metadata: description of its preprocessing and outputs, for JSON.
    """

    folder: Path
    backbone: Backbone
    metadata: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """An export format.

    Args:
        file: the file with the weights.
        supports_graphs: networks for graphs can be written.
        write: writes a network to a folder; returns ONNX's opset, or None.
        read: loads the network in a folder as other programs do: inputs -> logits.
    """

    file: str
    supports_graphs: bool = False
    write: Callable[[Exportable, Path], int | None]
    read: Callable[[Exportable, Path], Callable[[Any], Tensor]]


def _write_safetensors(network: Exportable, folder: Path) -> None:
    for name in (WEIGHTS, CONFIG):
        shutil.copyfile(network.folder / name, folder / name)


def _read_safetensors(network: Exportable, folder: Path) -> nn.Module:
    if is_timm(network.backbone):
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    custom = network.backbone.module if network.backbone.architecture is None else None
    return load_model(folder, network=custom)[0].module.eval()


def is_timm(backbone: Backbone) -> bool:
    """Return True for a network of timm, which timm can load from the model folder."""
    return backbone.architecture is not None and timm.is_model(backbone.architecture)


def _write_onnx(network: Exportable, folder: Path) -> int:
    _require_onnx()
    with _exporting("onnx"):
        program = torch.onnx.export(
            network.backbone.module,
            (_example(network),),
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: "batch"},),
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    values = {name: json.dumps(value) for name, value in network.metadata.items()}
    program.model.metadata_props.update(values)
    program.save(folder / "model.onnx")
    return program.model.opset_imports[""]


def _read_onnx(network: Exportable, folder: Path) -> Callable[[Any], Tensor]:
    import onnxruntime

    session = onnxruntime.InferenceSession(
        folder / "model.onnx", providers=["CPUExecutionProvider"]
    )
    return lambda images: torch.from_numpy(session.run([OUTPUT], {INPUT: images.numpy()})[0])


def _write_torch(network: Exportable, folder: Path) -> None:
    with _exporting("torch"):
        program = torch.export.export(
            network.backbone.module,
            (_example(network),),
            dynamic_shapes=({0: torch.export.Dim("batch")},),
        )
    extra = {"preprocessing.json": json.dumps(network.metadata)}
    torch.export.save(program, folder / "model.pt2", extra_files=extra)


def _read_torch(network: Exportable, folder: Path) -> nn.Module:
    return torch.export.load(folder / "model.pt2").module()


FORMATS: dict[str, Format] = {
    "safetensors": Format(
        file=WEIGHTS, supports_graphs=True, write=_write_safetensors, read=_read_safetensors
    ),
    "onnx": Format(file="model.onnx", write=_write_onnx, read=_read_onnx),
    "torch": Format(file="model.pt2", write=_write_torch, read=_read_torch),
}
"""Export formats by name."""


@contextlib.contextmanager
def silence_warnings() -> Iterator[None]:
    """Silence warnings and logs, which torch's exporters issue about their own code."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _exporting(name: str) -> Iterator[None]:
    """Turn any error of an exporter into a ModelError."""
    try:
        yield
    except Exception as error:  # exporters raise nearly any type of error
        raise ModelError(
            f"`format={name}`: torch cannot export this network ({short_error_message(error)}): "
            f"use another `format`, one of {', '.join(FORMATS)}"
        ) from error


def _example(network: Exportable) -> Tensor:
    """Return two images, as an exporter would fix the batch size of a single one."""
    size = network.metadata["size"]
    return blank_images(network.backbone.module, size, count=2)


def _require_onnx() -> None:
    # Some builds of onnxruntime send usage statistics from their import on.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise EnvironmentError(
            f"`format=onnx` needs onnx, onnxruntime and onnxscript ({error}): pip install "
            "'delta-transfer[export]'"
        ) from error
