"""The file format of channel attention: tensors by name, and one JSON entry in the metadata."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from delta_transfer.errors import DataError, first_few
from delta_transfer.utils.files import write_atomically

_METADATA_KEY = "delta-transfer"  # the entry of the metadata that describes the tensors
_KIND = "delta-transfer channel attention"
_FORMAT = f"{_KIND} 3"

# Keys of the entry, beside the format and the names of all tensors.
_HEADER_TYPES: dict[str, tuple[type, ...]] = {
    "taps": (list,),
    "estimator": (str,),
    "samples": (int,),
    "temperature": (int, float),
    "score_clip": (int, float, type(None)),
    "clamp_negative_scores": (bool,),
    "uncertainty": (dict,),
    "preprocessing": (dict, type(None)),
    "source": (str,),
    "data": (str, type(None)),
}


def write_attention_file(
    path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]
) -> None:
    """Write the file atomically."""
    assert set(header) == set(_HEADER_TYPES)
    about = {"format": _FORMAT, "tensors": list(tensors), **header}
    # One entry: safetensors writes several in random order, but equal runs write equal bytes.
    metadata = {_METADATA_KEY: json.dumps(about)}
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata=metadata))


def read_attention_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read all tensors by name, and the entry with checked types.

    Raises:
        DataError: if the file is missing, of another format or damaged.
    """
    if not path.is_file():
        raise DataError(f"no channel attention at {path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is not a safetensors file: {error}") from error
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged_file_error(path, f"its metadata is not JSON ({error})") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found != _FORMAT:
        if isinstance(found, str) and found.startswith(_KIND):
            raise DataError(
                f"{path} has format {found!r}, this version reads {_FORMAT!r}: estimate it again"
            )
        raise DataError(
            f"{path} is not channel attention (its format is {found!r}): "
            "use the attention.safetensors of a run"
        )
    _check(path, tensors, about)
    return tensors, about


def damaged_file_error(path: Path, what: str) -> DataError:
    """Return the error for a damaged file."""
    return DataError(f"{path} is damaged channel attention, {what}: estimate it again")


def _check(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    for name, kinds in {"tensors": (list,), **_HEADER_TYPES}.items():
        value = header.get(name, ...)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise damaged_file_error(
                path, f"{name!r} in its metadata is missing or of the wrong type"
            )
    taps = header["taps"]
    if not taps or not all(isinstance(tap, str) for tap in taps) or len(set(taps)) < len(taps):
        raise damaged_file_error(path, "its taps are not distinct names")
    named = [f"{kind}/{tap}" for tap in taps for kind in ("scores", "attention", "variance")]
    missing = sorted({*named, *map(str, header["tensors"])} - set(tensors))
    if missing:
        raise damaged_file_error(path, f"tensors are missing: {first_few(missing)}")
    for tap in taps:
        uncertain = header["uncertainty"].get(tap)
        if uncertain is not None and not isinstance(uncertain, int | float):
            raise damaged_file_error(path, f"the uncertainty of {tap!r} is not a number")
    for name, tensor in tensors.items():
        may_be_unknown = name.startswith("standard_errors/") or not tensor.is_floating_point()
        if not may_be_unknown and not torch.isfinite(tensor).all():
            raise damaged_file_error(path, f"{name} has values that are not finite")
