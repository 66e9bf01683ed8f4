"""``Outbox``: what a run has said and is not stored yet. It is stored in order, under the run's lease.

Drafts go to the store at the end of the event loop's round. One append is under way at a time: meanwhile drafts gather,
neighbouring deltas become one, and the end of the append hands them over. No task waits for the store, since its steps
would cost more than all else does for a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable

from .bounds import Limits
from .errors import RunEnded, StaleLease, StoreError, StoreFull, StoreLost, TooLarge
from .event import AnyFact, Draft, Event, RunCancelled, RunCompleted, RunFailed, RunStarted, settle
from .load import Load
from .log import Appended, Log, Store, Storing
from .machine import Lease
from .recorder import merge
from .traces import RunSpan

logger = logging.getLogger("legato")

AHEAD = 256
"""Drafts that an agent may be ahead of the store; then it waits."""
STORE_RETRIES = (0.1, 0.5, 2.0, 5.0, 10.0)
"""Seconds between tries of a failed append: the answer has been paid for, and a full disk may be emptied."""


class Outbox:
    """Stores what one run says.

    Args:
        store: where the log lives.
        lease: of the run.
        limits: see ``Limits``.
        load: says for how long what the run says is to gather.
        clock: seconds since the epoch.
        lease_ttl: seconds of the lease.
        asked_at: when the message was sent, seconds since the epoch; None if this is no first attempt.
        span: of the run, if somebody traces.

    Attributes:
        lease: the present one; another than at first once an append has failed.
        drafts: what waits to be handed over.
        count: how many there were, before those that could be joined were.
        emptied: done once all is stored and nothing more can come; has the error of what could not be stored.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        *,
        limits: Limits,
        load: Load,
        clock: Callable[[], float] = time.time,
        lease_ttl: float = 15.0,
        asked_at: float | None = None,
        span: RunSpan | None = None,
    ) -> None:
        self.lease = lease
        self.drafts: list[Draft] = []
        self.count = 0
        self._store = store
        self._limits = limits
        self._load = load
        self._clock = clock
        self._lease_ttl = lease_ttl
        self._asked_at = asked_at  # as long as nothing has been said
        self._span = span
        self._attempt = 0
        self._stored_to = 0  # the offset of the last event of this run that is known to be stored
        self._room: asyncio.Event | None = None  # something has been stored, for who waits for it
        self._due = False  # at the end of this round of the loop it goes on
        self._handed: list[Draft] = []  # what is being stored, to try again if it fails; none if that is done
        self._storing: Storing | asyncio.Future[Appended] | None = None  # the append under way, or that has failed
        self._handed_at = -math.inf  # when drafts were last handed over, by the loop's time
        self._gathering: asyncio.TimerHandle | None = None  # hands over what gathers
        self._loop = asyncio.get_running_loop()
        self.emptied: asyncio.Future[None] = self._loop.create_future()
        self._closed = False  # nothing more can come
        self._hurried: asyncio.Event | None = None
        self._leaving = False  # what cannot be stored now is left to others

    def begin(self, after: int, attempt: int) -> None:
        """It is for this attempt, of which nothing is stored up to the offset ``after``."""
        self._stored_to, self._attempt = after, attempt

    def put(self, drafts: list[Draft]) -> None:
        """Have these stored, in a moment.

        Raises:
            TooLarge: the run has said too much.
        """
        self.count += len(drafts)
        if self._span is not None:
            self._span.heard(drafts)
        if self._asked_at is not None and drafts and drafts[0].fact.delta:
            self._load.figures.first_words.add(self._clock() - self._asked_at)
            self._asked_at = None
        if self.count > self._limits.run_events:
            raise _too_many_events(self._limits.run_events)
        self.drafts += drafts
        if self._storing is not None or self._due:
            return
        if self._gathering is None or len(self.drafts) >= AHEAD or not _gathers(drafts):  # else its timer sees to it
            self._due = True
            self._load.soon(self._go_on)

    def close(self) -> None:
        """Nothing more will be put: once all is stored, it is ``emptied``."""
        self._closed = True
        self._go_on()

    def give_up(self) -> None:
        """Store nothing more."""
        if self._gathering is not None:
            self._gathering.cancel()
        self.emptied.cancel()
        if self._storing is not None:
            self._storing.cancel()
        if self._room is not None:
            self._make_room()

    def hurry(self, *, leaving: bool = False) -> None:
        """Try at once to store what could not be stored: the store may be there again. If we are leaving, there is no
        time to wait, and others go on with the run."""
        self._leaving = self._leaving or leaving
        if self._hurried is not None:
            self._hurried.set()

    def check_not_over(self) -> None:
        """Raise ``RunEnded`` if nothing more is stored."""
        if self.emptied.done():
            raise RunEnded(f"Run {self.lease.run!r} has ended.", run=self.lease.run)

    async def stored(self) -> None:
        """Wait until all that has been put is stored.

        Raises:
            RunEnded: it will not be.
        """
        while self.drafts or self._storing is not None:
            self.check_not_over()
            self._end_gathering()  # whoever waits for it is not to wait for more
            if self._storing is not None:
                await self.room()

    async def room(self) -> None:
        """Wait until something has been stored, or nothing more will be."""
        if self._room is None:
            self._room = asyncio.Event()
        await self._room.wait()

    async def append(self, drafts: list[Draft], *, once: str | None = None) -> list[Event]:
        """Store these at once, beside what has been put, see ``Store.append``."""
        try:
            appended = await self._try(drafts, once)
        except StoreError as exc:
            appended = await self._append_again(drafts, exc, once)
        return appended.events

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.set()

    def _go_on(self) -> None:
        """Hand over what is ready, unless an append is under way or more is to gather."""
        self._due = False
        if self._storing is not None or self.emptied.done():
            return
        if self.drafts and (self._closed or not self._load.gather or self._has_gathered()):
            self._hand_over()
        if self._closed and not self.drafts and self._storing is None:
            self.emptied.set_result(None)

    def _hand_over(self) -> None:
        drafts, self.drafts = self.drafts, []
        if len(drafts) > 1:
            drafts = merge(drafts)
        if self._load.gather:
            self._handed_at = self._loop.time()
        try:
            storing = self._store.append(self.lease.session, drafts, lease=self.lease)
        except Exception as exc:  # a store that says so at once says the same
            storing = self._loop.create_future()
            storing.set_exception(exc)
        if not isinstance(storing, Storing):
            storing = asyncio.ensure_future(storing)
        elif storing.over and storing.error is None:
            self._stored_to = storing.outcome.events[-1].offset
            if self._room is not None:
                self._make_room()
            return
        self._handed, self._storing = drafts, storing
        storing.add_done_callback(self._on_stored)

    def _has_gathered(self) -> bool:
        """Whether it has been long enough since drafts were handed over; if not, they will be when it is. Only deltas
        gather, since somebody may wait for all else, and not more than an agent may be ahead."""
        until = self._handed_at + self._load.gather
        enough = len(self.drafts) >= AHEAD or until <= self._loop.time()
        if enough or not _gathers(self.drafts):
            return True
        if self._gathering is None:
            self._gathering = self._loop.call_at(until, self._end_gathering)
        return False

    def _end_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        self._handed_at = -math.inf
        self._go_on()

    def _on_stored(self, storing: Storing | asyncio.Future[Appended]) -> None:
        error: BaseException | None
        if isinstance(storing, Storing):
            error = storing.error
        elif storing.cancelled():
            self.emptied.cancel()
            return
        else:
            error = storing.exception()
        if error is None:
            self._stored_to = storing.result().events[-1].offset
            self._storing = None
            if self.drafts or self._closed:
                self._go_on()
            if self._room is not None:
                self._make_room()
        elif self.emptied.done():
            pass  # the run has been given up meanwhile
        elif self._handed and isinstance(error, StoreError):
            drafts, self._handed = self._handed, []
            self._storing = self._loop.create_task(self._append_again(drafts, error))
            self._storing.add_done_callback(self._on_stored)
        else:
            self.emptied.set_exception(error)

    # What has failed --------------------------------------------------------------------------------------------------

    def _try(self, drafts: list[Draft], once: str | None = None) -> Awaitable[Appended]:
        return self._store.append(self.lease.session, drafts, lease=self.lease, once=once)

    async def _append_again(self, drafts: list[Draft], error: StoreError, once: str | None = None) -> Appended:
        """Try what has failed with ``error`` again, after longer and longer waits."""
        for wait in STORE_RETRIES:
            # Of a store that is away, or full, all runs would say it; it says so itself, once.
            level = logging.DEBUG if isinstance(error, StoreLost | StoreFull) else logging.WARNING
            logger.log(level, "run %s: append failed, trying again in %g s: %s", self.lease.run, wait, error)
            self._hurried = asyncio.Event()
            if not self._leaving:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurried.wait(), wait)
            try:
                return await self._append_once_more(drafts, once)
            except StoreError as exc:
                error = exc
            if self._leaving:
                break  # whoever goes on with the run need not wait for us
        raise error

    async def _append_once_more(self, drafts: list[Draft], once: str | None) -> Appended:
        """Append what failed, unless it is in the log all the same: an answer of the store may have been lost. A new
        epoch comes first: what is still on its way under the old one is refused from then on, so the log has it now or
        never."""
        session, run = self.lease.session, self.lease.run
        self.lease = await self._store.acquire(session, run, owner=self.lease.owner, ttl=self._lease_ttl)
        mine = [event async for event in Log(self._store, session).all(self._stored_to) if event.run == run]
        if any(is_of_another_owner(event.fact, self._attempt) for event in mine):
            raise StaleLease(f"Run {run!r} has been driven elsewhere.", run=run)
        begun = max((place for place, event in enumerate(mine) if isinstance(event.fact, RunStarted)), default=0)
        first, _ = settle(drafts[0].fact)
        for place, event in enumerate(mine[begun:], begun):
            if event.fact == first:
                return Appended(mine[place : place + len(drafts)], repeated=True)
        return await self._try(drafts, once)


def is_of_another_owner(fact: AnyFact, attempt: int) -> bool:
    """Whether a fact in the log of a run that has not ended says that somebody else drives it, after ``attempt``."""
    ended = isinstance(fact, RunCompleted | RunFailed | RunCancelled)
    return ended or (isinstance(fact, RunStarted) and fact.attempt > attempt)


def _gathers(drafts: list[Draft]) -> bool:
    return not [draft for draft in drafts if not draft.fact.delta]


def _too_many_events(limit: int) -> TooLarge:
    error = TooLarge(f"The run has passed its limit of {limit} events.", bound="run_events", limit=limit)
    error.code = "too_many_events"
    return error
