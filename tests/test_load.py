"""A loop that is late: how it is noticed, what runs gather meanwhile, and who is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from driving import Gate, echo
from held_store import quiet
from legato.agent import Agent, Turn
from legato.bounds import Limits
from legato.load import BEAT, BUSY, FIRST, LATE, LOOKS, MOST, Load, Round
from legato.outbox import AHEAD, Outbox
from legato.testing import Driver
from legato.yields import Thinking
from running import NET, Clock, Stage
from test_life import REQUESTS, application, check_refusal, in_use, late


@pytest.fixture
async def load() -> AsyncIterator[tuple[Load, Clock]]:
    """A load that has begun to look at a clock of its own. Only the test looks again."""
    clock = Clock()
    load = Load(clock=clock)
    load.start()
    load.stop()
    yield load, clock
    load.stop()


def look(load: Load, clock: Clock, *, late: float) -> None:
    clock.now += BEAT + late
    load.look()
    load.stop()


async def test_one_long_step_is_no_lag(load: tuple[Load, Clock]) -> None:
    """Late once is bad luck; late again and again is a loop that does not keep up, by the least of those times."""
    found = []
    for by in (0.0, 3.0, 0.0, 3.0, 4.0, 2.0, 5.0, 6.0, 7.0, 0.0):
        look(*load, late=by)
        found.append(round(load[0].lag, 6))
    assert found == [0.0] * 5 + [2.0, 2.0, 2.0, 5.0, 0.0]


async def test_who_says_much_gathers_for_longer_while_the_loop_is_late(load: tuple[Load, Clock]) -> None:
    """Twice as long after each late look, up to a bound; then less and less, and in the end not at all."""
    times = []
    for by in [LATE * 2] * 10 + [LATE / 2] * 30:
        look(*load, late=by)
        times.append(load[0].gather)
    assert times[:4] == [0.0, 0.0, FIRST, 2 * FIRST]
    assert times[9] == MOST
    assert times == sorted(times[:10]) + sorted(times[10:], reverse=True)
    assert times[-1] == 0.0


async def test_a_busy_process_eases_slowly() -> None:
    """As long as there is little time to spare, runs go on gathering for nearly as long; then they soon do not."""
    clock, spent = Clock(), Clock()
    load = Load(clock=clock, spent=spent)
    load.start()
    found = []
    for by, used in ((LATE * 2, 1.0), (0.0, BUSY + 0.1), (0.0, BUSY - 0.1)):
        for _ in range(10):
            spent.now += BEAT * used
            look(load, clock, late=by)
        found.append(load.gather)
    assert MOST == found[0] > found[1] > 0.8 * MOST
    assert found[2] < 0.2 * MOST


async def test_what_is_to_gather_always_does() -> None:
    """A least time holds also when the loop is not late, and is where the time falls back to."""
    clock = Clock()
    load = Load(0.03, clock=clock)
    load.start()
    found = [load.gather]
    for by in (*[LATE * 2] * LOOKS, 0.0, 0.0, 0.0, 0.0):
        look(load, clock, late=by)
        found.append(load.gather)
    assert (found[0], found[LOOKS], found[-1]) == (0.03, 0.06, 0.03)


async def test_a_load_looks_by_itself_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look is followed by another."""
    monkeypatch.setattr("legato.load.BEAT", 0.0)
    looks = 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return 0.0

    load = Load(clock=clock)
    load.start()
    async with asyncio.timeout(NET):
        while looks < 5:  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0)
    load.stop()
    before = looks
    await quiet()
    assert before == looks


async def test_a_round_calls_all_once_although_one_fails() -> None:
    """At its end, in order; who is added meanwhile has the next one."""
    called: list[str] = []
    due = Round()

    def fail() -> None:
        called.append("fails")
        due.add(lambda: called.append("next"))
        raise ValueError("no")

    for callback in (lambda: called.append("first"), fail, lambda: called.append("last")):
        due.add(callback)
    assert called == []
    await asyncio.sleep(0)
    assert called == ["first", "fails", "last"]
    await quiet()
    assert called == ["first", "fails", "last", "next"]


# Runs that gather -----------------------------------------------------------------------------------------------------


NEVER = Limits(gather_seconds=3600.0)
"""What a run says after its first words gathers for longer than any test takes."""


async def test_what_a_run_says_gathers_after_its_first_words(stage: Stage) -> None:
    """The first piece is stored at once, what follows together, and the end of the agent does not wait."""

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield "first"
        await stage.seen(turn.session, "text.delta")
        for number in range(5):
            yield f" {number}"
            await quiet()

    runner = stage.runner(agent, limits=NEVER)
    end = await stage.ended(await runner.send(await stage.session(), "hello"))
    assert end.data["message"]["parts"][0]["text"] == "first 0 1 2 3 4"
    await stage.idle(runner)
    assert stage.store.batches[1:] == [["text.delta"], ["text.delta"], ["run.completed"]]


async def test_pieces_that_gather_wake_nobody(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the first of them asks whether it is time; a timer sees to the others."""
    asked = 0
    has_gathered = Outbox._has_gathered

    def counted(outbox: Outbox) -> bool:
        nonlocal asked
        asked += 1
        return has_gathered(outbox)

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield "first"
        await turn.stored()
        for number in range(20):
            yield f" {number}"
            await quiet()

    monkeypatch.setattr(Outbox, "_has_gathered", counted)
    await stage.answer(agent, limits=NEVER)
    assert asked <= 4


async def test_who_is_as_far_ahead_as_may_be_does_not_gather(stage: Stage) -> None:
    """An agent that does not wait for anything is not held up."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        for _ in range(3 * AHEAD):
            yield "x"

    end = await stage.answer(agent, limits=NEVER)
    assert end.data["message"]["text"] == "x" * 3 * AHEAD


async def test_what_is_no_delta_does_not_gather(stage: Stage) -> None:
    """Somebody may wait for it, as the user who is asked, and what came before comes with it."""

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield "first"
        await quiet()
        yield Thinking("hm")
        await quiet()
        yield "second"
        yield str(await turn.ask_permission("shell", "Run it?"))

    runner = stage.runner(agent, limits=NEVER)
    sent = await runner.send(await stage.session(), "hello")
    request = await stage.seen(sent.session, "permission.requested")
    await runner.resolve_permission(request.data["id"], True)
    assert (await stage.ended(sent)).data["message"]["text"] == "firstsecondTrue"
    assert stage.store.batches[2] == ["thinking.delta", "text.delta", "permission.requested"]


async def test_what_has_gathered_is_stored_in_time(stage: Stage) -> None:
    """The agent waits for its second piece to be seen, which nothing but the time can bring about."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        for start in range(3):
            yield "x"
            await stage.seen(turn.session, lambda event, start=start: event.data.get("start") == start)

    assert (await stage.answer(agent, limits=Limits(gather_seconds=0.001))).data["message"]["text"] == "xxx"


async def test_who_waits_for_what_is_stored_does_not_wait_for_more(stage: Stage) -> None:
    """``turn.stored`` has what has gathered stored at once."""
    stored = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        for text in ("a", "b", "c"):
            yield text
            await turn.stored()
            events = await stage.events(turn.session, turn.run)
            stored.append("".join(event.data["text"] for event in events if event.type == "text.delta"))

    await stage.answer(agent, limits=NEVER)
    assert stored == ["a", "ab", "abc"]


# Who is refused -------------------------------------------------------------------------------------------------------


async def test_a_message_behind_one_that_waits_too_long_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """While a message is not stored within its time, be the disk slow, no more are taken; once it is, they are."""
    app = application("memory:", echo)
    async with Driver(app) as driver, asyncio.timeout(NET):
        paths = [
            f"/api/sessions/{(await driver.request('POST', '/api/sessions', json={})).json()['id']}/messages"
            for _ in range(3)
        ]
        clock, gate, append = Clock(), asyncio.Event(), app.store.append

        async def held(session: str, drafts: Any, **how: Any) -> Any:
            if any(draft.type == "message.created" for draft in drafts):
                await gate.wait()
            return await append(session, drafts, **how)

        monkeypatch.setattr(app.store, "append", held)
        app.life.runner.load.stop()
        app.life.runner.load = Load(clock=clock)
        waiting = []
        for path, seconds in zip(paths, (app.life.sessions.limits.wait_seconds, 0.01), strict=False):
            waiting.append(asyncio.create_task(driver.request("POST", path, json={"text": "a"})))
            await quiet()
            clock.now += seconds
        refused = await driver.request("POST", paths[2], json={"text": "a"})
        assert (refused.status, refused.json()["error"][REQUESTS["send"][3]]) == (503, "overloaded")
        assert "retry-after" in {name.lower() for name in refused.headers}
        gate.set()
        assert [(await each).status for each in waiting] == [202, 202]
        assert (await driver.request("POST", paths[2], json={"text": "a"})).status == 202


@pytest.mark.parametrize(
    "case",
    ["send", "send by stream", "retry", "deva send", "respond", "respond, stream", "respond, background", "chat"],
)
async def test_a_message_to_a_loop_that_lags_is_refused_in_its_dialects_words(case: str) -> None:
    """Nothing of it is stored, what has begun goes on, and once the loop keeps up it is welcome."""
    gate = Gate()
    app = application("memory:", echo, Agent(gate, name="gate"))
    async with Driver(app) as driver, asyncio.timeout(NET):
        names = await in_use(driver)
        held = (await driver.request("POST", "/api/sessions", json={"agent": "gate"})).json()["id"]
        await driver.request("POST", f"/api/sessions/{held}/messages", json={"text": "wait"})
        await quiet()
        clock, lagging = Clock(), app.life.runner.load
        app.life.runner.load = load = Load(clock=clock)
        lagging.stop()
        load.start()
        for _ in range(LOOKS):
            look(load, clock, late=app.life.sessions.limits.lag_seconds + 0.01)
        before = await app.store.sessions()
        async with late(driver, case, names) as stream:
            async for _ in stream:
                pass
            check_refusal(stream, REQUESTS[case][3])
            assert json.loads(stream.body)["error"][REQUESTS[case][3]] == "overloaded"
        assert before == await app.store.sessions()
        gate.close()
        while (await app.store.info(held)).open_runs:
            await quiet()
        look(load, clock, late=0.0)
        async with late(driver, case, names) as stream:
            assert stream.status < 300
