"""A simulated node, and those who read from it and come back to another."""

from __future__ import annotations

import asyncio
import contextvars
import json
import random
from collections.abc import Coroutine
from typing import Any

from ..bounds import Limits
from ..caller import NOBODY
from ..dialect import mix
from ..dialect.responses import ResponseEncoder, ResponseFold
from ..errors import LegatoError, NotFound, SessionNotFound, StoreError
from ..event import SessionDeleted
from ..load import Load
from ..log import Store
from ..questions import Sent
from ..run import Runner
from ..sessions import Sessions
from ..sse import Decoder, SSEMessage
from . import scripts
from .faulty import FaultyStore, Witness
from .report import Chart

TTL = 15.0
"""Seconds of a lease, and of a reader's heartbeat."""


class Surroundings(Witness):
    """What a node and its readers know of the world.

    Attributes:
        draws: decide all that is random.
        scale: of all times: 1 where they cost nothing.
        calm: nothing goes wrong, and everything must be in time.
        chart: of what was done to whom.
        faults: what must not be.
    """

    def __init__(self, seed: int, chart: Chart, *, scale: float, calm: bool) -> None:
        self.draws = random.Random(f"world {seed}")  # noqa: S311
        self.scale, self.calm, self.chart = scale, calm, chart
        self.faults: list[str] = []
        self.set = 0.0
        self._loop = asyncio.get_running_loop()
        self._began = self._loop.time()
        self._nodes: dict[int, SimulatedNode] = {}
        self._booted = asyncio.Event()

    @property
    def now(self) -> float:
        """Seconds since the world began."""
        return self._loop.time() - self._began

    def clock(self) -> float:
        """What all clocks say; ``set`` is by how much they were set."""
        return 1_700_000_000.0 + self._loop.time() + self.set

    def fault(self, text: str) -> None:
        """It must not be."""
        if len(self.faults) < 20:
            self.faults.append(text)
            self.chart.mark("world", self.now, "fault", text[:300])

    def may_reset(self, session: str) -> bool:
        """Whether a reader may be told that its cursor is not of this log."""
        return False

    async def some_node(self) -> SimulatedNode:
        """One that is there; when there is one."""
        while True:
            if there := list(self._nodes.values()):
                return self.draws.choice(there)
            self._booted.clear()
            await self._booted.wait()


NODE: contextvars.ContextVar[SimulatedNode | None] = contextvars.ContextVar("legato_simulated_node", default=None)


class SimulatedNode:
    """A process: a runner and its verbs, and all tasks that they have begun."""

    def __init__(self, world: Surroundings, number: int, store: Store) -> None:
        loop = asyncio.get_running_loop()
        self.lane = f"node {number}"
        self.inner = store
        self.store = FaultyStore(store, world.draws, world, usual=0.02 * world.scale)
        self.tasks: dict[asyncio.Task[Any], None] = {}
        self.ended = False
        self.since = world.now
        self.runner = Runner(
            self.store,
            scripts.Scripts(world.scale).agents(),
            limits=Limits(concurrent_runs=3, queued_messages=3, run_seconds=60 * world.scale, cancel_grace=0.5),
            lease_ttl=TTL * world.scale,
            clock=world.clock,
            steady=loop.time,
        )
        self.runner.load = Load(clock=loop.time, spent=lambda: 0.0)
        self.sessions = Sessions(self.store, self.runner)

    def do(self, doing: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Do this in the process: it ends with it."""
        context = contextvars.copy_context()
        context.run(NODE.set, self)
        return asyncio.get_running_loop().create_task(doing, context=context)

    async def start(self) -> None:
        """Begin to look for runs."""
        while True:
            try:
                await self.runner.start()
            except StoreError:
                await asyncio.sleep(0.5)  # as whoever starts it would
                continue
            self.runner.load.stop()  # it would look at its clock twenty times in a second of nothing
            return

    async def end(self) -> None:
        """End in the middle of everything."""
        self.store.faults.dead = True
        self.store.faults.go_on()
        self.runner.load.stop()
        for _ in range(100):  # a task may do something else before it ends
            left = [task for task in self.tasks if not task.done()]
            for task in left:
                task.cancel()
            if not left:
                break
            await asyncio.wait(left, timeout=0.001)
        self.ended = True


def node_of(loop: asyncio.AbstractEventLoop, coroutine: Any, **settings: Any) -> asyncio.Task[Any]:
    """A task factory: each task belongs to the node that has begun it, also if its context has nothing else of that."""
    context = settings.get("context")
    node = NODE.get() if context is None else context.get(NODE) or NODE.get()
    if node is not None and context is not None:
        context.run(NODE.set, node)
    task: asyncio.Task[Any] = asyncio.Task(coroutine, loop=loop, **settings)
    if node is not None:
        node.tasks[task] = None
        task.add_done_callback(lambda task: node.tasks.pop(task, None))
        if node.ended:
            task.cancel()
    return task


class Follower:
    """A reader of a session over the Mix dialect. Its connections are cut at any byte; it comes back with its cursor.

    Attributes:
        messages: what it was told, in order.
        over: its log was deleted, and it knows.
        astray: what it was told may be gone, and it has not come back since.
    """

    def __init__(self, world: Surroundings, lane: str, session: str, after: int) -> None:
        self.lane = lane
        self.session = session
        self.after = after
        self.messages: list[SSEMessage] = []
        self.cursor = str(after)
        self.checked = 0
        self.over = False
        self.behind_since: float | None = None
        self.behind_at = 0
        self.astray = False
        self._world = world
        self._incarnation: str | None = None

    async def follow(self) -> None:
        """Read until the session is deleted."""
        while not self.over:
            node = await self._world.some_node()
            reading = node.do(self._read(node))
            await asyncio.wait([reading])
            error = None if reading.cancelled() else reading.exception()
            if error is not None and not isinstance(error, LegatoError):
                self._world.fault(f"{self.lane}: {error!r}")
                return
            await asyncio.sleep(self._world.draws.random() * 0.5 * self._world.scale)

    async def _read(self, node: SimulatedNode) -> None:
        world, draws = self._world, self._world.draws
        opening = mix.open_stream({"sessionId": self.session}, self.cursor)
        try:
            info = await node.sessions.info(NOBODY, self.session)
        except SessionNotFound:
            self.over = True
            return
        cursor = int(self.cursor)
        if not await node.sessions.holds(self._incarnation, self.session, cursor):
            if not world.may_reset(self.session):
                world.fault(f"R10 {self.lane} was told that offset {cursor} of {self.session} is not the one it had")
            self.reset()
            opening = mix.open_stream({"sessionId": self.session}, self.cursor)
        after, exact = mix.position(opening, info)
        if not exact:
            if not world.may_reset(self.session):
                world.fault(f"R10 {self.lane} has read {self.session} up to {cursor}, and its head is {info.head}")
            self.reset()
            after = self.after
        self._incarnation, self.astray = node.sessions.incarnation or None, False
        decoder = Decoder()
        left = draws.randrange(4_000) if draws.random() < 0.3 and not world.calm else None
        with await node.sessions.follow(NOBODY, self.session, after, heartbeat=TTL * world.scale) as subscription:
            while True:
                for event in await subscription.next():
                    frame = mix.frame(event, self.session, mix.LEGATO)
                    if left is not None and len(frame) > left:
                        self._take(decoder, frame[:left])
                        return
                    left = None if left is None else left - len(frame)
                    self._take(decoder, frame)
                    if isinstance(event.fact, SessionDeleted):
                        self.over = True
                        return

    def reset(self) -> None:
        """Forget all, since it was said that it is not so, and begin anew."""
        self.messages, self.checked, self.after, self.cursor = [], 0, 0, "0"

    def _take(self, decoder: Decoder, data: bytes) -> None:
        for message in decoder.feed(data):
            self.messages.append(message)
            self.cursor = message.id
        self._world.chart.level(f"{self.lane}, {self.session}", self._world.now, float(self.cursor), self.session)


class RunFollower:
    """A reader of one run over the Responses dialect, who comes back with the number of the last event that it had.

    Attributes:
        told: what it was told, as JSON, in order.
    """

    def __init__(self, world: Surroundings, sent: Sent, agent: str) -> None:
        self.sent = sent
        self.agent = agent
        self.told: list[str] = []
        self.over = self.astray = False
        self._world = world

    async def follow(self) -> None:
        """Read until the run has ended, or its session is gone."""
        while not self.over:
            node = await self._world.some_node()
            reading = node.do(self._read(node))
            await asyncio.wait([reading])
            if not reading.cancelled() and (error := reading.exception()) is not None:
                if isinstance(error, NotFound):
                    return
                if not isinstance(error, LegatoError):
                    self._world.fault(f"who reads {self.sent.run}: {error!r}")
                    return
            await asyncio.sleep(self._world.draws.random() * 0.5 * self._world.scale)

    def encoder(self, after: int | None) -> ResponseEncoder:
        """For who has had everything up to a number."""
        return ResponseEncoder(ResponseFold(self.sent.session, self.sent.run, agent=self.agent), after=after)

    async def _read(self, node: SimulatedNode) -> None:
        last = json.loads(self.told[-1])["sequence_number"] if self.told else None
        encoder, decoder, draws = self.encoder(last), Decoder(), self._world.draws
        left = draws.randrange(20_000) if draws.random() < 0.4 else None
        session, before = self.sent.session, self.sent.offset - 1
        with await node.sessions.follow(NOBODY, session, before, heartbeat=TTL * self._world.scale) as subscription:
            while not encoder.over:
                for event in await subscription.next():
                    frames = encoder.encode(event)
                    if left is not None and len(frames) > left:
                        self.take(decoder, frames[:left])
                        return
                    left = None if left is None else left - len(frames)
                    self.take(decoder, frames)
        self.over = True

    def take(self, decoder: Decoder, frames: bytes) -> None:
        """What bytes say."""
        self.told += [each.data for each in decoder.feed(frames) if each.data != "[DONE]"]
