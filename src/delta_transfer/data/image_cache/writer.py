"""Resized images are kept in the user's cache, for this run and others, while there is room."""

import importlib.metadata
import logging
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Lock

from PIL import Image
from torch import Tensor

from delta_transfer.data.image_cache.packs import (
    SUFFIX,
    UNFINISHED_SUFFIX,
    CacheShard,
    CacheShardWriter,
    ShardEntry,
)
from delta_transfer.data.image_cache.reader import ImageCacheReader
from delta_transfer.data.images.resize import Resize
from delta_transfer.utils.files import cache_root, fingerprint

logger = logging.getLogger(__name__)

GIB = 1024**3
DEFAULT_MAX_BYTES = 20 * GIB
"""What the images may take where no limit is given: so much, or a fifth of the disk's rest."""

_FORMAT = 1  # to be raised where the same image would be kept otherwise
_MAX_SHARD_BYTES = (
    GIB  # bytes after which another pack is begun: a system may not map more than it has
)
_RESIZED_BY = ("pillow", "torchvision")
_STALE_AFTER = 24 * 60 * 60.0  # seconds after which an unfinished pack is taken for left over


class ImageCacheWriter(ExitStack):
    """Keeps images while they are looked at; a context manager. Threads may share it.

    What cannot be read or written is no error: the images are then decoded each time.

    Args:
        resizes_by_split: how the images of each split are to be resized, by its name.
        max_bytes: bytes that all images in the cache may take; None for `MOST` or less. The packs
            that were not used for the longest time are removed to make room.
    """

    def __init__(
        self, resizes_by_split: Mapping[str, Sequence[Resize]], *, max_bytes: int | None = None
    ) -> None:
        super().__init__()
        folder = cache_root() / "images"
        self._resizes_by_split = resizes_by_split
        self._quota = _Quota(folder, max_bytes)
        resizes = {resize for some in resizes_by_split.values() for resize in some}
        self._buckets = {resize: _Bucket(folder, resize, self._quota) for resize in resizes}
        for shelf in self._buckets.values():
            self.callback(shelf.close)

    def add(self, split: str, path: str, content_hash: str, image: Image.Image) -> None:
        """Keeps an image as it is needed, unless that was done before.

        Args:
            split: where the image is from, by name.
            path: of the image in the split.
            content_hash: of its pixels.
            image: the image in RGB.
        """
        for resize in self._resizes_by_split.get(split, ()):
            self._buckets[resize].add(path, content_hash, image)

    def finish(self) -> ImageCacheReader:
        """What is kept of the images seen so far."""
        return ImageCacheReader({resize: shelf.finish() for resize, shelf in self._buckets.items()})


class _Quota:
    """How much space there is for packs; the oldest make place for new ones."""

    def __init__(self, folder: Path, max_bytes: int | None) -> None:
        self.lock = Lock()
        self.is_open = True
        self.in_use: set[Path] = set()
        self._used_bytes = 0
        self._shards: list[tuple[float, int, Path]] = []
        try:
            self._scan(folder)
            self._max_bytes = self._default_max_bytes(folder) if max_bytes is None else max_bytes
        except OSError as error:
            self._max_bytes = 0
            self.close(str(error))

    def reserve(self, size: int) -> bool:
        """Whether so many bytes more may be written; packs that nobody uses are removed for it."""
        while self.is_open and self._used_bytes + size > self._max_bytes:
            oldest = next((pack for pack in self._shards if pack[2] not in self.in_use), None)
            if oldest is None:
                self.close(f"they would take more than {self._max_bytes / GIB:.3g} GiB")
                break
            self._shards.remove(oldest)
            with suppress(OSError):  # it stays, as where it is open on Windows
                oldest[2].unlink(missing_ok=True)
                self._used_bytes -= oldest[1]
        if self.is_open:
            self._used_bytes += size
        return self.is_open

    def close(self, reason: str) -> None:
        """No more is written; it is said once."""
        if self.is_open:
            self.is_open = False
            logger.info("images that are not kept in the cache are decoded each time: %s", reason)

    def _scan(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in folder.glob(f"*/.*{UNFINISHED_SUFFIX}"):
            with suppress(OSError):
                if time.time() - path.stat().st_mtime > _STALE_AFTER:
                    path.unlink()
        for path in folder.glob(f"*/*{SUFFIX}"):
            with suppress(FileNotFoundError):  # removed by another run meanwhile
                status = path.stat()
                self._shards.append((status.st_mtime, status.st_size, path))
        self._shards.sort()
        self._used_bytes = sum(size for _, size, _ in self._shards)

    def _default_max_bytes(self, folder: Path) -> int:
        return min(DEFAULT_MAX_BYTES, (shutil.disk_usage(folder).free + self._used_bytes) // 5)


class _Bucket:
    """The images that were resized in one way."""

    def __init__(self, folder: Path, resize: Resize, quota: _Quota) -> None:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in _RESIZED_BY]
        told = "\n".join([f"format {_FORMAT}", *versions, repr(resize)])
        self._folder = folder / fingerprint([told.encode()])[:16]
        self._resize = resize
        self._quota = quota
        self._writer: CacheShardWriter | None = None
        self._locations: dict[str, tuple[CacheShard, ShardEntry]] = {}
        self._verified: set[str] = set()
        self._content_hashes: dict[str, str] = {}
        for path in sorted(self._folder.glob(f"*{SUFFIX}")):
            self._open_shard(path)

    def add(self, path: str, content_hash: str, image: Image.Image) -> None:
        self._content_hashes[path] = content_hash
        if (
            content_hash in self._verified
            or self._is_cached(content_hash)
            or not self._quota.is_open
        ):
            return
        pixels = self._resize(image)
        with self._quota.lock:
            if content_hash in self._verified or not self._quota.reserve(pixels.nbytes):
                return
            try:
                self._write(content_hash, pixels)
            except OSError as error:
                self._give_up(error)

    def finish(self) -> dict[str, tuple[CacheShard, ShardEntry]]:
        """Where the image of each path is, as far as it is kept."""
        try:
            self._finish_shard()
        except OSError as error:
            self._give_up(error)
        return {
            path: self._locations[digest]
            for path, digest in self._content_hashes.items()
            if digest in self._locations and digest in self._verified
        }

    def close(self) -> None:
        """Leaves nothing behind that is not finished."""
        if self._writer is not None:
            self._writer.discard()
            self._writer = None

    def _write(self, content_hash: str, pixels: Tensor) -> None:
        if self._writer is None:
            self._writer = CacheShardWriter(self._folder)
        self._writer.add(content_hash, pixels)
        self._verified.add(content_hash)
        if self._writer.size >= _MAX_SHARD_BYTES:
            self._finish_shard()

    def _finish_shard(self) -> None:
        if self._writer is None:
            return
        pack = self._writer.finish()
        self._writer = None
        self._quota.in_use.add(pack.path)
        self._locations.update({digest: (pack, place) for digest, place in pack.entries.items()})

    def _give_up(self, error: OSError) -> None:
        self._quota.close(str(error))
        self.close()

    def _open_shard(self, path: Path) -> None:
        try:
            pack = CacheShard(path)
        except ValueError as error:
            logger.debug("%s: its images are kept anew", error)
            _remove(path)
        except OSError as error:  # removed by another run meanwhile
            logger.debug("%s is not used: %s", path, error)
        else:
            self._locations.update(
                {digest: (pack, place) for digest, place in pack.entries.items()}
            )

    def _is_cached(self, content_hash: str) -> bool:
        """Whether a pack has it whole; a damaged pack goes."""
        if content_hash not in self._locations:
            return False
        pack, place = self._locations[content_hash]
        try:
            whole = pack.is_intact(place)
        except OSError as error:  # as above
            logger.debug("%s is not used: %s", pack.path, error)
            whole = False
        else:
            if not whole:
                logger.debug("%s is damaged: its images are kept anew", pack.path)
                _remove(pack.path)
        with self._quota.lock:
            if not whole:
                self._locations.pop(content_hash, None)
                return False
            if pack.path not in self._quota.in_use:
                self._quota.in_use.add(pack.path)
                with suppress(OSError):  # another user's
                    os.utime(pack.path)
            self._verified.add(content_hash)
        return True


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone already, another user's, or open, which Windows minds
        path.unlink()
