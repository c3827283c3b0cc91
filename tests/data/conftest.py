from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from PIL import Image

MakeImages = Callable[[Iterable[str]], Path]


@pytest.fixture
def make_images(tmp_path: Path) -> MakeImages:
    """Writes small images, each of another colour, and gives the folder that they lie in."""

    def make(paths: Iterable[str]) -> Path:
        root = tmp_path / "pets"
        for number, path in enumerate(paths):
            file = root / path
            file.parent.mkdir(parents=True, exist_ok=True)
            colour = (number * 7 % 256, number * 31 % 256, number // 8 % 256)
            Image.new("RGB", (6, 5), colour).save(file)
        return root

    return make


@pytest.fixture
def flat(make_images: MakeImages) -> Path:
    """Two classes of ten and twenty images, without splits."""
    cats = [f"cat/{number:02d}.png" for number in range(10)]
    return make_images(cats + [f"dog/{number:02d}.png" for number in range(20)])
