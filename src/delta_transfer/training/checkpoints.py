"""Atomic checkpoints with a checksum, and the state of random generators."""

import contextlib
import io
import logging
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.plugins import CheckpointIO

from delta_transfer.utils.files import fingerprint, write_atomically

logger = logging.getLogger(__name__)

FORMAT = 4  # increase it with every change of what checkpoints contain
LAST = "last.ckpt"
NEXT, PREVIOUS = "next.ckpt", "previous.ckpt"  # on its way to last.ckpt; the last one before


class AtomicCheckpointIO(CheckpointIO):
    """Writes checkpoints in torch's format; the old file stays until the new one is complete.

    Lightning writes to the system's temporary folder and moves the file: across disks that is a
    copy, and a full disk would leave a truncated checkpoint.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write the checkpoint, then replace the old file.

        Raises:
            OSError: if the file cannot be written; the old one stays.
        """
        content = io.BytesIO()
        torch.save({**checkpoint, "format": FORMAT}, content)
        write_atomically(Path(path), _seal(content.getvalue()))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint; code in it is not run."""
        # Onto the CPU from any device; Lightning moves what it needs.
        loaded: dict[str, Any] = torch.load(path, map_location or "cpu", weights_only=True)
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Delete the file if it exists."""
        Path(path).unlink(missing_ok=True)


def rotate_checkpoints(folder: Path) -> None:
    """Rename `last.ckpt` to `previous.ckpt`, and `next.ckpt` to `last.ckpt`."""
    with contextlib.suppress(FileNotFoundError):
        (folder / LAST).replace(folder / PREVIOUS)
    (folder / NEXT).replace(folder / LAST)


def find_last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """Return the newest valid checkpoint and its content; None if there is none."""
    for name in (NEXT, LAST, PREVIOUS):
        found = read_checkpoint(folder / name)
        if found is not None:
            if name == NEXT:
                rotate_checkpoints(folder)
            return folder / (LAST if name == NEXT else name), found
    return None


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """Return the content of a checkpoint; code in it is not run.

    None if it is missing or, with a warning, if it is damaged or of another version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        if _seal(content[: -len(_COMMENT) - _DIGITS] + _NO_COMMENT) != content:
            raise ValueError("its checksum is wrong")
        found: dict[str, Any] = torch.load(io.BytesIO(content), "cpu", weights_only=True)
    except Exception as error:  # a checksum does not prove who wrote it: anything may be in it
        logger.warning("%s is damaged and is ignored (%s)", path, str(error).split("\n")[0])
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        logger.warning("%s was written by another version and is ignored", path)
        return None
    return found


# A zip archive ends with the length of a comment, and the comment.
_DIGITS = 64
_NO_COMMENT, _COMMENT = struct.pack("<H", 0), struct.pack("<H", _DIGITS)


def _seal(archive: bytes) -> bytes:
    """Add an archive's SHA-256 as its comment, with which torch can still load it."""
    return archive[: -len(_NO_COMMENT)] + _COMMENT + fingerprint([archive]).encode()


def random_states() -> dict[str, Any]:
    """Return the states of all global generators, in tensors and plain values."""
    kind, keys, *rest = np.random.get_state(legacy=True)
    version, internal, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest],
        "python": [version, list(internal), gauss],
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Restore `random_states`; those of GPUs if their number is the same."""
    torch.set_rng_state(states["torch"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    cuda = states.get("cuda", [])
    if len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
