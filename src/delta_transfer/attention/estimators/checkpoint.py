"""A file that keeps what an estimate has so far, so that one that was broken off can go on."""

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
    """The file.

    It belongs to one estimate, told by its identity, and to the data that it has seen: their
    SHA-256 is kept, each batch's after the one before, and the same data have to come again in the
    same batches.

    Args:
        path: where it is, or will be.
        fingerprint: of everything but the data that the result depends on.
    """

    def __init__(self, path: Path, *, fingerprint: str) -> None:
        self.data_hash = ""
        self.path = path
        self._fingerprint = fingerprint
        self._written = time.monotonic()

    def hash_batch(self, batch: Batch) -> None:
        """Takes a batch into the digest."""
        digest = hashlib.sha256(self.data_hash.encode())
        for part in (batch.inputs, batch.targets):
            if isinstance(part, Tensor):
                _update_hash(digest, part)
            else:
                digest.update(_TensorHashingPickler(digest).serialize(part))
        self.data_hash = digest.hexdigest()

    def read(self) -> tuple[dict[str, Tensor], str] | None:
        """What was kept of this estimate, and the digest of the data that went into it."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_METADATA_KEY])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = about["format"], about["fingerprint"]
            digest = about["data_hash"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is no partial estimate (%s): starting anew", self.path, error)
            return None
        if found != (_FORMAT, self._fingerprint):
            logger.warning(
                "%s is of another estimate (other weights, head, taps, method, samples or seed): "
                "starting anew",
                self.path,
            )
            return None
        return state, digest

    def write(self, state: Mapping[str, Tensor]) -> None:
        """Writes the state in the old one's place.

        Raises:
            OSError: if it cannot be written; it is due again after the interval, as if it had been.
        """
        self._written = time.monotonic()
        about = {"format": _FORMAT, "fingerprint": self._fingerprint, "data_hash": self.data_hash}
        content = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, save(content, metadata={_METADATA_KEY: json.dumps(about)}))

    @property
    def is_due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written >= WRITE_INTERVAL_S

    def remove(self) -> None:
        """Deletes the file, if it is there and can be deleted: the result does not hang on it."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def _update_hash(digest: "hashlib._Hash", tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    numbers: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest.update(memoryview(numbers))


class _TensorHashingPickler(pickle.Pickler):
    """Inputs that are no tensors as bytes: what is in their tensors goes to a digest."""

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
