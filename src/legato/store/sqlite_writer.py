"""The writer of a SQLite store: one thread that commits what waits, of all sessions, in one transaction.

It knows the rules of appending (from ``legato.log``) and nothing of readers. The one rule that must hold: a request
that is refused leaves no trace, and a group that could not be committed leaves none either, on the disk or in memory.
"""

# ruff: noqa: S608  # no part of the SQL here comes from outside

from __future__ import annotations

import abc
import asyncio
import itertools
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from ..check import check_text
from ..errors import LegatoError, RunEnded, StoreBusy, StoreCorrupt, StoreError, StoreLost, TooLarge
from ..event import AnyFact, Draft, Event, Offset, SessionCreated, settle
from ..figures import StoreFigures
from ..log import MICRO, Appended, SessionRecord, Storing, Take, Thinning, created, moment
from ..machine import Lease, OpenRun, SessionState, check_head, free, leased, moved, released, renewed
from ..thin import thinned
from .sqlite_errors import disk_trouble, is_of_disk, store_error
from .sqlite_file import (
    DELETED,
    DISCARDED,
    EVENT,
    NEW_SESSION,
    ONCE,
    PUBLISHED,
    REPACKED,
    RUN,
    RUN_ENDED,
    STAGED,
    STATEMENT_ROWS,
    STATES,
    TOUCH,
    UPDATED,
    WIDTH,
    Arrived,
    Record,
    apsw,
    last_at,
    logged_bytes,
    read_heads,
    read_open_runs,
    read_packs,
    read_page,
    read_used,
    read_waiting,
    repacked,
    tidy,
    value,
)
from .sqlite_journal import Filing, Journal, packs
from .watch import HEAD_BYTES, FileWatch

logger = logging.getLogger("legato")

GROUP_REQUESTS = 1_000
"""Requests in one commit at most, so that the first of many does not wait for all."""
PACE_ABOVE = 4
"""With so many requests in a commit, several sessions are busy, and commits are paced."""
COMMIT_INTERVAL = 0.005
"""Seconds between the beginnings of paced commits. At 5,000 events/s of 100 runs it makes the groups five times as
large and takes a quarter off the CPU of the whole server, for 4 ms that no reader of an answer notices
(``benchmarks/chat.py``). A session that is alone is never held up, nor are those that all have come back before."""
PACKED_BYTES = 4_096
"""A delta whose JSON is longer is an event by itself, so that a pack is no large thing."""
MAX_DATA_BYTES = 256 * 1024 * 1024
"""An event's data, as JSON. SQLite's own limit is 1 GB a row, and one row beyond it would fail its whole group."""
BUSY_MS = 50
"""Milliseconds for which a commit waits in SQLite for another program's lock. Then the group waits here, where who only
asks need not wait with it,"""
BUSY_SECONDS = 2.0
"""and after so many seconds it fails, as does at once what comes as long as the lock is there."""
BUSY_RETRY = 0.05
"""Seconds between two tries of a group that waits for a lock."""
LOOK_SECONDS = 0.1
"""A commit is preceded by a look whether the file is still there, unless the last one is not older than so."""
IDLE_SECONDS = 1.0
"""Seconds between two looks while nothing is to be committed."""
TIDY_SECONDS = 0.02
"""Seconds between two steps that give back free pages,"""
TIDY_AGAIN_SECONDS = 1.0
"""and between two tries when somebody still reads what is old."""
KNOWN_SESSIONS = 10_000
"""Sessions whose head the writer remembers; others cost a look-up,"""
KNOWN_BYTES = 16 * 1024 * 1024
"""as do those of which it would remember more than so much of what began them."""
DAMAGE = (apsw.Error, msgspec.MsgspecError)
"""What reading a damaged session raises."""

# Requests -------------------------------------------------------------------------------------------------------------


class WriteRequest(Storing, abc.ABC):
    """What is asked of the writer: ``plan`` it, and after the commit tell who waits what that gave or raised."""

    __slots__ = ("once", "session")

    def __init__(self, session: str | None) -> None:
        super().__init__()
        self.session = session
        self.once: str | None = None

    @abc.abstractmethod
    def plan(self, group: _Group) -> Any:
        """What the caller gets; note the change in ``group``."""


class Append(WriteRequest):
    """Drafts to be stored. Made on the event loop, where it may raise.

    Attributes:
        stored: the events that were new.
        free: whether somebody may take a run of the session now.

    Raises:
        InvalidInput, TooLarge: a draft cannot be stored.
    """

    __slots__ = ("drafts", "free", "head", "lease", "settled", "stored", "take")

    def __init__(
        self,
        session: str,
        drafts: Sequence[Draft],
        lease: Lease | None,
        once: str | None,
        head: Offset | None,
        take: Take | None,
    ) -> None:
        # All that ``super`` does, for what is made for each token.
        self.outcome: Any = None
        self.error = None
        self.over = False
        self._then = ()
        self.session: str = session
        self.drafts = list(drafts)
        self.settled: list[tuple[AnyFact, bytes]] = []
        run = None if lease is None else lease.run  # of which that has been asked
        for draft in self.drafts:
            if draft.run is not run:
                check_text(run := draft.run)
            fact, json = settled = (draft.fact, draft.json) if draft.json else settle(draft.fact)
            if fact.open or len(json) > MAX_DATA_BYTES:
                _check(fact, json)
            self.settled.append(settled)
        self.lease = lease
        self.once = once
        self.head = head
        self.take = take
        self.stored: list[Event] = []
        self.free = False

    def plan(self, group: _Group) -> Appended:
        """See ``WriteRequest.plan``."""
        return group.append(self)


class Stage(WriteRequest):
    """A piece of a session that is being built. Made on the event loop, where it may raise as ``Append`` does.

    Gives what is there of it then.
    """

    __slots__ = ("built", "drafts", "hidden", "settled")

    def __init__(self, session: str, hidden: str, built: Built | None, drafts: Sequence[Draft]) -> None:
        super().__init__(session)
        self.session: str = session
        self.hidden, self.built, self.drafts = hidden, built, drafts
        self.settled = [settle(draft.fact) for draft in drafts]
        for settled in self.settled:
            _check(*settled)

    def plan(self, group: _Group) -> Built:
        """See ``WriteRequest.plan``."""
        return group.stage(self)


class Adopt(WriteRequest):
    """A page of a session that is being adopted. Made on the event loop, where it may raise as ``Append`` does.

    Gives the id of its row. ``id``: that, from the second page on.
    """

    __slots__ = ("events", "hidden", "id")

    def __init__(self, session: str, hidden: str, id: int | None, events: Sequence[Event]) -> None:
        super().__init__(session)
        self.session: str = session
        self.hidden, self.id = hidden, id
        self.events = [(event, event.json or settle(event.fact)[1]) for event in events]
        for event, json in self.events:
            check_text(event.run)
            _check(event.fact, json)

    def plan(self, group: _Group) -> int:
        """See ``WriteRequest.plan``."""
        return group.adopt(self)


class Publish(WriteRequest):
    """The end of building: the session is there; as ``record`` says, if it was adopted."""

    __slots__ = ("built", "record")

    def __init__(self, session: str, built: Built, record: SessionRecord | None = None) -> None:
        super().__init__(session)
        self.session: str = session
        self.built, self.record = built, record

    def plan(self, group: _Group) -> None:
        """See ``WriteRequest.plan``."""
        group.publish(self)


class Discard(WriteRequest):
    """What was built and is not to be; nothing, once it has been published."""

    __slots__ = ("hidden",)

    def __init__(self, hidden: str) -> None:
        super().__init__(None)
        self.hidden = hidden

    def plan(self, group: _Group) -> None:
        """See ``WriteRequest.plan``."""
        group.discard(self.hidden)


class Thin(WriteRequest):
    """Packs that are to say in one delta what theirs say."""

    __slots__ = ("after", "limit")

    def __init__(self, session: str, after: Offset, limit: int) -> None:
        super().__init__(session)
        self.session: str = session
        self.after, self.limit = after, limit

    def plan(self, group: _Group) -> Thinning:
        """See ``WriteRequest.plan``."""
        return group.thin(self)


class Inform(WriteRequest):
    """A look at a session, which is kept with those of its group. It changes nothing, so it fails with nobody."""

    __slots__ = ()

    def __init__(self, session: str) -> None:
        super().__init__(session)
        self.session: str = session

    def plan(self, group: _Group) -> Look | None:
        """See ``WriteRequest.plan``."""
        return group.look(self.session)


class Acquire(WriteRequest):
    """A lease that is wanted."""

    __slots__ = ("take",)

    def __init__(self, session: str, take: Take) -> None:
        super().__init__(session)
        self.session: str = session
        self.take = take

    def plan(self, group: _Group) -> Lease:
        """See ``WriteRequest.plan``."""
        return group.acquire(self.session, self.take)


class Claim(WriteRequest):
    """Runs that nobody holds, to be taken."""

    __slots__ = ("limit", "owner", "ttl")

    def __init__(self, owner: str, ttl: float, limit: int) -> None:
        super().__init__(None)
        self.owner, self.ttl, self.limit = owner, ttl, limit

    def plan(self, group: _Group) -> list[Lease]:
        """See ``WriteRequest.plan``."""
        return group.claim(self)


class Renew(WriteRequest):
    """All leases of an owner, to be extended."""

    __slots__ = ("owner", "ttl")

    def __init__(self, owner: str, ttl: float) -> None:
        super().__init__(None)
        self.owner, self.ttl = owner, ttl

    def plan(self, group: _Group) -> None:
        """See ``WriteRequest.plan``."""
        group.renew(self)


class Release(WriteRequest):
    """A lease that is given back."""

    __slots__ = ("lease",)

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease.session)
        self.lease = lease

    def plan(self, group: _Group) -> None:
        """See ``WriteRequest.plan``."""
        group.release(self.lease)


def _check(fact: AnyFact, json: bytes) -> None:
    if fact.open:  # as deltas are not
        check_text(fact.type, fact.owner if isinstance(fact, SessionCreated) else None)
    if len(json) > MAX_DATA_BYTES:
        raise TooLarge(f"The data of {fact.type} is beyond {MAX_DATA_BYTES} bytes.", limit=MAX_DATA_BYTES)


# The writer -----------------------------------------------------------------------------------------------------------


class Look(msgspec.Struct, frozen=True, gc=False):
    """A session as it is after a group.

    Attributes:
        created: what its first event says, stored at ``created_at`` (microseconds since the epoch, as all here).
        updated_at: the time of its last event that is no delta.
        size: bytes of ``created`` as JSON.
    """

    state: SessionState
    created: SessionCreated
    created_at: int
    updated_at: int
    size: int


class Built(NamedTuple):
    """A session as far as it has been built: its row's id, its state, and what begins it, stored when, and how long."""

    id: int
    state: SessionState
    created: SessionCreated
    created_at: int
    size: int


class _Session:
    """What the writer remembers of a session: its row's id, and what it looks like."""

    __slots__ = ("created", "created_at", "id", "size", "state", "updated_at")

    def __init__(
        self, id: int, state: SessionState, created: SessionCreated, created_at: int, updated_at: int, size: int
    ) -> None:
        self.id, self.state, self.size = id, state, size
        self.created, self.created_at, self.updated_at = created, created_at, updated_at

    def look(self) -> Look:
        return Look(self.state, self.created, self.created_at, self.updated_at, self.size)


class _Memory:
    """What the writer knows without asking the disk. After a failed commit it is thrown away and read again.

    Attributes:
        journal: what is committed of it, so it stays.
        sessions: the most recently written ones.
        runs: all open runs, by session and run, in the order of their messages. The sessions whose first run has been
            the first for longest come first.
        next_id: for the next new session.
        last_at: the time of the last append, in microseconds.
    """

    def __init__(self, connection: apsw.Connection, journal: Journal) -> None:
        self.journal = journal
        self.sessions: OrderedDict[str, _Session] = OrderedDict()
        self.bytes = 0  # of what began them
        runs: dict[str, dict[str, OpenRun]] = {name: {} for name in read_waiting(connection)}
        for run in read_open_runs(connection):
            runs[run.session][run.run] = run
        self.runs: dict[str, Mapping[str, OpenRun]] = {**runs}
        self.next_id = 1 + (value(connection, "SELECT max(id) FROM session") or 0)
        self.last_at = last_at(connection)

    def load(self, connection: apsw.Connection, names: Iterable[str]) -> dict[str, Exception]:
        """Make sure that ``sessions`` has all of these that exist; gives what is wrong with those that are damaged."""
        missing = []
        for name in names:
            if name in self.sessions:
                self.sessions.move_to_end(name)
            else:
                missing.append(name)
        if not missing:
            return {}
        try:
            heads = read_heads(connection, missing)
        except DAMAGE as exc:
            if len(missing) == 1:
                return {missing[0]: exc}
            # One by one, so that a damaged session harms nobody else.
            return {name: error for each in missing for name, error in self.load(connection, [each]).items()}
        for id, name, head, whole, deleted, begun, updated_at in heads:
            state = SessionState(name, max(head, self.journal.head(name)), whole, deleted, self.runs.get(name, {}))
            fact, created_at, size = begun
            self.sessions[name] = _Session(id, state, created(fact), created_at, updated_at, size)
            self.bytes += size
        return {}

    def shrink(self) -> None:
        """Forget sessions beyond ``KNOWN_SESSIONS``. Between groups only: a group's heads are not on the disk yet."""
        while len(self.sessions) > KNOWN_SESSIONS or self.bytes > KNOWN_BYTES:
            self.bytes -= self.sessions.popitem(last=False)[1].size

    def now(self, now: float) -> int:
        """The time of the next append, see ``moment``."""
        self.last_at = at = moment(now, self.last_at)
        return at


class _Group:
    """The requests of one transaction: what they change, as rows for the view ``change``.

    Attributes:
        touched: the sessions that they change or ask for; what those look like at the end is for everybody to know.
        deletes: whether something is gone with it.
    """

    def __init__(self, memory: _Memory, connection: apsw.Connection, now: float, path: str) -> None:
        self.touched: dict[str, _Session] = {}
        self.deletes = False
        self._memory = memory
        self._connection = connection
        self._now = now
        self._at = 0  # when the last append was, in microseconds
        self._path = path
        self._rows: list[Any] = []
        self._arrived: dict[str, Arrived] = {}
        self._deleted: set[str] = set()
        self._updated: dict[int, int] = {}
        self._changed: dict[tuple[int, str], OpenRun | None] = {}
        self._used: dict[tuple[int, str], tuple[Offset, Offset]] = {}
        self._fresh: dict[tuple[int, str], list[Event]] = {}

    def plan(self, requests: Sequence[WriteRequest]) -> None:
        """Decide each request, in order; one that is refused leaves no trace."""
        self._memory.shrink()
        names = dict.fromkeys([request.session for request in requests if request.session is not None])
        damaged = self._memory.load(self._connection, names)
        self._load_used(requests)
        for request in requests:
            try:
                if request.session in damaged:
                    raise damaged[request.session]
                request.outcome, request.error = request.plan(self), None
            except DAMAGE as exc:
                request.error = store_error(exc, self._path)
                request.error.__cause__ = exc
            except (LegatoError, ValueError) as exc:
                request.error = exc

    def _load_used(self, requests: Sequence[WriteRequest]) -> None:
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
        name, take, memory = request.session, request.take, self._memory
        known = memory.sessions.get(name)
        before = known.state if known is not None else SessionState(name)
        if request.once is not None and known is not None and before.exists:
            again = self._before(name, known, request.once)
            if again is not None:
                return Appended(again, repeated=True)
        state = moved(before, request.drafts, lease=request.lease)
        if request.head is not None:
            check_head(before, request.head)
        if take is not None:
            state = self._leased(state, take)
        # From here on nothing can be refused.
        # Later than the one before, see ``moment``; within a group that is all there is to it.
        memory.last_at = self._at = at = self._at + 1 if self._at else memory.now(self._now)
        if known is None:
            begun = created(request.settled[0][0])
            size = len(request.settled[0][1])
            known = memory.sessions[name] = _Session(memory.next_id, before, begun, at, at, size)
            memory.bytes += size
            memory.next_id += 1
            self._rows += (NEW_SESSION, known.id, name, begun.owner or "", None, None, None, None)
        events: list[Event] = []
        records: list[Record] = []
        seconds, offset = at / MICRO, before.head
        for draft, (fact, json) in zip(request.drafts, request.settled, strict=True):
            offset += 1
            run = draft.run
            events.append(Event(fact, offset, seconds, run, json))
            if fact.delta and len(json) <= PACKED_BYTES:
                records.append((offset, at, fact.type, run, json))
            else:
                self._rows += (EVENT, known.id, offset, at, fact.type, run, fact.delta, json)
        if records:
            _, arrived = self._arrived.setdefault(name, (known.id, records))
            if arrived is not records:
                arrived += records
        request.stored = events
        told = state.whole > before.whole
        if not told and request.once is None and state.runs is before.runs:  # deltas, as nearly all are
            known.state = state
            self.touched[name] = known
            return Appended(events)
        if told:
            self._updated[known.id] = known.updated_at = at
        if request.once is not None:
            self._rows += (ONCE, known.id, request.once, before.head + 1, state.head, None, None, None)
            self._fresh[known.id, request.once] = events
        self._move(known, state)
        if state.deleted:
            self._deleted.add(name)
            self.deletes = True
            self._rows += (DELETED, known.id, state.head, None, None, None, None, None)
        request.free = told and free(state.runs, self._now) is not None
        return Appended(events, False, None if take is None else state.runs[take.run].lease())

    def stage(self, request: Stage) -> Built:
        """What is there of the session then; nobody sees it."""
        known, built = self._memory.sessions.get(request.session), request.built
        if known is not None:
            moved(known.state, request.drafts)  # raises, as the session exists
        before = SessionState(request.session) if built is None else built.state
        state = moved(before, request.drafts)
        if state.runs or state.deleted or any(draft.fact.delta for draft in request.drafts):
            raise ValueError("a session is not built of runs, nor of deltas")
        at = self._memory.now(self._now)
        if built is None:
            fact, json = request.settled[0]
            built = Built(self._memory.next_id, state, created(fact), at, len(json))
            self._memory.next_id += 1
            self._rows += (STAGED, built.id, request.hidden, None, None, None, None, None)
        offset = before.head
        for fact, json in request.settled:
            offset += 1
            self._rows += (EVENT, built.id, offset, at, fact.type, None, False, json)
        return built._replace(state=state)

    def adopt(self, request: Adopt) -> int:
        """Keep a page of it; nobody sees it."""
        self._check_new(request.session)
        id = request.id
        if id is None:
            id = self._memory.next_id
            self._memory.next_id += 1
            self._rows += (STAGED, id, request.hidden, None, None, None, None, None)
        records: list[Record] = []
        for event, json in request.events:
            at = round(event.at * MICRO)
            if event.fact.delta and len(json) <= PACKED_BYTES:
                records.append((event.offset, at, event.type, event.run, json))
            else:
                self._rows += (EVENT, id, event.offset, at, event.type, event.run, event.fact.delta, json)
        self._rows += packs(id, records)
        return id

    def publish(self, request: Publish) -> None:
        """Let everybody see what has been built."""
        (id, state, begun, created_at, size), record = request.built, request.record
        self._check_new(request.session)
        if record is None:
            at = self._memory.now(self._now)
        else:
            at = round(record.updated_at * MICRO)
            self._memory.last_at = max(self._memory.last_at, at)
            for key, (first, last) in record.once.items():
                self._rows += (ONCE, id, key, first, last, None, None, None)
        bare = SessionState(state.session, state.head, state.whole, state.deleted)
        known = self._memory.sessions[request.session] = _Session(id, bare, begun, created_at, at, size)
        self._memory.bytes += size
        self._rows += (PUBLISHED, id, request.session, at, begun.owner or "", state.deleted, None, None)
        self._move(known, state)

    def _check_new(self, session: str) -> None:
        if (known := self._memory.sessions.get(session)) is not None:
            moved(known.state, [Draft(SessionCreated())])  # raises, as the session exists

    def discard(self, hidden: str) -> None:
        """Delete what has been built and was not published."""
        self.deletes = True
        self._rows += (DISCARDED, hidden, None, None, None, None, None, None)

    def thin(self, request: Thin) -> Thinning:
        """Write packs anew; what is not packed yet, or of runs that have not ended, stays."""
        name, known = request.session, self._memory.sessions.get(request.session)
        if known is None or known.state.deleted:
            return Thinning(0, None)
        until = min((run.offset - 1 for run in known.state.runs.values()), default=known.state.head)
        packs = read_packs(self._connection, name, known.id, request.after, until, request.limit)
        changed = 0
        for row, _, before in packs:
            now = thinned(before)
            more = sum(one is not two for one, two in zip(before, now, strict=True))
            if more:
                self._rows += (REPACKED, row, repacked(now), None, None, None, None, None)
                changed += more
                self.deletes = True
        held = sum(len(events) for _, _, events in packs)
        return Thinning(changed, packs[-1][1] if held >= request.limit else None)

    def _move(self, known: _Session, state: SessionState) -> None:
        """Take over the new state, and note what of its runs has changed."""
        before, name = known.state.runs, state.session
        known.state = state
        self.touched[name] = known
        if before is state.runs:
            return
        for run in before.keys() | state.runs.keys():
            if before.get(run) is not state.runs.get(run):
                self._changed[known.id, run] = state.runs.get(run)
        if next(iter(before), None) != next(iter(state.runs), None):
            self._memory.runs.pop(name, None)  # another run is the first: the session goes to the end of the line
        if state.runs:
            self._memory.runs[name] = state.runs

    def _before(self, name: str, session: _Session, once: str) -> list[Event] | None:
        """The events stored earlier under this key."""
        if (fresh := self._fresh.get((session.id, once))) is not None:
            return fresh
        if (used := self._used.get((session.id, once))) is None:
            return None
        first, last = used
        events: list[Event] = []
        while first <= last:
            unpacked = self._memory.journal.after(name)
            page = read_page(self._connection, name, first - 1, last - first + 1, True, unpacked).events
            if not page:
                raise StoreCorrupt(f"Events that were stored under the key {once!r} are gone.")
            events += page
            first = page[-1].offset + 1
        return events

    def acquire(self, session: str, take: Take) -> Lease:
        """The lease as it will be stored."""
        known = self._memory.sessions.get(session)
        if known is None:
            raise RunEnded(f"Run {take.run!r} is not open.", run=take.run)
        self._move(known, self._leased(known.state, take))
        return known.state.runs[take.run].lease()

    def _leased(self, state: SessionState, take: Take) -> SessionState:
        return leased(state, take.run, owner=take.owner, now=self._now, until=_until(self._now, take.ttl))

    def claim(self, request: Claim) -> list[Lease]:
        """Leases of runs that nobody held."""
        waiting = iter([run for runs in self._memory.runs.values() if (run := free(runs, self._now)) is not None])
        leases: list[Lease] = []
        while some := list(itertools.islice(waiting, max(request.limit - len(leases), 0))):
            damaged = self._memory.load(self._connection, [run.session for run in some])
            leases += [
                self.acquire(run.session, Take(run.run, request.owner, request.ttl))
                for run in some
                if run.session not in damaged
            ]
        return leases

    def renew(self, request: Renew) -> None:
        """Extend the leases of an owner."""
        until = _until(self._now, request.ttl)
        held = [
            name for name, runs in self._memory.runs.items() if any(r.owner == request.owner for r in runs.values())
        ]
        damaged = self._memory.load(self._connection, held)
        for name in held:
            if name not in damaged:
                known = self._memory.sessions[name]
                self._move(known, renewed(known.state, owner=request.owner, until=until))

    def look(self, name: str) -> Look | None:
        """What the session looks like; None if it never was."""
        known = self._memory.sessions.get(name)
        if known is None:
            return None
        self.touched[name] = known
        return known.look()

    def release(self, lease: Lease) -> None:
        """Give a lease back."""
        known = self._memory.sessions.get(lease.session)
        if known is not None:
            self._move(known, released(known.state, lease))

    def filing(self) -> Filing:
        """What the change does to the journal."""
        return self._memory.journal.file(self._arrived, self._deleted)

    def rows(self) -> list[Any]:
        """The rest of the change, flat: ``WIDTH`` values for each row."""
        rows = self._rows
        for id, at in self._updated.items():
            rows += (UPDATED, id, at, None, None, None, None, None)
        for (id, name), run in self._changed.items():
            if run is None:
                rows += (RUN_ENDED, id, name, None, None, None, None, None)
            else:
                until = round(run.expires_at * MICRO)
                rows += (RUN, id, run.run, run.offset, STATES.index(run.state), run.owner, run.epoch, until)
        return rows


def _until(now: float, ttl: float) -> float:
    """When a lease ends: to the microsecond, as it is stored."""
    return round((now + ttl) * MICRO) / MICRO


class Writer:
    """The one thread that writes.

    Args:
        path: for error messages.
        connection: nobody else uses it.
        journal: as the file has it.
        clock: seconds since the epoch.
        deliver: called on this thread with each group of requests, once they are decided and durable, and with what
            the sessions look like that they were about.
        keep_lock: see ``FileWatch``.
    """

    def __init__(
        self,
        path: str,
        connection: apsw.Connection,
        journal: Journal,
        clock: Callable[[], float],
        deliver: Callable[[list[WriteRequest], dict[str, Look]], None],
        keep_lock: Callable[[], None],
    ) -> None:
        self._path = path
        self._watch = FileWatch(
            path, keep_lock, lambda: connection.read("main", 0, 0, HEAD_BYTES)[1], lambda: logged_bytes(connection)
        )
        self._looked_at = 0.0  # when the files were
        self._trouble: StoreError | None = None
        self._patient_until = 0.0  # with another program's lock
        self._was_locked = False  # when nothing was to be stored
        self._disk: StoreError | None = None  # why the disk takes nothing
        self._disk_at = 0.0  # when that was looked at
        self._held: list[WriteRequest] = []  # as long as there is patience
        self._tidy_at: float | None = None  # while something deleted may still be in the files
        self._connection = connection
        self._journal = journal
        self._clock = clock
        self._deliver = deliver
        self._queue: queue.SimpleQueue[list[WriteRequest] | None] = queue.SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._waiting: list[WriteRequest] = []  # to join the next group
        self._timer: asyncio.TimerHandle | None = None
        self._awaited: set[str | None] = set()  # sessions of the last group, of which nothing has come since
        self._begun_at = 0.0  # when that group was begun
        self._silent: set[str | None] = set()  # sessions whose run has begun, and has stored nothing yet
        self._memory: _Memory | None = None
        self._thread = threading.Thread(target=self._run, name="legato-sqlite-writer", daemon=True)
        self.begun = 0
        self.figures = StoreFigures()

    def start(self, *, untidy: bool = False) -> None:
        """Begin to take requests. ``untidy``: something that was deleted may have been left in the files."""
        self._tidy_at = 0.0 if untidy else None
        self._connection.set_busy_timeout(BUSY_MS)
        self._thread.start()

    def submit(self, request: WriteRequest) -> None:
        """Hand over a request. On the event loop, as ``flush``, which waits there and not in the writer's thread: each
        time that one wakes takes the interpreter from the loop. A message waits for nobody else, nor does what its run
        says first: those are seldom, and somebody waits for each of them."""
        self._waiting.append(request)
        if self._begins(request):
            self._awaited.discard(request.session)
        elif self._awaited:
            self._awaited.discard(request.session)
            if self._timer is not None and self._awaited:
                return
            if self._awaited and (pause := self._begun_at + COMMIT_INTERVAL - time.monotonic()) > 0:
                self._timer = self._loop.call_later(pause, self.flush)  # meanwhile others join the group
                return
        self.flush()

    def _begins(self, request: WriteRequest) -> bool:
        """Whether it is a message whose run begins with it, or the first of that run."""
        if isinstance(request, Append) and request.take is not None:
            if len(self._silent) > KNOWN_SESSIONS:
                self._silent.clear()  # those whose message was refused, and that were left then
            self._silent.add(request.session)
            return True
        if self._silent and request.session in self._silent:
            self._silent.discard(request.session)
            return True
        return False

    def flush(self) -> None:
        """Let nothing wait for others."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting:
            waiting, self._waiting = self._waiting, []
            self._queue.put(waiting)

    def stop(self) -> None:
        """Finish all that was flushed so far and end the thread. Blocks."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        ended = False
        while not ended:
            pause = BUSY_RETRY if self._held else IDLE_SECONDS
            self._look_at_disk()
            if self._tidy_at is not None and not self._held:
                pause = min(max(self._tidy_at - time.monotonic(), 0.0), pause)
                if not pause:
                    self._tidy()
            try:
                taken = self._queue.get(timeout=pause)
            except queue.Empty:
                if self._held:
                    self._do([])
                else:
                    self._look()
                continue
            self._begun_at = time.monotonic()
            requests: list[WriteRequest] = []
            while taken is not None:
                requests += taken
                if self._queue.empty():
                    break
                taken = self._queue.get()
            ended = taken is None
            self._awaited = {each.session for each in requests} if len(requests) >= PACE_ABOVE else set()
            for start in range(0, len(requests), GROUP_REQUESTS):
                self._do(requests[start : start + GROUP_REQUESTS])
        if self._held:
            self._patient_until = 0.0
            self._do([])
        until = time.monotonic() + TIDY_AGAIN_SECONDS
        while self._tidy_at is not None and time.monotonic() < until:
            self._tidy()

    def _do(self, requests: list[WriteRequest]) -> None:
        requests, self._held = self._held + requests if self._held else requests, []
        # Before the commit, so that whoever reads its effects from the disk can know that it is being delivered.
        self.begun += 1
        looks = self._try(requests)
        if looks is None:
            asking: list[WriteRequest] = [request for request in requests if isinstance(request, Inform)]
            if time.monotonic() < self._patient_until:
                self._held = [request for request in requests if not isinstance(request, Inform)]
                requests = asking
            looks = self._try(asking) if asking else {}
        self._deliver(requests, looks or {})

    def _try(self, requests: Sequence[WriteRequest]) -> dict[str, Look] | None:
        """Commit a group; None if it could not be, which each of its requests has been told."""
        cause: Exception | None = None
        if not all(isinstance(request, Inform) for request in requests):
            cause = self._blocked()
        if cause is None:
            began = time.monotonic()
            try:
                looks = self._commit(requests)
                self.figures.committed(len(requests), time.monotonic() - began)
                return looks
            except Exception as exc:  # whatever it is, this thread goes on for the other sessions
                self._undo()
                cause = exc
                if isinstance(exc, apsw.BusyError):
                    self._note(store_error(exc, self._path))
                elif is_of_disk(exc):
                    self._note_disk(store_error(exc, self._path))
        self.figures.failed += 1
        for request in requests:
            request.error, request.outcome = store_error(cause, self._path), None
            request.error.__cause__ = cause
            if isinstance(request, Append):
                request.stored = []
        return None

    def _tidy(self) -> None:
        """A step on the way to files that hold nothing that was deleted. It waits for nobody."""
        self._tidy_at = time.monotonic() + TIDY_AGAIN_SECONDS
        if self._blocked() is not None:
            return
        self._connection.set_busy_timeout(0)
        try:
            self._tidy_at = None if tidy(self._connection) else time.monotonic() + TIDY_SECONDS
        except apsw.Error as exc:
            if not isinstance(exc, apsw.BusyError):
                logger.warning("what was deleted may still be in %s: %s", self._path, exc)
        finally:
            self._connection.set_busy_timeout(BUSY_MS)

    # When others have the file ----------------------------------------------------------------------------------------

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now: the file is not where it was, another program does not let go of it, or
        the disk takes nothing."""
        return (None if time.monotonic() < self._patient_until else self._trouble) or self._disk

    def _look(self) -> None:
        """See whether something could be stored, while nothing is to be."""
        if self._blocked() is not None:
            return
        try:
            locked = self._locked()
        except apsw.Error as exc:
            if is_of_disk(exc):
                self._note_disk(store_error(exc, self._path))
            return
        if locked is not None and self._was_locked:  # a lock may be had for a moment
            self._note(store_error(locked, self._path))
        self._was_locked = locked is not None

    def _look_at_disk(self) -> None:
        now = time.monotonic()
        if now < self._disk_at + IDLE_SECONDS:
            return
        self._disk_at = now
        found = disk_trouble(self._path, sure=self._disk is not None)
        if found is None and self._disk is not None and self._blocked() is None:
            try:
                self._connection.execute(TOUCH)
            except apsw.Error as exc:
                found = self._disk if isinstance(exc, apsw.BusyError) else store_error(exc, self._path)
        self._note_disk(found)

    def _note_disk(self, trouble: StoreError | None) -> None:
        before, self._disk = self._disk, trouble
        if type(before) is not type(trouble):
            self._tell(trouble)

    def _tell(self, trouble: StoreError | None) -> None:
        if trouble is None:
            logger.warning("%s can be written again", self._path)
        else:
            logger.error("nothing can be stored: %s", trouble)

    def _blocked(self) -> Exception | None:
        """Why nothing can be stored; looked for no more often than needed, unless there was a reason the last time."""
        now = time.monotonic()
        if self._trouble is None and now < self._looked_at + LOOK_SECONDS:
            return None
        self._looked_at = now
        if wrong := self._watch.trouble():
            found: Exception | None = StoreLost(
                f"{wrong} Nothing is stored until it is back as it was. Do not stop the server before: what has been "
                "stored may be in the open file alone.",
                path=self._path,
            )
        else:
            found = self._locked() if isinstance(self._trouble, StoreBusy) else None
        self._note(found if found is None else store_error(found, self._path))
        return found

    def _locked(self) -> Exception | None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._connection.execute("ROLLBACK")
        except apsw.BusyError as exc:
            return exc
        return None

    def _note(self, trouble: StoreError | None) -> None:
        before, self._trouble = self._trouble, trouble
        if type(before) is type(trouble):
            return
        locked = isinstance(trouble, StoreBusy)
        self._patient_until = time.monotonic() + BUSY_SECONDS if locked else 0.0
        self._connection.set_busy_timeout(0 if locked else BUSY_MS)  # as long as it is known, nobody waits for it here
        self._tell(trouble)

    def _commit(self, requests: Sequence[WriteRequest]) -> dict[str, Look]:
        if self._memory is None:
            self._memory = _Memory(self._connection, self._journal)
        group = _Group(self._memory, self._connection, self._clock(), self._path)
        group.plan(requests)
        filing = group.filing()
        self._write_all(group.rows() + filing.rows)
        self._journal.filed(filing)
        if group.deletes:
            self._tidy_at = time.monotonic() + TIDY_SECONDS
        return {name: known.look() for name, known in group.touched.items()}

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
