"""The formats that networks are exported in: how each is written, and read again without ours."""

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
from delta_transfer.errors import UserError

INPUT, OUTPUT = "images", "logits"
"""What ONNX calls the inputs and the outputs."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Exportable:
    """A network to be exported.

    Args:
        folder: the model folder of its run.
        backbone: what it is, with `module` in eval mode on the CPU.
        metadata: how its inputs are made and what its outputs mean, as JSON has it.
    """

    folder: Path
    backbone: Backbone
    metadata: Mapping[str, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A format to export in.

    Args:
        file: the one with the weights.
        supports_graphs: whether networks for graphs can be written.
        write: puts a network into a folder; returns ONNX's opset, where there is one.
        read: the network in the folder, read as a stranger would, from inputs to logits.
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
    given = network.backbone.module if network.backbone.architecture is None else None
    return load_model(folder, network=given)[0].module.eval()


def is_timm(backbone: Backbone) -> bool:
    """Whether timm makes this network, so that it reads the folder of its model by itself."""
    return backbone.architecture is not None and timm.is_model(backbone.architecture)


def _write_onnx(network: Exportable, folder: Path) -> int:
    _need_onnx()
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
"""The formats by their names."""


@contextlib.contextmanager
def silence_warnings() -> Iterator[None]:
    """Inside, nobody warns: torch's exporters do so of their own code, and torch's version."""
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
    """Inside, what an exporter raises is an error of the user's network.

    Raises:
        UserError: in the place of anything else.
    """
    try:
        yield
    except Exception as error:  # on code that they cannot follow, exporters raise nearly anything
        raise UserError(
            f"--format {name}: torch cannot export this network ({short_error_message(error)}): "
            "give another "
            f"--format, one of {', '.join(FORMATS)}"
        ) from error


def _example(network: Exportable) -> Tensor:
    """Several images, for of a single one an exporter takes the size of the batch as fixed."""
    size = network.metadata["size"]
    return blank_images(network.backbone.module, size, count=2)


def _need_onnx() -> None:
    # Some builds of onnxruntime report how they are used, and begin when they are imported.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise UserError(
            f"--format onnx needs onnx, onnxruntime and onnxscript ({error}): pip install "
            "'delta-transfer[export]'"
        ) from error
