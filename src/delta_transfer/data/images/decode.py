"""An image file becomes an RGB image of 8 bits a channel, upright and fully loaded."""

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

from delta_transfer.errors import UserError

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpe .jpeg .jpg .mpo .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
"""The endings, in lower case, by which a file counts as an image."""

MAX_PIXELS = 178_956_970
"""An image with more is refused before it is decoded; it is where Pillow raises an error, too.

Where `PIL.Image.MAX_IMAGE_PIXELS` has been lowered, twice that number is the limit, as in Pillow.
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
"""What puts an image upright, by its EXIF orientation."""

_PILLOW_FILTER = ("ignore", None, Warning, re.compile(r"PIL\."), 0)


class ImageError(UserError):
    """An image cannot be used.

    Attributes:
        reason: why, in a few words and without the image's name.
    """

    def __init__(self, message: str, *, reason: str = "it cannot be read") -> None:
        super().__init__(message)
        self.reason = reason


class _UnusableImage(Exception):
    """Why an image is refused, and what to do about it; `decode_image` adds its name."""

    def __init__(self, reason: str, hint: str = "replace the file or remove it") -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


def read_image(path: Path) -> Image.Image:
    """Read an image file, as `decode_image` decodes it.

    Args:
        path: the file; its content decides what kind of image it is, not its ending.

    Returns:
        An RGB image whose pixels are in memory; the file is closed.

    Raises:
        ImageError: naming the path, if the file cannot be read or its image cannot be used.
    """
    return decode_image(path, name=str(path))


def decode_image(file: Path | BinaryIO, *, name: str) -> Image.Image:
    """Decode an image: turned as its EXIF orientation says, transparency on white, in RGB.

    Of an animation or of several pages the first counts. Grey of up to 16 bits is scaled to 8,
    so that the largest number the file can hold is white. Colour profiles are not applied, as in
    torchvision and timm: the pretrained networks have learnt from pixels as they are stored.
    Pillow's warnings, of corrupt metadata for example, are not shown if it can decode the pixels.

    Args:
        file: a file, or a binary stream, which is read from its start and stays open.
        name: what messages call the image.

    Returns:
        An RGB image whose pixels are in memory.

    Raises:
        ImageError: if the image is missing or damaged, of a kind that is not read, larger
            than `MAX_PIXELS`, or if its pixels are numbers of an unknown range.

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
    except Exception as error:  # on garbled bytes, decoders raise nearly anything
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
            raise _UnusableImage("it is no ordinary file", "remove it")
        if status.st_size == 0:
            raise _UnusableImage("the file is empty")
        return path.open("rb")
    except FileNotFoundError as error:
        link = path.is_symlink()
        raise _UnusableImage("the link leads nowhere" if link else "the file is missing") from error
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
        image.info = {}  # an orientation or a profile would be saved with copies, and applied again
        return image


def _scale_transparent_colour(file: ImageFile.ImageFile) -> None:
    """Bring the one transparent colour that a PNG may name to 8 bits; Pillow does so for pixels."""
    depth = file.tile[0][3] if file.format == "PNG" and file.tile else None
    colour = file.info.get("transparency")
    if depth in ("L;2", "L;4") and isinstance(colour, int):
        file.info["transparency"] = colour * {"L;2": 85, "L;4": 17}[depth]
    elif depth == "RGB;16B" and isinstance(colour, tuple):
        file.info["transparency"] = tuple(number >> 8 for number in colour)


def _eight_bits(file: ImageFile.ImageFile) -> Image.Image:
    """A grey image of up to 16 bits, scaled to 0..255."""
    inverted, most = _range(file)
    grey = (np.arange(most + 1) * 255 + most // 2) // most
    if inverted:
        grey = 255 - grey
    transparent = file.info.get("transparency")
    if isinstance(transparent, int):
        grey[transparent] = 255
    return Image.fromarray(grey.astype(np.uint8)[np.asarray(file)])


def _range(file: ImageFile.ImageFile) -> tuple[bool, int]:
    """Whether 0 is white and not black, and the largest number that a pixel can have."""
    if file.mode != "F":
        if not isinstance(file, TiffImagePlugin.TiffImageFile):
            return False, 65535  # Pillow brings a PNG and a PPM to 16 bits, whatever they had
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
    except Exception:  # corrupt metadata, of which Pillow raises anything, leave the pixels good
        return None


def _explain(error: Exception) -> _UnusableImage:
    if isinstance(error, _UnusableImage):
        return error
    if isinstance(error, UnidentifiedImageError):
        kinds = ", ".join(sorted(_formats()))
        return _UnusableImage(
            "it is damaged at its start, or no image of a kind that is read",
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
    """What Pillow may take a file for: no EPS, for which it would run another program."""
    Image.init()
    return tuple(kind for kind in _KINDS if kind in Image.OPEN)


@contextmanager
def _ignore_pillow_warnings() -> Iterator[None]:
    """Ignore Pillow's warnings, in several threads at once too.

    `warnings.catch_warnings` is not for threads: whoever leaves last restores the filters of
    another. It also makes Python forget what it has warned of before, so that a warning of the
    caller's loop would be shown again after every image.
    """
    filters = cast("list[object]", warnings.filters)
    filters.insert(0, _PILLOW_FILTER)
    try:
        yield
    finally:
        with suppress(ValueError):  # somebody has reset the filters
            filters.remove(_PILLOW_FILTER)
