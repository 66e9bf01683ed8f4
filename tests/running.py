"""A stage for runs: a store whose appends can be held, counted and failed, runners on it, and a crash on demand.

When a stage is left, every log on it is checked: dense offsets, only legal moves, one terminal event for each run, at
its end, with exactly what the run's deltas add up to.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

from facts import draft
from legato.agent import Agent
from legato.bounds import Limits
from legato.caller import NOBODY
from legato.errors import StoreError
from legato.event import TERMINAL, Draft, Event, Terminal
from legato.json import JsonObject
from legato.log import Appended, Log, Subscription
from legato.machine import Lease, RunState, advance
from legato.questions import Question, Sent
from legato.run import Runner
from legato.sessions import Sessions
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from legato.transcript import fold

STORES = ["memory", "sqlite"]
NET = 30.0
"""Seconds after which a test that should have ended is given up; nothing waits for them otherwise."""


class Clock:
    """A clock that goes only when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A store whose appends of a run's own (under its lease, or with which it is taken) pass through ``before``, and
    are counted.

    Attributes:
        before: called with what is to be appended; may wait, append something else first, or raise.
        batches: the types of the drafts of each append of a run's own that has succeeded.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.before: Callable[[str, Sequence[Draft]], Awaitable[None]] | None = None
        self.batches: list[list[str]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def append(
        self, session: str, drafts: Sequence[Draft], *, lease: Lease | None = None, **options: Any
    ) -> Appended:
        own = lease is not None or options.get("take") is not None
        if own and self.before is not None:
            await self.before(session, drafts)
        appended: Appended = await self.inner.append(session, drafts, lease=lease, **options)
        if own:
            self.batches.append([draft.type for draft in drafts])
        return appended

    def fail(self, times: int, *, of: str) -> None:
        """Let the next ``times`` appends that hold an event of type ``of`` fail."""

        async def before(session: str, drafts: Sequence[Draft]) -> None:
            nonlocal times
            if times and any(draft.type == of for draft in drafts):
                times -= 1
                raise StoreError("The disk is on strike.")

        self.before = before


class Node(Runner):
    """A runner with the verbs, as the one caller of an open server asks for them."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.sessions = Sessions(self.store, self)

    async def send(
        self,
        session: str,
        text: str,
        *,
        agent: str | None = None,
        metadata: JsonObject | None = None,
        key: str | None = None,
    ) -> Sent:
        return await self.sessions.send(NOBODY, session, Question(text, agent, metadata, key))

    async def retry(self, session: str, message: str, *, run: str | None = None) -> Sent:
        return await self.sessions.retry(NOBODY, session, message, run=run)

    async def answer(self, session: str, message: str) -> Sent:
        return await self.sessions.answer(NOBODY, session, message)

    async def cancel(self, session: str, run: str | None = None) -> list[str]:
        return await self.sessions.cancel(NOBODY, session, run)

    async def resolve_permission(self, id: str, granted: bool) -> bool:
        return await self.sessions.resolve_permission(NOBODY, id, granted)

    async def resolve_notification(self, id: str, response: str, value: str | None = None) -> None:
        await self.sessions.resolve_notification(NOBODY, id, response, value)


class Gate:
    """Holds a run's first append of an event type until it is opened.

    Attributes:
        reached: set when the append has come.
    """

    def __init__(self, store: Watched, type: str) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()
        self._type = type
        store.before = self._before

    async def _before(self, session: str, drafts: Sequence[Draft]) -> None:
        if any(draft.type == self._type for draft in drafts):
            self.reached.set()
            await self._open.wait()

    def open(self) -> None:
        self._open.set()


class Stage:
    """See the module's head."""

    def __init__(self, store: Watched, clock: Clock) -> None:
        self.store = store
        self.clock = clock
        self._runners: list[Node] = []
        self._names = itertools.count(1)
        self._sessions: list[str] = []

    def runner(self, *agents: Any, limits: Limits | None = None, **settings: Any) -> Node:
        """A runner with these agents (functions or ``Agent``), not started: sending works without."""
        named = [agent if isinstance(agent, Agent) else Agent(agent) for agent in agents]
        limits = limits or Limits(cancel_grace=5.0)
        runner = Node(self.store, {agent.name: agent for agent in named}, limits=limits, clock=self.clock, **settings)
        self._runners.append(runner)
        return runner

    async def session(self, **data: Any) -> str:
        session = f"s{next(self._names)}"
        await self.store.append(session, [draft("session.created", data)])
        self._sessions.append(session)
        return session

    async def answer(self, agent: Any, text: str = "hello", **settings: Any) -> Event:
        """The terminal event of one message's run in a session of its own."""
        return await self.ended(await self.runner(agent, **settings).send(await self.session(), text))

    async def waiting(self, runner: Node, text: str = "waiting") -> Sent:
        """A message in a session of its own whose run has found no place: it is in the log, and nobody has it."""
        sent = await runner.send(await self.session(), text)
        async with asyncio.timeout(NET):
            while not runner.places.waiting:  # noqa: ASYNC110  # it looks in its own time
                await asyncio.sleep(0)
        assert (await self.store.info(sent.session)).runs[sent.run].owner is None
        return sent

    async def ended(self, sent: Sent) -> Event:
        """The terminal event of a sent message's run, once it is there."""
        return await self.seen(sent.session, lambda event: event.run == sent.run and event.type in TERMINAL)

    async def seen(self, session: str, match: Callable[[Event], bool] | str) -> Event:
        """The first event of the session that matches (or is of this type), once it is there."""
        async with asyncio.timeout(NET):
            with Subscription(self.store, session, 0) as subscription:
                while True:
                    for event in await subscription.next():
                        if event.type == match if isinstance(match, str) else match(event):
                            return event

    async def events(self, session: str, run: str | None = None) -> list[Event]:
        return [event async for event in Log(self.store, session).all() if run in (None, event.run)]

    async def types(self, sent: Sent) -> list[str]:
        """The types of the run's events, neighbouring equal ones as one."""
        return [
            type for type, _ in itertools.groupby(event.type for event in await self.events(sent.session, sent.run))
        ]

    async def idle(self, runner: Runner) -> None:
        """Return when the runner drives nothing."""
        async with asyncio.timeout(NET):
            while runner._drives:
                await asyncio.wait(list(runner._drives))
                await asyncio.sleep(0)  # those that are over are told to the runner

    async def crash(self) -> None:
        """End all runners in the middle of whatever they do, without a word, and open the store anew."""
        await self._drop()
        self.store.before = None
        await self.store.close()
        await self.store.open()

    async def _drop(self) -> None:
        tasks = [task for runner in self._runners for task in (*runner._drives, runner._worker) if task]
        self._runners = []
        for task in tasks:
            task.cancel()
        if tasks:
            async with asyncio.timeout(NET):
                await asyncio.wait(tasks)

    async def close(self) -> None:
        """End what goes on, and check all logs."""
        await self._drop()
        for session in self._sessions:
            check_log(await self.events(session))


def check_log(events: list[Event]) -> None:
    """Every rule that a session's log keeps whatever happens."""
    if events and events[0].type != "session.deleted":
        assert list(range(1, len(events) + 1)) == [event.offset for event in events]
    for run in {event.run for event in events if event.run is not None}:
        state: RunState | None = None
        mine = [event for event in events if event.run == run]
        for event in mine:
            state = advance(state, event.type)
        assert all(event.type not in TERMINAL for event in mine[:-1])
        last = mine[-1]
        if last.type in TERMINAL:
            assert isinstance(last.fact, Terminal)
            assert fold(mine).message(run) == last.fact.said


@contextlib.asynccontextmanager
async def staged(kind: str, folder: Path) -> AsyncIterator[Stage]:
    """A stage on a store of this kind."""
    clock = Clock()
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    inner = MemoryStore(clock=clock) if kind == "memory" else SQLiteStore(folder / "runs.db", clock=clock)
    await inner.open()
    stage = Stage(Watched(inner), clock)
    try:
        yield stage
        await stage.close()
        gc.collect()  # a task whose error nobody has looked at tells it when it is collected
        assert unheard == []
    finally:
        await stage._drop()
        await inner.close()
