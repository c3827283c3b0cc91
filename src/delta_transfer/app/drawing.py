"""Pictures of the page: what a network sees, maps laid over it, and their place in the HTML."""

import base64
import io

import numpy as np
from PIL import Image
from torch import Tensor
from torchcam.utils import overlay_mask

SIDE = 288  # pixels of a picture on the page, at least
THUMBNAIL = 192
_COLOURS = "inferno"


def as_picture(pixels: Tensor) -> Image.Image:
    """Bytes `[3, S, S]` as a picture that is large enough to look at."""
    found = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
    side = max(SIDE, found.width)
    return found.resize((side, side), Image.Resampling.BICUBIC)


def overlay(picture: Image.Image, values: Tensor) -> Image.Image:
    """A map `[H, W]` laid over a picture: the larger a value, the brighter.

    Args:
        picture: as `as_picture` makes it.
        values: from 0 up; the largest is the brightest.
    """
    shares = values / values.max().clamp_min(1e-30)
    mask = Image.fromarray(shares.sqrt().numpy().astype(np.float32))  # which will be squared
    return overlay_mask(picture, mask, colormap=_COLOURS, alpha=0.5)


def thumbnail(picture: Image.Image) -> Image.Image:
    """A small copy of any picture."""
    small = picture.copy()
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return small


def as_uri(picture: Image.Image) -> str:
    """A picture as a `data:` address, so that no file is written and none is asked for."""
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
