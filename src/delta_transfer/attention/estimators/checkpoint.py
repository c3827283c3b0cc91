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

INTERVAL = 10.0  # seconds between two writes
_ABOUT = "delta-transfer"
_FORMAT = "delta-transfer partial attention 1"


@final
class PartialFile:
    """The file.

    It belongs to one estimate, told by its identity, and to the data that it has seen: their
    SHA-256 is kept, each batch's after the one before, and the same data have to come again in the
    same batches.

    Args:
        path: where it is, or will be.
        identity: of everything but the data that the result depends on.
    """

    def __init__(self, path: Path, *, identity: str) -> None:
        self.digest = ""
        self.path = path
        self._identity = identity
        self._written = time.monotonic()

    def see(self, batch: Batch) -> None:
        """Takes a batch into the digest."""
        digest = hashlib.sha256(self.digest.encode())
        for part in (batch.inputs, batch.targets):
            if isinstance(part, Tensor):
                _take_in(digest, part)
            else:
                digest.update(_Pickled(digest).of(part))
        self.digest = digest.hexdigest()

    def read(self) -> tuple[dict[str, Tensor], str] | None:
        """What was kept of this estimate, and the digest of the data that went into it."""
        if not self.path.is_file():
            return None
        try:
            with safe_open(self.path, framework="pt") as file:
                about = json.loads((file.metadata() or {})[_ABOUT])
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            found = about["format"], about["identity"]
            digest = about["digest"]
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is no partial estimate (%s): starting anew", self.path, error)
            return None
        if found != (_FORMAT, self._identity):
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
        about = {"format": _FORMAT, "identity": self._identity, "digest": self.digest}
        content = {name: tensor.cpu().contiguous() for name, tensor in state.items()}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.path, save(content, metadata={_ABOUT: json.dumps(about)}))

    @property
    def is_due(self) -> bool:
        """Whether it is time to write again."""
        return time.monotonic() - self._written >= INTERVAL

    def remove(self) -> None:
        """Deletes the file, if it is there and can be deleted: the result does not hang on it."""
        with contextlib.suppress(OSError):
            self.path.unlink()


def _take_in(digest: "hashlib._Hash", tensor: Tensor) -> None:
    digest.update(f"{tensor.dtype}{tuple(tensor.shape)}".encode())
    numbers: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    digest.update(memoryview(numbers))


class _Pickled(pickle.Pickler):
    """Inputs that are no tensors as bytes: what is in their tensors goes to a digest."""

    def __init__(self, digest: "hashlib._Hash") -> None:
        self._file = io.BytesIO()
        self._digest = digest
        super().__init__(self._file)

    def of(self, inputs: object) -> bytes:
        self.dump(inputs)
        return self._file.getvalue()

    def persistent_id(self, part: object) -> str | None:
        if not isinstance(part, Tensor):
            return None
        _take_in(self._digest, part)
        return "tensor"
