"""The pump: what goes out in which writes, and everything that ends a stream; places among streams; sinks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from driving import chatting, decoded, logged
from facts import draft
from legato.dialect.fold import Encoder
from legato.errors import StoreError, StoreLost, TooMany
from legato.event import Event, SessionDeleted, SessionRewound
from legato.log import Store, Subscription
from legato.server import pump as module
from legato.server.pace import Pace
from legato.server.pump import BEHIND, WRITE_BYTES, ASGISink, Pump
from legato.server.stream import Streams
from legato.server.traffic import Traffic
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


class Plain:
    """An encoder that says where a session was rewound to."""

    def __init__(self) -> None:
        self.over = False

    def encode(self, event: Event) -> bytes:
        self.over = isinstance(event.fact, SessionDeleted) or event.data.get("to") == "end"
        return f"{event.fact.to}\n".encode() if isinstance(event.fact, SessionRewound) else b""

    def heartbeat(self, cursor: int) -> bytes:
        return f"beat {cursor}\n".encode()


class Silent(Plain):
    """An encoder that has no name for anything."""

    def encode(self, event: Event) -> bytes:
        return b""


def pump(
    store: Store, after: int = 0, *, interval: float = 3600.0, encoder: Encoder | None = None, **options: Any
) -> Pump:
    subscription = Subscription(store, "s", after, heartbeat=interval)
    return Pump(subscription, "s", encoder or Plain(), first=FIRST, **options)


def started(one: Pump, wire: Wire, headers: Sequence[tuple[bytes, bytes]] = ()) -> asyncio.Task[None]:
    return asyncio.create_task(one.run(ASGISink(wire.receive, wire.send), headers))


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
    one = pump(store, 1, encoder=Silent())
    task = started(one, wire)
    await wire.until(1)
    now[0] = 3600.0
    await say(store, "a")
    await wire.until(2)
    await say(store, "b")
    one.end()
    await over(task)
    assert [FIRST, b"beat 2\n"] == wire.writes


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


@pytest.mark.parametrize(("last", "proper"), [("b", False), ("end", True)])
async def test_a_stream_that_resets_ends_properly_only_with_its_answer(last: str, proper: bool) -> None:
    """To clients who take a clean end for the end of the answer, any other end is a cut."""
    wire, one = Wire(), pump(await stored("a", last), resets=True)
    one.end()
    await over(started(one, wire))
    assert (wire.writes, wire.ended) == ([FIRST, f"a\n{last}\n".encode()], proper)


async def test_nothing_follows_when_the_encoder_is_over() -> None:
    """The stream ends by itself, whatever else comes."""
    store = await stored("a", "end")
    wire = Wire()
    await over(started(pump(store), wire))
    assert (wire.writes, wire.ended) == ([FIRST, b"a\nend\n"], True)


async def test_events_are_made_ready_before_they_are_encoded() -> None:
    """Each batch, once, in order; one that cannot be made ready is not sent."""
    store = await stored("a")
    wire = Wire()
    batches: list[list[int]] = []

    class Preparing:
        async def ready(self, events: Sequence[Event]) -> None:
            assert len(wire.writes) == 1 + len(batches)
            await asyncio.sleep(0)
            batches.append([event.offset for event in events])
            if len(batches) == 3:
                raise StoreError("The disk is gone.")

        def ready_now(self, events: Sequence[Event]) -> bool:
            raise AssertionError("on a line only")

    task = started(pump(store, preparation=Preparing()), wire)
    for text in ("b", "c"):
        await wire.until(1 + len(batches) + 1)
        await say(store, text)
    with pytest.raises(StoreError):
        await over(task)
    assert (batches, wire.writes, wire.ended) == ([[1, 2], [3], [4]], [FIRST, b"a\n", b"b\n"], False)


async def test_who_is_far_behind_waits_in_a_group() -> None:
    """Before a large batch, and before each further write of it; who keeps up waits for nobody."""

    class Counted(Pace):
        taken = 0

        async def keep(self) -> None:
            self.taken += 1
            await super().keep()

    store = await stored(*["x" * 1_000] * BEHIND)
    for after, writes, taken in ((0, 7, 6), (BEHIND - 10, 2, 0)):
        pace = Counted()
        wire, one = Wire(), pump(store, after, pace=pace)
        one.end()
        await over(started(one, wire))
        assert (len(wire.writes), pace.taken) == (writes, taken)


async def test_the_cursor_is_what_was_handed_over() -> None:
    """While a write of a backlog waits, only what stood in those before it counts; so do the bytes."""
    text = "x" * (WRITE_BYTES - 1)
    held = asyncio.Event()

    async def write(body: bytes) -> None:
        if body.startswith(b"c"):
            await held.wait()

    store = await stored(text, text, "c" + text, "d")
    wire, one = Wire(write), pump(store)
    assert (one.cursor, one.waiting) == (0, 0.0)
    task = started(one, wire)
    await wire.until(3)
    await asyncio.sleep(0)
    assert (one.cursor, one.bytes) == (3, len(FIRST) + 2 * WRITE_BYTES)
    assert one.waiting > 0
    held.set()
    await wire.until(5)
    one.end()
    await over(task)
    assert (one.cursor, one.bytes, one.waiting) == (5, sum(map(len, wire.writes)), 0.0)


async def test_a_sink_is_all_that_a_transport_is() -> None:
    """A stream needs no more of what it is written to than four words."""

    class Words:
        def __init__(self) -> None:
            self.said: list[Any] = []
            self.left = asyncio.Event()

        async def start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
            self.said.append(("start", *headers))

        async def write(self, body: bytes) -> None:
            self.said.append(body)

        async def finish(self) -> None:
            self.said.append("finish")

        async def gone(self) -> None:
            await self.left.wait()

    sink, store = Words(), await stored("a")
    one = pump(store)
    one.end()
    await one.run(sink, [(b"x-own", b"1")])
    assert sink.said == [("start", (b"x-own", b"1")), FIRST, b"a\n", "finish"]
    sink, one = Words(), pump(store, 2)
    task = asyncio.create_task(one.run(sink, ()))
    await asyncio.sleep(0)
    sink.left.set()
    await over(task)
    assert sink.said == [("start",), FIRST]


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


@pytest.mark.parametrize("error", [StoreError("The disk is gone."), StoreLost("It is away."), RuntimeError("a bug")])
async def test_a_log_that_cannot_be_read_ends_the_stream_uncleanly(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """The head is out, so nothing can be answered; without a proper end the reader comes back. That the store is
    away is the store's to say, not that of a thousand readers."""
    store = Failing()
    await store.append("s", [draft("session.created", {}), draft("session.rewound", {"to": "a"})])
    store.error = error
    wire = Wire()
    with pytest.raises(type(error)):
        await over(started(pump(store), wire))
    assert wire.writes == [FIRST, b"a\n"]
    assert not wire.ended
    assert store.doorbell.listening("s") == 0
    assert ["cannot be read" in record.message for record in caplog.records] == [True] * (type(error) is StoreError)


# All streams ----------------------------------------------------------------------------------------------------------


async def test_bounds_are_for_each_session_and_for_all() -> None:
    """A place is taken before there is a stream, and free again when it is given back, once."""
    streams = Streams(total=3, per_session=1)
    one = streams.reserve("s")
    with pytest.raises(TooMany, match="session") as caught:
        streams.reserve("s")
    assert caught.value.detail == {"limit": 1}
    other = streams.reserve("other")
    streams.reserve("third")
    with pytest.raises(TooMany, match="server") as caught:
        streams.reserve("fourth")
    assert caught.value.detail == {"limit": 3}
    assert [streams.count(name) for name in ("s", "other", "third", "fourth")] == [1, 1, 1, 0]
    for _ in range(2):
        one.give_back()
    assert streams.count("s") == 0
    again = streams.reserve("s")
    with pytest.raises(TooMany, match="server"):
        streams.reserve("fourth")
    for place in (again, other):
        place.give_back()
    assert len(streams) == 0
    await streams.close()


async def test_a_place_can_move_to_the_session_that_it_turns_out_to_be_for() -> None:
    """Places for sessions that do not exist yet count among all, and not against each other."""
    streams = Streams(total=3, per_session=1)
    places = [streams.reserve("") for _ in range(3)]
    with pytest.raises(TooMany, match="server"):
        streams.reserve("")
    places[0].move("s")
    places[0].move("s")
    assert (streams.count("s"), streams.count("")) == (1, 2)
    places[1].give_back()
    places[1].move("t")  # it is nobody's any more
    with pytest.raises(TooMany, match="session"):
        streams.reserve("s")
    for place in places:
        place.give_back()
    assert [streams.count(name) for name in ("s", "t", "")] == [0, 0, 0]
    for number in range(3):
        streams.reserve(f"s{number}")


async def test_closing_ends_all_and_cuts_off_who_does_not_take_it() -> None:
    """The one that reads gets a proper end; the one that does not is not waited for."""
    store, streams = await stored("a"), Streams()

    async def forever(body: bytes) -> None:
        await asyncio.Event().wait()

    reading, stalled = Wire(), Wire(forever)
    tasks = [
        asyncio.create_task(streams.run(pump(store), ASGISink(wire.receive, wire.send))) for wire in (reading, stalled)
    ]
    await reading.until(2)
    assert ([1, 2], 2) == (sorted(one.number for one in streams.readers("s")), len(streams.readers()))
    assert [] == streams.readers("other")
    await streams.close(timeout=0.01)
    for task in tasks:
        await over(task)
    assert (reading.ended, stalled.ended, len(streams)) == (True, False, 0)


async def test_a_stream_that_comes_while_draining_ends_at_once() -> None:
    """After what there is."""
    store, streams = await stored("a"), Streams()
    streams.drain()
    wire, one = Wire(), pump(store)
    await over(asyncio.create_task(streams.run(one, ASGISink(wire.receive, wire.send), [(b"x-own", b"1")])))
    assert (wire.writes, wire.ended) == ([FIRST, b"a\n"], True)
    assert (b"x-own", b"1") in wire.head["headers"]
    assert len(streams) == 0
    await streams.close()


async def test_a_reader_that_takes_nothing_is_cut_off() -> None:
    """By the sweep, when a write has waited too long; who reads, or has nothing to read, is not."""
    async with chatting(traffic=Traffic(stalled_seconds=0.05)) as chat, asyncio.timeout(30):
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
