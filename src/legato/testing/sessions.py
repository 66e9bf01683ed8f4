"""The rules of sessions: what is told of them, lists, deletion."""

from __future__ import annotations

from ..errors import CursorInvalid, RunEnded, SessionExists, SessionNotFound
from ..event import Draft, SessionCreated
from ..log import SessionPage
from .place import DELETED, Place, message, text
from .rules import StoreCheck, refused, rule, same

RULES: list[StoreCheck] = []


@rule(RULES)
async def info_tells(place: Place) -> None:
    """The info of a session has its head, its first data, and the times of its first and last event but deltas."""
    log = await place.begin()
    place.clock.advance(5)
    last = (await log.append(message("r"), text("r"))).events[-1]
    info = await place.store.info("s")

    same(("s", 3, SessionCreated("s")), (info.session, info.head, info.created))
    same(((await log.read())[0].at, last.at), (info.created_at, info.updated_at))
    place.clock.advance(5)
    await log.append(text("r"))
    same((4, last.at), ((await place.store.info("s")).head, (await place.store.info("s")).updated_at))


@rule(RULES)
async def sessions_are_listed(place: Place) -> None:
    """Sessions come by their last event, newest first, in pages that ``before`` joins without gap or overlap."""
    for number in range(7):
        await place.begin(f"s{number}")
        place.clock.advance(number % 2)  # also while the clock stands still
    await place.store.append("s2", [message("r")])

    order = ["s2", "s6", "s5", "s4", "s3", "s1", "s0"]
    infos = (await place.store.sessions()).infos
    same(order, [info.session for info in infos])
    same([await place.store.info(name) for name in order], infos)
    seen: list[str] = []
    page = await place.store.sessions(limit=3)
    while page.infos:
        seen += [info.session for info in page.infos]
        page = await place.store.sessions(limit=3, after=page.next) if page.next else SessionPage([])
    same(order, seen)
    await refused(CursorInvalid, place.store.sessions(after="no such token"))


@rule(RULES)
async def sessions_have_owners(place: Place) -> None:
    """Lists can be of one owner's sessions; those that are nobody's have the owner ""."""
    for name, owner in [("a", "ann"), ("b", None), ("c", "ann"), ("d", "bob")]:
        await place.store.append(name, [Draft(SessionCreated(name, owner=owner))])
    await place.reopen()

    for owner, names in [
        ("ann", ["c", "a"]),
        ("bob", ["d"]),
        ("", ["b"]),
        ("nobody", []),
        (None, ["d", "c", "b", "a"]),
    ]:
        same(names, [info.session for info in (await place.store.sessions(owner=owner)).infos])
    page = await place.store.sessions(owner="ann", limit=1)
    same(["c"], [info.session for info in page.infos])
    same(["a"], [info.session for info in (await place.store.sessions(owner="ann", after=page.next)).infos])
    same(("ann", ""), ((await place.store.info("a")).owner, (await place.store.info("b")).owner))


@rule(RULES)
async def deletion(place: Place) -> None:
    """A deleted session is one event at its last offset; all but reading it says that there is no such session."""
    log = await place.begin("s", "r1", "r2")
    lease = await place.lease("s", "r1")
    await log.append(text("r1"), text("r1"), lease=lease, once="key")
    tombstone = (await log.append(DELETED)).events

    same([(6, "session.deleted")], [(event.offset, event.type) for event in tombstone])
    for after in (0, 1, 5):
        same(tombstone, await log.read(after))
        same(tombstone, await log.read(after, deltas=False))
    same([], await log.read(6))
    same([], await place.store.open_runs())
    same(SessionPage([]), await place.store.sessions())
    for doing in (
        log.append(message("r3")),
        log.append(text("r1"), lease=lease),
        log.append(message("r3"), once="key"),
        log.append(DELETED),
        place.store.info("s"),
    ):
        await refused(SessionNotFound, doing)
    await refused((RunEnded, SessionNotFound), place.lease("s", "r1"))
    await refused(SessionExists, place.begin())
    same(tombstone, await log.read())


@rule(RULES)
async def deletion_outlives_reopening(place: Place) -> None:
    """However much was said in a session that is deleted, nothing but its tombstone is there after reopening."""
    tombstones = []
    for number in range(40):
        log = await place.begin(f"s{number}", "r")
        await log.append(*[text("r", "x", start) for start in range(number + 1)])
        tombstones.append((await log.append(DELETED)).events)
    await place.reopen()

    for number, tombstone in enumerate(tombstones):
        same(tombstone, await place.store.read(f"s{number}", 0))
        same(tombstone, await place.store.read(f"s{number}", number + 2))
        await refused(SessionNotFound, place.store.info(f"s{number}"))
        await refused(SessionExists, place.begin(f"s{number}"))
    same(([], []), ((await place.store.sessions()).infos, await place.store.open_runs()))
