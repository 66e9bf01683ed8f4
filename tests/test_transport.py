"""Our transport on asyncio against httpx2's own, and against servers that cut, dribble, stall and babble."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import select
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Any

import httpx2
import pytest
import trio
import trustme
import uvloop

from legato.http import transport as transport_module
from legato.http.connection import MAX_HEAD_BYTES, MAX_HELD_BYTES, HttpConnection
from legato.http.settings import EXCHANGE
from legato.http.tasks import new_http_client
from legato.http.transport import Transport

TRUST = ssl.create_default_context()  # made once, since it takes 30 ms
LOOPS = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
CHUNKED = HEAD + b"5;a=b\r\nhello\r\n6 \r\n world\r\n0\r\nx-sum: 1\r\n\r\n"
UNTIL_END = b"HTTP/1.1 200 OK\r\n\r\nhello world"
EARLY = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n" + OK

WHOLE = {
    "length": OK,
    "chunked": CHUNKED,
    "until the end": UNTIL_END,
    "informational": EARLY,
    "empty": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    "204": b"HTTP/1.1 204 No Content\r\n\r\n",
    "304": b"HTTP/1.1 304 Not Modified\r\ncontent-length: 5\r\n\r\n",
    "HTTP/1.0": b"HTTP/1.0 200 OK\r\n\r\nhello",
    "closing": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello",
    "no reason": b"HTTP/1.1 404 \r\ncontent-length: 2\r\n\r\nno",
    "headers": b"HTTP/1.1 200 OK\r\nX-A:  1 \t\r\nx-a: 2\r\nX-Empty:\r\ncontent-length: 0\r\n\r\n",
    "latin": b"HTTP/1.1 200 \xe9t\xe9\r\nx: \xe9\r\ncontent-length: 0\r\n\r\n",
    "bare line feeds": b"HTTP/1.1 200 OK\ncontent-length: 5\n\nhello",
    "more than asked for": OK + OK,
    "chunked with a length": CHUNKED.replace(b"\r\n", b"\r\ncontent-length: 5\r\n", 1),
}
BROKEN = {
    "nothing": b"",
    "garbage": b"\x00\x01\x02 what is this\r\n\r\n",
    "another protocol": b"SSH-2.0-OpenSSH_9.6\r\n",
    "length that is none": b"HTTP/1.1 200 OK\r\ncontent-length: five\r\n\r\nhello",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello",
    "chunk that is none": HEAD + b"xyz\r\nhello\r\n",
    "chunk that is longer": HEAD + b"2\r\nhello\r\n0\r\n\r\n",
    "cut length": OK[:-1],
    "cut chunk": CHUNKED[:-20],
    "cut before the last chunk": CHUNKED[: CHUNKED.index(b"0\r\nx-sum")],
    "cut head": OK[:20],
    "endless head": b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 40_000,
    "endless line": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 400_000,
}


def run(loop: str, go: Coroutine[Any, Any, Any]) -> Any:
    async def bounded() -> Any:
        async with asyncio.timeout(60):
            return await go

    with asyncio.Runner(loop_factory=LOOPS[loop]) as runner:
        return runner.run(bounded())


each_loop = pytest.mark.parametrize("loop", LOOPS)


class Served:
    """A server on loopback that does with each connection what it is told.

    Attributes:
        url: its address.
        connections: how many came.
        ended: how many have ended, seen from the server.
    """

    def __init__(self) -> None:
        self.url = ""
        self.connections = 0
        self.ended = 0
        self._change = asyncio.Event()

    def changed(self) -> None:
        self._change.set()

    async def until(self, true: Callable[[], bool]) -> None:
        while not true():
            self._change.clear()
            await self._change.wait()


@contextlib.asynccontextmanager
async def serving(answer: Answer, tls: ssl.SSLContext | None = None) -> AsyncIterator[Served]:
    served = Served()

    async def each(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        served.connections += 1
        served.changed()
        # RuntimeError: a write of uvloop to a connection that has ended
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, RuntimeError):
            await answer(reader, writer)
            await writer.drain()
        writer.close()
        served.ended += 1
        served.changed()

    server = await asyncio.start_server(each, "127.0.0.1", 0, ssl=tls)
    scheme = "https" if tls else "http"
    served.url = f"{scheme}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield served
    finally:
        server.close()


async def asked(reader: asyncio.StreamReader) -> bytes:
    """The next request, without a body."""
    return await reader.readuntil(b"\r\n\r\n")


def saying(*answers: bytes) -> Answer:
    """Gives these answers over one connection, and ends it."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for data in answers:
            await asked(reader)
            writer.write(data)

    return answer


def always(data: bytes) -> Answer:
    """Gives this answer until the client ends the connection."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            await asked(reader)
            writer.write(data)

    return answer


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


def client(**settings: Any) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=Transport(), **settings)


async def outcome(url: str, transport: httpx2.AsyncBaseTransport) -> tuple[object, ...]:
    """What comes of a request, in as far as two transports should agree: the answer, or the class of the error."""
    pieces: list[bytes] = []
    async with httpx2.AsyncClient(transport=transport) as http:
        try:
            async with http.stream("GET", url) as response:
                async for piece in response.aiter_raw():
                    pieces.append(piece)
        except httpx2.TransportError as exc:
            return (type(exc), exc.request.url, b"".join(pieces))
    head = (response.status_code, response.reason_phrase, response.http_version, response.headers.raw)
    return (*head, b"".join(pieces))


# What the library would have given -----------------------------------------------------------------------------------


@each_loop
@pytest.mark.parametrize("name", [*WHOLE, *BROKEN])
def test_an_answer_is_what_httpx2_makes_of_it(name: str, loop: str) -> None:
    """Be it whole or broken: the same head, body and class of error."""

    async def go() -> None:
        async with serving(saying({**WHOLE, **BROKEN}[name])) as served:
            theirs = await outcome(served.url, httpx2.AsyncHTTPTransport(verify=TRUST))
            ours = await outcome(served.url, Transport())

        assert theirs == ours
        assert (name in BROKEN) == isinstance(ours[0], type)

    run(loop, go())


@each_loop
@pytest.mark.parametrize("name", ["length", "chunked", "until the end", "informational"])
def test_cut_at_every_byte_it_ends_as_with_httpx2(name: str, loop: str) -> None:
    """A part of a body that knows its length is an error, with what had come before it."""
    data = WHOLE[name]

    async def go() -> None:
        left = iter([size for size in range(len(data)) for _ in range(2)])

        async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked(reader)
            writer.write(data[: next(left)])

        async with serving(cut) as served:
            for size in range(len(data)):
                theirs = await outcome(served.url, httpx2.AsyncHTTPTransport(verify=TRUST))

                assert theirs == await outcome(served.url, Transport()), size

    run(loop, go())


class Wire(asyncio.Transport):
    """The event loop's side of a connection, in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.reading = True
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += bytes(data)

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True


def wired(monkeypatch: pytest.MonkeyPatch) -> tuple[Transport, list[tuple[HttpConnection, Wire]]]:
    """A transport whose connections are in memory, and those."""
    made: list[tuple[HttpConnection, Wire]] = []

    async def connect(self: Transport, origin: Any, request: Any) -> HttpConnection:
        connection, wire = HttpConnection(origin, self._forget), Wire()
        connection.connection_made(wire)
        made.append((connection, wire))
        return connection

    monkeypatch.setattr(Transport, "_connect", connect)
    return Transport(), made


async def settle() -> None:
    """Let whoever can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


@pytest.mark.parametrize("name", ["length", "chunked", "informational"])
@pytest.mark.parametrize("pieces", ["two", "bytes"])
async def test_how_it_is_cut_into_pieces_changes_nothing(
    name: str, pieces: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two, at every place, and byte by byte, with the reader awake between them: the same, and kept for the next."""
    data = WHOLE[name]
    transport, made = wired(monkeypatch)
    cuts = [[data[:at], data[at:]] for at in range(1, len(data))]
    async with httpx2.AsyncClient(transport=transport) as http:
        for cut in cuts if pieces == "two" else [[bytes([byte]) for byte in data]]:
            task = asyncio.create_task(http.get("http://test/"))
            await settle()
            connection, _ = made[-1]
            for piece in cut:
                connection.data_received(piece)
                await settle()
            response = await task

            assert (200, b"hello world" if name == "chunked" else b"hello") == (response.status_code, response.content)
            made.clear()
            connection.connection_lost(None)


# Connections that are kept ------------------------------------------------------------------------------------------


@each_loop
@pytest.mark.parametrize(
    ("data", "connections"),
    [
        (OK, 1),
        (CHUNKED, 1),
        (EARLY, 1),
        (WHOLE["204"], 1),
        (WHOLE["closing"], 3),
        (WHOLE["HTTP/1.0"], 3),
        (WHOLE["more than asked for"], 3),
    ],
)
def test_a_connection_is_kept_after_an_answer_that_ended_well(data: bytes, connections: int, loop: str) -> None:
    """And after no other: one that the server closes, or on which there is something nobody had asked for."""

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await (saying(data) if connections > 1 else always(data))(reader, writer)

    async def go() -> int:
        async with serving(once) as served, client() as http:
            for _ in range(3):
                await http.get(served.url)
            return served.connections

    assert connections == run(loop, go())


@each_loop
def test_a_body_that_was_left_closes_its_connection(loop: str) -> None:
    """What would come of it would be read as the next answer's."""

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(HEAD + b"5\r\nhello\r\n")
        await reader.read()

    async def go() -> None:
        async with serving(endless) as served, client() as http:
            async with http.stream("GET", served.url) as response:
                assert b"hello" == await anext(response.aiter_raw())
            await served.until(lambda: served.ended == 1)

    run(loop, go())


@each_loop
def test_a_free_connection_that_the_server_ends_is_not_used(loop: str) -> None:
    """The loop has heard of the end, or has not yet: the system has."""

    async def go() -> int:
        async with serving(saying(OK)) as served, client() as http:
            await http.get(served.url)
            await served.until(lambda: served.ended == 1)
            await settle()
            await http.get(served.url)
            return served.connections

    assert 2 == run(loop, go())


@each_loop
def test_an_end_that_the_event_loop_has_not_seen(loop: str) -> None:
    """Between the server's end and the next request, this loop does not look at its sockets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(20)

        def answer() -> socket.socket:
            connection, _ = listener.accept()
            connection.recv(65536)
            connection.sendall(OK)
            return connection

        async def go() -> list[int]:
            async with client() as http:
                url = f"http://127.0.0.1:{listener.getsockname()[1]}"
                first, got = await asyncio.gather(asyncio.to_thread(answer), http.get(url))
                first.close()
                [connection] = http._transport._free  # type: ignore[attr-defined]
                poll = select.poll()
                poll.register(connection._transport.get_extra_info("socket").fileno(), select.POLLIN)
                poll.poll()
                second = asyncio.create_task(http.get(url))
                other = await asyncio.to_thread(answer)
                other.close()
                return [got.status_code, (await second).status_code]

        assert [200, 200] == run(loop, go())


@each_loop
def test_a_free_connection_is_closed_after_a_while(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And so are those beyond the number that are kept."""
    monkeypatch.setattr(transport_module, "LIMITS", httpx2.Limits(max_keepalive_connections=2, keepalive_expiry=0.05))

    async def go() -> None:
        async with serving(always(OK)) as served, client() as http:
            await asyncio.gather(*(http.get(served.url) for _ in range(4)))
            await served.until(lambda: served.ended == 4)

            assert (set(), []) == (http._transport._connections, http._transport._free)  # type: ignore[attr-defined]

    run(loop, go())


async def test_what_nobody_asked_for_closes_a_free_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be taken for the next answer."""
    transport, made = wired(monkeypatch)
    async with httpx2.AsyncClient(transport=transport) as http:
        task = asyncio.create_task(http.get("http://test/"))
        await settle()
        connection, wire = made[0]
        connection.data_received(OK)
        await task
        connection.data_received(OK)

        assert wire.aborted


def test_event_loops_one_after_another() -> None:
    """What is left of one loop is of no use on the next, and does no harm."""
    http = client()
    made: list[object] = []

    class Connection(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            made.append(self)
            while self.request.recv(65536):
                self.request.sendall(OK)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Connection) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()

        async def go() -> None:
            for _ in range(2):
                await http.get(f"http://127.0.0.1:{server.server_address[1]}")

        for loop in [*LOOPS, *LOOPS]:
            run(loop, go())
        server.shutdown()
        asyncio.run(http.aclose())

    assert 4 == len(made)


FORK = """
import asyncio, os, socket, sys, threading
import httpx2
from legato.http.transport import Transport

listener = socket.create_server(("127.0.0.1", 0))
url = f"http://127.0.0.1:{listener.getsockname()[1]}"

def serve(connection, number):
    while connection.recv(65536):
        connection.sendall(b"HTTP/1.1 200 OK\\r\\ncontent-length: 1\\r\\n\\r\\n%d" % number)

def accept():
    for number in range(2):
        threading.Thread(target=serve, args=(listener.accept()[0], number), daemon=True).start()

threading.Thread(target=accept, daemon=True).start()
transport = Transport()
http = httpx2.AsyncClient(transport=transport)
loop = asyncio.new_event_loop()
first = loop.run_until_complete(http.get(url)).text
child = os.fork()
if child == 0:
    async def go():
        await transport.aclose()
        return (await http.get(url)).text
    os._exit(0 if asyncio.run(go()) == "1" else 1)
_, status = os.waitpid(child, 0)
print(first, os.waitstatus_to_exitcode(status), loop.run_until_complete(http.get(url)).text)
"""


def test_a_fork_leaves_the_connections_to_its_parent() -> None:
    """The child makes its own, and closes only that."""
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=60)

    assert "0 0 0\n" == done.stdout, done.stderr


# Waiting --------------------------------------------------------------------------------------------------------------


@each_loop
@pytest.mark.parametrize("said", [b"", OK[:10], HEAD, HEAD + b"5\r\nhel", UNTIL_END])
def test_silence_is_a_read_timeout(said: bytes, loop: str) -> None:
    """Before the head, within it, and in the body."""

    async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(said)
        await reader.read()

    async def go() -> None:
        async with serving(stall) as served, client(timeout=httpx2.Timeout(30, read=0.05)) as http:
            with pytest.raises(httpx2.ReadTimeout) as caught:
                await http.get(served.url)
            await served.until(lambda: served.ended == 1)

            assert served.url == str(caught.value.request.url).rstrip("/")

    run(loop, go())


async def test_the_timer_is_put_off_by_each_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at when it is due, and what came meanwhile counts; it is moved only for a shorter wait."""
    transport, made = wired(monkeypatch)
    now = 0.0
    timers: list[tuple[float, Callable[[], object]]] = []

    class Handle:
        def cancel(self) -> None:
            timers.clear()

    def call_at(when: float, callback: Callable[[], object]) -> Handle:
        timers.append((when, callback))
        return Handle()

    def due() -> None:
        nonlocal now
        now, callback = timers.pop()
        callback()

    async with httpx2.AsyncClient(transport=transport) as http:
        request = http.build_request("GET", "http://test/", timeout=httpx2.Timeout(10))
        task = asyncio.create_task(http.send(request, stream=True))
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        monkeypatch.setattr(asyncio.get_running_loop(), "call_at", call_at)
        await settle()
        connection, _ = made[0]
        connection.data_received(HEAD)
        response = await task

        assert [10.0] == [when for when, _ in timers]
        request.extensions["timeout"]["read"] = 5.0
        body = response.aiter_raw()
        for moment in (4.0, 8.0):
            now = moment
            piece = asyncio.ensure_future(anext(body))
            await settle()
            connection.data_received(b"5\r\nhello\r\n")
            assert b"hello" == await piece
            assert [9.0] == [when for when, _ in timers]
        piece = asyncio.ensure_future(anext(body))
        await settle()
        due()
        assert ([13.0], False) == ([when for when, _ in timers], piece.done())
        due()
        with pytest.raises(httpx2.ReadTimeout):
            await piece
        monkeypatch.undo()


@each_loop
def test_a_server_that_takes_no_request_is_a_write_timeout(loop: str) -> None:
    """More than the system holds, to somebody who does not read."""

    async def go() -> None:
        gate = asyncio.Event()

        async def stuck(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await gate.wait()

        async with serving(stuck) as served, client(timeout=httpx2.Timeout(30, write=0.05)) as http:
            with pytest.raises(httpx2.WriteTimeout):
                await http.post(served.url, content=bytes(64 * 1024 * 1024))
            gate.set()

    run(loop, go())


@each_loop
def test_a_server_may_answer_before_it_has_read_everything(loop: str) -> None:
    """It refuses, and reads no more; the connection is not used again."""

    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
        await writer.drain()
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        await reader.read()

    async def go() -> int:
        async with serving(refuse) as served, client() as http:
            response = await http.post(served.url, content=bytes(64 * 1024 * 1024))
            await served.until(lambda: served.ended == 1)
            return response.status_code

    assert 413 == run(loop, go())


@each_loop
def test_no_connection_in_time(loop: str) -> None:
    """A server that says nothing while TLS begins."""

    async def go() -> None:
        async with serving(silent) as served, client(timeout=httpx2.Timeout(30, connect=0.05)) as http:
            with pytest.raises(httpx2.ConnectTimeout):
                await http.get(served.url.replace("http:", "https:"))
            await served.until(lambda: served.ended == 1)

    run(loop, go())


@each_loop
def test_nobody_listens(loop: str) -> None:
    """An address where there is no server, and a name that is none."""

    async def go() -> None:
        async with serving(silent) as served:
            pass
        async with client() as http:
            for url in (served.url, "http://nowhere.invalid/"):
                with pytest.raises(httpx2.ConnectError):
                    await http.get(url)

    run(loop, go())


@each_loop
def test_cancelled_at_any_moment_it_leaves_nothing(loop: str) -> None:
    """While it connects, sends, waits for the head, reads: the connection is closed, and nobody holds it."""

    async def slow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        for byte in HEAD + b"5\r\nhello\r\n":
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        await reader.read()

    async def read(http: httpx2.AsyncClient, url: str) -> None:
        async with http.stream("GET", url) as response:
            async for _ in response.aiter_raw():
                pass

    async def go() -> None:
        async with serving(slow) as served, client() as http:
            for steps in range(0, 120, 3):
                task = asyncio.create_task(read(http, served.url))
                for _ in range(steps):
                    await asyncio.sleep(0)
                assert not task.done()
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await settle()

                assert set() == http._transport._connections, steps  # type: ignore[attr-defined]
            await served.until(lambda: served.ended == served.connections)

    run(loop, go())


@each_loop
@pytest.mark.parametrize("begun", [HEAD + b"5\r\nhello\r\n", UNTIL_END], ids=["chunked", "until the end"])
def test_closing_the_client_ends_its_streams(loop: str, begun: bytes) -> None:
    """A reader who waits is told, and the server sees the end; what ends with the connection has not ended well."""

    async def go() -> None:
        async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asked(reader)
            writer.write(begun)
            await reader.read()

        async with serving(endless) as served:
            http = client()
            response = await http.send(http.build_request("GET", served.url), stream=True)
            body = response.aiter_raw()
            await anext(body)
            waiting = asyncio.ensure_future(anext(body))
            await settle()
            await http.aclose()
            with pytest.raises(httpx2.TransportError):
                await waiting
            await served.until(lambda: served.ended == 1)

    run(loop, go())


# Bounds ---------------------------------------------------------------------------------------------------------------


@each_loop
@pytest.mark.parametrize("secure", [False, True])
def test_a_reader_who_waits_holds_little(loop: str, secure: bool) -> None:
    """16 MiB are sent to somebody who does not read: what is here is bounded, and all of it comes in the end."""
    size = 16 * 1024 * 1024
    theirs, ours = secured()

    async def flood(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size + bytes(size))
        await writer.drain()
        await reader.read()

    async def go() -> None:
        async with serving(flood, theirs if secure else None) as served, client() as http:
            http._transport._tls = ours  # type: ignore[attr-defined]
            async with http.stream("GET", served.url) as response:
                exchange = response.extensions[EXCHANGE]
                held = -1
                while held < exchange._held:  # until nothing more comes in
                    held = exchange._held
                    await asyncio.sleep(0.05)
                assert MAX_HELD_BYTES < held <= MAX_HELD_BYTES + 256 * 1024
                assert size == len(await response.aread())

    run(loop, go())


@pytest.mark.parametrize(
    ("first", "more"),
    [
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
        (HEAD + b"0\r\n", b"x: y\r\n"),
        (HEAD + b"5", b";x=y"),
    ],
    ids=["informational", "head", "trailers", "extension"],
)
async def test_what_is_not_of_a_body_is_bounded(first: bytes, more: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """However it is cut, no endless head, trailer or extension of a chunk is taken."""
    transport, made = wired(monkeypatch)
    async with httpx2.AsyncClient(transport=transport) as http:
        task = asyncio.create_task(http.get("http://test/"))
        await settle()
        connection, wire = made[0]
        connection.data_received(first)
        taken = 0
        while not wire.aborted:
            connection.data_received(more)
            taken += len(more)
        with pytest.raises(httpx2.RemoteProtocolError):
            await task

        assert taken <= MAX_HEAD_BYTES + len(more)
        connection.connection_lost(None)


# TLS ------------------------------------------------------------------------------------------------------------------


def secured() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server on loopback shows, and what a client needs to believe it."""
    authority = trustme.CA()
    theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(theirs)
    ours = ssl.create_default_context()
    authority.configure_trust(ours)
    return theirs, ours


@each_loop
def test_tls(loop: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers come over it, and connections are kept; a cut is an error, and a stranger is not spoken to."""
    theirs, ours = secured()
    strange, _ = secured()

    async def go() -> None:
        async with client() as http:
            http._transport._tls = ours  # type: ignore[attr-defined]
            async with serving(always(CHUNKED), theirs) as served:
                for _ in range(3):
                    assert b"hello world" == (await http.get(served.url)).content
                assert 1 == served.connections
            async with serving(saying(CHUNKED[:-7]), theirs) as served:
                with pytest.raises(httpx2.RemoteProtocolError):
                    await http.get(served.url)
            async with serving(always(CHUNKED), strange) as served:
                with pytest.raises(httpx2.ConnectError, match="certificate"):
                    await http.get(served.url)
            assert set() == {each for each in http._transport._connections if each.exchange}  # type: ignore[attr-defined]

    run(loop, go())


# Several addresses of one host ---------------------------------------------------------------------------------------


class Made:
    """In the place of a connection."""

    closed = False

    def close(self) -> None:
        self.closed = True


async def test_the_first_address_that_answers_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """One refuses, and the next is tried at once; one is silent, and the next is tried as well."""
    monkeypatch.setattr(transport_module, "_STAGGER", 0.01)
    tried: list[str] = []

    async def connect(address: str) -> Any:
        tried.append(address)
        if address == "refuses":
            raise ConnectionRefusedError(address)
        if address == "silent":
            await asyncio.Event().wait()
        return address

    assert "answers" == await transport_module._first(connect, ["refuses", "silent", "answers", "late"])
    assert ["refuses", "silent", "answers"] == tried
    with pytest.raises(ConnectionRefusedError):
        await transport_module._first(connect, ["refuses", "refuses"])


async def test_two_that_answer_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """One is taken, and the other closed."""
    monkeypatch.setattr(transport_module, "_STAGGER", 0.01)
    both, made = asyncio.Event(), [Made(), Made()]

    async def connect(address: str) -> Any:
        if address == "1":
            asyncio.get_running_loop().call_soon(both.set)
        await both.wait()
        return made[int(address)]

    taken = await transport_module._first(connect, ["0", "1"])

    assert [each is not taken for each in made] == [each.closed for each in made]


async def test_addresses_of_both_families_alternate(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a family that leads nowhere costs one wait."""
    infos = [(socket.AF_INET6, "a"), (socket.AF_INET6, "b"), (socket.AF_INET, "c"), (socket.AF_INET, "d")]

    async def getaddrinfo(*_: object, **__: object) -> list[Any]:
        return [(family, socket.SOCK_STREAM, 6, "", (name, 80)) for family, name in infos]

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", getaddrinfo)

    assert ["a", "c", "b", "d"] == await transport_module._addresses("host", 80)
    assert ["::1"] == await transport_module._addresses("::1", 80)


# What goes by httpx2's own transport --------------------------------------------------------------------------------


async def upload() -> AsyncIterator[bytes]:
    yield b"abc"
    yield b"de"


@pytest.mark.parametrize(
    "asked_for",
    [
        {"method": "HEAD"},
        {"method": "POST", "content": upload()},
        {"method": "GET", "headers": {"connection": "close"}},
        {"method": "GET", "extensions": {"sni_hostname": "elsewhere"}},
    ],
    ids=["HEAD", "upload", "close", "extension"],
)
async def test_what_is_not_plain_is_carried_all_the_same(asked_for: dict[str, Any]) -> None:
    """By httpx2, which knows how."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await asked(reader)
        if b"chunked" in head.lower():
            await reader.readuntil(b"0\r\n\r\n")
        writer.write(OK[:-5] if head.startswith(b"HEAD") else OK)

    async with serving(answer) as served, client() as http:
        response = await http.request(url=served.url, **asked_for)

        assert (200, "5") == (response.status_code, response.headers["content-length"])
        assert EXCHANGE not in response.extensions


@pytest.mark.parametrize("header", [("x", "a\r\nb: c"), ("x\n", "a"), ("x", "a\0")])
async def test_a_head_that_would_forge_another_is_refused(header: tuple[str, str]) -> None:
    """As before, by httpx2, and nothing of it is sent."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert b"" == await reader.read()

    async with serving(answer) as served, client() as http:
        with pytest.raises(httpx2.LocalProtocolError):
            await http.post(served.url, headers=[header], content=b"abc")


async def test_contents_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    """That is done above the transport."""
    body = gzip.compress(b"hello")
    head = b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(body)
    async with serving(always(head + body)) as served, client() as http:
        assert b"hello" == (await http.get(served.url)).content


def test_trio_goes_by_httpx2() -> None:
    """There is no event loop of asyncio then."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with listener.accept()[0] as connection:
                connection.recv(65536)
                connection.sendall(OK)

        async def go() -> bytes:
            async with trio.open_nursery() as nursery, client() as http:
                nursery.start_soon(trio.to_thread.run_sync, answer)
                return (await http.get(f"http://127.0.0.1:{listener.getsockname()[1]}")).content

        assert b"hello" == trio.run(go)


async def test_a_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """By httpx2, which knows the rules of such variables."""
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    heads: list[bytes] = []

    async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await asked(reader))
        writer.write(OK)

    async with serving(proxy) as served:
        for name in ("http_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, served.url)
            async with new_http_client() as http:
                await http.get("http://model.invalid/v1")
            monkeypatch.delenv(name)

    assert [b"GET http://model.invalid/v1 HTTP/1.1"] * 2 == [head.split(b"\r\n")[0] for head in heads]


@pytest.mark.parametrize("missing", [False, True])
def test_without_httptools_it_is_httpx2(missing: bool) -> None:
    """It comes with the server; the SDK alone does without."""
    code = (
        "import sys\n"
        f"if {missing}: sys.modules['httptools'] = None\n"
        "from legato.provider import AsyncChatCompletionsProvider\n"
        "print(type(AsyncChatCompletionsProvider('http://test').http._transport).__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert ("AsyncHTTPTransport\n" if missing else "Transport\n") == done.stdout, done.stderr
