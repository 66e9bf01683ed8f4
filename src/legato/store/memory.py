"""The memory store: the reference implementation, for tests and for reading. Nothing survives the process.

Every rule of ``legato.log.Store`` is here in its plainest form. There is one lock-free fact to know: between two
``await``s nothing else runs on the loop, and no method awaits anything before it is done.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import msgspec

from ..errors import SessionExists, SessionNotFound
from ..event import DELTAS, TERMINAL, Draft, Event, Offset
from ..log import (
    MICRO,
    READ_LIMIT,
    Appended,
    Doorbell,
    Lease,
    OpenRun,
    SessionInfo,
    Store,
    check_drafts,
    check_head,
    lease_target,
    moment,
)


class _Session:
    """One session: its events, and what is derived from them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.first = 1  # offset of events[0]; more than 1 only after deletion
        self.deleted = False
        self.open_runs: dict[str, OpenRun] = {}
        self.once: dict[str, tuple[Offset, Offset]] = {}
        self.updated_at = 0.0

    @property
    def head(self) -> Offset:
        return self.first + len(self.events) - 1


class MemoryStore:
    """Logs in this process's memory.

    Args:
        clock: gives the time, seconds since the epoch.
    """

    def __init__(self, *, clock: Callable[[], float] = time.time) -> None:
        self.doorbell = Doorbell()
        self._clock = clock
        self._sessions: dict[str, _Session] = {}
        self._last_at = 0  # microseconds

    async def open(self) -> None:
        """Forget the leases of an earlier life, as a store for one process does."""
        for session in self._sessions.values():
            for run in session.open_runs.values():
                session.open_runs[run.run] = msgspec.structs.replace(run, owner=None, expires_at=0.0)

    async def close(self) -> None:
        """Nothing to let go."""

    async def append(
        self,
        session: str,
        drafts: Sequence[Draft],
        *,
        lease: Lease | None = None,
        once: str | None = None,
        head: Offset | None = None,
    ) -> Appended:
        """See ``Store.append``."""
        log = self._sessions.get(session)
        if log is not None and log.deleted:
            if drafts and drafts[0].type == "session.created":
                raise SessionExists(f"Session {session!r} existed and was deleted.", session=session)
            raise SessionNotFound(session)
        if log is not None and once is not None and once in log.once:
            first, last = log.once[once]
            return Appended(log.events[first - log.first : last - log.first + 1], repeated=True)
        check_drafts(
            drafts, exists=log is not None, open_runs=log.open_runs if log else {}, session=session, lease=lease
        )
        check_head(session, log.head if log else 0, head)
        if log is None:
            log = self._sessions[session] = _Session()
        self._last_at = moment(self._clock(), self._last_at)
        at = self._last_at / MICRO
        events = [
            Event(type=draft.type, data=draft.data, offset=log.head + number, at=at, run=draft.run)
            for number, draft in enumerate(drafts, 1)
        ]
        if once is not None:
            log.once[once] = (events[0].offset, events[-1].offset)
        log.events += events
        for event in events:
            self._derive(session, log, event)
        self.doorbell.ring(session, outside=lease is None)
        return Appended(events)

    def _derive(self, session: str, log: _Session, event: Event) -> None:
        if event.type not in DELTAS:
            log.updated_at = event.at
        if event.type == "session.deleted":
            log.events, log.first, log.deleted = [event], event.offset, True
            log.open_runs, log.once = {}, {}
        elif event.run is None:
            return
        elif event.type == "message.created":
            log.open_runs[event.run] = OpenRun(session=session, run=event.run, offset=event.offset)
        elif event.type == "run.started":
            log.open_runs[event.run] = msgspec.structs.replace(log.open_runs[event.run], started=True)
        elif event.type in TERMINAL:
            del log.open_runs[event.run]

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """See ``Store.read``."""
        log = self._sessions.get(session)
        if log is None:
            return []
        start = max(after + 1 - log.first, 0)
        if deltas:
            return log.events[start : start + limit]
        return [event for event in log.events[start:] if event.type not in DELTAS][:limit]

    async def info(self, session: str) -> SessionInfo:
        """See ``Store.info``."""
        log = self._sessions.get(session)
        if log is None or log.deleted:
            raise SessionNotFound(session)
        return SessionInfo(
            session=session,
            head=log.head,
            created_at=log.events[0].at,
            updated_at=log.updated_at,
            data=log.events[0].data,
            open_runs=list(log.open_runs.values()),
        )

    async def sessions(self, *, limit: int = 100, before: float | None = None) -> list[SessionInfo]:
        """See ``Store.sessions``."""
        infos = [await self.info(session) for session, log in self._sessions.items() if not log.deleted]
        infos = [info for info in infos if before is None or round(info.updated_at * MICRO) < round(before * MICRO)]
        infos.sort(key=lambda info: info.updated_at, reverse=True)
        return infos[:limit]

    async def open_runs(self) -> list[OpenRun]:
        """See ``Leaser.open_runs``."""
        return [run for log in self._sessions.values() for run in log.open_runs.values()]

    async def acquire(self, session: str, run: str, *, owner: str, ttl: float) -> Lease:
        """See ``Leaser.acquire``."""
        log = self._sessions.get(session)
        runs = log.open_runs if log else {}
        current = lease_target(runs, run, owner=owner, now=self._clock())
        taken = msgspec.structs.replace(current, owner=owner, epoch=current.epoch + 1, expires_at=self._clock() + ttl)
        runs[run] = taken
        return Lease(session=session, run=run, owner=owner, epoch=taken.epoch, expires_at=taken.expires_at)

    async def renew(self, *, owner: str, ttl: float) -> None:
        """See ``Leaser.renew``."""
        until = self._clock() + ttl
        for log in self._sessions.values():
            for run in list(log.open_runs.values()):
                if run.owner == owner:
                    log.open_runs[run.run] = msgspec.structs.replace(run, expires_at=until)


_: type[Store] = MemoryStore
