"""The page's server: who may enter, whose turn it is, how work is watched, and which uploads are deleted."""

import asyncio
import socket
import sys
import threading

import pytest
from conftest import COMMITTED, assert_one_error_line

from unclip import UserError
from unclip.page import turns, watching
from unclip.page.doors import Doors, Gate
from unclip.page.pictures import trim
from unclip.page.turns import Turns
from unclip.page.watching import Finished, Progress, watch


def test_page_without_pipelines_or_gradio_says_so(script, tmp_path, monkeypatch):
    pytest.importorskip("gradio")
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "False")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    page = "unclip.page.__main__"
    assert_one_error_line(script(page, "--checkpoints", tmp_path), "make demo")
    assert_one_error_line(script(page, "--port", 0), "--port")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert_one_error_line(script(page, "--port", port, "--checkpoints", COMMITTED.parent), str(port), "--port")
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert_one_error_line(script(page), "pip install '.[page]'")


def test_doors_open_to_other_machines_by_a_token_alone():
    passed = []

    async def page(scope, receive, send):
        passed.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})

    gate = Gate("0.0.0.0", "/uploads", set(), None, set, launching=False)
    assert gate.token
    assert Gate("127.0.0.1", "", set(), None, set).token is Gate("::1", "", set(), None, set).token is None
    tokens = {f"?token={gate.token}": 303, "?token=x": 403, "?token=": 403, "": 403}
    assert {query: ask(Doors(page, gate), "/", query)[0] for query in tokens} == tokens
    _, headers = ask(Doors(page, gate), "/", f"?token={gate.token}")
    kept = headers["set-cookie"].split(";")[0]
    for path in ("/", "/config", "/gradio_api/info"):
        assert ask(Doors(page, gate), path, cookie=f"a=b; {kept}")[0] == 200
        assert ask(Doors(page, gate), path, cookie=kept[:-1])[0] == 403
    assert passed == ["/", "/config", "/gradio_api/info"]


def ask(app, path: str, query: str = "", cookie: str = "") -> tuple[int, dict[str, str]]:
    """The status and the headers that an application answers with."""
    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"example.org"), (b"cookie", cookie.encode())]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": query[1:].encode(), "headers": headers}
    asyncio.run(app(scope, None, send))
    return sent[0]["status"], {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def test_files_of_others_may_vanish_while_old_ones_are_deleted(tmp_path):
    """As gradio moves each upload to its place."""
    is_over = threading.Event()

    def upload():
        while not is_over.is_set():
            for i in range(20):
                (tmp_path / f"{i}.part").write_bytes(b"12345")
            for i in range(20):
                (tmp_path / f"{i}.part").rename(tmp_path / f"{i}.png")

    others = threading.Thread(target=upload)
    others.start()
    try:
        for _ in range(100):
            trim(tmp_path, set(), 10**6)
    finally:
        is_over.set()
        others.join()
    trim(tmp_path, {str(tmp_path / "0.png")}, 12)
    kept = {path.name for path in tmp_path.iterdir()}
    assert len(kept) == 2
    assert "0.png" in kept


def test_watch_tells_the_steps_then_the_result():
    def work(tell):
        for step in range(3):
            tell(step)
            watching.tell_step()
        return "done"

    assert list(watch(work, 2)) == [0, Progress(1, 2), 1, Progress(2, 2), 2, Progress(3, 3), Finished("done")]


def test_watch_raises_where_it_is_watched():
    def work(tell):
        raise UserError("bad")

    with pytest.raises(UserError, match="bad"):
        list(watch(work, 1))


def test_work_ends_when_nobody_watches():
    ended = threading.Event()

    def work(tell):
        try:
            while True:
                watching.tell_step()
        finally:
            ended.set()

    watched = watch(work, 1)
    next(watched)
    watched.close()
    assert ended.wait(5)


def test_turns_are_taken_in_order_and_a_visitor_has_one(monkeypatch):
    monkeypatch.setattr(turns, "PLACES", 1)
    line = Turns()
    first, second, third = line.begin("a", "draw"), line.begin("b", "draw"), line.begin("c", "draw")
    assert first.wait(0)
    assert not second.wait(0)
    again = line.begin("a", "vary")
    assert first.is_over
    assert first.successor is again
    first.end()
    assert not third.wait(0)
    line.stop("b")
    assert not second.wait(0)
    second.end()
    assert third.wait(0)
    third.end()
    assert again.wait(0)
    again.end()
    assert (line.busy, line.waiting, line.latest) == (0, [], {})
