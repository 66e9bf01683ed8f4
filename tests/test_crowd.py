"""Crowds: readers at the head of a log who share one read, one encoding and one chunk; how they part and come back."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest

from facts import draft
from legato.errors import SessionNotFound, StoreError
from legato.event import Event, SessionDeleted, SessionRewound
from legato.log import READ_LIMIT, Subscription
from legato.server.crowd import WRITE_BYTES, Preparation
from legato.server.pump import Pump
from legato.server.stream import Streams
from legato.store.memory import MemoryStore

NEVER = 3600.0


class Words:
    """An encoder that says where a session was rewound to, and counts how often it is asked."""

    asked = 0

    def __init__(self) -> None:
        self.over = False

    def encode(self, event: Event) -> bytes:
        Words.asked += 1
        self.over = isinstance(event.fact, SessionDeleted) or event.data.get("to") == "end"
        return f"{event.fact.to} ".encode() if isinstance(event.fact, SessionRewound) else b""

    def heartbeat(self, cursor: int) -> bytes:
        return b"(%d)" % cursor


class Wire:
    """A line whose reader takes what it is given, or does not."""

    send: Any = None

    def __init__(self, framing: object = None) -> None:
        self.got = b""
        self.writes = 0
        self.framing = framing
        self.ended: str = ""
        self.lost: Callable[[], None] = lambda: None
        self._room = asyncio.Event()
        self._room.set()

    @property
    def full(self) -> bool:
        return not self._room.is_set()

    def stall(self, stalled: bool = True) -> None:
        if stalled:
            self._room.clear()
        else:
            self._room.set()

    def take(self, lost: Callable[[], None]) -> bool:
        self.lost = lost
        return True

    def frame(self, body: bytes) -> bytes:
        return body if self.framing is None else b"<%b>" % body

    def put(self, framed: bytes) -> None:
        assert not self.ended
        self.got += framed
        self.writes += 1

    async def write(self, body: bytes) -> None:
        await self._room.wait()
        if body:
            self.put(self.frame(body))

    def end(self, *, proper: bool) -> None:
        self.ended = "properly" if proper else "cut"

    def abort(self) -> None:
        self.ended = "aborted"


class Narrow(Wire):
    """One that is full after each write."""

    def put(self, framed: bytes) -> None:
        super().put(framed)
        self.stall()


class Counting(MemoryStore):
    """A store that counts how often it was asked for events; ``hold`` makes reads wait, and peeks impossible."""

    def __init__(self) -> None:
        super().__init__()
        self.peeks = self.reads = 0
        self.blind = False
        self.gate = asyncio.Event()
        self.gate.set()
        self.failure: Exception | None = None

    def peek(self, session: str, after: int, *, limit: int = READ_LIMIT, deltas: bool = True) -> Any:
        self.peeks += 1
        return None if self.blind else super().peek(session, after, limit=limit, deltas=deltas)

    async def read(self, session: str, after: int, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        self.reads += 1
        await asyncio.sleep(0)
        events = super().peek(session, after, limit=limit, deltas=deltas)
        await self.gate.wait()
        if self.failure is not None:
            raise self.failure
        return events


class Scene:
    """A log and readers of it."""

    def __init__(self) -> None:
        self.store = Counting()
        self.streams = Streams()
        Words.asked = 0

    async def say(self, *words: str) -> None:
        await self.store.append("s", [draft("session.rewound", {"to": word}) for word in words])

    async def say_unseen(self, word: str) -> None:
        """Say it while nothing is at hand: who is at the head waits for the disk, until ``gate`` opens."""
        self.store.blind = True
        self.store.gate.clear()
        await self.say(word)
        await settle()

    def read(
        self,
        after: int = 0,
        *,
        wire: Wire | None = None,
        share: Hashable = "words",
        heartbeat: float = NEVER,
        preparation: Preparation | None = None,
        resets: bool = False,
    ) -> Wire:
        wire = wire or Wire()
        subscription = Subscription(self.store, "s", after, heartbeat=heartbeat)
        pump = Pump(subscription, "s", Words(), share=share, preparation=preparation, resets=resets)
        self.streams.follow(pump, wire, self.streams.reserve("s"))
        return wire

    @property
    def crowds(self) -> int:
        return len(self.streams.crowds)


@pytest.fixture
async def scene() -> Any:
    there = Scene()
    await there.store.append("s", [draft("session.created", {})])
    yield there
    await there.streams.close()
    assert (len(there.streams), there.crowds, there.streams.count("s")) == (0, 0, 0)
    assert there.store.doorbell.listening("s") == 0
    await settle()
    assert {task.get_name() for task in asyncio.all_tasks()} & {"legato-reader", "legato-crowd"} == set()


async def settle() -> None:
    """Let everything come to rest that waits for nothing."""
    for _ in range(20):
        await asyncio.sleep(0)


def log(first: int, last: int) -> bytes:
    return b"".join(b"w%d " % number for number in range(first, last + 1))


async def test_readers_at_the_head_share_a_read_and_an_encoding(scene: Scene) -> None:
    """A hundred of them cost what one costs, but for the writes; and no task stands behind them."""
    wires = [scene.read(1) for _ in range(100)]
    await settle()
    before = scene.store.peeks, scene.store.reads, len(asyncio.all_tasks())
    await scene.say("w1", "w2")
    await settle()
    assert {wire.got for wire in wires} == {b"w1 w2 "}
    assert {wire.writes for wire in wires} == {1}
    assert (scene.store.peeks - before[0], scene.store.reads - before[1], Words.asked) == (1, 0, 2)
    assert (scene.crowds, len(asyncio.all_tasks())) == (1, before[2])
    assert {pump.cursor for pump in scene.streams.readers("s")} == {3}
    assert {pump.bytes for pump in scene.streams.readers("s")} == {6}


async def test_what_differs_is_not_shared(scene: Scene) -> None:
    """Another form, or a reader who has nothing in common with anybody, is another crowd."""
    wires = [scene.read(1, share=share) for share in ("words", "words", "others", None, None)]
    await scene.say("w1")
    await settle()
    assert {wire.got for wire in wires} == {b"w1 "}
    assert scene.crowds == 4


async def test_each_framing_is_made_once(scene: Scene) -> None:
    """And each line gets its own."""
    plain, chunked = scene.read(1), scene.read(1, wire=Wire("chunked"))
    await scene.say("w1")
    await settle()
    assert (plain.got, chunked.got, scene.crowds) == (b"w1 ", b"<w1 >", 1)


async def test_who_is_behind_reads_alone_until_it_is_at_the_head(scene: Scene) -> None:
    """Its first write is what it missed; then it is one of the others."""
    first = scene.read(1)
    await scene.say("w1", "w2", "w3")
    await settle()
    late = scene.read(2)
    await settle()
    assert (first.got, late.got, scene.crowds) == (log(1, 3), log(2, 3), 1)
    await scene.say("w4")
    await settle()
    assert (first.got, late.got) == (log(1, 4), log(2, 4))


async def test_who_stops_reading_parts_and_comes_back(scene: Scene) -> None:
    """The others go on; who has stopped is not sent more, and gets all of it when it reads again."""
    quick, slow = scene.read(1), scene.read(1)
    await scene.say("w1")
    await settle()
    slow.stall()
    for number in range(2, 6):
        await scene.say(f"w{number}")
        await settle()
    assert (quick.got, slow.got) == (log(1, 5), log(1, 1))
    assert sorted(pump.cursor for pump in scene.streams.readers()) == [2, 6]
    assert [pump.waiting > 0 for pump in scene.streams.readers() if pump.cursor == 2] == [True]
    slow.stall(False)
    await settle()
    await scene.say("w6")
    await settle()
    assert quick.got == slow.got == log(1, 6)
    assert scene.crowds == 1


async def test_a_large_batch_does_not_pile_up_in_a_line(scene: Scene) -> None:
    """Whose line is full after one write of it is sent the rest when it reads again."""

    wide, narrow = scene.read(1), scene.read(1, wire=Narrow())
    text = "x" * (WRITE_BYTES // 2)
    await scene.say(*[text] * 6)
    await settle()
    assert (wide.got.count(b" "), narrow.got.count(b" ")) == (6, 2)
    while narrow.got != wide.got:
        narrow.stall(False)
        await settle()
    assert scene.crowds == 1


async def test_a_thousand_times_behind_and_back(scene: Scene) -> None:
    """Readers who stop and go on at random, who leave and come back with their cursor: everybody's text is the log."""
    chance = random.Random(9)
    wires = [scene.read(1) for _ in range(6)]
    kept = [b""] * len(wires)  # what each reader had before it came back the last time
    parted = said = 0
    while parted < 1_000:
        for _ in range(chance.choice((1, 1, 2, 5))):
            said += 1
            await scene.say(f"w{said}")
        for place, wire in enumerate(wires):
            act = chance.random()
            if act < 0.4:
                parted += not wire.full
                wire.stall()
            elif act < 0.8:
                wire.stall(False)
            elif act < 0.85:
                wire.lost()
                kept[place] += wire.got
                parted += 1
                wires[place] = scene.read(1 + kept[place].count(b" "))
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
    for wire in wires:
        wire.stall(False)
    await settle()
    assert {before + wire.got for before, wire in zip(kept, wires, strict=True)} == {log(1, said)}
    assert scene.crowds == 1


# What takes waiting ---------------------------------------------------------------------------------------------------


async def test_a_ring_while_the_disk_is_asked_leads_to_another_look(scene: Scene) -> None:
    """The read that was under way may have seen less."""
    wire = scene.read(1)
    await settle()
    scene.store.blind = True
    scene.store.gate.clear()
    scene.store.doorbell.ring("s")
    await settle()  # the disk has been read, with nothing found, and has not answered
    await scene.say("w1")
    await settle()
    assert wire.got == b""
    scene.store.gate.set()
    await settle()
    assert wire.got == log(1, 1)


async def test_what_comes_between_the_last_read_and_the_bell_is_not_missed(scene: Scene) -> None:
    """Whoever begins a crowd looks once more when it listens."""
    scene.store.blind = True
    scene.store.gate.clear()
    wire = scene.read(1)
    await settle()  # nothing was found, and that has not been said yet
    await scene.say("w1")
    scene.store.blind = False
    scene.store.gate.set()
    await settle()
    assert wire.got == log(1, 1)


@pytest.mark.parametrize("more", [False, True])
async def test_who_comes_while_the_crowd_waits(scene: Scene, more: bool) -> None:
    """Is let in if it stands where the crowd then stands, and else reads on alone."""
    first = scene.read(1)
    await settle()
    await scene.say_unseen("w1")
    scene.store.blind = False
    wires = {after: scene.read(after) for after in (2, 1)}
    await settle()
    if more:
        await scene.say("w2")
        wires[3] = scene.read(3)
        await settle()
    assert [wire.got for wire in (first, *wires.values())] == [b""] * (2 + len(wires) - 1)
    scene.store.gate.set()
    await settle()
    await scene.say("w3" if more else "w2")
    await settle()
    said = 3 if more else 2
    assert first.got == log(1, said)
    assert {after: wire.got for after, wire in wires.items()} == {after: log(after, said) for after in wires}
    assert scene.crowds == 1


async def test_a_crowd_whose_readers_leave_while_it_waits(scene: Scene) -> None:
    """It ends when it need not wait any more; who comes then begins another."""
    wire = scene.read(1)
    await settle()
    await scene.say_unseen("w1")
    wire.lost()
    assert (wire.ended, scene.crowds) == ("aborted", 1)
    scene.store.gate.set()
    await settle()
    assert scene.crowds == 0
    again = scene.read(1)
    await settle()
    assert again.got == log(1, 1)


async def test_who_is_let_in_when_all_others_have_left(scene: Scene) -> None:
    """While a crowd waited: what has come since is read for who is in it now."""
    first = scene.read(1)
    await settle()
    await scene.say_unseen("w1")
    scene.store.blind = False
    second = scene.read(2)
    await settle()
    first.lost()
    await scene.say("w2")
    await settle()
    scene.store.gate.set()
    await settle()
    assert second.got == log(2, 2)


async def test_who_is_ahead_of_a_crowd_brings_it_along(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose bell was not heard: nobody waits for a heartbeat when somebody knows more."""
    first = scene.read(1)
    with monkeypatch.context() as patch:
        patch.setattr(scene.store.doorbell, "ring", lambda *args, **options: None)
        await scene.say("w1")
    assert first.got == b""
    second = scene.read(2)
    await settle()
    assert (first.got, second.got, scene.crowds) == (log(1, 1), b"", 1)


async def test_who_stands_beyond_the_log_waits_for_it(scene: Scene) -> None:
    """Beside others, without asking again and again: with a task, and a bell of its own."""
    first, beyond = scene.read(1), scene.read(3, heartbeat=0.01)
    await settle()
    asked, silent = scene.store.reads, beyond.got.count(b"(3)")
    await settle()
    assert scene.store.reads - asked <= 1 + beyond.got.count(b"(3)") - silent  # a heartbeat looks again
    async with asyncio.timeout(30):
        while b"(3)" not in beyond.got:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await scene.say("w1", "w2", "w3")
    await settle()
    assert (first.got, beyond.got.replace(b"(3)", b"")) == (log(1, 3), log(3, 3))


async def test_a_store_that_cannot_be_looked_into(scene: Scene) -> None:
    """One without ``peek``, or whose cache has let go: a task reads for all."""
    scene.store.blind = True
    wires = [scene.read(1) for _ in range(3)]
    await settle()
    for number in (1, 2):
        await scene.say(f"w{number}")
        await settle()
    assert {wire.got for wire in wires} == {log(1, 2)}
    assert scene.crowds == 1


async def test_events_are_made_ready_once_for_all(scene: Scene) -> None:
    """At once if that takes no waiting, else by a task; never after they were sent."""

    class Preparing:
        def __init__(self) -> None:
            self.done: list[tuple[str, list[int]]] = []
            self.at_once = True

        def ready_now(self, events: Sequence[Event]) -> bool:
            if self.at_once:
                self.done.append(("now", [event.offset for event in events]))
            return self.at_once

        async def ready(self, events: Sequence[Event]) -> None:
            await asyncio.sleep(0)
            self.done.append(("later", [event.offset for event in events]))

    preparing = Preparing()
    wires = [scene.read(1, preparation=preparing) for _ in range(3)]
    await scene.say("w1")
    await settle()
    preparing.at_once = False
    await scene.say("w2")
    await settle()
    assert preparing.done == [("now", [2]), ("later", [3])]
    assert {wire.got for wire in wires} == {log(1, 2)}


# The end --------------------------------------------------------------------------------------------------------------


async def test_a_silence_is_one_heartbeat_for_all(scene: Scene) -> None:
    """With the cursor at which they all stand; who does not read is sent none."""
    wires = [scene.read(1, heartbeat=0.01) for _ in range(3)]
    wires[2].stall()
    async with asyncio.timeout(30):
        while wires[0].got.count(b"(1)") < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert wires[0].got == wires[1].got
    assert wires[2].got == b""


async def test_who_takes_nothing_of_a_silent_log_is_seen(scene: Scene) -> None:
    """It is not one of the others at the next heartbeat, and how long it has taken nothing is known."""
    wire = scene.read(1, heartbeat=0.01)
    wire.stall()
    async with asyncio.timeout(30):
        while not scene.streams.readers()[0].waiting:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    await asyncio.sleep(0.03)
    assert scene.streams.readers()[0].waiting >= 0.03
    assert scene.crowds == 0


async def test_a_heartbeat_that_cannot_be_made_cuts_all(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """As an event that cannot be encoded does."""
    monkeypatch.setattr(Words, "heartbeat", lambda self, cursor: 1 / 0)
    wire = scene.read(1, heartbeat=0.01)
    async with asyncio.timeout(30):
        while not wire.ended:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
    assert wire.ended == "cut"


async def test_a_lost_ring_costs_at_most_a_heartbeat(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one looks into the log again."""
    wire = scene.read(1, heartbeat=0.01)
    with monkeypatch.context() as patch:
        patch.setattr(scene.store.doorbell, "ring", lambda *args, **options: None)
        await scene.say("w1")
    async with asyncio.timeout(30):
        while b"w1 " not in wire.got:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def test_the_end_of_the_log_is_the_end_of_all(scene: Scene) -> None:
    """At the head or behind."""
    wires = [scene.read(1) for _ in range(3)]
    wires[1].stall()
    await scene.say("w1", "end")
    await settle()
    assert [wire.ended for wire in wires] == ["properly", "", "properly"]
    wires[1].stall(False)
    await settle()
    assert {(wire.got, wire.ended) for wire in wires} == {(b"w1 end ", "properly")}


async def test_who_has_not_taken_the_end_is_waited_for(scene: Scene) -> None:
    """The stream ends when the reader has all of it, or is dropped with the others who take nothing."""

    wires = [scene.read(1, wire=Narrow()) for _ in range(2)]
    await scene.say("w1", "end")
    await settle()
    assert [(wire.got, wire.ended) for wire in wires] == [(b"w1 end ", "")] * 2
    wires[0].stall(False)
    await settle()
    await scene.streams.close(timeout=0.05)
    assert [wire.ended for wire in wires] == ["properly", "aborted"]


@pytest.mark.parametrize(("last", "ended"), [("w1", "cut"), ("end", "properly")])
async def test_a_stream_that_resets_ends_properly_only_with_its_answer(scene: Scene, last: str, ended: str) -> None:
    """Also on a line."""
    wire = scene.read(1, resets=True)
    await scene.say(last)
    await scene.streams.close()
    assert wire.ended == ended


async def test_draining_cuts_nobody_off_in_the_middle(scene: Scene) -> None:
    """What has been stored, rung or not, comes first; who does not read is dropped."""
    wires = [scene.read(1) for _ in range(3)]
    wires[2].stall()
    await scene.say("w1")
    await scene.streams.close(timeout=0.05)
    assert [(wire.got, wire.ended) for wire in wires] == [(b"w1 ", "properly")] * 2 + [(b"", "aborted")]


async def test_a_reader_that_leaves_gives_its_place_back(scene: Scene) -> None:
    """At the head, behind, and before it was let in."""
    head, behind = scene.read(1), scene.read(1)
    behind.stall()
    await scene.say("w1")
    await settle()
    fresh = scene.read(1)
    for left, wire in enumerate((head, behind, fresh), 1):
        wire.lost()
        assert (wire.ended, scene.streams.count("s")) == ("aborted", 3 - left)


@pytest.mark.parametrize("error", [StoreError("The disk is gone."), RuntimeError("a bug"), SessionNotFound("s")])
async def test_a_log_that_cannot_be_read_cuts_all(scene: Scene, error: Exception) -> None:
    """Without a proper end they come back. Who was behind, too."""
    wires = [scene.read(1), scene.read(1)]
    await settle()
    scene.store.blind, scene.store.failure = True, error
    await scene.say("w1")
    wires.append(scene.read(1))
    await settle()
    assert [wire.ended for wire in wires] == ["cut"] * 3
    assert scene.streams.count("s") == 0


async def test_an_event_that_cannot_be_encoded_cuts_all(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no other session's readers."""
    wire = scene.read(1)
    monkeypatch.setattr(Words, "encode", lambda self, event: 1 / 0)
    await scene.say("w1")
    await settle()
    assert (wire.ended, scene.crowds) == ("cut", 0)
