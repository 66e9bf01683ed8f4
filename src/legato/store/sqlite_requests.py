"""What is asked of the writer of a SQLite store, and what it comes to: the rows of one transaction.

It knows the rules of appending (from ``legato.log``). The one rule that must hold: a request that is refused leaves no
trace.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence
from typing import Any

from ..check import check_text
from ..errors import LegatoError, RunEnded, StoreCorrupt, TooLarge
from ..event import AnyFact, Draft, Event, Offset, SessionCreated, settle
from ..log import MICRO, Appended, SessionRecord, Storing, Take, Thinning, created
from ..machine import Lease, OpenRun, SessionState, check_head, free, leased, moved, released, renewed
from ..thin import thinned
from .sqlite_errors import store_error
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
    STATES,
    UPDATED,
    Arrived,
    Record,
    apsw,
)
from .sqlite_journal import Filing, packs
from .sqlite_known import DAMAGE, Built, Known, KnownSession, Look
from .sqlite_reading import read_packs, read_page, read_used, repacked

PACKED_BYTES = 4_096
"""A delta whose JSON is longer is an event by itself, so that a pack is no large thing."""
MAX_DATA_BYTES = 256 * 1024 * 1024
"""An event's data, as JSON. SQLite's own limit is 1 GB a row, and one row beyond it would fail its whole group."""


class WriteRequest(Storing, abc.ABC):
    """What is asked of the writer: ``plan`` it, and after the commit tell who waits what that gave or raised."""

    __slots__ = ("once", "session")

    def __init__(self, session: str | None) -> None:
        super().__init__()
        self.session = session
        self.once: str | None = None

    @abc.abstractmethod
    def plan(self, group: Transaction) -> Any:
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

    def plan(self, group: Transaction) -> Appended:
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

    def plan(self, group: Transaction) -> Built:
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

    def plan(self, group: Transaction) -> int:
        """See ``WriteRequest.plan``."""
        return group.adopt(self)


class Publish(WriteRequest):
    """The end of building: the session is there; as ``record`` says, if it was adopted."""

    __slots__ = ("built", "record")

    def __init__(self, session: str, built: Built, record: SessionRecord | None = None) -> None:
        super().__init__(session)
        self.session: str = session
        self.built, self.record = built, record

    def plan(self, group: Transaction) -> None:
        """See ``WriteRequest.plan``."""
        group.publish(self)


class Discard(WriteRequest):
    """What was built and is not to be; nothing, once it has been published."""

    __slots__ = ("hidden",)

    def __init__(self, hidden: str) -> None:
        super().__init__(None)
        self.hidden = hidden

    def plan(self, group: Transaction) -> None:
        """See ``WriteRequest.plan``."""
        group.discard(self.hidden)


class Thin(WriteRequest):
    """Packs that are to say in one delta what theirs say."""

    __slots__ = ("after", "limit")

    def __init__(self, session: str, after: Offset, limit: int) -> None:
        super().__init__(session)
        self.session: str = session
        self.after, self.limit = after, limit

    def plan(self, group: Transaction) -> Thinning:
        """See ``WriteRequest.plan``."""
        return group.thin(self)


class Inform(WriteRequest):
    """A look at a session, which is kept with those of its group. It changes nothing, so it fails with nobody."""

    __slots__ = ()

    def __init__(self, session: str) -> None:
        super().__init__(session)
        self.session: str = session

    def plan(self, group: Transaction) -> Look | None:
        """See ``WriteRequest.plan``."""
        return group.look(self.session)


class Acquire(WriteRequest):
    """A lease that is wanted."""

    __slots__ = ("take",)

    def __init__(self, session: str, take: Take) -> None:
        super().__init__(session)
        self.session: str = session
        self.take = take

    def plan(self, group: Transaction) -> Lease:
        """See ``WriteRequest.plan``."""
        return group.acquire(self.session, self.take)


class Claim(WriteRequest):
    """Runs that nobody holds, to be taken."""

    __slots__ = ("limit", "owner", "ttl")

    def __init__(self, owner: str, ttl: float, limit: int) -> None:
        super().__init__(None)
        self.owner, self.ttl, self.limit = owner, ttl, limit

    def plan(self, group: Transaction) -> list[Lease]:
        """See ``WriteRequest.plan``."""
        return group.claim(self)


class Renew(WriteRequest):
    """All leases of an owner, to be extended."""

    __slots__ = ("owner", "ttl")

    def __init__(self, owner: str, ttl: float) -> None:
        super().__init__(None)
        self.owner, self.ttl = owner, ttl

    def plan(self, group: Transaction) -> None:
        """See ``WriteRequest.plan``."""
        group.renew(self)


class Release(WriteRequest):
    """A lease that is given back."""

    __slots__ = ("lease",)

    def __init__(self, lease: Lease) -> None:
        super().__init__(lease.session)
        self.lease = lease

    def plan(self, group: Transaction) -> None:
        """See ``WriteRequest.plan``."""
        group.release(self.lease)


def _check(fact: AnyFact, json: bytes) -> None:
    if fact.open:  # as deltas are not
        check_text(fact.type, fact.owner if isinstance(fact, SessionCreated) else None)
    if len(json) > MAX_DATA_BYTES:
        raise TooLarge(f"The data of {fact.type} is beyond {MAX_DATA_BYTES} bytes.", limit=MAX_DATA_BYTES)


class Transaction:
    """The requests of one transaction: what they change, as rows for the view ``change``.

    Attributes:
        touched: the sessions that they change or ask for; what those look like at the end is for everybody to know.
        deletes: whether something is gone with it.
    """

    def __init__(self, memory: Known, connection: apsw.Connection, now: float, path: str) -> None:
        self.touched: dict[str, KnownSession] = {}
        self.deletes = False
        self._memory = memory
        self._connection = connection
        self._now = now
        self._at = 0  # when the last append was, in microseconds
        self._path = path
        self._rows: list[object] = []
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
            known = memory.sessions[name] = KnownSession(memory.next_id, before, begun, at, at, size)
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
        known = self._memory.sessions[request.session] = KnownSession(id, bare, begun, created_at, at, size)
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

    def _move(self, known: KnownSession, state: SessionState) -> None:
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

    def _before(self, name: str, session: KnownSession, once: str) -> list[Event] | None:
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
