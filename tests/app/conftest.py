"""A run whose features differ from the pretrained ones, and an image."""

from pathlib import Path

import pytest
from PIL import Image

from delta_transfer.app.explainer import Explainer
from delta_transfer.metrics.run_result import RunResult
from tests.app.asking import moved_run, opened


@pytest.fixture(scope="session")
def moved(finished: RunResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be written to."""
    return moved_run(finished.folder, tmp_path_factory.mktemp("app") / "run")


@pytest.fixture(scope="session")
def explainer(moved: Path) -> Explainer:
    return opened(moved)


@pytest.fixture(scope="session")
def image(images: Path) -> Image.Image:
    return Image.open(images / "test" / "rings" / "0.png").convert("RGB")
