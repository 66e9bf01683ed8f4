"""The PostgreSQL store: logs in a database that many processes share.

    append                    encode; wait for the next group
      -> one task             lock the rows of all sessions of the group, let the machine decide, write, commit
      -> deliver              tail cache, doorbell, call backs; then NOTIFY, for the other processes
    NOTIFY of another one     fetch what is missing of the logs that are held here, ring
    read                      from the tail cache; else from the database

Nothing is decided in SQL: ``machine.moved`` decides, on rows that are locked. ``postgres_writer`` knows how that is
written, ``postgres_rings`` what processes tell each other, ``postgres_packs`` what becomes of old deltas.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from .. import tally
from ..check import check_text, digits, is_text
from ..doorbell import Doorbell
from ..errors import CursorInvalid, LegatoError, SessionNotFound, StoreError
from ..event import Draft, Event, Offset, SessionCreated
from ..figures import StoreFigures
from ..log import MICRO, READ_LIMIT, Portable, SessionInfo, SessionPage, SessionRecord, Storing, Take, Thinning, created
from ..machine import Lease, OpenRun
from . import postgres_moving as moving
from . import postgres_sql as sql
from .group import RowRequest, asks_to_append, read_eras, read_event
from .neighbours import Together
from .postgres_link import FAILURES, Link
from .postgres_packs import events_of, thin
from .postgres_rings import PostgresRings
from .postgres_sql import TextArray
from .postgres_writer import PostgresWriter

logger = logging.getLogger("legato")

MAX_INTEGER = 2**62
SWEEP_SECONDS = 5.0
"""Between two looks at what is left of sessions that were deleted."""


class _Look(NamedTuple):
    """A session as the database has it; the last two are its row's."""

    info: SessionInfo
    whole: Offset
    deleted: bool
    eras: str
    id: int


class PostgresStore:
    """Logs in a PostgreSQL database, for as many processes as there are, and one event loop in each.

    Args:
        url: ``postgresql://user:password@host:port/database?option=value``, as libpq takes it, with its options and
            these: ``durability`` (``full``; ``normal`` does not wait for the disk), ``schema`` (``legato``), ``pooler``
            (``transaction``, behind one that gives a connection for a transaction) and ``listen`` (the URL of the
            server itself, beside a pooler; ``none``: look for what is new four times a second instead).
        clock: gives the time, seconds since the epoch, instead of the database.
        tail_events, tail_bytes: bounds of the cache of recent events, see ``TailCache``.

    Raises:
        InvalidInput: the URL cannot be used.
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
        self._url, self._clock = url, clock
        self._bounds = {"events": tail_events, "bytes": tail_bytes}
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Future[None] | None = None
        self._begin_anew()

    def _begin_anew(self) -> None:
        self._link = link = Link(self._url)
        self._rings = PostgresRings(link, self.doorbell, self._now, **self._bounds)
        self._others = self._rings.others
        self._writer = PostgresWriter(link, self._others, self.doorbell, self._now)
        self._runs = self._writer.runs
        self._looks = Together(self._look_for)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # to read a session's blocks

    # Opening and closing ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make ready; bring the database to the present schema. Whoever holds a lease keeps it.

        Raises:
            StoreLost, StoreVersion, StoreReadOnly, StoreError: nothing was opened.
        """
        if self._tasks:
            raise StoreError(f"The store is open already: {self._link.place}.", place=self._link.place)
        self._closing = None
        self._begin_anew()
        try:
            await self._writer.begin()
        except BaseException as exc:
            await self._writer.let_go()
            await self._link.close()
            if isinstance(exc, FAILURES):
                raise self._link.error(exc) from exc
            raise
        works = {
            "write": self._writer.groups.run(),
            "tell": self._rings.tell(),
            "listen": self._rings.listen(),
            "sweep": self._sweep(),
        }
        self._tasks = [asyncio.create_task(work, name=f"legato-postgres-{name}") for name, work in works.items()]
        try:
            await self._rings.begun.wait()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Store what was appended so far and let go. Idempotent."""
        if self._tasks and self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        write, tell, listen, sweep = self._tasks
        self._writer.groups.end()
        listen.cancel()
        sweep.cancel()
        await asyncio.gather(write, listen, sweep, return_exceptions=True)
        self._others.end()
        await asyncio.gather(tell, return_exceptions=True)
        await self._link.close()
        await self._writer.end()
        self._tasks = []

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_SECONDS)
            try:
                while await moving.sweep(self._link):
                    pass
            except LegatoError as exc:
                logger.debug("what was deleted cannot be taken away: %s", exc)

    async def sweep(self) -> None:
        """See ``Store``: sessions of very many events are taken away a while after their deletion."""
        self._check_open()
        await moving.sweep_all(self._link)

    def _check_open(self) -> None:
        if not self._tasks or self._writer.groups.over:
            raise StoreError(f"The store is not open: {self._link.place}.", place=self._link.place)

    @property
    def incarnation(self) -> str:
        """See ``Store``: the name of the database's era."""
        return self._writer.incarnation

    @property
    def whereabouts(self) -> str:
        """See ``Portable``: the database, and the schema in it."""
        return f"{self._writer.database} {self._link.schema}"

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
        """See ``Store.append``. Gives what has all errors too."""
        try:
            return self._submit(asks_to_append(session, drafts, lease=lease, once=once, head=head, take=take))
        except LegatoError as exc:
            return Storing(error=exc, over=True)

    async def build(self, session: str, pieces: AsyncIterator[Sequence[Draft]]) -> None:
        """See ``log.build``: one transaction on a connection of its own, in which others' appends come in between."""
        self._check_open()
        last = await moving.build(self._link, self._writer.era, session, pieces, self._now)
        self._others.stored(session, last, outside=True)

    async def acquire(self, session: str, run: str, *, owner: str, ttl: float) -> Lease:
        """See ``Leaser.acquire``."""
        check_text(session, run, owner)
        take = Take(run, owner, ttl)
        lease: Lease = await self._submit(RowRequest(session, lambda group, _: group.lease(session, take)))
        return lease

    async def claim(self, *, owner: str, ttl: float, limit: int) -> list[Lease]:
        """See ``Leaser.claim``."""
        check_text(owner)
        lock = sql.LOCK_FREE, (self._now(), max(limit, 0))
        leases: list[Lease] = await self._submit(RowRequest(None, lambda group, _: group.claim(owner, ttl), lock))
        return leases

    async def renew(self, *, owner: str, ttl: float) -> None:
        """See ``Leaser.renew``."""
        check_text(owner)
        await self._submit(RowRequest(None, lambda group, _: group.renew(owner, ttl), (sql.LOCK_HELD, (owner,))))

    async def release(self, lease: Lease) -> None:
        """See ``Leaser.release``."""
        await self._submit(RowRequest(lease.session, lambda group, _: group.release(lease)))
        self._others.ring_work()

    def _submit(self, request: RowRequest) -> Storing:
        self._check_open()
        return self._writer.groups.submit(request)

    def _now(self) -> int | None:
        return None if self._clock is None else round(self._clock() * MICRO)

    @property
    def figures(self) -> StoreFigures:
        """What has been counted of commits."""
        return self._writer.groups.figures

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now, see ``Store``."""
        return self._writer.groups.trouble if self._tasks else None

    async def holds(self, incarnation: str, session: str, offset: Offset) -> bool:
        """See ``Store``. In which era an event was written stands in its session's row."""
        if incarnation == self.incarnation or offset <= 0:
            return True
        known = self._writer.eras.get(incarnation)
        look = await self._look(session)
        if known is None or look is None or offset > look.info.head:
            return False
        return max((era for era, first in read_eras(look.eras) if first <= offset), default=0) <= known

    # Reading ----------------------------------------------------------------------------------------------------------

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """See ``Store.read``. Where events are large, a page ends with some bytes."""
        self._check_open()
        if limit <= 0 or not is_text(session):
            return []
        after = min(after, MAX_INTEGER)
        if events := self._others.tail.read(session, after, limit, deltas=deltas):
            return events
        tail = self._others.tail
        evictions = tail.evictions
        look = await self._look(session)
        if look is None or after >= (look.info.head if deltas else look.whole):
            if look is not None and after == look.info.head:
                tail.seed(session, after, [], evictions)
            return []
        if look.deleted:
            self._others.blocks.forget(session)
            after = max(after, look.info.head - 1)  # what is left before it is nobody's
        if not deltas or limit < READ_LIMIT or look.deleted:
            return await self._page(session, after, limit, deltas)
        start = after - after % READ_LIMIT
        async with self._turns.setdefault(session, asyncio.Lock()):
            blocks = self._others.blocks  # of the era in which this is read, which may have begun meanwhile
            forgotten = blocks.forgotten
            # Somebody may have read the same meanwhile; and who is far behind is read a block, for all others who are.
            if events := self._others.tail.read(session, after, limit) or blocks.read(session, after):
                return events
            if start + READ_LIMIT <= look.info.head:
                page = await self._page(session, start, READ_LIMIT, True)
                if len(page) == READ_LIMIT:
                    blocks.put(session, start, page, forgotten)
                if events := page[after - start :]:
                    return events
            return await self._page(session, after, limit, True)

    async def _page(self, session: str, after: Offset, limit: int, deltas: bool) -> list[Event]:
        """A page from the database, which the tail may go on from."""
        tail, evictions = self._others.tail, self._others.tail.evictions
        until = min(after + limit, MAX_INTEGER) if deltas else MAX_INTEGER  # without deltas there are gaps
        rows = await self._link.ask(sql.PAGES[deltas], (after, session, after, limit, until))
        events = list(itertools.islice(events_of(session, [row[:5] for row in rows], after), limit))
        if deltas and 0 < len(events) < limit and rows[-1][5] + len(rows[-1][1].encode()) < sql.PAGE_BYTES:
            tail.seed(session, after, events, evictions)
        return events

    def peek(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event] | None:
        """What is in memory of what ``read`` would give; that there is nothing, only to who is rung for more."""
        self._check_open()
        events = self._others.tail.read(session, after, limit, deltas=deltas)
        return events if events or (self._others.hears and self.doorbell.hears(session)) else None

    async def info(self, session: str) -> SessionInfo:
        """See ``Store.info``."""
        look = await self._look(session)
        if look is None or look.deleted:
            raise SessionNotFound(session)
        return look.info

    async def _look(self, session: str) -> _Look | None:
        self._check_open()
        return await self._looks.of(session) if is_text(session) else None

    async def _look_for(self, sessions: Sequence[str]) -> dict[str, _Look]:
        return {row[0]: self._read_look(row) for row in await self._link.ask(sql.LOOK, (TextArray(sessions),))}

    def _read_look(self, row: Sequence[Any]) -> _Look:
        name, head, whole, deleted, updated_at, runs, eras, type, data, at, id = row
        begun = SessionCreated() if deleted else created(read_event(name, type, data.encode(), 1, at, None).fact)
        found = list(self._runs.read(name, runs).values())
        return _Look(SessionInfo(name, head, at / MICRO, updated_at / MICRO, begun, found), whole, deleted, eras, id)

    async def sessions(self, *, limit: int = 100, after: str | None = None, owner: str | None = None) -> SessionPage:
        """See ``Store.sessions``. The token says when the last one was written to, and which of those of that time."""
        self._check_open()
        at, _, id = (after or f"{MAX_INTEGER}.0").partition(".")
        before = digits(at, most=19), digits(id, most=19)
        if None in before:
            raise CursorInvalid(f"The next page is named by the page before, got {(after or '')[:60]!r}.")
        if owner is not None and not is_text(owner):
            return SessionPage([])
        statement, whose = (sql.NEWEST, ()) if owner is None else (sql.NEWEST_OWNED, (owner,))
        rows = await self._link.ask(statement, (*whose, *before, max(limit, 0) + 1))
        looks = [self._read_look(row) for row in rows[: max(limit, 0)]]
        more = f"{rows[limit - 1][4]}.{looks[-1].id}" if looks and len(rows) > limit else None
        return SessionPage([look.info for look in looks], more)

    async def thin(self, session: str, after: Offset, limit: int) -> Thinning:
        """See ``Store``. What is packed is read as it was."""
        self._check_open()
        return await thin(self._link, self._runs, session, after, limit) if is_text(session) else Thinning(0, None)

    def records(self) -> AsyncIterator[SessionRecord]:
        """See ``Portable.records``."""
        self._check_open()
        return moving.records(self._link, self._runs)

    async def record(self, session: str) -> SessionRecord | None:
        """See ``Portable.record``."""
        self._check_open()
        return await moving.record(self._link, self._runs, session) if is_text(session) else None

    async def adopt(self, record: SessionRecord, pages: AsyncIterator[Sequence[Event]]) -> None:
        """See ``Portable.adopt``."""
        self._check_open()
        last = await moving.adopt(self._link, self._runs, self._writer.era, record, pages)
        self._others.stored(record.session, last, outside=True)
        if record.epochs:
            self._others.ring_work()

    async def open_runs(self, *, limit: int = READ_LIMIT) -> list[OpenRun]:
        """See ``Leaser.open_runs``."""
        self._check_open()
        rows = await self._link.ask(sql.OPEN_RUNS, (min(max(limit, 0), MAX_INTEGER),))
        return [run for name, runs in rows for run in self._runs.read(name, runs).values()][:limit]

    async def tally(self, node: str, counts: Mapping[str, int], ttl: float) -> dict[str, int]:
        """See ``Store``."""
        self._check_open()
        told = node, tally.as_text(counts), round(ttl * MICRO)
        rows = await self._link.ask(sql.TALLY, (self._now(), *told, node, node))
        return tally.added(text for (text,) in rows)

    def facts(self) -> dict[str, str | int]:
        """What an operator may want to know: the durability, and what the tail cache holds (sessions, bytes)."""
        tail, durability = self._others.tail, "normal" if self._link.normal else "full"
        return {"kind": "postgresql", "durability": durability, "tail_sessions": len(tail), "tail_bytes": tail.bytes}


_: type[Portable] = PostgresStore
