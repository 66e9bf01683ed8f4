"""What is in flight is bounded together: bodies that have not come in full, and answers that have not been taken."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import select
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from legato.server.app import Legato
from legato.server.traffic import (
    LOG_SECONDS,
    LOOK_EVERY,
    PRESSED_AFTER,
    PRESSED_RATE,
    SMALL,
    Budget,
    BudgetSpent,
    Held,
    Refusals,
    Traffic,
)
from legato.testing import ASGIResponse, Driver
from processes import Server, running
from test_serve import connected, until

LARGE = SMALL + 1


class Scale:
    """A budget of ten large ones, a clock that stands, and who has had to let go."""

    def __init__(self) -> None:
        self.now = 0.0
        self.gone: list[str] = []
        self.budget = Budget(10 * LARGE, "things", clock=lambda: self.now)

    def hold(self, name: str = "", size: int = LARGE) -> Any:
        return self.budget.hold(size, lambda: self.gone.append(name))


def test_a_budget_is_for_all_together() -> None:
    """What does not fit is refused, until something is given back."""
    scale = Scale()
    held = [scale.hold() for _ in range(10)]
    with pytest.raises(BudgetSpent) as refused:
        scale.hold()
    assert (refused.value.status, refused.value.code) == (503, "too_much_in_flight")
    with held[0]:
        pass
    with scale.hold(), pytest.raises(BudgetSpent):
        scale.hold()
    assert (scale.budget.used, scale.gone) == (9 * LARGE, [])


def test_what_is_larger_than_the_budget_is_let_in_alone() -> None:
    """Else nobody could ever have it."""
    scale = Scale()
    with scale.hold(size=100 * LARGE), pytest.raises(BudgetSpent):
        scale.hold()
    with scale.hold(), pytest.raises(BudgetSpent):
        scale.hold(size=100 * LARGE)
    assert scale.budget.used == 0


def test_what_grows_is_counted_as_it_grows() -> None:
    """Up to the budget, and as far as it likes if it is alone."""
    scale = Scale()
    with scale.hold(size=0) as held:
        held.grow(5 * LARGE)
        held.grow(4 * LARGE)
        assert scale.budget.used == 5 * LARGE
        with scale.hold(size=5 * LARGE), pytest.raises(BudgetSpent):
            held.grow(6 * LARGE)
        assert scale.budget.used == 5 * LARGE
        held.grow(20 * LARGE)
    assert scale.budget.used == 0


def test_large_ones_are_no_reason_to_refuse_a_small_one() -> None:
    """As much again as the budget is kept for those, and no more."""
    scale = Scale()
    for _ in range(10):
        scale.hold()
    for _ in range(10):
        scale.hold(size=SMALL)
    with pytest.raises(BudgetSpent):
        scale.hold(size=SMALL)


def test_who_hardly_moves_gives_way_the_slowest_first() -> None:
    """As many as are needed, and nobody who moves or has just come."""
    scale = Scale()
    held = {name: scale.hold(name) for name in "abcdefghij"}
    for rate, name in enumerate("abcdefghij"):
        held[name].move(int(PRESSED_RATE * rate / 5))
    scale.now = PRESSED_AFTER
    scale.hold("k", 2 * LARGE)
    assert scale.gone == ["a", "b"]
    held["a"].grow(100 * LARGE)  # it does not know yet
    with held["b"]:
        pass
    assert scale.budget.used == 10 * LARGE
    scale.hold("l", 3 * LARGE)
    assert scale.gone == ["a", "b", "c", "d", "e"]
    with pytest.raises(BudgetSpent):
        scale.hold("m")
    assert scale.gone == ["a", "b", "c", "d", "e"]


@pytest.mark.parametrize("slow", [0, 300])
def test_a_flood_costs_each_of_it_no_look_at_all_others(slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether it is refused, or others give way to it."""
    looked = []
    rate = Held.rate
    monkeypatch.setattr(Held, "rate", lambda self, now: looked.append(self) or rate(self, now))  # type: ignore[func-returns-value]
    scale = Scale()
    scale.budget.total = 600 * LARGE
    for number in range(600):
        scale.hold().move(0 if number < slow else 10 * PRESSED_RATE)
    scale.now = PRESSED_AFTER
    refused = 0
    for _ in range(400):
        try:
            scale.hold().move(10 * PRESSED_RATE)
        except BudgetSpent:
            refused += 1
    assert (len(scale.gone), refused) == (slow, 400 - slow)
    assert len(looked) <= 600
    scale.now += LOOK_EVERY  # then it is looked anew
    with pytest.raises(BudgetSpent):
        scale.hold()
    assert len(looked) > 600


def test_nobody_gives_way_for_who_is_refused_all_the_same() -> None:
    """It would be for nothing."""
    scale = Scale()
    scale.hold("slow")
    for _ in range(9):
        scale.hold("fast").move(PRESSED_RATE)
    scale.now = PRESSED_AFTER
    with pytest.raises(BudgetSpent):
        scale.hold("large", 5 * LARGE)
    assert scale.gone == []


def test_refusals_are_counted_and_told_once_per_so_often(caplog: pytest.LogCaptureFixture) -> None:
    """A line says how many there were since the one before."""
    now = 0.0
    refusals = Refusals("%d refused", clock=lambda: now)
    for _ in range(5):
        refusals.add()
    now = LOG_SECONDS
    refusals.add()
    assert refusals.count == 6
    assert caplog.messages == ["1 refused", "5 refused"]


# Bodies ---------------------------------------------------------------------------------------------------------------

ROUTES = {
    "session": "/api/sessions",
    "message": "/api/sessions/s/messages",
    "stream": "/stream/s/message",
    "fork": "/api/sessions/s/fork",
    "rewind": "/api/sessions/s/rewind",
    "response": "/v1/responses",
    "completion": "/v1/chat/completions",
    "thread": "/api/sdk/chat",
    "deva message": "/api/sdk/chat/s/messages",
    "markdown": "/web/markdown",
}


class Sending:
    """A request whose body comes as it is told.

    Args:
        app: that is asked.
        path: of the route.
        length: that its head promises; None: it comes in chunks.
    """

    def __init__(self, app: Legato, path: str, length: int | None) -> None:
        self.sent: list[Any] = []
        self._coming: asyncio.Queue[Any] = asyncio.Queue()
        framing = (b"transfer-encoding", b"chunked") if length is None else (b"content-length", b"%d" % length)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": None,
            "headers": [(b"host", b"localhost"), framing],
        }  # fmt: skip
        self.task = asyncio.create_task(app(scope, self._coming.get, self._send))

    async def _send(self, message: Any) -> None:
        self.sent.append(message)

    async def give(self, body: bytes, more: bool = True) -> None:
        self._coming.put_nowait({"type": "http.request", "body": body, "more_body": more})
        for _ in range(20):
            await asyncio.sleep(0)

    async def answer(self) -> ASGIResponse:
        await asyncio.wait_for(self.task, 30)
        headers = {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}
        return ASGIResponse(self.sent[0]["status"], headers, b"".join(each["body"] for each in self.sent[1:]))


async def echo(turn: Any) -> Any:
    yield turn.message.text


async def application(**traffic: Any) -> Legato:
    app = Legato("memory:", agents=[echo], traffic=Traffic(**traffic))
    await app.start()
    async with asyncio.timeout(30):
        await Driver(app, lifespan=False).request("POST", "/api/sessions", json={"id": "s"})
        await Driver(app, lifespan=False).request("POST", "/web/markdown", json={"text": "x"})  # loads the pages
    return app


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("length", [100, 1_000_000, None])
@pytest.mark.parametrize("comes", [b"", b'{"a":'])
async def test_half_a_body_is_refused_in_the_words_of_its_route(route: str, length: int | None, comes: bytes) -> None:
    """After its time; and nothing is left of it."""
    app = await application(body_seconds=0.05)
    sending = Sending(app, ROUTES[route], length)
    if comes:
        await sending.give(comes)
    answer = await sending.answer()
    assert answer.status == 408
    assert "request_timeout" in answer.text
    assert app.life.bodies.used == 0
    await app.stop()


@pytest.mark.parametrize("length", [1_000_000, None])
async def test_a_body_that_drips_has_no_more_time(length: int | None) -> None:
    """What comes too slowly earns it none."""
    app = await application(body_seconds=0.1, body_rate=1000)
    sending = Sending(app, "/api/sessions", length)
    until = time.monotonic() + 60
    while not sending.task.done():
        assert time.monotonic() < until
        await sending.give(b" ")
        await asyncio.sleep(0.02)
    assert (await sending.answer()).status == 408
    await app.stop()


@pytest.mark.parametrize("length", [40, None])
async def test_a_body_that_comes_fast_enough_is_read(length: int | None) -> None:
    """Though it takes longer than a slow one may."""
    app = await application(body_seconds=0.1, body_rate=1)
    sending = Sending(app, "/api/sessions", length)
    for _ in range(38):
        await sending.give(b" ")
        await asyncio.sleep(0.01)
    await sending.give(b"{}", more=False)
    assert (await sending.answer()).status == 201
    await app.stop()


async def test_a_body_of_small_pieces_sets_few_timers(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many they are, and whether it is in time."""
    times: list[float | None] = []
    reschedule = asyncio.Timeout.reschedule

    def noted(timeout: asyncio.Timeout, when: float | None) -> None:
        times.append(when)
        reschedule(timeout, when)

    app = await application(body_seconds=10, body_rate=100)
    monkeypatch.setattr(asyncio.Timeout, "reschedule", noted)
    sending = Sending(app, "/api/sessions", 1_002)
    for _ in range(1_000):
        await sending.give(b" ")
    await sending.give(b"{}", more=False)
    assert (await sending.answer()).status == 201
    assert 10 <= len(times) <= 120
    await app.stop()


@pytest.mark.parametrize("route", ROUTES)
async def test_unfinished_bodies_are_bounded_together(route: str) -> None:
    """By what their heads promise or by what has come; small ones are read all the same, and large ones later."""
    app = await application(body_bytes=3_000_000)
    waiting = [Sending(app, ROUTES[route], 1_000_000), *(Sending(app, ROUTES[route], None) for _ in range(2))]
    for each in waiting:
        await each.give(b" " * 900_000)
    for late in (Sending(app, ROUTES[route], 1_000_000), Sending(app, ROUTES[route], None)):
        await late.give(b" " * 900_000)
        answer = await late.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "2")
        assert "too_much_in_flight" in answer.text
    small = Sending(app, "/api/sessions", 2)
    await small.give(b"{}", more=False)
    assert (await small.answer()).status == 201
    for each in waiting:
        await each.give(b" " * 100_000, more=False)
        assert (await each.answer()).status in (400, 422)
    assert app.life.bodies.used == 0
    again = Sending(app, "/api/sessions", 900_002)
    await again.give(b" " * 900_000)
    await again.give(b"{}", more=False)
    assert (await again.answer()).status == 201
    await app.stop()


async def test_a_body_that_hardly_comes_gives_way() -> None:
    """Those who only promise do not keep others from sending."""
    app = await application(body_bytes=3_000_000)
    clock = app.life.bodies.clock
    idle = [Sending(app, "/api/sessions", 1_000_000) for _ in range(3)]
    await idle[0].give(b" " * 900_000)
    app.life.bodies.clock = lambda: clock() + 2 * PRESSED_AFTER
    honest = Sending(app, "/api/sessions", 1_000_000)
    await honest.give(b"{}" + b" " * 999_998, more=False)
    assert (await honest.answer()).status == 201
    statuses = [each.sent[0]["status"] if each.task.done() else 0 for each in idle]
    assert sorted(statuses) == [0, 0, 408]
    assert statuses[0] == 0
    await app.stop()
    for each in idle:
        each.task.cancel()


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize("came", [b"", b"{}"])
async def test_less_than_the_head_promises_is_no_body(route: str, came: bytes) -> None:
    """What a layer below has dropped does not look like an absent body."""
    app = await application()
    sending = Sending(app, ROUTES[route], 15)
    await sending.give(came, more=False)
    answer = await sending.answer()
    assert answer.status in (400, 422), answer.text
    assert "15" in answer.text
    await app.stop()


@pytest.mark.parametrize("path", [f"/api/sessions/s/{verb}" for verb in ("cancel", "fork", "rewind")])
async def test_a_body_that_may_be_left_out_may_not_get_lost(path: str) -> None:
    """A cancel of one run would else stop all."""
    app = await application()
    sending = Sending(app, path, 15)
    await sending.give(b"", more=False)
    assert (await sending.answer()).status == 400
    await app.stop()


async def test_a_body_beyond_the_bound_is_refused_before_it_comes() -> None:
    """By its head."""
    app = await application()
    answer = await Sending(app, "/api/sessions", 5_000_000).answer()
    assert answer.status == 413
    await app.stop()


# Answers --------------------------------------------------------------------------------------------------------------


class Taking:
    """A request whose answer is taken piece by piece, as it is told."""

    def __init__(self, app: Legato, path: str, method: str = "GET", body: bytes = b"") -> None:
        self.sent: list[Any] = []
        self.room = asyncio.Semaphore(0)
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "scheme": "http",
            "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": None,
            "headers": [(b"host", b"localhost"), (b"content-length", b"%d" % len(body))],
        }  # fmt: skip
        self._body: list[Any] = [{"type": "http.request", "body": body, "more_body": False}]
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        return self._body.pop() if self._body else await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        if message["type"] == "http.response.start" or message["body"]:
            await self.room.acquire()
        self.sent.append(message)

    async def take(self, count: int = 1) -> None:
        """So many pieces, the head being one, as far as there are so many."""
        for _ in range(count):
            self.room.release()
        for _ in range(5 * count + 100):
            await asyncio.sleep(0)

    @property
    def size(self) -> int:
        return sum(len(each["body"]) for each in self.sent[1:])


async def talkative(**traffic: Any) -> Legato:
    """An application whose session has some 1.5 MB of messages."""
    app = await application(**traffic)
    async with asyncio.timeout(60):
        for number in range(4):
            text = str(number) * 190_000
            driver = Driver(app, lifespan=False)
            answer = await driver.request("POST", "/api/sessions/s/messages?wait=true", json={"text": text})
            assert answer.status < 300, answer.text
        while app.runner.running:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    return app


LONG = ["/api/sessions/s/messages", "/api/sessions/s/events", "/api/sessions/s/export", "/openapi.json"]


@pytest.mark.parametrize("path", LONG)
async def test_an_answer_is_written_as_it_is_taken(path: str) -> None:
    """In pieces, none of which is handed over before the one before it has gone; and it is the same answer."""
    app = await talkative()
    whole = await Driver(app, lifespan=False).request("GET", path)
    taking = Taking(app, path)
    for taken in range(1, 5):
        await taking.take()
        while len(taking.sent) < taken:  # noqa: ASYNC110  # what is asked for first is made in a thread
            await asyncio.sleep(0.001)
        assert len(taking.sent) == taken
        assert taking.size <= (taken - 1) * SMALL
    await taking.take(1000)
    await asyncio.wait_for(taking.task, 30)
    assert b"".join(each["body"] for each in taking.sent[1:]) == whole.body
    assert (whole.status, len(whole.body) > SMALL) == (200, True)
    assert app.life.answers.used == 0
    await app.stop()


@pytest.mark.parametrize("path", LONG[:3])
async def test_who_takes_nothing_of_an_answer_is_let_go(path: str) -> None:
    """Also under a server that would wait for ever."""
    app = await talkative(write_seconds=0.1)
    taking = Taking(app, path)
    await taking.take(3)
    await asyncio.wait_for(taking.task, 30)
    assert taking.sent[-1]["more_body"]
    assert app.life.answers.used == 0
    assert app.refused["write_seconds"] == 1
    await app.stop()


@pytest.mark.parametrize("path", LONG[:3])
async def test_answers_that_are_not_taken_are_bounded_together(path: str) -> None:
    """What does not fit is refused at once, small answers are not, and there is room again when they are taken."""
    app = await talkative(answer_bytes=1_000_000)
    size = len((await Driver(app, lifespan=False).request("GET", path)).body)
    several = max(1, 1_000_000 // size)
    stalled = [Taking(app, path) for _ in range(several)]
    for each in stalled:
        await each.take(2)
    refused = await Driver(app, lifespan=False).request("GET", path)
    assert (refused.status, refused.headers["retry-after"]) == (503, "2")
    assert "too_much_in_flight" in refused.text
    assert (await Driver(app, lifespan=False).request("GET", "/health")).status == 200
    for each in stalled:
        await each.take(1000)
        await asyncio.wait_for(each.task, 30)
    assert (await Driver(app, lifespan=False).request("GET", path)).status == 200
    await app.stop()


async def test_a_stalled_answer_gives_way_to_a_reader_who_reads() -> None:
    """Those who never read do not keep others from reading."""
    app = await talkative(answer_bytes=1_000_000)
    stalled = Taking(app, LONG[0])
    await stalled.take(2)
    clock = app.life.answers.clock
    app.life.answers.clock = lambda: clock() + 10 * PRESSED_AFTER
    assert (await Driver(app, lifespan=False).request("GET", LONG[0])).status == 200
    await asyncio.wait_for(stalled.task, 30)
    assert stalled.sent[-1]["more_body"]
    await app.stop()


async def test_what_was_done_is_answered_whatever_is_in_flight() -> None:
    """It would else be done again."""
    app = await talkative(answer_bytes=1_000_000)
    stalled = Taking(app, LONG[0])
    await stalled.take(2)
    body = {"model": "echo", "input": "x" * 200_000}
    answer = await Driver(app, lifespan=False).request("POST", "/v1/responses", json=body)
    assert (answer.status, len(answer.body) > 200_000) == (200, True)
    stalled.task.cancel()
    await app.stop()


# A process ------------------------------------------------------------------------------------------------------------

BOUNDED = """
from legato import Legato
from legato.server.traffic import Traffic

app = Legato("memory:", heartbeat=3600.0, page=False, traffic=Traffic(head_bytes=1_000_000))

@app.agent
async def agent(turn):
    yield "x" * int(turn.message.text)
"""


@pytest.fixture(scope="module")
def bounded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    file = tmp_path_factory.mktemp("bounded") / "bounded.py"
    file.write_text(BOUNDED)
    with running("legato", "serve", str(file), "--port", "0") as server:
        yield server


LARGE_HEADS = {
    "fields": b"GET /ready HTTP/1.1\r\nHost: localhost\r\n"
    + b"".join(b"X-%03d: %s\r\n" % (n, b"y" * 230) for n in range(200)),
    "a value": b"GET /ready HTTP/1.1\r\nHost: localhost\r\nX-A: " + b"y" * 50_000,
    "a target": b"GET /ready?" + b"y" * 50_000,
    "empty fields": b"GET /ready HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d:\r\n" % n for n in range(250)),
}


@pytest.mark.parametrize("name", LARGE_HEADS)
def test_heads_that_do_not_end_are_bounded_together(bounded: Server, name: str) -> None:
    """Of whatever they are made. Small ones are read all the same, and large ones when there is room."""
    head, most = LARGE_HEADS[name], 30 if name == "empty fields" else 20
    socks = [connected(bounded) for _ in range(most + 30)]
    deadline, refused = time.monotonic() + 60, b""
    for sock in socks:
        sock.sendall(head)
    waiting = list(socks)
    while len(waiting) > most:
        assert time.monotonic() < deadline
        for sock in select.select(waiting, [], [], 1)[0]:
            refused = until(sock, lambda got: b"}" in got)
            assert refused.startswith(b"HTTP/1.1 503 "), refused[:100]
            waiting.remove(sock)
    assert len(waiting) >= most // 2
    assert b"too_much_in_flight" in refused
    small = connected(bounded)
    for piece in (b"GET /ready HTTP/1.1\r\nHost: loc", b"alhost\r\nX-A: " + b"y" * 3_000, b"\r\n\r\n"):
        small.sendall(piece)
        time.sleep(0.01)
    assert until(small, lambda got: b"}" in got).startswith(b"HTTP/1.1 200 ")
    for sock in (*socks, small):
        sock.close()
    while True:
        assert time.monotonic() < deadline
        with connected(bounded) as late, contextlib.suppress(ConnectionError):  # while it has not seen the others go
            for start in range(0, len(head), 20_000):
                late.sendall(head[start : start + 20_000])
                time.sleep(0.01)
            late.sendall(b" HTTP/1.1\r\nHost: localhost\r\n\r\n" if name == "a target" else b"\r\n\r\n")
            if until(late, lambda got: b"}" in got).startswith(b"HTTP/1.1 200 "):
                break


def resident(server: Server) -> float:
    """Memory of the server in MB."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{server.process.pid}/status").read_text())[1]) / 1024  # type: ignore[index]


def ask(server: Server, method: str, path: str, body: Any = None) -> bytes:
    """The whole answer."""
    text = b"" if body is None else json.dumps(body).encode()
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {len(text)}\r\n\r\n"
    with connected(server) as sock:
        sock.sendall(head.encode() + text)
        return until(sock, lambda got: False)


def session_of(server: Server, *sizes: int) -> str:
    """A session with answers of these sizes."""
    found = re.search(rb'"id":"([^"]+)"', ask(server, "POST", "/api/sessions", {}))
    assert found
    session = found[1].decode()
    for size in sizes:
        answer = ask(server, "POST", "/v1/responses", {"input": str(size), "conversation": session})
        assert answer.startswith(b"HTTP/1.1 200"), answer[:500]
    return session


linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Reads /proc; run it on Linux.")


@linux
@pytest.mark.parametrize("framing", ["length", "chunks"])
def test_unfinished_bodies_cost_no_more_than_their_budget(bounded: Server, framing: str) -> None:
    """One hundred and fifty of 4 MB, each short of its last byte."""
    before, size = resident(bounded), 4_000_000
    head = b"POST /api/sessions HTTP/1.1\r\nHost: localhost\r\n"
    head += b"Content-Length: %d\r\n\r\n" % size if framing == "length" else b"Transfer-Encoding: chunked\r\n\r\n"
    body = b" " * (size - 1) if framing == "length" else b"%x\r\n%b\r\n" % (size - 1, b" " * (size - 1))
    sockets: list[socket.socket] = []
    for _ in range(150):
        sock = connected(bounded)
        sockets.append(sock)
        try:
            sock.sendall(head + body)
        except OSError:  # refused by now
            continue
    assert resident(bounded) - before < 120
    assert ask(bounded, "GET", "/health").startswith(b"HTTP/1.1 200")
    assert ask(bounded, "POST", "/api/sessions", {}).startswith(b"HTTP/1.1 201")
    for sock in sockets:
        sock.close()


@linux
@pytest.mark.parametrize("path", ["messages", "events", "export"])
def test_answers_that_nobody_reads_cost_no_more_than_their_budget(bounded: Server, path: str) -> None:
    """One hundred of 6 MB."""
    session = session_of(bounded, *[1_000_000] * 3)
    target = f"/api/sessions/{session}/{path}"
    assert len(ask(bounded, "GET", target)) > 3_000_000
    before, sockets = resident(bounded), []
    for _ in range(100):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(connected_address(bounded))
        sock.sendall(f"GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        sockets.append(sock)
    assert ask(bounded, "GET", "/health").startswith(b"HTTP/1.1 200")
    assert resident(bounded) - before < 150  # of 600, in and out of the budget
    for sock in sockets:
        sock.close()


def connected_address(server: Server) -> Any:
    with connected(server) as sock:
        return sock.getpeername()
