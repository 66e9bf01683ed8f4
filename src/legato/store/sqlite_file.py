"""The file of a SQLite store: its schema and migrations, and the SQL.

It knows no threads and no event loop, but their lock (the GIL) shapes how it writes. apsw lets go of it around every
step of a statement. A short step (a row read from the cache) has it back before another thread noticed; after a long
one the event loop has it, for 5 ms if it is busy. A group of appends is therefore written in *one* step, for which the
event loop need not stop: all its rows go through the view ``change``, where one trigger for each kind of row does the
work.
"""

# ruff: noqa: S608  # no part of the SQL here comes from outside

from __future__ import annotations

import heapq
import itertools
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from operator import attrgetter
from typing import Any, NamedTuple

import msgspec

try:
    import apsw as apsw  # for the other modules too, so that the error is here alone
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        "The SQLite store needs the package apsw: pip install 'legato[server]'", name="apsw"
    ) from exc

from ..errors import StoreError, StoreVersion
from ..event import DAMAGE, AnyFact, Event, Offset, read_stored, settle
from ..log import MICRO, SessionInfo, SessionRecord, created
from ..machine import OpenRun, RunState
from ..thin import says_nothing

logger = logging.getLogger("legato")

# Times are integers, microseconds since the epoch: exact in SQL, and the same float again after division.
MIGRATIONS = [
    """
    CREATE TABLE session (
        id INTEGER PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        updated_at INTEGER NOT NULL,
        deleted INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX session_updated ON session (updated_at) WHERE NOT deleted;

    CREATE TABLE event (
        session INTEGER NOT NULL,
        "offset" INTEGER NOT NULL,
        at INTEGER NOT NULL,
        type TEXT NOT NULL,
        run TEXT,
        delta INTEGER NOT NULL,
        data TEXT NOT NULL,
        PRIMARY KEY (session, "offset")
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX event_whole ON event (session, "offset") WHERE NOT delta;

    CREATE TABLE once (
        session INTEGER NOT NULL,
        key TEXT NOT NULL,
        first INTEGER NOT NULL,
        last INTEGER NOT NULL,
        PRIMARY KEY (session, key)
    ) STRICT, WITHOUT ROWID;

    CREATE TABLE open_run (
        session INTEGER NOT NULL,
        run TEXT NOT NULL,
        "offset" INTEGER NOT NULL,
        started INTEGER NOT NULL,
        owner TEXT,
        epoch INTEGER NOT NULL,
        expires_at INTEGER NOT NULL,
        PRIMARY KEY (session, run)
    ) STRICT, WITHOUT ROWID;
    """,
    # Who a session belongs to; and of an open run its state (a place in STATES) instead of whether it had started.
    """
    ALTER TABLE session ADD COLUMN owner TEXT NOT NULL DEFAULT '';
    CREATE INDEX session_owned ON session (owner, updated_at) WHERE NOT deleted;
    UPDATE open_run SET started = 2 WHERE EXISTS (
        SELECT 1 FROM event WHERE event.session = open_run.session AND NOT delta
            AND event.run = open_run.run AND type = 'run.cancel_requested'
    );
    ALTER TABLE open_run RENAME COLUMN started TO state;
    """,
    # Deltas come into the journal, each commit's as one row, and are packed, many of a session as one row (by the last
    # of them). Those of before stay among the events.
    """
    CREATE TABLE journal (
        id INTEGER PRIMARY KEY,
        data BLOB NOT NULL
    ) STRICT;

    CREATE TABLE pack (
        session INTEGER NOT NULL,
        last INTEGER NOT NULL,
        data BLOB NOT NULL
    ) STRICT;
    CREATE INDEX pack_last ON pack (session, last);
    """,
    # The incarnations of the file: one for each time that it was opened to be written to.
    """
    CREATE TABLE opening (
        id INTEGER PRIMARY KEY,
        incarnation TEXT NOT NULL,
        at INTEGER NOT NULL
    ) STRICT;
    """,
    # What is left of a deleted session does not say whose it was.
    """
    UPDATE session SET owner = '' WHERE deleted = 1;
    """,
]
"""``MIGRATIONS[v]`` takes a file from schema version v to v + 1. A new file has version 0."""

APPLICATION_ID = 0x4C656761
"""Marks the file as ours ("Lega"), so that another program's database is left alone."""

OPENINGS = 10_000
"""Incarnations that a file remembers."""

STATES = [RunState.QUEUED, RunState.RUNNING, RunState.CANCELLING]
"""The states of open runs, as the file has them: by their places."""

# What one row of a group does. SQLite runs the trigger whose WHEN fits; a row of NULLs does nothing (padding).
NEW_SESSION, EVENT, UPDATED, ONCE, RUN, RUN_ENDED, DELETED, JOURNAL, PACK, PACKED = range(1, 11)
STAGED, PUBLISHED, DISCARDED, REPACKED = range(11, 15)
WIDTH = 8
HIDDEN = 2
"""``deleted`` of a session that is being built, under a name that nobody can ask for."""
CHANGE = f"""
    CREATE TEMP VIEW change AS
        SELECT NULL AS kind, NULL AS a, NULL AS b, NULL AS c, NULL AS d, NULL AS e, NULL AS f, NULL AS g;
    CREATE TEMP TRIGGER new_session INSTEAD OF INSERT ON change WHEN new.kind = {NEW_SESSION} BEGIN
        INSERT INTO session (id, name, updated_at, owner) VALUES (new.a, new.b, 0, new.c);
    END;
    CREATE TEMP TRIGGER event INSTEAD OF INSERT ON change WHEN new.kind = {EVENT} BEGIN
        INSERT INTO event VALUES (new.a, new.b, new.c, new.d, new.e, new.f, CAST(new.g AS TEXT));
    END;
    CREATE TEMP TRIGGER updated INSTEAD OF INSERT ON change WHEN new.kind = {UPDATED} BEGIN
        UPDATE session SET updated_at = new.b WHERE id = new.a;
    END;
    CREATE TEMP TRIGGER once INSTEAD OF INSERT ON change WHEN new.kind = {ONCE} BEGIN
        INSERT INTO once VALUES (new.a, new.b, new.c, new.d);
    END;
    CREATE TEMP TRIGGER run INSTEAD OF INSERT ON change WHEN new.kind = {RUN} BEGIN
        INSERT OR REPLACE INTO open_run VALUES (new.a, new.b, new.c, new.d, new.e, new.f, new.g);
    END;
    CREATE TEMP TRIGGER run_ended INSTEAD OF INSERT ON change WHEN new.kind = {RUN_ENDED} BEGIN
        DELETE FROM open_run WHERE session = new.a AND run = new.b;
    END;
    CREATE TEMP TRIGGER deleted INSTEAD OF INSERT ON change WHEN new.kind = {DELETED} BEGIN
        DELETE FROM event WHERE session = new.a AND "offset" < new.b;
        DELETE FROM pack WHERE session = new.a;
        DELETE FROM once WHERE session = new.a;
        DELETE FROM open_run WHERE session = new.a;
        UPDATE session SET deleted = 1, owner = '' WHERE id = new.a;
    END;
    CREATE TEMP TRIGGER journal INSTEAD OF INSERT ON change WHEN new.kind = {JOURNAL} BEGIN
        INSERT INTO journal VALUES (new.a, new.b);
    END;
    CREATE TEMP TRIGGER pack INSTEAD OF INSERT ON change WHEN new.kind = {PACK} BEGIN
        INSERT INTO pack VALUES (new.a, new.b, new.c);
    END;
    CREATE TEMP TRIGGER repacked INSTEAD OF INSERT ON change WHEN new.kind = {REPACKED} BEGIN
        UPDATE pack SET data = new.b WHERE rowid = new.a;
    END;
    CREATE TEMP TRIGGER staged INSTEAD OF INSERT ON change WHEN new.kind = {STAGED} BEGIN
        INSERT INTO session (id, name, updated_at, deleted) VALUES (new.a, new.b, 0, {HIDDEN});
    END;
    CREATE TEMP TRIGGER published INSTEAD OF INSERT ON change WHEN new.kind = {PUBLISHED} BEGIN
        UPDATE session SET name = new.b, updated_at = new.c, owner = new.d, deleted = new.e WHERE id = new.a;
    END;
    CREATE TEMP TRIGGER discarded INSTEAD OF INSERT ON change WHEN new.kind = {DISCARDED} BEGIN
        DELETE FROM event WHERE session IN (SELECT id FROM session WHERE name = new.a AND deleted = {HIDDEN});
        DELETE FROM pack WHERE session IN (SELECT id FROM session WHERE name = new.a AND deleted = {HIDDEN});
        DELETE FROM session WHERE name = new.a AND deleted = {HIDDEN};
    END;
    CREATE TEMP TRIGGER packed INSTEAD OF INSERT ON change WHEN new.kind = {PACKED} BEGIN
        DELETE FROM journal WHERE id < new.a;
    END;
"""
STATEMENT_ROWS = 512
"""Rows in one statement at most: its text stays short enough for the statement cache of apsw (16 KiB)."""
PAGE_BYTES = 4 * 1024 * 1024
"""A page of events ends when it holds so much data, whatever its limit: large events must not fill the memory."""
BUSY_MS = 5_000
"""Patience with a lock of SQLite, in milliseconds; only foreign tools (a backup) ever hold one."""
INCREMENTAL = 2
"""The ``auto_vacuum`` of a file that can be made smaller in pieces."""
TIDY_PAGES = 128
"""Free pages that are given back in one step: some 2 ms."""
REWRITE_BYTES = 64 * 1024 * 1024
"""A file of an older version is rewritten when it is opened, so that it can be made smaller, unless it is larger."""
WAL_BYTES = 64 * 1024 * 1024
"""What the write-ahead log is cut down to when it has grown beyond."""

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

Record = tuple[Offset, int, str, str | None, bytes]
"""A delta as it is packed: offset, time, type, run and JSON. In a thin log, with ``*N `` before the JSON, it is the
last of N that are the same."""
Arrived = tuple[int, list[Record]]
"""A session's id, and deltas of it."""

_binary = msgspec.msgpack.Encoder()
pack_data: Callable[[Sequence[Record]], bytes] = _binary.encode
journal_data: Callable[[Sequence[Arrived]], bytes] = _binary.encode
_pack = msgspec.msgpack.Decoder(list[Record])
_journal = msgspec.msgpack.Decoder(list[Arrived])
_offset = attrgetter("offset")


# Queries --------------------------------------------------------------------------------------------------------------


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
        packs = (record for (data,) in connection.execute(_PACKS, (session, after)) for record in _pack.decode(data))
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
        events = list(_read(session, _pack.decode(data), 0))
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
        for session, records in _journal.decode(data):
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


def value(connection: apsw.Connection, sql: str, bindings: tuple[Any, ...] = ()) -> Any:
    """The first value of the first row; None without a row."""
    row = connection.execute(sql, bindings).fetchone()
    return row[0] if row else None


# Opening --------------------------------------------------------------------------------------------------------------


def connect(path: str, *, write: bool) -> apsw.Connection:
    """A connection; one that writes creates the file."""
    flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE if write else apsw.SQLITE_OPEN_READONLY
    connection = apsw.Connection(path, flags=flags)
    connection.set_busy_timeout(BUSY_MS)
    return connection


def prepare(connection: apsw.Connection, path: str, durability: str, incarnation: str, now: int) -> None:
    """Bring the file to the present schema, forget the owners of leases, and make ready to write, from ``now`` on
    (microseconds) as ``incarnation``.

    Raises:
        StoreVersion: the file is newer than this program.
        StoreError: it is another program's.
    """
    version = check_version(connection, path)
    connection.pragma("auto_vacuum", INCREMENTAL)  # it counts while nothing is in the file yet, or once it is rewritten
    if connection.pragma("journal_mode", "wal") != "wal":
        raise StoreError(
            f"SQLite could not set up its write-ahead log beside {path}, as on file systems of networks. Put the file "
            "on a local disk.",
            path=path,
        )
    connection.pragma("synchronous", durability)
    connection.pragma("journal_size_limit", WAL_BYTES)
    with transaction(connection):
        for migration in MIGRATIONS[version:]:
            connection.execute(migration)
        if version < len(MIGRATIONS):
            connection.pragma("application_id", APPLICATION_ID)
            connection.pragma("user_version", len(MIGRATIONS))
    at = max(now, 1 + last_at(connection))  # not in a transaction, which would not survive a damaged page
    with transaction(connection):
        connection.execute("INSERT INTO opening (incarnation, at) VALUES (?, ?)", (incarnation, at))
        connection.execute(f"DELETE FROM opening WHERE id <= (SELECT max(id) FROM opening) - {OPENINGS}")
        for (hidden,) in connection.execute(f"SELECT id FROM session WHERE deleted = {HIDDEN}").fetchall():
            connection.execute("DELETE FROM event WHERE session = ?", (hidden,))
            connection.execute("DELETE FROM pack WHERE session = ?", (hidden,))
        connection.execute(f"DELETE FROM session WHERE deleted = {HIDDEN}")
        connection.execute("UPDATE open_run SET owner = NULL, expires_at = 0 WHERE owner IS NOT NULL")
    # What is deleted is overwritten in pages that are written anyway. Those that become free are given back (``tidy``);
    # where that cannot be, they are overwritten too.
    connection.pragma("secure_delete", "fast")
    if not _can_shrink(connection, path):
        connection.pragma("secure_delete", True)
    connection.execute(CHANGE)


def last_at(connection: apsw.Connection) -> int:
    """The time of the last append or opening, in microseconds."""
    found = [value(connection, query) or 0 for query in _LAST_AT]
    for query, read in ((_LAST_JOURNAL, _journal_times), (_LAST_PACK, _pack_times)):
        with suppress(*DAMAGE, apsw.CorruptError):  # who reads it will say so
            data = value(connection, query)
            found += [] if data is None else read(data)
    return max(map(int, found))


_LAST_AT = ("SELECT max(updated_at) FROM session WHERE NOT deleted", "SELECT max(at) FROM opening")
_LAST_JOURNAL = "SELECT data FROM journal ORDER BY id DESC LIMIT 1"
_LAST_PACK = "SELECT data FROM pack ORDER BY rowid DESC LIMIT 1"


def _journal_times(data: bytes) -> list[int]:
    return [record[1] for _, records in _journal.decode(data) for record in records]


def _pack_times(data: bytes) -> list[int]:
    return [record[1] for record in _pack.decode(data)]


TOUCH = "UPDATE opening SET at = at WHERE id = (SELECT max(id) FROM opening)"
"""Changes nothing, and is written: whether that can be done."""


def read_openings(connection: apsw.Connection) -> dict[str, int]:
    """Until when (microseconds) each incarnation but the last has written."""
    rows = list(connection.execute("SELECT incarnation, at FROM opening ORDER BY id"))
    return {before[0]: after[1] for before, after in itertools.pairwise(rows)}


def _can_shrink(connection: apsw.Connection, path: str) -> bool:
    if connection.pragma("auto_vacuum") == INCREMENTAL:
        return True
    size = int(connection.pragma("page_count") or 0) * int(connection.pragma("page_size") or 0)
    if size <= REWRITE_BYTES:
        try:
            connection.execute("VACUUM")
        except apsw.FullError:
            pass  # another time
        return bool(connection.pragma("auto_vacuum") == INCREMENTAL)
    logger.warning(
        "%s was made by an older version: it does not grow smaller when sessions are deleted, and may keep words of "
        "theirs. While no server has it open, run: legato gc",
        path,
    )
    return False


def logged_bytes(connection: apsw.Connection) -> int:
    """How long the write-ahead log is at least, as far as SQLite knows: its head, and pages with a head each."""
    pages, _ = connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_NOOP)
    return 32 + pages * (24 + int(connection.pragma("page_size") or 0)) if pages > 0 else 0


def tidy(connection: apsw.Connection) -> bool:
    """Give back some of the free pages; whether that was all. Then the write-ahead log is empty too, and what was
    deleted is in no byte of the files any more.

    Raises:
        apsw.BusyError: somebody still reads what is old.
    """
    if connection.pragma("freelist_count") and connection.pragma("auto_vacuum") == INCREMENTAL:
        for _ in connection.execute(f"PRAGMA incremental_vacuum({TIDY_PAGES})"):
            pass
        return False
    connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    return True


@contextmanager
def transaction(connection: apsw.Connection) -> Iterator[None]:
    """All of it or nothing. What fails is raised as it was, also where SQLite has rolled back by itself."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if not connection.get_autocommit():
            connection.execute("ROLLBACK")
        raise


def check_version(connection: apsw.Connection, path: str) -> int:
    """The version of the file's schema; 0 of an empty file.

    Raises:
        StoreVersion: the file is newer than this program.
        StoreError: it is another program's.
    """
    version = int(connection.pragma("user_version") or 0)
    empty = value(connection, "SELECT count(*) FROM sqlite_schema") == 0
    if not empty and connection.pragma("application_id") != APPLICATION_ID:
        raise StoreError(f"{path} is a database of another program; Legato leaves it alone.", path=path)
    if version > len(MIGRATIONS):
        raise StoreVersion(
            f"{path} has schema version {version}, and this Legato knows versions up to {len(MIGRATIONS)}: it was "
            "written by a newer one.",
            path=path,
            version=version,
            known=len(MIGRATIONS),
        )
    return version
