"""Read every image once, in threads: the hash of its pixels, or why it cannot be read."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from threading import Event

from PIL import Image

from delta_transfer.data.images.decode import ImageError
from delta_transfer.data.task import Split
from delta_transfer.errors import UserError

logger = logging.getLogger(__name__)

LOG_PROGRESS_ABOVE = 2000
"""The number of images above which the log shows progress."""

_HASH_STRIP_PIXELS = 1_000_000  # pixels that are hashed at a time
_PROGRESS_INTERVAL = 1.0  # seconds


@dataclass(frozen=True, slots=True)
class ImageScan:
    """The result of reading an image.

    Attributes:
        split: the name of its split.
        path: its path in the split.
        label: its class, 0 where labels are values.
        content_hash: of size and pixels; empty if it cannot be read.
        reason: why it cannot be read; empty if it can.
    """

    split: str
    path: str
    label: int
    content_hash: str
    reason: str


ImageCallback = Callable[[str, str, str, Image.Image], None]
"""A function of an image's split, path and content hash, and the image."""


def scan_images(
    splits: Mapping[str, Split], *, num_threads: int, on_image: ImageCallback | None = None
) -> list[ImageScan]:
    """Read every image of some splits once.

    Args:
        splits: by their names.
        num_threads: each reads one image at a time, of which a few copies may be in memory.
        on_image: called in these threads with each image that can be read; None for nothing.

    Returns:
        The results in the order of the splits, whatever the number of threads.
    """
    entries = [
        (name, split.read, path, label)
        for name, split in splits.items()
        for path, label in zip(split.paths, split.class_indices, strict=True)
    ]
    found: dict[int, ImageScan] = {}
    stop = Event()

    def scan_shard(first: int) -> None:
        for position in range(first, len(entries), num_threads):
            if stop.is_set():
                return
            found[position] = _scan_image(*entries[position], on_image)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="check") as pool:
        try:
            futures = [pool.submit(scan_shard, first) for first in range(num_threads)]
            _wait(futures, found, len(entries))
        finally:  # also on Ctrl-C: no thread begins another image
            stop.set()
        for future in futures:
            if future.done():
                future.result()
    return [found[position] for position in range(len(entries))]


def _wait(futures: Sequence[Future[None]], found: Mapping[int, ImageScan], total: int) -> None:
    """Wait for all threads or the first error, and log progress if there are many images."""
    if total <= LOG_PROGRESS_ABOVE:
        wait(futures, return_when=FIRST_EXCEPTION)
        return
    logger.info("scanning %s images", f"{total:,}")
    logged, pending = 0, set(futures)
    while pending:
        done, pending = wait(pending, timeout=_PROGRESS_INTERVAL, return_when=FIRST_EXCEPTION)
        if any(future.exception() for future in done):
            return
        tenths = 10 * len(found) // total
        if logged < tenths < 10:
            logger.info("scanned %d%% of them", 10 * tenths)
            logged = tenths


def _scan_image(
    split: str,
    read: Callable[[str], Image.Image],
    path: str,
    label: int,
    on_image: ImageCallback | None,
) -> ImageScan:
    try:
        image = read(path)
    except ImageError as error:
        return ImageScan(split, path, label, "", error.reason)
    except UserError as error:
        return ImageScan(split, path, label, "", str(error))
    content_hash = _content_hash(image)
    if on_image is not None:
        on_image(split, path, content_hash, image)
    return ImageScan(split, path, label, content_hash, "")


def _content_hash(image: Image.Image) -> str:
    """Hash size and pixels strip by strip, without a copy of the whole image."""
    digest = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    rows = max(1, _HASH_STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        digest.update(image.crop((0, top, image.width, bottom)).tobytes())
    return digest.hexdigest()
