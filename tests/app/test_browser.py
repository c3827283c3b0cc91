"""The command in a real browser: uploads, files that are no images, keys alone, a phone."""

import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from skimage import data

from tests.run_folders import CLASSES

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="there is no chromium: apt-get install chromium"
)
SECONDS = 60_000  # in milliseconds, for a machine that has much else to do


@pytest.fixture(scope="module")
def address(moved: Path) -> Iterator[str]:
    """Where the command serves the page, which takes 1 MiB; it is ended by Ctrl-C."""
    command = [sys.executable, "-m", "delta_transfer", "app", str(moved)]
    started = subprocess.Popen(
        [*command, "--port=0", "--max-mb=1", "--device=cpu"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        assert started.stdout is not None
        line = started.stdout.readline()
        assert re.fullmatch(r"page     http://127\.0\.0\.1:\d+/\n", line), started.stderr
        yield line.split()[1]
    finally:
        started.send_signal(signal.SIGINT)
        _, said = started.communicate(timeout=60)
    assert (started.returncode, said) == (0, "")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        # Its sandbox needs rights that a container does not give; the page is our own.
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def seen() -> list[str]:
    """What the console said, and which requests went elsewhere or sent something."""
    return []


@pytest.fixture
def page(chromium: Any, address: str, seen: list[str]) -> Iterator[Any]:
    """The page on a phone, in the dark."""
    found = open_page(chromium, address, seen, color_scheme="dark", width=360)
    yield found
    found.close()


def open_page(chromium: Any, address: str, seen: list[str], *, width: int, **options: Any) -> Any:
    found = chromium.new_page(viewport={"width": width, "height": 800}, **options)
    found.on("console", lambda message: seen.append(message.text))
    found.on("pageerror", lambda error: seen.append(str(error)))
    found.on(
        "request",
        lambda asked: None if asked.url.startswith((address, "data:")) else seen.append(asked.url),
    )
    found.goto(address)
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("files")
    Image.fromarray(data.chelsea()).save(folder / "cat.png")
    Image.fromarray(data.astronaut()).save(folder / "astronaut.jpg")
    whole = (folder / "astronaut.jpg").read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "letter.png").write_text("Dear Sir")
    Image.new("1", (14_000, 13_000)).save(folder / "bomb.png")
    (folder / "large.jpg").write_bytes(bytes(64 * 2**20))
    return {file.name: str(file) for file in folder.iterdir()}


def status(page: Any, text: str) -> None:
    playwright.expect(page.locator("#status")).to_have_text(text, timeout=SECONDS)


def headings(page: Any) -> list[str]:
    found: list[str] = page.locator("article h2").all_inner_texts()
    return found


def check_looks(page: Any, *, width: int, dark: bool) -> None:
    """Within its width, in its colours, every image there, and nothing serious for axe."""
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    level = np.mean([int(number) for number in re.findall(r"\d+", background)])
    assert (level < 128) == dark
    found = axe.Axe().run(page).response["violations"]
    serious = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in serious] == []


@pytest.mark.parametrize(("scheme", "width"), [("light", 1200), ("dark", 360)])
def test_photographs_are_answered_and_the_rest_refused(
    chromium: Any, address: str, files: dict[str, str], seen: list[str], scheme: str, width: int
) -> None:
    page = open_page(chromium, address, seen, color_scheme=scheme, width=width)
    names = ["cat.png", "half.jpg", "letter.png", "bomb.png", "large.jpg", "astronaut.jpg"]
    page.set_input_files("#images", [files[name] for name in names])
    status(page, "Processed 2 of 6; 4 rejected.")
    assert headings(page) == names
    refused = page.locator("article.refused p").all_inner_texts()
    assert [line.split()[0] for line in refused] == names[1:5]
    assert "half.jpg is not a readable image: it is damaged" in refused[0]
    assert "is not a readable image" in refused[1]
    assert "it has more than 178,956,970 pixels" in refused[2]
    assert "is too large: 64 MiB, at most 1 are allowed" in refused[3]
    cat = page.locator("article").first
    assert cat.locator(".bars li").count() == len(CLASSES)
    shares = [float(text) for text in re.findall(r"([\d.]+)%", cat.locator(".bars").inner_text())]
    assert sum(shares) == pytest.approx(100, abs=0.2)
    assert cat.locator("img").count() == 1 + 1 + 5 + 4 - 1  # one tap has a single position
    # At which tap depends on the weights: the last one where some position supports the class.
    assert cat.get_by_text(re.compile(r"Grad-CAM at blocks\.\d, ")).count() == 1
    check_looks(page, width=width, dark=scheme == "dark")
    assert seen == []
    page.close()


def test_keys_are_enough(page: Any, files: dict[str, str], seen: list[str]) -> None:
    choosers: list[Any] = []
    # Not around the key: the browser might not yet know that somebody waits for what it opens.
    page.on("filechooser", lambda chooser: choosers.append(chooser))
    page.bring_to_front()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "images"
    page.keyboard.press("Enter")
    end = time.monotonic() + SECONDS / 1000
    while not choosers and time.monotonic() < end:
        page.wait_for_timeout(50)
    choosers[0].set_files(files["cat.png"])
    status(page, "Processed 1 of 1.")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "class"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    for name in CLASSES:
        page.keyboard.press("ArrowDown")
        shown = page.get_by_role("heading", name=f"Evidence for {name}")
        playwright.expect(shown).to_be_visible(timeout=SECONDS)
    assert headings(page) == ["cat.png"]
    assert seen == []


def test_images_are_dropped_anywhere(page: Any, seen: list[str]) -> None:
    pixels = "[...Array(3000).keys()]"  # no image, whose name would be words
    page.evaluate(
        f"""() => {{
          const dropped = new DataTransfer();
          dropped.items.add(new File([new Uint8Array({pixels})], "<b>x</b>.png"));
          const options = {{ bubbles: true, cancelable: true, dataTransfer: dropped }};
          document.querySelector("h1").dispatchEvent(new DragEvent("drop", options));
        }}"""
    )
    status(page, "Processed 0 of 1; 1 rejected.")
    assert headings(page) == ["<b>x</b>.png"]
    assert page.locator("article b").count() == 0
    assert seen == []


def test_a_second_choice_takes_the_place_of_the_first(page: Any, files: dict[str, str]) -> None:
    page.set_input_files("#images", [files["cat.png"], files["astronaut.jpg"]])
    page.set_input_files("#images", files["letter.png"])
    status(page, "Processed 0 of 1; 1 rejected.")
    assert headings(page) == ["letter.png"]


def test_it_works_without_script(
    chromium: Any, address: str, files: dict[str, str], seen: list[str]
) -> None:
    page = open_page(chromium, address, seen, width=360, java_script_enabled=False)
    page.set_input_files("#images", [files["cat.png"], files["letter.png"]])
    page.select_option("#class", label=CLASSES[1])
    page.get_by_role("button", name="Explain").click(timeout=SECONDS)
    playwright.expect(page.locator("article h2")).to_have_text(
        ["cat.png", "letter.png"], timeout=SECONDS
    )
    assert page.get_by_role("heading", name=f"Evidence for {CLASSES[1]}").count() == 1
    assert seen == []
    page.set_input_files("#images", files["large.jpg"])
    page.get_by_role("button", name="Explain").click(timeout=SECONDS)
    playwright.expect(page.locator("#status")).to_contain_text(
        "the upload exceeds 1 MiB", timeout=SECONDS
    )
    page.close()
