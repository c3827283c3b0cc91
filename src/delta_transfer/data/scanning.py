"""Read every image once, in threads: the digest of its pixels, or why there is none."""

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
"""With more images than this, the log says how far the look at them is."""

_HASH_STRIP_PIXELS = 1_000_000  # pixels that are hashed at a time
_PROGRESS_INTERVAL = 1.0  # seconds between two looks at how far the threads are


@dataclass(frozen=True, slots=True)
class ImageScan:
    """What a look at an image has shown.

    Attributes:
        split: of the image, by name.
        path: of the image in the split.
        label: its class, 0 where its labels are values.
        content_hash: a hash of size and pixels; empty if it cannot be read.
        reason: why it cannot be read; empty if it can.
    """

    split: str
    path: str
    label: int
    content_hash: str
    reason: str


ImageCallback = Callable[[str, str, str, Image.Image], None]
"""What is done with each image that can be read: its split, path and digest, and the image."""


def scan_images(
    splits: Mapping[str, Split], *, num_threads: int, on_image: ImageCallback | None = None
) -> list[ImageScan]:
    """Read every image of some splits once; with more than `MANY` the log says how far it is.

    Args:
        splits: the splits by their names.
        num_threads: how many read at the same time, each one image, of which a few copies may be
            in memory while it is decoded.
        on_image: what is done with each image beside, in these threads; None for nothing.

    Returns:
        The images in the order of the splits, whatever the number of threads.
    """
    entries = [
        (name, split.read, path, label)
        for name, split in splits.items()
        for path, label in zip(split.paths, split.class_indices, strict=True)
    ]
    found: dict[int, ImageScan] = {}
    stop = Event()

    def look_at_some(first: int) -> None:
        for position in range(first, len(entries), num_threads):
            if stop.is_set():
                return
            found[position] = _scan_image(*entries[position], on_image)

    with ThreadPoolExecutor(num_threads, thread_name_prefix="check") as pool:
        try:
            futures = [pool.submit(look_at_some, first) for first in range(num_threads)]
            _wait(futures, found, len(entries))
        finally:  # also when the user interrupts: no thread begins another image
            stop.set()
        for future in futures:
            if future.done():
                future.result()
    return [found[position] for position in range(len(entries))]


def _wait(futures: Sequence[Future[None]], found: Mapping[int, ImageScan], total: int) -> None:
    """Wait for all, or for the first error; say how far they are, if there are many images."""
    if total <= LOG_PROGRESS_ABOVE:
        wait(futures, return_when=FIRST_EXCEPTION)
        return
    logger.info("looking at %s images", f"{total:,}")
    said, open_ones = 0, set(futures)
    while open_ones:
        done, open_ones = wait(open_ones, timeout=_PROGRESS_INTERVAL, return_when=FIRST_EXCEPTION)
        if any(future.exception() for future in done):
            return
        tenths = 10 * len(found) // total
        if said < tenths < 10:
            logger.info("looked at %d%% of them", 10 * tenths)
            said = tenths


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
    digest = _content_hash(image)
    if on_image is not None:
        on_image(split, path, digest, image)
    return ImageScan(split, path, label, digest, "")


def _content_hash(image: Image.Image) -> str:
    """A hash of size and pixels, strip by strip, so that there is no copy of the whole."""
    digest = hashlib.blake2b(f"{image.mode} {image.size}".encode(), digest_size=16)
    rows = max(1, _HASH_STRIP_PIXELS // max(1, image.width))
    for top in range(0, image.height, rows):
        bottom = min(top + rows, image.height)
        digest.update(image.crop((0, top, image.width, bottom)).tobytes())
    return digest.hexdigest()
