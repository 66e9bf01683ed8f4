"""A store on the standard library's ``sqlite3``, small enough to be read: ``Legato(SimpleStore("chat.db"))``."""

import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import msgspec

from legato.doorbell import Doorbell
from legato.errors import CursorInvalid, SessionNotFound, StoreError
from legato.event import Draft, Event, Offset, read_fact, settle
from legato.log import MICRO, READ_LIMIT, Appended, SessionInfo, SessionPage, Take, created, moment
from legato.machine import Lease, OpenRun, SessionState, check_head, free, leased, moved, released, renewed

SCHEMA = """
PRAGMA locking_mode = EXCLUSIVE; -- a second process would write with leases of its own
PRAGMA journal_mode = WAL;
CREATE TABLE IF NOT EXISTS events (
    session TEXT, offset INTEGER, at INTEGER, type TEXT, run TEXT, fact BLOB, delta INTEGER,
    PRIMARY KEY (session, offset)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS whole ON events (session, offset) WHERE NOT delta;
CREATE TABLE IF NOT EXISTS keys (session TEXT, key TEXT, first INTEGER, last INTEGER, PRIMARY KEY (session, key));
CREATE TABLE IF NOT EXISTS sessions (
    session TEXT PRIMARY KEY, state BLOB, runs INTEGER, deleted INTEGER, owner TEXT, updated INTEGER, waits INTEGER
);
"""


class SimpleStore:
    def __init__(self, path: str, *, clock: Callable[[], float] = time.time) -> None:
        self.doorbell = Doorbell()
        self._path = path
        self._clock = clock
        self._db: sqlite3.Connection | None = None

    async def open(self) -> None:
        self._db = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        try:
            with self._errors():
                self._db.executescript(SCHEMA)
            with self._transaction() as db:  # nobody else has the file, so whoever held a lease is dead
                for state in _open(db):
                    for run in state.runs.values():
                        state = released(state, run.lease())
                    _keep(db, state)
        except StoreError:
            await self.close()
            raise

    async def close(self) -> None:
        if self._db is not None:
            self._db.close()
            self._db = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as exc:
            raise StoreError(f"{self._path}: {exc}") from exc

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        if self._db is None:
            raise StoreError(f"{self._path} is not open.")
        with self._errors(), self._db:  # commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    # Logs -------------------------------------------------------------------------------------------------------------

    async def append(
        self,
        session: str,
        drafts: Sequence[Draft],
        *,
        lease: Lease | None = None,
        once: str | None = None,
        head: Offset | None = None,
        take: Take | None = None,
    ) -> Appended:
        with self._transaction() as db:
            used = db.execute("SELECT first, last FROM keys WHERE session = ? AND key = ?", (session, once)).fetchone()
            if used is not None:
                return Appended(_events(db, session, used[0] - 1, limit=used[1] - used[0] + 1), repeated=True)
            before = _state(db, session)
            state = moved(before, drafts, lease=lease)
            check_head(before, head)
            now = self._clock()
            if take is not None:
                state = leased(state, take.run, owner=take.owner, now=now, until=now + take.ttl)
            at = moment(now, db.execute("SELECT coalesce(max(updated), 0) FROM sessions").fetchone()[0])
            events = [
                Event(fact, before.head + number, at / MICRO, draft.run, json)
                for number, draft in enumerate(drafts, 1)
                for fact, json in [settle(draft.fact)]
            ]
            whole = not all(event.fact.delta for event in events)
            if before.head == 0:
                owner = created(events[0].fact).owner or ""
                db.execute("INSERT INTO sessions (session, owner, updated) VALUES (?, ?, ?)", (session, owner, at))
            if state.deleted:
                db.execute("DELETE FROM events WHERE session = ?", (session,))
                db.execute("DELETE FROM keys WHERE session = ?", (session,))
            elif once is not None:
                db.execute("INSERT INTO keys VALUES (?, ?, ?, ?)", (session, once, before.head + 1, state.head))
            for event in events[-1:] if state.deleted else events:
                row = (session, event.offset, at, event.type, event.run, event.json, event.fact.delta)
                db.execute("INSERT INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", row)
            _keep(db, state)
            if whole:
                db.execute("UPDATE sessions SET updated = ? WHERE session = ?", (at, session))
            if list(state.runs)[:1] != list(before.runs)[:1]:
                db.execute("UPDATE sessions SET waits = ? WHERE session = ?", (at, session))
        # It is stored; from here on it can be seen.
        self.doorbell.ring(session, outside=lease is None)
        if whole and free(state.runs, now) is not None:
            self.doorbell.ring_work()
        return Appended(events, lease=None if take is None else state.runs[take.run].lease())

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        with self._transaction() as db:
            return _events(db, session, after, limit=limit, deltas=deltas)

    async def info(self, session: str) -> SessionInfo:
        with self._transaction() as db:
            return _info(db, session)

    async def sessions(self, *, limit: int = 100, after: str | None = None, owner: str | None = None) -> SessionPage:
        if after is not None and not (after.isascii() and after.isdigit() and len(after) < 18):
            raise CursorInvalid(f"The next page is named by the page before, got {after[:60]!r}.")
        with self._transaction() as db:
            rows = db.execute(
                "SELECT session, updated FROM sessions WHERE NOT deleted AND (? IS NULL OR updated < ?)"
                " AND (? IS NULL OR owner = ?) ORDER BY updated DESC LIMIT ?",
                (after, int(after or 0), owner, owner, limit + 1),
            ).fetchall()
            infos = [_info(db, session) for session, _ in rows[:limit]]
        return SessionPage(infos, str(rows[limit - 1][1]) if 0 < limit < len(rows) else None)

    # Leases -----------------------------------------------------------------------------------------------------------

    async def open_runs(self, *, limit: int = READ_LIMIT) -> list[OpenRun]:
        with self._transaction() as db:
            return [run for state in _open(db) for run in state.runs.values()][:limit]

    async def acquire(self, session: str, run: str, *, owner: str, ttl: float) -> Lease:
        with self._transaction() as db:
            now = self._clock()
            state = leased(_state(db, session), run, owner=owner, now=now, until=now + ttl)
            _keep(db, state)
        return state.runs[run].lease()

    async def claim(self, *, owner: str, ttl: float, limit: int) -> list[Lease]:
        with self._transaction() as db:
            waiting = [run for state in _open(db) if (run := free(state.runs, self._clock())) is not None]
        return [await self.acquire(run.session, run.run, owner=owner, ttl=ttl) for run in waiting[:limit]]

    async def renew(self, *, owner: str, ttl: float) -> None:
        with self._transaction() as db:
            for state in _open(db):
                _keep(db, renewed(state, owner=owner, until=self._clock() + ttl))

    async def release(self, lease: Lease) -> None:
        with self._transaction() as db:
            if (state := _state(db, lease.session)).head:
                _keep(db, released(state, lease))
        self.doorbell.ring_work()


def _state(db: sqlite3.Connection, session: str) -> SessionState:
    row = db.execute("SELECT state FROM sessions WHERE session = ?", (session,)).fetchone()
    return SessionState(session) if row is None else msgspec.json.decode(row[0], type=SessionState)


def _keep(db: sqlite3.Connection, state: SessionState) -> None:
    row = (msgspec.json.encode(state), len(state.runs), state.deleted, state.session)
    db.execute("UPDATE sessions SET state = ?, runs = ?, deleted = ? WHERE session = ?", row)


def _open(db: sqlite3.Connection) -> list[SessionState]:
    rows = db.execute("SELECT state FROM sessions WHERE runs ORDER BY waits").fetchall()
    return [msgspec.json.decode(row[0], type=SessionState) for row in rows]


def _events(db: sqlite3.Connection, session: str, after: Offset, *, limit: int, deltas: bool = True) -> list[Event]:
    rows = db.execute(
        f"SELECT type, fact, offset, at, run FROM events {'' if deltas else 'INDEXED BY whole'} WHERE session = ?"
        f" AND offset > ? {'' if deltas else 'AND NOT delta'} ORDER BY offset LIMIT ?",
        (session, min(after, 2**62), limit),
    )
    return [Event(read_fact(type, fact), offset, at / MICRO, run, fact) for type, fact, offset, at, run in rows]


def _info(db: sqlite3.Connection, session: str) -> SessionInfo:
    state = _state(db, session)
    if not state.exists:
        raise SessionNotFound(session)
    (first,) = _events(db, session, 0, limit=1)
    (updated,) = db.execute("SELECT updated FROM sessions WHERE session = ?", (session,)).fetchone()
    return SessionInfo(session, state.head, first.at, updated / MICRO, created(first.fact), list(state.runs.values()))
