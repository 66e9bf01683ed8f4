"""Readers who take little at a time, of frames that are large: they get what everybody gets, and next to nothing is
kept for them meanwhile."""

from __future__ import annotations

import asyncio
import json
import random
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from driving import chatting
from facts import draft
from legato.agent import Turn
from legato.event import Event, SessionDeleted, TextDelta
from legato.log import Subscription
from legato.server import pump as module
from legato.server.crowd import LARGE_FRAME, SMALL_TEXT, WRITE_BYTES
from legato.server.pump import Pump
from legato.server.stream import Streams
from legato.sse import Decoder
from legato.store.memory import MemoryStore
from legato.testing import ASGIStream, Driver
from legato.yields import Checkpoint, ToolCall, ToolResult
from test_crowd import Narrow, Wire, settle

LONG = '"\n' * 30_000


@pytest.fixture(autouse=True)
def lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """On lines, and with no patience: who cannot be written to at once is read for anew each time."""
    monkeypatch.setattr(Driver, "lines", True)
    monkeypatch.setattr(module, "HOLD_SECONDS", 0.0)


async def mixed(turn: Turn) -> AsyncIterator[Any]:
    """Says little and much, in an order that has both beside each other."""
    for number in range(150):
        yield f"word {number} "
        await turn.stored()
    yield LONG
    await turn.stored()
    for number in range(5):
        yield f"word {number} "
        await turn.stored()
    yield ToolCall("call_1", "look", json.dumps({"at": LONG}))
    yield Checkpoint({"note": LONG})
    yield ToolResult("call_1", LONG)
    for _ in range(3):
        yield LONG[:SMALL_TEXT]
        await turn.stored()
        yield LONG[: 2 * SMALL_TEXT]
        await turn.stored()
    yield LONG
    yield "the end"


Target = tuple[str, dict[str, str]]


def stream_of(query: str, **headers: str) -> Callable[[dict[str, str]], Target]:
    fields = {name.replace("_", "-"): value for name, value in headers.items()}
    return lambda sent: (f"/stream?sessionId={sent['sessionId']}{query}", fields)


def response(query: str = "") -> Callable[[dict[str, str]], Target]:
    return lambda sent: (f"/v1/responses/resp_{sent['runId']}?stream=true{query}", {})


WAYS = {
    "mix": stream_of("&from=start"),
    "legato": stream_of("&from=start&client=legato"),
    "mix from a cursor": stream_of("", last_event_id="20"),
    "responses": response(),
    "responses from a number": response("&starting_after=160"),
    "deva": lambda sent: (f"/api/sdk/chat/{sent['sessionId']}/messages/{sent['messageId']}/query/stream", {}),
}
"""Every kind of stream that can begin in the past."""


ENDS = (b"event: complete\n", b"event: error\n", b"event: run.completed\n", b"event: run.failed\n")
"""Of streams that do not end by themselves."""


async def taken(reader: ASGIStream, chance: random.Random | None) -> bytes:
    """All that a reader is given up to the end of the run: at once, or now and then."""
    async with asyncio.timeout(60), reader:
        assert reader.status == 200
        while not (reader.body.endswith(b"\n\n") and any(end in reader.body[-1_000_000:] for end in ENDS)):
            if not await reader.read():
                break
            for _ in range(chance.choice((0, 1, 5, 40)) if chance else 0):
                await asyncio.sleep(0)
        return reader.body


def told(body: bytes) -> list[tuple[str, Any]]:
    """What a body says, but for how its text is cut into pieces, and for what is the reader's own."""
    found: list[tuple[str, Any]] = []
    text = ""
    for message in Decoder().feed(body):
        data = json.loads(message.data) if message.data.startswith(("{", '"')) else message.data
        if message.event in ("content", "text.delta"):
            text += data if isinstance(data, str) else data.get("content", data.get("text", ""))
        elif message.event not in ("connected", "heartbeat"):
            found += [("text", text), (message.event, data)]
            text = ""
    return found


@pytest.mark.parametrize("way", WAYS)
async def test_who_takes_little_is_told_the_same(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is said and afterwards, wherever the reader stops: in a frame, before one, or in what was joined."""
    resumed: list[Any] = []
    look = Pump._look

    async def noted(pump: Pump) -> list[Event]:
        resumed.append(pump._within)
        return await look(pump)

    monkeypatch.setattr(Pump, "_look", noted)
    async with chatting(None, mixed) as chat:
        sent = (await chat.send()).json()
        method = "POST" if way == "deva" else "GET"

        def reader(buffer: int) -> ASGIStream:
            target, headers = WAYS[way](sent)
            return chat.driver.stream(target, method=method, buffer=buffer, headers=headers)

        live = [taken(reader(0), random.Random(number)) for number in range(4)]
        bodies = await asyncio.gather(taken(reader(1 << 30), None), *live)
        later = [taken(reader(buffer), random.Random(buffer)) for buffer in (0, 1_000, 20_000)]
        bodies += await asyncio.gather(taken(reader(1 << 30), None), *later)
        assert len(bodies[0]) > 4 * len(LONG)
        assert sum(place is not None for place in resumed) > 20
        assert any(place is not None and place.joins for place in resumed) == ("responses" not in way)
        expected = told(bodies[0])
        for body in bodies[1:]:
            assert told(body) == expected


# What is held ---------------------------------------------------------------------------------------------------------


class Frames:
    """An encoder whose frame of an event is its text."""

    def __init__(self) -> None:
        self.over = False

    def encode(self, event: Event) -> bytes:
        self.over = isinstance(event.fact, SessionDeleted)
        return event.fact.text.encode() if isinstance(event.fact, TextDelta) else b""

    def heartbeat(self, cursor: int) -> bytes:
        return b""


class Kept(dict[str, bytes]):
    """Of an event that somebody has, as long as somebody has it."""


class Fresh(MemoryStore):
    """A store that makes its events anew each time, and knows which are left of them."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[weakref.ref[Kept]] = []

    def peek(self, *args: Any, **options: Any) -> list[Event]:
        events = [msgspec.structs.replace(event, wire=Kept()) for event in super().peek(*args, **options)]
        self.made += [weakref.ref(event.wire) for event in events if isinstance(event.wire, Kept)]
        return events

    @property
    def left(self) -> int:
        return sum(each() is not None for each in self.made)


@pytest.fixture
async def fresh() -> Fresh:
    store = Fresh()
    await store.append("s", [draft("session.created", {})])
    return store


async def say(store: MemoryStore, *sizes: int) -> None:
    texts = [str(number % 10) * size for number, size in enumerate(sizes)]
    await store.append("s", [draft("text.delta", {"part": 0, "step": 0, "start": 0, "text": text}) for text in texts])


def following(streams: Streams, store: MemoryStore, wire: Wire, after: int = 1) -> Pump:
    pump = Pump(Subscription(store, "s", after, heartbeat=3600), "s", Frames(), share="frames")
    streams.follow(pump, wire, streams.reserve("s"))
    return pump


@pytest.mark.parametrize("size", [1, WRITE_BYTES, LARGE_FRAME, LARGE_FRAME + 1, 1_000_000, 4_000_000])
@pytest.mark.parametrize("live", [True, False])
async def test_what_is_handed_to_a_line_is_bounded(size: int, live: bool) -> None:
    """Whatever a frame has, and however many there are: the next goes out when there is room for it."""
    store, streams = MemoryStore(), Streams()
    await store.append("s", [draft("session.created", {})])
    wire, quick = Narrow(), Wire()
    if live:
        following(streams, store, wire)
        following(streams, store, quick)
        await settle()
    await say(store, size, size, size)
    if not live:
        following(streams, store, wire)
        following(streams, store, quick)
    async with asyncio.timeout(60):
        while len(quick.got) < 3 * size:  # noqa: ASYNC110
            await asyncio.sleep(0)
        before = 0
        while len(wire.got) < 3 * size:
            await settle()
            assert len(wire.got) - before <= WRITE_BYTES + LARGE_FRAME
            before = len(wire.got)
            wire.stall(False)
            await asyncio.sleep(0)
    assert wire.got == quick.got
    await settle()
    wire.stall(False)
    await settle()
    assert len(streams.crowds) == 1  # and both are at the head again
    await streams.close()


async def test_a_reader_who_has_stopped_has_nothing_read_for_it(fresh: Fresh) -> None:
    """Nor a part of a frame: there is a cursor, and how much of the frame behind it has been written."""
    streams, wire = Streams(), Narrow()
    await say(fresh, 10, 1_000_000, 10)
    following(streams, fresh, wire)
    for _ in range(4):
        await settle()
        await asyncio.sleep(0.01)
        assert wire.full
        assert fresh.left == 0
        wire.stall(False)
    assert len(wire.got) > WRITE_BYTES
    await streams.close(0)


async def test_a_session_that_is_deleted_in_the_middle_of_a_frame_cuts_its_reader(fresh: Fresh) -> None:
    """There is no end to the frame any more."""
    streams, wire = Streams(), Narrow()
    await say(fresh, 1_000_000)
    following(streams, fresh, wire)
    await settle()
    await fresh.append("s", [draft("session.deleted", {})])
    async with asyncio.timeout(30):
        while not wire.ended:
            wire.stall(False)
            await asyncio.sleep(0)
    assert wire.ended == "cut"
    assert len(streams) == 0


async def test_a_drain_in_the_middle_of_a_frame_waits_for_its_end(fresh: Fresh) -> None:
    """And of what is behind it in the log."""
    streams, wire = Streams(), Narrow()
    await say(fresh, 1_000_000, 10)
    following(streams, fresh, wire)
    await settle()
    streams.drain()
    async with asyncio.timeout(30):
        while not wire.ended:
            wire.stall(False)
            await asyncio.sleep(0)
    assert (wire.ended, len(wire.got)) == ("properly", 1_000_010)


async def test_how_long_a_reader_takes_nothing_is_counted_from_its_last_byte(fresh: Fresh) -> None:
    """Not from when what was read for it was let go."""
    streams, wire = Streams(), Narrow()
    await say(fresh, 1_000_000)
    pump = following(streams, fresh, wire)
    await settle()
    since = pump._sending_since
    await asyncio.sleep(0.01)
    await settle()
    assert since
    assert pump._sending_since == since
    await streams.close(0)


async def test_what_all_who_wait_keep_is_bounded(fresh: Fresh, monkeypatch: pytest.MonkeyPatch) -> None:
    """A few keep what was read for a moment; the others have it read again when they go on."""
    monkeypatch.setattr(module, "HOLD_SECONDS", 3600)
    monkeypatch.setattr(module, "KEPT_BYTES", 10_000_000)
    streams = Streams()
    await say(fresh, 1_000_000)
    wires = [Narrow() for _ in range(20)]
    for wire in wires:
        following(streams, fresh, wire)
    await settle()
    assert 0 < streams.crowds.kept <= 10_000_000
    assert fresh.left <= 3
    async with asyncio.timeout(60):
        while {len(wire.got) for wire in wires} != {1_000_000}:
            for wire in wires:
                wire.stall(False)
            await asyncio.sleep(0)
    await settle()
    assert streams.crowds.kept == 0
    await streams.close(0)
