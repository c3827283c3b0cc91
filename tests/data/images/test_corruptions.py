import io

import numpy as np
import pytest
import torch
from PIL import Image
from skimage.filters import gaussian
from torch import Tensor

from delta_transfer.data.images.corruptions import (
    CORRUPTIONS,
    SEVERITIES,
    CorruptedImages,
    corrupt,
)
from delta_transfer.data.images.resize import Resize
from delta_transfer.data.task import ImageDataset, Split

# The parameters of ImageNet-C (https://github.com/hendrycks/robustness, make_imagenet_c.py).
SIGMAS, BLURS, FACTORS, QUALITIES = (0.08, 0.12, 0.18), (1, 2, 3), (0.4, 0.3, 0.2), (25, 18, 15)


def photo(side: int = 224, seed: int = 0) -> Tensor:
    """A smooth image with a little noise, its channels of different means."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(20, 200, (8, 8, 3), dtype=np.uint8)
    coarse[..., 0] //= 2
    smooth = np.asarray(Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC))
    noisy = np.clip(smooth + rng.normal(0, 6, smooth.shape), 0, 255).astype(np.uint8)
    return torch.from_numpy(noisy).permute(2, 0, 1).contiguous()


def as_array(image: Tensor) -> np.ndarray:
    """`[H, W, 3]` from 0 to 255, as the authors' code has it."""
    return image.permute(1, 2, 0).numpy().astype(np.float64)


def most(found: Tensor, expected: np.ndarray) -> float:
    """The largest difference of a pixel from a reference of 0 to 255."""
    return float(np.abs(as_array(found) - expected).max())


@pytest.mark.parametrize("severity", SEVERITIES)
class TestReference:
    def test_gaussian_noise(self, severity: int) -> None:
        image, sigma = photo(), SIGMAS[severity - 1]
        draw = torch.randn(image.shape, generator=torch.Generator().manual_seed(7))
        expected = np.clip(as_array(image) / 255 + sigma * as_array(draw), 0, 1) * 255
        found = corrupt(image, "gaussian_noise", severity, seed=7)
        assert most(found, expected) <= 1
        grey = torch.full((3, 224, 224), 128, dtype=torch.uint8)
        noise = corrupt(grey, "gaussian_noise", severity, seed=0).double() / 255
        assert float(noise.std()) == pytest.approx(sigma, rel=0.03)

    def test_gaussian_blur(self, severity: int) -> None:
        image, sigma = photo(), BLURS[severity - 1]
        expected = gaussian(as_array(image) / 255, sigma=sigma, mode="mirror", channel_axis=-1)
        assert most(corrupt(image, "gaussian_blur", severity, seed=0), 255 * expected) <= 0.51

    def test_the_blur_of_a_small_image_is_as_wide_in_proportion(self, severity: int) -> None:
        image, sigma = photo(56), BLURS[severity - 1] / 4
        expected = gaussian(as_array(image) / 255, sigma=sigma, mode="mirror", channel_axis=-1)
        assert most(corrupt(image, "gaussian_blur", severity, seed=0), 255 * expected) <= 0.51

    def test_contrast(self, severity: int) -> None:
        image, factor = photo(), FACTORS[severity - 1]
        pixels = as_array(image)
        means = pixels.mean(axis=(0, 1), keepdims=True)
        expected = (pixels - means) * factor + means
        assert most(corrupt(image, "contrast", severity, seed=0), expected) <= 1

    def test_jpeg_compression(self, severity: int) -> None:
        image, buffer = photo(), io.BytesIO()
        Image.fromarray(as_array(image).astype(np.uint8)).save(
            buffer, "JPEG", quality=QUALITIES[severity - 1]
        )
        expected = np.asarray(Image.open(buffer), dtype=np.float64)
        assert most(corrupt(image, "jpeg_compression", severity, seed=0), expected) == 0


@pytest.mark.parametrize("name", CORRUPTIONS)
class TestEachCorruption:
    @pytest.mark.parametrize("side", [16, 31, 64])
    def test_bytes_of_the_same_size(self, name: str, side: int) -> None:
        image = photo(side)
        before = image.clone()
        for severity in SEVERITIES:
            found = corrupt(image, name, severity, seed=0)
            assert (found.shape, found.dtype) == (image.shape, torch.uint8)
            assert torch.equal(found, corrupt(image, name, severity, seed=0))
        assert torch.equal(image, before)

    def test_a_higher_severity_changes_more(self, name: str) -> None:
        image = photo()
        changes = [
            float((corrupt(image, name, severity, seed=0).double() - image).square().mean())
            for severity in SEVERITIES
        ]
        assert 0 < changes[0] < changes[1] < changes[2]

    def test_the_random_state_is_left_alone(self, name: str) -> None:
        before = torch.get_rng_state()
        corrupt(photo(16), name, 1, seed=3)
        assert torch.equal(torch.get_rng_state(), before)


def test_another_seed_is_other_noise() -> None:
    first, second = (corrupt(photo(), "gaussian_noise", 1, seed=seed) for seed in (0, 1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize(
    ("name", "severity", "message"),
    [
        ("fog", 1, "corruption must be one of gaussian_noise, .*, got 'fog'"),
        ("contrast", 4, r"severity must be one of \(1, 2, 3\), got 4"),
        ("contrast", 0, r"severity must be one of \(1, 2, 3\), got 0"),
    ],
)
def test_unknown(name: str, severity: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        corrupt(photo(16), name, severity, seed=0)


class TestCorruptedImages:
    COPIES = (("gaussian_noise", 2), ("contrast", 1))

    def dataset(self, paths: tuple[str, ...], seed: int = 0) -> CorruptedImages:
        split = Split(
            paths, tuple(range(len(paths))), lambda path: Image.new("RGB", (16, 16), path)
        )
        return CorruptedImages(
            ImageDataset(split, Resize(side=16)), [self.COPIES] * len(paths), seed=seed
        )

    def test_the_image_comes_first_and_then_its_copies(self) -> None:
        views, label = self.dataset(("red", "grey"))[1]
        assert (views.shape, views.dtype, label) == ((3, 3, 16, 16), torch.uint8, 1)
        assert torch.equal(views[0], torch.full((3, 16, 16), 128, dtype=torch.uint8))
        assert torch.equal(views[2], views[0])  # without contrast there is none to lose
        assert not torch.equal(views[1], views[0])

    def test_noise_is_that_of_the_path_and_the_seed(self) -> None:
        first, _ = self.dataset(("red", "grey"))[1]
        alone, _ = self.dataset(("grey",))[0]
        assert torch.equal(first, alone)
        other, _ = self.dataset(("grey",), seed=1)[0]
        assert not torch.equal(first[1], other[1])
        gray, _ = self.dataset(("gray",))[0]  # the same colour by another name
        assert torch.equal(gray[0], first[0])
        assert not torch.equal(gray[1], first[1])
