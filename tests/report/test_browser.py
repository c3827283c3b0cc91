"""The pages in a real browser: rendered, without errors, within their width, accessible."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from delta_transfer.report.comparison.page import write_comparison_report
from delta_transfer.report.run_page import write_run_report
from tests.report.large import write_attention
from tests.report.made import ANSWERS, DELTA, L2, PROBE, make_comparison, make_run, runs

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium: apt-get install chromium"
)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Its sandbox needs rights that a container does not give; the pages are our own.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's page, and a comparison's with two sizes and every section, unfinished."""
    folder = tmp_path_factory.mktemp("pages")
    made: dict[Any, Any] = {
        **runs(probe=PROBE, l2=L2, delta=DELTA),
        ("a_method_with_quite_a_long_name_of_its_own", 0): {},
        ("l2", 0, 5): {"answers": ANSWERS},
        ("delta", 0, 5): {},
    }
    comparison = make_comparison(folder / "comparison", made)
    for seed in range(3):
        even = np.full(24, 1 / 24, np.float32)
        write_attention(comparison / f"delta-seed{seed}", {"blocks.1": even, "blocks.6": even})
    run = make_run(folder / "run")
    return {"comparison": write_comparison_report(comparison), "run": write_run_report(run)}


@pytest.mark.parametrize(
    ("name", "scheme", "width"),
    [
        *(("comparison", scheme, width) for scheme in ("light", "dark") for width in (1200, 360)),
        ("run", "light", 360),
        ("run", "dark", 1200),
    ],
)
def test_page(
    chromium: Any, pages: dict[str, Path], tmp_path: Path, name: str, scheme: str, width: int
) -> None:
    alone = tmp_path / "alone.html"  # without the runs' files
    alone.write_bytes(pages[name].read_bytes())
    page = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 800})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(alone.as_uri())
    assert [url for url in asked if not url.startswith("data:")] == [alone.as_uri()]
    page.evaluate("document.querySelectorAll('details').forEach(found => found.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")

    pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
    assert pixels.std() > 10
    assert (np.median(pixels) > 128) == (scheme == "light")
    for drawing in page.locator("svg").all()[:3]:
        assert _spread(drawing.screenshot()) > 5

    found = axe.Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []
    assert said == []
    page.close()


def test_on_paper_everything_is_shown(chromium: Any, pages: dict[str, Path]) -> None:
    page = chromium.new_page(color_scheme="dark")
    page.goto(pages["comparison"].as_uri())
    heights = []
    for media in ("screen", "print"):
        page.emulate_media(media=media)
        heights.append(page.locator("details").last.bounding_box()["height"])
    assert heights[1] > 4 * heights[0]  # what is behind a summary
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 251)"
    page.close()


def _spread(content: bytes) -> float:
    return float(np.asarray(Image.open(io.BytesIO(content)).convert("L")).std())
