import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from delta_transfer.data.images.augment import (
    eval_transform,
    official_eval_transform,
    official_train_transform,
    ten_crop_transform,
    train_transform,
)

ZERO_ONE = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "interpolation": "bilinear"}
PLAIN = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
OFFICIAL = [official_train_transform, official_eval_transform, ten_crop_transform]


def noise(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def squared(image: Image.Image, side: int) -> np.ndarray:
    """`[side, side, 3]` in 0..1: the image resized without regard for its proportions."""
    return np.asarray(image.resize((side, side), Image.Resampling.BILINEAR), np.float32) / 255


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


@pytest.mark.parametrize("make", [train_transform, eval_transform])
@pytest.mark.parametrize("size", [(50, 30), (30, 50), (8, 8), (300, 7)])
@pytest.mark.parametrize("crop_pct", [0.875, 0.3, 1.0])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_every_image_becomes_the_same_shape(make, size, crop_pct, interpolation) -> None:
    options = ZERO_ONE | {"interpolation": interpolation}
    result = make(size=16, crop_pct=crop_pct, **options)(noise(*size))
    assert (result.shape, result.dtype) == ((3, 16, 16), torch.float32)
    assert type(result) is torch.Tensor
    assert 0 <= result.min() <= result.max() <= 1


@pytest.mark.parametrize("size", [(50, 30), (31, 77), (9, 9), (900, 7)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("official", [False, True])
def test_its_parts_are_torchvisions_on_the_image_itself_to_the_bit(size, interpolation, official):
    """With the same numbers drawn."""
    image, side = noise(*size), (16 if official else 20)
    ending = [
        v2.ToImage(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4]),
        v2.ToPureTensor(),
    ]
    normal = {"mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "interpolation": interpolation}
    if official:
        made = official_train_transform(size=14, **normal)
    else:
        made = train_transform(size=14, crop_pct=0.7, **normal)
    reference = v2.Compose(
        [
            v2.Resize(
                (side, side) if official else side,
                interpolation=v2.InterpolationMode(interpolation),
                antialias=True,
            ),
            v2.RandomCrop(14),
            v2.RandomHorizontalFlip(),
            *ending,
        ]
    )
    short = image.crop((380, 0, 520, 7)) if size == (900, 7) and not official else image
    for seed in range(10):
        found, expected = (
            transform(sample)
            for transform, sample in ((made, image), (reference, short))
            if torch.manual_seed(seed)
        )
        assert torch.equal(found, expected)


def test_evaluation_cuts_out_the_centre_of_the_resized_image() -> None:
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


def test_training_crops_somewhere_in_the_resized_image_and_mirrors() -> None:
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


# ----------------------------------------------------------------------------------- official


@pytest.mark.parametrize(("size", "side"), [(224, 256), (299, 320), (7, 8), (1, 1)])
@pytest.mark.parametrize("shape", [(50, 30), (30, 50), (400, 300)])
def test_the_official_image_is_a_square_crop_of_a_square(size, side, shape) -> None:
    image = noise(*shape)
    whole = squared(image, side)
    found = official_train_transform(size=size, **PLAIN)(image)
    assert (found.shape, found.dtype, type(found)) == ((3, size, size), torch.float32, torch.Tensor)
    crops = [
        as_tensor(part)
        for top in range(side - size + 1)
        for left in range(side - size + 1)
        for crop in [whole[top : top + size, left : left + size]]
        # Only those with the right corner are made into tensors: there are thousands.
        for part in (crop, crop[:, ::-1])
        if np.allclose(part[0, 0], found[:, 0, 0], atol=1e-6)
    ]
    assert any(torch.allclose(found, crop, atol=1e-6) for crop in crops)


def test_every_official_crop_is_drawn_and_half_are_mirrored() -> None:
    image = noise(40, 24)
    whole = squared(image, 16)
    expected = {
        as_tensor(part).mul(255).round().byte().numpy().tobytes(): (top, left, mirrored)
        for top in range(3)
        for left in range(3)
        for crop in [whole[top : top + 14, left : left + 14]]
        for mirrored, part in enumerate((crop, crop[:, ::-1]))
    }
    transform = official_train_transform(size=14, **PLAIN)
    torch.manual_seed(0)
    drawn = [
        expected[transform(image).mul(255).round().byte().numpy().tobytes()] for _ in range(300)
    ]
    assert set(drawn) == set(expected.values())
    assert 120 < sum(mirrored for _, _, mirrored in drawn) < 180


@pytest.mark.parametrize("shape", [(50, 30), (9, 14), (300, 400)])
def test_the_official_plain_test_image_is_the_whole_one(shape) -> None:
    image = noise(*shape)
    found = official_eval_transform(size=16, **PLAIN)(image)
    assert type(found) is torch.Tensor
    torch.testing.assert_close(found, as_tensor(squared(image, 16)))


@pytest.mark.parametrize(("size", "side"), [(224, 256), (299, 320), (14, 16)])
def test_ten_crops_are_corners_and_centre_and_their_mirror_images(size, side) -> None:
    image = noise(100, 50)
    whole = np.asarray(image.resize((2 * side, side), Image.Resampling.BILINEAR), np.float32) / 255
    down, right = side - size, 2 * side - size
    centre = (round(down / 2), round(right / 2))
    corners = [(0, 0), (0, right), (down, 0), (down, right), centre]
    views = [
        as_tensor(sample[top : top + size, left : left + size])
        for sample in (whole, whole[:, ::-1])
        for top, left in corners
    ]
    found = ten_crop_transform(size=size, **PLAIN)(image)
    assert (found.shape, found.dtype, type(found)) == (
        (10, 3, size, size),
        torch.float32,
        torch.Tensor,
    )
    torch.testing.assert_close(found, torch.stack(views))


@pytest.mark.parametrize("make", OFFICIAL)
def test_official_images_are_normalised_per_channel(make) -> None:
    image = Image.new("RGB", (9, 5), (255, 0, 51))
    found = make(size=4, mean=(0.5, 0.2, 0.2), std=(0.5, 0.1, 1.0))(image)
    expected = torch.tensor([1.0, -2.0, 0.0]).view(3, 1, 1).expand_as(found)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("make", OFFICIAL)
def test_official_interpolation_is_bilinear_unless_said_otherwise(make) -> None:
    image, transforms = noise(40, 24), {}
    for name in ("bilinear", "bicubic"):
        torch.manual_seed(0)
        transforms[name] = make(size=14, interpolation=name, **PLAIN)(image)
    torch.manual_seed(0)
    assert torch.equal(make(size=14, **PLAIN)(image), transforms["bilinear"])
    assert not torch.allclose(transforms["bilinear"], transforms["bicubic"])


@pytest.mark.parametrize("make", OFFICIAL)
def test_official_transforms_can_be_pickled(make) -> None:
    transform = make(size=14, **PLAIN)
    results = []
    for each in (transform, pickle.loads(pickle.dumps(transform))):
        torch.manual_seed(0)
        results.append(each(noise(20, 30)))
    assert torch.equal(*results)


@pytest.mark.parametrize("make", OFFICIAL)
def test_bad_arguments_of_official_transforms_are_named(make) -> None:
    with pytest.raises(ValueError, match="size must be at least 1, got 0"):
        make(size=0, **PLAIN)
    with pytest.raises(ValueError, match="one of bilinear, bicubic, got 'nearest'"):
        make(size=8, interpolation="nearest", **PLAIN)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (2, 90_000)])
@pytest.mark.parametrize("make", [train_transform, eval_transform])
def test_a_very_long_image_costs_no_gigabytes_and_shows_its_middle(make, size):
    image = Image.new("RGB", size)
    for offset in range(-8, 8):
        x = 0 if size[0] <= 2 else size[0] // 2 + offset
        y = 0 if size[1] <= 2 else size[1] // 2 + offset
        image.putpixel((x, y), (255, 255, 255))
    options = {"mean": (0.0,) * 3, "std": (1.0,) * 3, "interpolation": "bilinear"}
    found = make(size=16, crop_pct=1.0, **options)(image)
    assert found.shape == (3, 16, 16)
    if make is eval_transform:
        assert found.max() > 0.4
