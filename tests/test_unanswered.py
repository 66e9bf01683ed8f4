"""A store that has done what it was asked, and whose answer is lost: nothing is stored twice, no lease is forgotten."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from facts import draft
from legato import ToolCall, ToolResult, Turn, outbox
from legato.agent import Agent
from legato.bounds import Limits
from legato.errors import StaleLease, StoreError
from legato.event import Draft
from legato.log import Appended
from legato.machine import Lease
from legato.store.memory import MemoryStore
from legato.store.sqlite import SQLiteStore
from running import STORES, Clock, Stage, Watched

LOST = StoreError("The store has not answered.")


class Unanswered(Watched):
    """Of what is named in ``lost``, each answer is lost so many times: of appends by a type of theirs, else by verb.

    Attributes:
        late: appends that reach the store only once it has been asked for a lease: what they said is in ``told``.
    """

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self.lost: Counter[str] = Counter()
        self.late: str | None = None
        self.told: list[Exception | Appended] = []
        self._waiting: list[Any] = []

    async def append(self, session: str, drafts: Sequence[Draft], **options: Any) -> Appended:
        types = [draft.type for draft in drafts]
        if self.late in types:
            self.late = None
            self._waiting.append((session, drafts, options))
            raise LOST
        appended = await super().append(session, drafts, **options)
        self._lose(*types)
        return appended

    async def acquire(self, *args: Any, **options: Any) -> Lease:
        lease: Lease = await self.inner.acquire(*args, **options)
        for session, drafts, settings in self._waiting:
            try:
                self.told.append(await self.inner.append(session, drafts, **settings))
            except StaleLease as exc:
                self.told.append(exc)
        self._waiting = []
        self._lose("acquire")
        return lease

    async def claim(self, **options: Any) -> list[Lease]:
        leases: list[Lease] = await self.inner.claim(**options)
        if leases:
            self._lose("claim")
        return leases

    def _lose(self, *names: str) -> None:
        for name in names:
            if self.lost[name]:
                self.lost[name] -= 1
                raise LOST


@pytest.fixture(params=STORES)
async def stage(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Stage]:
    monkeypatch.setattr(outbox, "STORE_RETRIES", (0.0, 0.0, 0.0, 0.0))
    clock = Clock()
    inner = MemoryStore(clock=clock) if request.param == "memory" else SQLiteStore(tmp_path / "runs.db", clock=clock)
    await inner.open()
    stage = Stage(Unanswered(inner), clock)
    yield stage
    await stage.close()
    await inner.close()


def store(stage: Stage) -> Unanswered:
    assert isinstance(stage.store, Unanswered)
    return stage.store


async def speaks(turn: Turn) -> AsyncIterator[Any]:
    yield "one "
    await asyncio.sleep(0)
    yield ToolCall("c", "look", "{}")
    await turn.stored()
    granted = await turn.ask_permission("look", "May I?") if turn.message.text == "ask" else True
    yield ToolResult("c", granted)
    await turn.stored()
    yield "two "
    await turn.stored()
    yield "three"


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("type", ["text.delta", "tool_call.started", "tool.completed", "run.completed"])
async def test_what_a_run_says_is_stored_once(stage: Stage, type: str, times: int) -> None:
    """Whatever of it the store has taken without an answer, and also if that happens to it again."""
    store(stage).lost[type] = times
    runner = stage.runner(speaks)
    sent = await runner.send(await stage.session(), "hello")
    end = await stage.ended(sent)

    assert end.type == "run.completed"
    parts = [part.get("text") for part in end.data["message"]["parts"] if part["type"] == "text"]
    assert parts == ["one ", "two three"]
    counts = Counter(event.type for event in await stage.events(sent.session, sent.run))
    assert (counts["tool_call.started"], counts["tool.completed"], counts["run.completed"]) == (1, 1, 1)
    texts = [event.data for event in await stage.events(sent.session, sent.run) if event.type == "text.delta"]
    assert len({(text["part"], text["start"]) for text in texts}) == len(texts)
    await stage.idle(runner)


async def test_a_question_without_an_answer_is_asked_once(stage: Stage) -> None:
    store(stage).lost["permission.requested"] = 1
    runner = stage.runner(speaks)
    sent = await runner.send(await stage.session(), "ask")
    asked = await stage.seen(sent.session, "permission.requested")
    await runner.resolve_permission(asked.data["id"], True)

    assert (await stage.ended(sent)).type == "run.completed"
    assert [event.type for event in await stage.events(sent.session)].count("permission.requested") == 1
    await stage.idle(runner)


async def test_what_comes_late_is_refused(stage: Stage) -> None:
    """An append that reaches the store after it was given up, and asked for again, has an old epoch."""
    store(stage).late = "text.delta"
    runner = stage.runner(speaks)
    sent = await runner.send(await stage.session(), "hello")

    assert (await stage.ended(sent)).type == "run.completed"
    [told] = store(stage).told
    assert isinstance(told, StaleLease)
    await stage.idle(runner)


async def test_a_run_that_another_has_had_meanwhile_is_left(stage: Stage) -> None:
    """Also if the other's lease has ended by then: it has begun an attempt of its own."""
    taken = False

    async def take_over(session: str, drafts: Sequence[Draft]) -> None:
        nonlocal taken
        if taken or drafts[0].type != "text.delta":
            return
        taken = True
        stage.clock.now += 1_000
        run = (await stage.store.info(session)).open_runs[0]
        lease = await stage.store.inner.acquire(session, run.run, owner="other", ttl=1.0)
        await stage.store.inner.append(
            session, [draft("run.started", {"agent": "speaks", "attempt": 2}, run.run)], lease=lease
        )
        stage.clock.now += 1_000
        raise LOST

    runner = stage.runner(speaks)
    session = await stage.session()
    stage.store.before = take_over
    sent = await runner.send(session, "hello")
    await stage.idle(runner)

    assert "text.delta" not in [event.type for event in await stage.events(session, sent.run)]


@pytest.mark.parametrize("verb", ["run.started", "acquire", "claim"])
async def test_a_lease_whose_answer_was_lost_is_given_back(stage: Stage, verb: str) -> None:
    """Else it would be renewed for ever, and nobody would drive its run."""
    runner = stage.runner(Agent(speaks, on_crash="retry"), lease_ttl=0.03, limits=Limits(concurrent_runs=1))
    session = await stage.session()
    if verb == "claim":  # it waits since before this life
        begun = [draft("message.created", {"id": "m", "role": "user", "text": "hello"}, f"{session}~r")]
        await stage.store.inner.append(session, begun)
    store(stage).lost[verb] = 1
    if verb == "run.started":
        with pytest.raises(StoreError):
            await runner.send(session, "hello")
    elif verb == "acquire":
        runner.places.take_all("", 1)
        await runner.send(session, "hello")
        runner.places.give_back("", 1)
    try:
        await runner.start()
    except StoreError:
        await runner.start()

    assert (await stage.seen(session, lambda event: event.fact.terminal)).type == "run.completed"
    assert not store(stage).lost[verb]
    await stage.idle(runner)


async def test_a_lease_that_was_taken_again_in_vain_is_given_back(stage: Stage) -> None:
    """Of what a run asks of a store that fails, the last answer can be lost, too."""
    store(stage).lost += Counter({"text.delta": 1, "acquire": len(outbox.STORE_RETRIES)})
    runner = stage.runner(Agent(speaks, on_crash="retry"), lease_ttl=0.03, limits=Limits(concurrent_runs=1))
    await runner.start()
    sent = await runner.send(await stage.session(), "hello")

    assert (await stage.ended(sent)).type == "run.completed"
    assert not store(stage).lost["acquire"]
    await stage.idle(runner)
