"""Sessions as lines of JSON: exported, imported, and erased; all of one owner, or one.

The form (docs/data.md) is the log's own: one line for each event, as the store has it, between a line that begins its
session and one that ends it. So what has been exported can be read by any program, and imported again. Files that came
in messages stand in them, as they came.
"""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress

import msgspec

from .blobs import Blobs
from .credentials import erase_credentials
from .dialect.common import SESSION_PATTERN
from .errors import InvalidInput, SessionExists, SessionNotFound
from .event import (
    DAMAGE,
    AnyFact,
    BlobRef,
    Draft,
    Event,
    MessageCreated,
    MessageRevised,
    RunFailed,
    Said,
    SessionDeleted,
    read_fact,
    settle,
)
from .log import READ_LIMIT, Log, SessionInfo, SessionRecord, Store
from .machine import SessionState, moved
from .part import encode
from .spending import holder, is_own, own_of

FORMAT = 1
"""Of an export; one of a later version is refused."""
PAGE = 100
PASSES = 20
"""Over an owner's sessions at most: in each something was found that the one before had missed."""
EXPORT_BYTES = 262_144
"""Of lines that are given at once; one in any case."""
LATEST = 253_402_300_800.0
"""When the year 9999 is over, in seconds since the epoch."""


class Exported(msgspec.Struct, omit_defaults=True):
    """The first line of an export.

    Attributes:
        legato: ``FORMAT``.
        owner: whose sessions they are; None: it is of a session.
    """

    legato: int
    owner: str | None = None


class ExportedSession(msgspec.Struct):
    """The line before a session's events; times are seconds since the epoch."""

    session: str
    owner: str
    head: int
    created_at: float
    updated_at: float


class ExportedEvent(msgspec.Struct):
    """One event. ``data`` is the fact's JSON, as it is stored."""

    offset: int
    at: float
    type: str
    run: str | None
    data: msgspec.Raw


class ExportedEnd(msgspec.Struct):
    """The line behind a session's events: how many there were."""

    end: str
    events: int


class ExportedTotal(msgspec.Struct):
    """The last line. A file without it was cut."""

    total: int
    events: int


class ArchiveCount(msgspec.Struct, frozen=True):
    """What was exported, imported or erased.

    Attributes:
        sessions, events: how many.
        keys: how many API keys were revoked.
        left: ids of sessions that were there already, and were left as they are.
    """

    sessions: int = 0
    events: int = 0
    left: tuple[str, ...] = ()
    keys: int = 0


_encoder = msgspec.json.Encoder()
_LINES = (Exported, ExportedSession, ExportedEvent, ExportedEnd, ExportedTotal)


async def of_owner(store: Store, owner: str) -> AsyncIterator[SessionInfo]:
    """An owner's sessions, each once. One that is written to meanwhile may move to a page that was read before, and
    some may be begun: so it is looked again until nothing new is found, but not for ever."""
    seen: set[str] = set()
    for _ in range(PASSES):
        before = len(seen)
        after: str | None = None
        while True:
            page = await store.sessions(limit=PAGE, after=after, owner=owner)
            for info in page.infos:
                if info.session not in seen and not is_own(info.session):
                    seen.add(info.session)
                    yield info
            after = page.next
            if after is None:
                break
        if len(seen) == before:
            return


async def export(
    store: Store, *, owner: str | None = None, session: str | None = None, blobs: Blobs | None = None
) -> AsyncIterator[bytes]:
    """All sessions of an owner, or one session, as lines with their ends.

    Args:
        store: open; others may write to it meanwhile.
        owner: a subject, "" for nobody in particular.
        session: an id.
        blobs: of the sessions in ``store``; None: all of them are in it.

    Raises:
        InvalidInput: not one of both was given.
        BlobsAway: they are elsewhere.
        SessionNotFound: there is no such session.
    """
    if (owner is None) == (session is None):
        raise InvalidInput("An export is of one owner, or of one session.")
    blobs = blobs or Blobs(store)
    yield _line(Exported(FORMAT, owner))
    sessions = events = 0
    infos = of_owner(store, owner) if owner is not None else _one(await store.info(session or ""))
    async for info in infos:
        count = size = 0
        lines = [_line(_begin(info))]
        async for event in Log(store, info.session).all(until=info.head):
            if isinstance(event.fact, SessionDeleted):  # meanwhile
                break
            whole = (await blobs.whole(info.session, event)).fact
            lines.append(_line(_event(event if whole is event.fact else _saying(event, whole))))
            size += len(lines[-1])
            count += 1
            if size >= EXPORT_BYTES:
                yield b"".join(lines)
                lines, size = [], 0
        if not count:
            continue
        lines.append(_line(ExportedEnd(info.session, count)))
        yield b"".join(lines)
        sessions, events = sessions + 1, events + count
    yield _line(ExportedTotal(sessions, events))


async def _one(info: SessionInfo) -> AsyncIterator[SessionInfo]:
    yield info


def _line(value: msgspec.Struct) -> bytes:
    return _encoder.encode(value) + b"\n"


def _begin(info: SessionInfo) -> ExportedSession:
    return ExportedSession(info.session, info.owner, info.head, info.created_at, info.updated_at)


def _event(event: Event) -> ExportedEvent:
    data = event.json or settle(event.fact)[1]
    return ExportedEvent(event.offset, event.at, event.type, event.run, msgspec.Raw(data))


def _saying(event: Event, fact: AnyFact) -> Event:
    """The event, as it says ``fact``; fields that this version does not know are kept."""
    known = {name: value for name, value in event.data.items() if name not in type(fact).__struct_fields__}
    json = encode({**msgspec.json.decode(encode(fact)), **known})
    return Event(fact, event.offset, event.at, event.run, json)


# Import ---------------------------------------------------------------------------------------------------------------


def sessions_in(lines: Iterable[bytes]) -> Iterator[tuple[ExportedSession, list[ExportedEvent]]]:
    """The sessions of an export, each once it is whole.

    Raises:
        InvalidInput: it is no export, of a later version, or it was cut; the sessions before that have been given.
    """
    begun: ExportedSession | None = None
    events: list[ExportedEvent] = []
    ended = first = False
    number = sessions = total = 0
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        line = _read(raw, number)
        if ended or first != (not isinstance(line, Exported)):
            raise InvalidInput(f"Line {number} of the export is out of place: {raw[:80]!r}.")
        if isinstance(line, Exported):
            first = True
            if line.legato > FORMAT:
                raise InvalidInput(f"The export is of version {line.legato}, and this Legato reads up to {FORMAT}.")
        elif isinstance(line, ExportedSession) and begun is None:
            begun, events = line, []
        elif isinstance(line, ExportedEvent) and begun is not None and line.offset == len(events) + 1:
            events.append(line)
        elif isinstance(line, ExportedEnd) and begun is not None and line.events == len(events) > 0:
            yield begun, events
            begun, sessions, total = None, sessions + 1, total + len(events)
        elif isinstance(line, ExportedTotal) and begun is None and (line.total, line.events) == (sessions, total):
            ended = True
        else:
            raise InvalidInput(f"Line {number} of the export is out of place: {raw[:80]!r}.")
    if not ended:
        raise InvalidInput(f"The export ends after {number} lines without a total: it was cut.")


def _read(raw: bytes, number: int) -> msgspec.Struct:
    try:
        keys = msgspec.json.decode(raw, type=dict[str, msgspec.Raw])
        for kind in _LINES:
            if kind.__struct_fields__[0] in keys:
                return msgspec.json.decode(raw, type=kind)
        raise InvalidInput(f"Line {number} is none of an export: {raw[:80]!r}.")
    except DAMAGE as exc:
        raise InvalidInput(f"Line {number} is none of an export: {exc}.") from exc


async def take(store: Store, lines: Iterable[bytes], blobs: Blobs | None = None) -> ArchiveCount:
    """Store the sessions of an export under their ids, each whole or not at all; files in them as ``blobs`` has it.

    Their events keep their offsets, and their times where the store is ``Portable``, as all of Legato's are. A run that
    had not ended by then ends as ``interrupted``. A session that is there already is left as it is.

    Raises:
        InvalidInput: see ``sessions_in``; or an event is none that a log can have.
        StoreError: the sessions before that have been stored.
    """
    sessions = count = 0
    left: list[str] = []
    for begun, events in sessions_in(lines):
        try:
            await _store(store, begun, events, blobs or Blobs(store))
        except SessionExists:
            left.append(begun.session)
        else:
            sessions, count = sessions + 1, count + len(events)
    return ArchiveCount(sessions, count, tuple(left))


async def _store(store: Store, begun: ExportedSession, exported: list[ExportedEvent], blobs: Blobs) -> None:
    session = begun.session
    events = await _without_blobs(session, _events(session, exported), blobs)
    drafts = [Draft(event.fact, event.run, event.json) for event in events]
    left = moved(SessionState(session), drafts).runs
    said = "The session was moved while the answer was being given. What came is in its log."
    ends = [Draft(RunFailed("interrupted", said, Said("", "", []), None, None), run) for run in left]
    adopt: Callable[..., Awaitable[None]] | None = getattr(store, "adopt", None)
    if adopt is None:
        await store.append(session, [*drafts, *ends])
        return

    async def pages() -> AsyncIterator[Sequence[Event]]:
        for start in range(0, len(events), READ_LIMIT):
            yield events[start : start + READ_LIMIT]

    whole = next((event.at for event in reversed(events) if not event.fact.delta), events[0].at)
    await adopt(SessionRecord(session, len(events), whole, {}, dict.fromkeys(left, 0)), pages())
    if ends:
        await store.append(session, ends)


async def _without_blobs(session: str, events: list[Event], blobs: Blobs) -> list[Event]:
    """The events, with the files that are in them put beside the log that they are to be in."""
    kept, known = list[Event](), dict[str, BlobRef]()
    for event in events:
        if isinstance(fact := event.fact, MessageCreated | MessageRevised):
            found = await blobs.take([fact], size=len(event.json), most=sys.maxsize)
            async with blobs.kept(session, found, known, begun=False) as [fact]:
                known |= {ref.hash: ref for ref in fact.blobs or ()}
                event = _saying(event, fact) if found.blobs else event
        kept.append(event)
    return kept


def _events(session: str, exported: list[ExportedEvent]) -> list[Event]:
    if re.fullmatch(SESSION_PATTERN, session, re.ASCII) is None:  # so is none of our own, which begin with a dot
        raise InvalidInput(f"{session[:80]!r} is no session's id.")
    events = []
    for each in exported:
        if not 0 <= each.at < LATEST:
            raise InvalidInput(f"Event {each.offset} of session {session[:80]!r} is of no time: {each.at}.")
        try:
            json = encode(msgspec.json.decode(each.data))  # fields that this version does not know included
            fact = read_fact(each.type, json)
            if isinstance(fact, MessageCreated | MessageRevised) and fact.blobs:
                raise ValueError("it refers to files that are not in it")
            events.append(Event(fact, each.offset, each.at, each.run, json))
        except (*DAMAGE, InvalidInput, ValueError) as exc:
            raise InvalidInput(f"Event {each.offset} of session {session[:80]!r} is no event: {exc}.") from exc
    return events


# Erasure --------------------------------------------------------------------------------------------------------------


async def erase(store: Store, owner: str, blobs: Blobs | None = None) -> ArchiveCount:
    """Delete all sessions of an owner, with their blobs, their API keys, and what was counted of them. When it returns,
    that is durable, and nothing of it waits to be taken away.

    What is left of a session is its id, and when it was deleted: nobody can take it again. What the owner said in the
    sessions of others is part of those.

    Raises:
        InvalidInput: of nobody in particular it is not done.
        BlobsAway: a session has blobs that cannot be reached. If nobody said where they are, nothing was deleted.
    """
    blobs = blobs or Blobs(store)
    if not owner:
        raise InvalidInput("What is nobody's in particular is not erased by owner; delete its sessions.")
    async for info in of_owner(store, owner):
        await blobs.check_gone(info.session)
    keys = await erase_credentials(store, owner)  # first, so that nothing is begun meanwhile
    sessions = events = 0
    async for info in of_owner(store, owner):
        try:
            await store.append(info.session, [Draft(SessionDeleted())])
        except SessionNotFound:
            continue
        await blobs.forget(info.session)
        sessions, events = sessions + 1, events + info.head
    async for info in own_of(store, holder(owner)):
        with suppress(SessionNotFound):
            await store.append(info.session, [Draft(SessionDeleted())])
    sweep: Callable[[], Awaitable[None]] | None = getattr(store, "sweep", None)
    if sweep is not None:
        await sweep()
    return ArchiveCount(sessions, events, keys=keys)
