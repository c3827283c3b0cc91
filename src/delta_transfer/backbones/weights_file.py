"""A file of weights, read without running anything that is in it."""

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
from delta_transfer.errors import UserError

FORMS = "safetensors, or a state dict that torch.save wrote (.pth, .pt, .bin, .ckpt)"

# How files begin that are often taken for weights -> what they are, and what to do.
_OTHERS = {
    b"\x89HDF": "is HDF5, as Keras writes it: convert it to a state dict of PyTorch",
    b"\x93NUMPY": "is a NumPy array: convert it to a state dict of PyTorch",
    b"\x1f\x8b": "is compressed with gzip: unpack it",
    b"version https://git-lfs": "is a pointer of Git LFS, not the file itself: git lfs pull",
    b"<": "is a web page, no weights: the download went wrong",
}
_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # in the first bytes of torch.save's older form
_DEPTH = 4  # how deep a checkpoint's state dicts may be nested


def read_weights(path: str | Path) -> dict[str, dict[str, Tensor]]:
    """The tensors in a file, on the CPU, by the dict that they are in.

    Args:
        path: of a safetensors file, or of one that `torch.save` wrote.

    Returns:
        Where a dict stands -> name -> tensor: `""` for the outermost, `"state_dict."` for what the
        file has under this key, and so on. Dicts without tensors are left out.

    Raises:
        UserError: if there is no such file, it is something else, damaged or without tensors, or
            reading it would run code.
    """
    path = Path(path)
    if path.is_dir():
        inside = path / "model.safetensors"
        hint = str(inside) if inside.is_file() else "a file in it"
        raise UserError(f"weights {path}: that is a folder; give {hint}")
    if not path.is_file():
        raise UserError(f"weights {path}: there is no such file; give one with {FORMS}")
    try:
        with path.open("rb") as file:
            start = file.read(512)
    except OSError as error:
        raise UserError(f"weights {path}: the file cannot be read ({error.strerror})") from error
    if is_safetensors(path):
        groups = _read_safetensors(path)
    else:
        _check_form(path, start)
        groups = _collect_state_dicts(_read_pickle(path), "", depth=_DEPTH)
    if not groups:
        raise UserError(f"weights {path}: there are no tensors in the file; give {FORMS}")
    return groups


def is_safetensors(path: str | Path) -> bool:
    """Whether a file has this form, in which tensors come in no order, by its content or name."""
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
    """Raises UserError where a file is none of `torch.save`'s."""
    if not start:
        raise UserError(f"weights {path}: the file is empty; give {FORMS}")
    for beginning, what in _OTHERS.items():
        if start.lstrip().startswith(beginning):
            raise UserError(f"weights {path}: the file {what}; needed is {FORMS}")
    if start[257:262] == b"ustar":
        raise UserError(
            f"weights {path}: the file is a tar archive, as very old versions of PyTorch wrote; "
            f"unpack it, or save it anew in today's form; needed is {FORMS}"
        )
    if start.startswith(b"PK"):
        _check_zip(path)
    elif not start.startswith(b"\x80"):  # how pickles begin
        raise UserError(f"weights {path}: the file holds no weights; needed is {FORMS}")
    elif _MAGIC not in start:
        raise UserError(
            f"weights {path}: the file is a pickle that torch.save did not write, and reading it "
            f"could run any code; needed is {FORMS}"
        )


def _check_zip(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError) as error:
        raise _damaged(path, error) from error
    if any(name.endswith("/constants.pkl") for name in names):
        raise UserError(
            f"weights {path}: the file is a TorchScript archive, which is a program; take its "
            f"weights out where you trust it, torch.save(torch.jit.load('{path.name}')"
            ".state_dict(), 'weights.pth'), and give that file"
        )
    if not any(name.endswith("/data.pkl") for name in names):
        raise UserError(
            f"weights {path}: the file is a zip archive that torch.save did not write; needed is "
            f"{FORMS}"
        )


def _read_pickle(path: Path) -> Any:
    try:
        # Many published checkpoints hold the options of their training as a plain Namespace.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        if found is None:
            raise _damaged(path, error) from error
        raise UserError(
            f"weights {path}: the file holds more than weights ({found[1]}), and reading that "
            "could run any code, so that it was not read. If you trust where it comes from, load "
            f"it once with torch.load('{path.name}', weights_only=False), best on a machine with "
            "nothing to lose, save the state dict alone, "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors'), and give that file"
        ) from error
    except Exception as error:  # a damaged pickle may fail in any way
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(
        f"weights {path}: the file is damaged or was cut short ({short_error_message(error)}): "
        "get it again"
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
    """The classifier that the published weights of a network bring.

    Args:
        tensors: name -> tensor.
        name: what stands before `.weight` and `.bias`, which need not be there.
        head: the new head, which sees the same features.

    Returns:
        A linear layer; None if there is no matrix of that name and width.
    """
    assert isinstance(head, nn.Linear)
    weight, bias = tensors.get(f"{name}.weight"), tensors.get(f"{name}.bias")
    if weight is None or weight.ndim != 2 or weight.shape[1] != head.in_features:
        return None
    # On no device, so that nothing is drawn: the random state decides how the new head starts.
    linear = nn.Linear(head.in_features, len(weight), bias=bias is not None, device="meta")
    linear.weight = nn.Parameter(weight.to(head.weight.dtype))
    if bias is not None:
        linear.bias = nn.Parameter(bias.to(head.weight.dtype))
    return linear
