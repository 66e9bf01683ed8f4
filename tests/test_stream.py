"""The pump: what goes out in which writes, and everything that ends a stream."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from driving import chatting, decoded, logged
from facts import draft
from legato.errors import StoreError, TooMany
from legato.event import Event
from legato.log import Store
from legato.server import stream as module
from legato.server.stream import WRITE_BYTES, Pump, Streams
from legato.store.memory import MemoryStore

FIRST = b"first\n"


class Wire:
    """The two ends that a server gives an application; ``write`` may be made to wait or to fail."""

    def __init__(self, write: Callable[[bytes], Any] | None = None) -> None:
        self.writes: list[bytes] = []
        self.head: dict[str, Any] = {}
        self.ended = False
        self.left = asyncio.Event()
        self.wrote = asyncio.Event()
        self._write = write

    async def send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.head = message
            return
        if self._write is not None:
            await self._write(message["body"])
        self.ended = not message["more_body"]
        if message["body"]:
            self.writes.append(message["body"])
        self.wrote.set()

    async def receive(self) -> dict[str, Any]:
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def until(self, count: int) -> None:
        async with asyncio.timeout(30):
            while len(self.writes) < count:
                self.wrote.clear()
                await self.wrote.wait()


async def stored(*texts: str) -> MemoryStore:
    store = MemoryStore()
    await store.append("s", [draft("session.created", {})])
    await say(store, *texts)
    return store


async def say(store: Store, *texts: str) -> None:
    if texts:
        await store.append("s", [draft("session.rewound", {"to": text}) for text in texts])


def encode(event: Event) -> bytes:
    return f"{event.data['to']}\n".encode() if "to" in event.data else b""


def pump(store: Store, after: int = 0, *, interval: float = 3600.0) -> Pump:
    beat = lambda cursor: f"beat {cursor}\n".encode()  # noqa: E731
    return Pump(store, "s", after, encode=encode, heartbeat=beat, interval=interval)


def started(one: Pump, wire: Wire, headers: Sequence[tuple[bytes, bytes]] = ()) -> asyncio.Task[None]:
    return asyncio.create_task(one.run(FIRST, headers, wire.receive, wire.send))


async def over(task: asyncio.Task[None]) -> None:
    async with asyncio.timeout(30):
        await task


async def test_the_first_frame_goes_out_by_itself() -> None:
    """Before the log is read, with the head."""
    wire, one = Wire(), pump(await stored())
    task = started(one, wire, [(b"x-own", b"1")])
    await wire.until(1)
    assert wire.writes == [FIRST]
    assert wire.head["status"] == 200
    assert (b"x-own", b"1") in wire.head["headers"]
    one.end()
    await over(task)


async def test_what_waits_is_one_write() -> None:
    """One `send` for each wake, however many events it carries."""
    store = await stored("a", "b")
    wire, one = Wire(), pump(store)
    task = started(one, wire)
    await wire.until(2)
    await say(store, "c", "d", "e")
    await wire.until(3)
    assert wire.writes == [FIRST, b"a\nb\n", b"c\nd\ne\n"]
    one.end()
    await over(task)


async def test_a_backlog_goes_out_in_bounded_writes() -> None:
    """So that one reader's replay does not hold the loop, or the memory."""
    text = "x" * 50_000
    wire, one = Wire(), pump(await stored(*[text] * 30))
    one.end()
    await over(started(one, wire))
    assert b"".join(wire.writes) == FIRST + f"{text}\n".encode() * 30
    assert max(map(len, wire.writes)) <= WRITE_BYTES + len(text) + 1


async def test_a_silence_is_a_heartbeat_with_the_readers_cursor() -> None:
    """That moves over events without a frame, and is repeated."""
    store = await stored("a")
    wire, one = Wire(), pump(store, interval=0.01)
    task = started(one, wire)
    await wire.until(4)
    assert wire.writes[1:4] == [b"a\n", b"beat 2\n", b"beat 2\n"]
    one.end()
    await over(task)


async def test_what_the_reader_has_no_name_for_is_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the log is: a proxy on the way only sees bytes."""
    now = [0.0]
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    store = await stored()
    wire = Wire()
    one = Pump(store, "s", 1, encode=lambda event: b"", heartbeat=lambda cursor: b"beat %d" % cursor, interval=3600.0)
    task = started(one, wire)
    await wire.until(1)
    now[0] = 3600.0
    await say(store, "a")
    await wire.until(2)
    await say(store, "b")
    one.end()
    await over(task)
    assert [FIRST, b"beat 2"] == wire.writes


async def test_an_ended_stream_has_what_is_in_the_log_and_a_proper_end() -> None:
    """Draining cuts nobody off in the middle."""
    wire, one = Wire(), pump(await stored("a"))
    one.end()
    await over(started(one, wire))
    assert wire.writes == [FIRST, b"a\n"]
    assert wire.ended


async def test_a_deleted_session_ends_the_stream() -> None:
    """After that nothing can come."""
    store = await stored("a")
    wire = Wire()
    task = started(pump(store, 2), wire)
    await wire.until(1)
    await store.append("s", [draft("session.deleted", {})])
    await over(task)
    assert wire.ended


async def test_a_reader_that_leaves_ends_the_stream_and_leaves_no_task() -> None:
    """Whether it waits or writes; and no bell stays hung up."""
    store = await stored("a")
    before = asyncio.all_tasks()

    async def forever(body: bytes) -> None:
        await asyncio.Event().wait()

    for write in (None, forever):
        wire = Wire(write)
        task = started(pump(store), wire)
        if write is None:
            await wire.until(2)
        wire.left.set()
        await over(task)
        assert not wire.ended
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before
    assert store.doorbell.listening("s") == 0


async def test_a_server_may_say_by_an_error_that_the_reader_has_left() -> None:
    """It is not an error of ours."""

    async def broken(body: bytes) -> None:
        raise BrokenPipeError

    await over(started(pump(await stored()), Wire(broken)))


async def test_a_cancel_from_outside_is_not_swallowed() -> None:
    """Only our own is; a server that stops its tasks must see them stop."""
    wire = Wire()
    task = started(pump(await stored()), wire)
    await wire.until(1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await over(task)


class Failing(MemoryStore):
    """A store whose reads fail from the second one on."""

    error: Exception = StoreError("The disk is gone.")
    reads = 0

    async def read(self, *args: Any, **options: Any) -> Any:
        self.reads += 1
        if self.reads > 1:
            raise self.error
        return await super().read(*args, **options)


@pytest.mark.parametrize("error", [StoreError("The disk is gone."), RuntimeError("a bug")])
async def test_a_log_that_cannot_be_read_ends_the_stream_uncleanly(error: Exception) -> None:
    """The head is out, so nothing can be answered; without a proper end the reader comes back."""
    store = Failing()
    await store.append("s", [draft("session.created", {}), draft("session.rewound", {"to": "a"})])
    store.error = error
    wire = Wire()
    with pytest.raises(type(error)):
        await over(started(pump(store), wire))
    assert wire.writes == [FIRST, b"a\n"]
    assert not wire.ended
    assert store.doorbell.listening("s") == 0


# All streams ----------------------------------------------------------------------------------------------------------


async def test_bounds_are_for_each_session_and_for_all() -> None:
    """Counted out again when a reader leaves."""
    store, streams = await stored(), Streams(total=2, per_session=1)
    one = pump(store)
    streams.admit("s")
    streams.add(one)
    with pytest.raises(TooMany, match="session"):
        streams.admit("s")
    streams.admit("other")
    streams.remove(one)
    streams.admit("s")
    await streams.close()


async def test_closing_ends_all_and_cuts_off_who_does_not_take_it() -> None:
    """The one that reads gets a proper end; the one that does not is not waited for."""
    store, streams = await stored("a"), Streams()

    async def forever(body: bytes) -> None:
        await asyncio.Event().wait()

    async def counted(one: Pump, wire: Wire) -> None:
        streams.add(one)
        try:
            await one.run(FIRST, (), wire.receive, wire.send)
        finally:
            streams.remove(one)

    reading, stalled = Wire(), Wire(forever)
    tasks = [asyncio.create_task(counted(pump(store), wire)) for wire in (reading, stalled)]
    await reading.until(2)
    await streams.close(timeout=0.01)
    for task in tasks:
        await over(task)
    assert (reading.ended, stalled.ended, len(streams)) == (True, False, 0)


async def test_a_stream_that_comes_while_draining_ends_at_once() -> None:
    """After what there is."""
    store, streams = await stored("a"), Streams()
    streams.drain()
    wire, one = Wire(), pump(store)
    streams.add(one)
    await over(started(one, wire))
    assert (wire.writes, wire.ended) == ([FIRST, b"a\n"], True)
    streams.remove(one)
    await streams.close()


async def test_a_reader_that_takes_nothing_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the sweep, when a write has waited too long; who reads, or has nothing to read, is not."""
    monkeypatch.setattr(module, "SEND_TIMEOUT", 0.05)
    async with chatting() as chat, asyncio.timeout(30):
        async with chat.stream("from=start") as quiet, chat.stream("from=start", buffer=0) as stalled:
            await quiet.read()
            await chat.said()
            while len(chat.app.streams) > 1:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert [message.event for message in logged(decoded(quiet.body))] == ["session_created"]
            await chat.said()
            while quiet.body.count(b"event: complete") < 2:
                assert await quiet.read()
        assert stalled.cut
