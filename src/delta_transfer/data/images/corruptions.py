"""Mild corruptions of images, made on the fly: noise, blur, low contrast and JPEG compression."""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as F

from delta_transfer.data.task import ImageDataset
from delta_transfer.utils.seeds import derive_seed

SEVERITIES = (1, 2, 3)
"""The severities: the milder three of the five of ImageNet-C."""

_ORIGINAL_SIDE = 224  # in pixels, of the images of ImageNet-C


@dataclass(frozen=True)
class Corruption:
    """A kind of corruption.

    Attributes:
        apply: returns the corrupted image for bytes `[3, H, W]` and a parameter; random numbers are
            torch's.
        parameters: one for each of `SEVERITIES`.
    """

    apply: Callable[[Tensor, float], Tensor]
    parameters: tuple[float, float, float]


def _add_gaussian_noise(image: Tensor, sigma: float) -> Tensor:
    """Add noise of a standard deviation, for pixels in 0..1."""
    noisy: Tensor = F.gaussian_noise(image, sigma=sigma)
    return noisy


def _blur(image: Tensor, sigma: float) -> Tensor:
    """Blur an image; sigma is in pixels of an image of 224 pixels, and scaled to the image."""
    sigma *= min(image.shape[-2:]) / _ORIGINAL_SIDE
    size = 2 * round(4 * sigma) + 1  # four standard deviations to each side, as scikit-image has
    blurred: Tensor = F.gaussian_blur(image, [size, size], [sigma, sigma])
    return blurred


def _lower_contrast(image: Tensor, factor: float) -> Tensor:
    """Move the pixels of each channel towards its mean."""
    # As three grey images: of a colour image, torchvision takes the mean of its grey values.
    grey: Tensor = F.adjust_contrast(image.unsqueeze(1), factor)
    return grey.squeeze(1)


def _compress(image: Tensor, quality: float) -> Tensor:
    """Encode an image as JPEG of some quality, and decode it again."""
    # With Pillow, as the authors do: torchvision's JPEG functions are deprecated.
    with io.BytesIO() as buffer:
        F.to_pil_image(image).save(buffer, "JPEG", quality=int(quality))
        with Image.open(buffer, formats=["JPEG"]) as decoded:
            pixels: Tensor = F.pil_to_tensor(decoded)
    return pixels


CORRUPTIONS: dict[str, Corruption] = {
    "gaussian_noise": Corruption(_add_gaussian_noise, (0.08, 0.12, 0.18)),
    "gaussian_blur": Corruption(_blur, (1.0, 2.0, 3.0)),
    "contrast": Corruption(_lower_contrast, (0.4, 0.3, 0.2)),
    "jpeg_compression": Corruption(_compress, (25, 18, 15)),
}
"""The corruptions by their names, with the parameters of ImageNet-C.

ImageNet-C has fifteen, and four more for validation, `gaussian_blur` among them (Hendrycks and
Dietterich, ICLR 2019, https://arxiv.org/abs/1903.12261). Its images have 224 pixels: the blur's
sigma is scaled to the side of the image, so that an image of any size loses the same details.
"""


def corrupt(image: Tensor, corruption: str, severity: int, *, seed: int) -> Tensor:
    """Return a corrupted copy of an image.

    Args:
        image: bytes `[3, H, W]`, resized and cropped but not normalised.
        corruption: a name in `CORRUPTIONS`.
        severity: one of `SEVERITIES`.
        seed: of the noise; torch's random state is left alone.

    Returns:
        Bytes `[3, H, W]`.

    Raises:
        ValueError: if the corruption or severity is unknown.

    Example:
        >>> grey = torch.full((3, 8, 8), 128, dtype=torch.uint8)
        >>> bool((corrupt(grey, "contrast", 3, seed=0) == grey).all())
        True
        >>> bool((corrupt(grey, "gaussian_noise", 1, seed=0) == grey).all())
        False
    """
    if corruption not in CORRUPTIONS:
        raise ValueError(f"corruption must be one of {', '.join(CORRUPTIONS)}, got {corruption!r}")
    if severity not in SEVERITIES:
        raise ValueError(f"severity must be one of {SEVERITIES}, got {severity}")
    chosen = CORRUPTIONS[corruption]
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: that would reseed every accelerator as well.
        torch.default_generator.manual_seed(seed)
        return chosen.apply(image, chosen.parameters[severity - 1])


class CorruptedImages(Dataset[tuple[Tensor, int | Tensor]]):
    """The images of a dataset, each with corrupted copies of itself.

    Noise depends on the seed and the path of the image alone.

    Args:
        images: the dataset, whose images are bytes `[3, H, W]`.
        copies: of each image the corruptions and severities of its copies, equally many for all.
        seed: the user's seed.
    """

    def __init__(
        self, images: ImageDataset, copies: Sequence[Sequence[tuple[str, int]]], *, seed: int
    ) -> None:
        self.images = images
        self.copies = copies
        self.seed = seed

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int | Tensor]:
        """Return the image followed by its copies, `[1 + V, 3, H, W]`, and its label."""
        image, label = self.images[index]
        seed = derive_seed(self.seed, "corruption", self.images.split.paths[index])
        copies = [
            corrupt(image, name, severity, seed=seed) for name, severity in self.copies[index]
        ]
        return torch.stack([image, *copies]), label
