"""Images of every kind: what is read is compared with what numpy makes of the stored numbers."""

import io
import struct
from pathlib import Path

import numpy as np
import PIL
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageCms, features

from delta_transfer.data.images.decode import IMAGE_SUFFIXES, decode_image, read_image
from tests.data.images.encoded import png, tiff

Pixels = NDArray[np.uint8]

LOSSLESS = [
    pytest.param("PNG", {}, id="png"),
    pytest.param("BMP", {}, id="bmp"),
    pytest.param("PPM", {}, id="ppm"),
    pytest.param("TIFF", {}, id="tiff"),
    pytest.param("TIFF", {"compression": "tiff_lzw"}, id="tiff-lzw"),
    pytest.param("WEBP", {"lossless": True}, id="webp"),
]
WITH_ALPHA = [each for each in LOSSLESS if each.id not in ("bmp", "ppm")]
LITTLE_LOSS = {
    "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    "JPEG": {"quality": 100, "subsampling": 0},
    "WEBP": {"lossless": True},
}
needs_avif = pytest.mark.skipif(
    "AVIF" not in Image.MIME and not features.check("avif"), reason="this Pillow has no AVIF"
)


def noise(*shape: int, dtype: type = np.uint8) -> NDArray[np.generic]:
    most = int(np.iinfo(dtype).max)
    return np.random.default_rng(0).integers(0, most, shape, dtype=dtype, endpoint=True)


def decoded(source: bytes | Image.Image, kind: str = "PNG", **options: object) -> Pixels:
    """The pixels of an encoded image, or of an image encoded first."""
    if isinstance(source, Image.Image):
        stream = io.BytesIO()
        source.save(stream, kind, **options)
        source = stream.getvalue()
    image = decode_image(io.BytesIO(source), name="an image")
    assert type(image) is Image.Image
    assert image.mode == "RGB"
    return np.asarray(image)


def far(result: NDArray[np.generic], expected: NDArray[np.generic]) -> float:
    return float(np.abs(result.astype(float) - expected.astype(float)).max())


def grey(values: NDArray[np.generic]) -> Pixels:
    return np.repeat(np.asarray(values)[..., None], 3, axis=-1).astype(np.uint8)


def on_white(colour: NDArray[np.generic], alpha: NDArray[np.generic]) -> NDArray[np.float64]:
    weight = alpha[..., None] / 255.0
    return weight * colour + (1 - weight) * 255.0


@pytest.mark.parametrize(("kind", "options"), LOSSLESS)
def test_rgb_is_read_as_it_is(kind: str, options: dict[str, object]) -> None:
    pixels = noise(5, 7, 3)
    assert np.array_equal(decoded(Image.fromarray(pixels), kind, **options), pixels)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF", "GIF"])
def test_grey_has_three_equal_channels(kind: str) -> None:
    pixels = noise(5, 7)
    assert np.array_equal(decoded(Image.fromarray(pixels), kind), grey(pixels))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "PPM", "TIFF"])
def test_one_bit_is_black_and_white(kind: str) -> None:
    pixels = noise(5, 9) > 127
    assert np.array_equal(decoded(Image.fromarray(pixels), kind), grey(pixels * 255))


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_few_bits_span_black_to_white(depth: int) -> None:
    most = 2**depth - 1
    values = np.arange(8) % (most + 1)
    packed = np.packbits(np.array([[v >> b & 1 for b in range(depth)[::-1]] for v in values]))
    expected = grey(values[None] * 255 // most)
    assert np.array_equal(decoded(png(packed.tobytes(), (8, 1), depth=depth, kind=0)), expected)
    transparent = (b"tRNS", struct.pack(">H", 1))
    result = decoded(png(packed.tobytes(), (8, 1), transparent, depth=depth, kind=0))
    expected[0, values == 1] = 255
    assert np.array_equal(result, expected)


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_is_looked_up(kind: str) -> None:
    palette, indices = noise(256, 3), noise(6, 50)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    assert np.array_equal(decoded(image, kind), palette[indices])


@pytest.mark.parametrize("kind", ["PNG", "GIF"])
def test_a_transparent_colour_of_a_palette_is_white(kind: str) -> None:
    palette, indices = noise(256, 3), noise(6, 50)
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    palette[7] = 255
    assert np.array_equal(decoded(image, kind, transparency=7), palette[indices])


def test_a_palette_with_degrees_of_transparency_is_put_on_white() -> None:
    palette, indices, alpha = noise(256, 3), noise(6, 50), noise(256)[::-1]
    image = Image.fromarray(indices)
    image.putpalette(palette.tobytes())
    result = decoded(image, transparency=alpha.tobytes())
    assert far(result, on_white(palette[indices], alpha[indices])) <= 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_grey_with_alpha_is_put_on_white(kind: str) -> None:
    pixels = noise(20, 20, 2)
    expected = on_white(grey(pixels[..., 0]), pixels[..., 1])
    assert far(decoded(Image.fromarray(pixels), kind), expected) <= 1


@pytest.mark.parametrize(("kind", "options"), WITH_ALPHA)
def test_colour_with_alpha_is_put_on_white(kind: str, options: dict[str, object]) -> None:
    pixels = noise(20, 20, 4)
    pixels[0, :, 3], pixels[1, :, 3] = 0, 255
    expected = on_white(pixels[..., :3], pixels[..., 3])
    if kind == "WEBP":
        options = options | {"exact": True}
    assert far(decoded(Image.fromarray(pixels), kind, **options), expected) <= 1


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("bits", [8, 16])
def test_colour_that_is_multiplied_by_alpha_already(bits: int, order: str) -> None:
    alpha = noise(20, 20)
    alpha[0] = 0
    stored = (noise(20, 20, 3) * (alpha[..., None] / 255)).astype(np.uint8)
    pixels = np.dstack([stored, alpha]).astype(f"{order}u{bits // 8}") * (257 if bits == 16 else 1)
    data = pixels.astype(f"{order}u{bits // 8}").tobytes()
    file = tiff(data, (20, 20), bits=bits, photometric=2, channels=4, order=order, alpha=1)
    expected = stored + (255.0 - alpha[..., None])
    assert far(decoded(file), expected) <= 1


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_white(depth: int) -> None:
    colours = np.array([[1, 2, 3], [200, 100, 0], [3, 2, 1]]) * (1 if depth == 8 else 257)
    data = colours.astype(f">u{depth // 8}").tobytes()
    key = (b"tRNS", struct.pack(">3H", *colours[1]))
    result = decoded(png(data, (3, 1), key, depth=depth, kind=2))
    assert result.tolist() == [[[1, 2, 3], [255, 255, 255], [3, 2, 1]]]


def test_a_transparent_grey_of_sixteen_bits_is_white() -> None:
    data = struct.pack(">3H", 500, 501, 0)
    result = decoded(png(data, (3, 1), (b"tRNS", struct.pack(">H", 500)), depth=16, kind=0))
    assert result[0, :, 0].tolist() == [255, 2, 0]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("encode", ["png", "tiff", "pgm"])
def test_sixteen_bits_are_scaled_to_eight(encode: str, order: str) -> None:
    pixels = noise(6, 50, dtype=np.uint16)
    pixels[0, :4] = 0, 257, 32896, 65535
    file = {
        "png": lambda: png(pixels.astype(">u2").tobytes(), (50, 6), depth=16, kind=0),
        "tiff": lambda: tiff(pixels.astype(order + "u2").tobytes(), (50, 6), bits=16, order=order),
        "pgm": lambda: b"P5 50 6 65535\n" + pixels.astype(">u2").tobytes(),
    }[encode]()
    expected = grey(np.round(pixels / 257))
    assert expected[0, :4, 0].tolist() == [0, 1, 128, 255]
    assert np.array_equal(decoded(file), expected)


def test_the_largest_number_that_a_file_can_hold_is_white() -> None:
    values = np.array([0, 1000, 4095, 17])
    bits = np.packbits([[v >> b & 1 for b in range(12)[::-1]] for v in values])
    expected = np.round(values / 4095 * 255).astype(int).tolist()
    assert decoded(tiff(bits.tobytes(), (4, 1), bits=12))[0, :, 0].tolist() == expected
    pgm = b"P5 4 1 4095\n" + values.astype(">u2").tobytes()
    assert decoded(pgm)[0, :, 0].tolist() == expected


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_may_be_stored_with_zero_as_white(bits: int) -> None:
    data = np.array([0, 64, 255], dtype=np.uint8).astype(f"<u{bits // 8}")
    data *= 257 if bits == 16 else 1
    result = decoded(tiff(data.tobytes(), (3, 1), bits=bits, photometric=0))
    assert result[0, :, 0].tolist() == [255, 191, 0]


@pytest.mark.parametrize("channels", [2, 3, 4])
def test_colour_of_sixteen_bits_keeps_the_upper_eight(channels: int) -> None:
    pixels = noise(5, 7, channels, dtype=np.uint16)
    if channels != 3:
        pixels[..., -1] = 65535
    kind = {2: 4, 3: 2, 4: 6}[channels]
    result = decoded(png(pixels.astype(">u2").tobytes(), (7, 5), depth=16, kind=kind))
    colour = pixels if channels == 3 else pixels[..., :-1]
    assert np.array_equal(result, np.broadcast_to(colour >> 8, (5, 7, 3)))


def ink_to_rgb(ink: NDArray[np.generic]) -> NDArray[np.float64]:
    """Red is what neither cyan nor black takes away, and so on."""
    left = 1 - ink / 255.0
    return 255 * left[..., :3] * left[..., 3:]


def in_ink(pixels: Pixels) -> Image.Image:
    return Image.frombytes("CMYK", (pixels.shape[1], pixels.shape[0]), pixels.tobytes())


def smooth(channels: int) -> Pixels:
    """An image that a JPEG changes little: each quarter of another colour."""
    return np.kron(noise(2, 2, channels), np.ones((16, 32, 1), dtype=np.uint8))


def cmyk_jpeg(stored: Pixels) -> bytes:
    """A JPEG of four channels with exactly these numbers and no word on what they mean."""
    stream = io.BytesIO()
    # Pillow inverts ink, as Adobe does, and says so in an APP14 segment.
    in_ink(255 - stored).save(stream, "JPEG", quality=100, subsampling=0)
    data = stream.getvalue()
    start = data.index(b"\xff\xee\x00\x0eAdobe")
    return data[:start] + data[start + 16 :]


def adobe(jpeg: bytes, *, transform: int) -> bytes:
    segment = b"\xff\xee\x00\x0eAdobe" + struct.pack(">HHHB", 100, 0, 0, transform)
    return jpeg[:2] + segment + jpeg[2:]


@pytest.mark.parametrize("marked", [True, False])
def test_ink_of_a_jpeg_is_inverted_as_adobe_does(marked: bool) -> None:
    stored = smooth(4)
    jpeg = cmyk_jpeg(stored)
    result = decoded(adobe(jpeg, transform=0) if marked else jpeg)
    assert far(result, ink_to_rgb(255 - stored)) <= 3


def test_ink_of_a_jpeg_as_adobe_stores_it_in_luma_and_chroma() -> None:
    stored = smooth(4)
    stored[..., 1:3] = 128 + (stored[..., 1:3].astype(int) - 128) // 4
    stored[..., 0] = 64 + stored[..., 0] // 2  # so that no channel leaves 0..255
    luma, blue, red = (stored[..., channel].astype(float) for channel in range(3))
    blue, red = blue - 128, red - 128
    rgb = [luma + 1.402 * red, luma - 0.344136 * blue - 0.714136 * red, luma + 1.772 * blue]
    colour = np.dstack(rgb)
    # The decoder calls 255 - RGB ink, and all four are inverted, as Adobe does.
    expected = ink_to_rgb(np.dstack([colour, 255.0 - stored[..., 3]]))
    result = decoded(adobe(cmyk_jpeg(stored), transform=2))
    assert far(result, expected) <= 4


def test_ink_of_a_tiff() -> None:
    pixels = noise(5, 7, 4)
    result = decoded(in_ink(pixels), "TIFF")
    assert far(result, ink_to_rgb(pixels)) <= 1


def test_luma_and_chroma_become_rgb() -> None:
    pixels = smooth(3)
    assert far(decoded(Image.fromarray(pixels), "JPEG", **LITTLE_LOSS["JPEG"]), pixels) <= 3
    if int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("before version 13 Pillow cannot read back the TIFF that it wrote of it")
    stored = Image.fromarray(pixels).convert("YCbCr")
    assert far(decoded(stored, "TIFF"), pixels) <= 3


@needs_avif
def test_avif_is_read() -> None:
    pixels = smooth(3)
    result = decoded(Image.fromarray(pixels), "AVIF", **LITTLE_LOSS["AVIF"])
    assert far(result, pixels) <= 3


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(kind: str) -> None:
    pixels = noise(4, 6, 8)
    first, *rest = [Image.fromarray(pixels[number]) for number in range(4)]
    options = {"save_all": True, "append_images": rest, **LITTLE_LOSS.get(kind, {})}
    result = decoded(first, kind, **options)
    assert np.array_equal(result, grey(pixels[0]))


UPRIGHT = {
    1: lambda pixels: pixels,
    2: lambda pixels: pixels[:, ::-1],
    3: lambda pixels: pixels[::-1, ::-1],
    4: lambda pixels: pixels[::-1],
    5: lambda pixels: pixels.swapaxes(0, 1),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: pixels[::-1, ::-1].swapaxes(0, 1),
    8: lambda pixels: np.rot90(pixels),
    9: lambda pixels: pixels,  # there is no such orientation
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize(
    "kind", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=needs_avif)]
)
def test_the_orientation_of_exif_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = smooth(3)
    result = decoded(Image.fromarray(pixels), kind, exif=exif, **LITTLE_LOSS.get(kind, {}))
    expected = UPRIGHT[orientation](pixels)
    assert result.shape == expected.shape
    assert far(result, expected) <= 3


def test_a_deep_image_is_turned_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    pixels = noise(3, 5, dtype=np.uint16)
    result = decoded(Image.fromarray(pixels), exif=exif)
    assert np.array_equal(result, grey(np.rot90(np.round(pixels / 257))))


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_a_colour_profile_is_not_applied(kind: str) -> None:
    pixels = noise(5, 7, 3)
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("XYZ")).tobytes()
    assert np.array_equal(decoded(Image.fromarray(pixels), kind, icc_profile=profile), pixels)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_any_shape_is_read(size: tuple[int, int]) -> None:
    pixels = noise(*size, 3)
    assert np.array_equal(decoded(Image.fromarray(pixels)), pixels)


@pytest.mark.parametrize("ending", [".jpe", ".mpo"])
def test_of_several_pages_of_a_jpeg_the_first_counts(tmp_path: Path, ending: str) -> None:
    assert ending in IMAGE_SUFFIXES
    first, second = Image.new("RGB", (5, 4), "white"), Image.new("RGB", (3, 4))
    first.save(tmp_path / f"a{ending}", "MPO", save_all=True, append_images=[second])
    image = read_image(tmp_path / f"a{ending}")
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (5, 4), (255, 255, 255))
