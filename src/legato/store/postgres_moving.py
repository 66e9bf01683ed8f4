"""Whole sessions, out of a PostgreSQL database, into it, and away: what ``Portable`` asks of its store, ``log.build``,
and what is left of long sessions that were deleted.

A session that is adopted, or built, is one transaction, so nobody sees it before it is whole.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from ..check import check_text
from ..errors import SessionExists
from ..event import Draft, Event, SessionCreated, settle
from ..log import MICRO, READ_LIMIT, Adoption, SessionRecord, created, moment
from ..machine import SessionState, moved
from .group import KnownRuns
from .postgres_link import FAILURES, Connection, Link
from .postgres_sql import NOW, SWEPT_EVENTS, Int8Array, TextArray

_COLUMNS = "SELECT id, name, head, updated_at, runs FROM legato.session WHERE head > 0"
RECORDS = f"{_COLUMNS} AND id > %s ORDER BY id LIMIT {READ_LIMIT}"
RECORD = f"{_COLUMNS} AND name = %s"
KEYS_OF = "SELECT session, key, first, last FROM legato.once WHERE session = ANY(%s)"

PATIENT = "SELECT set_config('idle_in_transaction_session_timeout', '0', true)"
"""The next page may be long in coming."""
BEGIN = """
    INSERT INTO legato.session (name) SELECT %s WHERE NOT EXISTS (SELECT FROM legato.session WHERE name = %s)
    RETURNING id
"""
"""Under a name that nobody asks for, so that nobody who writes to that session waits for this."""
PAGE = """
    INSERT INTO legato.event SELECT %s, number, at, type, run, delta = 1, data
    FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::text[], %s::bigint[], %s::text[])
        u (number, at, type, run, delta, data)
"""
KEYS = "INSERT INTO legato.once SELECT %s, * FROM unnest(%s::text[], %s::bigint[], %s::bigint[])"
END = """
    UPDATE legato.session SET name = %s, owner = %s, head = %s, whole = %s, updated_at = %s, deleted = %s, runs = %s,
        waits = (SELECT at FROM legato.event WHERE session = id AND "offset" = %s),
        era = %s, eras = %s
    WHERE id = %s
"""
TAKEN = "23505"
"""The SQLSTATE of a name that somebody else has had meanwhile."""
GONE = "SELECT session, head FROM legato.gone LIMIT 1 FOR UPDATE SKIP LOCKED"
SWEEP = f"""
    WITH swept AS (
        DELETE FROM legato.event WHERE session = %s AND "offset" IN (
            SELECT "offset" FROM legato.event WHERE session = %s AND "offset" < %s
            ORDER BY "offset" DESC LIMIT {SWEPT_EVENTS}
        ) RETURNING "offset"
    )
    SELECT count(*), min("offset") FROM swept
"""  # noqa: S608
SWEEP_ON = "UPDATE legato.gone SET head = %s WHERE session = %s"
"""So that the next does not begin with what is gone."""
SWEPT = "DELETE FROM legato.gone WHERE session = %s"
GOING = "SELECT session FROM legato.gone"
AGAIN_SECONDS = 0.1
"""Seconds between two looks whether another process has swept."""


async def sweep(link: Link) -> bool:
    """Take away some events of a session that was deleted, and that nobody else sweeps; whether there was one."""
    async with link.transaction() as conn:
        row = await (await link.execute(conn, GONE)).fetchone()
        if row is None:
            return False
        id, head = row
        count, first = await link.row(conn, SWEEP, (id, id, head))
        more = count == SWEPT_EVENTS
        await link.execute(conn, SWEEP_ON if more else SWEPT, (first, id) if more else (id,))
    return True


async def sweep_all(link: Link) -> None:
    """Take away all that has been deleted by now, or wait until another process has."""
    left = {id for (id,) in await link.ask(GOING, ())}
    while left:
        while await sweep(link):
            pass
        left &= {id for (id,) in await link.ask(GOING, ())}
        if left:
            await asyncio.sleep(AGAIN_SECONDS)


async def records(link: Link, runs: KnownRuns) -> AsyncIterator[SessionRecord]:
    """See ``Portable.records``: in the order in which they came into the database."""
    last = 0
    while rows := await link.ask(RECORDS, (last,)):
        for record in await _records(link, runs, rows):
            yield record
        last = rows[-1][0]


async def record(link: Link, runs: KnownRuns, session: str) -> SessionRecord | None:
    """See ``Portable.record``."""
    found = await _records(link, runs, await link.ask(RECORD, (session,)))
    return found[0] if found else None


async def _records(link: Link, runs: KnownRuns, rows: Sequence[Sequence[Any]]) -> list[SessionRecord]:
    keys: dict[int, dict[str, tuple[int, int]]] = {row[0]: {} for row in rows}
    for id, key, first, last in await link.ask(KEYS_OF, (Int8Array(list(keys)),)) if keys else ():
        keys[id][key] = first, last
    return [
        SessionRecord(
            name, head, updated_at / MICRO, keys[id], {r.run: r.epoch for r in runs.read(name, text).values()}
        )
        for id, name, head, updated_at, text in rows
    ]


async def adopt(
    link: Link, runs: KnownRuns, era: int, record: SessionRecord, pages: AsyncIterator[Sequence[Event]]
) -> Sequence[Event]:
    """See ``Portable.adopt``. Gives the last page. ``era``: the present one of the database."""
    session = record.session
    check_text(session, *record.once)
    adoption = Adoption(record)
    events: Sequence[Event] = ()
    begun = SessionCreated()
    async with link.transaction() as conn:
        await link.execute(conn, PATIENT)
        id = await _begin(link, conn, session)
        async for events in pages:
            adoption.add(events)
            if events[0].offset == 1:
                begun = created(events[0].fact)
            await _insert(link, conn, id, events)
        state = adoption.end()
        if record.once:
            first, last = ([place[index] for place in record.once.values()] for index in (0, 1))
            await link.execute(conn, KEYS, (id, TextArray([*record.once]), Int8Array(first), Int8Array(last)))
        owner, at = begun.owner or "", round(record.updated_at * MICRO)
        waiting = next((run.offset for run in state.runs.values()), 0)
        said = owner, state.head, state.whole, at, state.deleted, runs.write(state), waiting, era, f"[[{era},1]]"
        await _end(link, conn, id, session, said)
    return events


async def build(
    link: Link, era: int, session: str, pieces: AsyncIterator[Sequence[Draft]], now: Callable[[], int | None]
) -> Sequence[Event]:
    """See ``log.build``. Gives the last piece. ``now``: the time in microseconds; None: the database's."""
    check_text(session)
    state, at = SessionState(session), 0
    events: list[Event] = []
    begun = SessionCreated()
    async with link.transaction() as conn:
        await link.execute(conn, PATIENT)
        id = await _begin(link, conn, session)
        async for drafts in pieces:
            before, state = state, moved(state, drafts)
            if state.runs or state.deleted or any(draft.fact.delta for draft in drafts):
                raise ValueError("a session is not built of runs, nor of deltas")
            at = moment((await link.row(conn, NOW, (now(),)))[0] / MICRO, at)
            settled = [settle(draft.fact) for draft in drafts]
            events = [
                Event(fact, before.head + number, at / MICRO, None, json)
                for number, (fact, json) in enumerate(settled, 1)
            ]
            if before.head == 0:
                begun = created(settled[0][0])
            await _insert(link, conn, id, events)
        if not events:
            raise ValueError("build needs at least one draft")
        said = begun.owner or "", state.head, state.whole, at, False, "", 0, era, f"[[{era},1]]"
        await _end(link, conn, id, session, said)
    return events


async def _begin(link: Link, conn: Connection, session: str) -> int:
    row = await (await link.execute(conn, BEGIN, (f".building.{secrets.token_hex(16)}", session))).fetchone()
    if row is None:
        raise _exists(session)
    return int(row[0])


async def _end(link: Link, conn: Connection, id: int, session: str, said: Sequence[Any]) -> None:
    try:
        await link.execute(conn, END, (session, *said, id))
    except FAILURES as exc:
        if getattr(exc, "sqlstate", None) == TAKEN:
            raise _exists(session) from exc
        raise


def _exists(session: str) -> SessionExists:
    return SessionExists(f"Session {session!r} exists already, or was deleted.", session=session)


async def _insert(link: Link, conn: Connection, id: int, events: Sequence[Event]) -> None:
    for event in events:
        check_text(event.run, event.type)
    columns = (
        Int8Array([event.offset for event in events]),
        Int8Array([round(event.at * MICRO) for event in events]),
        TextArray([event.type for event in events]),
        TextArray([event.run for event in events]),
        Int8Array([event.fact.delta for event in events]),
        TextArray([event.json or settle(event.fact)[1] for event in events]),
    )
    await link.execute(conn, PAGE, (id, *columns))
