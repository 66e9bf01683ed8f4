"""The rules of keeping: whatever is stored stays, and comes back as it was."""

from __future__ import annotations

import asyncio

from ..errors import RunEnded, SessionExists, StaleLease
from ..event import Draft, OtherFact, TextDelta, ToolCompleted
from ..json import JsonObject
from ..log import Log, SessionPage, Store, Thinning
from .place import DELETED, Place, completed, message, started, text
from .rules import StoreCheck, everything, refused, rule, same

RULES: list[StoreCheck] = []


EMBEDDED_RULES: list[StoreCheck] = []


@rule(RULES)
async def large_appends(place: Place) -> None:
    """An append of many drafts, and one of a large draft, are stored whole and read in pages."""
    log = await place.begin("s", "r")
    await log.append(*[text("r", "x" * (number % 50), number) for number in range(3_000)])
    large = "0123456789abcdef" * 200_000
    await log.append(*[text("r", large) for _ in range(4)])

    events = await everything(log)
    same(list(range(1, 3_007)), [event.offset for event in events])
    texts = [event.fact for event in events if isinstance(event.fact, TextDelta)]
    same(list(range(3_000)), [fact.start for fact in texts[:-4]])
    same([large] * 4, [fact.text for fact in texts[-4:]])


@rule(RULES)
async def any_text_is_kept(place: Place) -> None:
    """Every JSON value comes back as it was, and ids may be any text without control characters."""
    odd = (
        'quote " backslash \\ slash / tab \t NUL \0 line \u2028 e\u0301 \U0001f9d1\u200d\U0001f680 \u05d0\u202e \ufffe'
    )
    data: JsonObject = {
        odd: odd,
        "numbers": [0, -1, 2**53, 2**63 - 1, -(2**63), 0.1, 1e300, 5e-324, -0.5],
        "others": [None, True, False, "", [], {}, [[["deep"]]]],
    }
    session, run, key = "S/ü:\u2028'\"", "r\U0001f680;--", "ключ ' \" ?"
    log = await place.begin(session, run)
    done = ToolCompleted("c", odd, odd, True, data)
    stored = await log.append(Draft(done, run), Draft(OtherFact("x", data), run), once=key)
    place.store = await place.reopen()

    log = Log(place.store, session)
    same([done, OtherFact("x", data)], [event.fact for event in await log.read(2)])
    same(data, (await log.read(3))[0].data)
    same(stored.events, (await log.append(message("q"), once=key)).events)
    same((session, [run]), ((info := await place.store.info(session)).session, [r.run for r in info.open_runs]))
    same(run, (await place.lease(session, run)).run)


@rule(RULES)
async def everything_is_there_after_reopening(place: Place) -> None:
    """Closing and opening again changes no event, no info, no key and no open run, and offsets go on."""
    log = await place.begin("s", "r1", "r2", "r3")
    await log.append(started("r1"), *[text("r1", str(number)) for number in range(700)], once="key")
    await log.append(completed("r1"))
    await place.begin("gone", "r")
    await place.store.append("gone", [DELETED])
    events, info = await everything(log), await place.store.info("s")
    whole, gone = await everything(log, deltas=False), await place.store.read("gone", 0)
    await place.reopen()

    log = Log(place.store, "s")
    same(events, await everything(log))
    same(whole, await everything(log, deltas=False))
    same(info, await place.store.info("s"))
    same(SessionPage([info]), await place.store.sessions())
    same(["r2", "r3"], [run.run for run in await place.store.open_runs()])
    same(events[4:705], (await log.append(message("q"), once="key")).events)
    await refused(RunEnded, log.append(text("r1")))
    same(gone, await place.store.read("gone", 0))
    await refused(SessionExists, place.begin("gone"))
    same([info.head + 1], [event.offset for event in (await log.append(message("q"))).events])


@rule(RULES)
async def closing_is_idempotent(place: Place) -> None:
    """A store can be closed again, and whoever does it at the same time waits for the same end."""
    await place.begin()
    await asyncio.gather(place.store.close(), place.store.close())
    await place.store.close()
    await place.reopen()
    same(1, (await place.store.info("s")).head)


@rule(EMBEDDED_RULES)
async def opening_forgets_owners(place: Place) -> None:
    """After an opening nobody holds a run, but epochs go on, so that a writer of the earlier life is refused."""
    await place.begin("s", "r")
    old = await place.lease("s", "r", owner="earlier", ttl=1_000)
    await place.reopen()

    run = (await place.store.open_runs())[0]
    same((None, old.epoch), (run.owner, run.epoch))
    new = await place.lease("s", "r", owner="later")
    same(True, new.epoch > old.epoch)
    await refused(StaleLease, place.store.append("s", [text("r")], lease=old))
    await place.store.append("s", [text("r")], lease=new)


@rule(RULES)
async def pieces_are_joined(place: Place) -> None:
    """A store that can make a log thin (``thin``) joins what runs that have ended said, in place: no offset, no word
    and nothing else changes, however it is read. Or it keeps it in less room, and nothing but times changes."""
    thin = getattr(place.store, "thin", None)
    if thin is None:
        return

    log = await place.begin("s", "r1")
    await log.append(started("r1"), *[text("r1", f"{number} ", 4 * (number - 100)) for number in range(100, 700)])
    once = [text("r1", "700 ", 2_400), text("r1", "701 ", 2_404)]
    keyed = await log.append(*once, once="key")
    await log.append(completed("r1"))
    await log.append(message("r2"), started("r2"), *[text("r2", "ab", 2 * number) for number in range(100)])
    before = await everything(log)
    await place.reopen()
    log, thin = Log(place.store, "s"), place.store.thin  # type: ignore[attr-defined]
    for twice in (False, True):
        changed, after = 0, 0
        while after is not None:
            step = await thin("s", after, 150)
            changed, after = changed + step.changed, step.after
        same(twice, not changed)
    now = await everything(log)
    said = [[event for event in events if isinstance(event.fact, TextDelta)] for events in (before, now)]
    for run in ("r1", "r2"):
        one, two = ("".join([e.fact.text for e in some if e.run == run]) for some in said)  # type: ignore[union-attr]
        same(one, two)
    empty = sum(not event.fact.text for event in said[1] if isinstance(event.fact, TextDelta))
    same(True, empty > 500 or [event.json for event in now] == [event.json for event in before])
    same([(e.offset, e.type, e.run) for e in before], [(e.offset, e.type, e.run) for e in now])
    same([e for e in before if not e.fact.delta], [e for e in now if not e.fact.delta])
    same([e for e in before if e.run == "r2"], [e for e in now if e.run == "r2"])
    place.store = await place.reopen()
    for after in range(0, len(now), 37):
        same(now[after : after + 60], await place.store.read("s", after, limit=60))
    again = await place.store.append("s", once, once="key")
    same([event.offset for event in keyed.events], [event.offset for event in again.events])
    same((0, None), tuple(await thin_of(place.store, "none")))


async def thin_of(store: Store, session: str) -> Thinning:
    """What making this log thin gives."""
    found: Thinning = await store.thin(session, 0, 100)  # type: ignore[attr-defined]
    return found
