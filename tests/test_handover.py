"""Several nodes on one store: one that stops hands over what it leaves, and one that is idle takes its share.

Nodes are applications in this process. The store's clock stands still, so no lease ever ends by itself: whatever
changes hands was handed over.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from driving import Chat, data, ends, named
from held_store import HeldStore, having, quiet
from legato.agent import Agent
from legato.bounds import Limits
from legato.server.app import Legato
from legato.store.memory import MemoryStore
from legato.testing import Driver, FakeClock
from raw_log import canonical

PROMPT = 60.0
"""Seconds; a safety net. No node looks round here for longer than that, so whoever does something was told of it."""


class Shared(HeldStore):
    """A store that several nodes open and close; it is opened once, and closed never."""

    def __init__(self, inner: Any = None) -> None:
        super().__init__(inner)
        self._opened = False

    async def open(self) -> None:
        if not self._opened:
            self._opened = True
            await self.inner.open()

    async def close(self) -> None:
        pass


class Nodes:
    """Nodes by name, on one store, and what their agents were asked to do.

    Attributes:
        calls: node, message and attempt of each call of an agent, in order.
    """

    def __init__(self) -> None:
        self.clock = FakeClock(time.time())
        self.shared = Shared(MemoryStore(clock=self.clock))
        self.calls: list[tuple[str, str, int]] = []
        self.drivers: dict[str, Driver] = {}
        self.apps: dict[str, Legato] = {}
        self._gates: dict[str, asyncio.Event] = {}
        self._called = asyncio.Event()
        self._tasks: list[asyncio.Task[Any]] = []

    def meanwhile(self, coroutine: Any) -> asyncio.Task[Any]:
        """Begin something that is over, in whatever way, when the test is."""
        task = asyncio.create_task(coroutine)
        self._tasks.append(task)
        return task

    def gate(self, text: str) -> asyncio.Event:
        """Where the answer to this message waits."""
        return self._gates.setdefault(text, asyncio.Event())

    async def start(
        self,
        name: str,
        *,
        on_crash: Any = "retry",
        store: Any = None,
        agent: Any = None,
        lease_ttl: float = 3_600.0,
        **limits: Any,
    ) -> Driver:
        """Start a node."""
        agents = [Agent(agent or self._agent(name), name="agent", on_crash=on_crash)]
        app = Legato(
            store or self.shared, agents=agents, limits=Limits(cancel_grace=0.05, **limits), lease_ttl=lease_ttl
        )
        app.drain_on_signal = False
        app.grace = 0.0
        self.apps[name], self.drivers[name] = app, Driver(app)
        return await self.drivers[name].__aenter__()

    async def stop(self, name: str) -> None:
        """Stop it in good order."""
        driver = self.drivers.pop(name)
        async with asyncio.timeout(30):
            await driver.__aexit__(None, None, None)

    def _agent(self, name: str) -> Callable[[Any], AsyncIterator[str]]:
        async def agent(turn: Any) -> AsyncIterator[str]:
            text = turn.message.text
            self.calls.append((name, text, turn.attempt))
            self._called.set()
            yield f"{name}: "
            await self.gate(text).wait()
            yield text

        return agent

    async def called(self, count: int, seconds: float) -> None:
        """Wait until agents have been called so often."""
        async with asyncio.timeout(seconds):
            while len(self.calls) < count:
                self._called.clear()
                await self._called.wait()

    async def session(self, name: str) -> Chat:
        driver = self.drivers[name]
        return Chat(self.apps[name], driver, (await driver.request("POST", "/api/sessions", json={})).json()["id"])

    def seen_by(self, name: str, chat: Chat) -> Chat:
        """The same session at another node."""
        return Chat(self.apps[name], self.drivers[name], chat.session)

    async def close(self) -> None:
        for gate in self._gates.values():
            gate.set()
        for name in list(self.drivers):
            await self.stop(name)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
async def nodes(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Nodes]:
    """No nodes yet; all of them are stopped afterwards, and no lease has run out meanwhile."""
    monkeypatch.setattr("legato.run.LOOK_EVERY", 3_600.0)
    nodes = Nodes()
    now = nodes.clock.now
    try:
        yield nodes
    finally:
        await nodes.close()
    assert nodes.clock.now == now


async def answer(chat: Chat, run: str, seconds: float = PROMPT) -> str:
    """The answer of a run, once it is there."""
    async with asyncio.timeout(seconds):
        return str(data((await chat.follow("0", until=ends(run)))[-1])["content"])


# Handing over ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_crash", ["retry", "resume"])
async def test_what_a_node_leaves_when_it_stops_is_taken_by_another_at_once(nodes: Nodes, on_crash: Any) -> None:
    """The run goes on there, although its lease has not run out, and its readers get its end."""
    await nodes.start("A", on_crash=on_crash)
    await nodes.start("B", on_crash=on_crash)
    chat = await nodes.session("A")
    run = (await chat.send("one")).json()["runId"]
    await nodes.called(1, PROMPT)
    await quiet()
    there = nodes.seen_by("B", chat)
    reading = nodes.meanwhile(there.follow("0", until=ends(run)))
    await quiet()
    await nodes.stop("A")
    await nodes.called(2, PROMPT)
    nodes.gate("one").set()

    assert await answer(there, run) in ("B: one", "A: B: one")
    assert nodes.calls == [("A", "one", 1), ("B", "one", 2)]
    assert ends(run)((await reading)[-1])


async def test_a_run_that_is_not_to_be_tried_again_is_ended_by_the_node_that_stops(nodes: Nodes) -> None:
    """Nobody else is asked, and what it says is that it was interrupted."""
    await nodes.start("A", on_crash="fail")
    await nodes.start("B", on_crash="fail")
    chat = await nodes.session("A")
    await chat.send("one")
    await nodes.called(1, PROMPT)
    await nodes.stop("A")
    await quiet()
    events = await canonical(nodes.drivers["B"], chat.session)
    assert (events[-1]["type"], events[-1]["data"]["code"]) == ("run.failed", "interrupted")
    assert nodes.calls == [("A", "one", 1)]


async def test_what_waits_behind_a_run_is_handed_over_too(nodes: Nodes) -> None:
    """In one session, in order, one after another, with the run that they wait for."""
    await nodes.start("A")
    await nodes.start("B")
    chat = await nodes.session("A")
    runs = [(await chat.send(text)).json()["runId"] for text in ("one", "two", "three")]
    await nodes.called(1, PROMPT)
    await nodes.stop("A")
    for place, text in enumerate(("one", "two", "three")):
        await nodes.called(2 + place, PROMPT)
        nodes.gate(text).set()
        assert (await answer(nodes.seen_by("B", chat), runs[place])).endswith(text)
    assert nodes.calls == [("A", "one", 1), ("B", "one", 2), ("B", "two", 1), ("B", "three", 1)]


async def test_who_reads_what_no_node_has_a_place_for_is_told(nodes: Nodes) -> None:
    """Once, however often the node looks; and the answer goes on when there is one."""
    await nodes.start("A")
    await nodes.start("B", concurrent_runs=1, lease_ttl=1.0)
    chat = await nodes.session("A")
    run = (await chat.send("one")).json()["runId"]
    busy = await nodes.session("B")
    await busy.send("busy")
    await nodes.called(2, PROMPT)
    await nodes.stop("A")
    there = nodes.seen_by("B", chat)
    await there.follow("0", until=named("run_waiting"))
    assert nodes.calls[2:] == []
    runner = nodes.apps["B"].runner
    for _ in range(2):
        await runner.backlog.learn()
        await runner.backlog.tell()
    nodes.gate("busy").set()
    nodes.gate("one").set()
    await answer(there, run)
    types = [event["type"] for event in await canonical(there.driver, chat.session) if event["run"] == run]
    assert [type for type in types if not type.endswith("delta")] == [
        "message.created", "run.started", "run.waiting", "run.started", "run.completed"
    ]  # fmt: skip


async def test_a_full_node_has_a_spare_place_for_what_another_has_left(nodes: Nodes) -> None:
    """Whose it is has none of its places, so it need not wait for those who have all."""
    await nodes.start("A")
    await nodes.start("B", concurrent_runs=10, lease_ttl=1.0)
    chat = await nodes.session("A")
    await chat.send("one")
    for number in range(10):
        await (await nodes.session("B")).send(f"busy {number}")
    await nodes.called(11, PROMPT)
    await nodes.stop("A")
    await nodes.called(12, PROMPT)
    assert nodes.calls[-1] == ("B", "one", 2)


async def test_what_waits_for_a_place_is_handed_over_too(nodes: Nodes) -> None:
    """Runs that the stopping node had taken and not begun are begun by the other one."""
    await nodes.start("A", concurrent_runs=1)
    chats = [await nodes.session("A") for _ in range(4)]
    runs = [(await chat.send(str(number))).json()["runId"] for number, chat in enumerate(chats)]
    await nodes.called(1, PROMPT)
    await quiet()
    for number in range(1, 4):
        nodes.gate(str(number)).set()
    await nodes.start("B")
    await nodes.stop("A")
    nodes.gate("0").set()
    for chat, run in zip(chats, runs, strict=True):
        assert await answer(nodes.seen_by("B", chat), run)
    assert nodes.calls[0] == ("A", "0", 1)
    assert ("B", "0", 2) in nodes.calls


async def test_a_node_that_starts_after_another_has_stopped_takes_what_it_left(nodes: Nodes) -> None:
    """At its start, without waiting for anything."""
    await nodes.start("A")
    chat = await nodes.session("A")
    run = (await chat.send("one")).json()["runId"]
    await nodes.called(1, PROMPT)
    await nodes.stop("A")
    await nodes.start("B")
    await nodes.called(2, PROMPT)
    nodes.gate("one").set()
    assert (await answer(nodes.seen_by("B", chat), run)).endswith("B: one")


async def test_a_node_that_starts_takes_nothing_from_those_that_work(nodes: Nodes) -> None:
    """Neither what they drive nor what waits behind it in the same session."""
    await nodes.start("A")
    chat = await nodes.session("A")
    runs = [(await chat.send(text)).json()["runId"] for text in ("one", "two")]
    await nodes.called(1, PROMPT)
    await nodes.start("B")
    await quiet()
    assert nodes.calls == [("A", "one", 1)]
    nodes.gate("one").set()
    nodes.gate("two").set()
    for run, text in zip(runs, ("one", "two"), strict=True):
        assert (await answer(nodes.seen_by("B", chat), run)).endswith(text)
    assert nodes.calls[0] == ("A", "one", 1)
    assert [(text, attempt) for _, text, attempt in nodes.calls] == [("one", 1), ("two", 1)]


async def test_nodes_that_stop_one_after_another_hand_a_run_on(nodes: Nodes) -> None:
    """As in a rolling restart: each attempt is on the next node, and the limit of attempts is for crashes only."""
    for place, name in enumerate("ABC"):
        await nodes.start(name, attempts=3)
        if place == 0:
            chat = await nodes.session("A")
            run = (await chat.send("one")).json()["runId"]
        else:
            await nodes.stop("ABC"[place - 1])
        await nodes.called(place + 1, PROMPT)
    nodes.gate("one").set()
    assert (await answer(nodes.seen_by("C", chat), run)).endswith("C: one")
    assert nodes.calls == [("A", "one", 1), ("B", "one", 2), ("C", "one", 3)]


async def test_what_a_node_says_too_late_is_not_in_the_log(nodes: Nodes) -> None:
    """An append of the node that stopped, still under way when another has the run, is refused."""
    slow = HeldStore(nodes.shared)
    hold = slow.hold(having("text.delta"))
    await nodes.start("A", store=slow)
    await nodes.start("B")
    chat = await nodes.session("B")
    there = nodes.seen_by("A", chat)
    run = (await there.send("one")).json()["runId"]
    await hold.reached()
    await nodes.stop("A")
    await nodes.called(2, PROMPT)
    await quiet()
    hold.let_go()
    await quiet()
    nodes.gate("one").set()
    assert await answer(chat, run) == "B: one"
    events = await canonical(nodes.drivers["B"], chat.session)
    assert "A: " not in [event["data"].get("text") for event in events]
    assert [event["type"] for event in events].count("run.completed") == 1


async def test_a_question_that_was_asked_before_the_handover_is_asked_once(nodes: Nodes) -> None:
    """The other node waits for the answer to the same question, which can be given at either time."""

    async def asking(turn: Any) -> AsyncIterator[str]:
        nodes.calls.append(("?", turn.message.text, turn.attempt))
        nodes._called.set()
        yield "granted" if await turn.ask_permission("tool", "May I?", timeout=None) else "denied"

    await nodes.start("A", agent=asking)
    await nodes.start("B", agent=asking)
    chat = await nodes.session("A")
    run = (await chat.send("one")).json()["runId"]
    await nodes.called(1, PROMPT)
    await quiet()
    await nodes.stop("A")
    await nodes.called(2, PROMPT)
    await quiet()
    there = nodes.seen_by("B", chat)
    events = await canonical(there.driver, chat.session)
    [question] = [event["data"]["id"] for event in events if event["type"] == "permission.requested"]
    granted = await there.driver.request("POST", f"/api/permissions/{question}/grant")
    assert granted.json() == {"granted": True}
    assert await answer(there, run) == "granted"


# Sharing --------------------------------------------------------------------------------------------------------------


async def test_an_idle_node_takes_what_has_no_place_at_a_busy_one(nodes: Nodes) -> None:
    """Of eight messages in eight sessions, sent through a node that drives two at once, the other drives six."""
    await nodes.start("A", concurrent_runs=2)
    await nodes.start("B")
    for number in range(8):
        assert (await (await nodes.session("A")).send(str(number))).status == 202
    await nodes.called(8, PROMPT)
    by = [name for name, _, _ in nodes.calls]
    assert (by.count("A"), by.count("B")) == (2, 6)
    assert {attempt for _, _, attempt in nodes.calls} == {1}
    assert sorted(text for _, text, _ in nodes.calls) == [str(number) for number in range(8)]


async def test_two_nodes_with_few_places_share_what_comes(nodes: Nodes) -> None:
    """Both drive some of eight messages, none waits for ever, and none is answered twice."""
    await nodes.start("A", concurrent_runs=2)
    await nodes.start("B", concurrent_runs=2)
    chats = [await nodes.session("A") for _ in range(8)]
    runs = [(await chat.send(str(number))).json()["runId"] for number, chat in enumerate(chats)]
    await nodes.called(4, PROMPT)
    by = [name for name, _, _ in nodes.calls]
    assert (by.count("A"), by.count("B")) == (2, 2)
    for number in range(8):
        nodes.gate(str(number)).set()
    for number, (chat, run) in enumerate(zip(chats, runs, strict=True)):
        assert (await answer(chat, run, PROMPT)).endswith(str(number))
    assert sorted(text for _, text, _ in nodes.calls) == [str(number) for number in range(8)]


async def test_messages_of_one_session_keep_their_order_on_two_nodes(nodes: Nodes) -> None:
    """Sent through both in turn, they are answered one after another, each once."""
    await nodes.start("A", concurrent_runs=1)
    await nodes.start("B", concurrent_runs=1)
    chat = await nodes.session("A")
    texts = [str(number) for number in range(6)]
    runs = []
    for number, text in enumerate(texts):
        runs.append((await nodes.seen_by("AB"[number % 2], chat).send(text)).json()["runId"])
        nodes.gate(text).set()
    for run, text in zip(runs, texts, strict=True):
        assert (await answer(chat, run, PROMPT)).endswith(text)
    assert [text for _, text, _ in nodes.calls] == texts


async def test_a_waiting_run_is_cancelled_through_any_node(nodes: Nodes) -> None:
    """Without an agent having been asked, whichever node it waits at."""
    await nodes.start("A", concurrent_runs=1)
    await nodes.start("B", concurrent_runs=1)
    for number in range(2):
        await (await nodes.session("A")).send(f"busy {number}")
    await nodes.called(2, PROMPT)
    chat = await nodes.session("A")
    run = (await chat.send("waits")).json()["runId"]
    await quiet()
    there = nodes.seen_by("B", chat)
    assert (await there.post("/cancel", {"runId": run})).json() == {"cancelled": True}
    await answer(there, run, PROMPT)
    events = await canonical(there.driver, chat.session)
    assert events[-1]["type"] == "run.cancelled"
    assert "waits" not in [text for _, text, _ in nodes.calls]
