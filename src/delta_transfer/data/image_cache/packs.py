"""Packs: files of resized pictures, written once and then mapped to memory.

The pixels of one picture after the other, an index of them as JSON, its SHA-256 and its length.
"""

import json
import os
import struct
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from delta_transfer.utils.files import fingerprint

ENDING = ".pack"
UNFINISHED = ".unfinished"

_END = struct.Struct("<64sQ")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture lies in a pack.

    Attributes:
        offset: its first byte.
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        checksum: CRC-32 of its bytes.
    """

    offset: int
    height: int
    width: int
    checksum: int


class Pack:
    """A finished pack. Other processes map the file anew, and share its pages in memory.

    Args:
        path: the file.

    Attributes:
        places: where each picture is, by its digest.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is no whole pack.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pixels: Tensor | None = None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END.size))
            end = file.read()
            checksum, length = _END.unpack(end) if len(end) == _END.size else (b"", 0)
            length = min(length, size - len(end))  # of a damaged one it may be anything
            file.seek(size - len(end) - length)
            index = file.read(length)
        if fingerprint([index]).encode() != checksum:
            raise ValueError(f"{path} is damaged")
        rows: dict[str, list[int]] = json.loads(index)
        self.places: Mapping[str, Place] = {key: Place(*row) for key, row in rows.items()}

    def read(self, place: Place) -> Tensor:
        """The bytes `[3, H, W]` of a picture.

        Raises:
            OSError: if the file is gone, or cannot be mapped.
        """
        if self._pixels is None:
            # "c": the file stays as it is even if somebody writes to a picture.
            mapped = np.memmap(self.path, dtype=np.uint8, mode="c")
            self._pixels = torch.from_numpy(mapped.view(np.ndarray))
        shape = (3, place.height, place.width)
        size = 3 * place.height * place.width
        return self._pixels[place.offset : place.offset + size].view(shape)

    def is_here(self) -> bool:
        """Whether this machine has the file, and not one of the same pictures in another order."""
        try:
            return Pack(self.path).places == self.places
        except (OSError, ValueError):
            return False

    def is_whole(self, place: Place) -> bool:
        """Whether the bytes of a picture are those that were written."""
        return zlib.crc32(self.read(place).numpy().data) == place.checksum

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}


class PackWriter:
    """Writes a pack, which is there when it is finished; one thread at a time.

    Args:
        folder: where it is to be.

    Attributes:
        size: bytes of the pictures so far.

    Raises:
        OSError: if it cannot be written, as `add` and `finish` do.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=UNFINISHED)
        self._file = os.fdopen(handle, "wb")
        self._temporary = Path(name)
        self._places: dict[str, list[int]] = {}
        self.size = 0

    def add(self, digest: str, pixels: Tensor) -> None:
        """Writes the bytes `[3, H, W]` of a picture, unless it is there already."""
        if digest in self._places:
            return
        content = pixels.contiguous().numpy().data
        self._file.write(content)
        _, height, width = pixels.shape
        self._places[digest] = [self.size, height, width, zlib.crc32(content)]
        self.size += content.nbytes

    def finish(self) -> Pack:
        """Puts the pack in its place. Whoever writes the same pictures writes the same file."""
        index = json.dumps(self._places).encode()
        self._file.write(index + _END.pack(fingerprint([index]).encode(), len(index)))
        self._file.close()
        name = fingerprint(key.encode() for key in sorted(self._places))
        path = self._temporary.with_name(name[:32] + ENDING)
        os.replace(self._temporary, path)
        return Pack(path)

    def discard(self) -> None:
        """Leaves nothing behind of a pack that is not finished."""
        with suppress(OSError):  # what was still to be written has no place
            self._file.close()
        self._temporary.unlink(missing_ok=True)
