"""Runners of several nodes on one store: answers of the store that were lost, and nodes that were away for a while.

The nodes are in this process. The store's clock goes only when it is told to.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from legato import run as runs
from legato import tally
from legato.agent import Agent, Turn
from legato.bounds import Limits
from legato.caller import Caller
from legato.ending import LEFT_OPEN
from legato.errors import StoreError, TooFast, TooMany
from legato.event import SessionCreated
from legato.questions import Question, Sent
from legato.server.life import Life, Settings
from running import NET, Clock, Node, Stage, staged


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged("memory", tmp_path) as stage:
        yield stage


async def echo(turn: Turn) -> AsyncIterator[str]:
    yield f"{turn.attempt}: {turn.message.text}"


class Unheard:
    """A store whose answers to some calls are lost: they are carried out, and look as if they had failed."""

    def __init__(self, inner: Any, *, call: str) -> None:
        self.inner = inner
        self.lost = 0
        self._call = call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        return self._losing(found) if name == self._call else found

    def _losing(self, call: Any) -> Any:
        async def lost(*args: Any, **options: Any) -> Any:
            done = await call(*args, **options)
            if self.lost or not done or (self._call == "append" and options.get("take") is None):
                return done
            self.lost += 1
            raise StoreError("The connection was lost; nobody knows what came of it.")

        return lost


# Answers of the store that were lost ----------------------------------------------------------------------------------


@pytest.mark.parametrize("on_crash", ["fail", "retry"])
async def test_a_lease_that_was_taken_with_a_message_and_not_told_is_given_back(stage: Stage, on_crash: Any) -> None:
    """Nobody drives the run; it is not renewed for ever, and ends."""
    runner = stage.runner(Agent(echo, on_crash=on_crash), lease_ttl=0.03)
    runner.store = Unheard(stage.store, call="append")
    await runner.start()
    session = await stage.session()
    with pytest.raises(StoreError):
        await runner.send(session, "hello", key="k")
    sent = await runner.send(session, "hello", key="k")

    assert sent.repeated
    assert (await stage.ended(sent)).type == ("run.failed" if on_crash == "fail" else "run.completed")


@pytest.mark.parametrize("call", ["acquire", "claim"])
async def test_a_lease_that_was_taken_and_not_told_is_given_back(stage: Stage, call: str) -> None:
    """Whichever way it was taken."""
    full = stage.runner(echo)
    full.places.take_all("", 1_000_000)
    store = Unheard(stage.store, call=call)
    node = Node(store, {"echo": Agent(echo)}, limits=Limits(), clock=stage.clock, lease_ttl=0.03)
    stage._runners.append(node)
    if call == "claim":
        await node.start()  # what it finds at its start it would fail by
    sent = await full.send(await stage.session(), "hello")
    if call == "acquire":  # what is known to wait is not claimed
        node.places.queue(sent.session, sent.run, "")
        node.places.wait(sent.session)
        await node.start()

    assert (await stage.ended(sent)).type == "run.completed"
    assert store.lost == 1


async def test_what_this_node_drives_is_not_given_back(stage: Stage) -> None:
    """Although it was in doubt: all that is given back is what nobody drives."""
    go = asyncio.Event()

    async def held(turn: Turn) -> AsyncIterator[str]:
        yield str(turn.attempt)
        await go.wait()

    runner = stage.runner(Agent(held, on_crash="retry"), lease_ttl=3600.0)
    await runner.start()
    sent = await runner.send(await stage.session(), "hello")
    await stage.seen(sent.session, "text.delta")
    runner._doubtful = True
    runner._renewal = (0.0, 0.0)
    runner._bell.ring()
    async with asyncio.timeout(NET):
        while runner._doubtful:  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0)
    go.set()

    await stage.ended(sent)

    assert await stage.types(sent) == ["message.created", "run.started", "text.delta", "run.completed"]


# Away for a while -----------------------------------------------------------------------------------------------------


async def test_what_the_dead_have_left_is_looked_for_more_often_than_leases_are_renewed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would be open for a lease and a third of one."""
    monkeypatch.setattr(runs, "LOOK_EVERY", 0.02)
    session = await stage.session()
    dead = stage.runner(Agent(echo, on_crash="retry"))
    dead.places.take_all("", 1_000_000)
    sent = await dead.send(session, "hello")
    await stage.store.acquire(session, sent.run, owner="dead", ttl=10.0)
    other = stage.runner(Agent(echo, on_crash="retry"), lease_ttl=3600.0)
    await other.start()
    await asyncio.sleep(0)
    stage.clock.now += 11.0

    assert (await stage.ended(sent)).type == "run.completed"


@pytest.mark.parametrize("on_crash", ["fail", "retry", "resume"])
async def test_an_agent_of_a_node_that_was_away_is_stopped_when_it_is_back(
    stage: Stage, on_crash: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says nothing, so no append of it is refused; and nobody waits until it would look by itself."""
    monkeypatch.setattr("legato.execution.WATCH_HEARTBEAT", 1e6)
    stopped = asyncio.Event()

    async def silent(turn: Turn) -> AsyncIterator[str]:
        yield "first"
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    paused = stage.runner(Agent(silent, name="agent", on_crash=on_crash), lease_ttl=3600.0)
    await paused.start()
    sent = await paused.send(await stage.session(), "hello")
    await stage.seen(sent.session, "text.delta")
    stage.clock.now += 4000.0  # it is stopped for so long; what it did not do meanwhile it does later
    other = stage.runner(Agent(echo, name="agent", on_crash=on_crash), lease_ttl=3600.0)
    await other.start()
    await stage.ended(sent)
    assert not stopped.is_set()
    paused._bell.ring()

    await asyncio.wait_for(stopped.wait(), NET)

    await stage.idle(paused)
    assert (await stage.events(sent.session, sent.run))[-1].fact.terminal


@pytest.mark.parametrize("on_crash", ["retry", "resume"])
async def test_a_node_that_stops_does_not_wait_for_a_store_that_has_failed(
    stage: Stage, on_crash: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it could not store is tried once more, and then the run is left to others, at once."""
    monkeypatch.setattr("legato.outbox.STORE_RETRIES", (1e6, 1e6))
    runner = stage.runner(Agent(echo, on_crash=on_crash), lease_ttl=3600.0)
    tries = 0

    async def before(session: str, drafts: Any) -> None:
        nonlocal tries
        if any(draft.type == "text.delta" for draft in drafts):
            tries += 1
            raise StoreError("The disk is on strike.")

    stage.store.before = before
    sent = await runner.send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        while not tries:  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        for execution in runner._attempts.executions:
            execution.stop(LEFT_OPEN)
        await stage.idle(runner)
        await runner.stop()

    assert tries == 2
    assert (await stage.store.info(sent.session)).runs[sent.run].owner is None


async def test_what_could_not_be_stored_is_tried_when_the_store_is_there_again(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And not only when the time until the next try is over."""
    monkeypatch.setattr("legato.outbox.STORE_RETRIES", (1e6,))
    monkeypatch.setattr(runs, "LOOK_EVERY", 0.01)
    runner = stage.runner(echo, lease_ttl=3600.0)
    gone, tries = True, 0

    async def before(session: str, drafts: Any) -> None:
        nonlocal tries
        tries += 1
        if gone and any(draft.type == "text.delta" for draft in drafts):
            raise StoreError("The disk is on strike.")

    async def claim(**options: Any) -> Any:
        if gone:
            raise StoreError("The disk is on strike.")
        return await stage.store.inner.claim(**options)

    await runner.start()
    stage.store.before = before
    monkeypatch.setattr(stage.store, "claim", claim, raising=False)
    sent = await runner.send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        while tries < 2 or not runner._failing:  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0.001)
    gone = False

    assert (await stage.ended(sent)).type == "run.completed"


# Clocks ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead", [-5000.0, 5000.0])
async def test_another_nodes_clock_makes_no_answer_late(stage: Stage, ahead: float) -> None:
    """Whoever drives the run decides when its time is over; the answer may be given anywhere."""

    async def asks(turn: Turn) -> AsyncIterator[str]:
        yield str(await turn.ask_permission("tool", "May I?", timeout=60.0))
        answer = await turn.notify("A", "B?", response="choice", choices=["a", "b"], timeout=60.0, wait=True)
        yield str(answer.value if answer else None)

    here = stage.runner(asks)
    await here.start()
    clock = Clock()
    clock.now += ahead
    there = Node(stage.store, {"asks": Agent(asks)}, limits=Limits(), clock=clock)
    stage._runners.append(there)
    sent = await here.send(await stage.session(), "hello")
    asked = await stage.seen(sent.session, "permission.requested")
    granted = await there.resolve_permission(asked.fact.id, True)  # type: ignore[attr-defined]
    note = await stage.seen(sent.session, "notification.created")
    await there.resolve_notification(note.fact.id, "choice", "b")  # type: ignore[attr-defined]

    end = await stage.ended(sent)

    assert granted is True
    assert end.fact.said.text == "Trueb"  # type: ignore[attr-defined]


# Bounds ---------------------------------------------------------------------------------------------------------------

EVE, BOB = Caller("eve"), Caller("bob")


class Bounded:
    """Two nodes without places, where each caller may have three messages that wait."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        limits = Limits(waiting_messages=3, concurrent_runs=0)
        self.nodes = [stage.runner(echo, limits=limits) for _ in range(2)]
        self._numbers = itertools.count()

    async def send(self, node: int, caller: Caller) -> Sent:
        session = f"{caller.subject}{next(self._numbers)}"
        begin = SessionCreated(session)
        return await self.nodes[node].sessions.send(caller, session, Question("hello"), begin=begin)

    async def refused(self, node: int, caller: Caller) -> TooMany:
        with pytest.raises(TooMany) as caught:
            await self.send(node, caller)
        return caught.value

    async def tell(self) -> None:
        for node in [*self.nodes, *self.nodes]:
            await node.tally.tell()


@pytest.fixture
def bounded(stage: Stage) -> Bounded:
    return Bounded(stage)


async def test_what_waits_is_bounded_over_all_nodes(bounded: Bounded) -> None:
    """However it is spread over them, once they have told each other; and each owner by itself."""
    await bounded.send(0, EVE)
    await bounded.send(0, EVE)
    await bounded.tell()
    await bounded.send(1, EVE)

    assert "3 messages of yours" in (await bounded.refused(1, EVE)).message
    await bounded.tell()
    await bounded.refused(0, EVE)
    for _ in range(3):
        await bounded.send(1, BOB)
    await bounded.refused(1, BOB)


async def test_a_node_is_exact_by_itself(bounded: Bounded) -> None:
    """Although it has told nobody, and many come at once."""
    outcomes = await asyncio.gather(*(bounded.send(0, EVE) for _ in range(10)), return_exceptions=True)

    assert sum(isinstance(each, Sent) for each in outcomes) == 3


async def test_what_a_dead_node_counted_is_forgotten(bounded: Bounded, stage: Stage) -> None:
    """Its messages have been taken by then, or wait elsewhere."""
    for _ in range(3):
        await bounded.send(0, EVE)
    await bounded.tell()
    await bounded.refused(1, EVE)
    stage.clock.now += tally.TTL + 1
    await bounded.nodes[1].tally.tell()

    await bounded.send(1, EVE)


async def test_what_another_node_has_taken_waits_no_more(bounded: Bounded, stage: Stage) -> None:
    """So its sender may send again where it was sent, also if nobody there has heard of it."""
    for _ in range(3):
        await bounded.send(0, EVE)
    await stage.store.claim(owner="another", ttl=60.0, limit=1)

    await bounded.send(0, EVE)
    await bounded.refused(0, EVE)


async def test_addresses_are_told_to_nobody(bounded: Bounded, stage: Stage) -> None:
    """They are counted by each node for itself."""
    passer_by = Caller("", "192.0.2.7")
    for _ in range(3):
        await bounded.send(0, passer_by)
    await bounded.refused(0, passer_by)
    await bounded.tell()

    assert stage.store.inner._tallies[bounded.nodes[0].owner][1] == {}
    await bounded.send(1, passer_by)


async def test_a_node_tells_by_itself_and_counts_no_more_when_it_stops(bounded: Bounded, stage: Stage) -> None:
    """From its start to its end."""
    first, second = bounded.nodes
    await bounded.send(0, EVE)
    await first.start()
    await second.start()
    async with asyncio.timeout(NET):
        while not second.tally.elsewhere("waiting subject eve"):  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0.01)
        await first.stop()
        while second.tally.elsewhere("waiting subject eve"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await second.stop()


async def test_messages_have_one_rate_over_all_nodes(stage: Stage) -> None:
    """What was sent elsewhere counts here a moment later, and what had been before this node began does not."""
    limits = Limits(owner_sends=3.0)
    first, second = (stage.runner(echo, limits=limits) for _ in range(2))

    async def send(node: Node, caller: Caller) -> None:
        session = f"rate{secrets.token_hex(4)}"
        sent = await node.sessions.send(caller, session, Question("hello"), begin=SessionCreated(session))
        await stage.ended(sent)

    async def tell() -> None:
        for node in (first, second, first, second):
            await node.tally.tell()

    await tell()
    await send(first, EVE)
    await send(first, EVE)
    await tell()
    await send(second, EVE)
    with pytest.raises(TooFast):
        await send(second, EVE)
    await tell()
    with pytest.raises(TooFast):
        await send(first, EVE)
    await send(first, BOB)


async def test_streams_of_an_owner_are_bounded_over_all_nodes(stage: Stage) -> None:
    """Until they end, wherever that is; and those of an address by each node."""
    settings = Settings(max_streams_per_owner=2, max_streams_per_address=2)
    lives = [Life(stage.store, {"echo": Agent(echo)}, settings) for _ in range(2)]
    first, second = (life.streams for life in lives)

    async def tell() -> None:
        for life in (*lives, *lives):
            await life.runner.tally.tell()

    place = first.reserve("s", "subject eve")
    passing = [first.reserve("s", "address 192.0.2.7") for _ in range(2)]
    await tell()
    second.reserve("s", "subject eve")
    second.reserve("s", "address 192.0.2.7")
    with pytest.raises(TooMany, match="2 open streams"):
        second.reserve("s", "subject eve")
    place.give_back()
    await tell()
    second.reserve("s", "subject eve")
    assert len(passing) == 2
