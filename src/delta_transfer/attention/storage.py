"""The file of a channel attention: tensors by name, and one JSON entry that says what they are."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from delta_transfer.errors import UserError, first_few
from delta_transfer.utils.files import write_atomically

_METADATA_KEY = "delta-transfer"  # the entry of the metadata that describes the tensors
_FORMAT = "delta-transfer channel attention 3"
_OLD_FORMAT = "delta-transfer channel attention 1"

# What the entry holds, beside the format and the names of all tensors.
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
    """Writes the file, whole or not at all."""
    assert set(header) == set(_HEADER_TYPES)
    described = {"format": _FORMAT, "tensors": list(tensors), **header}
    # One entry: safetensors writes several in random order, and equal runs give equal bytes.
    metadata = {_METADATA_KEY: json.dumps(described)}
    contiguous = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, save(contiguous, metadata=metadata))


def read_attention_file(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors by name, of which none is missing, and the entry, in which each kind is right.

    Raises:
        UserError: if there is no such file, or it is none of these or damaged.
    """
    if not path.is_file():
        raise UserError(f"no channel attention at {path}: there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(_METADATA_KEY, "{}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is no safetensors file: {error}") from error
    try:
        about = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged_file_error(path, f"its metadata are no JSON ({error})") from error
    found = about.get("format") if isinstance(about, dict) else None
    if found == _OLD_FORMAT:
        raise UserError(
            f"{path} was written by an earlier version, which did not say enough about it: make it "
            "again"
        )
    if found != _FORMAT:
        raise UserError(
            f"{path} holds no channel attention (its format is {found!r}): "
            "give an attention.safetensors that a run wrote"
        )
    _check(path, tensors, about)
    return tensors, about


def damaged_file_error(path: Path, what: str) -> UserError:
    """The error for a file that was a channel attention once."""
    return UserError(f"{path} is a damaged channel attention, {what}: make it again")


def _check(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> None:
    for name, kinds in {"tensors": (list,), **_HEADER_TYPES}.items():
        value = header.get(name, ...)
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            raise damaged_file_error(
                path, f"{name!r} in its metadata is missing or of the wrong kind"
            )
    taps = header["taps"]
    if not taps or not all(isinstance(tap, str) for tap in taps) or len(set(taps)) < len(taps):
        raise damaged_file_error(path, "its taps are not different names")
    named = [f"{kind}/{tap}" for tap in taps for kind in ("scores", "attention", "variance")]
    missing = sorted({*named, *map(str, header["tensors"])} - set(tensors))
    if missing:
        raise damaged_file_error(path, f"tensors are missing: {first_few(missing)}")
    for tap in taps:
        uncertain = header["uncertainty"].get(tap)
        if uncertain is not None and not isinstance(uncertain, int | float):
            raise damaged_file_error(path, f"the uncertainty of {tap!r} is no number")
    for name, tensor in tensors.items():
        may_be_unknown = name.startswith("standard_errors/") or not tensor.is_floating_point()
        if not may_be_unknown and not torch.isfinite(tensor).all():
            raise damaged_file_error(path, f"{name} has numbers that are not finite")
