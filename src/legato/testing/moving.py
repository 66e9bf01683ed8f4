"""The rules of whole sessions: built in pieces, given to another store, taken from one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import msgspec

from ..errors import Conflict, InvalidInput, SessionExists, SessionNotFound, StaleLease
from ..event import Draft, Event, MessageCreated, SessionCreated
from ..log import Log, build
from ..store.moving import move, portable
from .place import DELETED, Place, completed, message, started, text
from .rules import StoreCheck, refused, rule, same

RULES: list[StoreCheck] = []


@rule(RULES)
async def sessions_are_built_whole(place: Place) -> None:
    """What begins a session in pieces (``log.build``) is there whole, and as if it had come at once; or not at all."""

    async def pieces(error: Exception | None = None, *, there: int = 0) -> AsyncIterator[Sequence[Draft]]:
        yield [Draft(SessionCreated("copy", owner="me"))]
        for number in range(3):
            yield [Draft(MessageCreated(f"m{number}", "user", str(number)))]
            same(there, len(await place.store.read("s", 0)))
        if error is not None:
            raise error

    try:
        await build(place.store, "s", pieces(KeyError("gone")))
    except KeyError:
        pass
    await refused(SessionNotFound, place.store.info("s"))
    await build(place.store, "s", pieces())
    events = await place.store.read("s", 0)
    same([1, 2, 3, 4], [event.offset for event in events])
    same(["0", "1", "2"], [event.fact.text for event in events if isinstance(event.fact, MessageCreated)])
    same(("me", 4), ((await place.store.info("s")).owner, (await place.store.info("s")).head))
    same(["s"], [info.session for info in (await place.store.sessions(owner="me")).infos])
    await refused(SessionExists, build(place.store, "s", pieces(there=4)))
    await Log(place.store, "s").append(message("r"), head=4)


@rule(RULES)
async def sessions_move_whole(place: Place) -> None:
    """What a ``Portable`` store gives of its sessions another one takes: events, times, keys, epochs and tombstones."""
    if not hasattr(place.store, "adopt"):
        return
    log = await place.begin("s", "first")
    await log.append(started("first"), *[text("first", f"{number} ", number) for number in range(1_200)])
    place.clock.advance(1.5)
    kept = await log.append(text("first", "x" * 10_000), completed("first"), message("second"), once="key")
    for _ in range(2):
        lease = await place.lease("s", "second")
        await place.store.release(lease)
    await Log(place.store, "mine").append(Draft(SessionCreated("m", owner="me")))
    await (await place.begin("gone", "r")).append(DELETED, once="deletion")
    target, back = await place.another("target"), await place.another("back")
    moved = await move(place.store, target)

    same((3, 1, 0), (moved.source.sessions, moved.source.deleted, moved.found))
    same(moved.source, moved.target)
    same(moved.source, (await move(target, back)).target)
    same((3, moved.source), ((again := await move(place.store, target)).found, again.target))
    there = Log(target, "s")
    shown = [[(event.offset, event.at, event.run, event.json) async for event in each.all()] for each in (log, there)]
    same(*shown)
    same(await place.store.info("s"), await target.info("s"))
    same([("second", None, 2)], [(run.run, run.owner, run.epoch) for run in await target.open_runs()])
    same(["me"], [info.owner for info in (await target.sessions(owner="me")).infos])
    pages = [[info.session for info in (await each.sessions()).infos] for each in (place.store, target)]
    same(*pages)
    same([("session.deleted", 3)], [(event.type, event.offset) for event in await target.read("gone", 0)])
    await refused(SessionExists, target.append("gone", [Draft(SessionCreated("again"))]))
    same((True, kept.events), ((first := await there.append(started("second"), once="key")).repeated, first.events))
    await refused(StaleLease, there.append(started("second"), lease=lease))
    same(3, (taken := await target.acquire("s", "second", owner="o", ttl=30.0)).epoch)
    last = kept.events[-1].offset
    same([last + 1], [event.offset for event in (await there.append(started("second"), lease=taken)).events])
    await refused(Conflict, move(place.store, target))


@rule(RULES)
async def sessions_are_adopted_whole(place: Place) -> None:
    """A session that another store gives is there once all of it has come, and only if it is one; or not at all."""
    if not hasattr(place.store, "adopt"):
        return
    source, store = await place.another("source"), place.store
    await Log(source, "s").append(Draft(SessionCreated("s")), message("r"), started("r"))
    await Log(source, "s").append(text("r"), text("r", start=1))
    events, record = await source.read("s", 0), await portable(source).record("s")
    assert record is not None

    async def pieces(*parts: Sequence[Event], error: Exception | None = None) -> AsyncIterator[Sequence[Event]]:
        for part in parts:
            yield part
            same([], await store.read("s", 0))
        if error is not None:
            raise error

    async def adopted(*parts: Sequence[Event], error: Exception | None = None, **changed: object) -> None:
        await portable(store).adopt(msgspec.structs.replace(record, **changed), pieces(*parts, error=error))

    await refused(InvalidInput, adopted(events[:2], events[3:]))
    await refused(InvalidInput, adopted(events[1:]))
    await refused(InvalidInput, adopted(events[:4]))
    await refused(InvalidInput, adopted(events, events))
    await refused(InvalidInput, adopted(events, epochs={}))
    await refused(InvalidInput, adopted(events, once={"key": (5, 6)}))
    await refused(Conflict, adopted(events[:2], events[2:], error=Conflict("gone")))
    await refused(SessionNotFound, store.info("s"))
    same(None, await portable(store).record("s"))
    same([], [each async for each in portable(store).records()])
    await adopted(events[:1], events[1:])
    same(5, (await store.info("s")).head)
    same((record, None), (await portable(store).record("s"), await portable(store).record("none")))
    await refused(SessionExists, portable(store).adopt(record, _pages(events)))
    await place.reopen()
    same([6], [event.offset for event in (await Log(place.store, "s").append(completed("r"))).events])


async def _pages(*parts: Sequence[Event]) -> AsyncIterator[Sequence[Event]]:
    for part in parts:
        yield part
