"""Decode image files to upright RGB images of 8 bits per channel."""

import re
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
from PIL import ExifTags, Image, ImageFile, TiffImagePlugin, UnidentifiedImageError

from delta_transfer.errors import DataError

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
"""The suffixes of image files, in lower case."""

MAX_PIXELS = 178_956_970
"""The limit above which images are refused before decoding, as Pillow does.

If `PIL.Image.MAX_IMAGE_PIXELS` has been lowered, the limit is twice that number, as in Pillow.
"""

_KINDS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "AVIF")

_EXIF_TRANSPOSES = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transposition that makes an image upright, by its EXIF orientation."""

_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class ImageError(DataError):
    """An image cannot be used.

    Attributes:
        reason: why, in a few words without the image's name.
    """

    def __init__(self, message: str, *, reason: str = "it cannot be read") -> None:
        super().__init__(message)
        self.reason = reason


class _UnusableImage(Exception):
    """The reason to refuse an image, and the fix; `decode_image` adds its name."""

    def __init__(self, reason: str, hint: str = "replace the file or remove it") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def read_image(path: Path) -> Image.Image:
    """Read an image file with `decode_image`.

    Args:
        path: the file; its format is found by its content, not its suffix.

    Returns:
        An RGB image whose pixels are in memory; the file is closed.

    Raises:
        ImageError: naming the path, if the file cannot be read or its image cannot be used.
    """
    return decode_image(path, name=str(path))


def decode_image(file: Path | BinaryIO, *, name: str) -> Image.Image:
    """Decode an image to RGB, upright by its EXIF orientation, with transparency on white.

    The first frame of an animation and the first of several pages is used. Grey of up to 16 bits is
    scaled to 8, so that the largest number of the format is white. Colour profiles are not applied,
    as in torchvision and timm: pretrained networks were trained on pixels as they are stored.
    Pillow's warnings, such as those on corrupt metadata, are not shown.

    Args:
        file: a file, or a binary stream, which is read from its start and stays open.
        name: of the image in messages.

    Returns:
        An RGB image whose pixels are in memory.

    Raises:
        ImageError: if the image is missing or damaged, of an unsupported format, larger than
            `MAX_PIXELS`, or has pixels of an unknown range.

    Example:
        >>> import io
        >>> stream = io.BytesIO()
        >>> Image.new("LA", (2, 1), (0, 255)).save(stream, "PNG")
        >>> decode_image(stream, name="dark.png").getpixel((0, 0))
        (0, 0, 0)
    """
    try:
        with _ignore_pillow_warnings():
            if not isinstance(file, Path):
                return _decode(file)
            with _open(file) as stream:
                return _decode(stream)
    except Exception as error:  # decoders may raise anything for garbled bytes
        why = _explain(error)
        raise ImageError(
            f"cannot read the image '{name}': {why.reason}; {why.hint}", reason=why.reason
        ) from error


def _open(path: Path) -> BinaryIO:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise _UnusableImage("it is a folder", "rename it or remove it")
        if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for ever
            raise _UnusableImage("it is not a regular file", "remove it")
        if status.st_size == 0:
            raise _UnusableImage("the file is empty")
        return path.open("rb")
    except FileNotFoundError as error:
        link = path.is_symlink()
        raise _UnusableImage("the link is broken" if link else "the file is missing") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise _UnusableImage(reason, "make the file readable or remove it") from error


def _decode(stream: BinaryIO) -> Image.Image:
    with Image.open(stream, formats=_formats()) as file:
        if file.width * file.height > _pixel_limit():
            raise Image.DecompressionBombError
        _scale_transparent_colour(file)
        file.load()
        image: Image.Image = file
        if file.mode == "F" or file.mode.startswith("I"):
            image = _eight_bits(file)
        turn = _find_transpose(file)
        if turn is not None:
            image = image.transpose(turn)
        if image.has_transparency_data:
            image = _on_white(image.convert("RGBA"))
        if image is file or image.mode != "RGB":
            image = image.convert("RGB")
        image.info = {}  # else an orientation or a profile would be saved and applied again
        return image


def _scale_transparent_colour(file: ImageFile.ImageFile) -> None:
    """Scale the transparent colour of a PNG to 8 bits, as Pillow does for pixels."""
    depth = file.tile[0][3] if file.format == "PNG" and file.tile else None
    colour = file.info.get("transparency")
    if depth in ("L;2", "L;4") and isinstance(colour, int):
        file.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[depth]
    elif depth == "RGB;16B" and isinstance(colour, tuple):
        file.info["transparency"] = tuple(number >> 8 for number in colour)


def _eight_bits(file: ImageFile.ImageFile) -> Image.Image:
    """Scale a grey image of up to 16 bits to 0..255."""
    inverted, most = _range(file)
    grey = (np.arange(most + 1) * 255 + most // 2) // most
    if inverted:
        grey = 255 - grey
    transparent = file.info.get("transparency")
    if isinstance(transparent, int):
        grey[transparent] = 255
    return Image.fromarray(grey.astype(np.uint8)[np.asarray(file)])


def _range(file: ImageFile.ImageFile) -> tuple[bool, int]:
    """Return whether 0 is white, and the largest number that a pixel can have."""
    if file.mode != "F":
        if not isinstance(file, TiffImagePlugin.TiffImageFile):
            return False, 65535  # Pillow scales PNG and PPM to 16 bits
        tags = file.tag_v2
        (bits,) = tags[TiffImagePlugin.BITSPERSAMPLE]
        (kind,) = tags.get(TiffImagePlugin.SAMPLEFORMAT, (1,))
        if bits <= 16 and kind == 1:
            return tags.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0, 2**bits - 1
    raise _UnusableImage(
        "its pixels are signed or 32-bit numbers of an unknown range",
        "save it with 8 or 16 bits a channel",
    )


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


def _find_transpose(file: ImageFile.ImageFile) -> Image.Transpose | None:
    try:
        return _EXIF_TRANSPOSES.get(file.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # corrupt metadata may raise anything; the pixels are still good
        return None


def _explain(error: Exception) -> _UnusableImage:
    if isinstance(error, _UnusableImage):
        return error
    if isinstance(error, UnidentifiedImageError):
        kinds = ", ".join(sorted(_formats()))
        return _UnusableImage(
            "it is damaged at its start, or not an image of a supported format",
            f"replace it ({kinds}) or remove it",
        )
    if isinstance(error, Image.DecompressionBombError):
        return _UnusableImage(f"it has more than {_pixel_limit():,} pixels", "scale it down")
    if isinstance(error, MemoryError):
        return _UnusableImage("there is not enough memory to decode it", "scale it down")
    detail = " ".join(str(error).split()) or type(error).__name__
    return _UnusableImage(f"it is damaged ({detail[:100]})")


def _pixel_limit() -> int:
    pillow = Image.MAX_IMAGE_PIXELS
    return MAX_PIXELS if pillow is None else min(MAX_PIXELS, 2 * pillow)


@cache
def _formats() -> tuple[str, ...]:
    """Return the supported formats; not EPS, for which Pillow would run another program."""
    Image.init()
    return tuple(kind for kind in _KINDS if kind in Image.OPEN)


@contextmanager
def _ignore_pillow_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings, also in several threads at once.

    `warnings.catch_warnings` is not thread-safe: the last thread to leave restores the filters of
    another. It also resets the registry of shown warnings, so that a warning of the caller's loop
    would be shown again after every image.
    """
    filters = cast("list[object]", warnings.filters)
    filters.insert(0, _PILLOW_FILTER)
    try:
        yield
    finally:
        with suppress(ValueError):  # another thread has reset the filters
            filters.remove(_PILLOW_FILTER)
