"""The cheapest readers there are, and how each dialect's runs are begun, read and come back to, over HTTP alone."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import re
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from .sides import HERE, Side

SERVED = HERE / "support" / "served.py"
QUIET = b"quiet."
LAST = b"0\r\n\r\n"

_names = itertools.count(1)


# A server -------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(side: Side, *options: str, folder: str | None = None, memory: bool = False) -> Iterator[Server]:
    """A server of that side, with a SQLite log of its own, or with the one in ``folder``, or with none."""
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="legato-bench-"))
        process = side.start(SERVED, "memory:" if memory else f"sqlite:///{folder}/bench.db", *options)
        try:
            assert process.stdout is not None
            port = process.stdout.readline()
            if not port:
                raise SystemExit(f"The server of {side.name} did not start.")
            yield Server(int(port), [process.pid])
        finally:
            process.kill()
            process.wait()
            _close(process)


def _close(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            pipe.close()


class Server:
    """A server that listens on ``port`` of loopback. Requests wait in its socket until it has started.

    ``pids`` are all its processes.
    """

    def __init__(self, port: int, pids: Sequence[int]) -> None:
        self.port = port
        self.pids = pids

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer to one request.

        Raises:
            RuntimeError: it was refused.
        """
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request(method, path, body, {"connection": "close"}))
        answer = await reader.read()
        writer.close()
        head, _, _ = answer.partition(b"\r\n\r\n")
        if not 200 <= int(head.split()[1]) < 300:
            raise RuntimeError(f"{method} {path}: {answer[:500]!r}")
        return json.loads(body_of(answer) or b"null")

    async def bench(self, what: str) -> Any:
        return await self.ask("GET", f"/bench/{what}")

    async def connect(self, reader: Reader) -> Reader:
        """A connection over which nothing has been asked."""
        await asyncio.get_running_loop().create_connection(lambda: reader, "127.0.0.1", self.port)
        return reader

    async def post(self) -> Post:
        """A connection for many requests, one after another."""
        return Post(*await asyncio.open_connection("127.0.0.1", self.port))


class Post:
    """A connection that is kept, for requests whose answers are short."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def exchange(self, data: bytes) -> tuple[bytes, bytes]:
        """The head and the body of the answer, whatever it says."""
        self._writer.write(data)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head)
        if length is None:
            raise RuntimeError(f"{head!r}")
        return head, await self._reader.readexactly(int(length[1]))

    async def send(self, data: bytes) -> Any:
        """The JSON of the answer; raises if it is a refusal."""
        head, body = await self.exchange(data)
        if not 200 <= int(head.split()[1]) < 300:
            raise RuntimeError(f"{head!r}")
        return json.loads(body)


def request(method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> bytes:
    """One request's bytes."""
    text = b"" if body is None else json.dumps(body).encode()
    fields = {"host": "127.0.0.1", "content-length": str(len(text)), **(headers or {})}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{method} {path} HTTP/1.1\r\n{head}\r\n".encode() + text


def body_of(answer: bytes) -> bytes:
    """The body as far as it has come, out of its chunks if it came in such."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head.lower():
        return rest
    pieces, at = [], 0
    while (end := rest.find(b"\r\n", at)) >= 0 and (size := int(rest[at:end], 16)):
        pieces.append(rest[end + 2 : end + 2 + size])
        at = end + 4 + size
    return b"".join(pieces)


class Reader(asyncio.Protocol):
    """A reader of one stream: keeps what comes, and looks for one mark in it.

    Args:
        mark: what to look for.
        last: what is in the last event, for a stream that goes on after it; None for one that ends.

    Attributes:
        marked: done when the mark has come, with the time.
        over: done when the stream has ended.
    """

    def __init__(self, mark: bytes = QUIET, *, last: bytes | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.marked: asyncio.Future[float] = loop.create_future()
        self.over: asyncio.Future[None] = loop.create_future()
        self._mark = mark
        self._last = last
        self._ending = False
        self._pieces: list[bytes] = []
        self._rest = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, data: bytes) -> None:
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        if not self._pieces and b" 200 " not in data[:20]:
            self._fail(f"The stream was refused: {data[:500]!r}")
        self._pieces.append(data)
        seen = self._rest + data
        if not self.marked.done() and self._mark in seen:
            self.marked.set_result(time.perf_counter())
        if self._last is not None:
            self._ending = self._ending or self._last in seen
            ended = self._ending and seen.endswith(b"\n\n\r\n")
        else:
            ended = seen.endswith(LAST)
        if ended and not self.over.done():
            self.over.set_result(None)
            self._transport.close()
        self._rest = seen[-64:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail(f"The stream was cut off: {b''.join(self._pieces)[:300]!r}")

    def _fail(self, why: str) -> None:
        for future in (self.marked, self.over):
            if not future.done():
                future.set_exception(RuntimeError(why))
                future.exception()  # whoever waits for it hears of it; nobody need

    @property
    def body(self) -> bytes:
        """The body as far as it has come."""
        return body_of(b"".join(self._pieces))


# Dialects -------------------------------------------------------------------------------------------------------------


class Dialect:
    """A run in one dialect, and how it is read.

    Attributes:
        first: the request that reads the run from its start; set by ``begin``.
        live: the same, from where the run is, if the dialect can.
        last: see ``Reader``.
    """

    name = ""
    last: bytes | None = None
    first = b""

    @property
    def live(self) -> bytes:
        return self.first

    async def begin(self, server: Server, text: str) -> None:
        """Send a message, unless ``first`` does."""
        raise NotImplementedError

    def back(self, frame: bytes) -> bytes | None:
        """The request of a reader whose last frame this is; None in a dialect without a cursor."""
        raise NotImplementedError

    def plain(self, body: bytes) -> bytes:
        """``body`` without what is different for each reader."""
        return body

    def reader(self, mark: bytes = QUIET) -> Reader:
        return Reader(mark, last=self.last)

    def resume(self, known: bytes, left: int) -> tuple[bytes, int]:
        """The request of a reader who misses the last ``left`` frames of ``known``, and where in it they begin."""
        at = len(known)
        for _ in range(left):
            at = _start(known, at)
        asked = self.back(known[_start(known, at) : at])
        return (self.first, 0) if asked is None else (asked, at)


def _start(body: bytes, end: int) -> int:
    """Where the frame begins that ends at ``end``."""
    found = body.rfind(b"\n\n", 0, end - 2)
    return found + 2 if found >= 0 else 0


def _found(pattern: bytes, text: bytes) -> str:
    match = re.search(pattern, text)
    if match is None:
        raise RuntimeError(f"{pattern!r} is not in {text[:300]!r}")
    return match[1].decode()


class Mix(Dialect):
    name = "mix"
    last = b"event: complete"

    async def begin(self, server: Server, text: str) -> None:
        session = (await server.ask("POST", "/api/sessions", {"title": "bench"}))["id"]
        self._messages = f"/api/sessions/{session}/messages"
        await self.say(server, text)
        self._path = f"/stream?sessionId={session}"
        self.first = request("GET", f"{self._path}&from=start")

    async def say(self, server: Server, text: str) -> None:
        """Another message, in the same session."""
        await server.ask("POST", self._messages, {"text": text})

    @property
    def live(self) -> bytes:
        return request("GET", self._path)

    def back(self, frame: bytes) -> bytes:
        return request("GET", self._path, headers={"last-event-id": _found(rb"(?m)^id: (\d+)$", frame)})

    def plain(self, body: bytes) -> bytes:
        return body.partition(b"\n\n")[2]  # "connected", with a cursor and a delay of the reader's own


class Responses(Dialect):
    name = "responses"

    async def begin(self, server: Server, text: str) -> None:
        asked = {"input": text, "background": True, "model": "speaker"}
        self._path = f"/v1/responses/{(await server.ask('POST', '/v1/responses', asked))['id']}?stream=true"
        self.first = request("GET", self._path)

    def back(self, frame: bytes) -> bytes:
        number = _found(rb'"sequence_number":(\d+)', frame)
        return request("GET", f"{self._path}&starting_after={number}")


class Chat(Dialect):
    """There is no cursor: a reader that comes back sends the same again, and is sent the whole answer again."""

    name = "chat"

    async def begin(self, server: Server, text: str) -> None:
        asked = {"model": "speaker", "stream": True, "messages": [{"role": "user", "content": text}]}
        headers = {"idempotency-key": f"bench-{next(_names)}"}
        self.first = request("POST", "/v1/chat/completions", asked, headers)

    def back(self, frame: bytes) -> None:
        return None


class Deva(Dialect):
    name = "deva"

    async def begin(self, server: Server, text: str) -> None:
        thread = (await server.ask("POST", "/api/sdk/chat", {}))["id"]
        message = (await server.ask("POST", f"/api/sdk/chat/{thread}/messages", {"text": text}))["id"]
        self._path = f"/api/sdk/chat/{thread}/messages/{message}/query/stream"
        self.first = request("POST", self._path)

    def back(self, frame: bytes) -> bytes:
        return request("POST", self._path, headers={"last-event-id": _found(rb"(?m)^id: (\d+\.\d)$", frame)})

    def plain(self, body: bytes) -> bytes:
        return re.sub(rb"\A:[^\n]*\nretry: \d+\n", b"", body, count=1)  # a delay of the reader's own


DIALECTS: list[type[Dialect]] = [Mix, Responses, Chat, Deva]
