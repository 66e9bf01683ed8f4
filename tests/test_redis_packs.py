"""Packs of a Redis store: the deltas of answers that are over in a twentieth of the memory, and read as they were."""

from __future__ import annotations

import asyncio
import random
import uuid
import zlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from legato.errors import StoreCorrupt
from legato.event import (
    CallDelta,
    Draft,
    Event,
    OtherFact,
    RefusalDelta,
    RunCompleted,
    RunStarted,
    Said,
    SessionDeleted,
    TextDelta,
    ThinkingDelta,
    settle,
)
from legato.log import Subscription
from legato.store.redis import RedisStore
from legato.store.redis_packs import PACK_BYTES, Packer, packed, thin, unpack
from legato.store.redis_plan import Record, binary
from legato.store.redis_server import RedisServer
from legato.testing import PATIENCE
from test_redis import PLACES, all_of, begun, message, size_of, stores, until
from valkeys import shared_valkey

WORDS = ["Hello ", "", "é😀", 'a "quote"', "\u2028\n\\u0000", "nul \0", "x" * 300]
KINDS: dict[str, Any] = {"text": TextDelta, "thinking": ThinkingDelta, "refusal": RefusalDelta}

odd = st.tuples(
    st.sampled_from(["text", "thinking", "refusal", "call", "other", "odd json"]),
    st.sampled_from(WORDS),
    st.sampled_from([0, 0, 0, 0, 1]),  # characters that are left out before it
    st.integers(-5, 10**10),  # microseconds since the one before
    st.sampled_from(["same", "same", "same", "same", "run", "era", "offset", "part"]),
)


def records_of(pieces: Sequence[tuple[str, str, int, int, str]]) -> list[Record]:
    """Deltas of a log, of which most go on from each other."""
    records: list[Record] = []
    offset, at, run, era, part, place, before = 3, 1_700_000_000_000_000, "s~1", 1, 0, 0, ""
    for kind, text, gap, later, other in pieces:
        offset += 1 + 7 * (other == "offset")
        at, era, run = at + later, era + (other == "era"), run + "1" * (other == "run")
        if kind != before or other in ("run", "part"):
            part, place = part + 1, 0
        place += gap
        if kind == "other":
            fact: Any = OtherFact("x.delta", {"part": part, "text": text})
        elif kind == "call":
            fact = CallDelta(part, 0, f"call{part}", place, text)
        else:
            fact = KINDS.get(kind, TextDelta)(part, 0, place, text)
        place, before = place + len(text), kind
        json = settle(fact)[1]
        if kind == "odd json":
            json = json.replace(b"{", b'{"new":[1],')
        records.append((offset, at, fact.type, run, json, era))
    return records


@given(st.lists(odd, max_size=40))
def test_a_pack_is_what_was_packed(pieces: list[tuple[str, str, int, int, str]]) -> None:
    """To the byte, whatever it is; and thin, all but for the times, as far as runs have ended."""
    records = records_of(pieces)
    assert unpack(packed(records)) == records
    assert unpack(binary(records)) == records
    for ended in {0, 20, records[-1][0]} if records else ():
        pack, changed, last, count = thin(packed(records), ended)
        now = unpack(pack)
        assert [row[:1] + row[2:] for row in now] == [row[:1] + row[2:] for row in records]
        assert [row for row in now if row[0] > ended] == [row for row in records if row[0] > ended]
        assert (last, count) == (records[-1][0], len(records))
        assert thin(pack, ended) == (pack, 0, last, count)
        assert changed or now == records


async def answer(store: RedisStore, count: int, session: str = "s", run: str = "r", end: bool = True) -> list[str]:
    """An answer in so many pieces of about four letters, a few at a time, as models give them."""
    dice = random.Random(count)
    letters = "eeeeettttaaaooiinnsshhrrdlcum"
    pieces = ["".join(dice.choices(letters, k=dice.randint(2, 6))) + " " for _ in range(count)]
    start, some = 0, [Draft(RunStarted("a", 1), run)]
    for number, piece in enumerate(pieces):
        some.append(Draft(TextDelta(0, 0, start, piece), run))
        start += len(piece)
        if len(some) == 4 or number == count - 1:
            await store.append(session, some)
            some = []
    if end:
        await store.append(session, [Draft(RunCompleted("stop", Said("m", "", [])), run)])
    return pieces


async def at_rest(store: RedisStore, session: str = "s") -> None:
    """Wait until all of it is packed."""
    deltas = store._server.keys(session, "deltas")[0]
    await until(lambda: shared_valkey().ask("EXISTS", deltas.decode()) == b":0\r\n")


async def everything(store: RedisStore) -> list[tuple[Event, bytes]]:
    return [(event, event.json) for event in await all_of(store, "s")]


async def pack(store: RedisStore, limit: int = 300) -> int:
    """Make all of a log thin; how much was changed."""
    changed, after = 0, 0
    while after is not None:
        step = await store.thin("s", after, limit)
        changed, after = changed + step.changed, step.after
    return changed


@pytest.fixture
async def pair() -> AsyncIterator[tuple[RedisStore, RedisStore]]:
    async with stores(PLACES["valkey"](f"packs-{uuid.uuid4().hex[:8]}"), 2) as (one, two):
        await one.append("s", begun())
        yield one, two


async def test_what_an_answer_takes(pair: tuple[RedisStore, RedisStore]) -> None:
    """Its pieces, given and over and thin; each reader is given them to the byte, also who was in the middle."""
    one, two = pair
    await answer(one, 2_000, end=False)
    deltas, packs = one._server.keys("s", "deltas", "packs")
    before, sizes = await everything(two), [size_of(shared_valkey(), deltas)]
    with Subscription(two, "s", 2, heartbeat=PATIENCE, limit=77) as reader:
        seen = await reader.next()
        await one.append("s", [Draft(RunCompleted("stop", Said("m", "", [])), "r")])
        await at_rest(one)
        sizes.append(size_of(shared_valkey(), packs))
        seen += await reader.next()
        whole = await everything(two)
        assert whole[:-1] == before
        assert await pack(one) == 2_000
        sizes.append(size_of(shared_valkey(), packs))
        while seen[-1].offset < 2_004:
            seen += await reader.next()
    assert [(event.offset, event.fact) for event in seen] == [(event.offset, event.fact) for event, _ in whole[2:]]
    assert [json for _, json in await everything(two)] == [json for _, json in whole]
    assert await pack(two) == 0
    assert sizes[1] < sizes[0] / 6
    assert sizes[2] < sizes[1]


async def test_pages_of_packs_are_full(pair: tuple[RedisStore, RedisStore]) -> None:
    """Across packs, and from the last of them into what is not packed."""
    one, two = pair
    await answer(one, 1_500)
    await at_rest(one)
    await one.append("s", [message("r2")])
    await answer(one, 100, run="r2", end=False)
    deltas = one._server.keys("s", "deltas")[0]
    assert shared_valkey().ask("XLEN", deltas.decode()) == b":26\r\n"  # what is said now is left alone
    before = await all_of(one, "s")
    for limit in (1, 60, 499):  # larger ones end with a block
        for after in range(0, len(before), 131):
            assert await two.read("s", after, limit=limit) == before[after : after + limit]


async def test_whoever_dies_before_it_packs(pair: tuple[RedisStore, RedisStore], monkeypatch: Any) -> None:
    """What it left is packed when it is made thin, or with the next answer."""
    one, two = pair
    monkeypatch.setattr(one._packer, "stored", lambda *args, **more: None)
    await answer(one, 300)
    before = await everything(two)
    deltas = one._server.keys("s", "deltas")[0]
    assert size_of(shared_valkey(), deltas) > 1_000
    assert await pack(two) == 300
    await at_rest(two)
    assert [json for _, json in await everything(one)] == [json for _, json in before]
    await one.append("s", [message("r2")])
    await answer(one, 40, run="r2")
    await two.append("s", [message("r3")])
    await answer(two, 40, run="r3")
    await at_rest(two)
    assert [event.offset for event in await all_of(one, "s")] == list(range(1, 3 + 302 + 43 + 43))


async def test_two_who_pack_at_the_same_time(pair: tuple[RedisStore, RedisStore]) -> None:
    """Each piece is there once, and what one of them has done counts for it alone."""
    one, two = pair
    for store in pair:
        store._packer.stored = lambda *args, **more: None  # type: ignore[method-assign]
    await answer(one, 1_300)
    before = [json for _, json in await everything(one)]
    done = await asyncio.gather(*(pack(store, limit) for store, limit in ((one, 100), (two, 300))))
    assert sum(done) == 1_300
    assert [json for _, json in await everything(two)] == before
    assert await pack(two) == 0


@pytest.mark.parametrize("when", ["PACK", "REPACK"])
async def test_a_session_that_is_deleted_meanwhile(
    when: str, pair: tuple[RedisStore, RedisStore], monkeypatch: Any
) -> None:
    """After its pieces were read, and before what is made of them is written: nothing of it comes back."""
    one, two = pair
    if when == "PACK":
        monkeypatch.setattr(one._packer, "stored", lambda *args, **more: None)
    await answer(one, 300)
    if when == "REPACK":
        await at_rest(one)
    run = one._server.run
    deleted: list[str] = []

    async def late(script: str, *args: Any) -> Any:
        if ("ZADD" in script) and not deleted:
            deleted.append(script)
            await two.append("s", [Draft(SessionDeleted())])
        return await run(script, *args)

    monkeypatch.setattr(one._server, "run", late)
    assert await pack(one) == 0
    assert ("ZREM" in deleted[0]) is (when == "REPACK")
    for key in one._server.keys("s", "deltas", "packs"):
        assert shared_valkey().ask("EXISTS", key.decode()) == b":0\r\n"
    assert [event.type for event in await two.read("s", 0)] == ["session.deleted"]


async def test_what_comes_from_elsewhere_is_packed(pair: tuple[RedisStore, RedisStore]) -> None:
    """What another store had, and what is built in pieces, takes no more room than what was said here."""
    one, _ = pair
    await answer(one, 900)
    await at_rest(one)
    events = await all_of(one, "s")
    record = await one.record("s")
    assert record is not None

    async def pages() -> AsyncIterator[Sequence[Event]]:
        for start in range(0, len(events), 500):
            yield events[start : start + 500]

    async with stores(PLACES["valkey"]("packs-elsewhere"), 1) as (other,):
        await other.adopt(record, pages())
        assert [(event, event.json) for event in await all_of(other, "s")] == [(event, event.json) for event in events]
        here, there = (size_of(shared_valkey(), store._server.keys("s", "packs")[0]) for store in (one, other))
        assert there < 1.3 * here


async def test_a_pack_that_is_damaged(pair: tuple[RedisStore, RedisStore]) -> None:
    """Is an error that says so, as an entry is, of its session alone; all others are read, and packed, as before."""
    one, two = pair
    await one.append("t", begun())
    await answer(one, 100, "t")
    await at_rest(one, "t")
    key = one._server.keys("t", "packs")[0].decode()
    shared_valkey().ask("DEL", key)
    shared_valkey().ask("ZADD", key, 103, "x, but no pack")
    with pytest.raises(StoreCorrupt):
        await two.read("t", 0)
    with pytest.raises(StoreCorrupt):
        await one.thin("t", 0, 1_000)
    assert len(await two.read("t", 0, deltas=False)) == 4
    await one.append("u", begun())
    shared_valkey().ask("XADD", one._server.keys("u", "whole")[0].decode(), "9-0", "e", "no entry")
    with pytest.raises(StoreCorrupt):
        await two.read("u", 0)
    await answer(one, 100)
    await at_rest(one)
    assert await pack(one) == 100


def test_what_is_known_of_answers_that_go_on_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many it never comes to an end here: another process has taken them over."""
    monkeypatch.setattr("legato.store.redis_packs.UNPACKED_SESSIONS", 3)
    packer = Packer(RedisServer("redis://host"))
    for name in ("a", "b", "c", "a", "d", "e"):
        packer.stored(name, [Event(TextDelta(0, 0, 0, "x"), 1, 0.0, "r", b"{}")], deleted=False)
    assert list(packer._unpacked) == ["a", "d", "e"]


def test_a_pack_is_bounded() -> None:
    """What has to be taken apart for one event of it is no more than what was put together."""
    records = records_of([("text", "x" * 300, 0, 5, "same")] * 200)
    assert len(zlib.decompress(packed(records))) < PACK_BYTES
