"""Requests of many sessions that are decided together, on rows that are locked, for stores with a row for each session.

It knows the rules of appending (``legato.machine`` has them) and no database: the store locks the rows and reads them,
``RowGroup.decide`` says what becomes of them, and the store writes that, all or nothing. The one rule that must hold: a
request that is refused leaves no trace, and nothing in here is changed by a group that could not be written.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from ..check import check_text
from ..doorbell import Bell
from ..errors import LegatoError, RunEnded, StoreBusy, StoreError, StoreFull
from ..event import AnyFact, Draft, Event, Offset, SessionCreated, read_stored, settle
from ..figures import StoreFigures
from ..log import MICRO, Appended, Storing, Take, created, moment, tell_trouble
from ..machine import Lease, OpenRun, RunState, SessionState, check_head, free, leased, moved, released, renewed
from .neighbours import Neighbours

GROUP_REQUESTS = 1_000
"""Requests in one group at most."""
PATIENCE = 2.0
"""Seconds for which what is to be stored waits for a database that is away; then it is refused, and what comes after it
at once."""
PACE_ABOVE = 4
"""With so many requests in a group, several sessions are busy, and groups are paced."""
PACE_SECONDS = 0.005
"""Seconds between the beginnings of paced groups, so that more share a transaction, and a message to other processes.
Nobody waits for that when all sessions of the last group have come back, nor what does not come from a run."""
WHOLE = 2
"""Sessions that find the database locked, or full, one after another, before that is taken for the case of all."""
IDLE_SECONDS = 1.0
"""Seconds between two looks whether the database is there, while nothing is stored."""
KNOWN_RUNS = 10_000
"""Sessions whose open runs are not decoded anew as long as they stay the same."""

_json = msgspec.json.Encoder()
_runs = msgspec.json.Decoder(list[tuple[str, int, RunState, str | None, int, float]])
_eras = msgspec.json.Decoder(list[tuple[int, int]])


class RowRequest(Storing):
    """What is asked of a group. ``plan`` is called when the rows are locked: it gives what the caller gets, and notes
    the change in the group.

    Args:
        session: whose row is to be locked; None: those that ``lock`` says.
        plan: may raise.
        lock: the store's own word for other rows than that of one session. Such a request is a group by itself.

    Attributes:
        once: see ``Store.append``.
        begins: the session is to begin with it.
        outside: it does not come from a run.
        stored: the events that were new.
        free: whether somebody may take a run of the session now.
    """

    __slots__ = ("begins", "free", "lock", "once", "outside", "plan", "session", "stored")

    def __init__(
        self, session: str | None, plan: Callable[[RowGroup, RowRequest], Any], lock: tuple[Any, ...] | None = None
    ) -> None:
        super().__init__()
        self.session, self.plan, self.lock = session, plan, lock
        self.once: str | None = None
        self.begins = self.free = False
        self.outside = True
        self.stored: list[Event] = []


class SharedRow:
    """A session's row, locked, and what becomes of it.

    Attributes:
        id: the database's.
        owner: of a session that begins; else None.
        updated_at, waits: when it was last written to but for deltas, and since when the first of its open runs is the
            first; microseconds.
        era, eras: which era of the database has written last, and which have from which offset on, as JSON.
        touched: it is changed; ``moved``: in more than its head.
    """

    __slots__ = ("era", "eras", "id", "moved", "owner", "state", "touched", "updated_at", "waits")

    def __init__(self, id: int, state: SessionState, updated_at: int, waits: int | None, era: int, eras: str) -> None:
        self.id, self.state, self.updated_at, self.waits = id, state, updated_at, waits
        self.era, self.eras = era, eras
        self.owner: str | None = None
        self.touched = self.moved = False

    @property
    def first(self) -> OpenRun | None:
        """The first of its open runs."""
        return next(iter(self.state.runs.values()), None)


class RowGroup:
    """Requests that are decided together.

    Attributes:
        rows: by session, as they will be.
        events: the new ones, each with the id of its row, in order.
        keys: once keys: row, key, first and last offset.
        gone: ids of rows whose earlier events and keys go.
        last: the time of the last append, in microseconds.
        sent: the change has been handed to the database, so that it may have been committed.
    """

    def __init__(self, requests: Sequence[RowRequest]) -> None:
        self.requests = requests
        self.sent = False

    def decide(
        self,
        rows: Mapping[str, SharedRow],
        used: Mapping[tuple[str, str], list[Event]],
        *,
        now: int,
        last: int,
        era: int,
    ) -> None:
        """Decide each request, in order. May be done again, with newer rows.

        Args:
            rows: those that are locked, by session.
            used: what was stored under the keys of the requests, by session and key.
            now, last: the time, and that of the append before, in microseconds.
            era: the present one of the database.
        """
        self.rows, self.last = rows, last
        self.events: list[tuple[int, Event]] = []
        self.keys: list[tuple[int, str, Offset, Offset]] = []
        self.gone: list[int] = []
        self._now, self._era = now / MICRO, era
        self._used = dict(used)
        for request in self.requests:
            request.stored, request.outcome, request.error = [], None, None
            try:
                request.outcome = request.plan(self, request)
            except (LegatoError, ValueError) as exc:
                request.error = exc

    def append(
        self,
        request: RowRequest,
        drafts: Sequence[Draft],
        settled: Sequence[tuple[AnyFact, bytes]],
        lease: Lease | None,
        head: Offset | None,
        take: Take | None,
    ) -> Appended:
        """The events as they will be stored."""
        name, once = request.session or "", request.once
        row = self.rows.get(name)
        before = SessionState(name) if row is None else row.state
        if once is not None and before.exists and (again := self._used.get((name, once))) is not None:
            return Appended(again, repeated=True)
        state = moved(before, drafts, lease=lease)
        if head is not None:
            check_head(before, head)
        if take is not None:
            state = self._leased(state, take)
        # From here on nothing can be refused.
        assert row is not None, "what is to begin has been given a row"
        self.last = at = moment(self._now, max(self.last, row.updated_at))
        if self._era != row.era:
            row.eras = _json.encode([*read_eras(row.eras), (self._era, before.head + 1)]).decode()
            row.era, row.moved = self._era, True
        seconds, offset = at / MICRO, before.head
        for draft, (fact, json) in zip(drafts, settled, strict=True):
            offset += 1
            request.stored.append(Event(fact, offset, seconds, draft.run, json))
        if state.deleted:
            self.events = [each for each in self.events if each[0] != row.id]
            self.keys = [each for each in self.keys if each[0] != row.id]
            self.gone.append(row.id)
        elif once is not None:
            self.keys.append((row.id, once, before.head + 1, state.head))
            self._used[name, once] = request.stored
        self.events += [(row.id, event) for event in (request.stored[-1:] if state.deleted else request.stored)]
        if state.whole > before.whole:
            row.updated_at, row.moved = at, True
            if next(iter(state.runs), None) != next(iter(before.runs), None):
                row.waits = at if state.runs else None
            request.free = free(state.runs, self._now) is not None
        if before.head == 0:
            row.owner = created(settled[0][0]).owner or ""
        self._move(row, state)
        return Appended(request.stored, lease=None if take is None else state.runs[take.run].lease())

    def lease(self, session: str, take: Take) -> Lease:
        """The lease as it will be stored."""
        row = self.rows.get(session)
        if row is None:
            raise RunEnded(f"Run {take.run!r} is not open.", run=take.run)
        self._move(row, self._leased(row.state, take))
        return row.state.runs[take.run].lease()

    def claim(self, owner: str, ttl: float) -> list[Lease]:
        """Leases of the first runs of all rows, which nobody holds."""
        firsts = [(name, row.first) for name, row in self.rows.items()]
        return [self.lease(name, Take(first.run, owner, ttl)) for name, first in firsts if first is not None]

    def renew(self, owner: str, ttl: float) -> None:
        """Extend the leases of an owner."""
        for row in self.rows.values():
            self._move(row, renewed(row.state, owner=owner, until=self._until(ttl)))

    def release(self, *leases: Lease) -> None:
        """Give leases back."""
        for lease in leases:
            if (row := self.rows.get(lease.session)) is not None:
                self._move(row, released(row.state, lease))

    def _until(self, ttl: float) -> float:
        return round(self._now * MICRO + ttl * MICRO) / MICRO

    def _leased(self, state: SessionState, take: Take) -> SessionState:
        return leased(state, take.run, owner=take.owner, now=self._now, until=self._until(take.ttl))

    def _move(self, row: SharedRow, state: SessionState) -> None:
        row.touched, row.moved = True, row.moved or row.state.runs is not state.runs
        row.state = state


class KnownRuns:
    """The open runs of sessions as texts, and as they were read or written last."""

    def __init__(self) -> None:
        self._known: OrderedDict[str, tuple[str, Mapping[str, OpenRun]]] = OrderedDict()

    def read(self, session: str, text: str) -> Mapping[str, OpenRun]:
        """The open runs that stand in a text."""
        if not text:
            return {}
        known = self._known.get(session)
        if known is None or known[0] != text:
            runs = {run[0]: OpenRun(session, *run) for run in _runs.decode(text)}
            known = self._keep(session, text, runs)
        return known[1]

    def write(self, state: SessionState) -> str:
        """The open runs of a session as a text."""
        if not state.runs:
            return ""
        runs = [(run.run, run.offset, run.state, run.owner, run.epoch, run.expires_at) for run in state.runs.values()]
        return self._keep(state.session, _json.encode(runs).decode(), state.runs)[0]

    def _keep(self, session: str, text: str, runs: Mapping[str, OpenRun]) -> tuple[str, Mapping[str, OpenRun]]:
        self._known[session] = known = text, runs
        if len(self._known) > KNOWN_RUNS:
            self._known.popitem(last=False)
        return known


def read_eras(text: str) -> list[tuple[int, Offset]]:
    """Which eras of the database have written to a session, and from which offset on."""
    return _eras.decode(text) if text else []


def asks_to_append(
    session: str,
    drafts: Sequence[Draft],
    *,
    lease: Lease | None,
    once: str | None,
    head: Offset | None,
    take: Take | None,
) -> RowRequest:
    """An append, as a request.

    Raises:
        InvalidInput: a draft cannot be stored.
    """
    drafts = list(drafts)
    run = drafts[0].run if drafts else None
    check_text(session, once, run, *(take or ())[:2])
    settled: list[tuple[AnyFact, bytes]] = []
    for draft in drafts:
        if draft.run is not run:
            check_text(run := draft.run)
        fact, json = (draft.fact, draft.json) if draft.json else settle(draft.fact)
        if fact.open:
            check_text(fact.type, fact.owner if isinstance(fact, SessionCreated) else None)
        settled.append((fact, json))
    request = RowRequest(session, lambda group, request: group.append(request, drafts, settled, lease, head, take))
    request.once, request.outside = once, lease is None
    request.begins = bool(drafts) and drafts[0].fact.type == "session.created"
    return request


def read_event(session: str, type: str, json: bytes, offset: Offset, at: int, run: str | None) -> Event:
    """An event as it is stored, at a time in microseconds. One that cannot be read is shown as damaged."""
    fact, json = read_stored(session, offset, type, json)
    return Event(fact, offset, at / MICRO, run, json)


class GroupWriter:
    """Makes groups of what is asked and has them written, one after another.

    Args:
        transact: writes a group, all or nothing; may raise. What it raises for a group of many it is asked again for
            each of them, so that what cannot be stored harms nobody else.
        idle: called once a second while nothing is asked, with why nothing could be written the last time; raises if
            nothing could be written.
        error: what to tell of what these have raised.
        neighbours: are told what has been stored.

    Attributes:
        over: nothing more will be asked.
    """

    def __init__(
        self,
        transact: Callable[[RowGroup], Awaitable[None]],
        idle: Callable[[StoreError | None], Awaitable[None]],
        error: Callable[[Exception], StoreError],
        neighbours: Neighbours,
    ) -> None:
        self.over = False
        self.figures = StoreFigures()
        self._transact, self._idle, self._error, self._neighbours = transact, idle, error, neighbours
        self._waiting: list[RowRequest] = []
        self._awaited: set[str | None] = set()  # sessions of the last group, of which nothing has come since
        self._begun_at = 0.0  # when that group was begun
        self._bell = Bell()
        self._trouble: StoreError | None = None
        self._troubled_at = 0.0

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now; what lasts for less than ``PATIENCE`` is none."""
        return self._trouble if self._trouble and time.monotonic() > self._troubled_at + PATIENCE else None

    def note(self, exc: Exception | None, *, room: bool = True) -> None:
        """Nothing can be written, since that was raised; or it can again. What did not need ``room`` says nothing of a
        disk that was full."""
        if exc is None and not room and isinstance(self._trouble, StoreFull):
            return
        before, self._trouble = self._trouble, None if exc is None else self._error(exc)
        if self._trouble is None and before is not None:
            tell_trouble(None)
        elif self._trouble is not None and before is None:
            self._troubled_at = time.monotonic()
            tell_trouble(self._trouble)

    def refuse(self) -> None:
        """If there is trouble, tell who waits, while a group that may have been written is held."""
        if (trouble := self.trouble) is not None:
            waiting, self._waiting = self._waiting, []
            for request in waiting:
                request.error = type(trouble)(trouble.message, **trouble.detail)
            self._settle(waiting)

    def submit(self, request: RowRequest) -> RowRequest:
        """Hand over a request.

        Raises:
            StoreError: see ``trouble``.
        """
        if (trouble := self.trouble) is not None:
            raise type(trouble)(trouble.message, **trouble.detail)
        self._waiting.append(request)
        self._awaited.discard(request.session)
        if request.outside:
            self._awaited.clear()
        if len(self._waiting) == 1 or not self._awaited:
            self._bell.ring()
        return request

    def _pause(self) -> float:
        """Seconds until the next group begins, unless something comes before."""
        if self.over or (self._waiting and not self._awaited):
            return 0.0
        return IDLE_SECONDS if not self._waiting else max(self._begun_at + PACE_SECONDS - time.monotonic(), 0.0)

    def end(self) -> None:
        """Write what has been asked, and end."""
        self.over = True
        self._bell.ring()

    async def run(self) -> None:
        """Write, until the end."""
        while True:
            self._bell.clear()
            if (pause := self._pause()) > 0 and await self._bell.wait(pause):
                continue
            self._begun_at = time.monotonic()
            requests, self._waiting = self._waiting[:GROUP_REQUESTS], self._waiting[GROUP_REQUESTS:]
            self._awaited = {each.session for each in requests} if len(requests) >= PACE_ABOVE else set()
            if together := [request for request in requests if request.lock is None]:
                await self._write(together)
            for request in requests:
                if request.lock is not None:
                    await self._write([request])
            if not requests:
                if self.over:
                    self._bell.close()
                    return
                try:
                    await self._idle(self._trouble)
                    self.note(None)
                except Exception as exc:
                    self.note(exc)

    async def _write(self, requests: Sequence[RowRequest]) -> None:
        began = time.monotonic()
        try:
            await self._transact(RowGroup(requests))
            self.figures.committed(len(requests), time.monotonic() - began)
        except Exception as exc:  # whatever it is, the other sessions go on
            self.figures.failed += 1
            if len(requests) > 1 and self._trouble is None:
                await self._write_alone(requests)
                return
            if isinstance(self._error(exc), StoreFull):
                self.note(exc)  # a disk is everybody's
            self._fail(requests, exc)
        for request in requests:
            if request.stored and request.session is not None:
                self._neighbours.stored(request.session, request.stored, outside=request.outside)
        self._settle(requests)
        if any(request.free for request in requests):
            self._neighbours.ring_work()

    async def _write_alone(self, requests: Sequence[RowRequest]) -> None:
        """Each by itself; but if one session after another finds the database locked, or full, it is all of them."""
        failed: dict[str | None, StoreError] = {}
        for place, request in enumerate(requests):
            await self._write([request])
            if not isinstance(error := request.error, StoreBusy | StoreFull):
                failed = {}
                continue
            failed[request.session] = error
            if len(failed) == WHOLE and (left := requests[place + 1 :]):
                self.note(error)
                self._fail(left, error)
                self._settle(left)
                return

    def _fail(self, requests: Sequence[RowRequest], exc: Exception) -> None:
        for request in requests:
            request.error, request.outcome, request.stored = self._error(exc), None, []
            request.error.__cause__ = exc

    def _settle(self, requests: Sequence[RowRequest]) -> None:
        for request in requests:
            request.settle()
