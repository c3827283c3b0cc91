"""The transforms of training and evaluation: an RGB picture becomes a normalised tensor."""

import math
from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torchvision.transforms import v2

Transform = Callable[[Image.Image], torch.Tensor]

_INTERPOLATIONS = {
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}


def train_transform(
    *,
    size: int,
    crop_pct: float,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
) -> Transform:
    """Resize the shorter side to `size / crop_pct`, crop at random, mirror half of the time.

    With `crop_pct=1` the shorter side has no room to crop: of a square picture the crop is then
    the whole picture, and only the mirror image is left as augmentation.

    Args:
        size: height and width of the result, in pixels.
        crop_pct: the part of the resized shorter side that the crop keeps, above 0, at most 1.
        mean: what is subtracted from each of the three channels (pixels lie in 0..1).
        std: what each channel is then divided by.
        interpolation: "bilinear" or "bicubic", always with antialiasing.

    Returns:
        A function from an RGB picture to a float32 tensor `[3, size, size]`; its random numbers
        are torch's.

    Raises:
        ValueError: if an argument is out of its range.
    """
    resize = _resize(size=size, crop_pct=crop_pct, interpolation=interpolation)
    crop = [v2.RandomCrop(size), v2.RandomHorizontalFlip()]
    transform: Transform = v2.Compose([resize, *crop, *_to_tensor(mean=mean, std=std)])
    return transform


def eval_transform(
    *,
    size: int,
    crop_pct: float,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
) -> Transform:
    """Resize the shorter side to `size / crop_pct` and cut out the centre; nothing is random.

    Args:
        size: height and width of the result, in pixels.
        crop_pct: the part of the resized shorter side that the crop keeps, above 0, at most 1.
        mean: what is subtracted from each of the three channels (pixels lie in 0..1).
        std: what each channel is then divided by.
        interpolation: "bilinear" or "bicubic", always with antialiasing.

    Returns:
        A function from an RGB picture to a float32 tensor `[3, size, size]`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    resize = _resize(size=size, crop_pct=crop_pct, interpolation=interpolation)
    crop = v2.CenterCrop(size)
    transform: Transform = v2.Compose([resize, crop, *_to_tensor(mean=mean, std=std)])
    return transform


def _resize(*, size: int, crop_pct: float, interpolation: str) -> torch.nn.Module:
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be above 0 and at most 1, got {crop_pct}")
    if interpolation not in _INTERPOLATIONS:
        choices = ", ".join(_INTERPOLATIONS)
        raise ValueError(f"interpolation must be one of {choices}, got {interpolation!r}")
    resize: torch.nn.Module = v2.Resize(
        math.floor(size / crop_pct),  # as timm does
        interpolation=_INTERPOLATIONS[interpolation],
        antialias=True,
    )
    return resize


def _to_tensor(*, mean: Sequence[float], std: Sequence[float]) -> list[torch.nn.Module]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=list(mean), std=list(std)),
        v2.ToPureTensor(),
    ]
