"""The runner: drives runs, one after another in each session, and ends what others left.

The runner belongs to the application, never to a request: a reader that leaves ends nothing. It keeps no list of what
is to be done; the store's open runs are that list, so a restart or another machine goes on where this one stopped. A
run is taken only when there is a *place* for it, so that what waits can be taken by whoever has one.

Every lease that this process holds belongs to a task that drives its run, or is in ``_left`` and given back soon: a
lease that nobody knew of would be renewed for ever. So nobody who can be cancelled, such as a request, takes one. And
where the store's answer was lost, which says whether one was taken, it is asked later what it has as ours.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import itertools
import logging
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from . import bounds
from .agent import Agent
from .asks import Deadlines
from .attempt import Attempt, RunAttempts
from .backlog import AT_ONCE, CLAIM, Backlog
from .blobs import Blobs
from .bounds import Limits
from .contents import Catalogue
from .doorbell import Bell
from .errors import LeaseHeld, LegatoError, NotFound, RunEnded, StaleLease, StoreError
from .event import Draft, Offset, RunStarted
from .figures import Figures
from .load import Load
from .log import Appended, Store, Take
from .machine import Lease, free
from .places import Places
from .spending import Accounts
from .tally import NodeTally, named
from .traces import RunSpan, Traces

logger = logging.getLogger("legato")

LOOK_EVERY = 2.0
"""Seconds between two looks for runs whose owner has died, at most; and until the store is tried again that failed."""

TAKEN = "run %s is taken here, with epoch %d"
"""A line of the log, at ``DEBUG``: of each run that was not begun with its message."""


class _Drive(NamedTuple):
    """What a task drives, and whose place it has."""

    session: str
    run: str
    party: str


class Runner:
    """Drives the runs of all sessions of one application.

    Args:
        store: open, and shared with the readers.
        agents: by name; the first is the default.
        limits: see ``Limits``.
        lease_ttl: seconds after which a dead owner's runs may be taken over.
        figures: where it is counted what becomes of runs.
        traces: makes spans of runs.
        clock: seconds since the epoch.
        steady: seconds of a clock that nobody sets.
        refused: counts what limits have refused, see ``bounds``.
        blobs: of the sessions in ``store``; None: all of them are in it.
    """

    def __init__(
        self,
        store: Store,
        agents: Mapping[str, Agent],
        *,
        limits: Limits | None = None,
        refused: Counter[str] | None = None,
        lease_ttl: float = 15.0,
        figures: Figures | None = None,
        traces: Traces | None = None,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
        blobs: Blobs | None = None,
    ) -> None:
        self.store = store
        self.blobs = blobs or Blobs(store)
        self.agents = agents
        self.limits = limits or Limits()
        self.draining = False
        self.owner = secrets.token_hex(8)
        self.clock = clock
        self.deadlines = Deadlines(steady)
        self.figures = figures or Figures()
        self._traces = traces
        self.load = Load(self.limits.gather_seconds, figures=self.figures)
        self.contents = Catalogue(store, self.blobs)
        self.refused = bounds.tally() if refused is None else refused
        self.accounts = Accounts(store, lambda: self.limits, clock, steady)
        self._lease_ttl = lease_ttl
        self.tally = NodeTally(store, self.owner)
        self.tally.sources.append(lambda: named("waiting", self.places.sent))
        self.places = Places(
            lambda: self.limits.concurrent_runs,
            lambda: self.limits.waiting_messages,
            lambda party: self.tally.elsewhere(f"waiting {party}"),
            lambda: self.limits.owner_running,
        )
        self._idle = asyncio.Event()  # no place is taken
        self._idle.set()
        self._bell = Bell()
        self._drives: dict[asyncio.Task[None], _Drive] = {}  # each in a place
        self._busy: Counter[str] = Counter()  # the sessions of those
        self._attempts = RunAttempts(
            store,
            self.contents,
            self.blobs,
            agents=lambda: self.agents,
            limits=lambda: self.limits,
            accounts=self.accounts,
            load=self.load,
            deadlines=self.deadlines,
            refused=self.refused,
            traces=traces,
            clock=clock,
            lease_ttl=lease_ttl,
            draining=lambda: self.draining,
        )
        self.backlog = Backlog(
            store,
            self.places,
            count=lambda: self.limits.concurrent_runs,
            clock=clock,
            busy=self._busy,
            renew=self._renew,
        )
        self._left: dict[str, Lease] = {}  # of runs that could not be driven on; given back a little later
        self._worker: asyncio.Task[None] | None = None
        self._renewal = (0.0, 0.0)  # when the next one is due, in the loop's time and the clock's
        self._failing = False  # the store, when it was asked last
        self._doubtful = False  # the store has failed where it may have given a lease

    @property
    def running(self) -> int:
        """How many runs this process drives now."""
        return len(self._attempts.executions)

    @property
    def asking(self) -> int:
        """How many of them wait for somebody's answer."""
        return sum(execution.asking for execution in self._attempts.executions)

    @property
    def default(self) -> str:
        """The agent that answers where nobody says which."""
        return next(iter(self.agents))

    # What the verbs ask for -------------------------------------------------------------------------------------------

    def traced(self) -> str | None:
        """The span in which something is asked for now; None if nobody traces."""
        return None if self._traces is None else self._traces.sent()

    async def begin(
        self,
        session: str,
        drafts: Sequence[Draft],
        run: str,
        *,
        party: str,
        agent: str | None = None,
        once: str | None = None,
        head: Offset | None = None,
    ) -> Appended | None:
        """Store ``drafts``, which open ``run``, and its start in one append, and drive it. All the same if the caller
        is cancelled meanwhile.

        Returns:
            What was stored. None if it was nothing, since there is no place for ``party`` or another run comes first.

        Raises:
            LegatoError: see ``Store.append``.
        """
        name = agent or self.default
        if name not in self.agents or self.draining or not self.places.take(party):
            return None
        take = Take(run, self.owner, self._lease_ttl)
        span = self._attempts.span(session, run, name, 1, next((d.fact for d in drafts if d.run == run), None))
        started = Draft(RunStarted(name, 1, None if span is None else span.told), run)
        try:  # now, and not in the task that drives it, which would be a round later
            storing = self.store.append(session, [*drafts, started], once=once, head=head, take=take)
        except BaseException:
            self._give_back(party)
            raise
        stored: asyncio.Future[Appended | None] = asyncio.get_running_loop().create_future()
        self._place(session, run, party, self._begin(storing, stored, span))
        return await stored

    def wake(self, session: str) -> None:
        """Look for runs: one of ``session`` has been stored without a place, or left."""
        if session not in self._busy:  # else it waits behind the one that has a place
            self.places.wait(session)
        self._work()
        self._bell.ring()

    # The life of the runner -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up every run that waits, and end or retry every run whose owner died; after the start, if they are many.

        Raises:
            StoreError: the store cannot be asked.
        """
        if len(await self.store.open_runs(limit=AT_ONCE + 1)) <= AT_ONCE:
            await self.backlog.learn()
            await self._look()
        self._work()
        self.load.start()
        self.tally.start()

    async def stop(self, grace: float = 0.0) -> None:
        """Take no more messages, let runs finish for ``grace`` seconds, then interrupt them. Idempotent.

        What is not over then is given back, so that another node, or the next start, goes on at once.
        """
        self.draining = True  # the worker only renews from now on
        self.load.stop()
        await self._all_given_back(grace)
        self._attempts.interrupt()
        if not await self._all_given_back(self.limits.cancel_grace + 5.0):
            await _cancelled(*self._drives)
        if self._worker is not None:
            await _cancelled(self._worker)
        await self._give_up(*self._left.values())
        await self.tally.stop()

    def forget(self) -> None:
        """Know nothing of any log any more, and let runs be driven anew: logs are not what they were."""
        self.contents.forget()
        self._attempts.forget()

    async def _all_given_back(self, seconds: float) -> bool:
        """Wait until nothing runs here, at most so long; whether that came to be."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            pass
        return self._idle.is_set()

    # Places -----------------------------------------------------------------------------------------------------------

    def _place(self, session: str, run: str, party: str, driving: Coroutine[Any, Any, None]) -> None:
        """Do this in a place that has been taken."""
        self._idle.clear()
        self.places.unqueue(session, run)
        self.places.leave(session)
        self._busy[session] += 1
        task = asyncio.create_task(driving, name=f"legato-run-{run}")
        self._drives[task] = _Drive(session, run, party)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        session, _, party = self._drives.pop(task)
        self._give_back(party)
        self._busy[session] -= 1
        if not self._busy[session]:
            del self._busy[session]
            self.places.wait(session)  # what was behind the run
        if self.places.waiting:
            self._bell.ring()

    def _give_back(self, party: str, count: int = 1) -> None:
        self.places.give_back(party, count)
        if not self.places.taken:
            self._idle.set()

    # Looking for runs -------------------------------------------------------------------------------------------------

    def _work(self) -> None:
        if self._worker is None and not self.draining:
            # It is about nobody, whoever has woken it.
            context = contextvars.Context()
            self._worker = asyncio.create_task(self._serve(), name="legato-runner", context=context)

    async def _serve(self) -> None:
        self.store.doorbell.hang_work(self._bell)
        try:
            while True:
                self._bell.clear()
                pause = min(self._lease_ttl / 3, LOOK_EVERY)
                try:
                    if await self._renew() and (self.places.queued or self.places.full or not self.backlog.learned):
                        await self.backlog.learn()
                    await self._look()
                    await self.backlog.tell()
                    if self._failing:
                        self._failing = False
                        for execution in self._attempts.executions:
                            execution.hurry()
                    pause = min(pause, max(self._renewal[0] - asyncio.get_running_loop().time(), 0.001))
                except LegatoError as exc:
                    logger.log(logging.DEBUG if self._failing else logging.WARNING, "cannot look after leases: %s", exc)
                    self._failing = True
                except Exception:  # whatever it is: without this task leases would lapse and runs stay open
                    logger.exception("cannot look after leases")
                await self._bell.wait(pause)
        finally:
            self.store.doorbell.take_work(self._bell)
            self._bell.close()

    async def _renew(self) -> bool:
        """Renew all leases, if it is time; before others are claimed, as else our own might be among those."""
        now = asyncio.get_running_loop().time(), self.clock()
        if now[0] < self._renewal[0] and now[1] < self._renewal[1]:  # they differ after the machine has slept
            return False
        await self.store.renew(owner=self.owner, ttl=self._lease_ttl)
        late = max(now[0] - self._renewal[0], now[1] - self._renewal[1]) > self._lease_ttl / 3
        self._renewal = now[0] + self._lease_ttl / 3, now[1] + self._lease_ttl / 3
        if late:  # this process was stopped for a while, or its store out of reach: others may have its runs now
            for execution in self._attempts.executions:
                execution.look()
        await self._give_up(*self._left.values())
        if self._doubtful:
            await self._disown()
        return True

    async def _disown(self) -> None:
        """Give back what the store has as ours and nobody here drives: what came of taking it was not told."""
        self._doubtful = False
        try:
            runs = await self.store.open_runs(limit=sys.maxsize)
        except BaseException:
            self._doubtful = True
            raise
        known = {drive.run for drive in self._drives.values()} | self._left.keys()  # after the look, see ``_place``
        await self._give_up(*(run.lease() for run in runs if run.owner == self.owner and run.run not in known))

    async def _look(self) -> None:
        """Take what waits, as far as there are places: first what is known to wait, in fair order; if that is nothing,
        what the store knows of."""
        later: list[str] = []
        try:
            while turns := list(itertools.islice(self._turns(), CLAIM)):
                self._idle.clear()
                taken = await asyncio.gather(*(self._take(*turn) for turn in turns))
                later += [session for (session, _), done in zip(turns, taken, strict=True) if not done]
        finally:
            for session in later:
                self.places.wait(session)
        while not self.draining and (places := self.places.take_all("", CLAIM)):
            leases: list[Lease] = []
            self._idle.clear()
            try:
                leases = await self.store.claim(owner=self.owner, ttl=self._lease_ttl, limit=places)
            except StoreError:
                self._doubtful = True
                raise
            finally:
                self._give_back("", places - len(leases))
            for lease in leases:
                self._place(lease.session, lease.run, "", self._drive(Attempt(lease, begun=False)))
            if len(leases) < places:
                return

    def _turns(self) -> Iterator[tuple[str, str]]:
        while not self.draining and (turn := self.places.turn()) is not None:
            yield turn

    async def _take(self, session: str, party: str) -> bool:
        """Take the run of a session whose turn it is, in the place that is taken for it; False if that failed."""
        lease: Lease | None = None
        try:
            runs = (await self.store.info(session)).runs
            self.places.keep(session, runs)
            run = free(runs, self.clock())
            if run is not None and session not in self._busy:
                lease = await self.store.acquire(session, run.run, owner=self.owner, ttl=self._lease_ttl)
        except NotFound:
            self.places.keep(session, ())
        except (LeaseHeld, RunEnded):
            pass  # somebody else has it, or it has ended
        except LegatoError as exc:
            self._doubtful = True
            logger.warning("session %s: cannot take what waits: %s", session, exc)
            return False
        finally:
            if lease is None:
                self._give_back(party)
        if lease is not None:
            self._place(session, lease.run, party, self._drive(Attempt(lease, begun=False)))
        return True

    async def _give_up(self, *leases: Lease) -> None:
        """Give leases back; if that fails, later."""
        await asyncio.gather(*map(self._release, leases))

    async def _release(self, lease: Lease) -> None:
        self._left[lease.run] = lease
        try:
            await self.store.release(lease)
        except LegatoError as exc:
            logger.warning("run %s cannot be given back: %s", lease.run, exc)
        else:
            if self._left.get(lease.run) is lease:
                del self._left[lease.run]
            if not self.draining:
                self.wake(lease.session)

    # One run ----------------------------------------------------------------------------------------------------------

    async def _begin(
        self, storing: Awaitable[Appended], stored: asyncio.Future[Appended | None], span: RunSpan | None
    ) -> None:
        try:
            appended = await storing
        except LeaseHeld:
            _tell(stored, None)
        except asyncio.CancelledError:
            _tell(stored, StoreError("The server stopped while the message was being stored."))
            raise
        except Exception as exc:
            self._doubtful = self._doubtful or isinstance(exc, StoreError)
            _tell(stored, exc)
        else:
            tell = functools.partial(_tell, stored, appended)
            if appended.lease is None:
                tell()
                return
            # Two rounds later what the agent says at once is on its way to the disk, and who sent the message is
            # answered while that writes.
            self.load.soon(lambda: self.load.soon(tell))
            await self._drive(Attempt(appended.lease, begun=True, span=span))

    async def _drive(self, attempt: Attempt) -> None:
        lease = attempt.lease
        if not attempt.begun:
            logger.debug(TAKEN, lease.run, lease.epoch)
        try:
            if not await self._attempts.answer(attempt):
                await self._give_up(attempt.lease)
        except (RunEnded, StaleLease, NotFound) as exc:
            self.figures.lost += isinstance(exc, StaleLease)  # else it was cancelled, or deleted, before it began
            logger.info("run %s is driven elsewhere: %s", lease.run, exc)
        except asyncio.CancelledError:
            self._left[lease.run] = attempt.lease
            raise
        except Exception as exc:  # the store's, as a rule: at once it would fail again
            self._left[lease.run] = attempt.lease
            self._doubtful = True
            where = None if isinstance(exc, StoreError) else exc
            logger.error("session %s: a run was left open: %s", lease.session, exc, exc_info=where)
        finally:
            if attempt.lease is not lease:  # an append that failed has renewed it, and that may have failed, too
                self._doubtful = True


def _tell(stored: asyncio.Future[Appended | None], result: Appended | Exception | None) -> None:
    """Tell what came of it, if anybody still wants to know."""
    if stored.done():
        return
    if isinstance(result, Exception):
        stored.set_exception(result)
        stored.exception()  # nobody has to have asked for it
    else:
        stored.set_result(result)


async def _cancelled(*tasks: asyncio.Task[None]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
