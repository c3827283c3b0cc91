"""Read a file of weights without executing code in it."""

import argparse
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from delta_transfer.backbones.base import short_error_message
from delta_transfer.errors import ModelError

_FORMS = "safetensors, or a state dict of torch.save (.pth, .pt, .bin, .ckpt)"

# First bytes of files that are mistaken for weights -> their format, and a fix.
_OTHERS = {
    b"\x89HDF": "is HDF5, as of Keras: convert it to a state dict of PyTorch",
    b"\x93NUMPY": "is a NumPy array: convert it to a state dict of PyTorch",
    b"\x1f\x8b": "is compressed with gzip: unpack it",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: git lfs pull",
    b"<": "is a web page: download it again",
}
_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # in the first bytes of torch.save's older format
_DEPTH = 4  # nesting of a checkpoint's state dicts


def read_weights(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """Read the tensors in a file, on the CPU, by state dict.

    Args:
        path: a safetensors file, or a file of `torch.save`.

    Returns:
        Prefix -> name -> tensor: the prefix is `""` for the outermost dict, `"state_dict."` for the
        dict under this key, and so on. Dicts without tensors are left out.

    Raises:
        ModelError: if the file does not exist, has another format, is damaged, has no tensors, or
            could execute code.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "model.safetensors"
        hint = str(inside) if inside.is_file() else "a file in it"
        raise ModelError(f"weights {path} is a folder: use {hint}")
    if not path.is_file():
        raise ModelError(f"weights {path}: file not found; use {_FORMS}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise ModelError(f"weights {path}: the file cannot be read ({error.strerror})") from error
    if is_safetensors(path):
        groups = _read_safetensors(path)
    else:
        _check_form(path, start)
        groups = _collect_state_dicts(_read_pickle(path), "", depth=_DEPTH)
    if not groups:
        raise ModelError(f"weights {path}: the file has no tensors; use {_FORMS}")
    return groups


def is_safetensors(path: str | Path) -> bool:
    """Return True if a file is safetensors, which has no order, by its content or name."""
    path = Path(path)
    with path.open("rb") as file:
        return file.read(9)[8:] == b"{" or path.suffix == ".safetensors"


def _read_safetensors(path: Path) -> dict[str, dict[str, Tensor]]:
    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error
    return {"": state} if state else {}


def _check_form(path: Path, start: bytes) -> None:
    """Raise ModelError if a file is not of `torch.save`."""
    if not start:
        raise ModelError(f"weights {path}: the file is empty; use {_FORMS}")
    for beginning, text in _OTHERS.items():
        if start.lstrip().startswith(beginning):
            raise ModelError(f"weights {path}: the file {text}; use {_FORMS}")
    if start[257:262] == b"ustar":
        raise ModelError(
            f"weights {path}: the file is a tar archive, as of very old versions of PyTorch: "
            f"unpack or save it again; use {_FORMS}"
        )
    if start.startswith(b"PK"):
        _check_zip(path)
    elif not start.startswith(b"\x80"):  # how pickles begin
        raise ModelError(f"weights {path}: the file has no weights; use {_FORMS}")
    elif _MAGIC not in start:
        raise ModelError(
            f"weights {path}: the file is a pickle that is not of torch.save, which could run any "
            f"code; use {_FORMS}"
        )


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(path, error) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise ModelError(
            f"weights {path}: the file is TorchScript, which is a program. If you trust it, save "
            f"its weights, torch.save(torch.jit.load('{path.name}').state_dict(), 'weights.pth'), "
            "and use that file"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise ModelError(f"weights {path}: the zip archive is not of torch.save; use {_FORMS}")


def _read_pickle(path: Path) -> Any:
    try:
        # Many published checkpoints contain their training options as a plain Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise _damaged(path, error) from error
        raise ModelError(
            f"weights {path}: the file contains {found[1]}, which could run any code, and was not "
            f"loaded. If you trust it, load it with torch.load('{path.name}', "
            "weights_only=False), save its state dict, "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors'), and use that file"
        ) from error
    except Exception as error:  # a damaged pickle may fail in any way
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ModelError:
    return ModelError(
        f"weights {path}: the file is damaged or truncated ({short_error_message(error)}): get it "
        "again"
    )


def _collect_state_dicts(value: Any, where: str, *, depth: int) -> dict[str, dict[str, Tensor]]:
    if not isinstance(value, Mapping) or depth == 0:
        return {}
    tensors = {key: part for key, part in value.items() if isinstance(key, str) and _usable(part)}
    groups = {where: tensors} if tensors else {}
    for key, part in value.items():
        if isinstance(key, str):
            groups |= _collect_state_dicts(part, f"{where}{key}.", depth=depth - 1)
    return groups


def _usable(value: Any) -> bool:
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_meta
    )


def read_classifier(
    tensors: Mapping[str, Tensor], name: str, *, head: nn.Module
) -> nn.Linear | None:
    """Return the classifier in the published weights of a network.

    Args:
        tensors: name -> tensor.
        name: name of the classifier; its `.weight` and `.bias` need not be there.
        head: the new head, which has the same inputs.

    Returns:
        A linear layer; None if there is no matrix of that name and width.
    """
    assert isinstance(head, nn.Linear)
    weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if weight is None or weight.ndim != 2 or weight.shape[1] != head.in_features:
        return None
    # On no device, so that no random numbers are drawn: they determine the new head's start.
    linear = nn.Linear(head.in_features, len(weight), bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(head.weight.dtype))
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(head.weight.dtype))
    return linear
