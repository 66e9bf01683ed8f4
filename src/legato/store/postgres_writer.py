"""The writer of a PostgreSQL store: its connection, its transactions, and the era of the database in which they are.

The rule that must hold: a transaction whose outcome is unknown, since its connection was lost, is neither done again
nor given up before it is known. It holds its locks until it has ended, and writes its number; so who has the locks
again sees whether it was committed.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Sequence
from typing import Any

from ..doorbell import Doorbell
from ..errors import StoreError, StoreFull, StoreVersion
from ..event import Event
from ..machine import SessionState
from . import postgres_sql as sql
from .group import GroupWriter, KnownRuns, RowGroup, RowRequest, SharedRow
from .neighbours import Neighbours
from .postgres_link import FAILURES, Connection, Link, sever
from .postgres_packs import events_of
from .postgres_sql import TextArray

logger = logging.getLogger("legato")

RETRIES = 0.05, 1.0
"""Seconds between two tries to reach the database: the first, and the longest."""
IDLE_SECONDS = 8.0
"""For which the database may be silent, while nothing is to be stored."""


class PostgresWriter:
    """Makes the changes of one process.

    Args:
        link: to the database.
        others: hear of them.
        doorbell: of the store.
        now: the time, in microseconds; None: it is the database's.

    Attributes:
        groups: takes what is to be written.
        runs: open ones as they were read last.
        conn: over which it is written; None while there is none.
        era, incarnation: the present one of the database, and its name; 0 before it is known.
        eras: all of them, by name.
        database: its name on its server; "" before it is known.
    """

    def __init__(self, link: Link, others: Neighbours, doorbell: Doorbell, now: Callable[[], int | None]) -> None:
        self.groups = GroupWriter(self._transact, self._look_after, link.error, others)
        self.runs = KnownRuns()
        self.conn: Connection | None = None
        self.era, self.incarnation = 0, ""
        self.eras: dict[str, int] = {}
        self.database = ""
        self._link, self._others, self._doorbell, self._now = link, others, doorbell, now
        self._number = self._stored = self._last = 0
        link.learn, link.away = self._learn, lambda: self.groups.trouble is not None

    # Beginning and end ------------------------------------------------------------------------------------------------

    async def begin(self) -> None:
        """Bring the database to the present schema, and enter it.

        Raises:
            psycopg.Error, OSError, StoreVersion, StoreError: it cannot be used.
        """
        conn, link, known = await self._connected(), self._link, len(sql.MIGRATIONS)
        if await self._version(conn) < known:
            async with conn.transaction():
                await link.execute(conn, sql.PATIENT)
                await link.execute(conn, sql.ALONE, patient=True)
                version = await self._version(conn)  # another process may have done it meanwhile
                for script in (*([] if version else [sql.VERSION_TABLE]), *sql.MIGRATIONS[version:]):
                    for statement in script.split(";\n"):
                        if statement.strip():
                            await link.execute(conn, statement, patient=True)
                if 0 < version < sql.OLDEST:
                    await link.execute(conn, sql.CLEAR_PRESENT)  # so that older programs look, and stop
                if version < known:
                    await link.execute(conn, sql.DROP_VERSION)
                    await link.execute(conn, sql.PUT_VERSION, (known, sql.OLDEST))
        encoding, fsync, number, self.database, self._last = await link.row(conn, sql.ABOUT)
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

    async def end(self) -> None:
        """Leave it."""
        if self.conn is not None:
            try:
                await self._link.execute(self.conn, sql.LEAVE, (self._others.me,))
            except FAILURES:
                pass
        await self.let_go()

    async def let_go(self) -> None:
        """Let go of the connection."""
        conn, self.conn = self.conn, None
        if conn is not None:
            await conn.close()

    # Transactions -----------------------------------------------------------------------------------------------------

    async def _transact(self, group: RowGroup) -> None:
        """Do it, and once, however often the connection is lost meanwhile."""
        self._number += 1
        pause, longest = RETRIES
        while True:
            try:
                conn = await self._connected()
                with self._link.answering(conn):
                    await self._attempt(conn, group)
                self.groups.note(None, room=bool(group.events))
                return
            except FAILURES as exc:
                if not await self._give_up(exc) and not group.sent:
                    raise  # it was rolled back
                self.groups.note(exc)
                self.groups.refuse()
                if self.groups.over or (self.groups.trouble is not None and not group.sent):
                    raise
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _attempt(self, conn: Connection, group: RowGroup) -> None:
        link, me = self._link, self._others.me
        asked: list[sql.Statement] = [(sql.BEGIN, ()), *([link.settings(local=True)] if link.pooled else [])]
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
        if era != self.era:
            await conn.execute("ROLLBACK")
            await self._begin_era(conn)
            await self._attempt(conn, group)
            return
        before: dict[tuple[str, str], list[Event]] = {}
        for name, key, *row in told[place + 1] if keyed else ():
            before.setdefault((name, key), []).extend(events_of(name, [row]))
        locked = {row[1]: self._read_row(row) for row in told[place]}
        given = self._now()
        group.decide(locked, before, now=now if given is None else given, last=self._last, era=era)
        writes = list(sql.changes(group, self.runs, me, self._number))
        group.sent = bool(writes)
        try:
            await link.talk(conn, [*writes, ("COMMIT" if writes else "ROLLBACK", ())])
        except FAILURES as exc:
            group.sent = self._is_lost(conn, exc)  # else the server has said that it was rolled back
            raise
        self._stored, self._last = self._number if writes else self._stored, group.last

    def _read_row(self, row: Sequence[Any]) -> SharedRow:
        id, name, head, whole, updated_at, deleted, runs, waits, era, eras = row
        state = SessionState(name, head, whole, deleted, self.runs.read(name, runs))
        return SharedRow(id, state, updated_at, waits, era, eras)

    async def _connected(self) -> Connection:
        if self.conn is None:
            self.conn = await self._link.connect()
        return self.conn

    async def _give_up(self, exc: Exception) -> bool:
        """Let go of the writer's connection if it is lost; else undo what was begun on it."""
        if (conn := self.conn) is not None:
            if not self._is_lost(conn, exc):
                try:
                    with self._link.answering(conn):
                        await conn.rollback()
                    return False
                except FAILURES:
                    pass
            sever(conn)
            await self.let_go()
        return True

    def _is_lost(self, conn: Connection, exc: Exception) -> bool:
        return conn.closed or self._link.error(exc).code == "store_lost"

    async def _look_after(self, trouble: StoreError | None = None) -> None:
        """See whether something could be stored, while nothing is to be."""
        try:
            conn = await self._connected()
            with self._link.answering(conn, IDLE_SECONDS):
                (era,) = await self._link.row(conn, sql.ERA)
                if era != self.era:
                    await self._begin_era(conn)
                look = sql.FILL if isinstance(trouble, StoreFull) else sql.TOUCH
                asked: list[sql.Statement] = [(sql.BEGIN, ()), (look, ()), ("ROLLBACK", ())]
                if self._link.pooled:  # else nothing says there for how long the server waits
                    asked.insert(1, self._link.settings(local=True))
                await self._link.talk(conn, asked)
        except FAILURES as exc:
            await self._give_up(exc)
            raise

    # Eras -------------------------------------------------------------------------------------------------------------

    async def _begin_era(self, conn: Connection) -> None:
        """Learn the present era of the database; begin one, if what was stored last may be gone."""
        link, me = self._link, self._others.me
        async with conn.transaction():
            await link.execute(conn, sql.ALONE)
            await self._version(conn)  # which may be another since this process has begun
            (era,) = await link.row(conn, sql.ERA)
            if begins := era is None:
                (era,) = await link.row(conn, sql.BEGIN_ERA, (secrets.token_urlsafe(9),))
                await link.execute(conn, sql.CLEAR_PRESENT)
                await link.execute(conn, sql.SET_PRESENT, (era,))
            rows = await (await link.execute(conn, sql.ERAS, (me,))).fetchall()
            stored: int = rows[-1][3] or 0
            if begins and len({timeline for _, _, timeline, _ in rows[-2:]}) > 1:
                await self._give_all_back(conn, stored)
        before, self.era = self.era, era
        link.era = era
        self.eras = {name: id for id, name, _, _ in rows}
        self.incarnation = rows[-1][1]
        if before not in (0, era):
            since = {timeline for id, _, timeline, _ in rows if id >= before}
            self._others.forget()
            self._doorbell.forget(lost=link.normal or len(since) > 1 or stored < self._stored)
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
        group.decide(locked, {}, now=0, last=self._last, era=self.era)
        for statement in sql.changes(group, self.runs, self._others.me, number):
            await self._link.execute(conn, *statement)
