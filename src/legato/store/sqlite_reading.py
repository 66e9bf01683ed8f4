"""What is read from the file of a SQLite store: events out of rows, packs and the journal; sessions; runs.

It writes nothing. The one rule that must hold: what is given out ends before the first gap, since what came meanwhile
may be found in part.
"""

# ruff: noqa: S608  # no part of the SQL here comes from outside

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

from ..event import AnyFact, Event, Offset, read_stored, settle
from ..log import MICRO, SessionInfo, SessionRecord, created
from ..machine import OpenRun
from ..thin import says_nothing
from .sqlite_file import HIDDEN, STATES, Arrived, Record, apsw, journal_records, pack_data, pack_records, value

PAGE_BYTES = 4 * 1024 * 1024
"""A page of events ends when it holds so much data, whatever its limit: large events must not fill the memory."""

# A session's head is not kept beside its events: that would be one more page to write for every token.
_HEAD = """max(
    coalesce((SELECT max("offset") FROM event WHERE session = {id}), 0),
    coalesce((SELECT max(last) FROM pack WHERE session = {id}), 0)
)"""
_PAGE = """
    SELECT type, CAST(data AS BLOB), "offset", at, run FROM event {index}
    WHERE session = (SELECT id FROM session WHERE name = ?) AND "offset" > ? {only} ORDER BY "offset" LIMIT ?
"""
_PAGES = {
    True: _PAGE.format(index="", only=""),
    # Left to itself, SQLite walks through all deltas of the session.
    False: _PAGE.format(index="INDEXED BY event_whole", only="AND NOT delta"),
}
_PACKS = """
    SELECT data FROM pack WHERE session = (SELECT id FROM session WHERE name = ?) AND last > ? ORDER BY last
"""
_PACKS_OF = "SELECT rowid, last, data FROM pack WHERE session = ? AND last > ? AND last <= ? ORDER BY last"
_INFOS = f"""
    SELECT s.name, {_HEAD.format(id="s.id")}, e.at, s.updated_at, CAST(e.data AS BLOB),
        r.run, r."offset", r.state, r.owner, r.epoch, r.expires_at
    FROM (SELECT * FROM session WHERE NOT deleted AND {{which}}) s
    JOIN event e ON e.session = s.id AND e."offset" = 1
    LEFT JOIN open_run r ON r.session = s.id
    ORDER BY s.updated_at DESC, s.id, r."offset"
"""
_NEWEST = _INFOS.format(which="updated_at < ?1 ORDER BY updated_at DESC LIMIT ?2")
_NEWEST_OWNED = _INFOS.format(which="owner = ?3 AND updated_at < ?1 ORDER BY updated_at DESC LIMIT ?2")
_OPEN_RUNS = """
    SELECT s.name, r.run, r."offset", r.state, r.owner, r.epoch, r.expires_at
    FROM open_run r JOIN session s ON s.id = r.session ORDER BY r.session, r."offset" LIMIT ?
"""
_WAITING = """
    SELECT s.name FROM open_run r JOIN session s ON s.id = r.session
    LEFT JOIN event e ON e.session = r.session AND e."offset" = r."offset" GROUP BY r.session ORDER BY min(e.at)
"""
_LAST = f"SELECT {_HEAD.format(id='session.id')} FROM session WHERE name = ?"
_HEADS = f"""
    SELECT s.id, s.name, {_HEAD.format(id="s.id")},
        (SELECT max("offset") FROM event INDEXED BY event_whole WHERE session = s.id AND NOT delta),
        s.deleted, e.type, e.at, CAST(e.data AS BLOB), s.updated_at
    FROM session s LEFT JOIN event e ON e.session = s.id AND e."offset" = 1
    WHERE s.name IN (SELECT value FROM json_each(CAST(? AS TEXT)))
"""
_USED = """
    SELECT o.session, o.key, o.first, o.last
    FROM json_each(CAST(? AS TEXT)) j JOIN once o ON o.session = j.value ->> 0 AND o.key = j.value ->> 1
"""

_RECORDS = f"""
    SELECT s.id, s.name, {_HEAD.format(id="s.id")}, s.updated_at FROM session s
    WHERE {{which}} AND s.deleted < {HIDDEN} ORDER BY s.id LIMIT ?2
"""
_RECORDS_AFTER, _RECORD = _RECORDS.format(which="s.id > ?1"), _RECORDS.format(which="s.name = ?1")
_KEYS = "SELECT key, first, last FROM once WHERE session = ?"
_EPOCHS = 'SELECT run, epoch FROM open_run WHERE session = ? ORDER BY "offset"'

# What is left in the journal of a deleted session is to be seen by nobody.
_PACKED = """SELECT name, max(
        (SELECT coalesce(max(last), 0) FROM pack WHERE session = ?1),
        (SELECT coalesce(max("offset"), 0) FROM event WHERE session = ?1 AND deleted = 1)
    ) FROM session WHERE id = ?1"""

_json = msgspec.json.Encoder()

_offset = attrgetter("offset")


class Page(NamedTuple):
    """What a read found.

    Attributes:
        events: after the offset asked for, in order.
        last: there were no more then, and the session exists.
        torn: the next event was not there, though a later one was.
    """

    events: list[Event]
    last: bool = False
    torn: bool = False


def read_page(
    connection: apsw.Connection,
    session: str,
    after: Offset,
    limit: int,
    deltas: bool,
    unpacked: Sequence[Record] = (),
) -> Page:
    """The next events after ``after``: at most ``limit``, and ending with the one that reaches ``PAGE_BYTES``.

    Args:
        unpacked: the session's deltas that were visible and not packed, as it was *before* the call. What was packed
            meanwhile is found twice, and what came meanwhile may be found in part, so what is given out ends before
            the first gap.
    """
    rows = _rows(session, connection.execute(_PAGES[deltas], (session, after, limit)))
    if deltas:
        packs = (record for (data,) in connection.execute(_PACKS, (session, after)) for record in pack_records(data))
        rows = heapq.merge(rows, _read(session, packs, after), _read(session, unpacked, after), key=_offset)
    events: list[Event] = []
    room = PAGE_BYTES
    last = after
    for event in rows:
        if event.offset == last:
            continue
        if event.type == "session.deleted":
            return Page([event], True)
        if deltas and event.offset != last + 1:
            return Page(events, torn=not events)
        last = event.offset
        events.append(event)
        room -= len(event.json)
        if room <= 0 or len(events) == limit:
            return Page(events)
    if events:
        return Page(events, True)
    head = max(value(connection, _LAST, (session,)) or 0, unpacked[-1][0] if unpacked else 0)
    return Page(events, head == after > 0)


def _rows(session: str, rows: Iterable[Any]) -> Iterator[Event]:
    for type_, data, offset, at, run in rows:
        fact, json = read_stored(session, offset, type_, data)
        yield Event(fact, offset, at / MICRO, run, json)


def _read(session: str, records: Iterable[Record], after: Offset) -> Iterator[Event]:
    for offset, at, type_, run, data in records:
        if offset <= after:
            continue
        count = 1
        if data.startswith(b"*"):
            times, _, data = data[1:].partition(b" ")
            count = int(times)
        fact, json = read_stored(session, offset, type_, data)
        for each in range(max(offset - count, after) + 1, offset + 1):
            yield Event(fact, each, at / MICRO, run, json)


def read_packs(
    connection: apsw.Connection, session: str, id: int, after: Offset, until: Offset, limit: int
) -> list[tuple[int, Offset, list[Event]]]:
    """Packs of a session, by its name and id, that end behind ``after`` and not behind ``until``, of ``limit`` events
    in all or some more: the row of each, its last offset, and its events."""
    found: list[tuple[int, Offset, list[Event]]] = []
    for row, last, data in connection.execute(_PACKS_OF, (id, after, until)):
        events = list(_read(session, pack_records(data), 0))
        found.append((row, last, events))
        limit -= len(events)
        if limit <= 0:
            break
    return found


def repacked(events: Sequence[Event]) -> bytes:
    """A pack of these events; those that are the same, one after another, stand there once."""
    records: list[Record] = []
    count = 0
    for event in events:
        json = event.json or settle(event.fact)[1]
        same = records[-1] if records else None
        at = round(event.at * MICRO)
        if same is not None and (event.offset, event.type, event.run) == (same[0] + 1, same[2], same[3]):
            before = same[4].partition(b" ")[2] if count > 1 else same[4]
            if before == json and says_nothing(event.fact):
                count += 1
                records[-1] = event.offset, same[1], event.type, event.run, b"*%d %b" % (count, json)
                continue
        count = 1
        records.append((event.offset, at, event.type, event.run, json))
    return pack_data(records)


def read_journal(connection: apsw.Connection) -> list[tuple[int, int, dict[str, Arrived]]]:
    """The rows of the journal, in order: id, length, and by session what of it is not packed."""
    rows = []
    known: dict[int, Any] = {}
    for id, data in connection.execute("SELECT id, data FROM journal ORDER BY id"):
        arrived: dict[str, Arrived] = {}
        for session, records in journal_records(data):
            if session not in known:
                known[session] = connection.execute(_PACKED, (session,)).fetchone()
            name, packed = known[session]
            if records[-1][0] > packed:
                arrived[name] = (session, records)
        rows.append((id, len(data), arrived))
    return rows


def read_sessions(
    connection: apsw.Connection, limit: int, before: int, owner: str | None, heads: Mapping[str, Offset]
) -> tuple[list[SessionInfo], bool]:
    """Sessions of this owner (None: of all), newest first, last written before ``before`` (microseconds), and whether
    there are more than ``limit`` of them, or than fit into ``PAGE_BYTES`` (one does in any case).

    ``heads``: of deltas that were not packed, as it was before the call.
    """
    if owner is None:
        return _infos(connection.execute(_NEWEST, (before, limit + 1)), limit, heads)
    return _infos(connection.execute(_NEWEST_OWNED, (before, limit + 1, owner)), limit, heads)


def _infos(rows: Iterable[Any], limit: int, heads: Mapping[str, Offset]) -> tuple[list[SessionInfo], bool]:
    """Rows of a session and one of its open runs each (NULLs if it has none), joined again; whether more were left."""
    infos: dict[str, SessionInfo] = {}
    room = PAGE_BYTES
    for name, head, created_at, updated_at, data, *run in rows:
        info = infos.get(name)
        if info is None:
            room -= len(data)
            if len(infos) == limit or (room < 0 and infos):
                return list(infos.values()), True
            info = infos[name] = SessionInfo(
                session=name,
                head=max(head, heads.get(name, 0)),
                created_at=created_at / MICRO,
                updated_at=updated_at / MICRO,
                created=created(read_stored(name, 1, "session.created", data)[0]),
                open_runs=[],
            )
        if run[0] is not None:
            info.open_runs.append(_run(name, *run))
    return list(infos.values()), False


def read_records(
    connection: apsw.Connection, after: int | str, limit: int, heads: Mapping[str, Offset]
) -> tuple[list[SessionRecord], int | None]:
    """Records of the session of this name, or of those whose rows' ids are beyond ``after``, in their order; and the
    last of these ids, None if there are none. ``heads`` as for ``read_sessions``."""
    rows = list(connection.execute(_RECORD if isinstance(after, str) else _RECORDS_AFTER, (after, limit)))
    records = []
    for id, name, head, updated_at in rows:
        once = {key: (first, last) for key, first, last in connection.execute(_KEYS, (id,))}
        epochs = dict(connection.execute(_EPOCHS, (id,)))
        records.append(SessionRecord(name, max(head, heads.get(name, 0)), updated_at / MICRO, once, epochs))
    return records, rows[-1][0] if rows else None


def read_open_runs(connection: apsw.Connection, limit: int = -1) -> list[OpenRun]:
    """Open runs (all, if ``limit`` is negative), oldest first in their sessions."""
    return [_run(*row) for row in connection.execute(_OPEN_RUNS, (limit,))]


def read_waiting(connection: apsw.Connection) -> list[str]:
    """Sessions with open runs; those whose oldest open message has waited longest come first."""
    return [name for (name,) in connection.execute(_WAITING)]


def _run(session: Any, run: Any, offset: Any, state: Any, owner: Any, epoch: Any, expires_at: Any) -> OpenRun:
    return OpenRun(session, run, offset, STATES[state], owner, epoch, expires_at / MICRO)


class SessionRow(NamedTuple):
    """A session's row, its head but for the journal, and its first event: what that says, when (microseconds), and its
    length in bytes."""

    id: int
    name: str
    head: Offset
    whole: Offset
    deleted: bool
    begun: tuple[AnyFact, int, int]
    updated_at: int


def read_heads(connection: apsw.Connection, names: Sequence[str]) -> list[SessionRow]:
    """Those of these sessions that exist, or existed."""
    return [
        SessionRow(
            id,
            name,
            head,
            whole or 0,
            bool(deleted),
            (read_stored(name, 1, type or "session.created", data or b"{}")[0], at or 0, len(data or b"")),
            updated_at,
        )
        for id, name, head, whole, deleted, type, at, data, updated_at in connection.execute(
            _HEADS, (_json.encode(names),)
        )
    ]


def read_used(connection: apsw.Connection, keys: Sequence[tuple[int, str]]) -> Iterable[tuple[Any, ...]]:
    """Session id, key, first and last offset for those of these once keys that were used."""
    return connection.execute(_USED, (_json.encode(keys),))
