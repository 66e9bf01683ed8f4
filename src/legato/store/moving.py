"""All sessions of one store, taken to another as they are, and looked at there.

A session arrives whole or not at all, so whatever stops the move, it can be begun again: what is there is compared,
what is missing is taken. The one rule that must hold: nothing is counted that has not been read back.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence

import msgspec

from ..errors import Conflict, InvalidInput, StoreBusy, StoreError
from ..event import DAMAGED, Event, settle
from ..log import MICRO, Portable, SessionRecord, Store
from ..part import encode

AT_ONCE = 16
"""Sessions that are taken at the same time, so that their commits are shared. Each holds a page of its log."""
WRITTEN = "The source was written to meanwhile; stop its servers, and begin again with an empty target."

_pack = msgspec.msgpack.encode
_DAMAGED = encode(DAMAGED)


class Fingerprint:
    """What tells one session from another: SHA-256 of its record and all its events, to the byte and the microsecond.

    It says nothing of the store that the session is in, or of the order in which that gives its keys.
    """

    def __init__(self, record: SessionRecord) -> None:
        keys, epochs = sorted(record.once.items()), sorted(record.epochs.items())
        self._hash = hashlib.sha256(
            _pack((record.session, record.head, round(record.updated_at * MICRO), keys, epochs))
        )
        self.events = 0
        self.deleted = False
        self.damaged = 0

    def add(self, events: Sequence[Event]) -> None:
        """The next events."""
        for event in events:
            json = event.json or settle(event.fact)[1]
            self.damaged += json == _DAMAGED
            self._hash.update(_pack((event.offset, round(event.at * MICRO), event.type, event.run, json)))
        self.events += len(events)
        self.deleted = self.deleted or events[-1].type == "session.deleted"

    def number(self) -> int:
        """The digest, as a number of 256 bits."""
        return int.from_bytes(self._hash.digest())


class Holding(msgspec.Struct):
    """What a store has, as far as it has been read.

    Attributes:
        sessions: in all; ``deleted`` of them are tombstones.
        damaged: events whose JSON could not be read.
        digest: the sum of the sessions' fingerprints, so their order does not matter. It is the same exactly if they
            are.
    """

    sessions: int = 0
    deleted: int = 0
    events: int = 0
    damaged: int = 0
    digest: int = 0

    def add(self, read: Fingerprint) -> None:
        """One more session."""
        self.sessions += 1
        self.deleted += read.deleted
        self.events += read.events
        self.damaged += read.damaged
        self.digest = (self.digest + read.number()) % 2**256

    @property
    def hex(self) -> str:
        """The digest as it is printed."""
        return f"{self.digest:064x}"


class Moved(msgspec.Struct):
    """How far a move has come.

    Attributes:
        source, target: what was read there of the sessions that are moved.
        found: how many of them the target had before.
    """

    source: Holding = msgspec.field(default_factory=Holding)
    target: Holding = msgspec.field(default_factory=Holding)
    found: int = 0


async def pages(store: Store, session: str) -> AsyncIterator[list[Event]]:
    """All events of a session, page by page."""
    after = 0
    while events := await store.read(session, after):
        yield events
        after = events[-1].offset


async def fingerprint(store: Store, record: SessionRecord) -> Fingerprint:
    """Of a session that is in ``store``."""
    found = Fingerprint(record)
    async for events in pages(store, record.session):
        found.add(events)
    return found


def portable(store: Store) -> Portable:
    """``store``, if its sessions can be taken elsewhere.

    Raises:
        InvalidInput: they cannot.
    """
    for verb in ("records", "record", "adopt"):
        if not hasattr(store, verb):
            raise InvalidInput(f"{type(store).__name__} has no {verb}(), so nothing can be moved from it, or to it.")
    return store  # type: ignore[return-value]  # as has just been seen


def are_same(one: Store, other: Store) -> bool:
    """Whether two stores, both open, are one, by whichever addresses.

    All who have a store open have the same random name of its life. A copy on the same server may have that name, too;
    it is in another place there.
    """
    life = getattr(one, "incarnation", None)
    if life is None or life != getattr(other, "incarnation", None):
        return False
    return getattr(one, "whereabouts", "") == getattr(other, "whereabouts", "")


async def move(
    source: Store,
    target: Store,
    *,
    merge: bool = False,
    told: Callable[[Moved], object] = lambda moved: None,
) -> Moved:
    """Take all sessions of ``source`` to ``target``, both open, and compare what is there then.

    Nobody may write to the source meanwhile. Sessions that the target has already must be the same there.

    Args:
        source, target: see ``portable``.
        merge: let the target have sessions that the source does not have.
        told: called after each session.

    Raises:
        InvalidInput: see ``portable``.
        StoreBusy: somebody holds runs of the source, or has written to it meanwhile.
        Conflict: the target has other sessions, or one that is not the same. Those that were moved stay there.
        StoreError: a store failed, or has not stored what it was given.
    """
    source, target = portable(source), portable(target)
    if any(run.held(time.time()) for run in await source.open_runs(limit=sys.maxsize)):
        raise StoreBusy("Runs of the source are going on; stop its servers first.")
    if not merge:
        async for record in target.records():
            if await source.record(record.session) is None:
                raise Conflict(
                    f"The target has the session {record.session!r}, which the source does not have. Give an empty "
                    "one, or say that it may have others.",
                    session=record.session,
                )
    moved, before = Moved(), Holding()
    places = asyncio.Semaphore(AT_ONCE)

    async def take(record: SessionRecord) -> None:
        try:
            await _take(source, target, record, moved)
        except (Conflict, InvalidInput) as exc:
            if await source.record(record.session) != record:
                raise StoreBusy(WRITTEN) from exc
            raise
        finally:
            places.release()
        told(moved)

    try:
        async with asyncio.TaskGroup() as group:
            async for record in source.records():
                before.add(Fingerprint(record))
                await places.acquire()
                group.create_task(take(record))
    except BaseExceptionGroup as exc:
        raise exc.exceptions[0] from None
    after = Holding()
    async for record in source.records():
        after.add(Fingerprint(record))
    if after != before:
        raise StoreBusy(WRITTEN)
    return moved


async def _take(source: Portable, target: Portable, record: SessionRecord, moved: Moved) -> None:
    given = Fingerprint(record)

    async def read() -> AsyncIterator[list[Event]]:
        async for events in pages(source, record.session):
            given.add(events)
            yield events

    session = record.session
    there = await target.record(session)
    before = there is not None
    if before:
        async for _ in read():
            pass
    else:
        await target.adopt(record, read())
        there = await target.record(session)
    found = None if there is None else await fingerprint(target, there)
    if found is None or found.number() != given.number():
        if before:
            raise Conflict(f"The target has another session {session!r}: begin with an empty one.", session=session)
        raise StoreError(f"The target has not stored the session {session!r} as it was given.", session=session)
    moved.found += before
    moved.source.add(given)
    moved.target.add(found)
