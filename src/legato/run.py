"""The runner: drives runs, one after another in each session, and ends what others left.

The runner belongs to the application, never to a request: a reader that leaves ends nothing. It keeps no list of what
is to be done; the store's open runs are that list, so a restart or another machine goes on where this one stopped. A
run is taken only when there is a *place* for it, so that what waits can be taken by whoever has one.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping

from .agent import Agent, Turn
from .caller import Caller
from .errors import LeaseHeld, LegatoError, NotFound, RunEnded, StaleLease
from .event import CancelRequested, Draft, Event, MessageCreated, PermissionRequested, RunStarted
from .execution import (
    CANCELLED,
    INTERRUPTED,
    LEFT_OPEN,
    Ending,
    Execution,
    Limits,
    expired,
    failed,
    resolve_key,
    terminal,
)
from .log import Bell, Log, Store, Take
from .machine import Lease, free
from .transcript import Recorder, Transcript, default_agent, fold, history

logger = logging.getLogger("legato")

OVERLOADED = failed("overloaded", "Too many answers are being given at once; send the message again later.")
BROKEN = failed("internal_error", "The server could not answer. Its log has the details.")
REWOUND = failed("rewound", "The message was taken back before it was answered.")

CLAIM = 32
"""Runs that are claimed at once at most: a node that begins does not take all that waits from the others."""


class Runner:
    """Drives the runs of all sessions of one application.

    Args:
        store: open, and shared with the readers.
        agents: by name; the first is the default.
        limits: see ``Limits``.
        lease_ttl: seconds after which a dead owner's runs may be taken over.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        agents: Mapping[str, Agent],
        *,
        limits: Limits | None = None,
        lease_ttl: float = 15.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.agents = agents
        self.limits = limits or Limits()
        self.draining = False
        self.owner = secrets.token_hex(8)
        self.clock = clock
        self._lease_ttl = lease_ttl
        self._taken = 0  # places
        self._bell = Bell()
        self._idle = asyncio.Event()
        self._idle.set()
        self._drives: set[asyncio.Task[None]] = set()
        self._executions: dict[str, tuple[Execution, Agent]] = {}
        self._left: dict[str, Lease] = {}  # of runs that could not be driven on; given back a little later
        self._waits: dict[str, float] = {}  # sessions with a run that found no place, and until when it waits for one
        self._worker: asyncio.Task[None] | None = None
        self._late = False  # the grace of ``stop`` is over

    @property
    def running(self) -> int:
        """How many runs this process drives now."""
        return len(self._executions)

    @property
    def default(self) -> str:
        """The agent that answers where nobody says which."""
        return next(iter(self.agents))

    # Places -----------------------------------------------------------------------------------------------------------

    def reserve(self) -> bool:
        """Take a place for a run, which is then to be given to ``begin`` or ``give_back``; False if there is none."""
        if self.draining or self._taken >= self.limits.concurrent_runs:
            return False
        self._taken += 1
        self._idle.clear()
        return True

    def give_back(self) -> None:
        """Give a place back."""
        self._taken -= 1
        if not self._taken:
            self._idle.set()
        self._bell.ring()

    def take(self, run: str) -> Take:
        """What an append takes along for a run that has a place here."""
        return Take(run, self.owner, self._lease_ttl)

    def begin(self, lease: Lease) -> None:
        """Drive a run whose ``run.started`` has just been stored, in a place that was reserved for it."""
        self._start(lease, begun=True)

    def wake(self, session: str) -> None:
        """Look for runs: one of ``session`` waits for a place, or for its end."""
        self._waits.setdefault(session, asyncio.get_running_loop().time() + self.limits.place_seconds)
        self._work()
        self._bell.ring()

    # The life of the runner -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up every run that waits, and end or retry every run whose owner died.

        Raises:
            StoreError: the store cannot be asked; nothing was begun.
        """
        for run in await self.store.open_runs():
            self._waits.setdefault(run.session, asyncio.get_running_loop().time() + self.limits.place_seconds)
        await self._look()
        self._work()

    async def stop(self, grace: float = 0.0) -> None:
        """Take no more messages, let runs finish for ``grace`` seconds, then interrupt them. Idempotent.

        What is not over then is given back, so that another node, or the next start, goes on at once.
        """
        self.draining = True
        if self._worker is not None:
            self._worker.cancel()
        await self._all_given_back(grace)
        self._late = True
        for execution, agent in list(self._executions.values()):
            execution.stop(_interruption(agent))
        if not await self._all_given_back(self.limits.cancel_grace + 5.0):
            for task in self._drives:
                task.cancel()
            await asyncio.wait(self._drives)
        await self._give_up(list(self._left.values()))

    async def _all_given_back(self, seconds: float) -> bool:
        """Wait until nothing runs here, at most so long; whether that came to be."""
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            pass
        return self._idle.is_set()

    def _work(self) -> None:
        if self._worker is None and not self.draining:
            self._worker = asyncio.create_task(self._serve(), name="legato-runner")

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        renewal = loop.time() + self._lease_ttl / 3
        self.store.doorbell.hang_work(self._bell)
        try:
            while True:
                self._bell.clear()
                try:
                    if loop.time() >= renewal:
                        renewal = loop.time() + self._lease_ttl / 3
                        await self.store.renew(owner=self.owner, ttl=self._lease_ttl)
                        await self._give_up(list(self._left.values()))
                    await self._look()
                    await self._turn_away()
                except LegatoError as exc:
                    logger.warning("cannot look after leases: %s", exc)
                except Exception:  # whatever it is: without this task leases would lapse and runs stay open
                    logger.exception("cannot look after leases")
                await self._bell.wait(max(min([renewal, *self._waits.values()]) - loop.time(), 0.001))
        finally:
            self.store.doorbell.take_work(self._bell)

    async def _look(self) -> None:
        """Claim what waits, as far as there are places."""
        while (places := self._reserve(CLAIM)) > 0:
            leases: list[Lease] = []
            try:
                leases = await self.store.claim(owner=self.owner, ttl=self._lease_ttl, limit=places)
            finally:
                for _ in range(places - len(leases)):
                    self._taken -= 1
                if not self._taken:
                    self._idle.set()
            for lease in leases:
                self._waits.pop(lease.session, None)
                self._start(lease, begun=False)
            if len(leases) < places:
                self._waits.clear()  # nobody waits for want of a place
                return

    def _reserve(self, most: int) -> int:
        count = 0
        while count < most and self.reserve():
            count += 1
        return count

    async def _turn_away(self) -> None:
        """End the runs that have waited too long for a place."""
        now = asyncio.get_running_loop().time()
        for session in [session for session, until in self._waits.items() if until <= now]:
            del self._waits[session]
            try:
                run = free((await self.store.info(session)).runs, self.clock())
                if run is not None:
                    lease = await self.store.acquire(session, run.run, owner=self.owner, ttl=self._lease_ttl)
                    await self._drive(lease, begun=False, ending=OVERLOADED)
            except (LeaseHeld, RunEnded, NotFound):
                pass  # somebody had a place for it

    async def _give_up(self, leases: list[Lease]) -> None:
        """Give leases back. Where that fails they end by themselves, in time."""
        for lease in leases:
            try:
                await self.store.release(lease)
                self._left.pop(lease.run, None)
            except LegatoError as exc:
                logger.warning("run %s cannot be given back: %s", lease.run, exc)

    # One run ----------------------------------------------------------------------------------------------------------

    def _start(self, lease: Lease, *, begun: bool) -> None:
        task = asyncio.create_task(self._drive(lease, begun=begun), name=f"legato-run-{lease.run}")
        self._drives.add(task)
        task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        self._drives.discard(task)
        self.give_back()

    async def _drive(self, lease: Lease, *, begun: bool, ending: Ending | None = None) -> None:
        try:
            if not await self._answer(lease, begun, ending):
                await self._give_up([lease])
        except (RunEnded, StaleLease, NotFound) as exc:
            logger.info("run %s is driven elsewhere: %s", lease.run, exc)
        except LegatoError as exc:
            # The store's: at once it would fail again.
            self._left[lease.run] = lease
            logger.error("session %s: a run was left open: %s", lease.session, exc, exc_info=exc)
        except asyncio.CancelledError:
            self._left[lease.run] = lease
            raise

    async def _answer(self, lease: Lease, begun: bool, ending: Ending | None) -> bool:
        try:
            return await self._answer_run(lease, begun, ending)
        except LegatoError:
            raise  # the store's, or somebody else's run now: the log is as it should be
        except Exception:  # a log that we do not understand: tried again, it would fail again, for ever
            logger.exception("run %s cannot be driven", lease.run)
            return await self._finish(lease, BROKEN, Transcript(), [])

    async def _answer_run(self, lease: Lease, begun: bool, ending: Ending | None) -> bool:
        log = Log(self.store, lease.session)
        events = [event async for event in log.all(deltas=False)]
        mine = [event for event in events if event.run == lease.run]
        asked = next((event for event in mine if isinstance(event.fact, MessageCreated)), None)
        if asked is None:
            return False  # the session has been deleted meanwhile
        assert isinstance(asked.fact, MessageCreated)
        attempt = sum(event.type == "run.started" for event in mine) + (0 if begun else 1)
        name = asked.fact.agent or default_agent(events, self.default)
        agent = self.agents.get(name)
        earlier = attempt > 1
        left = [event async for event in log.all(asked.offset - 1) if event.run == lease.run] if earlier else mine
        if self.draining and not begun:  # no await from here until ``stop`` can see the execution
            return False  # the run waits for the next start
        transcript = fold(left)
        messages = history(events)
        del events  # a run may last for an hour, and the tools of all runs before it may have had much to say
        place = next((place for place, message in enumerate(messages) if message.run == lease.run), None)
        ending = self._ending_before(mine, attempt, name, agent) or ending or (REWOUND if place is None else None)
        if ending is not None or agent is None or place is None:
            return await self._finish(lease, ending or CANCELLED, transcript, mine)
        recorder = Recorder(
            lease.run,
            earlier=transcript,
            resumed=agent.on_crash == "resume",
            max_event_bytes=self.limits.event_bytes,
            max_run_characters=self.limits.run_characters,
        )
        execution = Execution(
            self.store,
            lease,
            limits=self.limits,
            recorder=recorder,
            earlier=mine,
            clock=self.clock,
        )
        turn = Turn(
            desk=execution,
            session=lease.session,
            run=lease.run,
            message=messages[place],
            history=messages[:place],
            agent=name,
            caller=Caller(asked.fact.caller or ""),
            attempt=attempt,
            events=left if earlier else (),
            max_event_bytes=self.limits.event_bytes,
        )
        if self._late:
            execution.stop(_interruption(agent))
        self._executions[lease.run] = (execution, agent)
        try:
            if not begun:
                await self.store.append(lease.session, [Draft(RunStarted(name, attempt), lease.run)], lease=lease)
            return await execution.run(agent, turn, after=asked.offset)
        finally:
            del self._executions[lease.run]

    def _ending_before(self, mine: list[Event], attempt: int, name: str, agent: Agent | None) -> Ending | None:
        """How the run ends without the agent being asked, or None if it is to be asked."""
        if any(isinstance(event.fact, CancelRequested) for event in mine):
            return CANCELLED
        if agent is None:
            return failed("unknown_agent", f"This server has no agent {name!r}.")
        if attempt > 1 and (agent.on_crash == "fail" or attempt > self.limits.attempts):
            return INTERRUPTED
        return None

    async def _finish(self, lease: Lease, ending: Ending, transcript: Transcript, mine: list[Event]) -> bool:
        for event in mine:
            if isinstance(event.fact, PermissionRequested):
                id = event.fact.id
                await self.store.append(lease.session, [expired(id, lease.run)], lease=lease, once=resolve_key(id))
        await self.store.append(lease.session, [terminal(ending, lease.run, transcript)], lease=lease)
        return True


def _interruption(agent: Agent) -> Ending:
    return INTERRUPTED if agent.on_crash == "fail" else LEFT_OPEN
