"""The SQL of the PostgreSQL store: its schema and migrations, each statement, how lists are told to the server, and
what its errors mean.

The statements are written for the schema ``legato``; ``within`` puts them into another one. Times are integers,
microseconds since the epoch. Lists are arrays that are unnested, so that a statement is the same however many rows it
has.
"""

# ruff: noqa: S608  # no part of the SQL here comes from outside

from __future__ import annotations

import functools
import itertools
import re
import struct
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from ..errors import StoreBusy, StoreCorrupt, StoreError, StoreFull, StoreLost, StoreReadOnly
from ..log import MICRO
from .group import KnownRuns, RowGroup, RowRequest

PAGE_BYTES = 4 * 1024 * 1024
"""JSON in one page of a log, but for its last event."""
SWEPT_EVENTS = 5_000
"""Of a deleted session, that are taken away in one transaction: others are to store something in between."""
GAP_EVENTS = 500
GAP_BYTES = 512 * 1024
"""What is fetched at once of a log that others have written to."""

MIGRATIONS = [
    # What an append of deltas changes of a session's row is in no index, so it is updated within its page (HOT), for
    # which there is room. ``runs`` is the list of its open runs as JSON; ``holder`` and ``free_at`` say of the first of
    # them what is asked for all sessions at once, ``waits`` since when it is the first. ``eras`` says from which
    # offset on which era of the database (see ``era``) has written.
    """
    CREATE TABLE legato.session (
        id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text COLLATE "C" NOT NULL UNIQUE,
        owner text COLLATE "C" NOT NULL DEFAULT '',
        head bigint NOT NULL DEFAULT 0,
        whole bigint NOT NULL DEFAULT 0,
        updated_at bigint NOT NULL DEFAULT 0,
        deleted boolean NOT NULL DEFAULT false,
        runs text NOT NULL DEFAULT '',
        holder text,
        free_at bigint NOT NULL DEFAULT 0,
        waits bigint,
        era integer NOT NULL DEFAULT 0,
        eras text NOT NULL DEFAULT ''
    ) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
    CREATE INDEX session_updated ON legato.session (updated_at, id) WHERE NOT deleted;
    CREATE INDEX session_owned ON legato.session (owner, updated_at, id) WHERE NOT deleted;
    CREATE INDEX session_waits ON legato.session (waits) WHERE waits IS NOT NULL;

    CREATE TABLE legato.event (
        session bigint NOT NULL,
        "offset" bigint NOT NULL,
        at bigint NOT NULL,
        type text NOT NULL,
        run text,
        delta boolean NOT NULL,
        data text NOT NULL,
        PRIMARY KEY (session, "offset")
    ) WITH (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_insert_scale_factor = 0.1);
    CREATE INDEX event_whole ON legato.event (session, "offset") WHERE NOT delta;

    CREATE TABLE legato.once (
        session bigint NOT NULL,
        key text COLLATE "C" NOT NULL,
        first bigint NOT NULL,
        last bigint NOT NULL,
        PRIMARY KEY (session, key)
    );

    -- A row for each process: the number of its last transaction, written in that transaction.
    CREATE TABLE legato.writer (
        name text PRIMARY KEY,
        number bigint NOT NULL,
        at bigint NOT NULL
    ) WITH (fillfactor = 20);

    -- An era of the database ends when something that was stored may have been lost. The present one stands in a table
    -- that is empty after a crash, a failover or a restored backup, and says which server wrote it.
    CREATE TABLE legato.era (
        id integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
        name text NOT NULL UNIQUE,
        origin text NOT NULL,
        at bigint NOT NULL
    );
    CREATE UNLOGGED TABLE legato.present (
        era integer NOT NULL,
        origin text NOT NULL
    );

    -- What each node counts, until when.
    CREATE UNLOGGED TABLE legato.tally (
        node text PRIMARY KEY,
        counts text NOT NULL,
        until bigint NOT NULL
    ) WITH (fillfactor = 20);
    """,
    """
    -- Long sessions that were deleted, whose events up to their heads are taken away some at a time.
    CREATE TABLE legato.gone (
        session bigint PRIMARY KEY,
        head bigint NOT NULL
    );
    """,
]
"""``MIGRATIONS[v]`` takes a database from schema version v to v + 1. A new one has version 0."""
OLDEST = 2
"""The schema version that a program must know to work with what these migrations make: a migration that older programs
can live with leaves it as it is, so that both go on side by side while a new version is rolled out."""

VERSION_TABLE = """
    DO $$BEGIN IF to_regnamespace('legato') IS NULL THEN CREATE SCHEMA legato; END IF; END$$;
    CREATE TABLE IF NOT EXISTS legato.version (version integer NOT NULL, oldest integer NOT NULL)
"""
"""``CREATE SCHEMA IF NOT EXISTS`` asks for the right to create one even where there is one."""
HAS_VERSION = """
    SELECT EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'legato' AND c.relname = 'version')
"""
"""Of the tables themselves: ``to_regclass`` may remember for the length of a transaction that there was none."""
GET_VERSION = "SELECT version, oldest FROM legato.version"
DROP_VERSION = "DELETE FROM legato.version"
PUT_VERSION = "INSERT INTO legato.version VALUES (%s, %s)"
ALONE = "SELECT pg_advisory_xact_lock(hashtext('legato.version'))"
"""Until the end of the transaction: pooled connections have no other locks."""
PATIENT = "SELECT set_config('statement_timeout', '0', true), set_config('lock_timeout', '0', true)"
"""For a transaction that may take its time."""

LEAST_SERVER = 140_000
ABOUT = """
    SELECT current_setting('server_encoding'), current_setting('fsync'), current_setting('server_version_num')::int,
        current_database(), (SELECT coalesce(max(updated_at), 0) FROM legato.session)
"""
SETTINGS = """
    SELECT set_config('lock_timeout', '5s', %s), set_config('idle_in_transaction_session_timeout', '3s', %s),
        set_config('statement_timeout', '10s', %s), set_config('idle_session_timeout', '0', %s),
        set_config('synchronous_commit', CASE
            WHEN %s THEN 'off'
            WHEN current_setting('synchronous_commit') = 'off' THEN 'on'
            ELSE current_setting('synchronous_commit')
        END, %s)
"""

# Writing --------------------------------------------------------------------------------------------------------------

BEGIN = "BEGIN ISOLATION LEVEL READ COMMITTED"
"""Whatever the user's default is: what is read behind a lock is to be what whoever had it before has done."""
_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
NOW = f"SELECT coalesce(%s::bigint, {_NOW})"
_ORIGIN = "pg_postmaster_start_time()::text || ' ' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8)"
"""Which server it is, since when it has run, and on which timeline: another one after each failover and recovery."""
_PRESENT = f"(SELECT era FROM legato.present WHERE origin = ({_ORIGIN}))"

ENTER = "INSERT INTO legato.writer VALUES (%s, 0, " + _NOW + ")"
FORGET_WRITERS = f"DELETE FROM legato.writer WHERE at < {_NOW} - 7 * 86400 * 1000000::bigint"
LEAVE = "DELETE FROM legato.writer WHERE name = %s"

NEW = """
    INSERT INTO legato.session (name) SELECT n FROM unnest(%s::text[]) n ORDER BY n ON CONFLICT (name) DO NOTHING
"""
"""Rows for sessions that are to begin, so that there is something to lock; who comes later with the same waits."""
_ROW = "id, name, head, whole, updated_at, deleted, runs, waits, era, eras"
LOCK = f"SELECT {_ROW} FROM legato.session WHERE name = ANY(%s) ORDER BY id FOR UPDATE"
"""In one order for all, so that no two wait for each other."""
LOCK_FREE = f"""
    SELECT {_ROW} FROM legato.session WHERE waits IS NOT NULL AND free_at <= coalesce(%s, {_NOW})
    ORDER BY waits LIMIT %s FOR UPDATE SKIP LOCKED
"""
LOCK_HELD = f"SELECT {_ROW} FROM legato.session WHERE waits IS NOT NULL AND holder = %s ORDER BY id FOR UPDATE"
LOCK_OPEN = f"SELECT {_ROW} FROM legato.session WHERE waits IS NOT NULL ORDER BY id FOR UPDATE"
LOCK_WRITER = "SELECT number FROM legato.writer WHERE name = %s FOR UPDATE"
USED = """
    SELECT s.name, o.key, e.type, e.data, e."offset", e.at, e.run
    FROM unnest(%s::text[], %s::text[]) k (name, key) JOIN legato.session s ON s.name = k.name
    JOIN legato.once o ON o.session = s.id AND o.key = k.key
    JOIN legato.event e ON e.session = s.id AND e."offset" BETWEEN o.first AND o.last
    ORDER BY s.id, o.key, e."offset"
"""
AROUND = f"SELECT {_NOW}, (SELECT number FROM legato.writer WHERE name = %s), {_PRESENT}"
"""Asked when the rows are locked, so that it sees what whoever had them before has done."""

WRITE = f"""
    WITH e AS (
        INSERT INTO legato.event SELECT session, number, at, type, run, delta = 1, data
        FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::text[])
            u (session, number, at, type, run, delta, data)
    ), w AS (
        INSERT INTO legato.writer VALUES (%s, %s, {_NOW})
        ON CONFLICT (name) DO UPDATE SET number = excluded.number, at = excluded.at
    )
    UPDATE legato.session s SET head = u.head FROM unnest(%s::bigint[], %s::bigint[]) u (id, head) WHERE s.id = u.id
"""
"""Events; that they have been written; and the heads of sessions of which nothing else has changed."""
MOVE = """
    UPDATE legato.session s SET owner = CASE u.deleted WHEN 1 THEN '' ELSE coalesce(u.owner, s.owner) END,
        head = u.head, whole = u.whole, updated_at = u.updated_at, deleted = u.deleted = 1, runs = u.runs,
        holder = u.holder, free_at = u.free_at, waits = u.waits, era = u.era, eras = u.eras
    FROM unnest(%s::bigint[], %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[],
        %s::text[], %s::bigint[], %s::bigint[], %s::bigint[], %s::text[])
        u (id, owner, head, whole, updated_at, deleted, runs, holder, free_at, waits, era, eras)
    WHERE s.id = u.id
"""
KEYS = "INSERT INTO legato.once SELECT * FROM unnest(%s::bigint[], %s::text[], %s::bigint[], %s::bigint[])"
DELETE_EVENTS = "DELETE FROM legato.event WHERE session = ANY(%s)"
DELETE_LATER = "INSERT INTO legato.gone SELECT * FROM unnest(%s::bigint[], %s::bigint[])"
DELETE_KEYS = "DELETE FROM legato.once WHERE session = ANY(%s)"
UNDO_NEW = "DELETE FROM legato.session WHERE id = ANY(%s)"

BEGIN_ERA = f"INSERT INTO legato.era (name, origin, at) VALUES (%s, {_ORIGIN}, {_NOW}) RETURNING id"
CLEAR_PRESENT = "DELETE FROM legato.present"
SET_PRESENT = f"INSERT INTO legato.present VALUES (%s, {_ORIGIN})"
ERAS = """
    SELECT id, name, substring(origin FROM '[^ ]*$'), (SELECT number FROM legato.writer WHERE name = %s)
    FROM legato.era ORDER BY id
"""
"""All eras, each with its timeline; and what is there of a process's transactions."""

TALLY = f"""
    WITH n AS (
        SELECT coalesce(%s, {_NOW}) AS now
    ), t AS (
        INSERT INTO legato.tally SELECT %s, %s, now + %s FROM n
        ON CONFLICT (node) DO UPDATE SET counts = excluded.counts, until = excluded.until
    ), gone AS (
        DELETE FROM legato.tally USING n WHERE node <> %s AND until <= now
    )
    SELECT counts FROM legato.tally, n WHERE node <> %s AND until > now
"""

NOTIFY = "SELECT pg_notify(%s, payload) FROM unnest(%s::text[]) payload"

# Reading --------------------------------------------------------------------------------------------------------------


def _page(deltas: str) -> str:
    return f"""
        SELECT type, data, "offset", at, run, before FROM (
            SELECT *, (sum(octet_length(data)) OVER w - octet_length(data))::bigint AS before,
                lag("offset", 1, %s::bigint) OVER w AS reached
            FROM (
                SELECT type, data, "offset", at, run FROM legato.event
                WHERE session = (SELECT id FROM legato.session WHERE name = %s) AND "offset" > %s {deltas}
                ORDER BY "offset" LIMIT %s
            ) page WINDOW w AS (ORDER BY "offset")
        ) measured WHERE before < {PAGE_BYTES} AND reached < %s ORDER BY "offset"
    """


PAGES = {True: _page(""), False: _page("AND NOT delta")}
"""The next rows of a session's log, with deltas and without, each with the bytes before it in the page; up to the one
that reaches an offset, since a pack (``postgres_packs``) is many events."""
GAPS = f"""
    SELECT w.name, s.head, e.type, e.data, e."offset", e.at, e.run
    FROM unnest(%s::text[], %s::bigint[]) w (name, after) JOIN legato.session s ON s.name = w.name
    LEFT JOIN LATERAL (
        SELECT *, sum(octet_length(data)) OVER (ORDER BY "offset") - octet_length(data) AS before FROM (
            SELECT type, data, "offset", at, run FROM legato.event
            WHERE session = s.id AND "offset" > w.after ORDER BY "offset" LIMIT {GAP_EVENTS}
        ) page
    ) e ON before < {GAP_BYTES}
    ORDER BY s.id, e."offset"
"""
"""What follows an offset of each of some sessions, and their heads."""
_INFO = """
    s.name, s.head, s.whole, s.deleted, s.updated_at, s.runs, s.eras, e.type, e.data, e.at, s.id
    FROM legato.session s JOIN legato.event e ON e.session = s.id
        AND e."offset" = CASE WHEN s.deleted THEN s.head ELSE 1 END
"""
LOOK = f"SELECT {_INFO} WHERE s.name = ANY(%s)"
NEWEST = f"""
    SELECT {_INFO} WHERE NOT s.deleted AND (s.updated_at, s.id) < (%s, %s)
    ORDER BY s.updated_at DESC, s.id DESC LIMIT %s
"""
NEWEST_OWNED = f"""
    SELECT {_INFO} WHERE NOT s.deleted AND s.owner = %s AND (s.updated_at, s.id) < (%s, %s)
    ORDER BY s.updated_at DESC, s.id DESC LIMIT %s
"""
ERA = f"SELECT {_PRESENT}"
TOUCH = "UPDATE legato.session SET head = head WHERE false"
"""Changes nothing, and fails where nothing can be changed: in a table that is locked, or a database that only reads."""
FILL = """
    INSERT INTO legato.event SELECT -1, n, 0, '', NULL, false, repeat(md5(n::text), 30) FROM generate_series(1, 64) n
"""
"""To be undone: fails where there is no room for some events, as what changes nothing does not."""
HEADS = "SELECT name, head FROM legato.session WHERE name = ANY(%s)"
OPEN_RUNS = "SELECT name, runs FROM legato.session WHERE waits IS NOT NULL ORDER BY waits LIMIT %s"
ANY_FREE = f"SELECT EXISTS (SELECT FROM legato.session WHERE waits IS NOT NULL AND free_at <= coalesce(%s, {_NOW}))"


@functools.cache
def within(schema: str, sql: str) -> bytes:
    """The statement, for this schema (a plain name)."""
    return re.sub(r"\blegato\b", schema, sql).encode()


@functools.cache
def numbered(schema: str, sql: str) -> bytes:
    """The same, with ``$1`` and so on for its parameters."""
    places = itertools.count(1)
    return re.sub(rb"%s", lambda _: b"$%d" % next(places), within(schema, sql))


# Arrays ---------------------------------------------------------------------------------------------------------------

_ARRAY = struct.Struct(">iiiii")
_EMPTY = struct.Struct(">iii")
_LENGTH = struct.Struct(">i").pack
_INT8 = struct.Struct(">iq").pack
_NULL = _LENGTH(-1)
_INT8_OID, _TEXT_OID = 20, 25


class Array:
    """A list as PostgreSQL takes it: made here, since psycopg asks of each of its values by itself how to send it."""

    __slots__ = ("data",)
    oid: ClassVar[int]

    def __init__(self, data: bytes) -> None:
        self.data = data


class Int8Array(Array):
    """Of whole numbers, or NULLs."""

    oid = 1016

    def __init__(self, values: Sequence[int | None]) -> None:
        if None in values:
            data = b"".join([_NULL if value is None else _INT8(8, value) for value in values])
        else:  # at once, in a quarter of the time
            parts: list[Any] = [8] * (2 * len(values))
            parts[1::2] = values
            data = struct.pack(">" + "iq" * len(values), *parts)
        super().__init__(_head(len(values), _INT8_OID) + data)


class TextArray(Array):
    """Of texts, as UTF-8 or not yet, or NULLs."""

    oid = 1009

    def __init__(self, values: Sequence[str | bytes | None]) -> None:
        told = [value.encode() if isinstance(value, str) else value for value in values]
        parts = [b""] * (2 * len(told))
        parts[0::2] = [_NULL if data is None else _LENGTH(len(data)) for data in told]
        parts[1::2] = [data or b"" for data in told]
        super().__init__(_head(len(told), _TEXT_OID) + b"".join(parts))


def _head(count: int, oid: int) -> bytes:
    return _ARRAY.pack(1, 1, oid, count, 1) if count else _EMPTY.pack(0, 0, oid)


# What a group changes -------------------------------------------------------------------------------------------------

Statement = tuple[str, Sequence[Any]]


def locks(writer: str, requests: Sequence[RowRequest]) -> Iterator[Statement]:
    """Statements that lock the rows of a group; the last one gives them."""
    if (lock := requests[0].lock) is not None:
        yield LOCK_WRITER, (writer,)  # as nobody waits for the rows themselves
        yield lock[0], lock[1]
        return
    if names := {request.session for request in requests if request.begins}:
        yield NEW, (TextArray(list(names)),)
    yield LOCK, (TextArray(list({request.session for request in requests})),)


def changes(group: RowGroup, runs: KnownRuns, writer: str, number: int) -> Iterator[Statement]:
    """Statements that write what a group changes, as the ``number``-th transaction of ``writer``; none, if nothing."""
    rows = [row for row in group.rows.values() if row.touched]
    if not rows:
        return
    if gone := [row for row in rows if row.id in group.gone]:
        few, many = ([row for row in gone if (row.state.head > SWEPT_EVENTS) is long] for long in (False, True))
        yield DELETE_EVENTS, (Int8Array([row.id for row in few]),)
        if many:
            yield DELETE_LATER, (Int8Array([row.id for row in many]), Int8Array([row.state.head for row in many]))
        yield DELETE_KEYS, (Int8Array([row.id for row in gone]),)
    if unborn := [row.id for row in group.rows.values() if not row.state.head]:
        yield UNDO_NEW, (Int8Array(unborn),)
    events, still, changed = group.events, [row for row in rows if not row.moved], [row for row in rows if row.moved]
    yield (
        WRITE,
        (
            Int8Array([id for id, _ in events]),
            Int8Array([event.offset for _, event in events]),
            Int8Array([round(event.at * MICRO) for _, event in events]),
            TextArray([event.fact.type for _, event in events]),
            TextArray([event.run for _, event in events]),
            Int8Array([event.fact.delta for _, event in events]),
            TextArray([event.json for _, event in events]),
            *(writer, number),
            Int8Array([row.id for row in still]),
            Int8Array([row.state.head for row in still]),
        ),
    )
    if changed:
        firsts = [row.first for row in changed]
        yield (
            MOVE,
            (
                Int8Array([row.id for row in changed]),
                TextArray([row.owner for row in changed]),
                Int8Array([row.state.head for row in changed]),
                Int8Array([row.state.whole for row in changed]),
                Int8Array([row.updated_at for row in changed]),
                Int8Array([row.state.deleted for row in changed]),
                TextArray([runs.write(row.state) for row in changed]),
                TextArray([None if first is None else first.owner for first in firsts]),
                Int8Array([0 if first is None else round(first.expires_at * MICRO) for first in firsts]),
                Int8Array([row.waits for row in changed]),
                Int8Array([row.era for row in changed]),
                TextArray([row.eras for row in changed]),
            ),
        )
    if group.keys:
        ids, keys, begins, ends = zip(*group.keys, strict=True)
        yield KEYS, (Int8Array(ids), TextArray(keys), Int8Array(begins), Int8Array(ends))


# Errors ---------------------------------------------------------------------------------------------------------------

AWAY = "The database cannot be reached, or takes no changes; what was acknowledged is in it"
POOLED = "A pooler gives its connections for one transaction each. Say so in the URL: pooler=transaction"
MEANINGS: dict[str, tuple[type[StoreError], str]] = {
    "53100": (StoreFull, "The disk of the database is full; what was acknowledged is safe. Make room on it"),
    "55P03": (StoreBusy, "Somebody holds a lock in the database. Let them finish, or end them"),
    "40": (StoreBusy, "The database gave up a transaction for another one"),
    "57014": (StoreBusy, "The database took too long"),
    "42501": (StoreReadOnly, "This user of the database may not do it. Let it create and use the tables of its schema"),
    "26000": (StoreError, POOLED),
    "42P05": (StoreError, POOLED),
    "XX": (StoreCorrupt, "The database is damaged; its log says where"),
    "25006": (StoreLost, AWAY),
    "25P03": (StoreLost, AWAY),
    "25P04": (StoreLost, AWAY),
    "55000": (StoreLost, AWAY),
    "57P": (StoreLost, AWAY),
    "08": (StoreLost, AWAY),
    "53": (StoreLost, AWAY),
}
"""What an SQLSTATE, or its beginning, means, and what is to be done about it; the first that fits counts."""


def store_error(exc: BaseException, place: str, *, connecting: bool) -> StoreError:
    """What to raise for an error of the driver or the system. ``place`` says which database it is, and no password.

    ``connecting``: what says nothing else has to do with the connection.
    """
    if isinstance(exc, StoreError):
        return type(exc)(exc.message, **exc.detail)
    state = getattr(exc, "sqlstate", None) or ("08" if isinstance(exc, OSError) or connecting else "")
    found = (meaning for beginning, meaning in MEANINGS.items() if state.startswith(beginning))
    kind, text = next(found, (StoreError, "The database could not do it"))
    return kind(f"{text}: {place} ({type(exc).__name__}{_said(exc, connecting)}).", place=place)


def _said(exc: BaseException, connecting: bool) -> str:
    """Of an error what has no content: a server quotes rows in its details, and in the messages of class 22 (data)."""
    state = getattr(exc, "sqlstate", None)
    if state is None:
        return f": {' '.join(str(exc).split())[:300]}" if connecting or isinstance(exc, OSError) else ""
    primary = "" if state.startswith("22") else getattr(getattr(exc, "diag", None), "message_primary", None) or ""
    return f": {state} {' '.join(primary.split())[:300]}".rstrip()
