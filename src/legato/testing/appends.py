"""The rules of appending: offsets, refusals, keys that count once, heads."""

from __future__ import annotations

import asyncio

from ..errors import HeadMoved, RunEnded, SessionExists, SessionNotFound
from ..log import Log
from .place import DELETED, Place, cancel, completed, message, started, text
from .rules import StoreCheck, everything, refused, rule, same, texts_of, titles_of

RULES: list[StoreCheck] = []


@rule(RULES)
async def append_gives_what_read_gives(place: Place) -> None:
    """The events an append returns are those that are read: in order, from offset 1, with the store's time."""
    log = await place.begin()
    place.clock.advance(2.5)
    drafts = [message("r"), started("r"), text("r")]
    appended = await log.append(*drafts)

    same(False, appended.repeated)
    same([2, 3, 4], [event.offset for event in appended.events])
    same([(draft.fact, draft.run) for draft in drafts], [(event.fact, event.run) for event in appended.events])
    same(True, all(abs(event.at - place.clock.now) < 0.01 for event in appended.events))
    same(appended.events, (await log.read())[1:])


@rule(RULES)
async def sessions_count_alone(place: Place) -> None:
    """Each session has its own offsets, from 1, and only its own events."""
    for name in ("a", "b"):
        log = await place.begin(name, f"run of {name}")
        same([1, 2], [event.offset for event in await log.read()])
        same([name], titles_of(await log.read()))


@rule(RULES)
async def offsets_are_dense(place: Place) -> None:
    """Many appenders at once: no offset is missing or doubled, and each append stays together and in its order."""
    log = await place.begin("s", "r")

    async def appender(name: int) -> None:
        for number in range(10):
            drafts = [text("r", f"{name} {number} {part}") for part in range(1 + name % 3)]
            stored = (await log.append(*drafts)).events
            same([draft.fact for draft in drafts], [event.fact for event in stored])
            same([stored[0].offset + step for step in range(len(stored))], [event.offset for event in stored])

    await asyncio.gather(*[appender(name) for name in range(20)])
    events = await everything(log)
    same(list(range(1, len(events) + 1)), [event.offset for event in events])
    same(2 + sum(10 * (1 + name % 3) for name in range(20)), len(events))
    for name in range(20):
        mine = [text for text in texts_of(events) if text.startswith(f"{name} ")]
        same([f"{name} {number} {part}" for number in range(10) for part in range(1 + name % 3)], mine)


@rule(RULES)
async def refused_appends_leave_no_trace(place: Place) -> None:
    """An append of which one draft is refused is refused whole, and no offset is lost with it."""
    log = await place.begin("s", "r")
    await refused(RunEnded, log.append(started("r"), completed("r"), text("unknown")))

    same(2, (await place.store.info("s")).head)
    same(2, len(await log.read()))
    same([3], [event.offset for event in (await log.append(text("r"))).events])
    same(["r"], [run.run for run in await place.store.open_runs()])


@rule(RULES)
async def refusals_do_not_spread(place: Place) -> None:
    """Appends that are made at the same moment as refused ones are stored."""
    log = await place.begin("s", "r")
    doings = [log.append(text("r" if number % 2 else "unknown", str(number))) for number in range(20)]
    done = await asyncio.gather(*doings, return_exceptions=True)

    same([number % 2 == 0 for number in range(20)], [isinstance(result, RunEnded) for result in done])
    same([str(number) for number in range(1, 20, 2)], texts_of(await log.read(2)))


@rule(RULES)
async def an_append_needs_a_draft(place: Place) -> None:
    """An append of nothing is a ValueError."""
    log = await place.begin()
    try:
        await log.append()
    except ValueError:
        return
    raise AssertionError("expected ValueError")


@rule(RULES)
async def unknown_sessions(place: Place) -> None:
    """A session that never was is not found, and a read of it is empty."""
    log = Log(place.store, "nowhere")

    same([], await log.read())
    same([], await log.read(deltas=False))
    await refused(SessionNotFound, log.append(message("r")))
    await refused(SessionNotFound, place.store.info("nowhere"))
    await refused((RunEnded, SessionNotFound), place.lease("nowhere", "r"))
    same([], await log.read())


@rule(RULES)
async def sessions_are_created_once(place: Place) -> None:
    """Of many who create a session one succeeds; the others are told that it exists."""
    doings = [place.begin() for _ in range(10)]
    done = await asyncio.gather(*doings, return_exceptions=True)

    same(9, sum(isinstance(result, SessionExists) for result in done))
    same(1, (await place.store.info("s")).head)


@rule(RULES)
async def once_keys(place: Place) -> None:
    """Under one key a session stores once; whoever comes later gets the events of the first."""
    log = await place.begin()
    first = await log.append(message("r"), started("r"), once="key")
    again = await log.append(message("another"), once="key")

    same((False, True), (first.repeated, again.repeated))
    same(first.events, again.events)
    same(3, (await place.store.info("s")).head)
    other = await place.begin("other")
    same(False, (await other.append(message("r"), once="key")).repeated)
    same(False, (await log.append(message("another"), once="key 2")).repeated)


@rule(RULES)
async def once_keys_in_a_race(place: Place) -> None:
    """Of many appends at once under one key one is stored, and all get its events."""
    log = await place.begin()
    done = await asyncio.gather(*[log.append(message(f"r{number}"), once="key") for number in range(20)])

    same(1, sum(not appended.repeated for appended in done))
    same([done[0].events] * 20, [appended.events for appended in done])
    same(2, (await place.store.info("s")).head)


@rule(RULES)
async def appends_at_a_head(place: Place) -> None:
    """An append that names a head is stored only if the log ends there, unless its key was used before."""
    log = await place.begin()
    stored = await log.append(message("r"), once="key", head=1)
    await refused(HeadMoved, log.append(started("r"), head=1))
    await refused(HeadMoved, log.append(started("r"), head=3))
    await refused(HeadMoved, log.append(DELETED, head=1))

    same(2, (await place.store.info("s")).head)
    same(stored.events, (await log.append(message("r"), once="key", head=1)).events)
    same([3], [event.offset for event in (await log.append(started("r"), head=2)).events])


@rule(RULES)
async def deltas_do_not_move_a_head(place: Place) -> None:
    """What was decided at a head holds as long as nothing but deltas has come since."""
    log = await place.begin("s", "r")
    await log.append(started("r"))
    await log.append(text("r"))
    await log.append(text("r", start=1), head=3)
    await log.append(cancel("r"), head=3)
    await refused(HeadMoved, log.append(cancel("r"), head=5))

    same(6, (await place.store.info("s")).head)
    await log.append(text("r", start=2))
    await place.reopen()
    log = Log(place.store, "s")
    await refused(HeadMoved, log.append(cancel("r"), head=5))
    await log.append(cancel("r"), head=6)


@rule(RULES)
async def appends_at_a_head_in_a_race(place: Place) -> None:
    """Of many appends at once at one head one is stored."""
    log = await place.begin()
    doings = [log.append(message(f"r{number}"), head=1) for number in range(20)]
    done = await asyncio.gather(*doings, return_exceptions=True)

    same(19, sum(isinstance(result, HeadMoved) for result in done))
    same(2, (await place.store.info("s")).head)


@rule(RULES)
async def once_keys_of_refused_appends(place: Place) -> None:
    """A refused append does not use up its key; a stored one answers also when it would now be refused."""
    log = await place.begin()
    await refused(RunEnded, log.append(started("r"), once="key"))
    stored = await log.append(message("r"), started("r"), completed("r"), once="key")

    same(False, stored.repeated)
    same(stored.events, (await log.append(text("r"), once="key")).events)


@rule(RULES)
async def cancelled_appends_are_whole(place: Place) -> None:
    """An append whose caller was cancelled is stored and visible, or it is not; never a part of it."""
    log = await place.begin("s", "r")
    for number in range(20):
        appending = asyncio.create_task(log.append(text("r", f"{number} a"), text("r", f"{number} b")))
        for _ in range(number % 4):
            await asyncio.sleep(0)
        appending.cancel()
        await asyncio.gather(appending, return_exceptions=True)
    last = (await log.append(text("r", "last"))).events[0]

    events = await everything(log)
    same(list(range(1, last.offset + 1)), [event.offset for event in events])
    texts = texts_of(events)[:-1]
    same([text[:-1] + "b" for text in texts[::2]], texts[1::2])
