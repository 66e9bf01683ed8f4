"""One run being driven: what agents yield, limits, cancelling, asking, storing."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest

from facts import draft
from legato import execution, outbox
from legato.agent import Agent, Answer, OnCrash, Turn
from legato.asks import Deadlines
from legato.bounds import Limits
from legato.errors import AgentError, AskNotFound, InvalidInput, RunEnded, StoreError, StoreLost
from legato.event import Draft, Event
from legato.log import Appended
from legato.machine import TRANSITIONS, RunState, advance
from legato.part import Usage
from legato.questions import Sent
from legato.run import Runner
from legato.testing import FakeClock
from legato.yields import Finish, Text, Thinking, ToolCall, ToolResult, ToolStarted
from running import NET, Gate, Stage


async def wait_for_ever(turn: Turn) -> AsyncIterator[str]:
    yield "begun "
    await asyncio.Event().wait()


async def begun(stage: Stage, agent: Any, **settings: Any) -> tuple[Runner, Sent]:
    """A runner, and a message whose answer has begun to be stored."""
    runner = stage.runner(agent, **settings)
    sent = await runner.send(await stage.session(), "hello")
    await stage.seen(sent.session, "text.delta")
    return runner, sent


# The life of a run ----------------------------------------------------------------------------------------------------


async def test_every_state_is_reached(stage: Stage) -> None:
    """Real runs go through every row of the table of moves (but a second cancel, which is stored once only)."""
    session = await stage.session()
    script = ["complete", "fail", "cancel", "late cancel", "late cancel of a failure", "early cancel", "crash"]
    queued = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "word "
        if "fail" in turn.message.text:
            raise AgentError("no")
        if turn.message.text in ("cancel", "crash") and turn.attempt == 1:
            await asyncio.Event().wait()
        if turn.message.text == "before another":
            await queued.wait()

    def runner() -> Runner:
        return stage.runner(Agent(agent, on_crash="retry"))

    for text in script:
        first = runner()

        async def before(session: str, drafts: Sequence[Draft], text: str = text, runner: Runner = first) -> None:
            # A run that has waited is leased before it is started; else the two are one.
            early = drafts[0].type == "run.started" and text == "early cancel"
            late = drafts[0].type in ("run.completed", "run.failed") and text.startswith("late cancel")
            if early or late:
                await runner.cancel(session, drafts[0].run)

        stage.store.before = before
        if text == "early cancel":
            await first.send(session, "before another")
        sent = await first.send(session, text)
        if text == "early cancel":
            queued.set()
        if text in ("cancel", "crash"):
            await stage.seen(session, lambda event, sent=sent: event.run == sent.run and event.type == "text.delta")
        if text == "cancel":
            await first.cancel(session)
        if text == "crash":
            await stage.crash()
            first = runner()
            await first.start()
        await stage.ended(sent)
        await first.stop()  # else it might take the next message too
    waiting = stage.runner(wait_for_ever)
    await waiting.send(session, "hold the session")
    second = await waiting.send(session, "cancel me in the queue")
    await waiting.cancel(session, second.run)
    await waiting.cancel(session, (await stage.store.info(session)).open_runs[0].run)
    await stage.ended(second)
    await waiting.stop()
    await stage.store.append(
        session, [draft("message.created", {"id": "m", "role": "user", "text": "?", "agent": "nobody"}, f"{session}~x")]
    )
    await stage.runner(agent).start()
    await stage.seen(session, lambda event: event.run == f"{session}~x" and event.type == "run.failed")

    rows = set()
    states: dict[str, RunState | None] = {}
    for event in await stage.events(session):
        if event.run is not None:
            rows.add((states.get(event.run), event.type))
            states[event.run] = advance(states.get(event.run), event.type)
    assert set(TRANSITIONS) - {(RunState.CANCELLING, "run.cancel_requested")} == rows & set(TRANSITIONS)


async def test_a_run_is_stored_as_it_goes(stage: Stage) -> None:
    """Message, start, what was said, end."""

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield Thinking("hm")
        yield ToolCall("1", "search", '{"q":1}')
        yield ToolStarted("1", "looking")
        yield ToolResult("1", {"hits": 3})
        yield Text("three")
        yield Usage(input_tokens=5)
        yield Finish("length")

    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "hello")
    end = await stage.ended(sent)
    assert await stage.types(sent) == [
        "message.created",
        "run.started",
        "thinking.delta",
        "tool_call.started",
        "tool_call.completed",
        "tool.started",
        "tool.completed",
        "text.delta",
        "run.completed",
    ]
    assert (
        end.data["message"]["text"],
        end.data["finish_reason"],
        end.data["usage"],
    ) == ("three", "length", {"input_tokens": 5})


async def test_the_turn_has_the_message_and_the_history(stage: Stage) -> None:
    """An agent is given what was said before, and the message with its metadata."""
    turns: list[Turn] = []

    async def agent(turn: Turn) -> str:
        turns.append(turn)
        return f"answer to {turn.message.text}"

    runner = stage.runner(agent)
    session = await stage.session()
    await stage.ended(await runner.send(session, "one"))
    sent = await runner.send(session, "two", metadata={"plan_mode": True})
    await stage.ended(sent)
    turn = turns[1]
    assert [message.text for message in turn.history] == ["one", "answer to one"]
    assert (session, sent.run, "two", {"plan_mode": True}, "agent", 1, []) == (
        turn.session,
        turn.run,
        turn.message.text,
        turn.message.metadata,
        turn.agent,
        turn.attempt,
        turn.events,
    )


# Kinds of agents, and what they yield ---------------------------------------------------------------------------------


async def test_async_function(stage: Stage) -> None:
    """An async function's result is the answer."""

    async def agent(turn: Turn) -> str:
        return "whole"

    assert (await stage.answer(agent)).data["message"]["text"] == "whole"


async def test_plain_generator_runs_in_a_thread(stage: Stage) -> None:
    """A generator may block: it has a thread of its own, and its items keep their order."""
    threads: list[threading.Thread] = []

    def agent(turn: Turn) -> Any:
        threads.append(threading.current_thread())
        for number in range(500):
            yield f"{number} "

    end = await stage.answer(agent)
    assert "".join(f"{number} " for number in range(500)) == end.data["message"]["text"]
    assert threading.main_thread() not in threads


async def test_agent_that_says_nothing(stage: Stage) -> None:
    """An empty answer is a completed run."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield ""

    end = await stage.answer(agent)
    assert (end.type, end.data["message"]["text"], end.data["message"]["parts"]) == ("run.completed", "", [])


@pytest.mark.parametrize("garbage", [42, None, b"bytes", {"text": "x"}, Text(7), ToolResult("unknown"), object()])
async def test_garbage_fails_the_run(stage: Stage, garbage: Any) -> None:
    """What cannot be an event ends the run with a code that says so; what came before is kept."""

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield "good"
        yield garbage
        yield "never"

    end = await stage.answer(agent)
    assert (end.type, end.data["code"], end.data["partial"]["text"]) == ("run.failed", "invalid_input", "good")


async def test_agent_error_is_shown(stage: Stage) -> None:
    """An ``AgentError``'s code, message and details are for the user."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "part"
        raise AgentError("The model is out of credit.", code="no_credit", model="m1")

    end = await stage.answer(agent)
    assert (
        end.data["code"],
        end.data["message"],
        end.data["detail"],
        end.data["partial"]["text"],
    ) == ("no_credit", "The model is out of credit.", {"model": "m1"}, "part")


DEEP: list[Any] = []
for _ in range(5_000):
    DEEP = [DEEP]


@pytest.mark.parametrize("on_crash", ["fail", "retry"])
@pytest.mark.parametrize(
    "error",
    [
        AgentError("bad", code="odd", thing=object()),
        AgentError("no \ud800 good"),
        AgentError("bad", code="\ud800"),
        AgentError("bad", thing={"\ud800": 1}),
        AgentError("bad", thing=DEEP),
    ],
    ids=["object", "message", "code", "key", "deep"],
)
async def test_agent_error_that_cannot_be_stored(
    stage: Stage, error: AgentError, on_crash: OnCrash, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It does not keep a run from ending, and nobody is asked a second time."""
    monkeypatch.setattr(execution.logger, "disabled", True)  # the reports of tests cannot have such text, either
    calls = 0

    async def agent(turn: Turn) -> str:
        nonlocal calls
        calls += 1
        raise error

    end = await stage.answer(Agent(agent, name="agent", on_crash=on_crash))
    assert (end.type, end.data["code"], calls) == ("run.failed", "agent_error", 1)


@pytest.mark.parametrize("error", [ValueError("password=hunter2"), SystemExit("password=hunter2"), GeneratorExit()])
async def test_other_errors_are_not_shown(stage: Stage, error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    """Of an unexpected error the server's log has the kind; its text is nowhere."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "part"
        raise error

    end = await stage.answer(agent)
    assert (end.type, end.data["code"], end.data["partial"]["text"]) == ("run.failed", "agent_error", "part")
    assert "hunter2" not in str(end.data)
    assert type(error).__name__ in caplog.text
    assert "hunter2" not in caplog.text


async def test_an_agent_cannot_exit_the_server(stage: Stage) -> None:
    """``sys.exit`` in an agent ends its run and nothing else."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "bye"
        sys.exit(3)

    assert (await stage.answer(agent)).data["code"] == "agent_error"


async def test_agent_that_cancels_itself(stage: Stage) -> None:
    """A ``CancelledError`` that nobody asked for is a failure, not a cancelled run."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "part"
        raise asyncio.CancelledError

    end = await stage.answer(agent)
    assert (end.type, end.data["code"]) == ("run.failed", "agent_error")


# Limits ---------------------------------------------------------------------------------------------------------------


async def test_huge_tool_output(stage: Stage) -> None:
    """An event that cannot be split is bounded; the call itself is kept."""

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield ToolCall("1", "dump", "{}")
        yield ToolResult("1", "x" * 2000)

    end = await stage.answer(agent, limits=Limits(event_bytes=1000))
    assert (end.type, end.data["code"]) == ("run.failed", "too_large")
    assert [part["name"] for part in end.data["partial"]["parts"]] == ["dump"]


async def test_too_large_in_the_middle_of_an_item(stage: Stage) -> None:
    """What was not stored is not in the terminal event either (here: a call whose arguments are too large)."""

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield "before"
        yield ToolCall("1", "dump", "x" * 2000)

    end = await stage.answer(agent, limits=Limits(event_bytes=1000))
    assert (end.data["code"], [p.get("text") for p in end.data["partial"]["parts"]]) == ("too_large", ["before"])


async def test_too_many_events(stage: Stage) -> None:
    """A run has a bounded number of events."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        while True:
            yield "x"

    end = await stage.answer(agent, limits=Limits(run_events=50))
    assert (end.data["code"], end.data["partial"]["text"]) == ("too_many_events", "x" * 50)


async def test_too_many_characters(stage: Stage) -> None:
    """A run has a bounded number of characters."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        while True:
            yield "12345"

    end = await stage.answer(agent, limits=Limits(run_characters=12))
    assert (end.data["code"], end.data["partial"]["text"]) == ("too_large", "1234512345")


async def test_too_long(stage: Stage) -> None:
    """A run has a bounded length."""
    end = await stage.answer(wait_for_ever, limits=Limits(run_seconds=0.05))
    assert (end.data["code"], end.data["partial"]["text"]) == ("timeout", "begun ")


# Cancelling -----------------------------------------------------------------------------------------------------------


async def test_cancel_reaches_the_agent_where_it_waits(stage: Stage) -> None:
    """The agent gets ``CancelledError``, sees the flag, and its last word is kept."""
    flags: list[bool] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "begun "
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            flags.append(turn.cancelled)
            yield "last word"
            raise

    runner, sent = await begun(stage, agent)
    assert [sent.run] == await runner.cancel(sent.session)
    end = await stage.ended(sent)
    assert (end.type, end.data["partial"]["text"], flags) == ("run.cancelled", "begun last word", [True])
    assert "run.cancel_requested" in await stage.types(sent)


async def test_an_agent_that_returns_when_cancelled(stage: Stage) -> None:
    """It counts as cancelled also when the agent ends in peace."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "begun "
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()

    runner, sent = await begun(stage, agent)
    await runner.cancel(sent.session)
    assert (await stage.ended(sent)).type == "run.cancelled"


async def test_an_agent_that_ignores_the_cancel(stage: Stage) -> None:
    """After the grace the run ends without its agent."""
    stubborn = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "begun "
        while not stubborn.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stubborn.wait()
        yield "never stored"

    runner, sent = await begun(stage, agent, limits=Limits(cancel_grace=0.01))
    await runner.cancel(sent.session)
    end = await stage.ended(sent)
    stubborn.set()
    await stage.idle(runner)
    assert (end.type, end.data["partial"]["text"]) == ("run.cancelled", "begun ")


async def test_an_agent_that_talks_on_after_the_cancel(stage: Stage) -> None:
    """After the grace nothing that it says is stored, however busy it is."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        while True:
            try:
                yield "x"
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                pass

    runner, sent = await begun(stage, agent, limits=Limits(cancel_grace=0.01))
    await runner.cancel(sent.session)
    assert (await stage.ended(sent)).type == "run.cancelled"


async def test_cancel_while_the_store_is_slow(stage: Stage) -> None:
    """An agent that waits for the store to catch up hears of the cancel at its ``yield``, and has its last word."""
    gate = Gate(stage.store, "text.delta")
    heard = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
        except asyncio.CancelledError:
            heard.set()
            yield " last word"
            raise

    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
        await runner.cancel(sent.session)
        await heard.wait()
    gate.open()
    end = await stage.ended(sent)
    assert (end.type, end.data["partial"]["text"].endswith("x last word")) == ("run.cancelled", True)


async def test_cancel_of_a_thread(stage: Stage) -> None:
    """A generator that sleeps in its thread cannot be woken, but its run ends at once; it is told at the next item."""
    sleeping, released, closed = threading.Event(), threading.Event(), threading.Event()

    def agent(turn: Turn) -> Any:
        try:
            yield "begun "
            sleeping.set()
            released.wait(NET)
            yield "never stored"
        finally:
            closed.set()

    runner, sent = await begun(stage, agent)
    await asyncio.to_thread(sleeping.wait, NET)
    await runner.cancel(sent.session)
    end = await stage.ended(sent)
    released.set()
    assert await asyncio.to_thread(closed.wait, NET)
    assert (end.type, end.data["partial"]["text"]) == ("run.cancelled", "begun ")


@pytest.mark.parametrize("waited", [False, True])
async def test_cancel_before_the_agent_has_begun(stage: Stage, waited: bool) -> None:
    """A cancel that comes between the start and the agent's first step still ends the run as cancelled."""
    go = asyncio.Event()
    asked: list[str] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        asked.append(turn.message.text)
        await (go if turn.message.text == "first" else asyncio.Event()).wait()
        yield "done"

    runner, session = stage.runner(agent), await stage.session()
    append = stage.store.append

    async def cancelled(session: str, drafts: Sequence[Draft], **options: Any) -> Appended:
        appended = await append(session, drafts, **options)
        if drafts[-1].type == "run.started" and (len(drafts) == 1) is waited:
            await runner.cancel(session, drafts[-1].run)
        return appended

    if waited:
        await runner.send(session, "first")
    stage.store.append = cancelled  # type: ignore[method-assign]
    sent = await runner.send(session, "second")
    go.set()
    assert (await stage.ended(sent)).type == "run.cancelled"
    assert await stage.types(sent) == ["message.created", "run.started", "run.cancel_requested", "run.cancelled"]
    del stage.store.append


async def test_cancel_twice(stage: Stage) -> None:
    """Further cancels, of the run or of all, are welcome and stored once."""
    runner, sent = await begun(stage, wait_for_ever)
    asked = [runner.cancel(sent.session, run) for run in (None, sent.run, None, sent.run)]
    assert [[sent.run]] * 4 == await asyncio.gather(*asked)
    await stage.ended(sent)
    types = [event.type for event in await stage.events(sent.session)]
    assert types.count("run.cancel_requested") == 1


async def test_cancel_after_the_end(stage: Stage) -> None:
    """There is nothing to cancel, and nothing is stored."""
    runner, sent = await begun(stage, wait_for_ever)
    await runner.cancel(sent.session)
    await stage.ended(sent)
    before = await stage.events(sent.session)
    assert await runner.cancel(sent.session) == []
    assert await runner.cancel(sent.session, sent.run) == []
    assert before == await stage.events(sent.session)


async def test_cancel_when_the_agent_is_done(stage: Stage) -> None:
    """An answer that was whole before the cancel was seen is a completed one."""
    gate = Gate(stage.store, "run.completed")

    async def agent(turn: Turn) -> str:
        return "whole"

    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    await runner.cancel(sent.session)
    gate.open()
    assert (await stage.ended(sent)).type == "run.completed"


# Permissions ----------------------------------------------------------------------------------------------------------


async def ask(turn: Turn) -> AsyncIterator[str]:
    yield "granted" if await turn.ask_permission("shell", "Run it?", params={"command": "ls"}) else "denied"


async def asked(
    stage: Stage, agent: Any = ask, type: str = "permission.requested", **settings: Any
) -> tuple[Runner, Sent, Event]:
    """A runner, a message whose answer waits for the user, and what it asked."""
    runner = stage.runner(agent, **settings)
    sent = await runner.send(await stage.session(), "hello")
    return runner, sent, await stage.seen(sent.session, type)


@pytest.mark.parametrize(("granted", "text"), [(True, "granted"), (False, "denied")])
async def test_permission(stage: Stage, granted: bool, text: str) -> None:
    """The agent gets the user's answer, which is in the log."""
    runner, sent, request = await asked(stage)
    assert granted is await runner.resolve_permission(request.data["id"], granted)
    assert text == (await stage.ended(sent)).data["message"]["text"]
    resolved = await stage.seen(sent.session, "permission.resolved")
    assert {"id": request.data["id"], "granted": granted, "by": "user"} == resolved.data
    assert ("shell", "Run it?", "execute", {"command": "ls"}, stage.clock.now + 600) == tuple(
        request.data[field] for field in ("tool", "description", "action", "params", "expires_at")
    )


async def test_the_first_answer_wins(stage: Stage) -> None:
    """Of two who answer at once, one decides, and both are told what holds; later ones, too."""
    runner, sent, request = await asked(stage)
    id = request.data["id"]
    answers = await asyncio.gather(runner.resolve_permission(id, True), runner.resolve_permission(id, False))
    assert answers == [True, True]
    await stage.ended(sent)
    assert await runner.resolve_permission(id, False)
    types = [event.type for event in await stage.events(sent.session)]
    assert types.count("permission.resolved") == 1


async def test_permission_timeout(stage: Stage) -> None:
    """Nobody answered: it is refused, after its question in the log although the store was slow."""
    gate = Gate(stage.store, "text.delta")

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "may I? "
        yield "yes" if await turn.ask_permission("shell", "Run it?", timeout=0.0) else "no"

    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    for _ in range(10):
        await asyncio.sleep(0)  # the timeout is over
    gate.open()
    assert (await stage.ended(sent)).data["message"]["text"] == "may I? no"
    events = [event for event in await stage.events(sent.session) if event.type.startswith("permission")]
    assert [event.type for event in events] == ["permission.requested", "permission.resolved"]
    assert (events[1].data["granted"], events[1].data["by"]) == (False, "timeout")


async def test_an_answer_that_comes_too_late(stage: Stage) -> None:
    """Once the time is over a yes is a no, whoever notices first."""
    steady = FakeClock()
    runner, sent, request = await asked(stage, steady=steady)
    steady.advance(600.0)
    assert not await runner.resolve_permission(request.data["id"], True)
    assert (await stage.ended(sent)).data["message"]["text"] == "denied"


JUMPS = [601.0, 3600.0, 86_400.0, 400 * 86_400.0, -601.0, -86_400.0, -400 * 86_400.0]
"""Seconds by which somebody sets the clock while a user thinks."""


@pytest.mark.parametrize("jump", JUMPS)
async def test_a_clock_that_is_set_makes_no_answer_late(stage: Stage, jump: float) -> None:
    """A yes is a yes as long as the time by which it was to come is not over, whatever the clock says; and the run goes
    on, is renewed, and is nobody else's."""
    runner, sent, request = await asked(stage)
    stage.clock.now += jump
    runner._bell.ring()
    await asyncio.sleep(0.01)
    assert await runner.resolve_permission(request.data["id"], True)
    assert (await stage.ended(sent)).data["message"]["text"] == "granted"
    assert (await stage.seen(sent.session, "permission.resolved")).data["by"] == "user"
    assert [event.type for event in await stage.events(sent.session)].count("run.started") == 1


@pytest.mark.parametrize("wait", [True, False])
@pytest.mark.parametrize("jump", JUMPS)
async def test_a_clock_that_is_set_closes_no_notification(stage: Stage, jump: float, wait: bool) -> None:
    """Whether its agent waits for the answer or has gone on; and its end is not put off either."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        answer = await turn.notify("Done?", "All of it.", response="acknowledge", timeout=600.0, wait=wait)
        yield answer.by if answer else "not waited for"

    steady = FakeClock()
    runner, sent, request = await asked(stage, agent, "notification.created", steady=steady)
    stage.clock.now += jump
    steady.advance(599.0)
    await runner.resolve_notification(request.data["id"], "acknowledge")
    assert (await stage.ended(sent)).data["message"]["text"] == ("user" if wait else "not waited for")
    second, sent, request = await asked(stage, agent, "notification.created", steady=steady)
    stage.clock.now -= jump
    steady.advance(601.0)
    with pytest.raises(AskNotFound, match="time to answer"):
        await second.resolve_notification(request.data["id"], "acknowledge")


@pytest.mark.parametrize(("jump", "late"), [(0.0, False), (-86_400.0, False), (599.0, False), (601.0, True)])
async def test_after_a_restart_the_clock_decides_and_puts_nothing_off(stage: Stage, jump: float, late: bool) -> None:
    """What an earlier life asked has what the clock says is left of its time, and never more than it was given."""
    agent = Agent(ask, on_crash="retry")
    _, sent, request = await asked(stage, agent)
    await stage.crash()
    stage.clock.now += jump
    steady = FakeClock()
    runner = stage.runner(agent, steady=steady)
    await runner.start()
    if not late:
        await stage.seen(sent.session, lambda event: event.data.get("attempt") == 2)
        async with asyncio.timeout(NET):
            while runner.deadlines.left(request.data["id"]) is None:  # noqa: ASYNC110
                await asyncio.sleep(0)
        left = runner.deadlines.left(request.data["id"])
        assert left == pytest.approx(min(600.0, 600.0 - jump))
        steady.advance(left - 0.5)
        assert await runner.resolve_permission(request.data["id"], True)
    assert (await stage.ended(sent)).data["message"]["text"] == ("denied" if late else "granted")


def test_deadlines_are_bounded() -> None:
    """What is asked and never answered is forgotten, the oldest first; then the clock decides."""
    steady = FakeClock(0.0)
    deadlines = Deadlines(steady, most=2)
    for name in "abc":
        deadlines.set(name, 10.0)
    assert [deadlines.left(name) for name in "abc"] == [None, 10.0, 10.0]
    assert [deadlines.is_late("a", at, 5.0) for at in (None, 4.0, 5.0, 6.0)] == [False, True, True, False]
    steady.advance(10.0)
    assert deadlines.is_late("b", 1e12, 0.0)
    deadlines.forget("b")
    deadlines.forget("b")
    assert not deadlines.is_late("b", 1e12, 0.0)


async def test_cancel_while_asking(stage: Stage) -> None:
    """The end of the run refuses what is open."""
    runner, sent, request = await asked(stage)
    await runner.cancel(sent.session)
    assert (await stage.ended(sent)).type == "run.cancelled"
    resolved = await stage.seen(sent.session, "permission.resolved")
    assert {"id": request.data["id"], "granted": False, "by": "run_ended"} == resolved.data
    assert not await runner.resolve_permission(request.data["id"], True)


async def test_the_end_of_a_run_expires_its_permissions(stage: Stage) -> None:
    """Also when the agent just did not wait for the answer."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        asking = asyncio.create_task(turn.ask_permission("shell", "Run it?"))
        await asyncio.sleep(0)
        left.append(asking)
        yield "done"

    left: list[asyncio.Task[bool]] = []
    _, sent, _ = await asked(stage, agent)
    assert (await stage.ended(sent)).type == "run.completed"
    assert (await stage.seen(sent.session, "permission.resolved")).data["by"] == "run_ended"
    assert type((await asyncio.gather(*left, return_exceptions=True))[0]).__name__ == "RunEnded"


async def test_a_thread_that_asks_is_released(stage: Stage) -> None:
    """The end of the run ends the wait of an agent's thread."""
    released = threading.Event()

    def agent(turn: Turn) -> str:
        try:
            return "yes" if turn.wait(turn.ask_permission("shell", "Run it?", timeout=None)) else "no"
        finally:
            released.set()

    runner, sent, request = await asked(stage, agent)
    assert "expires_at" not in request.data
    await runner.cancel(sent.session)
    assert (await stage.ended(sent)).type == "run.cancelled"
    assert await asyncio.to_thread(released.wait, NET)


async def test_unknown_permission(stage: Stage) -> None:
    """An id that was never asked is not found, in whatever form."""
    runner, sent, request = await asked(stage)
    for id in ("", "nothing", f"{request.data['id']}0", sent.session, f"{sent.session}~", "s~" * 200):
        with pytest.raises(AskNotFound):
            await runner.resolve_permission(id, True)


async def test_a_permission_of_a_lost_run(stage: Stage) -> None:
    """Once the run has ended without an answer, the request is refused for good."""
    runner, sent, request = await asked(stage)
    await stage.crash()
    runner = stage.runner(ask)
    await runner.start()
    assert (await stage.ended(sent)).data["code"] == "interrupted"
    assert not await runner.resolve_permission(request.data["id"], True)


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_permission_is_pending_over_a_restart(stage: Stage, when: str) -> None:
    """Asked once, answered once, before the restart or after it: the second attempt does not ask anew."""
    agent = Agent(ask, on_crash="retry")
    runner, sent, request = await asked(stage, agent)
    if when == "before":
        gate = Gate(stage.store, "text.delta")
        await runner.resolve_permission(request.data["id"], True)
        async with asyncio.timeout(NET):
            await gate.reached.wait()
    await stage.crash()
    runner = stage.runner(agent)
    await runner.start()
    if when == "after":
        await stage.seen(sent.session, lambda event: event.data.get("attempt") == 2)
        await runner.resolve_permission(request.data["id"], True)
    assert (await stage.ended(sent)).data["message"]["text"] == "granted"
    types = [event.type for event in await stage.events(sent.session)]
    assert (types.count("permission.requested"), types.count("permission.resolved")) == (1, 1)


async def test_another_question_is_not_answered_by_an_earlier_yes(stage: Stage) -> None:
    """A second attempt that asks something else is asked for itself: a yes to one is no yes to another."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        path = "draft.txt" if turn.attempt == 1 else "thesis.txt"
        if await turn.ask_permission("delete", f"Delete {path}?", path=path):
            if turn.attempt == 1:
                await asyncio.Event().wait()
            yield f"deleted {path}"

    retrying = Agent(agent, on_crash="retry")
    runner, sent, request = await asked(stage, retrying)
    await runner.resolve_permission(request.data["id"], True)
    await stage.crash()
    runner = stage.runner(retrying)
    await runner.start()
    second = await stage.seen(
        sent.session, lambda event: event.type == "permission.requested" and event.data["path"] == "thesis.txt"
    )
    await runner.resolve_permission(second.data["id"], False)
    assert (await stage.ended(sent)).data["message"]["text"] == ""


# Notifications --------------------------------------------------------------------------------------------------------


async def test_a_further_attempt_finds_the_answer_to_a_question_with_a_tuple(stage: Stage) -> None:
    """What JSON makes of a question's params is compared, so the same question is not asked twice."""
    asked = 0

    async def agent(turn: Turn) -> AsyncIterator[str]:
        nonlocal asked
        asked += 1
        params = {"lines": (1, asked and 9)}
        task = asyncio.ensure_future(turn.ask_permission("edit", "May I?", params=params))
        await asyncio.sleep(0)
        params["lines"] = (0, 0)  # its own business; the question is asked
        yield "yes" if await task else "no"

    agent = Agent(agent, on_crash="retry")
    sent = await stage.runner(agent).send(await stage.session(), "hello")
    request = await stage.seen(sent.session, "permission.requested")
    assert {"lines": [1, 9]} == request.data["params"]
    await stage.crash()
    runner = stage.runner(agent)
    assert await runner.resolve_permission(request.data["id"], True)
    await runner.start()
    assert "yes" == (await stage.ended(sent)).data["message"]["text"]
    types = [event.type for event in await stage.events(sent.session, sent.run)]
    assert 1 == types.count("permission.requested")


async def test_questions_that_may_wait_for_ever(stage: Stage) -> None:
    """An endless time to answer is no time limit: infinity has no place in JSON."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        granted = await turn.ask_permission("rm", "May I?", timeout=float("inf"))
        told = await turn.notify("Name?", "Which?", response="text", timeout=float("inf"), wait=True)
        yield f"{granted} {told and told.value}"

    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "hello")
    request = await stage.seen(sent.session, "permission.requested")
    assert await runner.resolve_permission(request.data["id"], True)
    notification = await stage.seen(sent.session, "notification.created")
    await runner.resolve_notification(notification.data["id"], "text", "Ada")
    assert "True Ada" == (await stage.ended(sent)).data["message"]["text"]


async def test_notification_that_nobody_waits_for(stage: Stage) -> None:
    """It is stored, the agent goes on, and it can be answered after the run, once."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        assert await turn.notify("Title", "Look", kind="warning") is None
        yield "done"

    runner, sent, created = await asked(stage, agent, "notification.created")
    await stage.ended(sent)
    id = created.data["id"]
    assert tuple(created.data[field] for field in ("kind", "title", "message", "response", "timeout")) == (
        "warning",
        "Title",
        "Look",
        "acknowledge",
        600.0,
    )
    await runner.resolve_notification(id, "acknowledge")
    with pytest.raises(AskNotFound):
        await runner.resolve_notification(id, "acknowledge")
    resolved = await stage.seen(sent.session, "notification.resolved")
    assert {"id": id, "response": "acknowledge", "by": "user", "run": sent.run} == resolved.data


async def choose(turn: Turn) -> AsyncIterator[str]:
    answer = await turn.notify("Title", "Which?", response="choice", choices=["red", "blue"], wait=True)
    yield str(answer)


async def test_notification_with_a_choice(stage: Stage) -> None:
    """Only what was offered, in the form that was asked for; the agent gets it."""
    runner, sent, created = await asked(stage, choose, "notification.created")
    id = created.data["id"]
    for response, value in [("choice", "green"), ("choice", None), ("text", "red"), ("acknowledge", None)]:
        with pytest.raises(InvalidInput):
            await runner.resolve_notification(id, response, value)
    await runner.resolve_notification(id, "choice", "red")
    end = await stage.ended(sent)
    assert str(Answer(by="user", value="red")) == end.data["message"]["text"]


async def test_notification_that_wants_text(stage: Stage) -> None:
    """A text is needed, and it may be empty."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        answer = await turn.notify("Title", "Why?", response="text", wait=True, timeout=None)
        yield repr(answer.value if answer else None)

    runner, sent, created = await asked(stage, agent, "notification.created")
    with pytest.raises(InvalidInput):
        await runner.resolve_notification(created.data["id"], "text")
    await runner.resolve_notification(created.data["id"], "text", "")
    assert (await stage.ended(sent)).data["message"]["text"] == "''"


async def test_notification_timeout(stage: Stage) -> None:
    """The agent is told that nobody answered, and then nobody can."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield str(await turn.notify("Title", "Look", wait=True, timeout=0.0))

    runner, sent, created = await asked(stage, agent, "notification.created")
    assert str(Answer(by="timeout")) == (await stage.ended(sent)).data["message"]["text"]
    with pytest.raises(AskNotFound):
        await runner.resolve_notification(created.data["id"], "acknowledge")


async def test_notification_answered_while_the_server_was_down(stage: Stage) -> None:
    """The second attempt finds the answer."""
    agent = Agent(choose, on_crash="retry")
    runner, sent, created = await asked(stage, agent, "notification.created")
    gate = Gate(stage.store, "text.delta")
    await runner.resolve_notification(created.data["id"], "choice", "blue")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    await stage.crash()
    await stage.runner(agent).start()
    assert str(Answer(by="user", value="blue")) == (await stage.ended(sent)).data["message"]["text"]
    types = [event.type for event in await stage.events(sent.session)]
    assert types.count("notification.created") == 1


async def test_choices_only_with_a_choice(stage: Stage) -> None:
    """An agent's own mistake is told to it."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        await turn.notify("Title", "Which?", choices=["red"])
        yield "never"

    assert (await stage.answer(agent)).data["code"] == "invalid_input"


async def test_a_huge_question(stage: Stage) -> None:
    """A question is an event, and bounded like one."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        await turn.ask_permission("shell", "x" * 2000)
        yield "never"

    assert (await stage.answer(agent, limits=Limits(event_bytes=1000))).data["code"] == "too_large"


# Storing --------------------------------------------------------------------------------------------------------------


async def test_what_is_ready_together_is_stored_together(stage: Stage) -> None:
    """While one append is under way the agent goes on; the next append takes all that came meanwhile, in order, with
    neighbouring text as one delta."""
    gate = Gate(stage.store, "text.delta")
    done = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        for number in range(10):
            yield Thinking("?") if number == 4 else f"{number}"
            await asyncio.sleep(0)
        done.set()

    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
        await done.wait()
    gate.open()
    assert (await stage.ended(sent)).data["message"]["text"] == "012356789"
    await stage.idle(runner)
    start = ["message.created", "run.started"]
    assert stage.store.batches == [
        start,
        ["text.delta"],
        ["text.delta", "thinking.delta", "text.delta"],
        ["run.completed"],
    ]


async def test_many_deltas_are_merged(stage: Stage) -> None:
    """A store that is far behind gets few events with the same text."""
    gate = Gate(stage.store, "text.delta")

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        yield "first "
        await gate.reached.wait()
        for number in range(100):
            yield f"{number} "
        yield Thinking("hm")
        yield "last"

    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    for _ in range(5):
        await asyncio.sleep(0)  # the agent is done
    gate.open()
    end = await stage.ended(sent)
    assert f"first {''.join(f'{number} ' for number in range(100))}last" == end.data["message"]["text"]
    assert stage.store.batches[2] == ["text.delta", "thinking.delta", "text.delta"]


async def test_a_tight_agent_does_not_starve_the_loop(stage: Stage) -> None:
    """An agent that never waits leaves room for everybody else, even if it says nothing."""
    turns = 0
    other = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        nonlocal turns
        while not other.is_set():
            turns += 1
            yield "x" if turns < 3000 else ""
            if turns > 1_000_000:
                break

    async def somebody() -> None:
        for _ in range(100):
            await asyncio.sleep(0)
        other.set()

    task = asyncio.create_task(somebody())
    end = await stage.answer(agent)
    await task
    assert (end.type, turns < 1_000_000) == ("run.completed", True)


@pytest.mark.parametrize("type", ["text.delta", "permission.resolved", "run.completed"])
async def test_a_store_that_fails_for_a_while(stage: Stage, type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is lost, doubled or out of order."""
    monkeypatch.setattr(outbox, "STORE_RETRIES", (0.0, 0.0, 0.0))
    stage.store.fail(3, of=type)

    async def agent(turn: Turn) -> AsyncIterator[str]:
        left.append(asyncio.create_task(turn.ask_permission("shell", "Run it?")))
        for number in range(100):
            yield f"{number} "
            await asyncio.sleep(0)

    left: list[asyncio.Task[bool]] = []
    end = await stage.answer(agent)
    await asyncio.gather(*left, return_exceptions=True)
    assert "".join(f"{number} " for number in range(100)) == end.data["message"]["text"]


async def test_a_store_that_fails_before_it_gives_anything_to_wait_for(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``append`` need be no coroutine: what it raises at once is as what it raises later."""
    monkeypatch.setattr(outbox, "STORE_RETRIES", (0.0,) * 3)
    append, failures = stage.store.append, 0

    def failing(session: str, drafts: Sequence[Draft], **options: Any) -> Any:
        nonlocal failures
        if drafts[0].type == "text.delta" and failures < 6:
            failures += 1
            if failures % 3:
                raise StoreError("The disk is on strike.")
        return append(session, drafts, **options)

    monkeypatch.setattr(stage.store, "append", failing)

    async def agent(turn: Turn) -> AsyncIterator[str]:
        for piece in ("a", "b", "c", "d"):
            yield piece
            await asyncio.sleep(0)

    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "hello")
    end = await stage.ended(sent)
    said = [event.data["text"] for event in await stage.events(sent.session) if event.type == "text.delta"]
    assert (end.type, end.data["message"]["text"], "".join(said)) == ("run.completed", "abcd", "abcd")
    assert failures >= 3


async def test_a_store_that_fails_for_ever(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run is left open, its agent is stopped, and once the store works the run is ended."""
    monkeypatch.setattr(outbox, "STORE_RETRIES", (0.0,))
    stopped = asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        try:
            yield "stored "
            await stage.seen(turn.session, "text.delta")
            stage.store.fail(-1, of="text.delta")
            yield "lost"
            await asyncio.Event().wait()
        finally:
            stopped.set()

    runner = stage.runner(agent, lease_ttl=0.03)
    sent = await runner.send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        await stopped.wait()
    await stage.idle(runner)
    assert "was left open" in caplog.text
    stage.store.before = None
    await runner.start()
    end = await stage.ended(sent)
    assert (end.data["code"], end.data["partial"]["text"]) == ("interrupted", "stored ")


@pytest.mark.parametrize("error", [StoreError("The disk is on strike."), StoreLost("It is away.")])
async def test_a_watcher_that_cannot_read(
    error: StoreError, stage: Stage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A log that cannot be read for a moment delays a cancel and costs nothing else. That the store is away is the
    store's to say, not that of a thousand runs."""
    monkeypatch.setattr(execution, "WATCH_RETRY", 0.0)
    runner, sent = await begun(stage, wait_for_ever)
    failures = 2

    async def read(*args: Any, **settings: Any) -> list[Event]:
        nonlocal failures
        if failures and settings.get("deltas") is False:
            failures -= 1
            raise type(error)(error.message)
        events: list[Event] = await stage.store.inner.read(*args, **settings)
        return events

    stage.store.read = read
    await runner.cancel(sent.session)
    assert (await stage.ended(sent)).type == "run.cancelled"
    assert (failures, error.message in caplog.text) == (0, type(error) is StoreError)


async def test_an_agent_that_fails_when_cancelled(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The run is cancelled all the same; what went wrong is in the server's log."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "begun "
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("cannot clean up")

    runner, sent = await begun(stage, agent)
    await runner.cancel(sent.session)
    assert (await stage.ended(sent)).type == "run.cancelled"
    assert "ValueError" in caplog.text


async def test_a_question_asked_while_the_run_ends(stage: Stage) -> None:
    """What an abandoned agent asks is refused to it, and leaves nothing in the log."""
    refused = asyncio.Event()
    gate = Gate(stage.store, "permission.resolved")

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "begun "
        try:
            await turn.ask_permission("shell", "Run it?")
        except asyncio.CancelledError:
            while not gate.reached.is_set():
                with contextlib.suppress(asyncio.CancelledError):
                    await gate.reached.wait()
        try:
            await turn.ask_permission("shell", "And this?")
        except RunEnded:
            refused.set()

    runner, sent = await begun(stage, agent, limits=Limits(cancel_grace=0.0))
    await stage.seen(sent.session, "permission.requested")
    await runner.cancel(sent.session)
    async with asyncio.timeout(NET):
        await refused.wait()
    gate.open()
    assert (await stage.ended(sent)).type == "run.cancelled"
    asks = [event.type for event in await stage.events(sent.session) if event.type.startswith("permission")]
    assert asks == ["permission.requested", "permission.resolved"]


async def test_a_question_beyond_the_limit_of_events(stage: Stage) -> None:
    """A question that could not be stored is not resolved either."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "only this"
        await turn.ask_permission("shell", "Run it?")

    runner = stage.runner(agent, limits=Limits(run_events=1))
    sent = await runner.send(await stage.session(), "hello")
    assert (await stage.ended(sent)).data["code"] == "too_many_events"
    assert "permission.resolved" not in await stage.types(sent)
