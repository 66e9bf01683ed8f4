"""Blobs: the bytes that somebody sends in a message (images, files, sounds), stored beside the logs under their hash.

A message in a log has, instead of such a text, the way to it and its hash (``BlobRef``), in a field of its own that
only the door (``Sessions``) writes. So whatever a caller sends, none of it is a reference.

A blob is of one session, and goes with it; no two sessions share one. Whether others refer to the same bytes is then
nobody's question: not that of a deletion, which would have to ask it in one step with the bucket; nor that of a
stranger, who would learn from the answer who has which file. Those of a session are a log of Legato's own, so every
store keeps them, and moves, copies and deletes them as any log. Beyond a size they may be in a folder or bucket
(``Outside``); then that log only says so.

Two rules. A blob is durable before the message that refers to it. A log is deleted before its blobs. What a crash
leaves between the two, ``sweep`` finds.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import ParamSpec, Protocol, TypeVar

import msgspec

from .errors import BlobLost, BlobsAway, HeadMoved, SessionNotFound, StoreError, TooLarge
from .event import (
    BlobRef,
    Draft,
    Event,
    MessageCreated,
    MessageRevised,
    Offset,
    SessionCreated,
    SessionDeleted,
    SessionUpdated,
    settle,
)
from .json import LARGE
from .log import Log, SessionInfo, Store, append_or_begin
from .taken import LEAST, S, Taken, placed, referring, refilled, taken

logger = logging.getLogger("legato")

P = ParamSpec("P")
T = TypeVar("T")

PIECE = 196_608
"""Bytes of a blob in one event, a multiple of 3: so much base64 is no burden on whoever reads it."""
HOLDER = ".blobs"
"""Whose the logs of blobs are: no caller's, so no list has them."""
INSIDE = ".blobs."
OUTSIDE = ".files."
"""How the ids of a session's logs begin: of blobs in the store, and of those that are outside."""
WAITING_SECONDS = 3600.0
"""For which blobs may wait for the session that they were put down for."""
SWEPT = 100
"""Logs of blobs that are looked at in one go."""


class Outside(Protocol):
    """Where large blobs are, if not in the store: a folder, a bucket. Names are made here.

    Attributes:
        above: bytes; a blob of more is put there.
    """

    above: int

    async def put(self, name: str, data: bytes) -> None:
        """Store bytes, durable when this returns. What is there under the name is the same.

        Raises:
            BlobsAway: it cannot be done.
        """
        ...

    async def get(self, name: str) -> bytes | None:
        """The bytes; None if there are none.

        Raises:
            BlobsAway: nobody knows.
        """
        ...

    async def delete(self, name: str) -> None:
        """Delete them, durably. Idempotent.

        Raises:
            BlobsAway: it cannot be done.
        """
        ...


class Blobs:
    """The blobs of all sessions.

    Args:
        store: open.
        outside: where large ones are; None: in the store, too.
    """

    def __init__(self, store: Store, outside: Outside | None = None) -> None:
        self._store = store
        self.outside = outside

    async def take(self, facts: Iterable[S], *, size: int, most: int) -> Taken[S]:
        """Take the bytes out of messages that somebody has sent; nothing is stored.

        Args:
            facts: the messages.
            size: of what they were read from, in bytes; 0 if nobody knows.
            most: bytes that a blob may have.

        Raises:
            TooLarge: one has more.
        """
        given = [msgspec.structs.replace(fact, blobs=None) if fact.blobs else fact for fact in facts]
        found = Taken(given, given, {}) if 0 < size < LEAST else await _beside(size, taken, given)
        for data in found.blobs.values():
            if len(data) > most:
                raise TooLarge(
                    f"A file in a message may have {most} bytes, got {len(data)}.", bound="blob_bytes", limit=most
                )
        return found

    @asynccontextmanager
    async def kept(
        self, session: str, found: Taken[S], known: Mapping[str, BlobRef], *, begun: bool = True
    ) -> AsyncIterator[list[S]]:
        """Put the bytes of messages that are appended to a session within.

        Args:
            session: its id.
            found: the messages.
            known: what its log refers to already.
            begun: it is there; else it begins within.

        Returns:
            The messages as they are to be appended. With their bytes in them, if a session is to begin whose blobs have
            been swept.

        Raises:
            SessionNotFound: it has been deleted. StoreError: nobody refers to what was stored.
        """
        facts = await self._kept(session, found, known, begun)
        try:
            yield facts
        except SessionNotFound:
            if found.blobs:  # they may have come after those that went with it
                with contextlib.suppress(StoreError):
                    await self.forget(session)
            raise

    async def _kept(self, session: str, found: Taken[S], known: Mapping[str, BlobRef], begun: bool) -> list[S]:
        if not found.blobs or (not begun and await self._info(session) is not None):
            return found.facts  # in the second case they are refused
        places = {hash: (ref.place, False) for hash in found.blobs if (ref := known.get(hash)) and ref.place}
        missing = {hash: data for hash, data in found.blobs.items() if hash not in places}
        try:
            places |= await self.put(session, missing)
        except SessionNotFound:
            if begun:
                raise
            return found.given
        return [placed(fact, places) for fact in found.facts]

    async def put(self, session: str, blobs: Mapping[str, bytes]) -> dict[str, tuple[Offset, bool]]:
        """Store bytes for a session, which need not have begun. They are durable when this returns.

        Args:
            session: whose they are.
            blobs: by SHA-256.

        Returns:
            What ``placed`` wants of each.

        Raises:
            SessionNotFound: its blobs have been deleted, and so has it as a rule.
            StoreError: some may have been stored; nobody refers to them.
        """
        places: dict[str, tuple[Offset, bool]] = {}
        for hash, data in blobs.items():
            if self.outside is not None and len(data) > self.outside.above:
                await self._put_outside(self.outside, session, hash, data)
                places[hash] = (0, True)
            else:
                drafts = await _beside(len(data), _pieces, hash, data)
                places[hash] = (await self._append(f"{INSIDE}{session}", drafts), False)
        return places

    async def _put_outside(self, outside: Outside, session: str, hash: str, data: bytes) -> None:
        log = f"{OUTSIDE}{session}"
        # Noted first: so whatever is there, some log names it, and goes only with it.
        await self._append(log, [Draft(SessionUpdated({"hash": hash, "size": len(data)}))])
        await outside.put(name_of(session, hash), data)
        if await self._info(log) is None:  # deleted meanwhile, perhaps before these bytes were there
            await outside.delete(name_of(session, hash))
            raise SessionNotFound(session)

    async def _append(self, log: str, drafts: Sequence[Draft]) -> Offset:
        """Append to a log that there need not be yet; the offset of the first of ``drafts``."""
        try:
            return (await append_or_begin(self._store, log, SessionCreated(owner=HOLDER), drafts))[0].offset
        except SessionNotFound:
            raise SessionNotFound(session_of(log)) from None

    async def get(self, session: str, ref: BlobRef) -> bytes:
        """The bytes that a message of the session refers to.

        Raises:
            BlobLost: they are not there, or not what they were.
            StoreError: nobody knows; ``BlobsAway`` if they are outside.
        """
        if not ref.outside:
            pieces = await self._read(f"{INSIDE}{session}", ref)
            data = await _beside(ref.size, _joined, ref, pieces)
        elif self.outside is None:
            raise BlobsAway(
                f"Session {session!r} has blobs outside the store, and this process was not told where: blobs=, or "
                "--blobs."
            )
        else:
            stored = await self.outside.get(name_of(session, ref.hash))
            data = None if stored is None else await _beside(ref.size, _checked, ref, stored)
        if data is None:
            raise BlobLost(f"The bytes {ref.hash} of session {session!r} are lost.", hash=ref.hash)
        return data

    async def _read(self, log: str, ref: BlobRef) -> list[Event]:
        after, found = ref.place - 1, list[Event]()
        count = -(-ref.size // PIECE) or 1
        while len(found) < count and (events := await self._store.read(log, after, limit=count - len(found))):
            found += events
            after = events[-1].offset
        return found

    async def whole(self, session: str, event: Event, known: dict[str, bytes] | None = None) -> Event:
        """An event of the session, with what of it stands beside the log. What is lost is named in the server's log,
        and a text in its place says so.

        Args:
            session: its id.
            event: any.
            known: what has been read of late, by hash, and is to be kept.

        Raises:
            StoreError: nobody knows what is there.
        """
        fact = referring(event)
        if fact is None:
            return event
        refs = fact.blobs or ()
        known = {} if known is None else known
        for ref in refs:
            if ref.hash not in known:
                try:
                    known[ref.hash] = await self.get(session, ref)
                except BlobLost as exc:
                    logger.error("session %s: event %d: %s", session, event.offset, exc.message)
        size = sum(ref.size for ref in refs)
        whole: MessageCreated | MessageRevised = await _beside(size, refilled, fact, known)
        return msgspec.structs.replace(event, fact=whole, json=b"", wire={})

    # Deletion ---------------------------------------------------------------------------------------------------------

    async def check_gone(self, session: str) -> None:
        """Raise ``BlobsAway`` if ``forget`` could not delete what is outside. To be asked before the log is deleted."""
        if self.outside is None and await self._info(f"{OUTSIDE}{session}") is not None:
            raise BlobsAway(
                f"Session {session!r} has blobs outside the store, which cannot be deleted by a process that was not "
                "told where: blobs=, or --blobs."
            )

    async def forget(self, session: str) -> None:
        """Delete the blobs of a session that has been deleted; durable when this returns. Idempotent.

        Raises:
            StoreError: some may be left; ``sweep`` finds them.
        """
        for kind in (OUTSIDE, INSIDE):
            if (info := await self._info(f"{kind}{session}")) is not None:
                await self._drop(info)

    async def _drop(self, info: SessionInfo, *, unless_grown: bool = False) -> None:
        """Delete a log of blobs and what it names; unless it has grown since ``info``, if that is wanted."""
        session, names = session_of(info.session), list[str]()
        if info.session.startswith(OUTSIDE):
            await self.check_gone(session)
        while True:
            if info.session.startswith(OUTSIDE):
                events = Log(self._store, info.session).all(until=info.head)
                said = [event.fact.metadata async for event in events if isinstance(event.fact, SessionUpdated)]
                names = [name_of(session, str(each.get("hash"))) for each in said]
                if not unless_grown:
                    await self._delete(names)  # as long as a log names them
            try:
                await self._store.append(info.session, [Draft(SessionDeleted())], head=info.head)
            except HeadMoved:
                if unless_grown:
                    return
                info = await self._store.info(info.session)
                continue
            except SessionNotFound:  # others have done it
                return
            await self._delete(names)  # what has come meanwhile, of what it named
            return

    async def _delete(self, names: Iterable[str]) -> None:
        if self.outside is not None:
            for name in names:
                await self.outside.delete(name)

    async def _info(self, log: str) -> SessionInfo | None:
        try:
            return await self._store.info(log)
        except SessionNotFound:
            return None

    async def sweep(self, now: float, after: str | None = None) -> tuple[str | None, int]:
        """Delete what is nobody's of some blobs: of sessions that have been deleted, and of those that have not begun
        for an hour.

        Args:
            now: seconds since the epoch.
            after: what the last call gave.

        Returns:
            Where to go on, None at the end; and of how many sessions something was deleted.
        """
        page = await self._store.sessions(limit=SWEPT, after=after, owner=HOLDER)
        swept = 0
        for info in page.infos:
            events = await self._store.read(session_of(info.session), 0, limit=1)
            gone = bool(events) and isinstance(events[0].fact, SessionDeleted)
            if gone or (not events and now - info.updated_at > WAITING_SECONDS):
                await self._drop(info, unless_grown=not gone)
                swept += 1
        return page.next, swept


def session_of(log: str) -> str:
    """The session whose log of blobs this is."""
    return log.removeprefix(INSIDE).removeprefix(OUTSIDE)


def name_of(session: str, hash: str) -> str:
    """Under what the bytes of a session are outside: nobody can tell from it which session that is."""
    return f"{hashlib.sha256(session.encode()).hexdigest()[:32]}/{hash}"


async def _beside(size: int, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """What ``work`` gives, which takes as long as what has so many bytes: beside the event loop, if that is large."""
    return work(*args, **options) if size <= LARGE else await asyncio.to_thread(work, *args, **options)


def _pieces(hash: str, data: bytes) -> list[Draft]:
    drafts = []
    for start in range(0, len(data), PIECE) or (0,):
        said = {"hash": hash, "size": len(data), "start": start}
        piece = base64.b64encode(data[start : start + PIECE]).decode()
        fact, json = settle(SessionUpdated({**said, "data": piece}))
        drafts.append(Draft(fact, None, json))
    return drafts


def _joined(ref: BlobRef, events: Sequence[Event]) -> bytes | None:
    said = [event.fact.metadata for event in events if isinstance(event.fact, SessionUpdated)]
    try:
        return _checked(ref, b"".join(binascii.a2b_base64(each["data"]) for each in said))
    except (KeyError, TypeError, ValueError):
        return None


def _checked(ref: BlobRef, data: bytes) -> bytes | None:
    """The bytes, if they are what was put there."""
    return data if hashlib.sha256(data).hexdigest() == ref.hash else None
