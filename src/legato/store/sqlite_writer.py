"""The writer of a SQLite store: one thread that commits what waits, of all sessions, in one transaction.

It knows the rules of appending (from ``legato.log``) and nothing of readers. The one rule that must hold: a request
that is refused leaves no trace, and a group that could not be committed leaves none either, on the disk or in memory.
"""

# ruff: noqa: S608  # no part of the SQL here comes from outside

from __future__ import annotations

import abc
import asyncio
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from ..errors import InvalidInput, LegatoError, SessionExists, SessionNotFound, StoreCorrupt, TooLarge
from ..event import DELTAS, TERMINAL, Draft, Event, Offset
from ..log import MICRO, Appended, Lease, OpenRun, check_drafts, check_head, lease_target, moment
from .sqlite_file import (
    DELETED,
    EVENT,
    NEW_SESSION,
    ONCE,
    RUN,
    RUN_ENDED,
    STATEMENT_ROWS,
    UPDATED,
    WIDTH,
    apsw,
    read_heads,
    read_open_runs,
    read_page,
    read_used,
    store_error,
    value,
)

GROUP_REQUESTS = 1_000
"""Requests in one commit at most, so that the first of many does not wait for all."""
PACE_ABOVE = 4
"""With so many requests in a commit, several sessions are busy, and commits are paced."""
COMMIT_INTERVAL = 0.005
"""Seconds between the beginnings of paced commits. At 5,000 events/s of 100 runs it makes the groups five times as
large and takes a quarter off the CPU of the whole server, for 4 ms that no reader of an answer notices
(``benchmarks/live.py``). A session that is alone is never held up."""
MAX_DATA_BYTES = 256 * 1024 * 1024
"""An event's data, as JSON. SQLite's own limit is 1 GB a row, and one row beyond it would fail its whole group."""
KNOWN_SESSIONS = 10_000
"""Sessions whose head the writer remembers; others cost a look-up."""

_object = msgspec.json.Decoder(dict[str, Any])
_json = msgspec.json.Encoder()

# Requests -------------------------------------------------------------------------------------------------------------


class Request(abc.ABC):
    """What is asked of the writer: ``plan`` it, and after the commit ``future`` gets what it gave or raised."""

    __slots__ = ("error", "future", "once", "outcome", "session")

    def __init__(self, session: str | None, future: asyncio.Future[Any]) -> None:
        self.session = session
        self.future = future
        self.once: str | None = None
        self.outcome: Any = None
        self.error: Exception | None = None

    @abc.abstractmethod
    def plan(self, group: _Group) -> Any:
        """What the caller gets; note the change in ``group``."""

    def settle(self) -> None:
        """Tell the caller, unless it has gone."""
        if self.future.done():
            return
        if self.error is not None:
            self.future.set_exception(self.error)
        else:
            self.future.set_result(self.outcome)


class Append(Request):
    """Drafts to be stored; ``stored`` are the events that were new. Made on the event loop, where it may raise.

    Raises:
        InvalidInput, TooLarge: a draft cannot be stored.
    """

    __slots__ = ("data", "drafts", "encoded", "head", "lease", "stored")

    def __init__(
        self,
        session: str,
        future: asyncio.Future[Any],
        drafts: Sequence[Draft],
        lease: Lease | None,
        once: str | None,
        head: Offset | None,
    ) -> None:
        super().__init__(session, future)
        self.session: str = session
        self.drafts = list(drafts)
        self.encoded = [_encode(draft) for draft in drafts]
        # Readers from the disk get what JSON makes of the data (lists for tuples, text for dates), so all do; and
        # whoever changes their dict after the call changes nothing here.
        self.data = [_object.decode(data) for data in self.encoded]
        self.lease = lease
        self.once = once
        self.head = head
        self.stored: list[Event] = []

    def plan(self, group: _Group) -> Appended:
        """See ``Request.plan``."""
        return group.append(self)


class Acquire(Request):
    """A lease that is wanted."""

    __slots__ = ("owner", "run", "ttl")

    def __init__(self, session: str, future: asyncio.Future[Any], run: str, owner: str, ttl: float) -> None:
        super().__init__(session, future)
        self.session: str = session
        self.run, self.owner, self.ttl = run, owner, ttl

    def plan(self, group: _Group) -> Lease:
        """See ``Request.plan``."""
        return group.acquire(self)


class Renew(Request):
    """All leases of an owner, to be extended."""

    __slots__ = ("owner", "ttl")

    def __init__(self, future: asyncio.Future[Any], owner: str, ttl: float) -> None:
        super().__init__(None, future)
        self.owner, self.ttl = owner, ttl

    def plan(self, group: _Group) -> None:
        """See ``Request.plan``."""
        group.renew(self)


def _encode(draft: Draft) -> bytes:
    check_text(draft.type, draft.run)
    if not isinstance(draft.data, dict):
        raise InvalidInput(f"The data of {draft.type} must be a dict, not {type(draft.data).__name__}.")
    try:
        data = _json.encode(draft.data)
    except (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError) as exc:
        raise InvalidInput(f"The data of {draft.type} cannot be stored as JSON: {exc}.", type=draft.type) from exc
    if len(data) > MAX_DATA_BYTES:
        raise TooLarge(f"The data of {draft.type} is beyond {MAX_DATA_BYTES} bytes.", limit=MAX_DATA_BYTES)
    return data


def is_text(text: str) -> bool:
    """Whether SQLite keeps it as it is: no NUL, at which its functions end a text, and no half of a surrogate pair."""
    if "\0" in text:
        return False
    try:
        return text.isascii() or bool(text.encode())
    except UnicodeEncodeError:
        return False


def check_text(*texts: str | None) -> None:
    """Refuse what could only fail later, in the writer, and with it the requests of others.

    Raises:
        InvalidInput: one of them is not ``is_text``.
    """
    for text in texts:
        if text is not None and not is_text(text):
            raise InvalidInput(f"{text[:128]!r} holds a NUL or half of a surrogate pair, so it cannot be stored.")


# The writer -----------------------------------------------------------------------------------------------------------


class _Session:
    """What the writer remembers of a session."""

    __slots__ = ("deleted", "head", "id")

    def __init__(self, id: int, head: Offset, deleted: bool) -> None:
        self.id, self.head, self.deleted = id, head, deleted


class _Memory:
    """What the writer knows without asking the disk. After a failed commit it is thrown away and read again.

    Attributes:
        sessions: the most recently written ones.
        runs: all open runs, by session and run, in the order of their messages.
        next_id: for the next new session.
        last_at: the time of the last append, in microseconds.
    """

    def __init__(self, connection: apsw.Connection) -> None:
        self.sessions: OrderedDict[str, _Session] = OrderedDict()
        self.runs: dict[str, dict[str, OpenRun]] = {}
        for run in read_open_runs(connection):
            self.runs.setdefault(run.session, {})[run.run] = run
        self.next_id = 1 + (value(connection, "SELECT max(id) FROM session") or 0)
        self.last_at = int(value(connection, "SELECT max(updated_at) FROM session WHERE NOT deleted") or 0)

    def load(self, connection: apsw.Connection, names: Iterable[str]) -> None:
        """Make sure that ``sessions`` has all of these that exist."""
        missing = []
        for name in names:
            if name in self.sessions:
                self.sessions.move_to_end(name)
            else:
                missing.append(name)
        if missing:
            for id, name, head, deleted in read_heads(connection, missing):
                self.sessions[name] = _Session(id, head, bool(deleted))

    def shrink(self) -> None:
        """Forget sessions beyond ``KNOWN_SESSIONS``. Between groups only: a group's heads are not on the disk yet."""
        while len(self.sessions) > KNOWN_SESSIONS:
            self.sessions.popitem(last=False)

    def now(self, clock: Callable[[], float]) -> int:
        """The time of the next append, see ``moment``."""
        self.last_at = moment(clock(), self.last_at)
        return self.last_at


class _Group:
    """The requests of one transaction: what they change, as rows for the view ``change``."""

    def __init__(self, memory: _Memory, connection: apsw.Connection, clock: Callable[[], float]) -> None:
        self._memory = memory
        self._connection = connection
        self._clock = clock
        self._rows: list[Any] = []
        self._updated: dict[int, int] = {}
        self._runs: dict[tuple[int, str, str], None] = {}
        self._used: dict[tuple[int, str], tuple[Offset, Offset]] = {}
        self._fresh: dict[tuple[int, str], list[Event]] = {}

    def plan(self, requests: Sequence[Request]) -> None:
        """Decide each request, in order; one that is refused leaves no trace."""
        self._memory.shrink()
        names = dict.fromkeys(request.session for request in requests if request.session is not None)
        self._memory.load(self._connection, names)
        self._load_used(requests)
        for request in requests:
            try:
                request.outcome = request.plan(self)
            except (LegatoError, ValueError) as exc:
                request.error = exc

    def _load_used(self, requests: Sequence[Request]) -> None:
        sessions = self._memory.sessions
        keys = [
            (sessions[request.session].id, request.once)
            for request in requests
            if request.once is not None and request.session is not None and request.session in sessions
        ]
        if keys:
            found = read_used(self._connection, keys)
            self._used = {(session, key): (first, last) for session, key, first, last in found}

    def append(self, request: Append) -> Appended:
        """The events as they will be stored."""
        name = request.session
        session = self._memory.sessions.get(name)
        if session is not None and session.deleted:
            if request.drafts and request.drafts[0].type == "session.created":
                raise SessionExists(f"Session {name!r} existed and was deleted.", session=name)
            raise SessionNotFound(name)
        if session is not None and request.once is not None:
            before = self._before(name, session, request.once)
            if before is not None:
                return Appended(before, repeated=True)
        runs = self._memory.runs.get(name, {})
        check_drafts(request.drafts, exists=session is not None, open_runs=runs, session=name, lease=request.lease)
        check_head(name, session.head if session is not None else 0, request.head)
        # From here on nothing can be refused.
        if session is None:
            session = self._memory.sessions[name] = _Session(self._memory.next_id, 0, False)
            self._memory.next_id += 1
            self._rows += (NEW_SESSION, session.id, name, None, None, None, None, None)
        at = self._memory.now(self._clock)
        first = session.head + 1
        events = [
            Event(type=draft.type, data=data, offset=offset, at=at / MICRO, run=draft.run)
            for offset, (draft, data) in enumerate(zip(request.drafts, request.data, strict=True), first)
        ]
        for event, data in zip(events, request.encoded, strict=True):
            delta = event.type in DELTAS
            self._rows += (EVENT, session.id, event.offset, at, event.type, event.run, delta, data)
            if not delta:
                self._updated[session.id] = at
                self._derive(name, session, event)
        session.head = events[-1].offset
        if request.once is not None:
            self._rows += (ONCE, session.id, request.once, first, session.head, None, None, None)
            self._fresh[session.id, request.once] = events
        if events[-1].type == "session.deleted":
            self._delete(name, session)
        request.stored = events
        return Appended(events)

    def _before(self, name: str, session: _Session, once: str) -> list[Event] | None:
        """The events stored earlier under this key."""
        if (fresh := self._fresh.get((session.id, once))) is not None:
            return fresh
        if (used := self._used.get((session.id, once))) is None:
            return None
        first, last = used
        events: list[Event] = []
        while first <= last:
            page = read_page(self._connection, name, first - 1, last - first + 1, True).events
            if not page:
                raise StoreCorrupt(f"Events that were stored under the key {once!r} are gone.")
            events += page
            first = page[-1].offset + 1
        return events

    def _derive(self, name: str, session: _Session, event: Event) -> None:
        if event.run is None:
            return
        runs = self._memory.runs.setdefault(name, {})
        if event.type == "message.created":
            runs[event.run] = OpenRun(session=name, run=event.run, offset=event.offset)
        elif event.type == "run.started":
            runs[event.run] = msgspec.structs.replace(runs[event.run], started=True)
        elif event.type in TERMINAL:
            del runs[event.run]
        else:
            return
        self._runs[session.id, name, event.run] = None

    def _delete(self, name: str, session: _Session) -> None:
        session.deleted = True
        self._memory.runs.pop(name, None)
        self._rows += (DELETED, session.id, session.head, None, None, None, None, None)

    def acquire(self, request: Acquire) -> Lease:
        """The lease as it will be stored."""
        runs = self._memory.runs.get(request.session, {})
        now = self._clock()
        current = lease_target(runs, request.run, owner=request.owner, now=now)
        until = round((now + request.ttl) * MICRO) / MICRO
        runs[request.run] = msgspec.structs.replace(
            current, owner=request.owner, epoch=current.epoch + 1, expires_at=until
        )
        self._runs[self._memory.sessions[request.session].id, request.session, request.run] = None
        return Lease(
            session=request.session,
            run=request.run,
            owner=request.owner,
            epoch=current.epoch + 1,
            expires_at=until,
        )

    def renew(self, request: Renew) -> None:
        """Extend the leases of an owner."""
        until = round((self._clock() + request.ttl) * MICRO) / MICRO
        held = [run for runs in self._memory.runs.values() for run in runs.values() if run.owner == request.owner]
        self._memory.load(self._connection, {run.session for run in held})
        for run in held:
            self._memory.runs[run.session][run.run] = msgspec.structs.replace(run, expires_at=until)
            self._runs[self._memory.sessions[run.session].id, run.session, run.run] = None

    def rows(self) -> list[Any]:
        """The whole change, flat: ``WIDTH`` values for each row."""
        rows = self._rows
        for id, at in self._updated.items():
            rows += (UPDATED, id, at, None, None, None, None, None)
        for id, name, run_id in self._runs:
            run = self._memory.runs.get(name, {}).get(run_id)
            if run is None:
                rows += (RUN_ENDED, id, run_id, None, None, None, None, None)
            else:
                until = round(run.expires_at * MICRO)
                rows += (RUN, id, run_id, run.offset, run.started, run.owner, run.epoch, until)
            if not self._memory.runs.get(name, True):
                del self._memory.runs[name]
        return rows


class Writer:
    """The one thread that writes.

    Args:
        path: for error messages.
        connection: nobody else uses it.
        clock: seconds since the epoch.
        deliver: called on this thread with each group of requests, once they are decided and durable.
    """

    def __init__(
        self,
        path: str,
        connection: apsw.Connection,
        clock: Callable[[], float],
        deliver: Callable[[list[Request]], None],
    ) -> None:
        self._path = path
        self._connection = connection
        self._clock = clock
        self._deliver = deliver
        self._queue: queue.SimpleQueue[Request | None] = queue.SimpleQueue()
        self._memory: _Memory | None = None
        self._thread = threading.Thread(target=self._run, name="legato-sqlite-writer", daemon=True)
        self.begun = 0

    def start(self) -> None:
        """Begin to take requests."""
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Hand over a request. For any thread."""
        self._queue.put(request)

    def stop(self) -> None:
        """Finish all requests so far and end the thread. Blocks."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        begun, several = 0.0, False
        while (first := self._queue.get()) is not None:
            if several and (pause := begun + COMMIT_INTERVAL - time.monotonic()) > 0:
                time.sleep(pause)  # meanwhile others join the group
            begun = time.monotonic()
            requests: list[Request] = [first]
            more = True
            while more and len(requests) < GROUP_REQUESTS:
                try:
                    request = self._queue.get_nowait()
                except queue.Empty:
                    break
                if request is None:
                    more = False
                else:
                    requests.append(request)
            several = len(requests) >= PACE_ABOVE
            self._do(requests)
            if not more:
                return

    def _do(self, requests: list[Request]) -> None:
        # Before the commit, so that whoever reads its effects from the disk can know that it is being delivered.
        self.begun += 1
        try:
            self._commit(requests)
        except Exception as exc:  # whatever it is, this thread goes on for the other sessions
            self._undo()
            for request in requests:
                request.error, request.outcome = store_error(exc, self._path), None
                request.error.__cause__ = exc
                if isinstance(request, Append):
                    request.stored = []
        self._deliver(requests)

    def _commit(self, requests: list[Request]) -> None:
        self._write_all(self._planned(requests))

    def _planned(self, requests: list[Request]) -> list[Any]:
        if self._memory is None:
            self._memory = _Memory(self._connection)
        group = _Group(self._memory, self._connection, self._clock)
        group.plan(requests)
        return group.rows()

    def _write_all(self, rows: list[Any]) -> None:
        size = STATEMENT_ROWS * WIDTH
        if len(rows) <= size:
            if rows:
                self._write(rows)  # one statement is a transaction by itself
            return
        self._connection.execute("BEGIN IMMEDIATE")
        for start in range(0, len(rows), size):
            self._write(rows[start : start + size])
        self._connection.execute("COMMIT")

    def _write(self, rows: list[Any]) -> None:
        count = len(rows) // WIDTH
        # Powers of two, so that there are ten statements in all, each prepared once.
        power = 1 << (count - 1).bit_length()
        rows += [None] * ((power - count) * WIDTH)
        self._connection.execute(_INSERTS[power], rows)

    def _undo(self) -> None:
        self._memory = None
        try:
            if not self._connection.get_autocommit():
                self._connection.execute("ROLLBACK")
        except apsw.Error:
            pass  # SQLite has rolled back by itself


_ROW = "(" + ",".join("?" * WIDTH) + ")"
_INSERTS = {
    1 << power: "INSERT INTO change VALUES " + ",".join([_ROW] * (1 << power))
    for power in range(STATEMENT_ROWS.bit_length())
}
