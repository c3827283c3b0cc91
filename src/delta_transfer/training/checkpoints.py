"""Checkpoints that are whole or absent, the last of which a fit goes on from."""

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

FORMAT = 3  # of what checkpoints hold; to be raised with every change of it
BEST, LAST = "best.ckpt", "last.ckpt"
NEXT, PREVIOUS = "next.ckpt", "previous.ckpt"  # on its way to last.ckpt; the last one before


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints in torch's format, the old one of which stays until the new one is whole.

    Lightning's own are written to the system's temporary folder and then moved: on another disk
    that is a copy, of which a full disk leaves a part in the old one's place.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Writes beside the file, then puts it in its place.

        Raises:
            OSError: if the file cannot be written; the old one is still there then.
        """
        content = io.BytesIO()
        torch.save({**checkpoint, "format": FORMAT}, content)
        write_atomically(Path(path), _seal(content.getvalue()))

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads what `save_checkpoint` wrote; no code in it is run."""
        # From any device; Lightning moves what it needs.
        loaded: dict[str, Any] = torch.load(path, map_location or "cpu", weights_only=True)
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes the file, if it is there."""
        Path(path).unlink(missing_ok=True)


def rotate_checkpoints(folder: Path) -> None:
    """Makes `next.ckpt` the last one, and the last one the one before it."""
    with contextlib.suppress(FileNotFoundError):
        (folder / LAST).replace(folder / PREVIOUS)
    (folder / NEXT).replace(folder / LAST)


def find_last_checkpoint(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest state of a fit that is whole, and what is in it; None if there is none."""
    for name in (NEXT, LAST, PREVIOUS):
        found = read_checkpoint(folder / name)
        if found is not None:
            if name == NEXT:
                rotate_checkpoints(folder)
            return folder / (LAST if name == NEXT else name), found
    return None


def read_checkpoint(path: Path) -> dict[str, Any] | None:
    """What a checkpoint of ours holds; None if there is none. No code in it is run.

    None and a warning too if it is damaged or another version's.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        if _seal(content[: -len(_COMMENT) - _DIGITS] + _NO_COMMENT) != content:
            raise ValueError("its checksum is wrong")
        found: dict[str, Any] = torch.load(io.BytesIO(content), "cpu", weights_only=True)
    except Exception as error:  # its checksum says nothing of who wrote it, and of what it holds
        logger.warning("%s is damaged and is not used (%s)", path, str(error).split("\n")[0])
        return None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        logger.warning("%s was written by another version and is not used", path)
        return None
    return found


# A checkpoint is a zip archive, at whose end the length of a comment stands, and the comment.
_DIGITS = 64
_NO_COMMENT, _COMMENT = struct.pack("<H", 0), struct.pack("<H", _DIGITS)


def _seal(archive: bytes) -> bytes:
    """An archive without a comment, with its SHA-256 as one: others can still load it."""
    return archive[: -len(_NO_COMMENT)] + _COMMENT + fingerprint([archive]).encode()


def random_states() -> dict[str, Any]:
    """Of all global generators, in tensors and plain values."""
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
    """The reverse of `random_states`, as far as there are the same devices."""
    torch.set_rng_state(states["torch"])
    kind, keys, *rest = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    cuda = states.get("cuda", [])
    if len(cuda) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(cuda)
