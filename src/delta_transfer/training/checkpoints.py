"""Checkpoints that are whole or absent."""

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins import CheckpointIO

from delta_transfer.files import write_atomically


class WholeCheckpoints(CheckpointIO):
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
        torch.save(checkpoint, content)
        write_atomically(Path(path), content.getvalue())

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Reads what `save_checkpoint` wrote; no code in it is run."""
        loaded: dict[str, Any] = torch.load(path, map_location=map_location, weights_only=True)
        return loaded

    def remove_checkpoint(self, path: str | Path) -> None:
        """Deletes the file, if it is there."""
        Path(path).unlink(missing_ok=True)
