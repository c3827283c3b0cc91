"""Write resized images to the user's cache, for this run and later ones, within a limit."""

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

from delta_transfer.data.image_cache.reader import ImageCacheReader
from delta_transfer.data.image_cache.shards import (
    SUFFIX,
    UNFINISHED_SUFFIX,
    CacheShard,
    CacheShardWriter,
    ShardEntry,
)
from delta_transfer.data.images.resize import Resize
from delta_transfer.utils.files import cache_root, fingerprint

logger = logging.getLogger(__name__)

GIB = 1024**3
DEFAULT_MAX_BYTES = 20 * GIB
"""The default limit, unless a fifth of the free disk space is less."""

_FORMAT = 1  # to be raised if the cached pixels of an image change
_MAX_SHARD_BYTES = GIB  # a system may not map larger files than its memory
_RESIZED_BY = ("pillow", "torchvision")
_STALE_AFTER = 24 * 60 * 60.0  # seconds after which an unfinished shard is removed


class ImageCacheWriter(ExitStack):
    """Caches images while they are scanned; a thread-safe context manager.

    If the cache cannot be read or written, images are decoded each time, without an error.

    Args:
        resizes_by_split: the transforms of the images of each split, by its name.
        max_bytes: the limit of all images in the cache; None for `DEFAULT_MAX_BYTES` or less. The
            least recently used shards are removed to stay below it.
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
        for bucket in self._buckets.values():
            self.callback(bucket.close)

    def add(self, split: str, path: str, content_hash: str, image: Image.Image) -> None:
        """Cache an image for the transforms of its split, unless it is cached.

        Args:
            split: the name of the split.
            path: of the image in the split.
            content_hash: of its pixels.
            image: the image in RGB.
        """
        for resize in self._resizes_by_split.get(split, ()):
            self._buckets[resize].add(path, content_hash, image)

    def finish(self) -> ImageCacheReader:
        """Return the cached images among those added."""
        return ImageCacheReader(
            {resize: bucket.finish() for resize, bucket in self._buckets.items()}
        )


class _Quota:
    """The size limit of all shards, the oldest of which are removed to stay below it."""

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
        """Reserve space by removing unused shards; return whether there is enough."""
        while self.is_open and self._used_bytes + size > self._max_bytes:
            oldest = next((shard for shard in self._shards if shard[2] not in self.in_use), None)
            if oldest is None:
                self.close(f"they would take more than {self._max_bytes / GIB:.3g} GiB")
                break
            self._shards.remove(oldest)
            with suppress(OSError):  # such as an open file on Windows
                oldest[2].unlink(missing_ok=True)
                self._used_bytes -= oldest[1]
        if self.is_open:
            self._used_bytes += size
        return self.is_open

    def close(self, reason: str) -> None:
        """Stop writing, and log the reason once."""
        if self.is_open:
            self.is_open = False
            logger.info("images that are not cached are decoded each time: %s", reason)

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
    """The cached images of one transform."""

    def __init__(self, folder: Path, resize: Resize, quota: _Quota) -> None:
        versions = [f"{name} {importlib.metadata.version(name)}" for name in _RESIZED_BY]
        key = "\n".join([f"format {_FORMAT}", *versions, repr(resize)])
        self._folder = folder / fingerprint([key.encode()])[:16]
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
        """Return the location of each path's image that is cached."""
        try:
            self._finish_shard()
        except OSError as error:
            self._give_up(error)
        return {
            path: self._locations[content_hash]
            for path, content_hash in self._content_hashes.items()
            if content_hash in self._locations and content_hash in self._verified
        }

    def close(self) -> None:
        """Remove an unfinished shard."""
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
        shard = self._writer.finish()
        self._writer = None
        self._quota.in_use.add(shard.path)
        self._add_locations(shard)

    def _add_locations(self, shard: CacheShard) -> None:
        self._locations.update({key: (shard, entry) for key, entry in shard.entries.items()})

    def _give_up(self, error: OSError) -> None:
        self._quota.close(str(error))
        self.close()

    def _open_shard(self, path: Path) -> None:
        try:
            self._add_locations(CacheShard(path))
        except ValueError as error:
            logger.debug("%s: its images are cached again", error)
            _remove(path)
        except OSError as error:  # removed by another run meanwhile
            logger.debug("%s is not used: %s", path, error)

    def _is_cached(self, content_hash: str) -> bool:
        """Return whether a shard has an intact image; remove a damaged shard."""
        if content_hash not in self._locations:
            return False
        shard, entry = self._locations[content_hash]
        try:
            intact = shard.is_intact(entry)
        except OSError as error:  # removed by another run meanwhile
            logger.debug("%s is not used: %s", shard.path, error)
            intact = False
        else:
            if not intact:
                logger.debug("%s is damaged: its images are cached again", shard.path)
                _remove(shard.path)
        with self._quota.lock:
            if not intact:
                self._locations.pop(content_hash, None)
                return False
            if shard.path not in self._quota.in_use:
                self._quota.in_use.add(shard.path)
                with suppress(OSError):  # owned by another user
                    os.utime(shard.path)
            self._verified.add(content_hash)
        return True


def _remove(path: Path) -> None:
    with suppress(OSError):  # removed already, owned by another user, or open on Windows
        path.unlink()
