"""What our HTTP protocol takes and how long it waits: on a transport that only notes, by a clock that stands."""

from __future__ import annotations

import asyncio
import itertools
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from legato.server.connections import REST, Connections
from legato.server.protocol import GRACE, HEAD_BYTES, HEAD_FIELDS, LINGER, WAITING, HTTPProtocol
from legato.server.traffic import Traffic
from processes import Server, running
from test_serve import connected, until

TRAFFIC = Traffic(head_seconds=10, body_seconds=30, body_rate=1000, idle_seconds=100, write_seconds=20)
BODY_SECONDS = TRAFFIC.body_seconds + GRACE


class Noting:
    """A transport that notes what is written to it."""

    def __init__(self) -> None:
        self.written = b""
        self.closing = self.aborted = self.paused = False

    def write(self, data: bytes) -> None:
        self.written += data

    def close(self) -> None:
        self.closing = True

    def abort(self) -> None:
        self.closing = self.aborted = True

    def is_closing(self) -> bool:
        return self.closing

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def get_extra_info(self, name: str) -> Any:
        return None


class Wire:
    """A connection, and an application behind it that answers when it has read the body, unless it is held.

    Attributes:
        asked: targets and bodies, as far as they were asked and had come in full.
        go: what an answer waits for.
        lost: requests whose end the application was told of before their bodies'.
    """

    def __init__(self, connections: Connections | None = None) -> None:
        self.now = 0.0
        self.transport = Noting()
        self.asked: list[tuple[str, bytes]] = []
        self.fields: list[tuple[bytes, bytes]] = []
        self.lost = 0
        self.go = asyncio.Event()
        self.go.set()
        self.read = True
        self.connections = connections or Connections(TRAFFIC, clock=lambda: self.now)
        config = uvicorn.Config(self.app, interface="asgi3", lifespan="off", log_config=None, access_log=False)
        config.load()
        self.protocol = HTTPProtocol(config, ServerState(), {}, connections=self.connections)
        self.protocol.connection_made(self.transport)  # type: ignore[arg-type]

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        body, more = b"", self.read
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                self.lost += 1
                return
            body += message["body"]
            more = message["more_body"]
        self.asked.append((scope["path"], body))
        self.fields = scope["headers"]
        await self.go.wait()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok", "more_body": False})

    async def give(self, *pieces: bytes) -> None:
        """Let these pieces come, and everything that they lead to."""
        for piece in pieces:
            if not self.transport.closing:
                self.protocol.data_received(piece)
            await self.settle()

    async def settle(self) -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def after(self, seconds: float) -> None:
        """So much later."""
        self.now += seconds
        self.connections.look()
        await self.settle()

    @property
    def answers(self) -> list[int]:
        return [int(status) for status in re.findall(rb"HTTP/1.1 (\d+) ", self.transport.written)]


def head(*fields: str, method: str = "POST", target: str = "/x", host: str = "Host: a") -> bytes:
    lines = [f"{method} {target} HTTP/1.1", *([host] if host else []), *fields]
    return "".join(f"{line}\r\n" for line in lines).encode("latin-1") + b"\r\n"


GET = head(method="GET")
POST = head("Content-Length: 2") + b"{}"
CHUNKED = head("Transfer-Encoding: chunked")

# Heads ----------------------------------------------------------------------------------------------------------------

REFUSED = {
    "no Host": head(host=""),
    "two Hosts": head("Host: b"),
    "two equal Hosts": head("Host: a"),
    "two Hosts in other letters": head("hOST: b"),
    "a list of Hosts": head(host="Host: a, b"),
    "an empty Host": head(host="Host:"),
    "a Host with a path": head(host="Host: a/b"),
    "a Host with a user": head(host="Host: u@a"),
    "a Host with a space": head(host="Host: a b"),
    "a Host with a bad port": head(host="Host: a:b"),
    "a Host with two ports": head(host="Host: a:1:2"),
    "a Host of bytes": head(host="Host: \xe4"),
    "a Host in half a bracket": head(host="Host: [::1"),
    "a long Host": head(host="Host: " + "a" * 300),
    "two lengths": head("Content-Length: 2", "Content-Length: 3"),
    "two equal lengths": head("Content-Length: 2", "Content-Length: 2"),
    "a list of lengths": head("Content-Length: 2, 2"),
    "a length with a sign": head("Content-Length: +2"),
    "a length below nothing": head("Content-Length: -2"),
    "a length in hexadecimal": head("Content-Length: 0x2"),
    "a length in other digits": head("Content-Length: \xb2"),
    "an empty length": head("Content-Length: "),
    "a huge length": head("Content-Length: " + "9" * 30),
    "a length, then chunks": head("Content-Length: 2", "Transfer-Encoding: chunked"),
    "chunks, then a length": head("Transfer-Encoding: chunked", "Content-Length: 2"),
    "chunks twice": head("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    "chunks within": head("Transfer-Encoding: chunked, gzip"),
    "chunks without": head("Transfer-Encoding: gzip, chunked"),
    "no chunks": head("Transfer-Encoding: identity"),
    "odd chunks": head("Transfer-Encoding: xchunked"),
    "chunks in HTTP/1.0": CHUNKED.replace(b"1.1", b"1.0"),
    "a folded field": head("x: a", " b"),
    "a folded Host": head(" b"),
    "a space before the colon": head("x : a"),
    "a space before a field": head(" x: a"),
    "NUL in a value": head("x: a\0b"),
    "NUL in a name": head("x\0: a"),
    "NUL in the target": head(target="/\0"),
    "CR in a value": head("x: a\rb"),
    "LF alone": b"GET / HTTP/1.1\nHost: a\n\n",
    "no colon": head("x"),
    "bytes in the target": head(target="/\xe4"),
    "a fragment": head(target="/x#y"),
    "another host in the target": head(target="http://b/x"),
    "another port in the target": head(target="http://a:1/x"),
    "a user in the target": head(target="http://u@a/x"),
    "a target without a path": head(target="http://a"),
    "another scheme": head(target="ftp://a/x"),
    "no slash": head(target="x"),
    "a star": head(method="OPTIONS", target="*"),
    "a proxy's verb": head(method="CONNECT", target="a:80"),
    "no verb of HTTP": head(method="HELLO"),
    "HTTP/0.9": b"GET /x\r\n\r\n",
    "HTTP/2.0": GET.replace(b"1.1", b"2.0"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
    "many fields": head(*(f"x-{number}: a" for number in range(HEAD_FIELDS))),
    "a large field": head("x: " + "a" * HEAD_BYTES),
    "large fields": head(*(f"x-{number}: {'a' * 9000}" for number in range(8))),
    "a large target": head(target="/" + "a" * HEAD_BYTES),
    "a bad chunk": CHUNKED + b"zz\r\n{}\r\n",
    "a chunk with a prefix": CHUNKED + b"0x2\r\n{}\r\n",
    "a chunk that is longer": CHUNKED + b"2\r\n{}xx\r\n",
    "a huge chunk": CHUNKED + b"f" * 17 + b"\r\n",
}
TAKEN = {
    "a name": GET,
    "a name and a port": head(host="Host: a:80"),
    "an empty port is none": head(host="Host: 127.0.0.1"),
    "an address": head(host="Host: [::1]:8088"),
    "an underscore": head(host="Host: my_host.local"),
    "spaces around": head(host="Host:  a\t"),
    "HTTP/1.0 without a Host": b"GET /x HTTP/1.0\r\n\r\n",
    "the same host in the target": head(target="http://A/x"),
    "a query with marks": head(target="/x?u=http://b/&a=[]"),
    "chunks in capitals": head("Transfer-Encoding: Chunked") + b"0\r\n\r\n",
    "chunks with extensions": CHUNKED + b"2;a=b\r\n{}\r\n0\r\n\r\n",
    "as many fields as may be": head(*(f"x-{number}: a" for number in range(HEAD_FIELDS - 1))),
}


@pytest.mark.parametrize("name", REFUSED)
async def test_what_could_be_read_in_two_ways_is_refused(name: str) -> None:
    """Nobody is asked, one answer says why, and the connection ends; also where it comes byte by byte."""
    for pieces in ([REFUSED[name]], [bytes([byte]) for byte in REFUSED[name][:2000]]):
        wire = Wire()
        await wire.give(*pieces)
        if len(pieces) > 1 and len(REFUSED[name]) > 2000:
            continue
        assert (wire.answers, wire.transport.closing, wire.asked) == ([400], True, []), wire.transport.written


@pytest.mark.parametrize("name", TAKEN)
async def test_what_is_well_formed_is_taken(name: str) -> None:
    """As it stands, and byte by byte."""
    for pieces in ([TAKEN[name]], [bytes([byte]) for byte in TAKEN[name]]):
        wire = Wire()
        await wire.give(*pieces)
        assert wire.answers == [200], wire.transport.written


@pytest.mark.parametrize("name", REFUSED)
async def test_nothing_is_said_within_another_answer(name: str) -> None:
    """What is refused behind a request that is being answered ends the connection with that answer, which is whole."""
    wire = Wire()
    wire.go.clear()
    await wire.give(GET, REFUSED[name], GET)
    assert wire.transport.written == b""
    wire.go.set()
    await wire.settle()
    assert (wire.answers, wire.transport.closing) == ([200], True)
    assert wire.transport.written.endswith(b"\r\n\r\nok")


OFFERS = {
    "h2c": ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"],
    "h2c in other letters": ["connection: HTTP2-SETTINGS,UPGRADE", "upgrade: H2C", "http2-settings: AA"],
    "websocket": ["Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"],
    "TLS": ["Connection: upgrade", "Upgrade: TLS/1.0"],
    "two": ["Upgrade: h2c, foo/2", "Connection: keep-alive, Upgrade"],
}


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
@pytest.mark.parametrize("cut", ["whole", "body apart", "bytes"])
async def test_an_offer_of_another_protocol_is_declined_and_the_request_is_read(
    offer: str, framing: str, cut: str
) -> None:
    """With its body, wherever it is cut; and the connection goes on."""
    field = {"length": ["Content-Length: 5"], "chunked": ["Transfer-Encoding: chunked"], "none": []}[framing]
    body = {"length": b"hello", "chunked": b"5\r\nhello\r\n0\r\n\r\n", "none": b""}[framing]
    first = head(*OFFERS[offer], *field, "x: y")
    whole = (first + body) * 2 + GET
    pieces = {"whole": [whole], "body apart": [first, body, first, body, GET], "bytes": [bytes([b]) for b in whole]}
    wire = Wire()
    await wire.give(*pieces[cut])
    expected = b"" if framing == "none" else b"hello"
    assert wire.asked == [("/x", expected), ("/x", expected), ("/x", b"")]
    assert wire.answers == [200, 200, 200]


async def test_an_offer_keeps_the_rest_of_the_head() -> None:
    """Without the offer the head is what it was; what else is said of the connection counts."""
    wire = Wire()
    await wire.give(head("x: y", "Connection: Upgrade, close", "Upgrade: h2c", "empty:", "x: z"))
    assert wire.fields == [(b"host", b"a"), (b"x", b"y"), (b"connection", b"close"), (b"empty", b""), (b"x", b"z")]
    assert wire.transport.closing


async def test_a_trailer_adds_nothing_to_the_head() -> None:
    """What came in the head was checked; what comes behind the body is not looked at."""
    wire = Wire()
    await wire.give(CHUNKED + b"2\r\n{}\r\n0\r\nHost: b\r\nOrigin: http://b\r\n\r\n", GET)
    assert wire.answers == [200, 200]
    assert wire.fields == [(b"host", b"a")]


FLOODS = {
    "a trailer": (CHUNKED + b"2\r\n{}\r\n0\r\n", b"x: " + b"a" * 1000 + b"\r\n"),
    "a field of a trailer": (CHUNKED + b"2\r\n{}\r\n0\r\nx: ", b"a" * 1000),
    "the extension of a chunk": (CHUNKED + b"2;", b"a" * 1000),
    "a field of a head": (GET[:-2] + b"x: ", b"a" * 1000),
    "the name of a field": (GET[:-2], b"a" * 1000),
    "a target": (b"GET /", b"a" * 1000),
    "fields of a head": (GET[:-2], b"x: " + b"a" * 995 + b"\r\n"),
    "small fields of a head": (GET[:-2], b"a:\r\n" * 250),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_what_is_no_body_is_bounded(name: str) -> None:
    """However slowly it comes, it ends after some 64 KB."""
    start, piece = FLOODS[name]
    wire = Wire()
    await wire.give(start)
    for _ in range(HEAD_BYTES // 1000 + 5):
        await wire.give(piece)
    assert (wire.answers, wire.transport.closing, wire.asked) == ([400], True, [])


@pytest.mark.parametrize("request_", [GET, POST, CHUNKED + b"2\r\n{}\r\n0\r\n\r\n"])
async def test_of_many_requests_at_once_some_wait(request_: bytes) -> None:
    """As many as may wait are answered, in order, and then the connection ends; a client asks again for the others."""
    wire = Wire()
    wire.go.clear()
    await wire.give(request_ * 200, request_ * 200)
    assert wire.answers == []
    wire.go.set()
    for _ in range(WAITING + 5):
        await wire.settle()
    assert (wire.answers, wire.transport.closing) == ([200] * (WAITING + 1), True)


async def test_what_waits_behind_answers_is_bounded_together() -> None:
    """Whoever is beyond it is heard no more, and has the answers to what came before; then there is room again."""
    shared = Connections(Traffic(head_bytes=100_000))
    wires = [Wire(shared) for _ in range(5)]
    for wire in wires:
        wire.go.clear()
        await wire.give(GET, head(f"X-A: {'y' * 40_000}", method="GET"))
    assert shared.refused["head_bytes"] == 3
    for wire in wires:
        wire.go.set()
        await wire.settle()
        assert wire.answers[:1] == [200]
    assert [wire.transport.closing for wire in wires] == [False, False, True, True, True]
    assert [wire.answers for wire in wires[:2]] == [[200, 200]] * 2
    late = Wire(shared)
    late.go.clear()
    await late.give(GET, head(f"X-A: {'y' * 40_000}", method="GET"))
    late.go.set()
    await late.settle()
    assert (late.answers, late.transport.closing, shared.refused["head_bytes"]) == ([200, 200], False, 3)
    for wire in (*wires, late):
        wire.protocol.connection_lost(None)
    assert shared.hold_head("all", 100_000)


async def test_what_waits_behind_an_answer_is_bounded_in_bytes() -> None:
    """A body that nobody reads yet is not kept for as long as the answer before it takes."""
    wire = Wire()
    wire.go.clear()
    await wire.give(GET, head("Content-Length: 1000000"), *[b"a" * 10_000] * 20)
    assert len(wire.protocol.cycle.body) <= HEAD_BYTES + 10_000
    wire.go.set()
    await wire.settle()
    assert (wire.answers, wire.transport.closing) == ([200], True)


# Times ----------------------------------------------------------------------------------------------------------------

HEAD, BODY, IDLE = TRAFFIC.head_seconds, BODY_SECONDS, TRAFFIC.idle_seconds
UNTIL: dict[str, tuple[list[bytes], Iterable[bytes], float, list[int]]] = {
    "nothing": ([], [], HEAD, []),
    "empty lines": ([], itertools.repeat(b"\r\n"), HEAD, []),
    "half a head": ([GET[:20]], [], HEAD, [408]),
    "a head by and by": ([GET[:-2]], itertools.repeat(b"a: b\r\n"), HEAD, [408]),
    "a target by and by": ([b"GET /"], itertools.repeat(b"a"), HEAD, [408]),
    "nothing after an answer": ([GET], [], IDLE, [200]),
    "empty lines after an answer": ([GET], itertools.repeat(b"\r\n"), IDLE, [200]),
    "half a head after an answer": ([GET, GET[:20]], [], HEAD, [200, 408]),
    "half a head in the same piece": ([GET + GET[:20]], [], HEAD, [200, 408]),
    "a head by and by after an answer": ([POST, GET[:-2]], itertools.repeat(b"a: b\r\n"), HEAD, [200, 408]),
    "no body": ([head("Content-Length: 9")], [], BODY, [408]),
    "half a body": ([head("Content-Length: 9") + b"{"], [], BODY, [408]),
    "a body by and by": ([head("Content-Length: 9999")], itertools.repeat(b"a"), BODY + 0.04, [408]),
    "no chunk": ([CHUNKED], [], BODY, [408]),
    "half a chunk": ([CHUNKED + b"9\r\n{"], [], BODY, [408]),
    "chunks by and by": ([CHUNKED], itertools.repeat(b"1\r\n \r\n"), BODY + 0.04, [408]),
    "a size by and by": ([CHUNKED + b"0"], itertools.repeat(b"0"), BODY, [408]),
    "an extension by and by": ([CHUNKED + b"1;"], itertools.repeat(b"a"), BODY, [408]),
    "a trailer by and by": ([CHUNKED + b"0\r\nx: "], itertools.repeat(b"a"), BODY, [408]),
    "no end of chunks": ([CHUNKED + b"2\r\n{}\r\n"], [], BODY, [408]),
    "half a body after an answer": ([GET, head("Content-Length: 9") + b"{"], [], BODY, [200, 408]),
    "half a body in the same piece": ([GET + head("Content-Length: 9") + b"{"], [], BODY, [200, 408]),
    "half a body behind an offer": (
        [head("Connection: Upgrade", "Upgrade: h2c", "Content-Length: 9")],
        [],
        BODY,
        [408],
    ),
}
"""What comes at once, what comes then each second, after how many seconds the connection ends, and what it was told."""


@pytest.mark.parametrize("name", UNTIL)
async def test_what_does_not_come_in_time_ends_the_connection(name: str) -> None:
    """After its time, neither before nor ever so much later, and however busily it is put off."""
    first, more, seconds, answers = UNTIL[name]
    wire, pieces = Wire(), iter(more)
    await wire.give(*first)
    while wire.now < seconds - 1:
        await wire.after(1)
        await wire.give(*itertools.islice(pieces, 1))
        assert not wire.transport.closing, wire.now
    for _ in range(3):
        await wire.after(1)
    assert (wire.answers, wire.transport.closing) == (answers, True)
    await wire.after(TRAFFIC.write_seconds)
    assert wire.transport.aborted  # and not even its end need be taken
    wire.protocol.connection_lost(None)
    assert wire.connections.open == 0
    late = wire.connections.refused["head_seconds"], wire.connections.refused["body_seconds"]
    assert late == ({HEAD: (1, 0), IDLE: (0, 0)}.get(seconds, (0, 1)))


async def test_a_body_that_comes_as_fast_as_is_asked_may_take_its_time() -> None:
    """It is read to its end, however long that takes."""
    wire = Wire()
    await wire.give(head("Content-Length: 200000"))
    for _ in range(200):
        await wire.after(1)
        await wire.give(b"a" * 1000)
    assert wire.answers == [200]


async def test_a_request_that_waits_for_its_answer_has_time() -> None:
    """What is late is then the server."""
    wire = Wire()
    wire.go.clear()
    await wire.give(POST)
    await wire.after(10_000)
    assert not wire.transport.closing
    wire.go.set()
    await wire.settle()
    assert wire.answers == [200]


async def test_half_a_head_behind_an_answer_ends_the_connection_with_that() -> None:
    """The answer is not cut, and is the last."""
    wire = Wire()
    wire.go.clear()
    await wire.give(GET, GET[:20])
    for _ in range(100):
        await wire.after(1)
    assert not wire.transport.closing
    wire.go.set()
    await wire.settle()
    assert (wire.answers, wire.transport.closing) == ([200], True)


@pytest.mark.parametrize("half", [GET[:20], head("Content-Length: 9") + b"{"])
async def test_what_is_not_read_because_others_wait_has_its_time_afterwards(half: bytes) -> None:
    """While it is us who do not read, nobody is late."""
    wire = Wire()
    wire.go.clear()
    await wire.give(GET, GET, half)
    for _ in range(100):
        await wire.after(1)
    assert not wire.transport.closing
    wire.go.set()
    await wire.settle()
    assert (wire.answers, wire.transport.closing) == ([200, 200], False)
    for _ in range(int(BODY_SECONDS) + 1):
        await wire.after(1)
    assert (wire.answers, wire.transport.closing) == ([200, 200, 408], True)


async def test_the_rest_of_a_body_that_nobody_reads_has_little_time() -> None:
    """Its sender can see the answer, and does not keep the connection by going on."""
    wire = Wire()
    wire.read = False
    await wire.give(head("Content-Length: 1000000"))
    assert wire.answers == [200]
    await wire.after(LINGER - 1)
    await wire.give(b"a" * 1000)
    assert not wire.transport.closing
    await wire.after(2)
    assert wire.transport.closing


async def test_a_body_that_was_answered_before_its_end_is_no_reason_to_end() -> None:
    """If the rest of it comes, the connection goes on."""
    wire = Wire()
    wire.read = False
    await wire.give(head("Content-Length: 1000"), b"a" * 1000)
    await wire.after(LINGER + 1)
    await wire.give(GET)
    assert (wire.answers, wire.transport.closing) == ([200, 200], False)


async def test_who_takes_nothing_of_an_answer_is_cut_off() -> None:
    """Counted from when the server had to wait, and anew each time that something was taken."""
    wire = Wire()
    await wire.give(GET)
    for _ in range(3):
        wire.protocol.pause_writing()
        await wire.after(TRAFFIC.write_seconds - 1)
        wire.protocol.resume_writing()
        await wire.after(2)
        assert not wire.transport.closing
    wire.protocol.pause_writing()
    await wire.after(TRAFFIC.write_seconds)
    assert wire.transport.aborted


async def test_what_is_expected_is_forgotten_with_its_connection() -> None:
    """Nothing is left of it, at whatever moment it is lost."""
    moments: list[list[bytes]] = [[], [GET[:20]], [GET], [POST[:-1]], [GET, GET[:20]], [GET + GET[:20]]]
    for pieces in moments:
        wire = Wire()
        await wire.give(*pieces)
        wire.protocol.pause_writing()
        wire.protocol.connection_lost(None)
        await wire.after(1000)
        assert (wire.connections.open, wire.connections.waiting, wire.connections.make_room()) == (0, 0, False)
        await wire.settle()


# Room -----------------------------------------------------------------------------------------------------------------

LITTLE = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (60, 120))
from legato import Legato
from legato.server.serve import listen, serve

app = Legato("memory:", heartbeat=3600, page=False)
taken = []

@app.agent
async def agent(turn):
    try:
        while turn.message.text == "take":
            taken.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as exc:
        yield exc.strerror
    else:
        for each in taken:
            os.close(each)

listener = listen("127.0.0.1", 0)
serve(app, listener, on_ready=lambda: print("http://127.0.0.1:%d" % listener.getsockname()[1], flush=True))
"""
HEALTH = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


@pytest.fixture
def little(tmp_path: Path) -> Iterator[Server]:
    """A server that may have 120 descriptors, half of them for connections; at its start it had fewer."""
    (tmp_path / "little.py").write_text(LITTLE)
    with running("little", cwd=tmp_path) as server:
        yield server


def ask(server: Server, request: bytes = HEALTH) -> bytes:
    """All that is answered, until the connection ends or the answer has."""
    with connected(server) as sock:
        sock.sendall(request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1))
        return until(sock, lambda got: False)


def send(server: Server, session: str, text: str) -> None:
    body = b'{"text":"%b"}' % text.encode()
    target = f"/api/sessions/{session}/messages?wait=true"
    request = f"POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    assert b"HTTP/1.1 20" in ask(server, request)


def begin(server: Server) -> str:
    made = ask(server, b"POST /api/sessions HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}")
    found = re.search(rb'"id":"([^"]+)"', made)
    assert found, made
    return found[1].decode()


def streaming(server: Server, session: str) -> tuple[socket.socket, bytes]:
    """A connection that asks for a stream, and the beginning of what it is told."""
    sock = connected(server)
    sock.sendall(f"GET /stream?sessionId={session} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    return sock, sock.recv(500)


def eventually(holds: Callable[[], bool]) -> None:
    """The bound is a safety net."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_of_more_connections_than_may_be_the_idle_make_room_and_then_the_new_are_refused(little: Server) -> None:
    """With a word, in the log too; and when there is room again, all is as before."""
    session = begin(little)
    idle = [connected(little) for _ in range(30)]
    for sock in idle:
        sock.sendall(HEALTH)
        assert until(sock, lambda got: got.endswith(b"}")).startswith(b"HTTP/1.1 200")
    streams, told = zip(*[streaming(little, session) for _ in range(80)], strict=True)
    assert {answer[:12] for answer in told} == {b"HTTP/1.1 200", b"HTTP/1.1 503"}
    assert sum(answer.startswith(b"HTTP/1.1 200") for answer in told) == 60
    assert sum(b"too_many_connections" in answer and b"retry-after" in answer for answer in told) == 20
    assert [sock.recv(500) for sock in idle] == [b""] * 30  # they made room
    assert b"too_many_connections" in ask(little)
    assert little.said("refused")
    for sock in (*idle, *streams):
        sock.close()
    eventually(lambda: ask(little).startswith(b"HTTP/1.1 200"))
    assert little.output.count("refused") == 1


def test_without_a_descriptor_a_connection_is_refused_and_the_server_comes_back(little: Server) -> None:
    """It says so, does not spin meanwhile, and needs no new start."""
    session = begin(little)
    streams = [streaming(little, session)[0] for _ in range(20)]
    send(little, session, "take")
    spent = processor_seconds(little)
    more, told = zip(*[streaming(little, session) for _ in range(5)], strict=True)
    assert b"too_many_connections" in told[-1]
    assert little.said("no descriptor")
    time.sleep(10 * REST)
    assert processor_seconds(little) - spent < 5 * REST
    for sock in (*streams, *more):
        sock.close()
    eventually(lambda: ask_once(little).startswith(b"HTTP/1.1 200"))
    send(little, session, "give back")
    assert ask(little).startswith(b"HTTP/1.1 200")


def ask_once(server: Server) -> bytes:
    """What is answered, or that nothing is."""
    try:
        return ask(server)
    except OSError:
        return b""


def processor_seconds(server: Server) -> float:
    out = subprocess.run(["ps", "-o", "cputimes=", "-p", str(server.process.pid)], capture_output=True, check=True)
    return float(out.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Reads /proc; run it on Linux.")
def test_a_process_takes_the_descriptors_that_it_may_have(little: Server) -> None:
    """Without being told to."""
    limits = Path(f"/proc/{little.process.pid}/limits").read_text()
    assert re.search(r"Max open files +120 +120 ", limits)
