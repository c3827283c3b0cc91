"""The transforms of training and evaluation: an RGB image becomes a normalised tensor."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from delta_transfer.data.images.resize import Resize

POLICIES: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "default": [],
    "randaugment": [v2.RandAugment()],
    "trivialaugment": [v2.TrivialAugmentWide()],
}
"""What is done to a training image once it is cropped and mirrored, by its name."""

# The authors' resized side for their two crops; for another crop, in the proportion of the first.
_OFFICIAL_SIDES = {224: 256, 299: 320}


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A function from an RGB image to a float32 tensor, in three steps that can be taken apart.

    Attributes:
        resize: gives the image as bytes `[3, H, W]`, always the same, so that it can be kept.
        crop: what the network sees of these bytes; random numbers are torch's.
        normalise: bytes `[..., 3, S, S]`, of whole batches too, to numbers of mean 0.
    """

    resize: Resize
    crop: Callable[[Tensor], Tensor]
    normalise: Callable[[Tensor], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        """All three."""
        return self.normalise(self.crop(self.resize(image)))


def train_transform(
    *,
    size: int,
    crop_pct: float,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str,
    augment: str = "default",
) -> Transform:
    """Resize the shorter side to `size / crop_pct`, crop at random, mirror half of the time.

    With `crop_pct=1` the shorter side has no room to crop: of a square image the crop is then
    the whole image, and only the mirror image is left as augmentation.

    Args:
        size: height and width of the result, in pixels.
        crop_pct: the part of the resized shorter side that the crop keeps, above 0, at most 1.
        mean: what is subtracted from each of the three channels (pixels lie in 0..1).
        std: what each channel is then divided by.
        interpolation: "bilinear" or "bicubic", always with antialiasing.
        augment: a name in `POLICIES`, of what is done beside.

    Returns:
        A function from an RGB image to a float32 tensor `[3, size, size]`; its random numbers
        are torch's.

    Raises:
        ValueError: if an argument is out of its range.
    """
    resize = _resize(size=size, crop_pct=crop_pct, interpolation=interpolation)
    return Transform(
        resize=resize, crop=_random_augmentation(size, augment), normalise=_normalise(mean, std)
    )


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
        A function from an RGB image to a float32 tensor `[3, size, size]`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    resize = _resize(size=size, crop_pct=crop_pct, interpolation=interpolation)
    return Transform(resize=resize, crop=v2.CenterCrop(size), normalise=_normalise(mean, std))


def official_train_transform(
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
    augment: str = "default",
) -> Transform:
    """The DELTA authors' augmentation: resize to a square, crop at random, mirror half of the time.

    The square's side is 256 for 224 pixels, 320 for 299; height and width are resized apart, so
    that the whole image takes part and its proportions change
    (https://github.com/lixingjian/DELTA, `--data_aug default`).

    Args:
        size: height and width of the result, in pixels; the authors' 224, or 299 for Inception-V3.
        mean: what is subtracted from each of the three channels (pixels lie in 0..1).
        std: what each channel is then divided by.
        interpolation: "bilinear" or "bicubic", always with antialiasing.
        augment: a name in `POLICIES`, of what is done beside.

    Returns:
        A function from an RGB image to a float32 tensor `[3, size, size]`; its random numbers
        are torch's.

    Raises:
        ValueError: if an argument is out of its range.
    """
    resize = Resize(side=_official_side(size), square=True, interpolation=interpolation)
    return Transform(
        resize=resize, crop=_random_augmentation(size, augment), normalise=_normalise(mean, std)
    )


def official_eval_transform(
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
) -> Transform:
    """The DELTA authors' plain test image: the whole of it, resized to a square.

    Args:
        size: height and width of the result, in pixels.
        mean: what is subtracted from each of the three channels (pixels lie in 0..1).
        std: what each channel is then divided by.
        interpolation: "bilinear" or "bicubic", always with antialiasing.

    Returns:
        A function from an RGB image to a float32 tensor `[3, size, size]`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    resize = Resize(side=size, square=True, interpolation=interpolation)
    return Transform(resize=resize, crop=v2.Identity(), normalise=_normalise(mean, std))


def ten_crop_transform(
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bilinear",
) -> Transform:
    """Ten views of an image: the DELTA authors' test under `--data_aug improved`.

    The shorter side is resized to 256 for 224 pixels, 320 for 299. Then the crops in the four
    corners (top left, top right, bottom left, bottom right) and in the centre, and the same five of
    the mirror image; the logits of the ten are to be averaged.

    Args:
        size: height and width of each view, in pixels.
        mean: what is subtracted from each of the three channels (pixels lie in 0..1).
        std: what each channel is then divided by.
        interpolation: "bilinear" or "bicubic", always with antialiasing.

    Returns:
        A function from an RGB image to a float32 tensor `[10, 3, size, size]`.

    Raises:
        ValueError: if an argument is out of its range.
    """
    resize = Resize(side=_official_side(size), interpolation=interpolation)
    cut = v2.Compose([v2.TenCrop(size), torch.stack])
    return Transform(resize=resize, crop=cut, normalise=_normalise(mean, std))


def _resize(*, size: int, crop_pct: float, interpolation: str) -> Resize:
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be above 0 and at most 1, got {crop_pct}")
    # Rounded down, as timm does.
    return Resize(side=math.floor(size / crop_pct), interpolation=interpolation)


def _official_side(size: int) -> int:
    return _OFFICIAL_SIDES.get(size, round(size * _OFFICIAL_SIDES[224] / 224))


def _random_augmentation(size: int, augment: str) -> Callable[[Tensor], Tensor]:
    """A crop at random, its mirror image half of the time, and what else is asked for."""
    if augment not in POLICIES:
        raise ValueError(f"augment must be one of {', '.join(POLICIES)}, got {augment!r}")
    drawn = [v2.RandomCrop(size), v2.RandomHorizontalFlip(), *POLICIES[augment]]
    composed: Callable[[Tensor], Tensor] = v2.Compose(drawn)
    return composed


def _normalise(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    steps = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=list(mean), std=list(std))]
    composed: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return composed
