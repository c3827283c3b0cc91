"""Draw the images of the page: network inputs, overlaid maps, thumbnails and data: URIs."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor
from torchcam.utils import overlay_mask

SIDE = 288  # least pixels of an image on the page
THUMBNAIL = 192
_COLOURS = "inferno"


def as_image(pixels: Tensor) -> Image.Image:
    """Return bytes `[3, S, S]` as an image that is large enough to view."""
    found = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    side = max(SIDE, found.width)
    return found.resize((side, side), Image.Resampling.BICUBIC)


def overlay(image: Image.Image, values: Tensor) -> Image.Image:
    """Overlay a map `[H, W]` on an image: the larger a value, the brighter.

    Args:
        image: as returned by `as_image`.
        values: at least 0; the largest is the brightest.
    """
    scaled = values / values.max().clamp_min(1e-30)
    # The square root, because overlay_mask squares the mask.
    mask = Image.fromarray(scaled.sqrt().numpy().astype(np.float32))
    return overlay_mask(image, mask, colormap=_COLOURS, alpha=0.5)


def thumbnail(image: Image.Image) -> Image.Image:
    """Return a small copy of an image."""
    small = image.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def as_uri(image: Image.Image) -> str:
    """Return an image as a data: URI, so that no file is written or requested."""
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
