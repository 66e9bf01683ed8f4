"""Drives an ASGI application without sockets: requests, and streams that are read, stalled or cut at any byte.

The application runs on the running loop, as under a server: nothing is collected first, a write waits while the
reader is behind by more than the wire holds, and after a disconnect writes go nowhere and raise nothing.
"""

from __future__ import annotations

import asyncio
import json as jsonlib
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import msgspec

from ..sse import Decoder, SSEMessage

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Scope
    from starlette.types import Message as ASGIMessage

__all__ = ["ASGIResponse", "ASGIStream", "Driver"]


class ASGIResponse(msgspec.Struct, frozen=True):
    """A whole answer.

    Attributes:
        headers: by name in lower case; values of one name are joined with ``", "``.
        error: what the application raised after it had begun to answer, if anything.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    error: BaseException | None = None

    @property
    def text(self) -> str:
        """The body as UTF-8."""
        return self.body.decode()

    def json(self) -> Any:
        """The body's JSON value."""
        return jsonlib.loads(self.body)


class Driver:
    """A client of an ASGI application in this process. ``async with`` runs the application's lifespan around it.

    Args:
        app: the application.
        headers: sent with every request; those of a request win.
        lifespan: whether entering starts the application and leaving stops it.

    Attributes:
        lines: whether to offer what ``legato serve`` offers beside ASGI: streams are then written without the
            request's task. By default as under any other ASGI server.
    """

    lines = False

    def __init__(self, app: ASGIApp, *, headers: Mapping[str, str] | None = None, lifespan: bool = True) -> None:
        self._app = app
        self._headers = {"host": "localhost", **{name.lower(): value for name, value in (headers or {}).items()}}
        self._lifespan = _Lifespan(app) if lifespan else None

    async def __aenter__(self) -> Driver:
        if self._lifespan is not None:
            await self._lifespan.start()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._lifespan is not None:
            await self._lifespan.stop()

    async def request(
        self,
        method: str,
        target: str,
        *,
        json: object = msgspec.UNSET,
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
    ) -> ASGIResponse:
        """The whole answer to one request. Hangs on an answer without an end: use ``stream`` for those.

        Args:
            method, target: as in the request line; ``target`` is the path, percent-encoded, with its query.
            json: a value to be sent as JSON. ``body``: bytes to be sent as they are, in chunks if it is several.
            headers: besides the driver's own.
        """
        extra = dict(headers or {})
        if json is not msgspec.UNSET:
            body = jsonlib.dumps(json).encode()
            extra.setdefault("content-type", "application/json")
        async with self.stream(target, method=method, body=body, headers=extra) as stream:
            async for _ in stream:
                pass
            await stream.finished()
            return ASGIResponse(stream.status, stream.headers, stream.body, stream.error)

    def stream(
        self,
        target: str,
        *,
        method: str = "GET",
        body: bytes | Iterable[bytes] = b"",
        headers: Mapping[str, str] | None = None,
        cut_after: int | None = None,
        buffer: int = 65_536,
    ) -> ASGIStream:
        """An answer to be read as it comes; enter it with ``async with``, leaving disconnects.

        Args:
            target, method, body, headers: as in ``request``.
            cut_after: disconnect when exactly so many bytes of the body have been read.
            buffer: bytes on the wire that nobody has read before the application's writes wait. A reader that stops
                reading is a stalled reader; with 0 its first unread byte makes the application wait.
        """
        fields = {**self._headers, **{name.lower(): value for name, value in (headers or {}).items()}}
        path, _, query = target.partition("?")
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(path),
            "raw_path": path.encode("ascii"),
            "root_path": "",
            "query_string": query.encode("ascii"),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields.items()],
            "client": ("127.0.0.1", 50_000),
            "server": ("localhost", 80),
            "state": self._lifespan.state.copy() if self._lifespan is not None else {},
        }
        stream = ASGIStream(self._app, scope, [body] if isinstance(body, bytes) else list(body), cut_after, buffer)
        if self.lines:
            scope["extensions"] = {"legato.line": _DriverLine(stream)}
        return stream


class ASGIStream:
    """One answer, read as it comes. Iterating gives the body's chunks; the iteration ends where the body ends.

    Attributes:
        status, headers: of the answer's head; names in lower case.
        cut: whether the reader went before the body's end.
        error: what the application raised after its head was out; the body has then no proper end.
    """

    def __init__(self, app: ASGIApp, scope: Scope, body: list[bytes], cut_after: int | None, buffer: int) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.cut = False
        self.error: BaseException | None = None
        self._app = app
        self._scope = scope
        self._request = body
        self._left = cut_after
        self._buffer = buffer
        self._read: list[bytes] = []
        self._wire = bytearray()
        self._ended = False
        self._changed = asyncio.Event()  # for the reader: bytes, the head, or the end have come
        self._room = asyncio.Event()  # for the application: bytes have been taken, or the reader has gone
        self._gone = asyncio.Event()
        self._line: _DriverLine | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def body(self) -> bytes:
        """What has been read so far."""
        return b"".join(self._read)

    async def __aenter__(self) -> ASGIStream:
        self._task = asyncio.create_task(self._run(), name=f"{self._scope['method']} {self._scope['path']}")
        while not self.status and not self._task.done():
            await self._wait()
        if not self.status:
            await self._task  # raises what the application raised
            raise RuntimeError("The application returned without an answer.")
        if self._left == 0:
            self.disconnect()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.disconnect()
        await self.finished()

    async def read(self) -> bytes:
        """The next bytes of the body, as soon as there are any; empty at its end, or once disconnected."""
        while not self._wire and not self._ended and not self._gone.is_set():
            await self._wait()
        if self._gone.is_set() or not self._wire:
            return b""
        chunk = bytes(self._wire if self._left is None else self._wire[: self._left])
        del self._wire[: len(chunk)]
        self._read.append(chunk)
        self._room.set()
        if self._left is not None:
            self._left -= len(chunk)
            if self._left == 0:
                self.disconnect()
        return chunk

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.read():
            yield chunk

    async def messages(self) -> AsyncIterator[SSEMessage]:
        """The SSE messages of what is read from here on, each as soon as it is whole."""
        decoder = Decoder()
        async for chunk in self:
            for message in decoder.feed(chunk):
                yield message

    def disconnect(self) -> None:
        """Go away. The application hears of it from ``receive``; its writes go nowhere. Idempotent."""
        if not self._gone.is_set():
            self.cut = not self._ended or bool(self._wire)
            self._gone.set()
            self._room.set()
            self._changed.set()
            if self._line is not None:
                self._line.lost()

    async def finished(self) -> None:
        """Wait until the application has returned, whatever it raised, and has let go of the line."""
        if self._task is not None:
            await asyncio.wait([self._task])
        if self._line is not None:
            await self._line.over.wait()

    async def _wait(self) -> None:
        self._changed.clear()
        await self._changed.wait()

    async def _run(self) -> None:
        try:
            await self._app(self._scope, self._receive, self._send)
        except Exception as exc:
            if not self.status:
                raise
            self.error = exc
        finally:
            if self._line is None:
                self._ended = True
                self._changed.set()

    async def _receive(self) -> ASGIMessage:
        if self._request:
            chunk = self._request.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self._request)}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: ASGIMessage) -> None:
        if message["type"] == "http.response.start":
            self.headers = _joined(message.get("headers", ()))
            self.status = message["status"]
        elif message["type"] == "http.response.body":
            if not self.status:
                raise RuntimeError("The application sent a body before its head.")
            if not self._gone.is_set():
                self._wire += message.get("body", b"")
            self._ended = not message.get("more_body", False)
        self._changed.set()
        await self._drained()

    async def _drained(self) -> None:
        while len(self._wire) > self._buffer and not self._gone.is_set():
            self._room.clear()
            await self._room.wait()


class _DriverLine:
    """What our own server has beside ASGI, see ``legato.server.crowd.Line``."""

    framing = None

    def __init__(self, stream: ASGIStream) -> None:
        self.send = stream._send
        self.over = asyncio.Event()
        self._stream = stream
        self._lost: Callable[[], None] | None = None

    @property
    def full(self) -> bool:
        return len(self._stream._wire) > self._stream._buffer

    def take(self, lost: Callable[[], None]) -> bool:
        if self._stream._gone.is_set():
            return False
        self._lost = lost
        self._stream._line = self
        return True

    def frame(self, body: bytes) -> bytes:
        return body

    def put(self, framed: bytes) -> None:
        if not self._stream._gone.is_set():
            self._stream._wire += framed
        self._stream._changed.set()

    async def write(self, body: bytes) -> None:
        await self._stream._drained()
        self.put(body)

    def end(self, *, proper: bool) -> None:
        self._close()

    def abort(self) -> None:
        self._close()

    def lost(self) -> None:
        lost, self._lost = self._lost, None
        if lost is not None:
            lost()

    def _close(self) -> None:
        self._lost = None
        self._stream._ended = True
        self._stream._changed.set()
        self.over.set()


def _joined(headers: Iterable[tuple[bytes, bytes]]) -> dict[str, str]:
    joined: dict[str, str] = {}
    for raw_name, raw_value in headers:
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        joined[name] = f"{joined[name]}, {value}" if name in joined else value
    return joined


class _Lifespan:
    """An application's life: one task from startup to shutdown."""

    def __init__(self, app: ASGIApp) -> None:
        self.state: dict[str, object] = {}
        self._app = app
        self._asked: asyncio.Queue[str] = asyncio.Queue()
        self._told: asyncio.Queue[ASGIMessage] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the application; raise ``RuntimeError`` with its message if it could not."""
        self._task = asyncio.create_task(self._run(), name="lifespan")
        await self._ask("startup")

    async def stop(self) -> None:
        """Shut it down, and wait until it has."""
        await self._ask("shutdown")
        if self._task is not None:
            await self._task

    async def _ask(self, phase: str) -> None:
        assert self._task is not None
        self._asked.put_nowait(f"lifespan.{phase}")
        told = asyncio.create_task(self._told.get())
        await asyncio.wait([told, self._task], return_when=asyncio.FIRST_COMPLETED)
        if not told.done():
            told.cancel()
            await self._task  # raises what the application raised
            raise RuntimeError(f"The application ended before its {phase} was over.")
        message = told.result()
        if message["type"] == f"lifespan.{phase}.failed":
            raise RuntimeError(message.get("message", "") or f"The application's {phase} failed.")

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.state}
        await self._app(scope, self._receive, self._send)

    async def _receive(self) -> ASGIMessage:
        return {"type": await self._asked.get()}

    async def _send(self, message: ASGIMessage) -> None:
        self._told.put_nowait(message)
