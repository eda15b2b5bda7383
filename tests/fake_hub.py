"""A Hugging Face Hub on this machine, with what fetching and publishing a model ask of it."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from huggingface_hub import constants

TOKEN = "hf_of_the_tests"
NAME = r"(?:models/)?((?:datasets/)?[^/]+/[^/]+)"


class FakeHub(ThreadingHTTPServer):
    """Repositories by name, each a branch `main` and tags: {revision: {path: content}}."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}
        """Models by name, and data sets by datasets/name: {revision: {path: content}}."""
        self.given: list[str] = []
        """Paths of the files that were fetched."""
        self.silent = threading.Event()
        """While it is set no request is answered."""
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def served() -> Iterator[FakeHub]:
    with FakeHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield hub
        finally:
            hub.over.set()
            hub.shutdown()
            thread.join()


def point_to(hub: FakeHub, monkeypatch, cache: Path) -> None:
    """Let huggingface_hub ask this Hub in place of its own, with the token, and keep files in a cache of the test's."""
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.split("/", 3)[3]
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", f"{hub.url}/{template}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def commit(files: dict[str, bytes]) -> str:
    return hashlib.sha1(b"".join(name.encode() + content for name, content in sorted(files.items()))).hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FakeHub

    def log_message(self, *_) -> None:
        pass

    def do_GET(self) -> None:
        if self.server.silent.is_set():
            self.server.over.wait(30)
            self.close_connection = True
        elif found := re.fullmatch(rf"/api/{NAME}/(revision|tree)/([^?/]+)([?/].*)?", self.path):
            self.describe(*found.group(1, 2, 3))
        elif found := re.fullmatch(rf"/api/{NAME}", self.path):
            self.describe(found[1], "revision", "main")
        elif found := re.fullmatch(r"/((?:datasets/)?[^/]+/[^/]+)/resolve/([^/]+)/(.+)", self.path):
            self.give(*found.groups())
        else:
            self.answer(404, {})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self.answer(401, {"error": "Invalid username or password."})
        elif self.path == "/api/repos/create":
            values = json.loads(content)
            name = f"{values['organization']}/{values['name']}" if values.get("organization") else values["name"]
            self.server.repositories.setdefault(name, {"main": {}})
            self.answer(200, {"url": f"{self.server.url}/{name}"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", self.path):
            asked = [file["path"] for file in json.loads(content)["files"]]
            files = [{"path": path, "uploadMode": "regular", "shouldIgnore": False} for path in asked]
            self.answer(200, {"files": files})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", self.path):
            files = self.server.repositories[found[1]]["main"]
            for line in map(json.loads, content.splitlines()):
                if line["key"] == "file":
                    files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(
                200,
                {
                    "success": True,
                    "commitOid": commit(files),
                    "commitUrl": f"{self.server.url}/{found[1]}/commit/{commit(files)}",
                },
            )
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        else:
            self.answer(404, {})

    def files(self, name: str, revision: str) -> dict[str, bytes] | None:
        """The files of a branch, a tag, or a commit."""
        revisions = self.server.repositories.get(name, {})
        return revisions.get(revision) or next((f for f in revisions.values() if commit(f) == revision), None)

    def describe(self, name: str, what: str, revision: str) -> None:
        if name not in self.server.repositories:
            self.answer(404, {}, {"X-Error-Code": "RepoNotFound"})
        elif (files := self.files(name, revision)) is None:
            self.answer(404, {}, {"X-Error-Code": "RevisionNotFound"})
        elif what == "revision":
            self.answer(200, {"id": name, "sha": commit(files), "siblings": [{"rfilename": path} for path in files]})
        else:
            tree = [
                {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for path, content in files.items()
            ]
            self.answer(200, tree)

    def give(self, name: str, revision: str, path: str) -> None:
        files = self.files(name, revision)
        if files is None or path not in files:
            self.answer(404, {}, {"X-Error-Code": "EntryNotFound"})
            return
        if self.command == "GET":
            self.server.given.append(path)
        etag = hashlib.sha1(files[path]).hexdigest()
        self.answer(200, files[path], {"ETag": f'"{etag}"', "X-Repo-Commit": commit(files)})

    def answer(self, status: int, content, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
