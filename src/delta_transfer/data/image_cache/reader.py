"""Look up resized images by their paths."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from delta_transfer.data.image_cache.shards import CacheShard, ShardEntry

logger = logging.getLogger(__name__)


class ImageCacheReader:
    """The cached images of a run; picklable.

    Args:
        entries: the `Resize` -> path of the image -> location of its bytes.
    """

    def __init__(self, entries: Mapping[Any, Mapping[str, tuple[CacheShard, ShardEntry]]]) -> None:
        self._entries = entries

    def find(self, path: str, resize: object) -> Tensor | None:
        """Return the bytes `[3, H, W]` of an image, not to be written to; None if not cached."""
        found = self._entries.get(resize, {}).get(path)
        if found is None:
            return None
        shard, entry = found
        try:
            return shard.read(entry)
        except OSError as error:  # another run has removed the shard
            logger.debug("%s is decoded again: %s", path, error)
            return None

    def on_this_machine(self) -> "ImageCacheReader":
        """Return the images that this machine has, if another machine cached them."""
        shards = {shard for some in self._entries.values() for shard, _ in some.values()}
        available = {shard for shard in shards if shard.is_on_this_machine()}
        return ImageCacheReader(
            {
                resize: {path: found for path, found in some.items() if found[0] in available}
                for resize, some in self._entries.items()
            }
        )

    def has(self, path: str, resize: object) -> bool:
        """Return whether an image is cached with this resize."""
        return path in self._entries.get(resize, {})
