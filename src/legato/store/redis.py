"""The Redis store: logs in Redis 7 or later, Valkey 8 or later, or a cluster of either, for many processes.

    append                 wait for the writer, which takes all that waits, of all sessions
      -> decide            here, with ``machine``, on what is known of each session
      -> one pipeline      the server writes each session that is as it was known; the others are decided again
      -> deliver           tail cache and doorbells here, callers; one message with ids for the bells of others
    read                   all that is asked for at the same time is one pipeline, too; a block is read once for all

A session is a hash (its state), a stream of what is no delta, one of deltas, one of *packs* (deltas of answers that are
over, compressed), and a hash of the keys that count once. Sessions stand in *buckets*: what has one bucket is in one
slot of a cluster, so that the indexes (what may be claimed, lists) are written with the session, in one step.

``redis_writer`` knows the appends, ``redis_plan`` what becomes of a session, ``redis_server`` how to reach it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any

import msgspec

from ..check import check_text, digits, is_text
from ..errors import (
    CursorInvalid,
    LegatoError,
    SessionNotFound,
    StoreCorrupt,
    StoreError,
    StoreVersion,
)
from ..event import Draft, Event, Offset, read_stored
from ..figures import StoreFigures
from ..log import (
    MICRO,
    READ_LIMIT,
    Appended,
    Doorbell,
    Portable,
    SessionInfo,
    SessionPage,
    SessionRecord,
    Storing,
    Take,
    Thinning,
    moment,
)
from ..machine import Lease, OpenRun, check_head, free, moved, released, renewed
from . import redis_sessions as moving
from .redis_errors import store_error
from .redis_packs import Packer, unpack
from .redis_plan import (
    Record,
    SessionCall,
    SessionPlan,
    binary,
    is_deleted,
    offset_of,
    session_info,
    settled,
)
from .redis_scripts import READ
from .redis_server import RedisServer
from .redis_sessions import indexed, states
from .redis_writer import RedisWriter
from .tail import BlockCache, TailCache

logger = logging.getLogger("legato")

VERSION = 2
"""Of what stands in the server. There is no way from 1, which no released Legato has written."""
BUCKETS = 64
"""Of a store that begins in a cluster; where there is one server, there is one bucket."""
PAGE_BYTES = 4 * 1024 * 1024
"""A page of events or of sessions ends when it holds so much, whatever its limit."""
POLL_SECONDS, DEAF_SECONDS = 5.0, 0.5
"""Between two looks at the sessions that somebody listens to: a message may be lost, or there may be none for now."""
SILENCE_SECONDS = 5.0
"""After which the connection that listens is asked whether it is there; twice in vain, and it is made anew."""
CLOSE_SECONDS = 10.0
"""For what waits to be stored, before who waits is told that nobody knows."""
MAX_OFFSET, MAX_LIMIT = 2**53, 10**9
SAME_TIME = 64
"""Sessions with the very same time that a page of a list looks beyond: several processes may give one."""
_tally = msgspec.msgpack.Decoder(tuple[float, dict[str, int]]).decode
_said = msgspec.msgpack.Decoder(tuple[str, list[tuple[str, Offset, bool]], bool]).decode


class RedisStore:
    """Logs in Redis or Valkey, for many processes.

    Args:
        url: see ``RedisServer``.
        clock: gives the time, seconds since the epoch; by default it is the server's.
        tail_events, tail_bytes: bounds of the cache of recent events, see ``TailCache``.
    """

    def __init__(
        self,
        url: str,
        *,
        clock: Callable[[], float] | None = None,
        tail_events: int = 1_000,
        tail_bytes: int = 12 * 1024 * 1024,
    ) -> None:
        self.doorbell = Doorbell()
        self.incarnation = ""
        self._server = RedisServer(url)
        self._clock = clock
        self._tail_bounds = {"events": tail_events, "bytes": tail_bytes}
        self._writer: RedisWriter | None = None
        self._closing: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Make ready. Leases stay: they are other processes', and expire.

        Raises:
            StoreError: the server cannot be reached, or is not as it has to be.
        """
        if self._writer is not None:
            raise StoreError(f"The store is open already: {self._server.shown}.")
        if self._closing is not None:
            await asyncio.shield(self._closing)
        self._era = self._last_at = 0
        self._seen: dict[int, tuple[int, int]] = {}  # of each bucket its era, and how often it had been written to
        self.incarnation = ""
        self._hears = False
        self._tail, self._blocks = TailCache(**self._tail_bounds), BlockCache(bytes=self._tail_bounds["bytes"] // 2)
        self._shared: dict[tuple[str, Offset], asyncio.Event] = {}  # blocks that are being read
        self._reading: dict[str, int] = {}  # reads under way
        self._missed: dict[str, Offset] = {}  # how far the sessions of those have grown meanwhile
        self._behind: dict[str, tuple[Offset, bool]] = {}  # what has grown elsewhere, and is to be read
        self._look, self._fetch = asyncio.Event(), asyncio.Event()
        self._packer = Packer(self._server)
        writer = RedisWriter(self._server, self._clock, self._stored, self._learn, self._between)
        try:
            await self._server.check()
            await self._found()
            await writer.enter(0)
        except BaseException as exc:
            await self._server.close()
            if isinstance(exc, Exception):
                raise store_error(exc, self._server.shown) from exc
            raise
        self._writer = writer
        self._writing = asyncio.create_task(writer.write(), name="legato-redis-write")
        self._tasks = [
            asyncio.create_task(body, name="legato-redis")
            for body in (self._packer.go_on(), writer.tend(), self._listen(), self._catch_up(), self._poll())
        ]

    async def _found(self) -> None:
        """Found the store, if there is none yet; and see in how many buckets it stands."""
        key = self._server.key("meta", "store")
        await self._server.do(key, "HSETNX", key, "buckets", BUCKETS if self._server.cluster else 1)
        await self._server.do(key, "HSETNX", key, "version", VERSION)
        buckets, version = await self._server.do(key, "HMGET", key, "buckets", "version")
        if int(version) != VERSION:
            raise StoreVersion(
                f"{self._server.shown} has version {int(version)} of a store, and this Legato knows version {VERSION}: "
                f"it was written by {'a newer' if int(version) > VERSION else 'an older'} one.",
                version=int(version),
                known=VERSION,
            )
        self._server.buckets = int(buckets)

    async def close(self) -> None:
        """Store what was appended so far and let go. Idempotent."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            writer.finish()
            self._closing = asyncio.ensure_future(self._close(writer))
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self, writer: RedisWriter) -> None:
        if writer.trouble is not None or self._server.behind is not None:
            self._writing.cancel()
        if not (await asyncio.wait([self._writing], timeout=CLOSE_SECONDS))[0]:
            self._writing.cancel()
            await asyncio.wait([self._writing])
        left = set(self._tasks)
        while left:  # while it connects, redis-py may take a cancel for an error of the connection
            for task in left:
                task.cancel()
            _, left = await asyncio.wait(left, timeout=0.1)
        await self._server.close()

    def _check_open(self) -> RedisWriter:
        if self._writer is None:
            raise StoreError(f"The store is not open: {self._server.shown}.")
        return self._writer

    @property
    def figures(self) -> StoreFigures | None:
        """What has been counted of commits since it was opened."""
        return None if self._writer is None else self._writer.figures

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now, see ``Store``."""
        return None if self._writer is None else self._writer.trouble or self._server.behind

    def facts(self) -> dict[str, str | int]:
        """What an operator may want to know."""
        self._check_open()
        durability = self._server.address.durability or "as the server has it"
        facts: dict[str, str | int] = {"kind": "redis", "server": self._server.version, "durability": durability}
        return {**facts, "tail_sessions": len(self._tail), "tail_bytes": self._tail.bytes}

    # Eras ------------------------------------------------------------------------------------------------------------

    async def _learn(self, bucket: int, era: int, count: int, name: bytes | None = None) -> None:
        """A bucket is in this era, and has been written to so often. If it is a new one, whoever follows a log comes
        again to learn its name; and if there were fewer writes at its beginning than were known of, some are lost."""
        known = self._seen.get(bucket)
        if known is not None and known[0] == era:
            self._seen[bucket] = era, max(count, known[1])
            return
        server, own, eras = self._server, self._server.key(bucket, "era"), self._server.key("era", "eras")
        rows = await server.do(own, "HGETALL", own)
        told = {rows[n].decode(): int(rows[n + 1]) for n in range(0, len(rows), 2)}
        name = name or await server.do(eras, "HGET", eras, era)
        known = self._seen.get(bucket)
        if told.get("n", 0) != era or (known is not None and known[0] == era):
            return  # that was some time ago; or it has been learnt meanwhile
        begun = [told.get(f"s{number}", 0) for number in range(1 if known is None else known[0] + 1, era + 1)]
        lost = known is not None and (era < known[0] or min(begun) < known[1])
        self._seen[bucket] = era, told.get("count", 0)
        if self._writer is not None:
            self._writer.highest = max(self._writer.highest, era)
        before = self.incarnation
        if era > self._era or lost:
            self._era, self.incarnation = era, f"{era}.{(name or b'?').decode()}"
        if before != self.incarnation:
            self._tail, self._blocks = TailCache(**self._tail_bounds), BlockCache(bytes=self._tail_bounds["bytes"] // 2)
            if before:
                self.doorbell.forget(lost=lost)

    async def _meet(self, bucket: int, known: tuple[int, int] | None, era: Any, count: Any) -> None:
        """A bucket is so far, of which ``known`` was known when that was asked."""
        if known is not None and (era is None or (int(era) == known[0] and int(count) < known[1])):
            await self._check_open().enter(bucket, least=known[1])  # before anybody has written to what is left
        elif era is not None:
            await self._learn(bucket, int(era), int(count))

    async def _look_back(self) -> None:
        """See whether there is still as much as there was."""
        for bucket, known in list(self._seen.items()):
            key = self._server.key(bucket, "era")
            await self._meet(bucket, known, *await self._server.do(key, "HMGET", key, "n", "count"))

    async def holds(self, incarnation: str, session: str, offset: Offset) -> bool:
        """See ``Store``: whether the event was written in that incarnation's era, or in one before it."""
        if incarnation == self.incarnation or offset <= 0:
            return True
        number, _, name = incarnation.partition(".")
        eras = self._server.key("era", "eras")
        if digits(number, most=15) is None or await self._server.do(eras, "HGET", eras, number) != name.encode():
            return False
        found, _ = await self._find(session, offset - 1, 1, deltas=True)
        return bool(found) and found[0][0] == offset and found[0][5] <= int(number)

    # Writing ----------------------------------------------------------------------------------------------------------

    def append(
        self,
        session: str,
        drafts: Sequence[Draft],
        *,
        lease: Lease | None = None,
        once: str | None = None,
        head: Offset | None = None,
        take: Take | None = None,
    ) -> Storing:
        """See ``Store.append``. Where the answer to it was lost, a run waits until it is known what became of it, and
        others for ``UNKNOWN_SECONDS``."""
        try:
            writer = self._check_open()
            if not drafts:
                raise ValueError("append needs at least one draft")
            check_text(session, once, *{draft.run for draft in drafts}, *(take or ())[:2])
            decide = functools.partial(self._append, [settled(draft) for draft in drafts], lease, once, head, take)
            begins, patient = drafts[0].type == "session.created", lease is not None
            return writer.submit(session, decide, once, begins=begins, patient=patient)
        except (LegatoError, ValueError) as exc:
            return Storing(error=exc, over=True)

    def _append(
        self,
        drafts: list[Draft],
        lease: Lease | None,
        once: str | None,
        head: Offset | None,
        take: Take | None,
        plan: SessionPlan,
    ) -> Appended:
        if (found := plan.found(once)) is not None:
            return Appended(found, repeated=True)
        state = moved(plan.state, drafts, lease=lease)
        check_head(plan.state, head)
        if take is not None:
            state = plan.take(take.run, take.owner, take.ttl, state)
        self._last_at = moment(plan.now, max(self._last_at, plan.before.updated_at))
        events = plan.add(state, drafts, self._last_at, once)
        plan.outside = plan.outside or lease is None
        return Appended(events, lease=None if take is None else state.runs[take.run].lease())

    async def build(self, session: str, pieces: AsyncIterator[Sequence[Draft]]) -> None:
        """See ``log.build``."""
        writer = self._check_open()
        self._last_at = moment(writer.now(), self._last_at)
        await moving.build(self._server, writer, session, pieces, self._last_at)

    async def adopt(self, record: SessionRecord, pages: AsyncIterator[Sequence[Event]]) -> None:
        """See ``Portable.adopt``."""
        await moving.adopt(self._server, self._check_open(), record, pages)

    def records(self) -> AsyncIterator[SessionRecord]:
        """See ``Portable.records``."""
        self._check_open()
        return moving.records(self._server)

    async def record(self, session: str) -> SessionRecord | None:
        """See ``Portable.record``."""
        self._check_open()
        return await moving.record(self._server, session)

    async def thin(self, session: str, after: Offset, limit: int) -> Thinning:
        """See ``Store``."""
        self._check_open()
        check_text(session)
        kept = (await states(self._server, [session]))[0]
        if kept is None or kept.state.deleted:
            return Thinning(0, None)
        until = min((run.offset - 1 for run in kept.state.runs.values()), default=kept.state.head)
        thinning = await self._packer.thin(session, max(after, 0), limit, until)
        if thinning.changed:
            self._tail.forget(session)
        return thinning

    async def tally(self, node: str, counts: Mapping[str, int], ttl: float) -> dict[str, int]:
        """See ``Store``."""
        now, key = self._check_open().now(), self._server.key("meta", "tally")
        self._server.later(key, "HSET", key, node, binary((now + ttl, counts)))
        rows = await self._server.do(key, "HGETALL", key)
        others: Counter[str] = Counter()
        for n in range(0, len(rows), 2):
            until, told = _tally(rows[n + 1])
            if until <= now:
                self._server.later(key, "HDEL", key, rows[n])
            elif rows[n].decode() != node:
                others.update(told)
        return others

    async def acquire(self, session: str, run: str, *, owner: str, ttl: float) -> Lease:
        """See ``Leaser.acquire``."""
        check_text(session, run, owner)

        def decide(plan: SessionPlan) -> Lease:
            plan.state = plan.take(run, owner, ttl, plan.state)
            return plan.state.runs[run].lease()

        lease: Lease = await self._check_open().submit(session, decide)
        return lease

    async def claim(self, *, owner: str, ttl: float, limit: int) -> list[Lease]:
        """See ``Leaser.claim``."""
        writer = self._check_open()
        check_text(owner)
        leases: list[Lease] = []
        tried: set[str] = set()

        def decide(plan: SessionPlan) -> Lease | None:
            run = free(plan.state.runs, plan.now)
            if run is None:
                return None
            plan.state = plan.take(run.run, owner, ttl, plan.state)
            return plan.state.runs[run.run].lease()

        while len(leases) < limit:
            # The times of appends may be ahead of the clock, see ``moment``.
            until, most = round((writer.now() + 1) * MICRO), limit + len(tried)
            found = await indexed(self._server, "open", "", "-inf", until, "BYSCORE", "LIMIT", 0, most)
            names = [name for _, name in sorted(found) if name not in tried][: limit - len(leases)]
            if not names:
                break
            tried.update(names)
            done = await asyncio.gather(*(writer.submit(name, decide) for name in names))
            leases += [lease for lease in done if lease is not None]
        return leases

    async def renew(self, *, owner: str, ttl: float) -> None:
        """See ``Leaser.renew``. Of leases that were had from this object."""
        writer = self._check_open()
        sessions = writer.leases.get(owner, set())

        def decide(plan: SessionPlan) -> bool:
            if not any(run.owner == owner for run in plan.state.runs.values()):
                return False
            plan.state = renewed(plan.state, owner=owner, until=plan.now + ttl)
            return True

        names = list(sessions)
        done = await asyncio.gather(*(writer.submit(name, decide) for name in names))
        sessions.difference_update(name for name, still in zip(names, done, strict=True) if not still)

    async def release(self, lease: Lease) -> None:
        """See ``Leaser.release``."""

        def decide(plan: SessionPlan) -> None:
            plan.state = released(plan.state, lease)
            plan.work = True

        await self._check_open().submit(lease.session, decide)

    def _stored(self, calls: Sequence[SessionCall]) -> None:
        """These are there: let them be seen, and ring."""
        plans = [(call, call.plan) for call in calls if call.plan is not None]
        for call, plan in plans:
            if plan.events and self._hears and not call.requests[0].staged:
                self._tail.put(call.session, plan.events)
        for call, plan in plans:
            if plan.events:
                self.doorbell.ring(call.session, outside=plan.outside)
                self._packer.stored(call.session, plan.events, deleted=plan.state.deleted)
        if any(plan.work for _, plan in plans):
            self.doorbell.ring_work()

    # Reading ----------------------------------------------------------------------------------------------------------

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """See ``Store.read``. A page may be shorter than ``limit``, but is never empty then; for who is far behind it
        ends with a block, which others share.

        The server is asked each time: another process may have stored something of which this one has not heard, or
        have deleted the session.
        """
        self._check_open()
        if limit <= 0 or after >= MAX_OFFSET or not is_text(session):
            return []
        after, blocks = max(after, 0), self._blocks
        if not deltas or limit < READ_LIMIT:
            return await self._read(session, after, limit, deltas)
        start = after - after % READ_LIMIT
        if (reading := self._shared.get((session, start))) is not None:
            await reading.wait()  # after a restart, all readers of a session come at once
        if (events := blocks.read(session, after)) and await self._is_there(session) and blocks is self._blocks:
            return events
        floor = self._tail.floor(session)
        if floor is None or floor >= start + READ_LIMIT:
            limit = start + READ_LIMIT - after
        if after != start or (session, start) in self._shared:
            return await self._read(session, after, limit, deltas)
        self._shared[session, start] = reading = asyncio.Event()
        forgotten = blocks.forgotten
        try:
            events = await self._read(session, after, limit, deltas)
            if len(events) == READ_LIMIT:
                blocks.put(session, start, events, forgotten)
        finally:
            del self._shared[session, start]
            reading.set()
        return events

    async def _is_there(self, session: str) -> bool:
        """Whether what was read of a session is still what it has; if not, it is forgotten."""
        bucket = self._server.bucket(session)
        known, (era, state) = self._seen.get(bucket), self._server.keys(session, "era", "state")
        place, head = await asyncio.gather(
            self._server.do(era, "HMGET", era, "n", "count"), self._server.do(state, "HGET", state, "h")
        )
        await self._meet(bucket, known, *place)
        if head is not None and not is_deleted(head):
            return True
        self._blocks.forget(session)
        return False

    async def _read(self, session: str, after: Offset, limit: int, deltas: bool) -> list[Event]:
        evictions, tail = self._tail.evictions, self._tail
        self._reading[session] = self._reading.get(session, 0) + 1
        try:
            records, whole = await self._find(session, after, limit, deltas=deltas)
            missed = self._missed.get(session, 0)
        finally:
            self._reading[session] -= 1
            if not self._reading[session]:
                del self._reading[session]
                self._missed.pop(session, None)
        events: list[Event] = []
        room, last = PAGE_BYTES, after
        for offset, at, type_, run, json, _ in records:
            if deltas and offset != last + 1 and type_ != "session.deleted":
                break
            fact, json = read_stored(session, offset, type_, json)
            events.append(Event(fact, offset, at / MICRO, run, json))
            last, room = offset, room - len(json)
            if room <= 0 or len(events) == limit:
                break
        if records and not events:
            raise StoreCorrupt(f"Events after offset {after} are gone: {self._server.shown}.")
        if whole and deltas and self._hears and len(events) == len(records) and tail is self._tail:
            tail.seed(session, after, events, evictions)
            if (tail.head(session) or 0) < missed:
                self._fall_behind(session, missed, False)
        return events

    def peek(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event] | None:
        """What is in memory of what ``read`` would give, as far as has been heard from other processes; None if that is
        not all of it."""
        self._check_open()
        if not self._hears or session in self._behind:
            return None
        return self._tail.read(session, after, limit, deltas=deltas)

    async def _find(self, session: str, after: Offset, limit: int, *, deltas: bool) -> tuple[list[Record], bool]:
        """What stands after an offset, perhaps with gaps in the end, and whether that is all."""
        keys = self._server.keys(session, "era", "whole", "deltas", "packs")
        asked = after + 1, min(limit, MAX_LIMIT), PAGE_BYTES, int(deltas)
        bucket = self._server.bucket(session)
        known = self._seen.get(bucket)
        place, whole, *streams = await self._server.run(READ, keys, *asked)
        await self._meet(bucket, known, *place)
        found = [record for stream in streams for entry in stream for record in unpack(entry) if record[0] > after]
        found.sort(key=offset_of)
        return found, bool(whole)

    async def _between(self, session: str, first: Offset, last: Offset) -> list[Event]:
        events: list[Event] = []
        while first <= last and (page := await self.read(session, first - 1)):
            events += [event for event in page if event.offset <= last]
            first = page[-1].offset + 1
        return events

    async def info(self, session: str) -> SessionInfo:
        """See ``Store.info``."""
        self._check_open()
        kept = (await states(self._server, [session]))[0] if is_text(session) else None
        if kept is None or kept.state.deleted:
            raise SessionNotFound(session)
        return session_info(kept)

    async def sessions(self, *, limit: int = 100, after: str | None = None, owner: str | None = None) -> SessionPage:
        """See ``Store.sessions``. The token is the time and the name of a page's last."""
        self._check_open()
        until, _, name = (after or "").partition(":")
        if after is not None and digits(until, most=18) is None:
            raise CursorInvalid(f"The next page is named by the page before, got {after[:60]!r}.")
        if limit <= 0 or (owner is not None and not is_text(owner)):
            return SessionPage([])
        index = ("updated", "") if owner is None else ("owned", owner)
        limit = min(limit, MAX_LIMIT)
        rows = await indexed(
            self._server, *index, until or "+inf", "-inf", "BYSCORE", "REV", "LIMIT", 0, limit + SAME_TIME
        )
        rows = sorted((row for row in rows if after is None or row < (int(until), name)), reverse=True)
        infos: list[SessionInfo] = []
        done, room = 0, PAGE_BYTES
        while done < min(limit, len(rows)) and room > 0:
            some = [name for _, name in rows[done : min(done + READ_LIMIT, limit)]]
            for kept in await states(self._server, some):
                if room > 0:
                    done += 1
                    if kept is not None and not kept.state.deleted:
                        infos.append(session_info(kept))
                        room -= kept.size
        last = rows[done - 1] if 0 < done < len(rows) else None
        return SessionPage(infos, None if last is None else f"{last[0]}:{last[1]}")

    async def open_runs(self, *, limit: int = READ_LIMIT) -> list[OpenRun]:
        """See ``Leaser.open_runs``."""
        self._check_open()
        names = [
            name for _, name in sorted(await indexed(self._server, "open", "", 0, max(min(limit, MAX_LIMIT), 1) - 1))
        ]
        runs: list[OpenRun] = []
        for start in range(0, len(names), READ_LIMIT):
            for kept in await states(self._server, names[start : start + READ_LIMIT]):
                runs += () if kept is None else kept.state.runs.values()
            if len(runs) >= limit:
                break
        return runs[: max(limit, 0)]

    # Others' bells ----------------------------------------------------------------------------------------------------

    async def _listen(self) -> None:
        """Hear from other processes what has grown."""
        deaf = False
        while True:
            try:
                async with self._server.listen() as pubsub:
                    asked = False
                    while True:
                        message = await pubsub.get_message(timeout=SILENCE_SECONDS)
                        if message is None and asked:
                            raise TimeoutError("no answer to a ping")
                        asked = message is None
                        if message is None:
                            await pubsub.ping()
                        elif message["type"] in ("subscribe", "ssubscribe"):
                            self._tail = TailCache(**self._tail_bounds)
                            self._hears = True
                            self._look.set()
                            if deaf:
                                await self._look_back()
                                self.doorbell.ring_work()
                        elif message["type"] in ("message", "smessage"):
                            self._hear(message["data"])
                        elif message["type"] == "sunsubscribe":
                            raise ConnectionError("the channel has moved to another node of the cluster")
            except Exception as exc:
                if self._hears or not deaf:
                    logger.warning("%s: others' writes are not heard of for now: %s", self._server.shown, exc)
            self._hears, deaf = False, True
            await asyncio.sleep(DEAF_SECONDS / 2)

    def _hear(self, data: bytes) -> None:
        writer, grown, work = _said(data)
        if self._writer is None or writer == self._writer.name:
            return
        for session, head, outside in grown:
            if session in self._reading:
                self._missed[session] = max(head, self._missed.get(session, 0))
            tail = self._tail.head(session)
            if tail is not None and head > tail:
                if self.doorbell.listening(session):
                    self._fall_behind(session, head, outside)
                    continue
                self._tail.forget(session)
            self.doorbell.ring(session, outside=outside)
        if work:
            self.doorbell.ring_work()

    def _fall_behind(self, session: str, head: Offset, outside: bool) -> None:
        """What this session has up to ``head`` is to be read, and then rung for."""
        before = self._behind.get(session, (0, False))
        self._behind[session] = max(head, before[0]), outside or before[1]
        self._fetch.set()

    async def _catch_up(self) -> None:
        """Read what has grown elsewhere, once for all who follow it here, and then ring."""
        while True:
            await self._fetch.wait()
            self._fetch.clear()
            await asyncio.gather(*(self._follow(session) for session in list(self._behind)))

    async def _follow(self, session: str) -> None:
        tail = self._tail
        after = tail.head(session)
        try:
            events = [] if after is None else await self.read(session, after)
        except LegatoError:
            events = []  # whoever follows will be told
        head, outside = self._behind.pop(session)
        if tail is self._tail and after is not None and tail.head(session) == after:
            if events:
                tail.put(session, events)
            if (tail.head(session) or 0) < head:
                tail.forget(session)
        self.doorbell.ring(session, outside=outside)

    async def _poll(self) -> None:
        """Look at what is listened to: a message may be lost, and while nothing is heard this is all there is."""
        seen: dict[str, Any] = {}
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS if self._hears else DEAF_SECONDS):
                    await self._look.wait()
            self._look.clear()
            before, seen = seen, {}
            sessions = [session for session in self.doorbell.sessions() if is_text(session)]
            for start in range(0, len(sessions), READ_LIMIT):
                some = sessions[start : start + READ_LIMIT]
                keys = [self._server.keys(session, "state")[0] for session in some]
                try:
                    found = await asyncio.gather(*(self._server.do(key, "HGET", key, "v") for key in keys))
                except StoreError:
                    break
                for session, version in zip(some, found, strict=True):
                    seen[session] = version
                    known = self._writer and self._writer.version(session)
                    if version != known and (session not in before or before[session] != version):
                        self._tail.forget(session)
                        self.doorbell.ring(session)


_: type[Portable] = RedisStore
