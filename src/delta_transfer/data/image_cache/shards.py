"""Shards of the image cache: files of resized images, written once and then memory-mapped.

A file has the pixels of all images, an index of them as JSON, its SHA-256 and its length.
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

SUFFIX = ".shard"
UNFINISHED_SUFFIX = ".unfinished"

_FOOTER = struct.Struct("<64sQ")


@dataclass(frozen=True, slots=True)
class ShardEntry:
    """The location of an image in a shard.

    Attributes:
        offset: of its first byte.
        height: of the image, in pixels.
        width: of the image, in pixels.
        checksum: CRC-32 of its bytes.
    """

    offset: int
    height: int
    width: int
    checksum: int


class CacheShard:
    """A finished shard. A process that unpickles it maps the file itself, and shares its pages.

    Args:
        path: the file.

    Attributes:
        entries: the location of each image, by its content hash.

    Raises:
        OSError: if the file cannot be read.
        ValueError: if it is not a complete shard.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pixels: Tensor | None = None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _FOOTER.size))
            end = file.read()
            checksum, length = _FOOTER.unpack(end) if len(end) == _FOOTER.size else (b"", 0)
            length = min(length, size - len(end))  # may be anything in a damaged file
            file.seek(size - len(end) - length)
            index = file.read(length)
        if fingerprint([index]).encode() != checksum:
            raise ValueError(f"{path} is damaged")
        rows: dict[str, list[int]] = json.loads(index)
        self.entries: Mapping[str, ShardEntry] = {
            key: ShardEntry(*row) for key, row in rows.items()
        }

    def read(self, entry: ShardEntry) -> Tensor:
        """Return the bytes `[3, H, W]` of an image.

        Raises:
            OSError: if the file was removed, or cannot be mapped.
        """
        if self._pixels is None:
            # "c": writing to an image does not change the file.
            mapped = np.memmap(self.path, dtype=np.uint8, mode="c")
            self._pixels = torch.from_numpy(mapped.view(np.ndarray))
        shape = (3, entry.height, entry.width)
        size = 3 * entry.height * entry.width
        return self._pixels[entry.offset : entry.offset + size].view(shape)

    def is_on_this_machine(self) -> bool:
        """Return whether this machine has the file, whose name tells its content."""
        return self.path.is_file()

    def is_intact(self, entry: ShardEntry) -> bool:
        """Return whether the checksum of an image is right."""
        return zlib.crc32(self.read(entry).numpy().data) == entry.checksum

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pixels": None}


class CacheShardWriter:
    """Writes a shard, which exists once it is finished; not thread-safe.

    Args:
        folder: of the shard.

    Attributes:
        size: of the images so far, in bytes.

    Raises:
        OSError: if it cannot be written; `add` and `finish` raise it, too.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=UNFINISHED_SUFFIX)
        self._file = os.fdopen(handle, "wb")
        self._temporary = Path(name)
        self._entries: dict[str, list[int]] = {}
        self.size = 0

    def add(self, content_hash: str, pixels: Tensor) -> None:
        """Write the bytes `[3, H, W]` of an image, unless the shard has it."""
        if content_hash in self._entries:
            return
        content = pixels.contiguous().numpy().data
        self._file.write(content)
        _, height, width = pixels.shape
        self._entries[content_hash] = [self.size, height, width, zlib.crc32(content)]
        self.size += content.nbytes

    def finish(self) -> CacheShard:
        """Move the shard into place.

        The index is its name: a file of the same name has the same images at the same offsets, so
        that another process may replace it while this one reads it.
        """
        index = json.dumps(self._entries).encode()
        self._file.write(index + _FOOTER.pack(fingerprint([index]).encode(), len(index)))
        self._file.close()
        path = self._temporary.with_name(fingerprint([index])[:32] + SUFFIX)
        os.replace(self._temporary, path)
        return CacheShard(path)

    def discard(self) -> None:
        """Remove an unfinished shard."""
        with suppress(OSError):  # flushing fails on a full disk
            self._file.close()
        self._temporary.unlink(missing_ok=True)
