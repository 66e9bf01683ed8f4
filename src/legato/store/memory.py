"""The memory store: the reference implementation, for tests and for reading. Nothing survives the process.

Every rule of ``legato.log.Store`` is here in its plainest form. There is one lock-free fact to know: between two
``await``s nothing else runs on the loop, and no method awaits anything before it is done.
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence

from ..doorbell import Doorbell
from ..errors import CursorInvalid, SessionExists, SessionNotFound
from ..event import Draft, Event, Offset, settle
from ..log import (
    MICRO,
    READ_LIMIT,
    Adoption,
    Appended,
    Portable,
    SessionInfo,
    SessionPage,
    SessionRecord,
    Storing,
    Take,
    Thinning,
    created,
    moment,
)
from ..machine import Lease, OpenRun, SessionState, check_head, free, leased, moved, released, renewed
from ..thin import thinned


class _Log:
    """One session: its events, and what is derived from them."""

    def __init__(self, session: str) -> None:
        self.state = SessionState(session)
        self.events: list[Event] = []
        self.once: dict[str, tuple[Offset, Offset]] = {}
        self.updated_at = 0.0
        self.waits_since = 0  # when the first of its open runs became the first, in microseconds

    @property
    def first(self) -> Offset:
        return self.state.head - len(self.events) + 1  # more than 1 only after deletion

    def between(self, first: Offset, last: Offset) -> list[Event]:
        return self.events[first - self.first : last - self.first + 1]


class MemoryStore:
    """Logs in this process's memory.

    Args:
        clock: gives the time, seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.doorbell = Doorbell()
        self._clock = clock
        self._logs: dict[str, _Log] = {}
        self._last_at = 0  # microseconds
        self._tallies: dict[str, tuple[float, dict[str, int]]] = {}
        self.incarnation = secrets.token_urlsafe(9)

    async def open(self) -> None:
        """Forget the leases of an earlier life, as a store for one process does."""
        for log in self._logs.values():
            for run in log.state.runs.values():
                log.state = released(log.state, run.lease())

    async def close(self) -> None:
        """Nothing is held; the logs stay."""

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
        """See ``Store.append``. It is over at once, and has all errors too."""
        try:
            return Storing(self._append(session, drafts, lease, once, head, take), over=True)
        except Exception as exc:
            return Storing(error=exc, over=True)

    def _append(
        self,
        session: str,
        drafts: Sequence[Draft],
        lease: Lease | None,
        once: str | None,
        head: Offset | None,
        take: Take | None,
    ) -> Appended:
        log = self._logs.get(session) or _Log(session)
        if once is not None and once in log.once:
            return Appended(log.between(*log.once[once]), repeated=True)
        state = moved(log.state, drafts, lease=lease)
        if head is not None:
            check_head(log.state, head)
        if take is not None:
            now = self._clock()
            state = leased(state, take.run, owner=take.owner, now=now, until=now + take.ttl)
        stored_at = moment(self._clock(), self._last_at)
        at, offset = stored_at / MICRO, log.state.head
        events = []
        for draft in drafts:
            # What holds nothing of others needs no copy, and its JSON is made when somebody asks for it.
            fact, json = settle(draft.fact) if draft.fact.open and not draft.json else (draft.fact, draft.json)
            offset += 1
            events.append(Event(fact, offset, at, draft.run, json))
        # From here on nothing can be refused.
        self._last_at = stored_at
        if once is not None:
            log.once[once] = (events[0].offset, events[-1].offset)
        told = state.whole > log.state.whole  # not deltas alone, which move nothing
        if told:
            log.updated_at = at
            if next(iter(state.runs), None) != next(iter(log.state.runs), None):
                log.waits_since = self._last_at
        log.state = state
        log.events += events
        if state.deleted:
            log.events, log.once = events[-1:], {}
        self._logs[session] = log
        self.doorbell.ring(session, outside=lease is None)
        if told and free(state.runs, self._clock()) is not None:
            self.doorbell.ring_work()
        return Appended(events, lease=None if take is None else state.runs[take.run].lease())

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """See ``Store.read``."""
        return self.peek(session, after, limit=limit, deltas=deltas)

    def peek(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """As ``read``: everything is at hand."""
        log = self._logs.get(session)
        if log is None:
            return []
        start = max(after + 1 - log.first, 0)
        if deltas:
            return log.events[start : start + limit]
        later = (log.events[place] for place in range(start, len(log.events)))
        return list(itertools.islice((event for event in later if not event.fact.delta), limit))

    async def holds(self, incarnation: str, session: str, offset: Offset) -> bool:
        """See ``Store``: nothing outlives this object."""
        return incarnation == self.incarnation

    async def thin(self, session: str, after: Offset, limit: int) -> Thinning:
        """See ``Store``."""
        log = self._logs.get(session)
        if log is None or log.state.deleted:
            return Thinning(0, None)
        end = min((run.offset - 1 for run in log.state.runs.values()), default=log.state.head)
        last = min(after + limit, end)
        before = log.between(after + 1, last)
        now = thinned(before)
        log.events[after : after + len(now)] = now
        changed = sum(one is not two for one, two in zip(before, now, strict=True))
        return Thinning(changed, last if last < end else None)

    async def info(self, session: str) -> SessionInfo:
        """See ``Store.info``."""
        log = self._logs.get(session)
        if log is None or log.state.deleted:
            raise SessionNotFound(session)
        return SessionInfo(
            session=session,
            head=log.state.head,
            created_at=log.events[0].at,
            updated_at=log.updated_at,
            created=created(log.events[0].fact),
            open_runs=list(log.state.runs.values()),
        )

    async def sessions(self, *, limit: int = 100, after: str | None = None, owner: str | None = None) -> SessionPage:
        """See ``Store.sessions``."""
        if after is not None and not (after.isascii() and after.isdigit()):
            raise CursorInvalid(f"The next page is named by the page before, got {after[:60]!r}.")
        infos = [await self.info(session) for session, log in self._logs.items() if not log.state.deleted]
        infos = [
            info
            for info in infos
            if owner in (None, info.owner) and (after is None or round(info.updated_at * MICRO) < int(after))
        ]
        infos.sort(key=lambda info: info.updated_at, reverse=True)
        more = 0 < limit < len(infos)
        return SessionPage(infos[:limit], str(round(infos[limit - 1].updated_at * MICRO)) if more else None)

    async def open_runs(self, *, limit: int = READ_LIMIT) -> list[OpenRun]:
        """See ``Leaser.open_runs``."""
        return [run for log in self._logs.values() for run in log.state.runs.values()][:limit]

    async def acquire(self, session: str, run: str, *, owner: str, ttl: float) -> Lease:
        """See ``Leaser.acquire``."""
        log = self._logs.get(session) or _Log(session)
        now = self._clock()
        log.state = leased(log.state, run, owner=owner, now=now, until=now + ttl)
        return log.state.runs[run].lease()

    async def claim(self, *, owner: str, ttl: float, limit: int) -> list[Lease]:
        """See ``Leaser.claim``."""
        waiting = sorted(self._free(), key=lambda pair: pair[0])
        return [await self.acquire(run.session, run.run, owner=owner, ttl=ttl) for _, run in waiting[:limit]]

    def _free(self) -> Iterator[tuple[int, OpenRun]]:
        for log in self._logs.values():
            if (run := free(log.state.runs, self._clock())) is not None:
                yield log.waits_since, run

    async def renew(self, *, owner: str, ttl: float) -> None:
        """See ``Leaser.renew``."""
        for log in self._logs.values():
            log.state = renewed(log.state, owner=owner, until=self._clock() + ttl)

    async def release(self, lease: Lease) -> None:
        """See ``Leaser.release``."""
        log = self._logs.get(lease.session)
        if log is not None:
            log.state = released(log.state, lease)
            self.doorbell.ring_work()

    async def tally(self, node: str, counts: Mapping[str, int], ttl: float) -> dict[str, int]:
        """See ``Store``."""
        now = self._clock()
        self._tallies[node] = now + ttl, dict(counts)
        self._tallies = {name: told for name, told in self._tallies.items() if told[0] > now}
        others: Counter[str] = Counter()
        for name, (_, told) in self._tallies.items():
            if name != node:
                others.update(told)
        return others

    async def records(self) -> AsyncIterator[SessionRecord]:
        """See ``Portable.records``."""
        for session, log in list(self._logs.items()):
            yield self._record(session, log)

    async def record(self, session: str) -> SessionRecord | None:
        """See ``Portable.record``."""
        log = self._logs.get(session)
        return None if log is None else self._record(session, log)

    def _record(self, session: str, log: _Log) -> SessionRecord:
        epochs = {run.run: run.epoch for run in log.state.runs.values()}
        return SessionRecord(session, log.state.head, log.updated_at, {**log.once}, epochs)

    async def adopt(self, record: SessionRecord, pages: AsyncIterator[Sequence[Event]]) -> None:
        """See ``Portable.adopt``."""
        session = record.session
        adoption, log = Adoption(record), _Log(session)
        async for events in pages:
            adoption.add(events)
            log.events += [Event(event.fact, event.offset, event.at, event.run, event.json) for event in events]
        log.state = adoption.end()
        if session in self._logs:
            raise SessionExists(f"Session {session!r} is there already, or was deleted.", session=session)
        log.once, log.updated_at = {**record.once}, record.updated_at
        if log.state.runs:
            first = next(iter(log.state.runs.values()))
            log.waits_since = round(log.between(first.offset, first.offset)[0].at * MICRO)
        self._logs[session] = log
        self._last_at = max(self._last_at, round(record.updated_at * MICRO))
        self.doorbell.ring(session)
        if log.state.runs:
            self.doorbell.ring_work()


_: type[Portable] = MemoryStore
