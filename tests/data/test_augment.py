import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from delta_transfer.data.augment import eval_transform, train_transform

ZERO_ONE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("make", [train_transform, eval_transform])
@pytest.mark.parametrize("size", [(50, 30), (30, 50), (8, 8), (300, 7)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.3, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_picture_becomes_the_same_shape(make, size, crop_pct, interpolation) -> None:
    options = ZERO_ONE | {"interpolation": interpolation}
    result = make(size=16, crop_pct=crop_pct, **options)(noise(*size))
    assert (result.shape, result.dtype) == ((3, 16, 16), torch.float32)
    assert type(result) is torch.Tensor
    assert 0 <= result.min() <= result.max() <= 1


def test_evaluation_cuts_out_the_centre_of_the_resized_picture() -> None:
    image = noise(30, 20)
    result = eval_transform(size=10, crop_pct=0.5, **ZERO_ONE)(image)
    centre = np.asarray(image, dtype=np.float32)[5:15, 10:20] / 255
    torch.testing.assert_close(result, torch.from_numpy(centre).permute(2, 0, 1))


def test_normalisation_is_per_channel() -> None:
    image = Image.new("RGB", (9, 9), (255, 0, 51))
    options = {"mean": (0.5, 0.2, 0.2), "std": (0.5, 0.1, 1.0), "interpolation": "bilinear"}
    for make in (train_transform, eval_transform):
        pixel = make(size=4, crop_pct=1.0, **options)(image)[:, 0, 0]
        torch.testing.assert_close(pixel, torch.tensor([1.0, -2.0, 0.0]))


def test_training_crops_somewhere_in_the_resized_picture_and_mirrors() -> None:
    image = noise(12, 12)
    whole = torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)
    crops = {
        (top, left, mirrored): (part.flip(-1) if mirrored else part).contiguous()
        for top in range(5)
        for left in range(5)
        for mirrored in (False, True)
        for part in [whole[:, top : top + 8, left : left + 8]]
    }
    transform = train_transform(size=8, crop_pct=8 / 12, **ZERO_ONE)
    seen = set()
    for _ in range(60):
        result = transform(image)
        seen |= {key for key, crop in crops.items() if torch.allclose(result, crop, atol=1e-6)}
    assert len(seen) > 20
    assert {mirrored for _, _, mirrored in seen} == {False, True}


def test_without_room_to_crop_a_square_is_only_mirrored() -> None:
    image = noise(8, 8)
    transform = train_transform(size=8, crop_pct=1.0, **ZERO_ONE)
    assert len({transform(image).numpy().tobytes() for _ in range(20)}) == 2


def test_transforms_can_be_pickled() -> None:
    transform = eval_transform(size=8, crop_pct=0.9, **ZERO_ONE)
    again = pickle.loads(pickle.dumps(transform))
    assert torch.equal(again(noise(9, 9)), transform(noise(9, 9)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 0}, "size must be at least 1, got 0"),
        ({"crop_pct": 0.0}, "crop_pct must be above 0 and at most 1, got 0.0"),
        ({"crop_pct": 1.1}, "crop_pct must be above 0 and at most 1, got 1.1"),
        ({"interpolation": "cubic"}, "one of bilinear, bicubic, got 'cubic'"),
    ],
)
def test_bad_arguments_are_named(change, message) -> None:
    options = {"size": 8, "crop_pct": 0.9, **ZERO_ONE, **change}
    for make in (train_transform, eval_transform):
        with pytest.raises(ValueError, match=message):
            make(**options)
