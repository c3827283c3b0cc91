"""A stand-in for the Hugging Face Hub on this machine: what its client asks for, and no more."""

import base64
import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants

TOKEN = "hf_of_ada"
LICENSES = ("apache-2.0", "mit", "cc-by-4.0")


@dataclasses.dataclass
class Repo:
    """A repository: its commits, the last one last, and whether only some see it."""

    private: bool = False
    commits: list[dict[str, bytes]] = dataclasses.field(default_factory=lambda: [{}])

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]

    @property
    def sha(self) -> str:
        return hashlib.sha1(repr((len(self.commits), sorted(self.files))).encode()).hexdigest()


class Hub:
    """What lies on the hub, and how it behaves.

    Attributes:
        repos: by their names.
        stored: large files by their SHA-256, whether a commit has them or not.
        requests: method and path of each request.
        broken: how many uploads of large files are to break off.
        status: what each request is answered with, in place of anything else.
        warning: what it says of each model card.
        url: where it is.
    """

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.broken = 0
        self.status: int | None = None
        self.warning: str | None = None
        self.url = ""


class Handler(BaseHTTPRequestHandler):
    """One request. Names of methods and headers are the hub's."""

    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def _answer(self, status: int, content: Any = None, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _start(self) -> bytes | None:
        """The body of the request, if it may go on."""
        self.hub.requests.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        if self.hub.status is not None:
            self._answer(self.hub.status, {"error": "as it was told"})
            return None
        given = self.headers.get("Authorization")
        if given not in (None, f"Bearer {TOKEN}"):
            said = "Invalid credentials in Authorization header"
            self._answer(401, {"error": said}, X_Error_Message=said)
            return None
        return body

    def do_GET(self) -> None:
        if self._start() is None:
            return
        if found := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(/revision/\w+)?(\?.*)?", self.path):
            repo = self._repo(found[1])
            if repo is not None:
                names = [{"rfilename": name} for name in repo.files]
                own = {"id": found[1], "private": repo.private, "sha": repo.sha}
                self._answer(200, {**own, "siblings": names})
        elif found := re.match(r"/api/models/([^/]+/[^/]+)/tree/\w+", self.path):
            repo = self._repo(found[1])
            if repo is not None:
                self._answer(
                    200,
                    [
                        {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
                        for name, content in repo.files.items()
                    ],
                )
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/\w+/([^?]+)(\?.*)?", self.path):
            repo = self._repo(found[1])
            if repo is not None and found[2] not in repo.files:
                self._answer(404, b"", X_Error_Code="EntryNotFound")
            elif repo is not None:
                content = repo.files[found[2]]
                etag = f'"{_oid(content)}"'
                self._answer(200, content, ETag=etag, X_Repo_Commit=repo.sha)
        else:
            self._answer(404, {"error": self.path})

    do_HEAD = do_GET  # noqa: N815

    def do_POST(self) -> None:
        body = self._start()
        if body is None:
            return
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._validate(json.loads(body)["content"])
        elif re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/main", self.path):
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                    "shouldIgnore": False,
                }
                for file in json.loads(body)["files"]
            ]
            self._answer(200, {"files": files})
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            for one in objects:
                if one["oid"] not in self.hub.stored:
                    where = {"href": f"{self.hub.url}/lfs/{one['oid']}"}
                    one["actions"] = {"upload": where, "verify": where}
            self._answer(200, {"transfer": "basic", "objects": objects})
        elif self.path.startswith("/lfs/"):
            told = json.loads(body)
            there = len(self.hub.stored.get(told["oid"], b"")) == told["size"]
            self._answer(200 if there else 404, {})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            self._commit(found[1], [json.loads(line) for line in body.splitlines()])
        else:
            self._answer(404, {"error": self.path})

    def do_PUT(self) -> None:
        if self.hub.broken and self.path.startswith("/lfs/"):
            self.hub.broken -= 1
            self.hub.requests.append(f"broken {self.path}")
            self.rfile.read(1000)
            self.close_connection = True
            return
        body = self._start()
        if body is None:
            return
        oid = self.path.removeprefix("/lfs/")
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.stored[oid] = body
        self._answer(200, {})

    def _repo(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        if repo is None or (repo.private and self.headers.get("Authorization") is None):
            self._answer(404, {"error": "no such repository"}, X_Error_Code="RepoNotFound")
            return None
        return repo

    def _create(self, asked: dict[str, Any]) -> None:
        if self.headers.get("Authorization") is None:
            self._answer(401, {"error": "no token"})
            return
        if asked["organization"] != "ada":
            self._answer(403, {"error": "no rights"}, X_Error_Message="no rights")
            return
        name = f"ada/{asked['name']}"
        url = {"url": f"{self.hub.url}/{name}"}
        if name in self.hub.repos:
            self._answer(409, {"error": "there is one", **url})
            return
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repos[name] = Repo(private, [{".gitattributes": b"*.safetensors lfs\n"}])
        self._answer(200, url)

    def _validate(self, text: str) -> None:
        found = yaml.safe_load(text.split("---\n")[1])
        errors = []
        if found.get("license", "mit") not in LICENSES:
            errors.append({"message": f'"license" must be one of {", ".join(LICENSES)}'})
        warnings = [{"message": self.hub.warning}] if self.hub.warning else []
        self._answer(400 if errors else 200, {"errors": errors, "warnings": warnings})

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        repo = self.hub.repos[name]
        files = dict(repo.files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile"
                files[value["path"]] = self.hub.stored[value["oid"]]
        repo.commits.append(files)
        url = f"{self.hub.url}/{name}/commit/{repo.sha}"
        self._answer(200, {"commitUrl": url, "commitOid": repo.sha})


def _oid(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@contextmanager
def serve() -> Iterator[Hub]:
    """A hub at a free port of this machine."""
    hub = Hub()
    kind = type("OwnHandler", (Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), kind) as server:
        hub.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def point_to(hub: Hub, cache: Path, patch: pytest.MonkeyPatch) -> None:
    """Has the client in this process take a stand-in for the hub; it is logged in there."""
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setattr(constants, "HF_HUB_CACHE", str(cache))
    patch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    patch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no-token"))
    patch.setenv("HF_TOKEN", TOKEN)


def environment(hub: Hub, cache: Path) -> dict[str, str]:
    """The same for another process."""
    return {
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(cache),
        "HF_HUB_DISABLE_XET": "1",
        "HF_TOKEN": TOKEN,
    }
