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
import functools
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import msgspec

from ..check import check_text, digits, is_text
from ..doorbell import Doorbell
from ..errors import (
    CursorInvalid,
    LegatoError,
    SessionNotFound,
    StoreError,
    StoreVersion,
)
from ..event import Draft, Event, Offset
from ..figures import StoreFigures
from ..log import (
    MICRO,
    READ_LIMIT,
    Appended,
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
from .redis_eras import Eras
from .redis_errors import store_error
from .redis_packs import Packer
from .redis_plan import (
    SessionCall,
    SessionPlan,
    binary,
    session_info,
    settled,
)
from .redis_reading import MAX_LIMIT, PAGE_BYTES, RedisReader
from .redis_server import RedisServer
from .redis_sessions import indexed, states
from .redis_writer import RedisWriter

logger = logging.getLogger("legato")

VERSION = 2
"""Of what stands in the server. There is no way from 1, which no released Legato has written."""
BUCKETS = 64
"""Of a store that begins in a cluster; where there is one server, there is one bucket."""
CLOSE_SECONDS = 10.0
"""For what waits to be stored, before who waits is told that nobody knows."""
SAME_TIME = 64
"""Sessions with the very same time that a page of a list looks beyond: several processes may give one."""
_tally = msgspec.msgpack.Decoder(tuple[float, dict[str, int]]).decode


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
        self._server = RedisServer(url)
        self._eras = Eras(self._server, self._changed)
        self._clock = clock
        self._bounds = {"events": tail_events, "bytes": tail_bytes}
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
        self._last_at = 0
        self._eras = eras = Eras(self._server, self._changed)
        self._packer = Packer(self._server)
        writer = RedisWriter(self._server, eras, self._clock, self._stored, lambda *asked: reader.between(*asked))
        reader = RedisReader(self._server, eras, self.doorbell, writer.name, writer.version, **self._bounds)
        self._reader = reader
        try:
            await self._server.check()
            await self._found()
            await eras.enter(0)
        except BaseException as exc:
            await self._server.close()
            if isinstance(exc, Exception):
                raise store_error(exc, self._server.shown) from exc
            raise
        self._writer = writer
        self._writing = asyncio.create_task(writer.write(), name="legato-redis-write")
        self._tasks = [
            asyncio.create_task(body, name="legato-redis")
            for body in (self._packer.go_on(), writer.tend(), reader.listen(), reader.catch_up(), reader.poll())
        ]

    async def _found(self) -> None:
        """Found the store, if there is none yet; and see in how many buckets it stands."""
        key = self._server.key("meta", "store")
        found = "HMGET", key, "buckets", "version"
        buckets, version = await self._server.do(key, *found)
        if version is None:  # in this order, so that what is there can be opened when its memory is full
            await self._server.do(key, "HSETNX", key, "buckets", BUCKETS if self._server.cluster else 1)
            await self._server.do(key, "HSETNX", key, "version", VERSION)
            buckets, version = await self._server.do(key, *found)
        if int(version) != VERSION:
            raise StoreVersion(
                f"{self._server.shown} has version {int(version)} of a store, and this Legato knows version {VERSION}: "
                f"it was written by {'a newer' if int(version) > VERSION else 'an older'} one.",
                version=int(version),
                known=VERSION,
            )
        self._server.buckets = int(buckets)
        await self._server.check_rights()

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
        tail = self._reader.tail
        return {**facts, "tail_sessions": len(tail), "tail_bytes": tail.bytes}

    @property
    def incarnation(self) -> str:
        """See ``Store``: the name of the present era."""
        return self._eras.incarnation

    @property
    def whereabouts(self) -> str:
        """See ``Portable``: the number of the database, and the beginning of the keys in it."""
        address = self._server.address
        return f"{0 if address.way else int(address.name or 0)} {address.prefix}"

    def _changed(self, lost: bool, first: bool) -> None:
        """It is another one."""
        self._reader.begin_anew()
        if not first:
            self.doorbell.forget(lost=lost)

    async def holds(self, incarnation: str, session: str, offset: Offset) -> bool:
        """See ``Store``: whether the event was written in that incarnation's era, or in one before it."""
        if incarnation == self.incarnation or offset <= 0:
            return True
        number, _, name = incarnation.partition(".")
        eras = self._server.key("era", "eras")
        if digits(number, most=15) is None or await self._server.do(eras, "HGET", eras, number) != name.encode():
            return False
        found, _ = await self._reader.find(session, offset - 1, 1, deltas=True)
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
            begins, frees = drafts[0].type == "session.created", drafts[-1].type == "session.deleted"
            return writer.submit(session, decide, once, begins=begins, patient=lease is not None, frees=frees)
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
        await moving.build(self._server, self._eras, writer, session, pieces, self._last_at)

    async def adopt(self, record: SessionRecord, pages: AsyncIterator[Sequence[Event]]) -> None:
        """See ``Portable.adopt``."""
        await moving.adopt(self._server, self._eras, self._check_open(), record, pages)

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
            self._reader.tail.forget(session)
            self._reader.blocks.forget(session)
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
            if plan.events and self._reader.hears and not call.requests[0].staged:
                self._reader.tail.put(call.session, plan.events)
        for call, plan in plans:
            if plan.events:
                self.doorbell.ring(call.session, outside=plan.outside)
                self._packer.stored(call.session, plan.events, deleted=plan.state.deleted)
        if any(plan.work for _, plan in plans):
            self.doorbell.ring_work()

    # Reading ----------------------------------------------------------------------------------------------------------

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """See ``Store.read``. A page may be shorter than ``limit``, but is never empty then; for who is far behind it
        ends with a block, which others share."""
        self._check_open()
        return await self._reader.read(session, after, limit, deltas)

    def peek(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event] | None:
        """What is in memory of what ``read`` would give, as far as has been heard from other processes; None if that is
        not all of it."""
        self._check_open()
        return self._reader.peek(session, after, limit, deltas)

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


_: type[Portable] = RedisStore
