"""``RunAttempts``: what becomes of a run that this process has a lease of.

What its log says decides first: whether an agent is asked at all, which, for which time, and with what history. Then it
is driven (``Execution``), and what came of that is counted.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from .about import ABOUT, About
from .agent import Agent, Turn
from .asks import Deadlines
from .blobs import Blobs
from .bounds import Limits
from .caller import Caller
from .contents import Catalogue, Contents, window
from .desk import RunDesk
from .ending import CANCELLED, INTERRUPTED, LEFT_OPEN, Ending, ended, failed
from .errors import HeadMoved, InvalidInput, NotFound, RunEnded, StaleLease, StoreError, TooLarge
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
from .history import told
from .load import Load
from .log import Log, Store
from .machine import Lease
from .outbox import Outbox
from .recorder import Recorder, brought
from .spending import Accounts, spent
from .traces import RunSpan, Traces
from .transcript import fold

logger = logging.getLogger("legato")

BROKEN = failed("internal_error", "The server could not answer. Its log has the details.")
REWOUND = failed("rewound", "The message was taken back before it was answered.")


class Attempt:
    """A run that is to be driven on.

    Args:
        lease: of the run.
        begun: its start is in the log, stored with its message.
        span: of what has begun, if somebody traces.

    Attributes:
        lease: the present one; another than at first once an append has failed.
    """

    def __init__(self, lease: Lease, *, begun: bool, span: RunSpan | None = None) -> None:
        self.lease = lease
        self.begun = begun
        self.span = span


class _Going(NamedTuple):
    """A run that an agent is to go on with.

    Attributes:
        asked: its message.
        events: what its log has, without deltas.
        left: all that earlier attempts left, the message too; nothing in the first.
        number: of the attempt, from 1.
        name: by which the agent goes here.
    """

    attempt: Attempt
    asked: MessageCreated
    events: list[Event]
    left: Sequence[Event]
    number: int
    name: str
    agent: Agent
    span: RunSpan | None


class RunAttempts:
    """Drives runs, each to its end, as far as the store and the time allow.

    Args:
        store: open.
        contents: of its sessions.
        blobs: of its sessions.
        agents: gives them, by name; the first is the default.
        limits: gives them.
        accounts: of those who pay.
        load: says for how long what runs say is to gather; has the figures.
        deadlines: of what agents ask.
        refused: counts what limits have refused.
        traces: makes spans of runs.
        clock: seconds since the epoch.
        lease_ttl: seconds of a lease.
        draining: whether what has not begun is left to others.

    Attributes:
        executions: those under way, each with its agent.
    """

    def __init__(
        self,
        store: Store,
        contents: Catalogue,
        blobs: Blobs,
        *,
        agents: Callable[[], Mapping[str, Agent]],
        limits: Callable[[], Limits],
        accounts: Accounts,
        load: Load,
        deadlines: Deadlines,
        refused: Counter[str],
        traces: Traces | None,
        clock: Callable[[], float],
        lease_ttl: float,
        draining: Callable[[], bool],
    ) -> None:
        self.executions: dict[Execution, Agent] = {}
        self._store = store
        self._contents = contents
        self._blobs = blobs
        self._agents = agents
        self._limits = limits
        self._accounts = accounts
        self._load = load
        self._figures = load.figures
        self._deadlines = deadlines
        self._refused = refused
        self._traces = traces
        self._clock = clock
        self._lease_ttl = lease_ttl
        self._draining = draining
        self._late = False  # whoever begins now is to stop at once

    def interrupt(self) -> None:
        """Stop all agents, and those that begin from now on."""
        self._late = True
        for execution, agent in list(self.executions.items()):
            execution.stop(_interruption(agent))

    def forget(self) -> None:
        """Let all be driven anew: logs are not what they were."""
        for execution, agent in list(self.executions.items()):
            execution.forget(_interruption(agent))

    def span(
        self, session: str, run: str, agent: str, attempt: int, asked: AnyFact | None, at: float | None = None,
        before: Iterable[Event] = (),
    ) -> RunSpan | None:  # fmt: skip
        """The span of an attempt, see ``Traces.run``; None if nobody traces."""
        if self._traces is None:
            return None
        parent = asked.trace if isinstance(asked, MessageCreated) else None
        return self._traces.run(
            session=session, run=run, agent=agent, attempt=attempt, parent=parent, at=at, before=before
        )

    async def answer(self, attempt: Attempt) -> bool:
        """Drive a run until its end; False if it was left open.

        Raises:
            StoreError: what it said could not be stored. StaleLease, RunEnded, NotFound: it is somebody else's now.
        """
        try:
            return await self._answer(attempt)
        except (StoreError, StaleLease, RunEnded, NotFound):
            raise  # the store's, or somebody else's run now: the log is as it should be
        except Exception:  # what no log can have, or a log that we do not understand: again it would fail again
            logger.exception("run %s cannot be driven", attempt.lease.run)
            return await self._finish(attempt.lease, BROKEN)

    async def _answer(self, attempt: Attempt) -> bool:
        lease, begun, limits = attempt.lease, attempt.begun, self._limits()
        log = Log(self._store, lease.session)
        info = await self._store.info(lease.session)
        contents = await self._contents.of(lease.session, info.head)
        place, asked = contents.place(lease.run), contents.runs[lease.run].offset
        before = contents.entries[:place]
        mine = [event async for event in log.all(asked - 1, deltas=False) if event.run == lease.run]
        if not mine:  # the session has been deleted meanwhile
            return await self._finish(lease, BROKEN)
        fact = mine[0].fact
        assert isinstance(fact, MessageCreated)
        number = sum(isinstance(event.fact, RunStarted) for event in mine) + (0 if begun else 1)
        if number > 1:
            self._figures.taken_over += 1
        else:
            self._figures.waits.add(self._clock() - mine[0].at)
        agents = self._agents()
        name = fact.agent or info.created.agent or next(iter(agents))
        agent = agents.get(name)
        ABOUT.set(About(ABOUT.get().request, fact.caller or "", lease.session, lease.run))
        span = attempt.span or self.span(
            lease.session, lease.run, name, number, fact, mine[0].at if number == 1 else None, mine
        )
        ending = self._ending_before(mine, number, name, agent) or (REWOUND if place is None else None)
        if ending is not None or agent is None:
            if self._draining() and not begun:
                return False  # the run waits for the next start
            ending = ending or CANCELLED
            finished = await self._finish(lease, ending)
            if span is not None:
                span.end(str(ending.kind), ending.code, None)
            return finished
        left: Sequence[Event] = ()
        if number > 1:
            left = [event async for event in log.all(asked - 1) if event.run == lease.run]
        said = window(before, messages=limits.history_messages, bytes=limits.history_bytes)
        history = await self._contents.messages(lease.session, before[said:])
        message = told(await self._blobs.whole(lease.session, mine[0]))
        if self._draining() and not begun:  # no await from here until ``interrupt`` can see the execution
            return False
        going = _Going(attempt, fact, mine, left, number, name, agent, span)
        execution, desk, recorder = self._execution(going, self._room(contents, info.head))
        turn = Turn(
            desk=desk,
            session=lease.session,
            run=lease.run,
            message=message,
            history=history,
            omitted=said,
            earlier=lambda most: self._contents.messages(lease.session, before[said - min(most, said) : said]),
            agent=name,
            caller=Caller(fact.caller or ""),
            attempt=number,
            events=left,
            max_event_bytes=limits.event_bytes,
        )
        return await self._execute(going, execution, recorder, turn)

    def _execution(self, going: _Going, limits: Limits) -> tuple[Execution, RunDesk, Recorder]:
        """What drives a run on from where earlier attempts have left it."""
        lease = going.attempt.lease
        recorder = Recorder(
            lease.run,
            earlier=fold(going.left) if going.number > 1 else None,
            resumed=going.agent.on_crash == "resume",
            max_event_bytes=limits.event_bytes,
            max_run_characters=limits.run_characters,
            max_run_bytes=limits.run_bytes,
            spent=sum(len(event.json) for event in going.left),
            theirs=brought(going.asked.metadata or {}),
        )
        outbox = Outbox(
            self._store,
            lease,
            limits=limits,
            load=self._load,
            clock=self._clock,
            lease_ttl=self._lease_ttl,
            asked_at=going.events[0].at if going.number == 1 else None,
            span=going.span,
        )
        desk = RunDesk(
            lease.run,
            outbox,
            recorder,
            limits=limits,
            earlier=going.events,
            clock=self._clock,
            deadlines=self._deadlines,
        )
        execution = Execution(
            self._store,
            outbox,
            recorder,
            desk,
            limits=limits,
            figures=self._figures,
            refused=self._refused,
            span=going.span,
        )
        return execution, desk, recorder

    async def _execute(self, going: _Going, execution: Execution, recorder: Recorder, turn: Turn) -> bool:
        """Have the agent answer, and count what came of it."""
        attempt, agent, span = going.attempt, going.agent, going.span
        lease = attempt.lease
        if self._late:
            execution.stop(_interruption(agent))
        had = recorder.spent
        self.executions[execution] = agent
        began = time.monotonic()
        try:
            if not attempt.begun:
                started = RunStarted(going.name, going.number, None if span is None else span.told)
                await self._store.append(lease.session, [Draft(started, lease.run)], lease=lease)
            return await execution.run(agent, turn, after=going.events[0].offset)
        finally:
            del self.executions[execution]
            attempt.lease = execution.lease
            size = recorder.spent - had + (length(going.events[0]) if going.number == 1 else 0)
            self._accounts.add(going.asked.caller or "", spent(execution.events, size, recorder.usage))
            self._figures.runs.add(time.monotonic() - began)
            if span is not None:
                span.end("left", "", None)

    def _room(self, contents: Contents, head: Offset) -> Limits:
        """The limits of a run in this session, which may not have room for all that one run may store."""
        limits = self._limits()
        events, size = limits.session_events - head, limits.session_bytes - contents.bytes
        if limits.run_events <= events and limits.run_bytes <= size:
            return limits
        return msgspec.structs.replace(
            limits, run_events=max(min(limits.run_events, events), 0), run_bytes=max(min(limits.run_bytes, size), 0)
        )

    def _ending_before(self, mine: list[Event], number: int, name: str, agent: Agent | None) -> Ending | None:
        """How the run ends without the agent being asked, or None if it is to be asked."""
        if any(isinstance(event.fact, CancelRequested) for event in mine):
            return CANCELLED
        if agent is None:
            return failed("unknown_agent", f"This server has no agent {name!r}.")
        if number > 1 and (agent.on_crash == "fail" or number - _waited(mine) > self._limits().attempts):
            return INTERRUPTED
        return None

    async def _finish(self, lease: Lease, ending: Ending) -> bool:
        """End a run that is not driven any more."""
        whole = True
        while True:
            info = await self._store.info(lease.session)
            run = info.runs.get(lease.run)
            if run is None:
                return True
            try:
                drafts = await ended(self._store, run, ending, whole=whole)
                await self._store.append(lease.session, drafts, lease=lease, head=info.head)
                self._figures.ended.add(str(ending.kind), ending.code)
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
