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
# The longer side over the shorter one, at most; what lies beyond, at both ends, is cut off.
# Resizing the shorter side makes the longer one huge otherwise: a gigabyte for 1 x 1000 pixels.
_LONGEST = 20
# The authors' resized side for their two crops; for another crop, in the proportion of the first.
_OFFICIAL_SIDES = {224: 256, 299: 320}


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
    transform: Transform = v2.Compose([_shorten, resize, *crop, *_to_tensor(mean=mean, std=std)])
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
    transform: Transform = v2.Compose([_shorten, resize, crop, *_to_tensor(mean=mean, std=std)])
    return transform


def official_train_transform(
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
) -> Transform:
    """The DELTA authors' augmentation: resize to a square, crop at random, mirror half of the time.

    The square's side is 256 for 224 pixels, 320 for 299; height and width are resized apart, so
    that the whole picture takes part and its proportions change
    (https://github.com/lixingjian/DELTA, `--data_aug default`).

    Args:
        size: height and width of the result, in pixels; the authors' 224, or 299 for Inception-V3.
        mean: what is subtracted from each of the three channels (pixels lie in 0..1).
        std: what each channel is then divided by.
        interpolation: "bilinear" or "bicubic", always with antialiasing.

    Returns:
        A function from an RGB picture to a float32 tensor `[3, size, size]`; its random numbers
        are torch's.

    Raises:
        ValueError: if an argument is out of its range.
    """
    resize = _resize_to_square(size, _official_side(size), interpolation=interpolation)
    crop = [v2.RandomCrop(size), v2.RandomHorizontalFlip()]
    transform: Transform = v2.Compose([resize, *crop, *_to_tensor(mean=mean, std=std)])
    return transform


def official_eval_transform(
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
) -> Transform:
    """The DELTA authors' plain test picture: the whole of it, resized to a square.

    Args:
        size: height and width of the result, in pixels.
        mean: what is subtracted from each of the three channels (pixels lie in 0..1).
        std: what each channel is then divided by.
        interpolation: "bilinear" or "bicubic", always with antialiasing.

    Returns:
        A function from an RGB picture to a float32 tensor `[3, size, size]`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    resize = _resize_to_square(size, size, interpolation=interpolation)
    transform: Transform = v2.Compose([resize, *_to_tensor(mean=mean, std=std)])
    return transform


def ten_crop_transform(
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
) -> Transform:
    """Ten views of a picture: the DELTA authors' test under `--data_aug improved`.

    The shorter side is resized to 256 for 224 pixels, 320 for 299. Then the crops in the four
    corners (top left, top right, bottom left, bottom right) and in the centre, and the same five of
    the mirror image; the logits of the ten are to be averaged.

    Args:
        size: height and width of each view, in pixels.
        mean: what is subtracted from each of the three channels (pixels lie in 0..1).
        std: what each channel is then divided by.
        interpolation: "bilinear" or "bicubic", always with antialiasing.

    Returns:
        A function from an RGB picture to a float32 tensor `[10, 3, size, size]`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    _check(size, interpolation)
    resize = v2.Resize(
        _official_side(size), interpolation=_INTERPOLATIONS[interpolation], antialias=True
    )
    crops = [v2.TenCrop(size), torch.stack]
    transform: Transform = v2.Compose([_shorten, resize, *_to_tensor(mean=mean, std=std), *crops])
    return transform


def _shorten(image: Image.Image) -> Image.Image:
    """The middle of a picture that is more than twenty times as long as it is wide."""
    width, height = image.size
    most = _LONGEST * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, top, width - left, height - top))


def _resize(*, size: int, crop_pct: float, interpolation: str) -> torch.nn.Module:
    _check(size, interpolation)
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be above 0 and at most 1, got {crop_pct}")
    resize: torch.nn.Module = v2.Resize(
        math.floor(size / crop_pct),  # as timm does
        interpolation=_INTERPOLATIONS[interpolation],
        antialias=True,
    )
    return resize


def _official_side(size: int) -> int:
    return _OFFICIAL_SIDES.get(size, round(size * _OFFICIAL_SIDES[224] / 224))


def _resize_to_square(size: int, side: int, *, interpolation: str) -> torch.nn.Module:
    _check(size, interpolation)
    resize: torch.nn.Module = v2.Resize(
        (side, side), interpolation=_INTERPOLATIONS[interpolation], antialias=True
    )
    return resize


def _check(size: int, interpolation: str) -> None:
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if interpolation not in _INTERPOLATIONS:
        choices = ", ".join(_INTERPOLATIONS)
        raise ValueError(f"interpolation must be one of {choices}, got {interpolation!r}")


def _to_tensor(*, mean: Sequence[float], std: Sequence[float]) -> list[torch.nn.Module]:
    return [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=list(mean), std=list(std)),
        v2.ToPureTensor(),
    ]
