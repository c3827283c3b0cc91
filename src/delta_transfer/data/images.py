"""A picture file becomes an RGB picture of 8 bits a channel, upright and fully loaded."""

import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from delta_transfer.errors import UserError

IMAGE_SUFFIXES = frozenset(
    ".avif .bmp .gif .jfif .jpeg .jpg .pbm .pgm .png .pnm .ppm .tif .tiff .webp".split()
)
"""The endings, in lower case, by which a file counts as a picture."""

# What Pillow raises for files that are no pictures, cut short, garbled or absurdly large.
_BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    RuntimeError,
    struct.error,
    Image.DecompressionBombError,
)


def read_image(path: Path) -> Image.Image:
    """Read a picture: turned as its EXIF orientation says, transparency on white, in RGB.

    Sixteen-bit grey pictures are scaled to eight bits; of an animation the first frame counts.

    Args:
        path: the file.

    Returns:
        An RGB picture whose pixels are in memory; the file is closed.

    Raises:
        UserError: if the file cannot be read or is damaged, or if its pixels are 32-bit numbers
            of an unknown range.
    """
    try:
        with Image.open(path) as file:
            image = ImageOps.exif_transpose(file)
            image.load()
    except _BROKEN as error:
        raise UserError(
            f"cannot read the picture '{path}' ({error}): it is missing, damaged or no picture; "
            "replace the file or remove it"
        ) from error
    if image.mode == "F" or image.mode.startswith("I"):
        image = _eight_bits(image, path)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, path: Path) -> Image.Image:
    """A grey picture of 16 bits, scaled from 0..65535 to 0..255."""
    pixels = np.asarray(image)
    # Pillow gives some 16-bit files as 32-bit integers; the values tell them apart.
    if image.mode == "F" or pixels.min() < 0 or pixels.max() > 65535:
        raise UserError(
            f"cannot use the picture '{path}': its pixels are 32-bit numbers of an unknown range; "
            "save it with 8 or 16 bits a channel"
        )
    return Image.fromarray(np.round(pixels / 257).astype(np.uint8))
