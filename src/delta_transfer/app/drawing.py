"""Images of the page: what a network sees, maps laid over it, and their place in the HTML."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor
from torchcam.utils import overlay_mask

SIDE = 288  # pixels of an image on the page, at least
THUMBNAIL = 192
_COLOURS = "inferno"


def as_image(pixels: Tensor) -> Image.Image:
    """Bytes `[3, S, S]` as an image that is large enough to look at."""
    found = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    side = max(SIDE, found.width)
    return found.resize((side, side), Image.Resampling.BICUBIC)


def overlay(image: Image.Image, values: Tensor) -> Image.Image:
    """A map `[H, W]` laid over an image: the larger a value, the brighter.

    Args:
        image: as `as_image` makes it.
        values: from 0 up; the largest is the brightest.
    """
    shares = values / values.max().clamp_min(1e-30)
    mask = Image.fromarray(shares.sqrt().numpy().astype(np.float32))  # which will be squared
    return overlay_mask(image, mask, colormap=_COLOURS, alpha=0.5)


def thumbnail(image: Image.Image) -> Image.Image:
    """A small copy of any image."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def as_uri(image: Image.Image) -> str:
    """An image as a `data:` address, so that no file is written and none is asked for."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
