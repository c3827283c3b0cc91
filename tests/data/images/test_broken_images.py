"""Files that are no good image: each is named and refused, and nothing else ever happens."""

import io
import os
import pickle
import random
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from delta_transfer.data.images.decode import (
    IMAGE_SUFFIXES,
    MAX_PIXELS,
    ImageError,
    decode_image,
    read_image,
)
from delta_transfer.errors import UserError
from tests.data.images.encoded import png, tiff

KINDS = ["png", "jpg", "gif", "webp", "bmp", "tif", "ppm"]


def noise(*shape: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, Image.registered_extensions()[f".{kind}"], **options)
    return stream.getvalue()


def refusal(source: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode_image(io.BytesIO(source), name="this.jpg")
    return caught.value


def test_a_stream_is_read_from_its_start_and_stays_open() -> None:
    stream = io.BytesIO(encoded(noise(4, 5, 3), "png"))
    stream.seek(9)
    assert decode_image(stream, name="a") == decode_image(stream, name="a") == noise(4, 5, 3)
    assert not stream.closed


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_closed_and_may_go(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"a.{kind}"
    path.write_bytes(encoded(Image.new("RGB", (3, 2), "blue"), kind))
    image = read_image(path)
    path.write_bytes(b"")
    path.unlink()
    red, _, blue = image.getpixel((2, 1))
    assert red < 10
    assert blue > 245


def test_the_content_and_not_the_ending_decides(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encoded(noise(4, 5, 3), "bmp"))
    assert read_image(path) == noise(4, 5, 3)


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_file_is_damaged(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"broken.{kind}"
    content = encoded(noise(40, 40, 3), kind)
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=rf"broken\.{kind}': it is damaged \(.*replace the file or"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "the file is empty"), (b"<html>not found</html>", "not an image of a supported format")],
)
def test_a_file_that_is_not_an_image_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "page.jpg"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"image '.*page\.jpg': .*{reason}; replace"):
        read_image(path)


def test_a_kind_for_which_pillow_would_run_a_program_is_not_read() -> None:
    postscript = (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    )
    error = refusal(postscript)
    assert "not an image of a supported format" in error.reason
    assert "BMP, GIF, JPEG, PNG" in str(error)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_paths_that_are_not_files_are_named(tmp_path: Path) -> None:
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "link.jpg").symlink_to(tmp_path / "gone.jpg")
    (tmp_path / "circle.jpg").symlink_to(tmp_path / "circle.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    for name, reason in {
        "folder": "it is a folder; rename it",
        "link": "the link is broken; ",
        "circle": "symbolic links; ",
        "pipe": "it is not a regular file; remove it",
        "gone": "the file is missing; ",
    }.items():
        with pytest.raises(UserError, match=rf"{name}\.jpg': .*{reason}"):
            read_image(tmp_path / f"{name}.jpg")


@pytest.mark.skipif(getattr(os, "geteuid", int)() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encoded(noise(4, 5, 3), "png"))
    path.chmod(0)
    with pytest.raises(UserError, match=r"secret\.png'.*make the file readable"):
        read_image(path)


def test_no_permission_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, mode: str) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    path = tmp_path / "secret.png"
    path.write_bytes(encoded(noise(4, 5, 3), "png"))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(UserError, match=r"secret\.png': Permission denied; make the file readable"):
        read_image(path)


@pytest.mark.parametrize(
    "file",
    [
        tiff(struct.pack("<f", 0.5), (1, 1), bits=32, numbers=3),
        tiff(struct.pack("<I", 9), (1, 1), bits=32, numbers=1),
        tiff(struct.pack("<i", 9), (1, 1), bits=32, numbers=2),
        tiff(struct.pack("<h", 9), (1, 1), bits=16, numbers=2),
        b"Pf 1 1 -1.0\n" + struct.pack("<f", 0.5),
    ],
    ids=["float", "unsigned", "signed", "short", "pfm"],
)
def test_pixels_of_an_unknown_range_are_refused(file: bytes) -> None:
    error = refusal(file)
    assert error.reason == "its pixels are signed or 32-bit numbers of an unknown range"
    assert "this.jpg" in str(error)
    assert "save it with 8 or 16 bits a channel" in str(error)


WIDE = 40_000  # squared, this is far above the limit
HUGE = {
    "png": png(b"\0", (1, 1), depth=1, kind=0).replace(
        b"IHDR" + struct.pack(">II", 1, 1), b"IHDR" + struct.pack(">II", WIDE, WIDE)
    ),
    "gif": b"GIF89a"
    + struct.pack("<HH", WIDE, WIDE)
    + b"\x80\0\0"
    + bytes(6)
    + b",\0\0\0\0"
    + struct.pack("<HH", WIDE, WIDE)
    + b"\0\2\0;",
    "tif": tiff(b"\0\0", (WIDE, WIDE), bits=8),
    "bmp": b"BM" + bytes(12) + struct.pack("<IiiHHI", 40, WIDE, WIDE, 1, 24, 0) + bytes(20),
    "ppm": b"P6 40000 40000 255\n",
}


@pytest.mark.parametrize("kind", HUGE)
def test_a_image_of_absurd_size_is_refused_before_it_is_decoded(kind: str) -> None:
    data = HUGE[kind]
    if kind == "png":
        start = data.index(b"IHDR")
        check = struct.pack(">I", zlib.crc32(data[start : start + 17]))
        data = data[: start + 17] + check + data[start + 21 :]
    # The pixels are not there: whoever looked for them would call the file damaged.
    assert refusal(data).reason == f"it has more than {MAX_PIXELS:,} pixels"


def test_a_lowered_limit_of_pillow_counts_and_its_warning_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50)
    good = decode_image(io.BytesIO(encoded(noise(10, 10, 3), "png")), name="a")
    assert good == noise(10, 10, 3)
    error = refusal(encoded(noise(10, 11, 3), "png"))
    assert error.reason == "it has more than 100 pixels"
    assert "scale it down" in str(error)


def test_our_limit_holds_where_pillow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert refusal(HUGE["ppm"]).reason == f"it has more than {MAX_PIXELS:,} pixels"


@pytest.mark.parametrize("chunk", ["zTXt", "iTXt"])
def test_text_that_inflates_is_refused(chunk: str) -> None:
    head = {"zTXt": b"Comment\0\0", "iTXt": b"Comment\0\1\0\0\0"}[chunk]
    body = head + zlib.compress(bytes(2**22))
    data = png(b"\0", (1, 1), (chunk.encode(), body), depth=8, kind=0)
    assert "too large" in refusal(data).reason


def test_too_little_memory_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> None:
        raise MemoryError

    monkeypatch.setattr(Image, "open", fail)
    assert refusal(b"").reason == "there is not enough memory to decode it"


def test_a_refusal_can_be_pickled_and_made_of_its_message_alone() -> None:
    """A process that loads data sends its error as the class and a text."""
    error = refusal(b"")
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.reason) == (str(error), error.reason)
    assert str(ImageError("a text")) == "a text"


EXIF = b"Exif\0\0"
CORRUPT_EXIF = {
    "no header": EXIF + b"garbage garbage",
    "cut short": EXIF + b"II*\0\x08\0\0\0\x05\0\x12\x01",
    "far value": EXIF + b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHII", 0x010E, 2, 900, 9999),
    "wrong type": EXIF + b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHI4s", 274, 2, 4, b"abc\0"),
    "two values": EXIF + b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 274, 3, 2, 1, 6),
}


@pytest.mark.parametrize("damage", CORRUPT_EXIF)
@pytest.mark.parametrize("kind", ["png", "jpg", "webp"])
def test_corrupt_metadata_are_passed_over(kind: str, damage: str) -> None:
    options = {"lossless": True} if kind == "webp" else {}
    clean = encoded(noise(4, 5, 3), kind, **options)
    marred = encoded(noise(4, 5, 3), kind, exif=CORRUPT_EXIF[damage], **options)
    assert marred != clean
    result = decode_image(io.BytesIO(marred), name="a")
    assert result == decode_image(io.BytesIO(clean), name="a")


def test_images_of_which_pillow_warns_are_read_silently() -> None:
    palette = noise(4, 5).convert("P")
    strange = {
        "a palette with degrees of transparency": encoded(palette, "png", transparency=b"\x80"),
        "an animation without frames": png(b"\7", (1, 1), (b"acTL", bytes(8)), depth=8, kind=0),
        "two images, one gone": encoded(noise(9, 9, 3), "jpg").replace(
            b"\xff\xdb", b"\xff\xe2\x00\x10MPF\0II*\0\x08\0\0\0\0\0\xff\xdb", 1
        ),
    }
    for content in strange.values():
        decode_image(io.BytesIO(content), name="a")


def test_a_warning_of_the_caller_is_shown_once_and_no_filter_is_left() -> None:
    file = io.BytesIO(encoded(noise(4, 5, 3), "png"))
    before = list(warnings.filters)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("default")
        for _ in range(3):
            decode_image(file, name="a")
            warnings.warn("the caller's", stacklevel=1)
        assert len(shown) == 1
    assert list(warnings.filters) == before


def sources() -> list[bytes]:
    """A small file of every kind, many with metadata that may break."""
    image, exif = noise(9, 11, 3), Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "a camera"
    frames = {"save_all": True, "append_images": [noise(9, 11, 3)]}
    files = [encoded(image, kind, exif=exif) for kind in ("png", "jpg", "webp", "tif")]
    files += [encoded(image, kind) for kind in ("bmp", "ppm", "gif")]
    files += [encoded(noise(9, 11).convert("P"), "gif", transparency=3, **frames)]
    files += [encoded(image, "png", **frames), encoded(image, "webp", **frames)]
    files += [encoded(image, "tif", compression=how) for how in ("tiff_lzw", "tiff_deflate")]
    files += [encoded(image, "tif", compression="jpeg"), encoded(image, "tif", **frames)]
    files += [encoded(noise(9, 11, 4), "png"), encoded(Image.new("CMYK", (9, 11)), "jpg")]
    files += [encoded(image, "jpg", progressive=True), encoded(Image.new("1", (9, 11)), "tif")]
    files += [encoded(Image.new("I;16", (9, 11), 900), kind) for kind in ("png", "tif")]
    return files


def mutation(files: list[bytes], generator: random.Random) -> bytes:
    """A file with a few bytes changed, a part cut out, or its end replaced by that of another."""
    data = bytearray(generator.choice(files))
    kind = generator.randrange(4)
    if kind == 0:
        del data[generator.randrange(len(data)) :]
    elif kind == 1:
        start = generator.randrange(len(data))
        del data[start : start + generator.randrange(1, 20)]
    elif kind == 2:
        other = generator.choice(files)
        data[generator.randrange(len(data)) :] = other[generator.randrange(len(other)) :]
    for _ in range(generator.choice([0, 1, 1, 3, 10]) if kind < 3 else generator.randrange(1, 6)):
        if data:
            # Headers matter most.
            last = generator.choice([len(data), min(len(data), 64)])
            data[generator.randrange(last)] = generator.choice([0, 255, generator.randrange(256)])
    return bytes(data)


def test_whatever_a_file_contains_it_is_a_image_or_a_refusal() -> None:
    generator, files = random.Random(0), sources()
    outcomes: list[str] = []
    for _ in range(200):
        data = mutation(files, generator)
        try:
            image = decode_image(io.BytesIO(data), name="a")
        except ImageError as error:
            outcomes.append(error.reason)
        else:
            outcomes.append(image.mode)
    assert all(len(outcome) < 130 for outcome in outcomes)
    assert 20 < outcomes.count("RGB") < 180


def test_suffixes_are_in_lower_case_with_a_dot() -> None:
    assert {".jpg", ".jpeg", ".png", ".webp", ".tif"} <= IMAGE_SUFFIXES
    assert all(suffix.startswith(".") and suffix.islower() for suffix in IMAGE_SUFFIXES)
