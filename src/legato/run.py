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
import contextlib
import contextvars
import functools
import itertools
import logging
import secrets
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import msgspec

from . import bounds
from .about import ABOUT, About
from .agent import Agent, Turn
from .asks import Deadlines
from .blobs import Blobs
from .bounds import Limits
from .caller import Caller
from .contents import Catalogue, Contents, window
from .desk import RunDesk
from .doorbell import Bell
from .ending import CANCELLED, INTERRUPTED, LEFT_OPEN, Ending, ended, failed
from .errors import (
    HeadMoved,
    InvalidInput,
    LeaseHeld,
    LegatoError,
    NotFound,
    RunEnded,
    StaleLease,
    StoreError,
    TooLarge,
)
from .event import (
    AnyFact,
    CancelRequested,
    Draft,
    Event,
    MessageCreated,
    Offset,
    PermissionRequested,
    PermissionResolved,
    RunStarted,
    RunWaiting,
    length,
)
from .execution import Execution
from .figures import Figures
from .history import told
from .load import Load
from .log import Appended, Log, Store, Take
from .machine import Lease, OpenRun, free
from .outbox import Outbox
from .places import Places
from .recorder import Recorder, brought
from .spending import Accounts, spent
from .tally import NodeTally, named
from .traces import RunSpan, Traces
from .transcript import fold

logger = logging.getLogger("legato")

BROKEN = failed("internal_error", "The server could not answer. Its log has the details.")
REWOUND = failed("rewound", "The message was taken back before it was answered.")

CLAIM = 32
"""Runs that are taken, or looked at, in one go: others come in between, be it nodes or the renewal of leases."""

AT_ONCE = 1_000
"""Runs that are looked at in one step, and before a start is over."""

LOOK_EVERY = 2.0
"""Seconds between two looks for runs whose owner has died, at most; and until the store is tried again that failed."""


TAKEN = "run %s is taken here, with epoch %d"
"""A line of the log, at ``DEBUG``: of each run that was not begun with its message."""

RECOUNT = 1.0
"""Seconds between two looks whether what waits still does, for senders who are to be refused."""


class _Drive(NamedTuple):
    """What a task drives, and whose place it has."""

    session: str
    run: str
    party: str


class _Going(NamedTuple):
    """A run that an agent is to go on with.

    Attributes:
        asked: its message.
        events: what its log has, without deltas.
        left: all that earlier attempts left, the message too; nothing in the first.
        name: by which the agent goes here.
        begun: its start is in the log.
    """

    lease: Lease
    asked: MessageCreated
    events: list[Event]
    left: Sequence[Event]
    attempt: int
    begun: bool
    name: str
    agent: Agent
    span: RunSpan | None


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
        self._spans: dict[str, RunSpan] = {}  # of runs that begin with their message
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
        self._learned = False  # what waited before this life
        self._orphans: list[OpenRun] = []  # of what was learned, what had begun elsewhere
        self._bell = Bell()
        self._drives: dict[asyncio.Task[None], _Drive] = {}  # each in a place
        self._busy: Counter[str] = Counter()  # the sessions of those
        self._executions: dict[Execution, Agent] = {}
        self._newest: dict[str, Lease] = {}  # of runs that are driven under another lease than at first, in the end
        self._left: dict[str, Lease] = {}  # of runs that could not be driven on; given back a little later
        self._worker: asyncio.Task[None] | None = None
        self._renewal = (0.0, 0.0)  # when the next one is due, in the loop's time and the clock's
        self._recounted = 0.0  # when that was done last, by the loop's time
        self._failing = False  # the store, when it was asked last
        self._doubtful = False  # the store has failed where it may have given a lease
        self._late = False  # the grace of ``stop`` is over

    @property
    def running(self) -> int:
        """How many runs this process drives now."""
        return len(self._executions)

    @property
    def asking(self) -> int:
        """How many of them wait for somebody's answer."""
        return sum(execution.asking for execution in self._executions)

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
        span = self._span(session, run, name, 1, next((d.fact for d in drafts if d.run == run), None))
        if span is not None:
            self._spans[run] = span
        started = Draft(RunStarted(name, 1, None if span is None else span.told), run)
        try:  # now, and not in the task that drives it, which would be a round later
            storing = self.store.append(session, [*drafts, started], once=once, head=head, take=take)
        except BaseException:
            self._spans.pop(run, None)
            self._give_back(party)
            raise
        stored: asyncio.Future[Appended | None] = asyncio.get_running_loop().create_future()
        self._place(session, run, party, self._begin(run, storing, stored))
        return await stored

    def _span(
        self, session: str, run: str, agent: str, attempt: int, asked: AnyFact | None, at: float | None = None,
        before: Iterable[Event] = (),
    ) -> RunSpan | None:  # fmt: skip
        if self._traces is None:
            return None
        parent = asked.trace if isinstance(asked, MessageCreated) else None
        return self._traces.run(
            session=session, run=run, agent=agent, attempt=attempt, parent=parent, at=at, before=before
        )

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
            await self._learn()
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
        self._late = True
        for execution, agent in list(self._executions.items()):
            execution.stop(_interruption(agent))
        if not await self._all_given_back(self.limits.cancel_grace + 5.0):
            await _cancelled(*self._drives)
        if self._worker is not None:
            await _cancelled(self._worker)
        await self._give_up(*self._left.values())
        await self.tally.stop()

    def forget(self) -> None:
        """Know nothing of any log any more, and let runs be driven anew: logs are not what they were."""
        self.contents.forget()
        for execution, agent in list(self._executions.items()):
            execution.forget(_interruption(agent))

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

    async def recount(self) -> None:
        """See whether what is known to wait still does, since other nodes take of it; not more than once a second.

        Raises:
            StoreError: it cannot be seen.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._recounted + RECOUNT:
            self._recounted = now
            before = self.places.queued
            self._let_go(before, await self.store.open_runs(limit=sys.maxsize))

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
                    if await self._renew() and (self.places.queued or self.places.full or not self._learned):
                        await self._learn()
                    await self._look()
                    await self._tell_orphans()
                    if self._failing:
                        self._failing = False
                        for execution in self._executions:
                            execution.hurry()
                    pause = min(pause, max(self._renewal[0] - asyncio.get_running_loop().time(), 0.001))
                except LegatoError as exc:
                    self._failing = True
                    logger.warning("cannot look after leases: %s", exc)
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
            for execution in self._executions:
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

    async def _learn(self) -> None:
        """Let all that waits be known, with whose it is: at a start what an earlier life took, later what other nodes
        have; and forget what waits no more. Where there are places for all it does not matter whose they are."""
        self._learned = True
        before = self.places.queued
        runs = await self.store.open_runs(limit=sys.maxsize)
        self._let_go(before, runs)
        now = self.clock()
        firsts: dict[str, OpenRun] = {}
        for run in runs:
            firsts.setdefault(run.session, run)
        waiting = [name for name, run in firsts.items() if not run.held(now)]
        if not self.places.waiting and len(waiting) <= self.limits.concurrent_runs - self.places.taken:
            return
        new = [run for run in runs if run.run not in before and not run.held(now)]
        found: list[tuple[float, OpenRun, str]] = []
        for place in range(0, len(new), CLAIM):
            found += await asyncio.gather(*map(self._whose, new[place : place + CLAIM]))
            await self._renew()
        first: dict[str, float] = {}
        self._orphans += [run for run in new if run.started]
        for place, (at, run, party) in enumerate(sorted(found, key=lambda each: each[0])):
            self.places.queue(run.session, run.run, party)
            first.setdefault(run.session, at)
            if not place % AT_ONCE:
                await asyncio.sleep(0)  # they may be many
        for place, session in enumerate(sorted(waiting, key=lambda session: first.get(session, 0.0))):
            if session not in self._busy:
                self.places.wait(session)
            if not place % AT_ONCE:
                await asyncio.sleep(0)

    async def _tell_orphans(self) -> None:
        """Let readers know that the answers wait which another node, or an earlier life, has begun and left, and for
        which there is no place here."""
        while self._orphans:
            queued = self.places.queued
            some = [run for run in self._orphans[:CLAIM] if run.run in queued]
            await asyncio.gather(*map(self._tell_orphan, some))
            del self._orphans[:CLAIM]
            await self._renew()

    async def _tell_orphan(self, run: OpenRun) -> None:
        with contextlib.suppress(HeadMoved, RunEnded, NotFound):  # somebody has it
            info = await self.store.info(run.session)
            now = info.runs.get(run.run)
            if now is not None and not now.held(self.clock()):
                once = f"waiting:{run.run}:{now.epoch}"
                await self.store.append(run.session, [Draft(RunWaiting(), run.run)], once=once, head=info.head)

    def _let_go(self, waited: Mapping[str, str], runs: Iterable[OpenRun]) -> None:
        """Of what waited, with its sessions, let what has ended, or has been taken by another node, wait no more."""
        now = self.clock()
        still = {run.run for run in runs if not run.held(now)}
        for name, session in waited.items():
            if name not in still:
                self.places.unqueue(session, name)

    async def _whose(self, run: OpenRun) -> tuple[float, OpenRun, str]:
        """When the message of a run was sent, and whose it is as far as the log has it."""
        events = await self.store.read(run.session, run.offset - 1, limit=1)
        sent = next((event.fact for event in events if isinstance(event.fact, MessageCreated)), None)
        return events[0].at if events else 0.0, run, Caller("" if sent is None else sent.caller or "").party

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
                self._place(lease.session, lease.run, "", self._drive(lease, begun=False))
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
            self._place(session, lease.run, party, self._drive(lease, begun=False))
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

    async def _begin(self, run: str, storing: Awaitable[Appended], stored: asyncio.Future[Appended | None]) -> None:
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
            await self._drive(appended.lease, begun=True)
        finally:
            self._spans.pop(run, None)

    async def _drive(self, lease: Lease, *, begun: bool) -> None:
        if not begun:
            logger.debug(TAKEN, lease.run, lease.epoch)
        try:
            if not await self._answer(lease, begun):
                await self._give_up(self._newest.get(lease.run, lease))
        except (RunEnded, StaleLease, NotFound) as exc:
            self.figures.lost += isinstance(exc, StaleLease)  # else it was cancelled, or deleted, before it began
            logger.info("run %s is driven elsewhere: %s", lease.run, exc)
        except asyncio.CancelledError:
            self._left[lease.run] = self._newest.get(lease.run, lease)
            raise
        except Exception as exc:  # the store's, as a rule: at once it would fail again
            self._left[lease.run] = self._newest.get(lease.run, lease)
            logger.error("session %s: a run was left open: %s", lease.session, exc, exc_info=exc)
        finally:
            self._newest.pop(lease.run, None)

    async def _answer(self, lease: Lease, begun: bool) -> bool:
        """Drive the run until its end; False if it was left open."""
        try:
            return await self._answer_run(lease, begun)
        except (StoreError, StaleLease, RunEnded, NotFound):
            raise  # the store's, or somebody else's run now: the log is as it should be
        except Exception:  # what no log can have, or a log that we do not understand: again it would fail again
            logger.exception("run %s cannot be driven", lease.run)
            return await self._finish(self._newest.get(lease.run, lease), BROKEN)

    async def _answer_run(self, lease: Lease, begun: bool) -> bool:
        log = Log(self.store, lease.session)
        info = await self.store.info(lease.session)
        contents = await self.contents.of(lease.session, info.head)
        place, asked = contents.place(lease.run), contents.runs[lease.run].offset
        before = contents.entries[:place]
        mine = [event async for event in log.all(asked - 1, deltas=False) if event.run == lease.run]
        if not mine:  # the session has been deleted meanwhile
            return await self._finish(lease, BROKEN)
        fact = mine[0].fact
        assert isinstance(fact, MessageCreated)
        attempt = sum(isinstance(event.fact, RunStarted) for event in mine) + (0 if begun else 1)
        if attempt > 1:
            self.figures.taken_over += 1
        else:
            self.figures.waits.add(self.clock() - mine[0].at)
        name = fact.agent or info.created.agent or self.default
        agent = self.agents.get(name)
        ABOUT.set(About(ABOUT.get().request, fact.caller or "", lease.session, lease.run))
        span = self._spans.pop(lease.run, None) or self._span(
            lease.session, lease.run, name, attempt, fact, mine[0].at if attempt == 1 else None, mine
        )
        ending = self._ending_before(mine, attempt, name, agent) or (REWOUND if place is None else None)
        if ending is not None or agent is None:
            if self.draining and not begun:
                return False  # the run waits for the next start
            ending = ending or CANCELLED
            finished = await self._finish(lease, ending)
            if span is not None:
                span.end(str(ending.kind), ending.code, None)
            return finished
        left: Sequence[Event] = ()
        if attempt > 1:
            left = [event async for event in log.all(asked - 1) if event.run == lease.run]
        said = window(before, messages=self.limits.history_messages, bytes=self.limits.history_bytes)
        history = await self.contents.messages(lease.session, before[said:])
        message = told(await self.blobs.whole(lease.session, mine[0]))
        if self.draining and not begun:  # no await from here until ``stop`` can see the execution
            return False
        going = _Going(lease, fact, mine, left, attempt, begun, name, agent, span)
        execution, desk, recorder = self._execution(going, self._room(contents, info.head))
        turn = Turn(
            desk=desk,
            session=lease.session,
            run=lease.run,
            message=message,
            history=history,
            omitted=said,
            earlier=lambda most: self.contents.messages(lease.session, before[said - min(most, said) : said]),
            agent=name,
            caller=Caller(fact.caller or ""),
            attempt=attempt,
            events=left,
            max_event_bytes=self.limits.event_bytes,
        )
        return await self._execute(going, execution, recorder, turn)

    def _execution(self, going: _Going, limits: Limits) -> tuple[Execution, RunDesk, Recorder]:
        """What drives a run on from where earlier attempts have left it."""
        recorder = Recorder(
            going.lease.run,
            earlier=fold(going.left) if going.attempt > 1 else None,
            resumed=going.agent.on_crash == "resume",
            max_event_bytes=limits.event_bytes,
            max_run_characters=limits.run_characters,
            max_run_bytes=limits.run_bytes,
            spent=sum(len(event.json) for event in going.left),
            theirs=brought(going.asked.metadata or {}),
        )
        outbox = Outbox(
            self.store,
            going.lease,
            limits=limits,
            load=self.load,
            clock=self.clock,
            lease_ttl=self._lease_ttl,
            asked_at=going.events[0].at if going.attempt == 1 else None,
            span=going.span,
        )
        desk = RunDesk(
            going.lease.run,
            outbox,
            recorder,
            limits=limits,
            earlier=going.events,
            clock=self.clock,
            deadlines=self.deadlines,
        )
        execution = Execution(
            self.store,
            outbox,
            recorder,
            desk,
            limits=limits,
            figures=self.figures,
            refused=self.refused,
            span=going.span,
        )
        return execution, desk, recorder

    async def _execute(self, going: _Going, execution: Execution, recorder: Recorder, turn: Turn) -> bool:
        """Have the agent answer, and count what came of it."""
        lease, agent, span = going.lease, going.agent, going.span
        if self._late:
            execution.stop(_interruption(agent))
        had = recorder.spent
        self._executions[execution] = agent
        began = time.monotonic()
        try:
            if not going.begun:
                started = RunStarted(going.name, going.attempt, None if span is None else span.told)
                await self.store.append(lease.session, [Draft(started, lease.run)], lease=lease)
            return await execution.run(agent, turn, after=going.events[0].offset)
        finally:
            del self._executions[execution]
            if execution.lease is not lease:  # an append that failed has renewed it, and that may have failed, too
                self._newest[lease.run], self._doubtful = execution.lease, True
            size = recorder.spent - had + (length(going.events[0]) if going.attempt == 1 else 0)
            self.accounts.add(going.asked.caller or "", spent(execution.events, size, recorder.usage))
            self.figures.runs.add(time.monotonic() - began)
            if span is not None:
                span.end("left", "", None)

    def _room(self, contents: Contents, head: Offset) -> Limits:
        """The limits of a run in this session, which may not have room for all that one run may store."""
        limits = self.limits
        events, size = limits.session_events - head, limits.session_bytes - contents.bytes
        if limits.run_events <= events and limits.run_bytes <= size:
            return limits
        return msgspec.structs.replace(
            limits, run_events=max(min(limits.run_events, events), 0), run_bytes=max(min(limits.run_bytes, size), 0)
        )

    def _ending_before(self, mine: list[Event], attempt: int, name: str, agent: Agent | None) -> Ending | None:
        """How the run ends without the agent being asked, or None if it is to be asked."""
        if any(isinstance(event.fact, CancelRequested) for event in mine):
            return CANCELLED
        if agent is None:
            return failed("unknown_agent", f"This server has no agent {name!r}.")
        if attempt > 1 and (agent.on_crash == "fail" or attempt - _waited(mine) > self.limits.attempts):
            return INTERRUPTED
        return None

    async def _finish(self, lease: Lease, ending: Ending) -> bool:
        """End a run that is not driven any more."""
        whole = True
        while True:
            info = await self.store.info(lease.session)
            run = info.runs.get(lease.run)
            if run is None:
                return True
            try:
                drafts = await ended(self.store, run, ending, whole=whole)
                await self.store.append(lease.session, drafts, lease=lease, head=info.head)
                self.figures.ended.add(str(ending.kind), ending.code)
            except HeadMoved:
                continue  # perhaps what it asked has been answered
            except (InvalidInput, TooLarge):
                if not whole:
                    raise
                whole = False  # piece by piece it could be stored, and as one message it cannot
                continue
            return True


def _waited(mine: Iterable[Event]) -> int:
    """How many attempts of a run did nothing but wait for the user: the process has not died of those."""
    waited = 0
    open_asks: set[str] = set()
    before: Event | None = None
    for event in mine:
        if isinstance(event.fact, RunWaiting):
            continue
        if isinstance(event.fact, RunStarted) and before is not None and isinstance(before.fact, RunStarted):
            waited += bool(open_asks)
        elif isinstance(event.fact, PermissionRequested):
            open_asks.add(event.fact.id)
        elif isinstance(event.fact, PermissionResolved):
            open_asks.discard(event.fact.id)
        before = event
    return waited + (bool(open_asks) and before is not None and isinstance(before.fact, RunStarted))


def _interruption(agent: Agent) -> Ending:
    return INTERRUPTED if agent.on_crash == "fail" else LEFT_OPEN


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
