"""Images that were resized before, found by their paths."""

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from delta_transfer.data.image_cache.packs import CacheShard, ShardEntry

logger = logging.getLogger(__name__)


class ImageCacheReader:
    """What was kept of some images; it can be pickled.

    Args:
        entries: the resize that was done -> path of the image -> where its bytes are.
    """

    def __init__(self, entries: Mapping[Any, Mapping[str, tuple[CacheShard, ShardEntry]]]) -> None:
        self._entries = entries

    def find(self, path: str, resize: object) -> Tensor | None:
        """The bytes `[3, H, W]` of an image, not to be written to; None if they are not kept."""
        found = self._entries.get(resize, {}).get(path)
        if found is None:
            return None
        pack, place = found
        try:
            return pack.read(place)
        except OSError as error:  # another run has made room
            logger.debug("%s is decoded anew: %s", path, error)
            return None

    def on_this_machine(self) -> "ImageCacheReader":
        """What this machine has of them, where they were kept by another one perhaps."""
        packs = {pack for some in self._entries.values() for pack, _ in some.values()}
        there = {pack for pack in packs if pack.is_on_this_machine()}
        return ImageCacheReader(
            {
                resize: {path: found for path, found in some.items() if found[0] in there}
                for resize, some in self._entries.items()
            }
        )

    def has(self, path: str, resize: object) -> bool:
        """Whether an image is kept so."""
        return path in self._entries.get(resize, {})
