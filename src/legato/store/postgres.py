"""The PostgreSQL store: logs in a database that many processes share.

    append                    encode; wait for the next group
      -> one task             lock the rows of all sessions of the group, let the machine decide, write, commit
      -> deliver              tail cache, doorbell, call backs; then NOTIFY, for the other processes
    NOTIFY of another one     fetch what is missing of the logs that are held here, ring
    read                      from the tail cache; else from the database

Nothing is decided in SQL: ``machine.moved`` decides, on rows that are locked. The rule that must hold: a transaction
whose outcome is unknown, since its connection was lost, is neither done again nor given up before it is known. It holds
its locks until it has ended, and writes its number; so who has the locks again sees whether it was committed.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

from .. import tally
from ..check import check_text, digits, is_text
from ..errors import CursorInvalid, LegatoError, SessionNotFound, StoreError, StoreVersion
from ..event import Draft, Event, Offset, SessionCreated
from ..figures import StoreFigures
from ..log import (
    MICRO,
    READ_LIMIT,
    Doorbell,
    Portable,
    SessionInfo,
    SessionPage,
    SessionRecord,
    Storing,
    Take,
    Thinning,
    created,
)
from ..machine import Lease, OpenRun, SessionState
from . import postgres_moving as moving
from . import postgres_sql as sql
from .group import GroupWriter, KnownRuns, RowGroup, RowRequest, SharedRow, asks_to_append, read_eras, read_event
from .neighbours import Neighbours, Together
from .postgres_link import FAILURES, Connection, Link, sever
from .postgres_packs import events_of, thin
from .postgres_sql import Int8Array, TextArray

logger = logging.getLogger("legato")

RETRIES = 0.05, 1.0
"""Seconds between two tries to reach the database: the first, and the longest."""
NET_SECONDS = 5.0
"""Seconds between two looks at the heads of all that is listened to, for rings that were lost,"""
POLL_SECONDS = 0.25
"""and where nothing rings, since there is no connection of our own to the server."""
MAX_INTEGER = 2**62


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
        self._url, self._link = url, Link(url)
        self._clock = clock
        self._bounds = tail_events, tail_bytes
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Future[None] | None = None
        self._eras: dict[str, int] = {}
        self._era, self.incarnation = 0, ""

    # Opening and closing ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Make ready; bring the database to the present schema. Whoever holds a lease keeps it.

        Raises:
            StoreLost, StoreVersion, StoreReadOnly, StoreError: nothing was opened.
        """
        if self._tasks:
            raise StoreError(f"The store is open already: {self._link.place}.", place=self._link.place)
        self._closing = None
        self._link = Link(self._url)
        self._link.learn = self._learn
        self._number = self._stored = self._last = 0
        self._runs = KnownRuns()
        events, bytes = self._bounds
        self._others = Neighbours(self.doorbell, self._follow, events=events, bytes=bytes)
        self._writer = GroupWriter(self._transact, self._look_after, self._link.error, self._others)
        self._looks = Together(self._look_for)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # to read a session's blocks
        self._conn: Connection | None = None
        self._begun = asyncio.Event()
        try:
            await self._prepare(await self._connected())
        except BaseException as exc:
            await self._close_connection()
            await self._link.close()
            if isinstance(exc, FAILURES):
                raise self._link.error(exc) from exc
            raise
        listens = self._poll() if self._link.listen is None else self._listen(self._link.listen)
        works = {"write": self._writer.run(), "notify": self._notify(), "listen": listens}
        self._tasks = [asyncio.create_task(work, name=f"legato-postgres-{name}") for name, work in works.items()]
        try:
            await self._begun.wait()
        except BaseException:
            await self.close()
            raise

    async def _prepare(self, conn: Connection) -> None:
        link, known = self._link, len(sql.MIGRATIONS)
        if await self._version(conn) < known:
            async with conn.transaction():
                await link.execute(conn, sql.PATIENT)
                await link.execute(conn, sql.ALONE)
                version = await self._version(conn)  # another process may have done it meanwhile
                for script in (*([] if version else [sql.VERSION_TABLE]), *sql.MIGRATIONS[version:]):
                    for statement in script.split(";\n"):
                        if statement.strip():
                            await link.execute(conn, statement)
                if version < known:
                    await link.execute(conn, sql.DROP_VERSION)
                    await link.execute(conn, sql.PUT_VERSION, (known, sql.OLDEST))
        encoding, fsync, number, self._last = await link.row(conn, sql.ABOUT)
        if encoding != "UTF8" or number < sql.LEAST_SERVER:
            raise StoreError(
                f"Needed is a database with ENCODING 'UTF8' of a server from version {sql.LEAST_SERVER // 10_000} on; "
                f"this one has {encoding}, of version {number // 10_000}: {link.place}."
            )
        if fsync != "on":
            logger.warning("%s has fsync %s: a loss of power may take what was acknowledged", link.place, fsync)
        await link.execute(conn, sql.FORGET_WRITERS)
        await link.execute(conn, sql.ENTER, (self._others.me,))
        await self._begin_era(conn)

    async def _version(self, conn: Connection) -> int:
        if not (await self._link.row(conn, sql.HAS_VERSION))[0]:
            return 0
        version, oldest = await (await self._link.execute(conn, sql.GET_VERSION)).fetchone() or (0, 0)
        if oldest > (known := len(sql.MIGRATIONS)):
            raise StoreVersion(
                f"{self._link.place} has schema version {version}, for programs that know version {oldest}, and this "
                f"Legato knows versions up to {known}: it was written by a newer one.",
                version=version,
                known=known,
            )
        return int(version)

    async def close(self) -> None:
        """Store what was appended so far and let go. Idempotent."""
        if self._tasks and self._closing is None:
            self._closing = asyncio.ensure_future(self._close())
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _close(self) -> None:
        write, notify, listen = self._tasks
        self._writer.end()
        listen.cancel()
        await asyncio.gather(write, listen, return_exceptions=True)
        self._others.end()
        await asyncio.gather(notify, return_exceptions=True)
        await self._link.close()
        if self._conn is not None:
            try:
                await self._link.execute(self._conn, sql.LEAVE, (self._others.me,))
            except FAILURES:
                pass
        await self._close_connection()
        self._tasks = []

    async def _close_connection(self) -> None:
        conn, self._conn = self._conn, None
        if conn is not None:
            await conn.close()

    def _check_open(self) -> None:
        if not self._tasks or self._writer.over:
            raise StoreError(f"The store is not open: {self._link.place}.", place=self._link.place)

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
        last = await moving.build(self._link, self._era, session, pieces, self._given_now)
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
        lock = sql.LOCK_FREE, (self._given_now(), max(limit, 0))
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
        return self._writer.submit(request)

    def _given_now(self) -> int | None:
        return None if self._clock is None else round(self._clock() * MICRO)

    @property
    def figures(self) -> StoreFigures:
        """What has been counted of commits."""
        return self._writer.figures

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now, see ``Store``."""
        return self._writer.trouble if self._tasks else None

    async def _transact(self, group: RowGroup) -> None:
        """Do it, and once, however often the connection is lost meanwhile."""
        self._number += 1
        pause, longest = RETRIES
        while True:
            try:
                conn = await self._connected()
                with self._link.answering(conn):
                    await self._attempt(conn, group)
                self._writer.note(None)
                return
            except FAILURES as exc:
                if not await self._give_up(exc) and not group.sent:
                    raise  # it was rolled back
                self._writer.note(exc)
                self._writer.refuse()
                if self._writer.over or (self.trouble is not None and not group.sent):
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _attempt(self, conn: Connection, group: RowGroup) -> None:
        link, me = self._link, self._others.me
        asked: list[sql.Statement] = [("BEGIN", ()), *([link.settings(local=True)] if link.pooled else [])]
        asked += sql.locks(me, group.requests)
        place = len(asked) - 1  # of the rows
        if keyed := [request for request in group.requests if request.once is not None]:
            names, keys = ([getattr(each, name) for each in keyed] for name in ("session", "once"))
            asked.append((sql.USED, (TextArray(names), TextArray(keys))))
        told = await link.talk(conn, [*asked, (sql.AROUND, (me,))])
        now, number, era = told[-1][0]
        if group.sent and number == self._number:
            await conn.execute("ROLLBACK")  # it had been committed
            self._stored, self._last = number, group.last
            return
        group.sent = False
        if era != self._era:
            await conn.execute("ROLLBACK")
            await self._begin_era(conn)
            await self._attempt(conn, group)
            return
        before: dict[tuple[str, str], list[Event]] = {}
        for name, key, *row in told[place + 1] if keyed else ():
            before.setdefault((name, key), []).extend(events_of(name, [row]))
        locked = {row[1]: self._read_row(row) for row in told[place]}
        given = self._given_now()
        group.decide(locked, before, now=now if given is None else given, last=self._last, era=era)
        writes = list(sql.changes(group, self._runs, me, self._number))
        group.sent = bool(writes)
        try:
            await link.talk(conn, [*writes, ("COMMIT" if writes else "ROLLBACK", ())])
        except FAILURES as exc:
            group.sent = self._is_lost(conn, exc)  # else the server has said that it was rolled back
            raise
        self._stored, self._last = self._number if writes else self._stored, group.last

    def _read_row(self, row: Sequence[Any]) -> SharedRow:
        id, name, head, whole, updated_at, deleted, runs, waits, era, eras = row
        state = SessionState(name, head, whole, deleted, self._runs.read(name, runs))
        return SharedRow(id, state, updated_at, waits, era, eras)

    async def _connected(self) -> Connection:
        if self._conn is None:
            self._conn = await self._link.connect()
        return self._conn

    async def _give_up(self, exc: Exception) -> bool:
        """Let go of the writer's connection if it is lost; else undo what was begun on it."""
        if (conn := self._conn) is not None:
            if not self._is_lost(conn, exc):
                try:
                    await conn.rollback()
                    return False
                except FAILURES:
                    pass
            sever(conn)
            await self._close_connection()
        return True

    def _is_lost(self, conn: Connection, exc: Exception) -> bool:
        return conn.closed or self._link.error(exc).code == "store_lost"

    async def _look_after(self) -> None:
        """See whether something could be stored, while nothing is to be."""
        try:
            conn = await self._connected()
            with self._link.answering(conn, NET_SECONDS):
                (era,) = await self._link.row(conn, sql.ERA)
                if era != self._era:
                    await self._begin_era(conn)
        except FAILURES as exc:
            await self._give_up(exc)
            raise

    # Eras -------------------------------------------------------------------------------------------------------------

    async def _begin_era(self, conn: Connection) -> None:
        """Learn the present era of the database; begin one, if what was stored last may be gone."""
        link, me = self._link, self._others.me
        async with conn.transaction():
            await link.execute(conn, sql.ALONE)
            (era,) = await link.row(conn, sql.ERA)
            if begins := era is None:
                (era,) = await link.row(conn, sql.BEGIN_ERA, (secrets.token_urlsafe(9),))
                await link.execute(conn, sql.CLEAR_PRESENT)
                await link.execute(conn, sql.SET_PRESENT, (era,))
            rows = await (await link.execute(conn, sql.ERAS, (me,))).fetchall()
            stored: int = rows[-1][3] or 0
            if begins and len({timeline for _, _, timeline, _ in rows[-2:]}) > 1:
                await self._give_all_back(conn, stored)
        before, self._era = self._era, era
        link.era = era
        self._eras = {name: id for id, name, _, _ in rows}
        self.incarnation = rows[-1][1]
        if before not in (0, era):
            since = {timeline for id, _, timeline, _ in rows if id >= before}
            self._others.forget()
            self.doorbell.forget(lost=link.normal or len(since) > 1 or stored < self._stored)
            self._stored = min(stored, self._stored)

    async def _learn(self) -> None:
        conn = await self._link.connect()
        try:
            with self._link.answering(conn):
                await self._begin_era(conn)
        finally:
            await conn.close()

    async def _give_all_back(self, conn: Connection, number: int) -> None:
        """Leave all runs to whoever takes them: who holds a lease here may have given it back, or lost it, since."""
        rows = await (await self._link.execute(conn, sql.LOCK_OPEN)).fetchall()
        locked = {row[1]: self._read_row(row) for row in rows}
        held = [row.first.lease() for row in locked.values() if row.first is not None]
        group = RowGroup([RowRequest(None, lambda group, _: group.release(*held))])
        group.decide(locked, {}, now=0, last=self._last, era=self._era)
        for statement in sql.changes(group, self._runs, self._others.me, number):
            await self._link.execute(conn, *statement)

    async def holds(self, incarnation: str, session: str, offset: Offset) -> bool:
        """See ``Store``. In which era an event was written stands in its session's row."""
        if incarnation == self.incarnation or offset <= 0:
            return True
        known = self._eras.get(incarnation)
        look = await self._look(session)
        if known is None or look is None or offset > look.info.head:
            return False
        return max((era for era, first in read_eras(look.eras) if first <= offset), default=0) <= known

    # The others -------------------------------------------------------------------------------------------------------

    async def _notify(self) -> None:
        """Tell the other processes what has come, on a connection of its own: a NOTIFY holds a lock of the server."""
        conn: Connection | None = None
        while (messages := await self._others.messages()) is not None:
            while messages:
                used = conn is not None
                try:
                    conn = conn or await self._link.connect()
                    with self._link.answering(conn):
                        await self._link.execute(conn, sql.NOTIFY, (self._channel, TextArray(messages)))
                    messages = []
                except FAILURES as exc:
                    if conn is not None:
                        await conn.close()
                    conn = None
                    if not used:  # else the database may have been away meanwhile, and be back
                        logger.warning("other processes are not told what is new: %s", self._link.error(exc))
                        messages = []  # they find it by themselves, within seconds
                        await asyncio.sleep(0 if self._writer.over else RETRIES[1])
        if conn is not None:
            await conn.close()

    @property
    def _channel(self) -> str:
        return f"legato_{self._link.schema}"

    async def _listen(self, conninfo: str) -> None:
        """Hear what other processes have stored."""
        pause, longest = RETRIES
        heard = True
        while True:
            conn: Connection | None = None
            try:
                conn = await self._link.connect(conninfo)
                await conn.execute(f'LISTEN "{self._channel}"'.encode())
                if not heard:
                    logger.warning("%s tells what is new again", self._link.place)
                self._others.hears = heard = True
                self._others.forget()  # what was told meanwhile
                self._begun.set()
                pause = RETRIES[0]
                await self._hear(conn)
            except Exception as exc:  # whatever it is, it is not to end here
                if heard:
                    logger.warning("what other processes store is seen late: %s", self._link.error(exc))
                heard = False
            finally:
                self._begun.set()
                self._others.hears = False
                if conn is not None:
                    await conn.close()
            self._others.forget()
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _hear(self, conn: Connection) -> None:
        loop = asyncio.get_running_loop()
        look_at = loop.time() + NET_SECONDS
        while True:
            timeout = max(look_at - loop.time(), 0)
            await self._others.heard([each.payload async for each in conn.notifies(timeout=timeout, stop_after=1)])
            if loop.time() >= look_at:
                with self._link.answering(conn, NET_SECONDS):
                    await conn.execute("SELECT 1")  # whether anybody is there
                await self._look_around()
                look_at = loop.time() + NET_SECONDS

    async def _poll(self) -> None:
        """Look for what other processes have stored, where nothing tells it."""
        self._begun.set()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self._look_around()

    async def _look_around(self) -> None:
        try:
            await self._others.look(self._heads)
            if (await self._link.ask(sql.ANY_FREE, (self._given_now(),)))[0][0]:
                self.doorbell.ring_work()
        except LegatoError as exc:
            logger.debug("cannot look for what others have stored: %s", exc)

    async def _heads(self, names: Sequence[str]) -> dict[str, Offset]:
        return dict(await self._link.ask(sql.HEADS, (TextArray(names),)))

    async def _follow(self, names: Sequence[str], afters: Sequence[Offset]) -> dict[str, tuple[Offset, list[Event]]]:
        rows = await self._link.ask(sql.GAPS, (TextArray(names), Int8Array(afters)))
        behind = dict(zip(names, afters, strict=True))
        return {
            name: (head, list(events_of(name, [row[2:] for row in each if row[2] is not None], behind[name])))
            for (name, head), each in itertools.groupby(rows, key=itemgetter(0, 1))
        }

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
        blocks, start = self._others.blocks, after - after % READ_LIMIT
        if look.deleted:
            blocks.forget(session)
        if not deltas or limit < READ_LIMIT or look.deleted:
            return await self._page(session, after, limit, deltas)
        async with self._turns.setdefault(session, asyncio.Lock()):
            # Somebody may have read the same meanwhile; and who is far behind is read a block, for all others who are.
            if events := self._others.tail.read(session, after, limit) or blocks.read(session, after):
                return events
            if start + READ_LIMIT <= look.info.head:
                page = await self._page(session, start, READ_LIMIT, True)
                if len(page) == READ_LIMIT:
                    blocks.put(session, start, page, blocks.forgotten)
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
        last = await moving.adopt(self._link, self._runs, self._era, record, pages)
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
        rows = await self._link.ask(sql.TALLY, (self._given_now(), *told, node, node))
        return tally.added(text for (text,) in rows)

    def facts(self) -> dict[str, str | int]:
        """What an operator may want to know: the durability, and what the tail cache holds (sessions, bytes)."""
        tail, durability = self._others.tail, "normal" if self._link.normal else "full"
        return {"kind": "postgresql", "durability": durability, "tail_sessions": len(tail), "tail_bytes": tail.bytes}


_: type[Portable] = PostgresStore
