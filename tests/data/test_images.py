from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delta_transfer.data.images import IMAGE_SUFFIXES, read_image
from delta_transfer.errors import UserError

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, path: Path, **options: object) -> Image.Image:
    image.save(path, **options)
    result = read_image(path)
    assert result.mode == "RGB"
    return result


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK"])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "a.tif"
    assert saved(Image.new("RGB", (3, 2), WHITE).convert(mode), path).getpixel((0, 0)) == WHITE


def test_the_file_is_closed_and_may_go(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    image = saved(Image.new("RGB", (3, 2), BLUE), path)
    path.unlink()
    assert image.getpixel((2, 1)) == BLUE


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it a quarter turn clockwise
    image = Image.new("RGB", (4, 2), GREEN)
    image.putpixel((0, 0), RED)
    turned = saved(image, tmp_path / "a.png", exif=exif)
    assert turned.size == (2, 4)
    assert turned.getpixel((1, 0)) == RED


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_transparency_is_put_on_white(tmp_path: Path, mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 255))
    result = saved(image.convert(mode), tmp_path / "a.png")
    assert [result.getpixel((column, 0)) for column in (0, 1)] == [WHITE, (0, 0, 0)]


def test_half_transparency_mixes_with_white(tmp_path: Path) -> None:
    result = saved(Image.new("RGBA", (1, 1), (255, 0, 0, 128)), tmp_path / "a.png")
    assert result.getpixel((0, 0)) == (255, 127, 127)


def test_a_transparent_colour_of_a_palette_is_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([*BLUE, *GREEN])
    image.putpixel((1, 0), 1)
    result = saved(image, tmp_path / "a.png", transparency=0)
    assert [result.getpixel((column, 0)) for column in (0, 1)] == [WHITE, GREEN]


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path, suffix: str) -> None:
    pixels = np.array([[0, 257, 32896, 65535]], dtype=np.uint16)
    result = saved(Image.fromarray(pixels), tmp_path / f"a.{suffix}")
    assert np.asarray(result)[0, :, 1].tolist() == [0, 1, 128, 255]


@pytest.mark.parametrize("mode", ["F", "I"])
def test_pixels_of_unknown_range_are_an_error(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "depth.tif"
    Image.new(mode, (2, 2), 70000).save(path)
    with pytest.raises(UserError, match=r"depth\.tif.*32-bit.*save it with 8 or 16 bits"):
        read_image(path)


@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "webp", "bmp"])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"broken.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"broken\.{suffix}'.*damaged.*replace the file or remove"):
        read_image(path)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>"])
def test_a_file_that_is_no_picture_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"page\.jpg"):
        read_image(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"gone\.png.*missing"):
        read_image(tmp_path / "gone.png")


def test_suffixes_are_in_lower_case_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif"} <= IMAGE_SUFFIXES
    assert all(suffix.startswith(".") and suffix.islower() for suffix in IMAGE_SUFFIXES)
