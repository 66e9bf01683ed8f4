"""The SQLite store: logs in one file, for one process. The embedded default.

    append (event loop)          encode; hand a request to the writer
      -> writer thread           take all requests that wait, of all sessions: check each, commit them together
      -> deliver (event loop)    one callback for the group: tail cache, doorbells, futures
    read (event loop)            from the tail cache; else
      -> a reader thread         on its own read-only connection

It knows how appends and reads meet; ``sqlite_requests`` knows the appends, ``sqlite_reading`` the reads. The one rule
that must hold: nothing reaches a reader before its transaction has committed, and nothing that has reached one from the
disk is missing from the tail cache, so that a later read never shows less than an earlier one.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import secrets
import sys
import threading
import time
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from operator import attrgetter
from pathlib import Path
from typing import TypeVar
from weakref import WeakValueDictionary

import msgspec

from ..check import check_text, digits, is_text
from ..doorbell import Doorbell
from ..errors import CursorInvalid, InvalidInput, LegatoError, SessionNotFound, StoreCorrupt, StoreError
from ..event import Draft, Event, Offset
from ..fault import at_fork
from ..figures import StoreFigures
from ..log import (
    MICRO,
    READ_LIMIT,
    Adoption,
    Portable,
    SessionInfo,
    SessionPage,
    SessionRecord,
    Storing,
    Take,
    Thinning,
    created,
)
from ..machine import Lease, OpenRun
from .lock import FileLock
from .sqlite_errors import store_error
from .sqlite_file import apsw, connect, prepare, read_openings
from .sqlite_journal import Journal
from .sqlite_known import Built, Look
from .sqlite_reading import Page, read_journal, read_open_runs, read_page, read_records, read_sessions
from .sqlite_requests import (
    Acquire,
    Adopt,
    Append,
    Claim,
    Discard,
    Inform,
    Publish,
    Release,
    Renew,
    Stage,
    Thin,
    WriteRequest,
)
from .sqlite_writer import Writer
from .tail import BlockCache, TailCache
from .watch import keep_private

READERS = 2
"""Threads that read. A page is short work; the second thread is there for when the disk keeps the first one waiting."""
READS = 16
"""Sessions of which a page is read at the same time: most of it is waiting for a turn of the loop, and for a commit."""
MAX_INTEGER = 2**63 - 1
LOOKS = 10_000
"""Sessions of which it is known without asking what they look like,"""
LOOKS_BYTES = 16 * 1024 * 1024
"""unless what began them is large."""
T = TypeVar("T")
_offset = attrgetter("offset")


SWITCH_INTERVAL = 0.0005
"""Seconds after which the event loop's thread gives way to the writer's."""


class SQLiteStore:
    """Logs in a SQLite file, for one process and one event loop.

    Args:
        path: of the file; its folder must exist. Beside it appear ``-wal``, ``-shm`` and ``.lock``.
        durability: ``"full"``: what was acknowledged survives a loss of power. ``"normal"``: it survives the end of
            the process, but a loss of power may take the last moments.
        clock: gives the time, seconds since the epoch; called from the writer's thread.
        tail_events, tail_bytes: bounds of the cache of recent events, see ``TailCache``. What readers who are behind
            share may take half as many bytes again.

    Attributes:
        writing: what makes the writer; the simulator of faults has one that needs no thread.
    """

    writing: type[Writer] = Writer

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        durability: str = "full",
        clock: Callable[[], float] = time.time,
        tail_events: int = 1_000,
        tail_bytes: int = 12 * 1024 * 1024,
    ) -> None:
        if durability not in ("full", "normal"):
            raise InvalidInput(f"Durability is 'full' or 'normal', not {durability!r}.")
        self.doorbell = Doorbell()
        # Symbolic links are resolved, so that two names of one file have one lock.
        self._path = os.path.realpath(path)
        self._durability = durability
        self._clock = clock
        self._tail_events = tail_events
        self._tail_bytes = tail_bytes
        self._lock = FileLock(self._path)
        self._writer: Writer | None = None
        self.incarnation = ""
        self._openings: dict[str, int] = {}
        self._closing: asyncio.Future[None] | None = None

    async def open(self) -> None:
        """Make ready; create the file or bring it to the present schema. Forgets the leases of earlier processes.

        Raises:
            StoreLocked, StoreReadOnly, StoreFull, StoreCorrupt, StoreVersion, StoreError: nothing was opened.
        """
        if self._writer is not None:
            raise StoreError(f"The store is open already: {self._path}.", path=self._path)
        if self._closing is not None:
            await asyncio.shield(self._closing)
        # On the loop, not in a thread: a cancelled open would leave a thread behind that still takes the lock.
        self._connection = self._open()
        # By default a thread waits 5 ms for its turn, and each turn of a busy loop starts that wait anew: the writer
        # could starve for half a second. This is for the whole process; never raised.
        sys.setswitchinterval(min(sys.getswitchinterval(), SWITCH_INTERVAL))
        self._begin()

    def _open(self) -> apsw.Connection:
        folder = Path(self._path).parent
        try:
            if not folder.is_dir():
                raise StoreError(f"There is no folder {folder}; create it first.", path=self._path)
            if Path(self._path).exists() and not Path(self._path).is_file():
                raise StoreError(f"{self._path} is a folder or a device; name a file in it.", path=self._path)
            self._lock.acquire()
            keep_private(self._path)
            left = os.path.exists(self._path + "-wal")
            connection = connect(self._path, write=True)
            try:
                self.incarnation = secrets.token_urlsafe(9)
                prepare(connection, self._path, self._durability, self.incarnation, round(self._clock() * MICRO))
                self._openings = read_openings(connection)
                self._journal = Journal(read_journal(connection))
                self._untidy = left or bool(connection.pragma("freelist_count"))
            except BaseException:
                connection.close()
                raise
        except (OSError, apsw.Error, msgspec.MsgspecError) as exc:
            self._lock.release()
            raise store_error(exc, self._path) from exc
        except BaseException:
            self._lock.release()
            raise
        return connection

    def _begin(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._closing = None
        # A new one each time: while the file was closed, another process may have gone on with it.
        self._tail = TailCache(events=self._tail_events, bytes=self._tail_bytes)
        self._blocks = BlockCache(bytes=self._tail_bytes // 2)
        self._looks: OrderedDict[str, Look] = OrderedDict()
        self._looks_bytes = 0
        self._delivered = 0
        self._delivery: asyncio.Future[None] = self._loop.create_future()
        self._reader = threading.local()
        self._reader_connections: list[apsw.Connection] = []
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="legato-sqlite-reader")
        self._reading = asyncio.Semaphore(READS)
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # to read a session
        self._writer = self.writing(
            self._path, self._connection, self._journal, self._clock, self._delivered_by_writer, self._lock.keep
        )
        self._writer.start(untidy=self._untidy)
        self._forget = at_fork(self._leave_alone)

    def _leave_alone(self) -> None:
        """In a forked child: keep the connections for ever. To close one there would move the log into the file, and
        delete it, under the process that writes it."""
        for connection in (self._connection, *self._reader_connections):
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))

    async def close(self) -> None:
        """Store what was appended so far and close the file. Idempotent."""
        if self._writer is None and self._closing is None:
            return
        if self._closing is None:
            writer, self._writer = self._writer, None
            assert writer is not None
            writer.flush()
            self._forget()
            # A thread of its own, since all others may be busy with agents.
            thread = ThreadPoolExecutor(1, thread_name_prefix="legato-sqlite-close")
            self._closing = self._loop.run_in_executor(thread, self._close, writer)
            thread.shutdown(wait=False)
        await asyncio.shield(self._closing)

    def _close(self, writer: Writer) -> None:
        writer.stop()
        self._readers.shutdown()
        try:
            for connection in self._reader_connections:
                connection.close()
            self._connection.close()  # the last connection moves the WAL into the file
        finally:
            self._lock.release()

    # Writing

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
        """See ``Store.append``. Gives the writer's request, which has all errors too."""
        try:
            writer = self._writer or self._check_open()
            if session not in self._looks:  # as what has been stored is not
                check_text(session)
            if once is not None:
                check_text(once)
            if take is not None:
                check_text(take.run, take.owner)
            request = Append(session, drafts, lease, once, head, take)
        except LegatoError as exc:
            return Storing(error=exc, over=True)
        writer.submit(request)
        return request

    async def build(self, session: str, pieces: AsyncIterator[Sequence[Draft]]) -> None:
        """See ``log.build``. Each piece is a transaction; what is not finished is gone at the next opening at the
        latest."""
        check_text(session)
        hidden = f"\0{secrets.token_hex(16)}"  # nobody can ask for a name with a NUL
        built: Built | None = None
        try:
            async for piece in pieces:
                built = await self._submit(Stage(session, hidden, built, piece))
            if built is None:
                raise ValueError("build needs at least one draft")
            await self._submit(Publish(session, built))
        except BaseException:
            if self._writer is not None:
                self._writer.submit(Discard(hidden))  # if that fails, it is gone at the next opening
            raise

    async def adopt(self, record: SessionRecord, pages: AsyncIterator[Sequence[Event]]) -> None:
        """See ``Portable.adopt``; pages as in ``build``."""
        session = record.session
        check_text(session, *record.once)
        hidden = f"\0{secrets.token_hex(16)}"
        adoption, begun, id = Adoption(record), None, None
        try:
            async for events in pages:
                adoption.add(events)
                begun = begun or events[0]
                id = await self._submit(Adopt(session, hidden, id, events))
            state = adoption.end()
            if begun is None or id is None:
                raise ValueError("adopt needs at least one event")
            built = Built(id, state, created(begun.fact), round(begun.at * MICRO), len(begun.json))
            await self._submit(Publish(session, built, record))
        except BaseException:
            if self._writer is not None:
                self._writer.submit(Discard(hidden))
            raise

    async def thin(self, session: str, after: Offset, limit: int) -> Thinning:
        """See ``Store``. What is not packed yet stays as it is."""
        check_text(session)
        thinning: Thinning = await self._submit(Thin(session, after, limit))
        return thinning

    async def acquire(self, session: str, run: str, *, owner: str, ttl: float) -> Lease:
        """See ``Leaser.acquire``."""
        check_text(session, run, owner)
        lease: Lease = await self._submit(Acquire(session, Take(run, owner, ttl)))
        return lease

    async def claim(self, *, owner: str, ttl: float, limit: int) -> list[Lease]:
        """See ``Leaser.claim``."""
        check_text(owner)
        leases: list[Lease] = await self._submit(Claim(owner, ttl, limit))
        return leases

    async def renew(self, *, owner: str, ttl: float) -> None:
        """See ``Leaser.renew``."""
        await self._submit(Renew(owner, ttl))

    async def release(self, lease: Lease) -> None:
        """See ``Leaser.release``."""
        await self._submit(Release(lease))

    def _check_open(self) -> Writer:
        if self._writer is None:
            raise StoreError(f"The store is not open: {self._path}.", path=self._path)
        return self._writer

    def _submit(self, request: WriteRequest) -> Storing:
        self._check_open().submit(request)
        return request

    def _delivered_by_writer(self, requests: list[WriteRequest], looks: dict[str, Look]) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver, requests, looks)
        except RuntimeError:
            pass  # the loop was closed without closing the store; what was committed stays committed

    def _deliver(self, requests: list[WriteRequest], looks: dict[str, Look]) -> None:
        """Make a committed group visible."""
        for name, look in looks.items():
            if name not in self._looks:
                self._looks_bytes += look.size
            self._looks[name] = look
            self._looks.move_to_end(name)
        while len(self._looks) > LOOKS or self._looks_bytes > LOOKS_BYTES:
            self._looks_bytes -= self._looks.popitem(last=False)[1].size
        free = False
        put, ring = self._tail.put, self.doorbell.ring
        for request in requests:
            if isinstance(request, Append):
                if stored := request.stored:
                    session = request.session
                    put(session, stored)
                    if stored[-1].fact.type == "session.deleted":
                        self._blocks.forget(session)
                    ring(session, outside=request.lease is None)
                    free = free or request.free
            elif isinstance(request, Release):
                free = True
            elif isinstance(request, Thin):
                if request.error is None and request.outcome.changed:
                    self._tail.forget(request.session)
                    self._blocks.forget(request.session)
            elif isinstance(request, Publish) and request.error is None:
                self.doorbell.ring(request.session)
                free = free or bool(request.built.state.runs)
        for request in requests:
            request.settle()
        if free:
            self.doorbell.ring_work()
        self._delivered += 1
        self._delivery.set_result(None)
        self._delivery = self._loop.create_future()

    # Reading

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """See ``Store.read``. A page may be shorter than ``limit``, but is never empty then.

        Where events are large, it ends with some bytes; for who is far behind it ends with a block (``_read_block``).
        """
        self._check_open()
        if limit <= 0 or not is_text(session):
            return []
        after = min(after, MAX_INTEGER)
        events = self.peek(session, after, limit=limit, deltas=deltas)
        if events is not None:
            return events
        turn = self._turns.setdefault(session, asyncio.Lock())
        async with turn, self._reading:
            # Somebody may have read the same meanwhile: after a restart, all readers of a session come at once.
            events = self.peek(session, after, limit=limit, deltas=deltas)
            if events is None and deltas and limit >= READ_LIMIT:
                events = self._blocks.read(session, after) or await self._read_block(session, after)
            return events or await self._read_page(session, after, limit, deltas)

    async def _read_block(self, session: str, after: Offset) -> list[Event]:
        """What follows ``after`` in its block, which is read for all who are behind.

        May be empty though there are more: where events are large, a page holds fewer; and nobody is read a whole block
        who lacks little of what the tail holds.
        """
        start = after - after % READ_LIMIT
        floor = self._tail.floor(session)
        if floor is not None and floor < start + READ_LIMIT:
            return []
        forgotten = self._blocks.forgotten
        page = await self._page(session, start, READ_LIMIT, True)
        if len(page.events) == READ_LIMIT:
            self._blocks.put(session, start, page.events, forgotten)
        return page.events[bisect_right(page.events, after, key=_offset) :]

    async def _read_page(self, session: str, after: Offset, limit: int, deltas: bool) -> list[Event]:
        torn = False
        while True:
            events = self._tail.read(session, after, limit, deltas=deltas)
            if events is not None:
                return events
            delivered = self._delivered
            page = await self._page(session, after, limit, deltas)
            if page.events or not page.torn:
                return page.events
            # What tore the first was there before the second looked.
            if torn or self._delivered == delivered:
                raise StoreCorrupt(f"Events after offset {after} are gone: {self._path}.", path=self._path)
            torn = True

    async def _page(self, session: str, after: Offset, limit: int, deltas: bool) -> Page:
        """A page from the disk, which the tail may go on from."""
        journal, evictions = self._journal, self._tail.evictions
        # The journal is looked at first, then the file: see read_page.
        page = await self._ask(
            lambda connection: read_page(connection, session, after, limit, deltas, journal.after(session)),
            lambda page: self._is_visible(session, page),
        )
        if deltas and page.last:
            self._tail.seed(session, after, page.events, evictions)
        return page

    def peek(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event] | None:
        """What is in memory of what ``read`` would give; None if that is not all of it."""
        if self._writer is None:
            self._check_open()
        events = self._tail.read(session, after, limit, deltas=deltas)
        if events is not None or (look := self._looks.get(session)) is None:
            return events
        # As readers at the head of a log ask that nobody has written to for long, and whoever watches for others.
        return [] if after >= (look.state.head if deltas else look.state.whole) else None

    async def info(self, session: str) -> SessionInfo:
        """See ``Store.info``. Without a query for sessions that were written to, or asked for, of late."""
        self._check_open()
        look = self._looks.get(session)
        if look is not None:
            self._looks.move_to_end(session)
        elif is_text(session):
            found = await self._submit(Inform(session))
            # Something newer may have been delivered meanwhile, and so much else that this has been let go again.
            look = self._looks.get(session, found)
        if look is None or look.state.deleted:
            raise SessionNotFound(session)
        return SessionInfo(
            session=session,
            head=look.state.head,
            created_at=look.created_at / MICRO,
            updated_at=look.updated_at / MICRO,
            created=look.created,
            open_runs=list(look.state.runs.values()),
        )

    async def sessions(self, *, limit: int = 100, after: str | None = None, owner: str | None = None) -> SessionPage:
        """See ``Store.sessions``."""
        until = MAX_INTEGER if after is None else digits(after, most=18)
        if until is None:
            assert after is not None
            raise CursorInvalid(f"The next page is named by the page before, got {after[:60]!r}.")
        if owner is not None and not is_text(owner):
            return SessionPage([])
        limit = max(limit, 0)
        self._check_open()
        journal = self._journal
        infos, more = await self._ask(
            lambda connection: read_sessions(connection, limit, until, owner, journal.heads())
        )
        return SessionPage(infos, str(round(infos[-1].updated_at * MICRO)) if infos and more else None)

    async def open_runs(self, *, limit: int = READ_LIMIT) -> list[OpenRun]:
        """See ``Leaser.open_runs``."""
        return await self._ask(lambda connection: read_open_runs(connection, limit))

    async def records(self) -> AsyncIterator[SessionRecord]:
        """See ``Portable.records``: in the order in which they came into the file."""
        last: int | None = 0
        while last is not None:
            found, last = await self._records(last)
            for record in found:
                yield record

    async def record(self, session: str) -> SessionRecord | None:
        """See ``Portable.record``."""
        found, _ = await self._records(session) if is_text(session) else ([], None)
        return found[0] if found else None

    async def _records(self, after: int | str) -> tuple[list[SessionRecord], int | None]:
        self._check_open()
        journal = self._journal
        return await self._ask(lambda connection: read_records(connection, after, READ_LIMIT, journal.heads()))

    @property
    def figures(self) -> StoreFigures | None:
        """What has been counted since the file was opened."""
        return None if self._writer is None else self._writer.figures

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now, see ``Store``."""
        return None if self._writer is None else self._writer.trouble

    async def holds(self, incarnation: str, session: str, offset: Offset) -> bool:
        """See ``Store``. What an incarnation has written is older than the next opening of the file."""
        if incarnation == self.incarnation or offset <= 0:
            return True
        until = self._openings.get(incarnation)
        if until is None:
            return False
        found = await self.read(session, offset - 1, limit=1)
        return bool(found) and found[0].offset == offset and round(found[0].at * MICRO) < until

    def facts(self) -> dict[str, str | int]:
        """What an operator may want to know: the durability, and what the tail cache holds (sessions, bytes)."""
        self._check_open()
        return {
            "kind": "sqlite",
            "durability": self._durability,
            "tail_sessions": len(self._tail),
            "tail_bytes": self._tail.bytes,
        }

    def _is_visible(self, session: str, page: Page) -> bool:
        """Whether it is known that all readers can see as much."""
        look = self._looks.get(session)
        return look is not None and bool(page.events) and page.events[-1].offset <= look.state.head

    async def _ask(self, query: Callable[[apsw.Connection], T], is_visible: Callable[[T], bool] | None = None) -> T:
        """What ``query`` finds on the disk, once everything that it may have found is visible to all readers."""
        writer = self._check_open()
        try:
            answer = await self._loop.run_in_executor(self._readers, self._query, query)
        except (apsw.Error, msgspec.MsgspecError) as exc:
            raise store_error(exc, self._path) from exc
        if is_visible is not None and is_visible(answer):
            return answer
        begun = writer.begun
        while self._delivered < begun:
            await asyncio.shield(self._delivery)
        return answer

    def _query(self, query: Callable[[apsw.Connection], T]) -> T:
        connection = getattr(self._reader, "connection", None)
        if connection is None:
            connection = self._reader.connection = connect(self._path, write=False)
            self._reader_connections.append(connection)
        return query(connection)


_: type[Portable] = SQLiteStore
