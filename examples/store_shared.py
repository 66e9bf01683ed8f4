"""A store that the processes of one machine share, on a file of the standard library's ``sqlite3``.

``Legato(SharedStore("chat.db"))``, in as many processes as there are. What all shared stores do is the house's: a
``GroupWriter`` commits what waits of all sessions together, and ``Neighbours`` knows what others have written.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec

from legato.doorbell import Doorbell
from legato.errors import CursorInvalid, LegatoError, SessionNotFound, StoreBusy, StoreError, StoreFull
from legato.event import Draft, Event, Offset
from legato.log import MICRO, READ_LIMIT, SessionInfo, SessionPage, Storing, Take, created
from legato.machine import Lease, OpenRun, SessionState, free
from legato.store.group import GroupWriter, RowGroup, RowRequest, SharedRow, asks_to_append, read_event
from legato.store.neighbours import Neighbours

LOOK_SECONDS = 0.05  # between two looks whether another process has written
SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS session (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE, state BLOB, head INTEGER, updated INTEGER, waits INTEGER,
    deleted INTEGER, owner TEXT
);
CREATE INDEX IF NOT EXISTS waiting ON session (waits) WHERE waits IS NOT NULL;
CREATE TABLE IF NOT EXISTS event (
    session INTEGER, offset INTEGER, type TEXT, data BLOB, at INTEGER, run TEXT, delta INTEGER,
    PRIMARY KEY (session, offset)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS whole ON event (session, offset) WHERE NOT delta;
CREATE TABLE IF NOT EXISTS once (session INTEGER, key TEXT, first INTEGER, last INTEGER, PRIMARY KEY (session, key));
"""
ROWS = "SELECT id, state, updated, waits FROM session WHERE "
OPEN = "SELECT state FROM session WHERE waits IS NOT NULL ORDER BY waits"
KEEP = """
    INSERT INTO session VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8) ON CONFLICT (id) DO UPDATE
    SET state = ?3, head = ?4, updated = ?5, waits = ?6, deleted = ?7, owner = coalesce(?8, owner)
"""
PAGE = """
    SELECT type, data, offset, at, run FROM event {} WHERE session = (SELECT id FROM session WHERE name = ?)
    AND offset > ? {} ORDER BY offset LIMIT ?
"""
PAGES = {True: PAGE.format("", ""), False: PAGE.format("INDEXED BY whole", "AND NOT delta")}
USED = """
    SELECT type, data, offset, at, run FROM once o JOIN event e ON e.session = o.session
    AND e.offset BETWEEN o.first AND o.last WHERE o.session = ? AND o.key = ? ORDER BY offset
"""
INFO = "SELECT name, state, e.at, updated, data FROM session s JOIN event e ON e.session = s.id AND e.offset = 1 WHERE "
HEADS = "SELECT name, head FROM session WHERE name IN (SELECT value FROM json_each(?))"
MEANINGS = {sqlite3.SQLITE_BUSY: StoreBusy, sqlite3.SQLITE_FULL: StoreFull}


class SharedStore:
    def __init__(self, path: str, *, clock: Callable[[], float] = time.time) -> None:
        self.doorbell = Doorbell()
        self._path, self._clock = path, clock
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:  # whoever holds a lease keeps it: they are other processes'
        self._others = Neighbours(self.doorbell, self._follow, events=1_000, bytes=12 * 1024 * 1024)
        self._writer = GroupWriter(self._transact, self._idle, self._error, self._others)
        self._threads = [ThreadPoolExecutor(1) for _ in range(2)]  # one writes, and may wait for others; one reads
        self._databases: list[sqlite3.Connection] = []
        try:
            for thread in self._threads:
                self._databases.append(await self._run(thread, self._connect))
        except StoreError:
            self._let_go()
            raise
        works = self._writer.run(), self._look(), self._tell()
        self._tasks = [asyncio.create_task(work) for work in works]

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
        db.executescript(SCHEMA)
        return db

    async def close(self) -> None:
        if not self._tasks:
            return
        (writing, looking, telling), self._tasks = self._tasks, []
        self._writer.end()
        await writing  # what was appended so far
        looking.cancel()
        self._others.end()
        await asyncio.gather(looking, telling, return_exceptions=True)
        self._let_go()

    def _let_go(self) -> None:
        for thread in self._threads:
            thread.shutdown()
        for db in self._databases:
            db.close()

    async def _run(self, thread: ThreadPoolExecutor, work: Callable[..., Any], *args: Any) -> Any:
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work, *args)
        except sqlite3.Error as exc:
            raise self._error(exc) from exc

    def _error(self, exc: Exception) -> StoreError:
        if isinstance(exc, StoreError):
            return exc
        code = getattr(exc, "sqlite_errorcode", 0) & 0xFF
        return MEANINGS.get(code, StoreError)(f"{self._path}: {exc}")

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
        try:
            return self._ask(asks_to_append(session, drafts, lease=lease, once=once, head=head, take=take))
        except LegatoError as exc:
            return Storing(error=exc, over=True)

    async def acquire(self, session: str, run: str, *, owner: str, ttl: float) -> Lease:
        take = Take(run, owner, ttl)
        return await self._ask(RowRequest(session, lambda group, _: group.lease(session, take)))

    async def claim(self, *, owner: str, ttl: float, limit: int) -> list[Lease]:
        return await self._ask(RowRequest(None, lambda group, _: group.claim(owner, ttl), ("free", limit)))

    async def renew(self, *, owner: str, ttl: float) -> None:
        await self._ask(RowRequest(None, lambda group, _: group.renew(owner, ttl), ("held", owner)))

    async def release(self, lease: Lease) -> None:
        await self._ask(RowRequest(lease.session, lambda group, _: group.release(lease)))
        self._others.ring_work()

    def _ask(self, request: RowRequest) -> Storing:
        if not self._tasks:
            raise StoreError(f"{self._path} is not open.")
        return self._writer.submit(request)

    @property
    def trouble(self) -> StoreError | None:
        return self._writer.trouble if self._tasks else None

    async def _transact(self, group: RowGroup) -> None:
        await self._run(self._threads[0], self._commit, self._databases[0], group)

    def _commit(self, db: sqlite3.Connection, group: RowGroup) -> None:
        with db:  # commits, or rolls back
            db.execute("BEGIN IMMEDIATE")  # from here on nobody else writes
            now = self._clock()
            rows = _lock(db, group.requests, now)
            used: dict[tuple[str, str], list[Event]] = {}
            for request in group.requests:
                name, key = request.session or "", request.once
                if key is not None and name in rows:
                    stored = db.execute(USED, (rows[name].id, key)).fetchall()
                    used |= {(name, key): [read_event(name, *row) for row in stored]} if stored else {}
            (last,) = db.execute("SELECT coalesce(max(updated), 0) FROM session").fetchone()
            group.decide(rows, used, now=round(now * MICRO), last=last, era=0)
            for id in group.gone:
                db.execute("DELETE FROM event WHERE session = ?", (id,))
                db.execute("DELETE FROM once WHERE session = ?", (id,))
            for name, row in rows.items():
                if row.touched:
                    state, owner = row.state, "" if row.state.deleted else row.owner
                    kept = msgspec.json.encode(state), state.head, row.updated_at, row.waits, state.deleted, owner
                    db.execute(KEEP, (row.id, name, *kept))
            for id, each in group.events:
                said = each.type, each.json, round(each.at * MICRO), each.run, each.fact.delta
                db.execute("INSERT INTO event VALUES (?, ?, ?, ?, ?, ?, ?)", (id, each.offset, *said))
            db.executemany("INSERT INTO once VALUES (?, ?, ?, ?)", group.keys)

    async def _idle(self, trouble: StoreError | None) -> None:  # whether something could be written
        await self._run(self._threads[0], self._databases[0].executescript, "BEGIN IMMEDIATE; ROLLBACK")

    # What other processes write ---------------------------------------------------------------------------------------

    async def _look(self) -> None:
        before = 0
        while True:
            with contextlib.suppress(StoreError):
                version = await self._run(self._threads[0], self._version)
                if before not in (0, version):
                    await self._others.look(self._heads)
                    states = [_state(row[0]) for row in await self._find(OPEN)]
                    if any(free(state.runs, self._clock()) is not None for state in states):
                        self.doorbell.ring_work()
                before = version
            await asyncio.sleep(LOOK_SECONDS)

    def _version(self) -> int:  # another one when others have written, and not when this process has
        return int(self._databases[0].execute("PRAGMA data_version").fetchone()[0])

    async def _tell(self) -> None:
        while await self._others.messages() is not None:
            pass  # a store with a way to tell others does it here; these look

    async def _heads(self, names: Sequence[str]) -> dict[str, Offset]:
        return dict(await self._find(HEADS, msgspec.json.encode(names).decode()))

    async def _follow(self, names: Sequence[str], afters: Sequence[Offset]) -> dict[str, tuple[Offset, list[Event]]]:
        heads = await self._heads(names)
        behind = zip(names, afters, strict=True)
        return {name: (heads[name], await self._page(name, after)) for name, after in behind if name in heads}

    # Reading ----------------------------------------------------------------------------------------------------------

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        return self.peek(session, after, limit=limit, deltas=deltas) or await self._page(session, after, limit, deltas)

    def peek(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event] | None:
        return self._others.tail.read(session, after, limit, deltas=deltas) or None  # that is all, only the file knows

    async def _page(self, session: str, after: Offset, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        rows = await self._find(PAGES[deltas], session, min(after, 2**62), max(limit, 0))
        return [read_event(session, *row) for row in rows]

    async def info(self, session: str) -> SessionInfo:
        for row in await self._find(f"{INFO} name = ? AND NOT deleted", session):
            return _info(row)
        raise SessionNotFound(session)

    async def sessions(self, *, limit: int = 100, after: str | None = None, owner: str | None = None) -> SessionPage:
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 18):
            raise CursorInvalid(f"The next page is named by the page before, got {after[:60]!r}.")
        which = "NOT deleted AND updated < ? AND (? IS NULL OR owner = ?) ORDER BY updated DESC LIMIT ?"
        rows = await self._find(f"{INFO} {which}", int(after or 2**62), owner, owner, max(limit, 0) + 1)
        more = str(rows[limit - 1][3]) if 0 < limit < len(rows) else None
        return SessionPage([_info(row) for row in rows[: max(limit, 0)]], more)

    async def open_runs(self, *, limit: int = READ_LIMIT) -> list[OpenRun]:
        states = [_state(row[0]) for row in await self._find(OPEN)]
        return [run for state in states for run in state.runs.values()][:limit]

    async def _find(self, statement: str, *args: Any) -> list[Any]:
        if not self._tasks:
            raise StoreError(f"{self._path} is not open.")
        return await self._run(self._threads[1], lambda: self._databases[1].execute(statement, args).fetchall())


def _lock(db: sqlite3.Connection, requests: Sequence[RowRequest], now: float) -> dict[str, SharedRow]:
    """The rows that a group is about; sessions that it begins have new ones."""
    kind, which = requests[0].lock or ("named", None)
    if kind == "named":
        names = {request.session for request in requests}
        found = [_row(row) for name in names for row in db.execute(f"{ROWS} name = ?", (name,))]
    else:
        found = [_row(row) for row in db.execute(f"{ROWS} waits IS NOT NULL ORDER BY waits")]
    if kind == "free":
        found = [row for row in found if free(row.state.runs, now) is not None][: max(which, 0)]
    if kind == "held":
        found = [row for row in found if any(run.owner == which for run in row.state.runs.values())]
    rows = {row.state.session: row for row in found}
    (id,) = db.execute("SELECT coalesce(max(id), 0) FROM session").fetchone()
    for request in requests:
        if request.begins and request.session is not None and request.session not in rows:
            id += 1
            rows[request.session] = SharedRow(id, SessionState(request.session), 0, None, 0, "")
    return rows


def _row(row: Any) -> SharedRow:
    id, state, updated, waits = row
    return SharedRow(id, _state(state), updated, waits, 0, "")


def _state(data: bytes) -> SessionState:
    return msgspec.json.decode(data, type=SessionState)


def _info(row: Any) -> SessionInfo:
    name, data, at, updated, json = row
    state, begun = _state(data), created(read_event(name, "session.created", json, 1, at, None).fact)
    return SessionInfo(name, state.head, at / MICRO, updated / MICRO, begun, list(state.runs.values()))
