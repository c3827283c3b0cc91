"""The checkpoint of an estimate, from which an interrupted one is resumed."""

import contextlib
import hashlib
import io
import json
import logging
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from delta_transfer.attention.estimators.batches import Batch
from delta_transfer.utils.files import write_atomically

logger = logging.getLogger(__name__)

WRITE_INTERVAL_S = 10.0  # seconds between two writes
_METADATA_KEY = "delta-transfer"
_FORMAT = "delta-transfer attention checkpoint 2"


@final
class EstimateCheckpoint:
    """The checkpoint file of one estimate.

    It is valid for one estimate, identified by a fingerprint, and for the data processed so far: it
    stores their running SHA-256, and the same data must come again in the same batches.

    Args:
        path: path of the file.
        fingerprint: fingerprint of everything the result depends on, except the data.
    """

    def __init__(self, path: Path, *, fingerprint: str) -> None:
        self.data_hash = ""
        self.path = path
        self._fingerprint = fingerprint
        self._written = time.monotonic()

    def hash_batch(self, batch: Batch) -> None:
        """Update the hash of the data with a batch."""
        digest = hashlib.sha256(self.data_hash.encode())
        for part in (batch.inputs, batch.targets):
            if isinstance(part, Tensor):
                _update_hash(digest, part)
            else:
                digest.update(_TensorHashingPickler(digest).serialize(part))
        self.data_hash = digest.hexdigest()

    def read(self) -> tuple[dict[str, Tensor], str] | None:
        """Return the state of this estimate and the hash of its data; None if there is none."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                header = json.loads((file.metadata() or {})[_METADATA_KEY])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = header["format"], header["fingerprint"]
            data_hash = header["data_hash"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning(
                "%s is not a checkpoint of an estimate (%s): starting from scratch",
                self.path,
                error,
            )
            return None
        if found != (_FORMAT, self._fingerprint):
            logger.warning(
                "%s is of another estimate (weights, head, taps, estimator, samples or seed): "
                "starting from scratch",
                self.path,
            )
            return None
        return state, data_hash

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Replace the file by the state.

        Raises:
            OSError: if it cannot be written; the next write is due after the interval all the same.
        """
        self._written = time.monotonic()
        header = {"format": _FORMAT, "fingerprint": self._fingerprint, "data_hash": self.data_hash}
        content = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, save(content, metadata={_METADATA_KEY: json.dumps(header)}))

    @property
    def is_due(self) -> bool:
        """Whether the next write is due."""
        return time.monotonic() - self._written >= WRITE_INTERVAL_S

    def remove(self) -> None:
        """Delete the file if possible; the result does not depend on it."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def _update_hash(digest: "hashlib._Hash", tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    numbers: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest.update(memoryview(numbers))


class _TensorHashingPickler(pickle.Pickler):
    """Pickles inputs that are not tensors; the values of tensors inside update a hash."""

    def __init__(self, digest: "hashlib._Hash") -> None:
        self._file = io.BytesIO()
        self._digest = digest
        super().__init__(self._file)

    def serialize(self, inputs: object) -> bytes:
        self.dump(inputs)
        return self._file.getvalue()

    def persistent_id(self, part: object) -> str | None:
        if not isinstance(part, Tensor):
            return None
        _update_hash(self._digest, part)
        return "tensor"
