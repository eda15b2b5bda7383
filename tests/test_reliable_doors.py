"""The doors of the page: attacks by other sites, other machines and programs, on a page that is served on loopback."""

import io
import json
import os
import socket
import threading
import uuid
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import pytest
from browser import free_port
from conftest import COMMITTED, ROOT
from PIL import Image

pytest.importorskip("gradio", reason="the page is not tested, as gradio is not installed")

from unclip import UserError
from unclip.page import doors, drawing, line, turns
from unclip.page.__main__ import set_environment
from unclip.page.shelf import Shelf

API = "/gradio_api"
HOSTS = (
    "evil.com", "evil.com:7860", "localhost.evil.com", "127.0.0.1.evil.com", "127.0.0.1:80@evil.com",
    "evil.com#127.0.0.1", "localhost.", "0.0.0.0", "0", "127.1", "2130706433", "192.168.0.1", "[::1", "::1", "[::]",
    "[::ffff:8.8.8.8]", "", "a b",
)  # fmt: skip
OWN_HOSTS = ("127.0.0.1", "127.0.0.1:1", "localhost", "LocalHost:7860", "[::1]", "[::1]:7860")
FILES = (
    "/etc/passwd", "//etc/passwd", "%2fetc%2fpasswd", "%252fetc%252fpasswd", "../../../../etc/passwd",
    "file:///etc/passwd", "http://127.0.0.1:1/", "https://example.com/x.png", "/proc/self/environ",
    "/proc/self/cwd/README.md", "%00", "C:%5cx", "{folder}", "{folder}/", "{folder}/../../etc/passwd",
    "{folder}/%2e%2e/x", "{folder}/link.png", "{folder}/a.html", "{folder}/a.svg", "{folder}/a.txt",
    "{folder}/html.png", "{folder}/bomb.png", "README.md", f"{ROOT}/README.md", f"{COMMITTED}/examples/coat.png",
    f"{COMMITTED}/model_index.json", "a" * 5000,
)  # fmt: skip
CLOSED = (
    "/file=/etc/passwd", "/file/etc/passwd", f"{API}/file/etc/passwd", f"{API}/proxy=http://127.0.0.1:1/",
    "/monitoring", "/monitoring/summary", f"{API}/deep_link?session_hash=x", f"{API}/openapi.json", "/docs", "/redoc",
    f"{API}/mcp/", f"{API}/runs", f"{API}/vibe-code", f"{API}/dev/reload", "/login", f"{API}/token", "/svelte/x",
    "/robots.txt", f"{API}/custom_component/a/client/b/c", f"{API}/stream/a/b/1/playlist.m3u8", "/static/../../x",
    "/static/%2e%2e/x", "/assets/..%5cx", f"{API}/queue/status", f"{API}/call/x/y", f"{API}/component_server",
    "/x" * 3000,
)  # fmt: skip
ODD = (
    None, float("nan"), float("inf"), -1, 2.5, 2**63, -(2**70), 10**400, "x", "", "\0", "\ud800", "<b>", "a" * 100_000,
    True, [], [[1]], {}, {"path": 5}, {"path": "/etc/passwd"}, {"__type__": "update", "value": 1},
    {"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, {"path": None, "url": "http://127.0.0.1:1/x"},
    {"path": "http://127.0.0.1:1/x.png", "meta": {"_type": "gradio.FileData"}},
    {"background": {"path": "/etc/passwd"}, "layers": [{"path": "/etc/passwd"}], "composite": None},
)  # fmt: skip
"""Values that no field of the page sends."""
CLICKS = (
    ("Captions, one per line", "Steps"), ("Keep",), ("First image", "Second image"), ("Before", "After"),
    ("Prompt 1", "Steps"), ("Without brush strokes, paint",), ("Real image (optional)",),
    ("Examples",), ("Sent picture",),
)  # fmt: skip
"""Labels that tell the clicks of the tabs apart."""


@dataclass
class Served:
    """A page that is served in this process."""

    page: object
    client: httpx.Client
    port: int
    folder: str

    def function(self, *labels: str) -> int:
        """The number of the click whose inputs have these labels, among others."""
        components = {block["id"]: block["props"].get("label") for block in self.page.config["components"]}
        for function in self.page.config["dependencies"]:
            if {*labels} <= {components[i] for i in function["inputs"]} and function["backend_fn"]:
                return function["id"]
        raise AssertionError(f"no function of {labels}")

    def inputs(self, function: int) -> list[str]:
        components = {block["id"]: block["type"] for block in self.page.config["components"]}
        return [components[i] for i in self.page.config["dependencies"][function]["inputs"]]

    def join(self, function: int, values: list, session: str = "") -> httpx.Response:
        body = {"fn_index": function, "data": values, "session_hash": session or uuid.uuid4().hex}
        return self.client.post(f"{API}/queue/join", content=json.dumps(body))

    def click(self, function: int, values: list):
        """The first output of a click, or its error, which may not be empty."""
        session = uuid.uuid4().hex
        joined = self.join(function, values, session)
        if joined.status_code != 200:
            return joined.json()["detail"]
        with self.client.stream("GET", f"{API}/queue/data", params={"session_hash": session}) as messages:
            for message in messages.iter_lines():
                if "process_completed" in message:
                    output = json.loads(message.removeprefix("data: "))["output"]
        assert "data" in output or output["error"], output
        return output["data"][0] if "data" in output else output["error"]

    def raw(self, *lines: str) -> int:
        """The status that a request gives, of which every byte is ours."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=20) as connection:
            connection.sendall("\r\n".join((*lines, "Connection: close", "", "")).encode())
            return int(connection.recv(100).split()[1])

    def upload(self, content, name: str = "x.png") -> httpx.Response:
        return self.client.post(f"{API}/upload", files={"files": (name, content)})


@pytest.fixture(scope="module")
def served(tmp_path_factory) -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        for name in [*(name for name in os.environ if name.startswith("GRADIO_")), "GRADIO_TEMP_DIR", "HF_HUB_OFFLINE"]:
            patch.setenv(name, "")  # so that it is put back afterwards
        patch.setattr(warnings, "showwarning", warnings.showwarning)
        folder = str(tmp_path_factory.mktemp("uploads"))
        set_environment(folder)
        from unclip.page import server

        patch.setattr(server, "SESSIONS", 3)
        port = free_port()
        with warnings.catch_warnings():
            page, address = server.launch(Shelf(COMMITTED), "127.0.0.1", port)
            with httpx.Client(base_url=address, timeout=60) as client:
                yield Served(page, client, port, folder)
            page.close(verbose=False)


def assert_refused(response: httpx.Response, status: int) -> None:
    assert response.status_code == status, response.text
    assert "\n" not in response.json()["detail"]


def test_doors_of_the_page_are_closed_to_other_hosts_and_sites(served):
    own = f"Host: 127.0.0.1:{served.port}"
    for host in HOSTS:
        assert served.raw("GET /config HTTP/1.1", f"Host: {host}") in (400, 403), host
        assert served.raw(f"POST {API}/upload HTTP/1.1", f"Host: {host}", "Content-Length: 0") in (400, 403), host
    for host in OWN_HOSTS:
        assert served.raw("GET /theme.css HTTP/1.1", f"Host: {host}") == 200, host
    assert served.raw("GET /theme.css HTTP/1.0") == 403
    assert served.raw("GET /theme.css HTTP/1.1", own, "Host: evil.com") == 400
    assert served.raw("GET http://evil.com/config HTTP/1.1", own) == 404
    for origin in (
        "http://evil.com",
        "null",
        "file://",
        "http://localhost:1",
        f"http://127.0.0.1.evil.com:{served.port}",
    ):
        assert served.raw(f"POST {API}/queue/join HTTP/1.1", own, f"Origin: {origin}", "Content-Length: 0") == 403
    for site in ("cross-site", "same-site"):
        assert served.raw("GET /config HTTP/1.1", own, f"Sec-Fetch-Site: {site}") == 403
        assert served.raw("GET / HTTP/1.1", own, f"Sec-Fetch-Site: {site}") == 200  # a link may lead here
    assert "evil.com" not in served.client.get("/config", headers={"X-Forwarded-Host": "evil.com"}).text


def test_doors_of_the_page_lead_to_no_file_but_images(served):
    contents = {
        "a.html": b"<script>",
        "a.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "a.txt": b"x",
        "html.png": b"<p>",
    }
    for name, content in contents.items():
        path = served.upload(content, name).json()[0]
        assert_refused(served.client.get(f"{API}/file={path}"), 403)
    for name, content in contents.items():
        with open(f"{served.folder}/{name}", "wb") as file:
            file.write(content)
    Image.new("1", (9000, 9000)).save(f"{served.folder}/bomb.png")
    os.symlink(COMMITTED / "examples" / "coat.png", f"{served.folder}/link.png")
    for path in FILES:
        response = served.client.get(f"{API}/file={path.format(folder=served.folder)}")
        assert response.status_code in (403, 404), path
        assert "root:" not in response.text
    for path in CLOSED:
        for method in ("GET", "POST"):
            assert_refused(served.client.request(method, path), 404)


def test_an_upload_is_shown_as_its_pixels_alone(served):
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF", description="<script>alert(1)</script>")
    path = served.upload(buffer.getvalue(), "x.html").json()[0]
    response = served.client.get(f"{API}/file={path}")
    assert response.headers["content-type"] == "image/png"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert b"script" not in response.content
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(response.content))), pixels)


def test_doors_of_the_page_are_too_small_for_bombs(served, monkeypatch):
    monkeypatch.setattr(doors, "LARGEST_UPLOAD", 10_000)
    monkeypatch.setattr(doors, "MOST_STORED", 50_000)
    assert_refused(served.upload(b"x" * 20_000), 413)
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    chunks = [b'--b\r\nContent-Disposition: form-data; name="files"; filename="x"\r\n\r\n', *[b"x" * 1000] * 20]
    assert_refused(served.client.post(f"{API}/upload", content=iter(chunks), headers=form), 413)
    for number in range(12):
        assert served.upload(bytes([number]) * 8000).status_code == 200
    stored = [os.path.join(folder, name) for folder, _, names in os.walk(served.folder) for name in names]
    assert sum(map(os.path.getsize, stored)) < 70_000
    assert_refused(served.join(served.function("Keep"), ["a" * doors.LARGEST_CALL]), 413)


def drawing_of(caption: str, n: int = 1, steps: int | None = None) -> list:
    """The values of a click on Draw."""
    return [COMMITTED.name, caption, n, 0, steps, None, None, "the pipeline's own", "clear", True, True]


def test_a_click_is_bounded(served):
    draw = served.function("Captions, one per line")
    assert "64 of one click" in served.click(draw, drawing_of("a\n" * 65))
    assert "1600 of one click" in served.click(draw, drawing_of("a\n" * 17, steps=100))
    assert "at most 1,000 letters" in served.click(draw, drawing_of("a" * 1001))


@pytest.mark.parametrize("labels", CLICKS)
def test_doors_of_the_page_let_odd_values_become_one_line(served, labels, monkeypatch):
    """In place of each value of a click in turn; a few for each, unless in `make torture`, which also draws."""

    def refuse(*_):
        raise UserError("nothing is drawn")

    if not os.environ.get("TORTURE"):
        monkeypatch.setattr(Shelf, "open", refuse)
    function = served.function(*labels)
    plain = {"dropdown": COMMITTED.name, "slider": 1, "number": 1, "radio": "everything", "checkbox": True}
    inputs = served.inputs(function)
    for i in range(len(inputs)):
        for value in ODD if os.environ.get("TORTURE") else ODD[i % 8 :: 8]:
            values = [plain.get(kind) for kind in inputs]
            values[i] = value
            shown = served.click(function, values)
            assert not isinstance(shown, str) or (len(shown) < 400 and "\n" not in shown), (value, shown)
    assert "load the page again" in served.click(function, [])


def test_doors_of_the_page_take_clicks_of_its_own_form_alone(served):
    bodies = [b"", b"[]", b"x", b"[" * 100_000, b'{"data": NaN}', b"\xff", b'"x"']
    calls = [
        {"fn_index": 999}, {"fn_index": "0"}, {"fn_index": True}, {"fn_index": None}, {"fn_index": 1e9}, {"data": {}},
        {"data": None}, {"session_hash": None}, {"session_hash": "../x"}, {"session_hash": "a" * 65},
    ]  # fmt: skip
    good = {"fn_index": 0, "data": [], "session_hash": "a"}
    for body in [*bodies, *(json.dumps(good | call).encode() for call in calls)]:
        for path in ("queue/join", "run/predict"):
            assert_refused(served.client.post(f"{API}/{path}", content=body), 400)


def test_a_visitor_has_few_jobs_and_does_not_block_the_others(served, monkeypatch):
    """The jobs of one open page replace each other, so that one who wants many opens many."""
    draw = served.function("Captions, one per line")
    released = threading.Event()

    def wait(text: str) -> list[str]:
        released.wait(30)
        raise UserError("no caption")

    monkeypatch.setattr(drawing, "parse_captions", wait)
    monkeypatch.setattr(turns, "PLACES", 100)
    monkeypatch.setattr(line, "JOBS_OF_AN_ADDRESS", 6)
    states = [served.join(draw, drawing_of("a bag"), "greedy").status_code for _ in range(5)]
    states += [served.join(draw, drawing_of("a bag"), f"greedy{i}").status_code for i in range(5)]
    assert 200 in states
    assert states[-1] == 429
    monkeypatch.setattr(line, "JOBS_OF_A_SESSION", 0)
    monkeypatch.setattr(line, "JOBS_OF_AN_ADDRESS", 100)
    assert_refused(served.join(draw, drawing_of("a bag"), "another"), 429)
    released.set()
    monkeypatch.undo()
    assert "no caption" in served.click(draw, drawing_of(""))


def test_memory_of_visitors_is_bounded(served):
    examples = served.function("Examples")
    for _ in range(6):
        served.click(examples, [COMMITTED.name, 0])
    assert len(served.page.server_app.state_holder.session_data) <= 4
