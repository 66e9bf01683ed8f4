"""Sessions of a Redis store as wholes: what is known of many, and how they come in and go out in pieces.

What is built, or adopted, stands in streams that nobody knows of, until they become the session's in one step.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from typing import Any

from ..check import check_text, is_text
from ..errors import SessionExists, StoreLost
from ..event import Draft, Event
from ..log import MICRO, Adoption, SessionRecord
from ..machine import SessionState, moved
from .redis_eras import Eras
from .redis_packs import packed
from .redis_plan import KeptSession, SessionPlan, entries_of, read_place, read_state, records_of, settled
from .redis_server import RedisServer
from .redis_writer import RedisWriter

STAGE_SECONDS = 3_600
"""How long what is built stays when nobody goes on with it."""
RECORDS = 100
"""Sessions whose records are read at the same time."""


async def states(server: RedisServer, sessions: Sequence[str]) -> list[KeptSession | None]:
    """What is known of each of these, deleted or not; None of those that never were."""
    keys = [server.keys(session, "state")[0] for session in sessions]
    rows = await asyncio.gather(*(server.do(key, "HMGET", key, "v", "h", "r", "c") for key in keys))
    return [read_state(session, *row) for session, row in zip(sessions, rows, strict=True)]


async def indexed(server: RedisServer, kind: str, name: str, *how: Any) -> list[tuple[int, str]]:
    """Sessions of an index, with their places in it: those of all buckets, in no order."""
    keys = [server.key(bucket, kind, name) for bucket in range(server.buckets)]
    rows = await asyncio.gather(*(server.do(key, "ZRANGE", key, *how, "WITHSCORES") for key in keys))
    return [(int(float(row[n + 1])), row[n].decode()) for row in rows for n in range(0, len(row), 2)]


async def record(server: RedisServer, session: str) -> SessionRecord | None:
    """See ``Portable.record``."""
    kept = (await states(server, [session]))[0] if is_text(session) else None
    if kept is None:
        return None
    key = server.keys(session, "once")[0]
    rows = await server.do(key, "HGETALL", key)
    once = {rows[n].decode(): read_place(rows[n + 1]) for n in range(0, len(rows), 2)}
    epochs = {run.run: run.epoch for run in kept.state.runs.values()}
    return SessionRecord(session, kept.state.head, kept.updated_at / MICRO, once, epochs)


async def records(server: RedisServer) -> AsyncIterator[SessionRecord]:
    """See ``Portable.records``."""
    for kind in ("updated", "gone"):
        names = [name for _, name in await indexed(server, kind, "", 0, -1)]
        for start in range(0, len(names), RECORDS):
            some = names[start : start + RECORDS]
            for found in await asyncio.gather(*(record(server, name) for name in some)):
                if found is not None:
                    yield found


async def build(
    server: RedisServer, eras: Eras, writer: RedisWriter, session: str, pieces: AsyncIterator[Sequence[Draft]], at: int
) -> None:
    """See ``log.build``; what comes is as of ``at`` (microseconds)."""
    check_text(session)
    state, begun = SessionState(session), None
    async with _staged(server, eras, session) as (staged, era):
        async for piece in pieces:
            drafts = [settled(draft) for draft in piece]
            before, state = state, moved(state, drafts)
            events = [Event(d.fact, before.head + n, at / MICRO, d.run, d.json) for n, d in enumerate(drafts, 1)]
            begun = begun or events[0]
            await _stage(server, staged, events, era)
        if begun is None:
            raise ValueError("build needs at least one draft")
        record = SessionRecord(session, state.head, at / MICRO)
        await _publish(server, eras, writer, staged, era, state, begun, record, at)


async def adopt(
    server: RedisServer, eras: Eras, writer: RedisWriter, record: SessionRecord, pages: AsyncIterator[Sequence[Event]]
) -> None:
    """See ``Portable.adopt``."""
    check_text(record.session, *record.once)
    adoption, begun = Adoption(record), None
    opened: dict[str | None, float] = {}
    async with _staged(server, eras, record.session) as (staged, era):
        async for events in pages:
            adoption.add(events)
            begun = begun or events[0]
            opened |= {event.run: event.at for event in events if event.type == "message.created"}
            await _stage(server, staged, events, era)
        state = adoption.end()
        if begun is None:
            raise ValueError("adopt needs at least one event")
        waits = round(opened.get(next(iter(state.runs), None), 0.0) * MICRO)
        await _publish(server, eras, writer, staged, era, state, begun, record, waits)


@contextlib.asynccontextmanager
async def _staged(server: RedisServer, eras: Eras, session: str) -> AsyncIterator[tuple[list[bytes], int]]:
    """A stream that nobody knows of, for what is no delta, and packs of deltas; and the era in which they are."""
    bucket, name = server.bucket(session), secrets.token_hex(16)
    era = await eras.of(bucket)
    staged = [server.key(bucket, kind, name) for kind in ("staged", "staged-packs")]
    try:
        yield staged, era
    except BaseException:
        for key in staged:
            server.later(key, "DEL", key)
        raise


async def _stage(server: RedisServer, staged: Sequence[bytes], events: Sequence[Event], era: int) -> None:
    whole, packs = staged
    for last, entry in entries_of([event for event in events if not event.fact.delta], era):
        await server.do(whole, "XADD", whole, f"{last}-0", "e", entry)
    for last, entry in entries_of([event for event in events if event.fact.delta], era):
        pack = await asyncio.get_running_loop().run_in_executor(None, packed, records_of(entry))
        await server.do(packs, "ZADD", packs, last, pack)
    for key in staged:
        await server.do(key, "EXPIRE", key, STAGE_SECONDS)


async def _publish(
    server: RedisServer,
    eras: Eras,
    writer: RedisWriter,
    staged: Sequence[bytes],
    era: int,
    state: SessionState,
    begun: Event,
    record: SessionRecord,
    waits: int,
) -> None:
    """Let what is staged be the session."""
    session = record.session

    def decide(plan: SessionPlan) -> None:
        if plan.state.head:
            raise SessionExists(f"Session {session!r} exists already, or was deleted.", session=session)
        if not eras.is_in(server.bucket(session), era):
            raise StoreLost(f"The server has failed while a session was built: {server.shown}.")
        plan.adopt(state, begun, record, waits)

    await writer.submit(session, decide, begins=True, staged=staged, patient=False)
