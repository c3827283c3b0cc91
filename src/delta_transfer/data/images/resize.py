"""An image of any size becomes bytes of the size that crops are cut from."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

_INTERPOLATIONS = {
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}
# The longer side over the shorter one, at most; what lies beyond, at both ends, is cut off.
# Resizing the shorter side makes the longer one huge otherwise: a gigabyte for 1 x 1000 pixels.
_MAX_ASPECT_RATIO = 20


@dataclass(frozen=True, kw_only=True)
class Resize:
    """What is done to an image before anything is drawn at random, always with antialiasing.

    Args:
        side: what the shorter side becomes, in pixels; the longer one stays in proportion, but is
            cut off at twenty times as much.
        square: both sides become so long instead, whatever their proportion.
        interpolation: "bilinear" or "bicubic".

    Raises:
        ValueError: if an argument is out of its range.

    Example:
        >>> Resize(side=4)(Image.new("RGB", (16, 8), "white")).shape
        torch.Size([3, 4, 8])
    """

    side: int
    square: bool = False
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise ValueError(f"size must be at least 1, got {self.side}")
        if self.interpolation not in _INTERPOLATIONS:
            choices = ", ".join(_INTERPOLATIONS)
            raise ValueError(f"interpolation must be one of {choices}, got {self.interpolation!r}")

    def __call__(self, image: Image.Image) -> Tensor:
        """The bytes `[3, H, W]` of an RGB image."""
        resized = v2.functional.resize(
            image if self.square else _shorten(image),
            [self.side, self.side] if self.square else [self.side],
            interpolation=_INTERPOLATIONS[self.interpolation],
            antialias=True,
        )
        pixels: Tensor = v2.functional.pil_to_tensor(resized)
        return pixels


def _shorten(image: Image.Image) -> Image.Image:
    """The middle of an image that is more than twenty times as long as it is wide."""
    width, height = image.size
    most = _MAX_ASPECT_RATIO * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, top, width - left, height - top))
