"""Resize images to the size that crops are taken from."""

from dataclasses import dataclass

from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

_INTERPOLATIONS = {
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}
# Of the longer to the shorter side; longer images are cropped at both ends. Without a limit, the
# resized image can be huge: a gigabyte for 1 x 1000 pixels.
_MAX_ASPECT_RATIO = 20


@dataclass(frozen=True, kw_only=True)
class Resize:
    """The deterministic first step of a transform, always with antialiasing.

    Args:
        side: the resulting shorter side, in pixels; the longer one stays in proportion, but is
            cropped to twenty times as much.
        square: make both sides so long instead, whatever their proportion.
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
        """Return the bytes `[3, H, W]` of an RGB image."""
        resized = v2.functional.resize(
            image if self.square else _shorten(image),
            [self.side, self.side] if self.square else [self.side],
            interpolation=_INTERPOLATIONS[self.interpolation],
            antialias=True,
        )
        pixels: Tensor = v2.functional.pil_to_tensor(resized)
        return pixels


def _shorten(image: Image.Image) -> Image.Image:
    """Crop an image that is more than twenty times as long as it is wide."""
    width, height = image.size
    most = _MAX_ASPECT_RATIO * min(width, height)
    if max(width, height) <= most:
        return image
    left, top = max(0, width - most) // 2, max(0, height - most) // 2
    return image.crop((left, top, width - left, height - top))
