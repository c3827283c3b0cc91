"""The transforms of training and evaluation, from an RGB image to a normalised tensor."""

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
"""The augmentations after crop and horizontal flip, by their names."""

# The authors' resized side for their two crops; that of another crop is in proportion to 224.
_OFFICIAL_SIDES = {224: 256, 299: 320}


@dataclass(frozen=True, kw_only=True)
class Transform:
    """A function from an RGB image to a float32 tensor, in three separate steps.

    Attributes:
        resize: returns bytes `[3, H, W]`; deterministic, so that they can be cached.
        crop: returns the network's part of these bytes; random numbers are torch's.
        normalise: turns bytes `[..., 3, S, S]`, also of whole batches, into numbers of mean 0.
    """

    resize: Resize
    crop: Callable[[Tensor], Tensor]
    normalise: Callable[[Tensor], Tensor]

    def __call__(self, image: Image.Image) -> Tensor:
        """Apply all three."""
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
    """Resize the shorter side to `size / crop_pct`, crop at random, flip half of the time.

    With `crop_pct=1` a square image is not cropped, and the horizontal flip is the only
    augmentation.

    Args:
        size: height and width of the result, in pixels.
        crop_pct: the crop's fraction of the resized shorter side, above 0, at most 1.
        mean: of each of the three channels, for pixels in 0..1.
        std: of each channel.
        interpolation: "bilinear" or "bicubic", always with antialiasing.
        augment: a name in `POLICIES`.

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
    """Resize the shorter side to `size / crop_pct` and crop the centre; nothing is random.

    The arguments are those of `train_transform`.
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
    """Augment as the DELTA authors: resize to a square, crop at random, flip half of the time.

    The square's side is 256 for 224 pixels, 320 for 299; height and width are resized
    independently, so that the image's proportions change
    (https://github.com/lixingjian/DELTA, `--data_aug default`).

    The arguments are those of `train_transform`; the authors' `size` is 224,
    or 299 for Inception-V3.
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
    """Prepare a plain test image as the DELTA authors: all of it, resized to a square.

    The arguments are those of `train_transform`.
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
    """Make ten views of an image, as the DELTA authors test under `--data_aug improved`.

    The shorter side is resized to 256 for 224 pixels, 320 for 299. The views are the
    crops in the four corners (top left, top right, bottom left, bottom right) and in the centre,
    and the same five of the flipped image; the caller averages their logits.

    The arguments are those of `train_transform`; the result is `[10, 3, size, size]`.
    """
    resize = Resize(side=_official_side(size), interpolation=interpolation)
    crops = v2.Compose([v2.TenCrop(size), torch.stack])
    return Transform(resize=resize, crop=crops, normalise=_normalise(mean, std))


def _resize(*, size: int, crop_pct: float, interpolation: str) -> Resize:
    if not 0 < crop_pct <= 1:
        raise ValueError(f"crop_pct must be above 0 and at most 1, got {crop_pct}")
    # Rounded down, as timm does.
    return Resize(side=math.floor(size / crop_pct), interpolation=interpolation)


def _official_side(size: int) -> int:
    return _OFFICIAL_SIDES.get(size, round(size * _OFFICIAL_SIDES[224] / 224))


def _random_augmentation(size: int, augment: str) -> Callable[[Tensor], Tensor]:
    """Return random crop, horizontal flip and the named augmentations."""
    if augment not in POLICIES:
        raise ValueError(f"augment must be one of {', '.join(POLICIES)}, got {augment!r}")
    steps = [v2.RandomCrop(size), v2.RandomHorizontalFlip(), *POLICIES[augment]]
    composed: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return composed


def _normalise(mean: Sequence[float], std: Sequence[float]) -> Callable[[Tensor], Tensor]:
    steps = [v2.ToDtype(torch.float32, scale=True), v2.Normalize(mean=list(mean), std=list(std))]
    composed: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return composed
