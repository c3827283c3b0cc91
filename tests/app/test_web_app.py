"""What the page answers to requests, and what it refuses."""

import re
import threading
import time

import anyio
import httpx2
import pytest
from PIL import Image
from PIL.ImageFile import ImageFile
from starlette.formparsers import MultiPartParser
from starlette.testclient import TestClient

from delta_transfer.app.explainer import Explainer
from delta_transfer.app.pages import asset
from delta_transfer.app.web_app import HEADERS, create_app
from tests.app.asking import as_bytes, ask
from tests.run_folders import CLASSES


@pytest.fixture(scope="module")
def client(explainer: Explainer) -> TestClient:
    return ask(explainer)


def test_the_page_and_what_it_asks_for(client):
    page = client.get("/")
    assert page.status_code == 200
    for name in re.findall('(?:href|src)="(/[^"]+)"', page.text):
        answer = client.get(name)
        assert (answer.status_code, answer.text) == (200, asset(name[1:]))
    for found in (page, client.get("/page.js"), client.get("/nothing")):
        assert {name: found.headers[name] for name in HEADERS} == HEADERS
    assert "unsafe" not in HEADERS["Content-Security-Policy"]
    assert not re.search(r'style="|<script>| on\w+="', page.text)


def test_other_names_of_this_address_are_refused(client):
    for host in ("evil.example", "testserver.evil.example", "testserver@evil.example", ""):
        assert client.get("/", headers={"host": host}).status_code == 400
    assert client.get("/", headers={"host": "testserver:80"}).status_code == 200


def test_what_other_pages_send_is_refused(client, image):
    files = {"images": ("x.png", as_bytes(image))}
    for origin in ("http://evil.example", "null", "http://testserver:1"):
        for path in ("/", "/explain"):
            answer = client.post(path, files=files, headers={"origin": origin})
            assert answer.status_code == 403
            assert "%" not in answer.text
    own = client.post("/explain", files=files, headers={"origin": "http://testserver"})
    assert own.status_code == 200


def test_a_broken_file_does_not_cost_the_others(client, image):
    whole = as_bytes(image)
    files = [
        ("images", ("good.png", whole)),
        ("images", ("half.png", whole[: len(whole) // 2])),
        ("images", ("letter.png", b"Dear Sir")),
        ("images", ("empty.png", b"")),
        ("images", ("good.jpg", as_bytes(image, "JPEG"))),
    ]
    answer = client.post("/", files=files)
    assert answer.status_code == 200
    headings = re.findall(r"<h2>(.*?)</h2>", answer.text)
    assert headings == ["good.png", "half.png", "letter.png", "empty.png", "good.jpg"]
    assert answer.text.count("Network input") == 2
    refused = re.findall(r"<p>(\S+ is not a readable image: [^<]+)</p>", answer.text)
    assert [line.split()[0] for line in refused] == ["half.png", "letter.png", "empty.png"]
    assert "it is damaged" in refused[0]


def test_names_are_words(client, image):
    name = "<img src=x onerror=alert(1)>.png"
    for content in (as_bytes(image), b"Dear Sir"):
        answer = client.post("/explain", files={"images": (name, content)})
        assert "<img src=x" not in answer.text
        assert "&lt;img src=x onerror=alert(1)&gt;.png" in answer.text
    long = client.post("/explain", files={"images": ("x" * 500 + ".png", b"")})
    assert "x" * 121 not in long.text


def test_a_bomb_is_refused_before_it_is_decoded(client, monkeypatch):
    bomb = as_bytes(Image.new("1", (14_000, 13_000)))
    assert len(bomb) < 100_000

    def load(self: ImageFile) -> None:
        raise AssertionError("it is decoded")

    monkeypatch.setattr(ImageFile, "load", load)
    answer = client.post("/explain", files={"images": ("bomb.png", bomb)})
    assert "it has more than 178,956,970 pixels" in answer.text


@pytest.mark.parametrize("path", ["/", "/explain"])
@pytest.mark.parametrize("declared", [True, False])
def test_too_much_is_refused_and_not_kept(client, path, declared, monkeypatch):
    kept, count = [], MultiPartParser.on_part_data

    def counted(self: MultiPartParser, data: bytes, start: int, end: int) -> None:
        kept.append(end - start)
        count(self, data, start, end)

    monkeypatch.setattr(MultiPartParser, "on_part_data", counted)
    body = b'--b\r\ncontent-disposition: form-data; name="images"; filename="x.png"\r\n\r\n'
    parts = [body, *[bytes(2**18)] * 20, b"\r\n--b--\r\n"]
    answer = client.post(
        path,
        content=b"".join(parts) if declared else iter(parts),
        headers={"content-type": "multipart/form-data; boundary=b"},
    )
    assert answer.status_code == 413
    assert "the upload exceeds 1 MiB" in answer.text
    assert "--max-mb" in answer.text
    assert sum(kept) <= 2**20


@pytest.mark.parametrize(
    ("content", "kind", "says"),
    [
        (b"x", "text/plain", "as a form with files"),
        (b"x", "multipart/form-data", "Missing boundary"),
        (b"nothing of it", "multipart/form-data; boundary=b", "cannot be read"),
    ],
)
def test_what_is_no_form_is_refused(client, content, kind, says):
    answer = client.post("/explain", content=content, headers={"content-type": kind})
    assert answer.status_code == 400
    assert says in answer.text


def test_too_many_files_and_none(client):
    many = [("images", (f"{i}.png", b"")) for i in range(51)]
    answer = client.post("/", files=many)
    assert answer.status_code == 400
    assert "Too many files" in answer.text
    none = client.post("/", files={"images": ("", b"")})
    assert "Choose an image first." in none.text
    assert "<article" not in none.text


@pytest.mark.parametrize("number", ["3", "-1", "x", "٣"])
def test_there_is_no_such_class(client, image, number):
    files = {"images": ("x.png", as_bytes(image))}
    answer = client.post("/explain", files=files, data={"class": number})
    assert answer.status_code == 400
    assert f"there is no class number {number}" in answer.text


def test_the_class_of_the_map_may_be_chosen(client, image):
    files = {"images": ("x.png", as_bytes(image))}
    for index, name in enumerate(CLASSES):
        answer = client.post("/explain", files=files, data={"class": str(index)})
        assert f"Evidence for {name}<" in answer.text


def test_nothing_is_written(client, image, monkeypatch):
    def rollover(self: object) -> None:
        raise AssertionError("an upload goes to the disk")

    monkeypatch.setattr("tempfile.SpooledTemporaryFile.rollover", rollover)
    large = as_bytes(Image.effect_noise((900, 900), 90))
    assert 2**19 < len(large) < 2**20
    answer = client.post("/explain", files={"images": ("x.png", large)})
    assert "Network input" in answer.text


def test_images_are_looked_at_one_at_a_time(explainer, image, monkeypatch):
    at_work, most, own = [0], [0], Explainer.explain
    lock = threading.Lock()

    def counted(self: Explainer, *args: object, **options: object) -> object:
        with lock:
            at_work[0] += 1
            most[0] = max(most[0], at_work[0])
        time.sleep(0.02)
        found = own(self, *args, **options)
        with lock:
            at_work[0] -= 1
        return found

    monkeypatch.setattr(Explainer, "explain", counted)
    site = create_app(explainer, hosts=["testserver"], limit=2**20)
    texts = []

    async def ask_often() -> None:
        transport = httpx2.ASGITransport(app=site)
        async with httpx2.AsyncClient(transport=transport, base_url="http://testserver") as one:

            async def ask() -> None:
                files = {"images": ("x.png", as_bytes(image))}
                texts.append((await one.post("/explain", files=files)).text)

            async with anyio.create_task_group() as group:
                for _ in range(4):
                    group.start_soon(ask)

    anyio.run(ask_often)
    assert most == [1]
    assert len(texts) == 4
    assert len(set(texts)) == 1
