"""The file of a SQLite store: its schema and migrations, how it is opened, and what a row of a change does.

It knows no threads and no event loop, but their lock (the GIL) shapes how it writes. apsw lets go of it around every
step of a statement. A short step (a row read from the cache) has it back before another thread noticed; after a long
one the event loop has it, for 5 ms if it is busy. A group of appends is therefore written in *one* step, for which the
event loop need not stop: all its rows go through the view ``change``, where one trigger for each kind of row does the
work.
"""

# ruff: noqa: S608  # no part of the SQL here comes from outside

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import msgspec

try:
    import apsw as apsw  # for the other modules too, so that the error is here alone
except ModuleNotFoundError as exc:
    raise ModuleNotFoundError(
        "The SQLite store needs the package apsw: pip install 'legato[server]'", name="apsw"
    ) from exc

from ..errors import StoreError, StoreVersion
from ..event import DAMAGE, Offset
from ..machine import RunState

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

Record = tuple[Offset, int, str, str | None, bytes]
"""A delta as it is packed: offset, time, type, run and JSON. In a thin log, with ``*N `` before the JSON, it is the
last of N that are the same."""
Arrived = tuple[int, list[Record]]
"""A session's id, and deltas of it."""

_binary = msgspec.msgpack.Encoder()
pack_data: Callable[[Sequence[Record]], bytes] = _binary.encode
journal_data: Callable[[Sequence[Arrived]], bytes] = _binary.encode
pack_records: Callable[[bytes], list[Record]] = msgspec.msgpack.Decoder(list[Record]).decode
journal_records: Callable[[bytes], list[Arrived]] = msgspec.msgpack.Decoder(list[Arrived]).decode


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
    return [record[1] for _, records in journal_records(data) for record in records]


def _pack_times(data: bytes) -> list[int]:
    return [record[1] for record in pack_records(data)]


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
