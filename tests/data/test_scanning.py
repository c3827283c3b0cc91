import hashlib
import logging
import threading
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from delta_transfer.data import scanning
from delta_transfer.data.images.decode import ImageError
from delta_transfer.data.scanning import ImageScan, scan_images
from delta_transfer.data.task import Split


def numbered(path: str) -> Image.Image:
    return Image.new("RGB", (3, 2), (int(path), 0, 0))


def of(count: int, read: Callable[[str], Image.Image] = numbered) -> dict[str, Split]:
    return {"train": Split(tuple(str(i) for i in range(count)), (0,) * count, read)}


@pytest.mark.parametrize("strip", [1, 7, 20, 1_000_000])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_strips_do_not_change_the_content_hash(
    monkeypatch: pytest.MonkeyPatch, strip: int, mode: str
) -> None:
    monkeypatch.setattr(scanning, "_HASH_STRIP_PIXELS", strip)
    pixels = np.random.default_rng(0).integers(0, 256, (11, 7, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).convert(mode)
    whole = hashlib.blake2b(f"{mode} (7, 11)".encode(), digest_size=16)
    whole.update(np.asarray(image).tobytes())
    (seen,) = scan_images(of(1, lambda path: image), num_threads=1)
    assert seen == ImageScan("train", "0", 0, whole.hexdigest(), "")


def test_few_images_are_scanned_in_silence(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        scan_images(of(20), num_threads=2)
    assert caplog.messages == []


def test_many_images_are_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(scanning, "LOG_PROGRESS_ABOVE", 19)
    monkeypatch.setattr(scanning, "_PROGRESS_INTERVAL", 0.001)
    told = {10: threading.Event(), 14: threading.Event()}

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said = record.getMessage()
            for count, event in told.items():
                if said == f"scanned {100 * count // 20}% of them":
                    event.set()

    def read(path: str) -> Image.Image:
        if int(path) in told:  # as many images were scanned before it
            assert told[int(path)].wait(30)
        return numbered(path)

    listener = Listener()
    monkeypatch.setattr(scanning.logger, "handlers", [listener])
    with caplog.at_level(logging.INFO):
        seen = scan_images(of(20, read), num_threads=1)
    assert len(seen) == 20
    first, *progress = caplog.messages
    assert first == "scanning 20 images"
    assert len(set(progress)) == len(progress)
    assert {"scanned 50% of them", "scanned 70% of them"} <= set(progress)


@pytest.mark.parametrize("many", [1, 1000])
def test_another_error_comes_through(monkeypatch: pytest.MonkeyPatch, many: int) -> None:
    def read(path: str) -> Image.Image:
        if path == "7":
            raise ZeroDivisionError("a fault of ours")
        if path == "8":
            raise ImageError("bad", reason="bad")
        return numbered(path)

    monkeypatch.setattr(scanning, "LOG_PROGRESS_ABOVE", many)
    with pytest.raises(ZeroDivisionError, match="a fault of ours"):
        scan_images(of(30, read), num_threads=3)
