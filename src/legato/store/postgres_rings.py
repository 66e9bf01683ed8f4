"""What processes of a PostgreSQL store tell each other, with NOTIFY: that logs have grown, and no more.

What is lost on the way is found by looking: at the heads of all that is listened to, every few seconds; and where there
is no connection to the server itself, since a pooler is between, four times a second.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Sequence
from operator import itemgetter

from ..doorbell import Doorbell
from ..errors import LegatoError
from ..event import Event, Offset
from . import postgres_sql as sql
from .neighbours import Neighbours
from .postgres_link import FAILURES, Connection, Link
from .postgres_packs import events_of
from .postgres_sql import Int8Array, TextArray
from .postgres_writer import RETRIES

logger = logging.getLogger("legato")

NET_SECONDS = 5.0
"""Seconds between two looks at the heads of all that is listened to, for rings that were lost,"""
POLL_SECONDS = 0.25
"""and where nothing rings."""


class PostgresRings:
    """Carries the messages of ``Neighbours``.

    Args:
        link: to the database.
        doorbell: of the store.
        now: the time, in microseconds; None: it is the database's.
        events, bytes: see ``Neighbours``.

    Attributes:
        others: the other processes.
        channel: on which they speak.
        begun: listening has been tried.
    """

    def __init__(
        self, link: Link, doorbell: Doorbell, now: Callable[[], int | None], *, events: int, bytes: int
    ) -> None:
        self.others = Neighbours(doorbell, self._follow, events=events, bytes=bytes)
        self.channel = f"legato_{link.schema}"
        self.begun = asyncio.Event()
        self._link, self._doorbell, self._now = link, doorbell, now

    async def tell(self) -> None:
        """Tell the other processes what has come, on a connection of its own: a NOTIFY holds a lock of the server."""
        conn: Connection | None = None
        while (messages := await self.others.messages()) is not None:
            while messages:
                used = conn is not None
                try:
                    conn = conn or await self._link.connect()
                    with self._link.answering(conn):
                        await self._link.talk(conn, [(sql.NOTIFY, (self.channel, TextArray(messages)))])
                    messages = []
                except FAILURES as exc:
                    if conn is not None:
                        await conn.close()
                    conn = None
                    if not used:  # else the database may have been away meanwhile, and be back
                        logger.warning("other processes are not told what is new: %s", self._link.error(exc))
                        messages = []  # they find it by themselves, within seconds
                        await asyncio.sleep(0 if self.others.over else RETRIES[1])
        if conn is not None:
            await conn.close()

    async def listen(self) -> None:
        """Hear what other processes have stored, until it is cancelled."""
        await (self._poll() if self._link.listen is None else self._listen(self._link.listen))

    async def _listen(self, conninfo: str) -> None:
        pause, longest = RETRIES
        heard = True
        while True:
            conn: Connection | None = None
            try:
                conn = await self._link.connect(conninfo)
                with self._link.answering(conn):
                    await conn.execute(f'LISTEN "{self.channel}"'.encode())
                if not heard:
                    logger.warning("%s tells what is new again", self._link.place)
                self.others.hears = heard = True
                self.others.forget()  # what was told meanwhile
                self.begun.set()
                pause = RETRIES[0]
                await self._hear(conn)
            except Exception as exc:  # whatever it is, it is not to end here
                if heard:
                    logger.warning("what other processes store is seen late: %s", self._link.error(exc))
                heard = False
            finally:
                self.begun.set()
                self.others.hears = False
                if conn is not None:
                    await conn.close()
            self.others.forget()
            await asyncio.sleep(pause)
            pause = min(pause * 2, longest)

    async def _hear(self, conn: Connection) -> None:
        loop = asyncio.get_running_loop()
        look_at = loop.time() + NET_SECONDS
        while True:
            timeout = max(look_at - loop.time(), 0)
            await self.others.heard([each.payload async for each in conn.notifies(timeout=timeout, stop_after=1)])
            if loop.time() >= look_at:
                with self._link.answering(conn, NET_SECONDS):
                    await conn.execute("SELECT 1")  # whether anybody is there
                await self._look_around()
                look_at = loop.time() + NET_SECONDS

    async def _poll(self) -> None:
        """Look for what other processes have stored, where nothing tells it."""
        self.begun.set()
        while True:
            await asyncio.sleep(POLL_SECONDS)
            await self._look_around()

    async def _look_around(self) -> None:
        try:
            await self.others.look(self._heads)
            if (await self._link.ask(sql.ANY_FREE, (self._now(),)))[0][0]:
                self._doorbell.ring_work()
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
