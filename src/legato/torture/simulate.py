"""A small world of nodes, people and faults on one store, which a seed decides: each run of a seed is the same.

Nodes are runners with their verbs; people send, cancel, answer, retry, fork and delete, on whatever node there is, and
ask again when they are not answered; readers follow logs with the cursors of a dialect, over connections that are cut
at any byte. Between any two steps a node may be killed, cut off, paused beyond its leases or made slow, replies and
rings may be lost, clocks set, and for SQLite the power may go. After each step it is checked what must hold (R1 to R7
of ``docs/design.md``); in the end all faults are mended, and every run must have ended, once, with what its agent said.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import msgspec

from ..caller import NOBODY
from ..errors import InvalidInput, LegatoError, SessionExists
from ..event import Draft, Event, MessageCreated, NotificationCreated, PermissionRequested, SessionCreated, TextDelta
from ..questions import Question, Sent
from ..store import open_store
from . import scripts
from .checks import Checked, in_order, of_files
from .ground import GivenGround, Ground, MemoryGround, SQLiteGround
from .inhabitants import TTL, Follower, RunFollower, SimulatedNode, node_of
from .leash import scratch
from .report import Chart
from .virtual import NothingHappens, drawn_by, run_virtually

PATIENCE, REAL_PATIENCE = 400.0, 60.0
"""Seconds for which what was ill-treated has its peace in the end."""
SESSIONS = 4
READERS = 6


class WorldPlan(msgspec.Struct, frozen=True):
    """What a simulation is to do.

    Attributes:
        seed: decides all that is random in it.
        steps: of people and faults.
        nodes: at once; of a store for one process there is always one.
        calm: nothing goes wrong, and everything must be in time. None: of every fifth seed.
    """

    seed: int = 0
    steps: int = 150
    nodes: int = 3
    calm: bool | None = None


class Simulated(msgspec.Struct):
    """What came of it.

    Attributes:
        trace: what was done, in order.
        faults: what must not be. Empty: all held.
        chart: what was done to whom, and who saw what.
        counts: how much of everything there was.
        digest: of the logs in the end: the same for the same seed.
    """

    plan: WorldPlan
    trace: list[str] = []
    faults: list[str] = []
    chart: Chart = msgspec.field(default_factory=lambda: Chart(""))
    counts: dict[str, int] = {}
    digest: str = ""

    def told(self) -> str:
        """The seed, the steps that led there, and what must not be."""
        return "\n".join([f"seed {self.plan.seed}, {self.plan.steps} steps:", *self.trace, *self.faults])


class World(Checked):
    """See the module's head.

    Args:
        ground: where its stores are.
        plan: what is to be done.
    """

    def __init__(self, ground: Ground, plan: WorldPlan) -> None:
        kind = type(ground).__name__.removesuffix("Ground").lower()
        chart = Chart(f"seed {plan.seed}, {plan.steps} steps, {kind} store")
        calm = plan.seed % 5 == 4 if plan.calm is None else plan.calm
        # In real time the machine may be busy with something else, so nobody can be called late.
        super().__init__(ground, plan.seed, chart, calm=calm and not ground.real)
        self.plan = plan
        self.trace: list[str] = []
        self._booting: dict[int, asyncio.Task[None]] = {}
        self._people: dict[asyncio.Task[Any], None] = {}
        self._number = 0

    def note(self, text: str) -> None:
        """Have it in the trace."""
        self.trace.append(f"{len(self.trace):4} {self.now:9.3f} s  {text}")

    # Nodes ------------------------------------------------------------------------------------------------------------

    def _boot(self, number: int, after: float = 0.0) -> None:
        async def boot() -> None:
            await asyncio.sleep(after * self.scale)
            store = await self.ground.boot(self.clock, self.draws)
            if self.ground.forgetful:
                await self._remember(store)
            node = SimulatedNode(self, number, store)
            self._nodes[number] = node
            self.chart.mark(node.lane, self.now, "start")
            del self._booting[number]
            node.do(node.start())
            self._booted.set()

        self._booting[number] = self._loop.create_task(boot())
        self._booting[number].add_done_callback(self._look_at)

    async def _kill(self, number: int, cut: random.Random | None = None) -> None:
        node = self._nodes.pop(number)
        self.chart.span(node.lane, node.since, self.now, "up")
        self.chart.mark(node.lane, self.now, "kill" if cut is None else "power")
        await node.end()
        await self.ground.drop(node.inner, cut=cut)
        if self.ground.forgetful and cut is not None:
            self._forget()

    async def _drain(self, number: int) -> None:
        node = self._nodes.pop(number)
        self.chart.span(node.lane, node.since, self.now, "up")
        self.chart.mark(node.lane, self.now, "drain")
        stopping = node.do(node.runner.stop(grace=self.draws.choice([0.0, 0.2, 3.0]) * self.scale))
        await asyncio.wait([stopping], timeout=60 * self.scale)
        await node.end()
        await self.ground.leave(node.inner)

    def _fail(self, number: int, kind: str, seconds: float) -> None:
        """Have something wrong with a node's way to the store, for a while."""
        node, began = self._nodes[number], self.now
        faults = node.store.faults
        if kind == "paused":
            faults.pause()
        elif kind == "cut":
            faults.cut = True
        elif kind == "slow":
            faults.slow = 1.5 * self.scale
        elif kind == "lost":
            faults.unanswered, faults.refused = 0.5, 0.1
        else:
            faults.unheard = 1.0

        def mend() -> None:
            faults.mend()
            self.chart.span(node.lane, began, self.now, kind)

        self._loop.call_later(seconds * self.scale, mend)

    # People -----------------------------------------------------------------------------------------------------------

    def _begin(self, doing: Coroutine[Any, Any, Any]) -> None:
        task = self._loop.create_task(doing)
        self._people[task] = None
        task.add_done_callback(self._look_at)

    def _look_at(self, task: asyncio.Task[Any]) -> None:
        self._people.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fault(f"somebody failed: {error!r}")

    async def _ask(self, what: str, verb: Callable[[SimulatedNode], Coroutine[Any, Any, Any]], *, again: bool) -> Any:
        """What a verb gives, or the error that it ends with; ``again``: it may be asked once more when nobody knows."""
        while True:
            node = await self.some_node()
            asked = node.do(verb(node))
            await asyncio.wait([asked])
            error = asyncio.CancelledError() if asked.cancelled() else asked.exception()
            if error is None:
                return asked.result()
            passing = isinstance(error, asyncio.CancelledError) or (
                isinstance(error, LegatoError) and error.status >= 429
            )
            if not isinstance(error, LegatoError | asyncio.CancelledError):
                self.fault(f"{what}: {error!r}")
            if not passing or not again:
                return error
            await asyncio.sleep((0.1 + self.draws.random()) * self.scale)

    def _session(self) -> str | None:
        there = [name for name in self._logs if name not in self._deleted and not of_files(name)]
        return self.draws.choice(there) if there else None

    def _send(self) -> str:
        session = self._session()
        if session is None or (self.draws.random() < 0.2 and len(self._logs) < SESSIONS + len(self._deleted)):
            session = f"{self.ground.prefix}s{len(self._logs)}x{self._number}"
        self._number += 1
        agent = self.draws.choice([*scripts.NAMES, "retry", "resume"])
        text, key = f"{agent} {self._number}", f"k{self._number}"
        files = self.plan.seed % 3 == 2 and not self.ground.real and self._number % 4 == 0
        metadata = scripts.file_for(text) if files else None
        copies = 2 if self.draws.random() < 0.3 else 1
        for _ in range(copies):
            self._begin(self._send_one(session, Question(text, agent, metadata, key)))
        return f"send {text!r} to {session}, {copies} time(s)"

    async def _send_one(self, session: str, question: Question) -> None:
        text, key = question.text, question.key or ""

        async def send(node: SimulatedNode) -> Sent:
            try:
                await node.sessions.create(NOBODY, session, SessionCreated(session))
            except SessionExists:
                pass
            return await node.sessions.send(NOBODY, session, question)

        sent = await self._ask(f"send {text!r}", send, again=True)
        if not isinstance(sent, Sent):
            return
        self.counts["sent"] += 1
        before = self._sent.setdefault((session, key), (sent.run, text))
        if before[0] != sent.run and not self.ground.forgetful:
            self.fault(f"R6 key {key} of {session} was acknowledged with run {before[0]}, and with {sent.run}")
        if self.draws.random() < 0.2:
            follower = RunFollower(self, sent, question.agent or "")
            self._runs.append(follower)
            self._begin(follower.follow())

    def _send_other(self) -> str | None:
        """The key of one message with another text."""
        known = [place for place in self._sent if place[0] not in self._deleted]
        if not known:
            return None
        session, key = self.draws.choice(known)

        async def send() -> None:
            question = Question("plain other", "plain", None, key)
            done = await self._ask("reuse", lambda node: node.sessions.send(NOBODY, session, question), again=True)
            if isinstance(done, Sent) and not (session in self._deleting or self.ground.forgetful):
                self.fault(f"R6 key {key} of {session} was taken for another text")

        self._begin(send())
        return f"send another text to {session} under key {key}"

    def _cancel(self) -> str | None:
        session = self._session()
        if session is None:
            return None

        async def cancel() -> None:
            runs = await self._ask("cancel", lambda node: node.sessions.cancel(NOBODY, session), again=True)
            if isinstance(runs, list):
                for run in runs:
                    self._cancelled.setdefault(run, self.now)

        self._begin(cancel())
        return f"cancel all of {session}"

    def _open_asks(self) -> list[Event]:
        asked: dict[str, Event] = {}
        for session, log in self._logs.items():
            if session in self._deleted:
                continue
            over: set[str | None] = set()
            for event in log.values():
                if isinstance(event.fact, PermissionRequested | NotificationCreated):
                    asked[event.fact.id] = event
                elif event.type in ("permission.resolved", "notification.resolved"):
                    asked.pop(event.data["id"], None)
                elif event.fact.terminal:
                    over.add(event.run)
            for id in [id for id, event in asked.items() if event.run in over]:
                del asked[id]
        return list(asked.values())

    def _answer(self) -> str | None:
        asks = self._open_asks()
        if not asks:
            return None
        fact: Any = self.draws.choice(asks).fact
        granted = self.draws.random() < 0.7

        async def answer() -> None:
            if isinstance(fact, PermissionRequested):
                holds = await self._ask(
                    "answer", lambda node: node.sessions.resolve_permission(NOBODY, fact.id, granted), again=True
                )
                before = self._answers.setdefault(fact.id, holds) if isinstance(holds, bool) else holds
                if before is not holds and not self.ground.forgetful:
                    self.fault(f"permission {fact.id} was answered {not holds}, and then {holds}")
            elif isinstance(fact, NotificationCreated):
                await self._ask(
                    "acknowledge",
                    lambda node: node.sessions.resolve_notification(NOBODY, fact.id, "acknowledge"),
                    again=True,
                )

        for _ in range(self.draws.choice([1, 1, 2])):
            self._begin(answer())
        return f"answer {fact.id} with {granted}"

    def _retry(self) -> str | None:
        session = self._session()
        asked = (
            [] if session is None else [e for e in self._logs[session].values() if isinstance(e.fact, MessageCreated)]
        )
        if session is None or not asked:
            return None
        fact = self.draws.choice(asked[-2:]).fact
        assert isinstance(fact, MessageCreated)
        for _ in range(self.draws.choice([1, 2])):
            self._begin(self._ask("retry", lambda node: node.sessions.retry(NOBODY, session, fact.id), again=False))
        return f"retry {fact.id}"

    def _fork(self) -> str | None:
        session = self._session()
        if session is None:
            return None
        self._number += 1
        name = f"{self.ground.prefix}f{self._number}"
        self._begin(self._ask("fork", lambda node: node.sessions.fork(NOBODY, session, name, last=0), again=False))
        return f"fork {session} as {name}"

    def _rewind(self) -> str | None:
        session = self._session()
        asked = (
            [] if session is None else [e for e in self._logs[session].values() if isinstance(e.fact, MessageCreated)]
        )
        if session is None or not asked:
            return None
        fact = self.draws.choice(asked).fact
        assert isinstance(fact, MessageCreated)
        self._begin(self._ask("rewind", lambda node: node.sessions.rewind(NOBODY, session, fact.id), again=False))
        return f"rewind {session} to {fact.id}"

    def _update(self) -> str | None:
        session = self._session()
        if session is None:
            return None
        for _ in range(2):
            self._number += 1
            self._begin(self._update_one(session, f"u{self._number}"))
        return f"update the metadata of {session}, twice"

    async def _update_one(self, session: str, field: str) -> None:
        done = await self._ask(
            "update", lambda node: node.sessions.edits.update(NOBODY, session, {field: 1}), again=True
        )
        if isinstance(done, dict):
            self._updates.setdefault(session, []).append(field)

    def _delete(self) -> str | None:
        session = self._session()
        if session is None or self.draws.random() < 0.5:
            return None
        self._deleting[session] = None
        self._begin(self._ask("delete", lambda node: node.sessions.delete(NOBODY, session), again=True))
        return f"delete {session}"

    def _read(self) -> str | None:
        session = self._session()
        if session is None or sum(not each.over for each in self._followers) >= READERS:
            return None
        after = 0 if self.draws.random() < 0.6 else self.draws.randrange(len(self._logs[session]) + 1)
        follower = Follower(self, f"reader {len(self._followers) + 1}", session, after)
        self._followers.append(follower)
        self._begin(follower.follow())
        return f"{follower.lane} follows {session} after {after}"

    # What goes wrong --------------------------------------------------------------------------------------------------

    async def _hurt(self) -> str | None:
        if self.calm or not self._nodes:
            return None
        number = self.draws.choice(list(self._nodes))
        kinds = [
            "kill",
            "kill",
            "paused",
            "cut",
            "slow",
            "lost",
            "lost",
            "unheard",
            "clock",
            "zombie",
            "zombie",
            "drain",
        ]
        if self.ground.has_power:
            kinds += ["power", "power", "power"]
        if len(self.trace) > 0.7 * self.plan.steps:  # what goes wrong in a process is not to end with it
            kinds = [kind for kind in kinds if kind not in ("kill", "power", "drain")]
        kind = self.draws.choice(kinds)
        self.counts[kind] += 1
        if kind in ("kill", "power", "drain"):
            after = self.draws.choice([0.0, 0.1, 2.0, 20.0])
            if kind == "drain":
                await self._drain(number)
            else:
                await self._kill(number, self.draws if kind == "power" else None)
            self._boot(number, after)
            return f"{kind} node {number}, which is back after {after:g} s"
        if kind == "clock":
            by = self.draws.choice([-30.0, -2.0, -0.5, 1.0, 20.0, 120.0])
            self.set += by * self.scale
            self._set_back = self._set_back or by <= -1
            self.chart.mark("store", self.now, "clock", f"{by:+g} s")
            return f"set the clock by {by:+g} s"
        if kind == "zombie":
            return await self._stale()
        seconds = self.draws.choice([0.1, 1.0, 5.0, 25.0])
        self.chart.mark(f"node {number}", self.now, {"paused": "pause"}.get(kind, kind), f"for {seconds:g} s")
        self._fail(number, kind, seconds)
        return f"node {number} is {kind} for {seconds:g} s"

    async def _stale(self) -> str | None:
        """Somebody writes under a lease that another has taken over."""
        old = [lease for lease in self._leases if lease.epoch < self._epochs.get((lease.session, lease.run), 0)]
        store = await self.ground.see()
        if not old or store is None:
            return None
        lease = self.draws.choice(old)
        try:
            await store.append(lease.session, [Draft(TextDelta(0, 1, 0, "stale"), lease.run)], lease=lease)
        except LegatoError:
            return f"append to {lease.run} with the old epoch {lease.epoch}"
        self.fault(f"R5 an append to {lease.run} with the old epoch {lease.epoch} was stored")
        return None

    # Steps ------------------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """All of it."""
        self._loop.set_task_factory(node_of)
        unheard: list[str] = []
        self._loop.set_exception_handler(lambda _, context: unheard.append(_unheard(context)))
        for lane in ("world", "store"):
            self.chart.lane(lane)
        for number in range(self.plan.nodes if self.ground.shared else 1):
            self.chart.lane(f"node {number + 1}")
            self._boot(number + 1)
        people: list[tuple[Callable[[], str | None], int]] = [
            (self._send, 10), (self._read, 5), (self._cancel, 3), (self._answer, 5), (self._retry, 2),
            (self._fork, 1), (self._rewind, 1), (self._update, 3), (self._delete, 1), (self._send_other, 1),
        ]  # fmt: skip
        acts, weights = [act for act, _ in people], [weight for _, weight in people]
        for _ in range(self.plan.steps):
            if self.draws.random() < 0.2 and not self.calm:
                done = await self._hurt()
            else:
                done = self.draws.choices(acts, weights)[0]()
            self.note(done or "nothing")
            await asyncio.sleep(self._pause() * self.scale)
            await self._check()
            if self.faults:
                break
        else:
            await self._heal()
        await self._end()
        for text in unheard:
            self.fault(f"nobody heard of this: {text}")
        for follower in self._followers:
            self.counts["read"] += len(follower.messages)

    def simulated(self) -> Simulated:
        """What came of it."""
        self.counts["events"] = sum(map(len, self._logs.values()))
        self.chart.faults = self.faults
        self.chart.figures = {**self.counts}
        return Simulated(self.plan, self.trace, self.faults, self.chart, dict(self.counts), self._digest())

    def _pause(self) -> float:
        kind = self.draws.random()
        if kind < 0.35:
            return self.draws.random() * 0.02
        if kind < 0.8:
            return self.draws.random() * 0.5
        return self.draws.random() * (4.0 if kind < 0.96 else 25.0)

    async def _heal(self) -> None:
        """Let all be well, and everybody have their answer."""
        self.note("all is mended")
        for node in self._nodes.values():
            node.store.faults.mend()
        self.chart.mark("world", self.now, "heal")
        until = self.now + max(PATIENCE * self.scale, REAL_PATIENCE)
        while self.now < until and not self.faults:
            while self._answer() is not None and len(self._people) < 200:
                if self.draws.random() < 0.5:
                    break
            await asyncio.sleep((3 + 4 * self.draws.random()) * self.scale)
            for node in self._nodes.values():
                node.store.faults.mend()
            await self._check()
            store = await self.ground.see()
            if store is not None and not self._booting and not await self._open_runs(store) and self._all_idle():
                break
        await asyncio.sleep(1.5 * TTL * self.scale)  # a heartbeat: who has not heard a ring looks then
        for _ in range(200):
            if self._all_idle():  # a place is taken for a moment with each look for what waits
                break
            await asyncio.sleep(0.05)
        else:
            self.fault(f"somebody still waits for an answer, or places are taken: {self._places()}")
        await self._sweep()
        await self._check()
        if not self.faults:
            await self._check_end()

    async def _sweep(self) -> None:
        """Have files of nobody deleted, as a server does in the course of time."""
        after, node = None, await self.some_node()
        while True:
            after, _ = await node.runner.blobs.sweep(self.clock(), after)
            if after is None:
                return

    def _places(self) -> str:
        return ", ".join(f"{node.lane} has {node.runner.places.taken}" for node in self._nodes.values())

    def _all_idle(self) -> bool:
        readers = sum(not each.over for each in self._followers) + sum(not each.over for each in self._runs)
        return len(self._people) <= readers and all(not node.runner.places.taken for node in self._nodes.values())

    async def _end(self) -> None:
        for task in [*self._people, *self._booting.values()]:
            task.cancel()
        for node in list(self._nodes.values()):
            self.chart.span(node.lane, node.since, self.now, "up")
            await node.end()
            await self.ground.leave(node.inner)
        await self.ground.close()

    def _digest(self) -> str:
        told = hashlib.sha256("\n".join(self.trace).encode())
        for session, log in self._logs.items():
            for event in in_order(log):
                told.update(f"{session} {event.offset} {event.type} {event.run} {event.at} {event.fact}".encode())
        return told.hexdigest()


def _unheard(context: dict[str, Any]) -> str:
    return f"{context.get('message')} {context.get('exception')!r} {context.get('task')!r}"


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What goes wrong here is no news."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


def simulated(ground: Ground, plan: WorldPlan) -> Simulated:
    """Run one seed on a ground that nobody has used before."""

    worlds: list[World] = []

    async def run() -> None:
        worlds.append(World(ground, plan))
        try:
            await worlds[0].run()
        except Exception as exc:
            worlds[0].fault(f"what is there cannot be looked at: {exc!r}")

    with _quietly(), contextlib.nullcontext() if ground.real else drawn_by(plan.seed):
        try:
            run_virtually(run(), real=ground.real)
        except NothingHappens as exc:
            worlds[0].fault(exc.message)
    return worlds[0].simulated()


def simulate_memory(plan: WorldPlan) -> Simulated:
    """Run one seed on a store in memory."""
    return simulated(MemoryGround(), plan)


def simulate_sqlite(plan: WorldPlan, *, durability: str = "full") -> Simulated:
    """Run one seed on a SQLite file that is thrown away."""
    from .power import PowerDisk

    with scratch("simulated") as folder, PowerDisk() as disk:
        return simulated(SQLiteGround(str(folder), disk, durability), plan)


def grounds(url: str | None) -> dict[str, Callable[[WorldPlan], Simulated]]:
    """What runs one seed, by the name of the store: on that of a URL; without one, in memory and on a SQLite file.

    Raises:
        InvalidInput: no store has a URL like this.
    """
    if url is None:
        return {"memory": simulate_memory, "sqlite": simulate_sqlite}
    open_store(url)  # raises, if it cannot
    kind = url.partition(":")[0]
    if kind == "memory":
        return {kind: simulate_memory}
    if kind == "sqlite":
        raise InvalidInput("SQLite is simulated on files of its own: leave out --store.")

    def simulate_given(plan: WorldPlan) -> Simulated:
        return simulated(GivenGround(lambda name, clock: open_store(url), "", shared=True, real=True), plan)

    return {kind: simulate_given}
