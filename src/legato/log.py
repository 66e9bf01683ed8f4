"""The log: one session's ordered events, how they are appended, read and followed.

This module knows how reading follows writing; it does not know where events live (``Store``) or what they look like
on a wire (dialects). A subscriber is a cursor on the log: nobody pushes events to it. Appending stores events and
rings a ``Doorbell`` that carries no data; a ``Subscription`` reads after its offset, and only when that read was empty
does it wait for the bell. Live, replay, resume and the slow reader differ in one integer.

The one rule that must hold: *clear the bell, then read, then wait*. Clearing after the read would lose a ring that
fell between the two. A lost ring costs at most one heartbeat, never an event.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import msgspec

from .doorbell import Bell, Doorbell, Listener
from .errors import InvalidInput, LegatoError, SessionExists, SessionNotFound, StoreError
from .event import AnyFact, Draft, Event, Offset, SessionCreated
from .machine import Lease, OpenRun, SessionState, moved

logger = logging.getLogger("legato")

RESERVED = ".legato"
"""Whose the sessions are in which the server keeps what is its own. No dialect can name one: it begins with a dot."""


READ_LIMIT = 500
"""Events in one read: enough to amortise a query, small enough that one read is no burden on the loop (about 1 ms)."""


class SessionInfo(msgspec.Struct, frozen=True):
    """What a store knows of a session without reading its log.

    Attributes:
        head: the offset of its last event.
        created_at, updated_at: seconds since the epoch, of its first event and of the last that is not a delta.
        created: what its first event says.
        open_runs: in the order of their messages; only the first can be leased.
    """

    session: str
    head: Offset
    created_at: float
    updated_at: float
    created: SessionCreated
    open_runs: list[OpenRun] = []

    @property
    def runs(self) -> dict[str, OpenRun]:
        """The open runs by their ids."""
        return {run.run: run for run in self.open_runs}

    @property
    def owner(self) -> str:
        """The subject of the caller whose it is; "" if it is nobody's in particular."""
        return self.created.owner or ""


class SessionPage(NamedTuple):
    """Some sessions, those last written to first.

    Attributes:
        infos: at most as many as were asked for.
        next: a token that leads to more; None if there are no more. Its form is the store's own.
    """

    infos: list[SessionInfo]
    next: str | None = None


class SessionRecord(msgspec.Struct, frozen=True):
    """What a store keeps of a session besides its events, in the form in which one store gives it to another.

    Attributes:
        head: the offset of its last event.
        updated_at: seconds since the epoch, as in ``SessionInfo``; of a deleted session, of its tombstone.
        once: by key, the offsets of the first and of the last event that were stored under it.
        epochs: of its open runs, by id, that of the last lease; the lease itself is nobody's any more.
    """

    session: str
    head: Offset
    updated_at: float
    once: dict[str, tuple[Offset, Offset]] = {}
    epochs: dict[str, int] = {}


class Thinning(NamedTuple):
    """What was done to make a log thin.

    Attributes:
        changed: how many events say something else now, or stand with others.
        after: from where to go on; None: that was the end.
    """

    changed: int
    after: Offset | None


class Take(NamedTuple):
    """The lease that an append takes along: the run is ``owner``'s for ``ttl`` seconds once it is stored."""

    run: str
    owner: str
    ttl: float


class Appended(msgspec.Struct, frozen=True, gc=False):
    """What an append stored, or had stored before (``repeated``) under the same ``once`` key.

    Attributes:
        lease: what it took along; None if it took nothing, or was repeated.
    """

    events: list[Event]
    repeated: bool = False
    lease: Lease | None = None


class Storing:
    """An append that is under way: to be awaited, or to call back when it is over, which takes no turn of the loop.

    Attributes:
        outcome: what it gave, once it is over.
        error: what it raised instead.
        over: whether it is over.
    """

    __slots__ = ("_then", "error", "outcome", "over")

    def __init__(self, outcome: Any = None, error: Exception | None = None, *, over: bool = False) -> None:
        self.outcome = outcome
        self.error = error
        self.over = over
        self._then: tuple[Callable[[Any], object], ...] = ()

    def settle(self) -> None:
        """It is over, as ``outcome`` and ``error`` say: tell who waits, each of them, whatever one of them raises."""
        self.over = True
        then, self._then = self._then, ()
        for callback in then:
            try:
                callback(self)
            except Exception:
                logger.exception("a call back failed")

    def done(self) -> bool:
        """As ``over``; this and the next ones are as those of a future."""
        return self.over

    def cancelled(self) -> bool:
        """Never: what has been handed over is stored, or refused."""
        return False

    def cancel(self) -> None:
        """Call nobody back."""
        self._then = ()

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call ``callback`` with this when it is over, at once if it is. It must raise nothing."""
        if self.over:
            callback(self)
        else:
            self._then += (callback,)

    def exception(self) -> Exception | None:
        """What it raised."""
        return self.error

    def result(self) -> Any:
        """What it gave, or raises."""
        if self.error is not None:
            raise self.error
        return self.outcome

    def __await__(self) -> Generator[Any, None, Any]:
        if not self.over:
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self.add_done_callback(functools.partial(_wake, waiter))
            yield from waiter
        return self.result()


def _wake(waiter: asyncio.Future[None], _: Storing) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Leaser(Protocol):
    """Decides who may append to a run. Times are seconds since the epoch of the store's clock.

    A lease is claimed when there is a place for its run, or taken together with what its owner appends first
    (``Take``), renewed while it runs, and given back by an owner who leaves the run to others.
    """

    async def acquire(self, session: str, run: str, *, owner: str, ttl: float) -> Lease:
        """Take this run, with the next epoch, for ``ttl`` seconds.

        Raises:
            LeaseHeld: another owner holds it and it has not expired, or an earlier run of the session is open.
            RunEnded: it is not open, or there is no such session.
        """
        ...

    async def claim(self, *, owner: str, ttl: float, limit: int) -> list[Lease]:
        """Take up to ``limit`` runs that nobody holds, each the first open one of its session, for ``ttl`` seconds.

        Those whose sessions have waited longest come first, as far as the store knows.
        """
        ...

    async def renew(self, *, owner: str, ttl: float) -> None:
        """Extend every lease that ``owner`` still holds to ``ttl`` seconds from now."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give a lease back, so that anybody may take its run at once. Does nothing if it is no longer the run's."""
        ...

    async def open_runs(self, *, limit: int = READ_LIMIT) -> list[OpenRun]:
        """Up to ``limit`` runs of all sessions that have no terminal event, oldest first in their session; for whoever
        looks on."""
        ...


class Store(Leaser, Protocol):
    """Where logs live. All stores pass ``legato.testing.check_store``; ``store/memory.py`` is the one to read first.

    Rules for every implementation:

    * An append is stored whole or not at all, and is durable (as far as the store promises) when the call returns.
      No reader sees an event before that.
    * If the caller of an append is cancelled meanwhile, the events are either stored and visible, or neither.
    * Offsets are dense from 1 in each session and never reused, deletion included.
    * ``session.created`` must be the first draft of a session's first append; a session that exists, or existed,
      raises ``SessionExists``.
    * ``message.created`` with a run opens that run; a terminal type closes it. Any draft of a run that is not open
      raises ``RunEnded``.
    * ``session.deleted`` must be the last draft; it becomes the only event of its session, keeps its offset, and
      closes all runs. Afterwards only ``read`` answers; all else raises ``SessionNotFound``.
    * ``machine.moved`` decides what may follow what.
    * After each append the doorbell rings, once per session; and for work, when a run may be free.

    A store that holds some events in memory may have ``peek``, too, which is no coroutine: what ``read`` would give,
    but never fewer than ``limit`` while there are more; or None, where that takes waiting. Readers at the head of a
    log cost less with it. One that can know without being asked that it cannot store anything for now may have
    ``trouble``, a property: the ``StoreError`` that says why, or None. The server is not ready as long as there is one.
    One that may be put back to what it was (from a backup) may have ``incarnation``, the name of its life, which
    changes with each opening; and ``holds(incarnation, session, offset)``, a coroutine: whether the event at that
    offset is the one that readers had from that incarnation. Readers send the name back with their cursors. If the
    incarnation changes while the store is open (a failover lost the end of some logs), it calls ``doorbell.forget``.
    One that can begin a session bit by bit, out of sight until it is whole, may have ``build``, see the function.
    One that several processes use may have ``tally(node, counts, ttl)``, a coroutine: it keeps what a node counts, by
    name, for ``ttl`` seconds, and gives what all others count now, added up. It need not be durable.
    One whose sessions can be taken to another store is ``Portable``.
    One that keeps deltas may have ``thin(session, after, limit)``, a coroutine: some ``limit`` events behind ``after``
    become what ``thin.thinned`` makes of stretches of them, as far as their runs have ended; or they are kept in less
    room, and lose no more than their times. It gives a ``Thinning``.
    One that takes away later what was deleted may have ``sweep()``, a coroutine that ends when that is done.
    """

    doorbell: Doorbell

    async def open(self) -> None:
        """Make ready. A store that only one process can use forgets the leases of earlier ones."""
        ...

    async def close(self) -> None:
        """Finish what was begun and let go. Idempotent."""
        ...

    def append(
        self,
        session: str,
        drafts: Sequence[Draft],
        *,
        lease: Lease | None = None,
        once: str | None = None,
        head: Offset | None = None,
        take: Take | None = None,
    ) -> Awaitable[Appended]:
        """Store ``drafts`` as the next events of ``session``. A coroutine will do; ``Storing`` needs no task.

        Args:
            session: its id.
            drafts: at least one.
            lease: of the run that the drafts belong to; without it they come from outside the run.
            once: a key, unique in the session: if it was used before, nothing is stored and the events stored then
                are returned, ``repeated``.
            head: the offset of the last event that the caller has seen. If there are later ones that are no deltas,
                nothing is stored.
            take: a lease that is taken in the same transaction. If it cannot be had, nothing is stored.

        Raises:
            SessionNotFound, SessionExists, RunEnded, IllegalTransition: see ``machine.moved``.
            HeadMoved: the log has grown beyond ``head``.
            LeaseHeld: see ``take``.
            StaleLease: the lease's epoch is not the run's.
            StoreError: it could not be stored. Nothing was, as far as the store knows: where an answer can be lost on
                its way, the log has the last word.
        """
        ...

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """The next events with an offset greater than ``after``, in order, at most ``limit``; fewer need not be all.

        With ``deltas=False`` the types in ``event.DELTAS`` are left out (history; cheap however long the log is).
        Empty when there are none, and for a session that never was.
        """
        ...

    async def info(self, session: str) -> SessionInfo:
        """What is known of the session.

        Raises:
            SessionNotFound: it never was, or it has been deleted.
        """
        ...

    async def sessions(self, *, limit: int = 100, after: str | None = None, owner: str | None = None) -> SessionPage:
        """Sessions by ``updated_at``, newest first.

        Args:
            limit: of them at most.
            after: ``next`` of the page before. Whatever is written to meanwhile may be on two pages, or on none.
            owner: only those of this subject (``SessionInfo.owner``); None: of all.

        Raises:
            CursorInvalid: ``after`` is not of the form of this store.
        """
        ...


class Portable(Store, Protocol):
    """A store that gives whole sessions, and takes them as they are (``legato migrate``).

    One whose server can have a copy of it, with its ``incarnation``, has ``whereabouts``: its place in that server.
    """

    def records(self) -> AsyncIterator[SessionRecord]:
        """What is known of each session that is there, or has been deleted: once each, in any order.

        Of those that come or go meanwhile, each may be among them or not.
        """
        ...

    async def record(self, session: str) -> SessionRecord | None:
        """What is known of this one, deleted or not; None if it never was."""
        ...

    async def adopt(self, record: SessionRecord, pages: AsyncIterator[Sequence[Event]]) -> None:
        """Take a session as another store had it: whole, or not at all, and durable when the call returns.

        Its events keep offset, time and JSON, its keys and epochs stay what they were. No run of it is held.

        Args:
            record: what that store says of it.
            pages: all its events in order, at least one in each; of a deleted session, its tombstone.

        Raises:
            SessionExists: it is there already, or has been.
            InvalidInput: they are not such a session: an event is missing, or cannot follow (see ``adopted``).
            StoreError: nothing was stored. Whatever ``pages`` raises, too.
        """
        ...


async def build(store: Store, session: str, pieces: AsyncIterator[Sequence[Draft]]) -> None:
    """Begin a session with what comes in pieces, however much that is: it is there whole, or not at all.

    Args:
        store: by its own ``build``, if it has one; else in one append.
        session: its id.
        pieces: in order, the first with ``session.created`` at its head; no drafts of runs, and no deltas.

    Raises:
        SessionExists, StoreError: nothing was stored. Whatever ``pieces`` raises, too.
    """
    own = getattr(store, "build", None)
    if own is not None:
        await own(session, pieces)
    else:
        await store.append(session, [draft async for piece in pieces for draft in piece])


class Subscription:
    """A cursor on a log that follows it. Its only state is ``after``, the offset of the last event it gave out.

    Use it as a context manager, and call ``next`` for batches of events, in order and without a gap. It never ends by
    itself; after ``session.deleted`` nothing more can come, and the caller leaves.

    Args:
        store, session: the log.
        after: where to begin; may lie beyond the head (then it waits).
        heartbeat: seconds of silence after which ``next`` returns an empty batch.
        limit: events in one batch at most.
        deltas: as in ``Store.read``.
        outside: wait only for appends made without a lease, see ``Doorbell``. What is read is the same.
    """

    def __init__(
        self,
        store: Store,
        session: str,
        after: Offset,
        *,
        heartbeat: float = 15.0,
        limit: int = READ_LIMIT,
        deltas: bool = True,
        outside: bool = False,
    ) -> None:
        self.after = after
        self.heartbeat = heartbeat
        self._store = store
        self._session = session
        self._limit = limit
        self._deltas = deltas
        self._outside = outside
        self._bell = Bell()
        self._peek: Callable[..., list[Event] | None] | None = getattr(store, "peek", None)
        self.stopped = False

    def __enter__(self) -> Subscription:
        self.hang(self._bell)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.take(self._bell)
        self._bell.close()

    def hang(self, listener: Listener) -> None:
        """From now on ``listener`` rings when the log grows, for who does not wait in ``next``."""
        self._store.doorbell.hang(self._session, listener, outside=self._outside)

    def take(self, listener: Listener) -> None:
        """Take it away again. Idempotent."""
        self._store.doorbell.take(self._session, listener, outside=self._outside)

    def stop(self) -> None:
        """From now on ``next`` returns what is in the log, and then, instead of waiting, nothing."""
        self.stopped = True
        self._bell.ring()

    def wake(self) -> None:
        """Have ``next`` look at once, as if it had rung."""
        self._bell.ring()

    async def next(self) -> list[Event]:
        """The next events; empty when ``heartbeat`` seconds passed without any, or once ``stopped``."""
        events = await self.wait()
        if events:
            self.after = events[-1].offset
        return events

    async def wait(self) -> list[Event]:
        """As ``next``, but the caller moves ``after``, as far as it has come with them."""
        while True:
            # The order of these three lines is the whole proof that no ring is lost.
            self._bell.clear()
            events = await self.look()
            if events or self.stopped or not await self._bell.wait(self.heartbeat):
                return events

    async def look(self) -> list[Event]:
        """The next events that are there now; ``after`` stays."""
        return await self._store.read(self._session, self.after, limit=self._limit, deltas=self._deltas)

    def peek(self) -> list[Event] | None:
        """As ``look``, if that takes no waiting; else None."""
        if self._peek is None:
            return None
        return self._peek(self._session, self.after, limit=self._limit, deltas=self._deltas)


class Log:
    """One session's log in a store: the store's verbs without naming the session each time."""

    def __init__(self, store: Store, session: str) -> None:
        self.store = store
        self.session = session

    async def append(
        self, *drafts: Draft, lease: Lease | None = None, once: str | None = None, head: Offset | None = None,
        take: Take | None = None,
    ) -> Appended:  # fmt: skip
        """See ``Store.append``."""
        return await self.store.append(self.session, drafts, lease=lease, once=once, head=head, take=take)

    async def read(self, after: Offset = 0, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """See ``Store.read``."""
        return await self.store.read(self.session, after, limit=limit, deltas=deltas)

    def subscribe(self, after: Offset = 0, *, heartbeat: float = 15.0, deltas: bool = True) -> Subscription:
        """Follow the log from just after ``after``; a wait ends with nothing after ``heartbeat`` seconds."""
        return Subscription(self.store, self.session, after, heartbeat=heartbeat, deltas=deltas)

    async def all(self, after: Offset = 0, *, until: Offset | None = None, deltas: bool = True) -> AsyncIterator[Event]:
        """Every event that is there now, in order, read page by page; up to and with ``until`` if given."""
        while events := await self.read(after, deltas=deltas):
            for event in events:
                if until is not None and event.offset > until:
                    return
                yield event
            after = events[-1].offset
            if len(events) == READ_LIMIT:
                await asyncio.sleep(0)  # a page out of memory is not waited for; between two of them others go on


# What every store shares ----------------------------------------------------------------------------------------------

MICRO = 1_000_000
"""Microseconds in a second: the precision of an event's time."""


async def append_or_begin(
    store: Store, session: str, begin: SessionCreated, drafts: Sequence[Draft]
) -> Sequence[Event]:
    """Append to a log that there need not be yet; what became of ``drafts``.

    Raises:
        SessionNotFound: it has been deleted, and is no more.
    """
    for _ in range(2):
        with suppress(SessionNotFound):
            return (await store.append(session, drafts)).events
        with suppress(SessionExists):  # begun meanwhile; or it was deleted
            return (await store.append(session, [Draft(begin), *drafts])).events[1:]
    raise SessionNotFound(session)


def tell_trouble(trouble: StoreError | None, place: str = "the store") -> None:
    """Say in the server's log why nothing can be stored for now, or (None) that ``place`` can be written again."""
    if trouble is None:
        logger.warning("%s can be written again", place)
    else:
        logger.error("nothing can be stored for now (%s): %s", trouble.code, trouble)


def moment(now: float, last: int) -> int:
    """The time of an append in microseconds since the epoch, later than that of the append before it.

    So one store's sessions have a strict order by when they were last written to, and pages of them can begin at a
    time. When the clock is set back by more than a second, it is believed.
    """
    at = round(now * MICRO)
    return last + 1 if last - MICRO < at <= last else at


class Adoption:
    """A session that is being adopted (``Portable.adopt``): what its pages make of it, by the machine's rules.

    Args:
        record: what is to come of it.
    """

    def __init__(self, record: SessionRecord) -> None:
        self._record = record
        self.state = SessionState(record.session)

    def add(self, events: Sequence[Event]) -> None:
        """The next page, of at least one event.

        Raises:
            InvalidInput: an event is missing, or cannot follow.
        """
        first, head = events[0], self.state.head
        try:
            if first.type == "session.deleted" and head == 0 and len(events) == 1:
                self.state = SessionState(self._record.session, first.offset, first.offset, deleted=True)
                return
            for offset, event in enumerate(events, head + 1):
                if event.offset != offset or event.type == "session.deleted":
                    raise ValueError(f"expected event {offset}, got {event.type} as event {event.offset}")
            self.state = moved(self.state, [Draft(event.fact, event.run) for event in events])
        except (LegatoError, ValueError) as exc:
            raise self._refused(f"its events after {head} are no log: {exc}") from exc

    def end(self) -> SessionState:
        """The state once all pages have come.

        Raises:
            InvalidInput: they are not what was to come.
        """
        record, state = self._record, self.state
        if state.head != record.head:
            raise self._refused(f"it has {record.head} events, and {state.head} have come")
        if record.epochs.keys() != state.runs.keys():
            raise self._refused(f"its open runs are {[*state.runs]}, and it names {[*record.epochs]}")
        for key, (first, last) in record.once.items():
            if not 0 < first <= last <= state.head or state.deleted:
                raise self._refused(f"it has no events {first} to {last}, which are those of the key {key!r}")
        runs = {name: msgspec.structs.replace(run, epoch=record.epochs[name]) for name, run in state.runs.items()}
        return msgspec.structs.replace(state, runs=runs)

    def _refused(self, why: str) -> InvalidInput:
        return InvalidInput(f"Session {self._record.session!r} cannot be adopted: {why}.", session=self._record.session)


def created(fact: AnyFact) -> SessionCreated:
    """What a session's first event says; nothing, if that is of another kind."""
    return fact if isinstance(fact, SessionCreated) else SessionCreated()
