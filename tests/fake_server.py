"""A server for the tests of the SDK: a function from request to reply, served in memory or on a socket.

``Reply.cut`` drops the connection after the body, without a proper end; ``Reply.silent`` keeps it open, silently.
"""

from __future__ import annotations

import contextlib
import json
import socketserver
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import httpx2

from legato.sse import SSEMessage, encode


@dataclass
class Request:
    """What the client sent."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Reply:
    """What the server answers; ``die`` closes the connection before the answer. ``pieces`` follow the body one by one
    (on a socket only)."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    silent: bool = False
    die: bool = False
    pieces: Iterable[bytes] = ()


Handler = Callable[[Request], Reply]


def json_reply(value: Any, status: int = 200, **headers: str) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"content-type": "application/json", **headers})


def error_reply(status: int, reason: str, **headers: str) -> Reply:
    error = {"code": status, "message": f"It is {reason}.", "type": "bad_request", "reason": reason}
    return json_reply({"error": error}, status, **headers)


def stream_reply(body: bytes, cursor: str | None = "exact", **more: Any) -> Reply:
    headers = {"content-type": "text/event-stream; charset=utf-8"}
    if cursor is not None:
        headers["legato-cursor"] = cursor
    return Reply(200, body, headers, **more)


def frame(event: str, id: int | str, retry: int | None = None, **data: Any) -> bytes:
    return encode(SSEMessage(json.dumps({"type": event, **data}, ensure_ascii=False), event, str(id), retry))


class FakeLog:
    """A session's frames, each with its offset as id, and the stream of them after a cursor."""

    def __init__(self, *events: tuple[str, dict[str, Any]]) -> None:
        self.frames = [frame(event, offset, **data) for offset, (event, data) in enumerate(events, 1)]

    def after(self, cursor: str | None) -> bytes:
        after = int(cursor or 0)
        state = {"sessionId": "s", "cursor": "exact"}
        head = encode(SSEMessage(json.dumps(state), "connected", str(after), 1000))
        return head + b"".join(self.frames[after:])


# A whole answer, with a letter of four bytes and all the kinds of pieces.
ANSWER = FakeLog(
    ("user_message_created", {"messageId": "m1", "content": "hi", "runId": "r1"}),
    ("run_started", {"runId": "r1", "agent": "guide", "attempt": 1}),
    ("content", {"content": "Hel", "part": 0, "start": 0, "assistantMessageId": "r1~a1"}),
    ("content", {"content": "lo \U0001f3bb", "part": 0, "start": 3, "assistantMessageId": "r1~a1"}),
    ("complete", {"done": True, "content": "Hello \U0001f3bb", "messageId": "r1~a1", "runId": "r1"}),
    ("session_deleted", {"sessionId": "s"}),
)


class FakeTransport(httpx2.BaseTransport, httpx2.AsyncBaseTransport):
    """Serves a handler in memory, to ``httpx2.Client`` and ``httpx2.AsyncClient``. ``silent`` means a read timeout."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.requests: list[Request] = []

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        return self._respond(request, request.read())

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        return self._respond(request, await request.aread())

    def _respond(self, request: httpx2.Request, body: bytes) -> httpx2.Response:
        url = request.url
        headers = {name.lower(): value for name, value in request.headers.items()}
        record = Request(
            request.method, unquote(url.raw_path.decode().partition("?")[0]), dict(url.params), headers, body
        )
        self.requests.append(record)
        reply = self.handler(record)
        if reply.die:
            raise httpx2.RemoteProtocolError("Server disconnected without sending a response.")
        return httpx2.Response(reply.status, headers=reply.headers, stream=_Body(reply))


class _Body(httpx2.SyncByteStream, httpx2.AsyncByteStream):
    def __init__(self, reply: Reply) -> None:
        self.reply = reply

    def __iter__(self) -> Iterator[bytes]:
        yield self.reply.body
        if self.reply.cut:
            raise httpx2.RemoteProtocolError("peer closed connection without sending complete message body")
        if self.reply.silent:
            raise httpx2.ReadTimeout("timed out")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self:
            yield chunk


class FakeServer:
    """Serves a handler on a socket of this machine: ``with FakeServer(handler) as server: server.url``."""

    def __init__(self, handler: Handler) -> None:
        self.requests: list[Request] = []
        self.stopping = threading.Event()
        outer = self

        class Connection(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(OSError):
                    request = outer._read(self.rfile)
                    if request is not None:
                        outer.requests.append(request)
                        outer._write(self.wfile, handler(request))

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> FakeServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()

    def _read(self, file: Any) -> Request | None:
        line = file.readline().decode("ascii").split()
        if not line:
            return None
        headers: dict[str, str] = {}
        while (header := file.readline().decode("latin-1").strip()) != "":
            name, _, value = header.partition(":")
            headers[name.lower()] = value.strip()
        body = file.read(int(headers.get("content-length", "0")))
        target = urlsplit(line[1])
        return Request(line[0], unquote(target.path), dict(parse_qsl(target.query)), headers, body)

    def _write(self, file: Any, reply: Reply) -> None:
        if reply.die:
            return
        headers = {**reply.headers, "connection": "close", "transfer-encoding": "chunked"}
        if reply.status == 204:
            del headers["transfer-encoding"]
        lines = [f"HTTP/1.1 {reply.status} Word", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        file.write("\r\n".join(lines).encode("latin-1"))
        if reply.body:
            file.write(b"%x\r\n%s\r\n" % (len(reply.body), reply.body))
        file.flush()
        for piece in reply.pieces:
            file.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            file.flush()
        if reply.silent:
            self.stopping.wait(30)
        elif not reply.cut and reply.status != 204:
            file.write(b"0\r\n\r\n")
