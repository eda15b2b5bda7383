"""The doors of the page: each request passes here before gradio sees it.

gradio has more doors than the page needs: it fetches addresses, serves files, and stores whatever is sent. Here a
request is let in if it comes from the page itself, asks for what the page uses, and is small enough. Anything else is
refused in one line.
"""

import asyncio
import hmac
import ipaddress
import json
import re
import secrets
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from unclip.errors import UserError
from unclip.page.line import Line
from unclip.page.pictures import preview, trim

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

ROUTES = {
    "GET": re.compile(
        r"/|/config|/theme\.css|/favicon\.ico|/manifest\.json|/(assets|static)/.+"
        r"|/gradio_api/(info|app_id|startup-events|queue/data|upload_progress|heartbeat/[\w-]{1,64}|file=.+)"
    ),
    "POST": re.compile(r"/gradio_api/(queue/join|run/\w{1,64}|upload|cancel|reset)"),
}
"""All that the page in the browser asks for."""
JOIN = re.compile(r"/gradio_api/(queue/join|run/\w+)")
FILE = "/gradio_api/file="
LARGEST_UPLOAD = 20 * 2**20
LARGEST_CALL = 2**19
"""Bytes of a file, and of the values of a click."""
LARGEST_SUM = 10 * LARGEST_UPLOAD
"""Bytes of all requests that are being received."""
MOST_STORED = 25 * LARGEST_UPLOAD
"""Bytes of all files that visitors have uploaded; the oldest give way."""
SLOWEST = 60
"""Seconds in which a request has to arrive."""
PATIENCE = 15
"""Seconds after which a visitor who does not listen to a job's messages is forgotten."""
SESSION = re.compile(r"[\w-]{1,64}")
HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"content-security-policy", b"frame-ancestors 'self'"),
]


class Refused(Exception):
    """A request that is not let in: an HTTP status, and one line that says why."""

    def __init__(self, status: int, line: str):
        super().__init__(line)
        self.status = status


@dataclass(eq=False)
class Gate:
    """Whom and what the doors let in."""

    host: str
    """Address that the page is served at."""
    folder: str
    """The folder whose images are served: the examples', and what visitors upload."""
    functions: set[int]
    """Numbers of the page's functions."""
    line: Line
    kept: Callable[[], set[str]]
    """The files of the folder that are not deleted: the examples'."""
    launching: bool = True
    """Whether gradio still tries whether it can be reached."""
    token: str | None = None
    """A secret that visitors need; None where the page is served to this machine alone."""

    def __post_init__(self):
        self.token = None if is_loopback(self.host) else secrets.token_urlsafe(16)


@dataclass
class Request:
    """A request for the page, and the address that it comes from."""

    method: str
    path: str
    query: str
    headers: dict[str, str]
    address: str

    @classmethod
    def of(cls, scope: Message) -> "Request":
        headers: dict[str, str] = {}
        for name, value in scope["headers"]:
            key = name.decode("latin-1").lower()
            if key == "host" and key in headers:
                raise Refused(400, "this request names two hosts")
            headers[key] = value.decode("latin-1")
        query = scope.get("query_string", b"").decode("latin-1")
        return cls(scope["method"], scope["path"], query, headers, (scope.get("client") or ("",))[0])


class Doors:
    """Let requests in, and turn what goes wrong behind the doors into one line: middleware for gradio's server."""

    def __init__(self, app: Callable, gate: Gate):
        self.app = app
        self.gate = gate
        self.receiving = 0
        """Bytes of the requests that are being received."""
        self.joining = asyncio.Lock()
        self.previewing = asyncio.Semaphore(2)
        self.joined: dict[str, object] = {}
        """Session -> a mark of its latest job, until it is known that somebody listens."""
        self.listeners: Counter[str] = Counter()
        """Session -> its open streams of messages."""
        self.tasks: set[asyncio.Task] = set()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] != "http":  # gradio needs no WebSocket
            await send({"type": "websocket.close", "code": 1008})
        else:
            await self.answer(scope, receive, send)

    async def answer(self, scope: Message, receive: Receive, send: Send) -> None:
        has_begun = False

        async def send_guarded(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                message = {**message, "headers": [*message.get("headers", []), *HEADERS]}
            await send(message)

        try:
            request = Request.of(scope)
            trusted = [pair for pair in scope["headers"] if not pair[0].startswith(b"x-forwarded-")]
            scope = {**scope, "headers": trusted}  # gradio would take its own address from the others
            await self.let_in(request, scope, receive, send_guarded)
        except Refused as refusal:
            if refusal.status == 413:
                await discard(receive)
            await reply(send_guarded, refusal.status, str(refusal))
        except Exception as error:
            if type(error).__name__ == "ClientDisconnect":
                return
            if has_begun:
                raise
            line = f"this is not of the form that the page sends ({type(error).__name__}); load the page again"
            await reply(send_guarded, 400, line)

    async def let_in(self, request: Request, scope: Message, receive: Receive, send: Send) -> None:
        """Check a request and pass it on. Raises Refused."""
        check_route(request)
        if self.gate.launching and request.path in ("/", "/gradio_api/startup-events"):
            await self.app(scope, receive, send)
            return
        check_origin(request)
        if self.gate.token is None:
            check_host(request)
        elif query_token(request) is not None and request.path == "/":
            await self.hand_out_token(request, scope, send)
            return
        elif not same(cookie(request, self.cookie_name(scope)), self.gate.token):
            raise Refused(403, "this page opens with the whole address that its terminal shows, which holds a token")
        if request.path.startswith(FILE):
            async with self.previewing:
                await send_picture(send, request.path.removeprefix(FILE), self.gate.folder)
        elif request.path == "/gradio_api/queue/data":
            await self.listen(request, scope, receive, send)
        elif request.method == "POST":
            await self.receive_and_pass_on(request, scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def cookie_name(self, scope: Message) -> str:
        """A name of its own for each port, as browsers share cookies between ports."""
        return f"unclip-{(scope.get('server') or ('', 0))[1]}"

    async def hand_out_token(self, request: Request, scope: Message, send: Send) -> None:
        """Keep the token of an address in the browser, so that it leaves the address. Raises Refused for another."""
        if not same(query_token(request), self.gate.token):
            raise Refused(403, "this address holds another token than that in the page's terminal")
        kept = f"{self.cookie_name(scope)}={self.gate.token}; HttpOnly; SameSite=Lax; Path=/"
        headers = [(b"location", b"/"), (b"set-cookie", kept.encode())]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body"})

    async def receive_and_pass_on(self, request: Request, scope: Message, receive: Receive, send: Send) -> None:
        """Receive a whole request before gradio does, and check what it says. Raises Refused."""
        is_upload = request.path == "/gradio_api/upload"
        body = await self.receive_body(request, receive, LARGEST_UPLOAD if is_upload else LARGEST_CALL)
        if is_upload:
            await asyncio.to_thread(trim, Path(self.gate.folder), self.gate.kept(), MOST_STORED)
        if not JOIN.fullmatch(request.path):
            await self.app(scope, whole(body, receive), send)
            return
        call = read_call(body, self.gate.functions)
        body = json.dumps(call).encode()
        headers = [pair for pair in scope["headers"] if pair[0] not in (b"content-length", b"content-type")]
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        scope = {**scope, "headers": headers}
        if request.path == "/gradio_api/queue/join":
            await self.join(call["session_hash"], request.address, scope, whole(body, receive), send)
        else:
            await self.app(scope, whole(body, receive), send)

    async def join(self, session: str, address: str, scope: Message, receive: Receive, send: Send) -> None:
        """Let a job into the queue. Raises Refused if too many are waiting."""
        async with self.joining:  # one after the other, so that each is counted
            try:
                self.gate.line.check(session, address)
            except UserError as error:
                raise Refused(429, str(error)) from None
            await self.app(scope, receive, send)
        mark = object()
        self.joined[session] = mark
        task = asyncio.create_task(self.forget_unless_heard(session, mark))
        self.tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self.tasks.discard)

    async def forget_unless_heard(self, session: str, mark: object) -> None:
        await asyncio.sleep(PATIENCE)
        if self.joined.get(session) is mark:
            del self.joined[session]
            if not self.listeners[session]:
                await self.gate.line.forget(session)

    async def listen(self, request: Request, scope: Message, receive: Receive, send: Send) -> None:
        """Stream a visitor's messages."""
        session = "".join(parse_qs(request.query).get("session_hash", ()))
        self.listeners[session] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.listeners[session] -= 1
            if not self.listeners[session]:
                del self.listeners[session]

    async def receive_body(self, request: Request, receive: Receive, largest: int) -> bytes:
        """Receive a request of at most `largest` bytes. Raises Refused if it is larger or slow."""
        too_large = Refused(413, f"this is more than the {shown_bytes(largest)} that the page takes at once")
        length = request.headers.get("content-length", "")
        if length.isdecimal() and int(length) > largest:
            raise too_large
        chunks: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(SLOWEST):
                while True:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise Refused(400, "the request was cut short")
                    chunk = message.get("body", b"")
                    chunks.append(chunk)
                    size += len(chunk)
                    self.receiving += len(chunk)
                    if size > largest:
                        raise too_large
                    if self.receiving > LARGEST_SUM:
                        raise Refused(503, "the page is receiving too much at once; try again in a minute")
                    if not message.get("more_body", False):
                        return b"".join(chunks)
        except TimeoutError:
            raise Refused(408, f"the request took longer than {SLOWEST} seconds to arrive") from None
        finally:
            self.receiving -= size


def check_route(request: Request) -> None:
    """Raise Refused for what the page has no use for."""
    pattern = ROUTES.get("GET" if request.method == "HEAD" else request.method)
    is_clean = not {"..", "."} & set(request.path.split("/")) and not re.search(r"[\\\x00-\x1f]", request.path)
    if not (pattern and pattern.fullmatch(request.path) and is_clean):
        raise Refused(404, "this page has nothing at that address")


def check_host(request: Request) -> None:
    """Raise Refused unless a request is addressed to this machine by a name that nobody else can give it.

    A site whose name is made to lead here (DNS rebinding) would otherwise count as the page's own.
    """
    name = re.fullmatch(r"(\[[^\]]+\]|[^:\[\]]+)(:\d{1,5})?", request.headers.get("host", ""))
    if not (name and is_loopback(name[1].strip("[]"))):
        raise Refused(403, "this page is served to its own machine, as http://127.0.0.1 or http://localhost")


def check_origin(request: Request) -> None:
    """Raise Refused for a request that another site's page makes; a link from there to the page may be followed."""
    origin = request.headers.get("origin")
    is_own = origin is None or urlsplit(origin).netloc.lower() == request.headers.get("host", "").lower()
    is_link = request.path == "/" and request.method == "GET" and origin is None
    if not is_own or (request.headers.get("sec-fetch-site", "none") not in ("none", "same-origin") and not is_link):
        raise Refused(403, "this page takes requests from itself alone, not from other sites")


def is_loopback(host: str) -> bool:
    """Whether a name or an address is that of this machine, for itself alone."""
    try:
        return host.lower() == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def query_token(request: Request) -> str | None:
    return next(iter(parse_qs(request.query).get("token", ())), None)


def cookie(request: Request, name: str) -> str | None:
    pairs = (pair.strip().partition("=") for pair in request.headers.get("cookie", "").split(";"))
    return next((value for key, _, value in pairs if key == name), None)


def same(given: str | None, secret: str | None) -> bool:
    """Whether a visitor has the secret; the time that this takes tells nothing of it."""
    return hmac.compare_digest((given or "").encode(), (secret or "").encode())


def read_call(body: bytes, functions: set[int]) -> dict[str, Any]:
    """The function, values and session of a click. Raises Refused unless they are of the form that the page sends."""
    try:
        call = json.loads(body)
        function, values, session = (call.get(key) for key in ("fn_index", "data", "session_hash"))
    except (ValueError, AttributeError, RecursionError):
        raise Refused(400, "a click is sent as JSON: fn_index, data and session_hash") from None
    if type(function) is not int or function not in functions:
        raise Refused(400, "this page has no function of that number; load the page again")
    if not isinstance(values, list) or not isinstance(session, str) or not SESSION.fullmatch(session):
        raise Refused(400, "a click has a list of values, and a session of up to 64 letters and digits")
    return {"fn_index": function, "data": values, "session_hash": session}


async def send_picture(send: Send, path: str, folder: str) -> None:
    """Send an image of the folder, as a PNG made from its pixels. Raises Refused for any other file."""
    try:
        content = await asyncio.to_thread(preview, path, folder)
    except UserError as error:
        raise Refused(403, str(error)) from None
    headers = [(b"content-type", b"image/png"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def reply(send: Send, status: int, line: str) -> None:
    """Send one line, where the page in the browser looks for it."""
    content = json.dumps({"detail": line, "error": line}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


async def discard(receive: Receive, most: int = 2**29) -> None:
    """Receive and forget the rest of a request, so that its sender gets to read the reply."""
    try:
        async with asyncio.timeout(SLOWEST):
            while most > 0:
                message = await receive()
                most -= len(message.get("body", b"")) + 1
                if message["type"] != "http.request" or not message.get("more_body", False):
                    return
    except TimeoutError:
        pass


def whole(body: bytes, receive: Receive) -> Receive:
    """A request that was received already, as gradio receives it."""
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_whole() -> Message:
        return messages.pop() if messages else await receive()

    return receive_whole


def shown_bytes(count: int) -> str:
    return f"{count // 2**20} MB" if count >= 2**20 else f"{count // 2**10} kB"
