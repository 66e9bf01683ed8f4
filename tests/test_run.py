"""The runner: sending, queues, crashes, leases, draining."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from facts import draft
from legato.agent import Agent, OnCrash, Turn
from legato.errors import (
    AskNotFound,
    Draining,
    InvalidInput,
    KeyReused,
    QueueFull,
    SessionNotFound,
    StoreError,
    TooLarge,
)
from legato.event import TERMINAL, Draft, Event
from legato.execution import Limits
from legato.run import Runner
from legato.sessions import Sent
from legato.transcript import Transcript
from legato.yields import Checkpoint, Thinking, ToolCall, ToolResult
from running import NET, STORES, Gate, Stage, staged


@pytest.fixture(params=STORES)
async def stage(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged(request.param, tmp_path) as stage:
        yield stage


async def echo(turn: Turn) -> str:
    return turn.message.text


class Past(dict[str, Any]):
    """An event's data that can be seen to be dropped."""


class Held:
    """An agent that says one word, waits to be let go on, and says another.

    Attributes:
        begun: the texts of the messages whose answers have begun, in order.
        stopped: set when an answer was cut off.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.go = asyncio.Event()
        self.stopped = asyncio.Event()

    async def __call__(self, turn: Turn) -> AsyncIterator[str]:
        self.begun.append(turn.message.text)
        yield "begun "
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.stopped.set()
            raise
        yield "done"


async def begun(stage: Stage, agent: Any, **settings: Any) -> tuple[Runner, Sent]:
    """A runner, and a message whose answer has begun to be stored."""
    runner = stage.runner(agent, **settings)
    sent = await runner.send(await stage.session(), "hello")
    await stage.seen(sent.session, "text.delta")
    return runner, sent


# Sending --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", " \n\t ", "half \ud800", "\udc00"])
async def test_text_that_cannot_be_sent(stage: Stage, text: str) -> None:
    """Blanks and halves of surrogate pairs are refused, and nothing is stored."""
    session = await stage.session()
    with pytest.raises(InvalidInput):
        await stage.runner(echo).send(session, text)
    assert [event.type for event in await stage.events(session)] == ["session.created"]


async def test_a_message_is_bounded(stage: Stage) -> None:
    """The limit is inclusive, and counts characters."""
    runner = stage.runner(echo, limits=Limits(message_characters=3))
    session = await stage.session()
    with pytest.raises(TooLarge):
        await runner.send(session, "four")
    await stage.ended(await runner.send(session, "\U0001f600" * 3))


async def test_unknown_session(stage: Stage) -> None:
    """There is no session that was not made."""
    runner = stage.runner(echo)
    with pytest.raises(SessionNotFound):
        await runner.send("nobody", "hello")
    with pytest.raises(SessionNotFound):
        await runner.cancel("nobody")


async def test_unknown_agent(stage: Stage) -> None:
    """It is refused at once, with the names that there are."""
    with pytest.raises(InvalidInput, match="echo"):
        await stage.runner(echo).send(await stage.session(), "hello", agent="nobody")


async def test_an_agent_that_is_gone_after_a_restart(stage: Stage) -> None:
    """A message that waited for it ends with a code that says so."""
    held = Held()
    runner = stage.runner(held, echo)
    session = await stage.session()
    await runner.send(session, "first")
    waiting = await runner.send(session, "second", agent="echo")
    await stage.seen(session, "text.delta")
    await stage.crash()
    await stage.runner(Agent(held, name="other")).start()
    end = await stage.ended(waiting)
    assert (end.type, end.data["code"]) == ("run.failed", "unknown_agent")


async def test_which_agent_answers(stage: Stage) -> None:
    """The message's, else the session's, else the first."""

    async def name(turn: Turn) -> str:
        return turn.agent

    runner = stage.runner(*(Agent(name, name=letter) for letter in "abc"))
    session = await stage.session(agent="b")
    chosen = [await runner.send(session, "x", agent="c"), await runner.send(session, "x")]
    chosen.append(await runner.send(await stage.session(), "x"))
    assert [(await stage.ended(sent)).data["message"]["text"] for sent in chosen] == ["c", "b", "a"]


# The same key ---------------------------------------------------------------------------------------------------------


async def test_the_same_key_is_the_same_run(stage: Stage) -> None:
    """Sent again, also at the same time and after its end, a message is stored and answered once."""
    runner = stage.runner(echo)
    session = await stage.session()
    sents = await asyncio.gather(*(runner.send(session, "hello", key="k", metadata={"a": [1]}) for _ in range(5)))
    await stage.ended(sents[0])
    sents.append(await runner.send(session, "hello", key="k", metadata={"a": [1]}))
    await stage.idle(runner)
    assert len({(sent.run, sent.message, sent.offset) for sent in sents}) == 1
    assert sorted(sent.repeated for sent in sents) == [False, *[True] * 5]
    types = [event.type for event in await stage.events(session)]
    assert (types.count("message.created"), types.count("run.completed")) == (1, 1)


async def test_keys_belong_to_a_session(stage: Stage) -> None:
    """The same key in another session is another message."""
    runner = stage.runner(echo)
    first = await runner.send(await stage.session(), "hello", key="k")
    second = await runner.send(await stage.session(), "hello", key="k")
    assert (first.run == second.run, second.repeated) == (False, False)


@pytest.mark.parametrize("other", [{"text": "other"}, {"agent": "echo"}, {"metadata": {"plan_mode": True}}])
async def test_the_same_key_with_another_body(stage: Stage, other: dict[str, Any]) -> None:
    """It is refused, whatever differs."""
    runner = stage.runner(echo)
    session = await stage.session()
    await runner.send(session, "hello", key="k")
    with pytest.raises(KeyReused):
        await runner.send(session, **{"text": "hello", "key": "k", **other})


async def test_a_full_queue(stage: Stage) -> None:
    """Messages beyond the bound are refused; one that is there already is not."""
    held = Held()
    runner = stage.runner(held, limits=Limits(queued_messages=2, cancel_grace=5.0))
    session = await stage.session()
    first = await runner.send(session, "0", key="0")
    for number in "12":
        last = await runner.send(session, number, key=number)
    with pytest.raises(QueueFull):
        await runner.send(session, "3", key="3")
    with pytest.raises(QueueFull):
        await runner.send(session, "3")
    assert (await runner.send(session, "1", key="1")).repeated
    with pytest.raises(KeyReused):
        await runner.send(session, "other", key="1")
    held.go.set()
    await stage.ended(first)
    await runner.send(session, "3", key="3")
    assert (await stage.ended(last)).type == "run.completed"


# Queues and places ----------------------------------------------------------------------------------------------------


async def test_one_run_at_a_time_in_a_session(stage: Stage) -> None:
    """Messages are answered one after another, in their order, however they were sent."""
    inside: list[str] = []
    order: list[str] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        inside.append(turn.message.text)
        yield str(len(inside))
        await asyncio.sleep(0)
        order.append(turn.message.text)
        inside.remove(turn.message.text)

    runner = stage.runner(agent)
    session = await stage.session()
    sents = await asyncio.gather(*(runner.send(session, str(number)) for number in range(10)))
    ends = [await stage.ended(sent) for sent in sents]
    in_log = [event.data["text"] for event in await stage.events(session) if event.type == "message.created"]
    assert order == in_log
    assert [end.data["message"]["text"] for end in ends] == ["1"] * 10


async def test_sessions_do_not_wait_for_each_other(stage: Stage) -> None:
    """Two sessions run at the same time."""
    meeting = asyncio.Barrier(2)

    async def agent(turn: Turn) -> AsyncIterator[str]:
        await meeting.wait()
        yield "met"

    runner = stage.runner(agent)
    sents = [await runner.send(await stage.session(), "hello") for _ in range(2)]
    assert [(await stage.ended(sent)).data["message"]["text"] for sent in sents] == ["met", "met"]


async def test_concurrent_runs_are_bounded(stage: Stage) -> None:
    """More runs than places: they wait for one another."""
    inside, most = 0, 0

    async def agent(turn: Turn) -> AsyncIterator[str]:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        yield "x"
        if inside == 2:
            both.set()
        await both.wait()
        inside -= 1

    both = asyncio.Event()
    runner = stage.runner(agent, limits=Limits(concurrent_runs=2))
    sents = [await runner.send(await stage.session(), "hello") for _ in range(6)]
    for sent in sents:
        await stage.ended(sent)
    assert most == 2


async def test_no_place_in_time(stage: Stage) -> None:
    """Who waits too long for a place is told so; who then sends again is answered."""
    held = Held()
    runner, first = await begun(stage, held, limits=Limits(concurrent_runs=1, place_seconds=0.01))
    second = await runner.send(await stage.session(), "too much")
    end = await stage.ended(second)
    assert (end.type, end.data["code"]) == ("run.failed", "overloaded")
    held.go.set()
    await stage.ended(first)
    await stage.idle(runner)
    assert (await stage.ended(await runner.send(second.session, "again"))).type == "run.completed"


async def test_no_place_for_a_further_attempt(stage: Stage) -> None:
    """Also then what the first attempt said is kept."""
    held = Agent(Held(), name="held", on_crash="retry")
    _, sent = await begun(stage, held)
    await stage.crash()
    await stage.runner(held, limits=Limits(concurrent_runs=0, place_seconds=0.0)).start()
    end = await stage.ended(sent)
    assert (end.data["code"], end.data["partial"]["text"]) == ("overloaded", "begun ")


async def test_cancel_of_a_run_that_waits_for_a_place(stage: Stage) -> None:
    """It ends at once, while the place is still taken, and is never begun."""
    held = Held()
    runner, first = await begun(stage, held, limits=Limits(concurrent_runs=1, cancel_grace=5.0))
    second = await stage.waiting(runner)
    await runner.cancel(second.session)
    assert (await stage.ended(second)).type == "run.cancelled"
    assert await stage.types(second) == ["message.created", "run.cancel_requested", "run.cancelled"]
    assert await stage.types(first) == ["message.created", "run.started", "text.delta"]
    held.go.set()
    await stage.ended(first)
    await stage.idle(runner)
    assert (held.begun, runner._places._value) == (["hello"], 1)


async def test_a_run_that_waits_is_cancelled_by_whoever_appends_it(stage: Stage) -> None:
    """Another process, too; what others append to the session meanwhile does not end the wait."""
    held = Held()
    runner, _ = await begun(stage, held, limits=Limits(concurrent_runs=1, cancel_grace=5.0))
    second = await stage.waiting(runner)
    others = stage.runner(Held())
    others.draining = True  # it takes nothing up
    third = (await runner.send(second.session, "third")).run
    await others.cancel(second.session, third)
    assert await stage.types(second) == ["message.created"]
    await others.cancel(second.session, second.run)
    assert (await stage.ended(second)).type == "run.cancelled"


async def test_a_place_that_comes_with_the_cancel_is_not_lost(stage: Stage) -> None:
    """The place is given to the run in the moment in which its cancel is read: it ends, and another gets the place."""
    held = Held()
    runner, first = await begun(stage, held, limits=Limits(concurrent_runs=1, cancel_grace=5.0))
    second = await stage.waiting(runner)
    read = stage.store.inner.read

    async def reading(session: str, *args: Any, **options: Any) -> list[Event]:
        events: list[Event] = await read(session, *args, **options)
        if session == second.session and any(event.type == "run.cancel_requested" for event in events):
            del stage.store.read
            runner._places.release()  # the waiting task is woken, and has not run yet
        return events

    stage.store.read = reading
    worker = runner._workers[second.session]
    await runner.cancel(second.session)
    assert (await stage.ended(second)).type == "run.cancelled"
    async with asyncio.timeout(NET):
        await worker
    assert runner._places._value == 1
    await runner._places.acquire()  # give back what was lent
    held.go.set()
    await stage.ended(first)
    await stage.idle(runner)
    assert (held.begun, runner._places._value) == (["hello"], 1)


async def test_a_store_that_fails_while_a_run_waits_for_a_place(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wait goes on, and so does the look-out for a cancel."""
    monkeypatch.setattr("legato.run.WATCH_RETRY", 0.0)
    held = Held()
    runner, _ = await begun(stage, held, limits=Limits(concurrent_runs=1, cancel_grace=5.0))
    failed = asyncio.Event()

    async def reading(session: str, after: int, **options: Any) -> list[Event]:
        if options.get("deltas") is False and session != first_session and not failed.is_set():
            failed.set()
            raise StoreError("The disk is on strike.")
        events: list[Event] = await stage.store.inner.read(session, after, **options)
        return events

    first_session = stage._sessions[0]
    stage.store.read = reading
    second = await stage.waiting(runner)
    async with asyncio.timeout(30):
        await failed.wait()
    await runner.cancel(second.session)
    assert (await stage.ended(second)).type == "run.cancelled"


async def test_cancel_of_a_queued_run(stage: Stage) -> None:
    """It is never begun; the one before it goes on."""
    held = Held()
    runner, first = await begun(stage, held)
    second = await runner.send(first.session, "second")
    assert await runner.cancel(first.session, second.run) == [second.run]
    held.go.set()
    assert (await stage.ended(first)).type == "run.completed"
    assert (await stage.ended(second)).type == "run.cancelled"
    assert held.begun == ["hello"]


async def test_cancel_of_a_run_that_ends_meanwhile(stage: Stage) -> None:
    """There was nothing left to cancel."""
    runner = stage.runner(echo)
    sent = await runner.send(await stage.session(), "hello")
    open_then = await stage.store.info(sent.session)
    await stage.ended(sent)

    async def info(session: str) -> Any:
        return open_then

    stage.store.info = info
    assert await runner.cancel(sent.session) == []
    del stage.store.info


async def test_cancel_of_all(stage: Stage) -> None:
    """A cancel without a run is for all that are open."""
    held = Held()
    runner, first = await begun(stage, held)
    second = await runner.send(first.session, "second")
    assert await runner.cancel(first.session) == [first.run, second.run]
    assert [(await stage.ended(sent)).type for sent in (first, second)] == ["run.cancelled"] * 2


async def test_a_message_that_was_taken_back(stage: Stage) -> None:
    """A rewind that crossed a message on its way: its run ends, though it is no part of the conversation any more."""
    runner = stage.runner(echo)
    session = await stage.session()
    first = await runner.send(session, "first")
    await stage.ended(first)
    await stage.idle(runner)

    async def rewind(inner: Any, *args: Any, **settings: Any) -> Any:
        lease = await inner.acquire(*args, **settings)
        await stage.store.append(session, [draft("session.rewound", {"to": first.message})])
        return lease

    stage.store.acquire = lambda *args, **settings: rewind(stage.store.inner, *args, **settings)
    second = await runner.send(session, "second")
    assert (await stage.ended(second)).data["code"] == "rewound"


# Deletion -------------------------------------------------------------------------------------------------------------


async def test_a_session_deleted_while_it_runs(stage: Stage) -> None:
    """The agent is stopped and nothing is appended after the deletion."""
    held = Held()
    runner, sent = await begun(stage, held)
    await stage.store.append(sent.session, [draft("session.deleted", {})])
    async with asyncio.timeout(NET):
        await held.stopped.wait()
    await stage.idle(runner)
    assert [event.type for event in await stage.events(sent.session)] == ["session.deleted"]
    with pytest.raises(SessionNotFound):
        await runner.send(sent.session, "hello")


async def test_a_session_deleted_while_it_waits_for_a_place(stage: Stage) -> None:
    """Nothing is run and nothing is appended, and the place stays free for others."""
    held = Held()
    runner, first = await begun(stage, held, limits=Limits(concurrent_runs=1, cancel_grace=5.0))
    second = await stage.waiting(runner)
    await stage.store.append(second.session, [draft("session.deleted", {})])
    held.go.set()
    await stage.ended(first)
    await stage.idle(runner)
    assert [event.type for event in await stage.events(second.session)] == ["session.deleted"]
    assert (held.begun, runner._places.locked()) == (["hello"], False)


# Crashes --------------------------------------------------------------------------------------------------------------


async def test_crash_fails_the_run(stage: Stage) -> None:
    """By default a run whose process died ends as failed, with what it had said."""
    held = Held()
    _, sent = await begun(stage, held)
    await stage.crash()
    await stage.runner(held).start()
    end = await stage.ended(sent)
    assert (end.type, end.data["code"], end.data["partial"]["text"]) == ("run.failed", "interrupted", "begun ")
    assert held.begun == ["hello"]


async def test_a_queued_message_survives_a_crash(stage: Stage) -> None:
    """What was not begun is begun after the restart, in its order."""
    held = Held()
    runner, first = await begun(stage, held)
    others = [await runner.send(first.session, str(number)) for number in range(3)]
    await stage.crash()
    held.go.set()
    await stage.runner(held).start()
    assert [(await stage.ended(sent)).type for sent in (first, *others)] == ["run.failed", *["run.completed"] * 3]
    assert held.begun == ["hello", "0", "1", "2"]


async def test_crash_and_retry(stage: Stage) -> None:
    """A second attempt knows that it is one, what the first has stored, and speaks in a new step."""
    turns: list[Turn] = []

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        turns.append(turn)
        yield Thinking("hm")
        yield f"attempt {turn.attempt} "
        yield ToolCall("call", "search", "{}")
        if turn.attempt == 1:
            await asyncio.Event().wait()
        yield ToolResult("call", "found")
        yield "so"

    retrying = Agent(agent, on_crash="retry")
    runner = stage.runner(retrying)
    sent = await runner.send(await stage.session(), "hello")
    await stage.seen(sent.session, "tool_call.completed")
    await stage.crash()
    await stage.runner(retrying).start()
    end = await stage.ended(sent)
    assert [turn.attempt for turn in turns] == [1, 2]
    assert [event.type for event in turns[1].events] == [
        "message.created",
        "run.started",
        "thinking.delta",
        "text.delta",
        "tool_call.started",
        "tool_call.completed",
    ]
    parts = end.data["message"]["parts"]
    assert [(part["type"], part["step"]) for part in parts] == [
        ("thinking", 1),
        ("text", 1),
        ("tool_call", 1),
        ("thinking", 2),
        ("text", 2),
        ("tool_call", 2),
        ("text", 3),
    ]
    assert end.data["message"]["text"] == "so"
    assert parts[2]["id"] != parts[5]["id"]


async def test_crash_and_resume(stage: Stage) -> None:
    """An agent that goes on where it stopped continues the same part: the text has no seam."""
    whole = "The quick brown fox jumps over the lazy dog."

    async def agent(turn: Turn) -> AsyncIterator[str]:
        said = "".join(event.data["text"] for event in turn.events if event.type == "text.delta")
        for place in range(len(said), len(whole)):
            if place == 10 * turn.attempt and turn.attempt < 3:
                await asyncio.Event().wait()
            yield whole[place]

    resuming = Agent(agent, on_crash="resume")
    sent = await stage.runner(resuming).send(await stage.session(), "hello")
    for attempt in (1, 2):
        await stage.seen(
            sent.session,
            lambda event, attempt=attempt: event.type == "text.delta" and event.data["start"] == 10 * attempt - 1,
        )
        await stage.crash()
        await stage.runner(resuming).start()
    end = await stage.ended(sent)
    assert (end.data["message"]["text"], len(end.data["message"]["parts"])) == (whole, 1)


async def test_a_further_attempt_finds_the_last_checkpoint(stage: Stage) -> None:
    """What the agent noted for itself is there after a crash, the newest note only, and not before."""
    found = []

    async def agent(turn: Turn) -> AsyncIterator[Any]:
        found.append(turn.checkpoint)
        yield Checkpoint({"place": turn.attempt})
        yield Checkpoint({"place": turn.attempt * 10, "of": ("a", "b")})
        yield "."
        if turn.attempt < 3:
            await asyncio.Event().wait()

    noting = Agent(agent, on_crash="resume")
    sent = await stage.runner(noting).send(await stage.session(), "hello")
    for attempt in (1, 2):
        await stage.seen(
            sent.session,
            lambda event, attempt=attempt: event.type == "text.delta" and event.data["start"] == attempt - 1,
        )
        await stage.crash()
        await stage.runner(noting).start()
    await stage.ended(sent)
    assert [None, {"place": 10, "of": ["a", "b"]}, {"place": 20, "of": ["a", "b"]}] == found


@pytest.mark.parametrize("how", ["cancelled", "deleted", "drained"])
async def test_an_agent_knows_whether_it_will_be_called_again(stage: Stage, how: str) -> None:
    """Only a run that is left open for a further attempt must not end what it began elsewhere."""
    stopped: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "."
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set_result(turn.left_open)

    runner, sent = await begun(stage, Agent(agent, on_crash="resume"))
    if how == "cancelled":
        await runner.cancel(sent.session)
    elif how == "deleted":
        await stage.store.append(sent.session, [draft("session.deleted", {})])
    else:
        await runner.stop()
    async with asyncio.timeout(NET):
        assert (how == "drained") is await stopped


@pytest.mark.parametrize("on_crash", ["retry", "resume"])
async def test_attempts_are_bounded(stage: Stage, on_crash: OnCrash) -> None:
    """A run that takes its process down each time is given up."""
    held = Held()
    agent = Agent(held, name="held", on_crash=on_crash)
    limits = Limits(attempts=2)
    sent = await stage.runner(agent, limits=limits).send(await stage.session(), "hello")
    for attempt in (1, 2):
        await stage.seen(sent.session, lambda event, attempt=attempt: event.data.get("attempt") == attempt)
        await stage.crash()
        await stage.runner(agent, limits=limits).start()
    end = await stage.ended(sent)
    assert (end.type, end.data["code"]) == ("run.failed", "interrupted")
    starts = [event.data["attempt"] for event in await stage.events(sent.session) if event.type == "run.started"]
    assert starts == [1, 2]


@pytest.mark.parametrize("on_crash", ["fail", "retry", "resume"])
async def test_cancel_before_a_crash(stage: Stage, on_crash: OnCrash) -> None:
    """The record in the log is enough: the next owner ends the run as cancelled, and asks no agent."""
    asked: list[int] = []

    async def agent(turn: Turn) -> AsyncIterator[str]:
        asked.append(turn.attempt)
        yield "begun "
        while True:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                if asked == [1, 1]:
                    raise
                asked.append(1)

    stubborn = Agent(agent, on_crash=on_crash)
    runner, sent = await begun(stage, stubborn)
    await runner.cancel(sent.session)
    async with asyncio.timeout(NET):
        while asked == [1]:  # noqa: ASYNC110  # the agent hears of it in its own time
            await asyncio.sleep(0)
    await stage.crash()
    await stage.runner(stubborn).start()
    end = await stage.ended(sent)
    assert (end.type, end.data["partial"]["text"], asked) == ("run.cancelled", "begun ", [1, 1])


async def test_a_crash_before_the_start_was_stored(stage: Stage) -> None:
    """A run that was leased and not yet started is simply started by the next owner."""
    gate = Gate(stage.store, "run.started")
    sent = await stage.runner(echo).send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    await stage.crash()
    await stage.runner(echo).start()
    assert (await stage.ended(sent)).type == "run.completed"
    starts = [event.data["attempt"] for event in await stage.events(sent.session) if event.type == "run.started"]
    assert starts == [1]


async def test_a_crash_after_the_last_word(stage: Stage) -> None:
    """All was said but the end was not stored: for its readers that is an interrupted run, with the whole text."""
    gate = Gate(stage.store, "run.completed")
    sent = await stage.runner(echo).send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    await stage.crash()
    await stage.runner(echo).start()
    end = await stage.ended(sent)
    assert (end.data["code"], end.data["partial"]["text"]) == ("interrupted", "hello")


# Leases ---------------------------------------------------------------------------------------------------------------


async def test_a_second_owner_waits_for_the_first(stage: Stage) -> None:
    """As long as the lease holds nobody else touches the run; the second owner's message waits."""
    held = Held()
    _, sent = await begun(stage, held)
    second = stage.runner(held)
    await second.start()
    other = await second.send(sent.session, "second")
    await stage.idle(second)
    assert held.begun == ["hello"]
    held.go.set()
    assert [(await stage.ended(each)).type for each in (sent, other)] == ["run.completed"] * 2
    assert held.begun == ["hello", "second"]


async def test_a_second_owner_takes_over(stage: Stage) -> None:
    """Once the lease is over another owner ends the run; the first one's later words are refused, its agent stopped."""
    held = Held()
    first, sent = await begun(stage, held)
    stage.clock.now += 16.0
    second = stage.runner(held)
    await second.start()
    end = await stage.ended(sent)
    held.go.set()  # the first owner's agent says "done" now
    await stage.idle(first)
    assert (end.type, end.data["code"], end.data["partial"]["text"]) == ("run.failed", "interrupted", "begun ")
    assert (await stage.events(sent.session))[-1] == end


async def test_a_late_writer_is_refused_in_the_middle(stage: Stage) -> None:
    """An append that was on its way while the run was taken over changes nothing."""
    go, stopped = asyncio.Event(), asyncio.Event()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        try:
            yield f"{turn.attempt} "
            if turn.attempt == 1:
                await go.wait()
                yield "late "
                await asyncio.Event().wait()
        finally:
            if turn.attempt == 1:
                stopped.set()

    retrying = Agent(agent, on_crash="retry")
    first, sent = await begun(stage, retrying)
    gate = Gate(stage.store, "text.delta")
    go.set()
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    stage.store.before = None
    stage.clock.now += 16.0
    await stage.runner(retrying).start()
    end = await stage.ended(sent)
    gate.open()
    async with asyncio.timeout(NET):
        await stopped.wait()
    await stage.idle(first)
    texts = [event.data["text"] for event in await stage.events(sent.session) if event.type == "text.delta"]
    assert (end.type, texts) == ("run.completed", ["1 ", "2 "])


async def test_an_idle_agent_hears_that_its_run_was_taken_over(stage: Stage) -> None:
    """The first owner's agent is stopped when its runner sees it in the log, not only at its next word."""
    held = Held()
    first, sent = await begun(stage, held)
    stage.clock.now += 16.0
    await stage.runner(held).start()
    await stage.ended(sent)
    stage.store.doorbell.ring(sent.session)  # what the watcher's heartbeat does after a while
    async with asyncio.timeout(NET):
        await held.stopped.wait()
    await stage.idle(first)


async def test_an_owner_that_lives_keeps_its_lease(stage: Stage) -> None:
    """The reaper renews what it holds, so that nobody else takes a long run."""
    held = Held()
    runner = stage.runner(held, lease_ttl=0.03)
    await runner.start()
    sent = await runner.send(await stage.session(), "hello")
    await stage.seen(sent.session, "text.delta")
    renewed = asyncio.Event()

    async def renew(*, owner: str, ttl: float) -> None:
        stage.clock.now += 0.02
        await stage.store.inner.renew(owner=owner, ttl=ttl)
        if stage.clock.now > 1_000_000.1:
            renewed.set()

    stage.store.renew = renew
    async with asyncio.timeout(NET):
        await renewed.wait()
    other = stage.runner(held)
    await other.start()
    await stage.idle(other)
    held.go.set()
    assert (await stage.ended(sent)).type == "run.completed"


async def test_the_reaper_finds_what_was_left(stage: Stage) -> None:
    """A run whose owner died while this one lives is taken up, though nobody sends anything."""
    held = Held()
    _, sent = await begun(stage, held)
    await stage._drop()  # its lease holds on
    other = stage.runner(held, lease_ttl=0.03)
    await other.start()
    await stage.idle(other)
    stage.clock.now += 16.0
    assert (await stage.ended(sent)).data["code"] == "interrupted"


@pytest.mark.parametrize("error", [StoreError("The disk is on strike."), ValueError("The disk is on strike.")])
async def test_the_reaper_survives_a_store_that_fails(
    stage: Stage, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """It says so and goes on."""
    failed = asyncio.Event()

    async def renew(**settings: Any) -> None:
        if failed.is_set():
            stage.store.renew = stage.store.inner.renew
        failed.set()
        raise error

    held = Held()
    _, sent = await begun(stage, held)
    await stage._drop()
    stage.store.renew = renew
    await stage.runner(held, lease_ttl=0.03).start()
    async with asyncio.timeout(NET):
        await failed.wait()
    stage.clock.now += 16.0
    assert (await stage.ended(sent)).data["code"] == "interrupted"
    assert "The disk is on strike." in caplog.text


async def test_an_answer_for_a_run_that_ended_without_it(stage: Stage) -> None:
    """A request that nothing has resolved (another program wrote the log) cannot be answered after its run."""
    session = await stage.session()
    partial = Transcript().message("r")
    for type, data in [
        ("message.created", {"id": "m", "role": "user", "text": "hello"}),
        ("run.started", {"agent": "echo", "attempt": 1}),
        ("permission.requested", {"id": f"{session}~r~p1", "tool": "t", "description": "d", "action": "execute"}),
        ("run.failed", {"code": "c", "message": "m", "partial": partial}),
    ]:
        await stage.store.append(session, [draft(type, data, "r")])
    with pytest.raises(AskNotFound):
        await stage.runner(echo).resolve_permission(f"{session}~r~p1", True)


# Draining -------------------------------------------------------------------------------------------------------------


async def test_drain_lets_a_run_finish(stage: Stage) -> None:
    """New messages are refused, what runs may finish, what waits is kept for the next start."""
    held = Held()
    runner, first = await begun(stage, held)
    waiting = await runner.send(first.session, "waiting")
    stopping = asyncio.create_task(runner.stop(grace=NET))
    await asyncio.sleep(0)
    with pytest.raises(Draining):
        await runner.send(first.session, "too late")
    held.go.set()
    await stopping
    assert (await stage.ended(first)).type == "run.completed"
    assert [run.run for run in (await stage.store.info(first.session)).open_runs] == [waiting.run]
    await stage.crash()
    await stage.runner(held).start()
    assert (await stage.ended(waiting)).type == "run.completed"
    assert held.begun == ["hello", "waiting"]


async def test_drain_interrupts_a_long_run(stage: Stage) -> None:
    """After the grace a run is ended as interrupted, with its agent's last word; stopping twice is fine."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "begun "
        try:
            await asyncio.Event().wait()
        finally:
            yield "last word"

    runner, sent = await begun(stage, agent)
    await runner.stop(grace=0.01)
    await runner.stop()
    end = (await stage.events(sent.session))[-1]
    assert (end.type, end.data["code"], end.data["partial"]["text"]) == (
        "run.failed",
        "interrupted",
        "begun last word",
    )


@pytest.mark.parametrize("on_crash", ["retry", "resume"])
async def test_drain_leaves_a_run_that_can_go_on(stage: Stage, on_crash: OnCrash) -> None:
    """An agent that retries or resumes does so after the next start."""
    held = Held()
    agent = Agent(held, name="held", on_crash=on_crash)
    runner, sent = await begun(stage, agent)
    await runner.stop()
    assert all(event.type not in TERMINAL for event in await stage.events(sent.session))
    await stage.crash()
    held.go.set()
    await stage.runner(agent).start()
    end = await stage.ended(sent)
    steps = [part["step"] for part in end.data["message"]["parts"]]
    assert (end.type, steps) == ("run.completed", [1, 2] if on_crash == "retry" else [1])


async def test_drain_does_not_begin_what_waits_for_a_place(stage: Stage) -> None:
    """A run that gets its place because another was interrupted is not begun any more."""
    held = Held()
    runner, first = await begun(stage, held, limits=Limits(concurrent_runs=1, cancel_grace=5.0))
    second = await stage.waiting(runner)
    await runner.stop()
    assert await stage.types(second) == ["message.created"]
    assert (await stage.ended(first)).data["code"] == "interrupted"
    await stage.crash()
    held.go.set()
    await stage.runner(held).start()
    assert (await stage.ended(second)).type == "run.completed"


async def test_drain_while_a_run_is_being_started(stage: Stage) -> None:
    """A stop that comes while ``run.started`` is stored ends the run like any other; its agent is not asked."""
    gate = Gate(stage.store, "run.started")
    held = Held()
    runner = stage.runner(held)
    sent = await runner.send(await stage.session(), "hello")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    stopping = asyncio.create_task(runner.stop())
    await asyncio.sleep(0)
    gate.open()
    await stopping
    assert (await stage.ended(sent)).data["code"] == "interrupted"
    assert held.begun == []


async def test_the_runner_counts_what_it_drives(stage: Stage) -> None:
    """``running`` is what a drain would wait for."""
    held = Held()
    runner, sent = await begun(stage, held)
    assert runner.running == 1
    held.go.set()
    await stage.ended(sent)
    await stage.idle(runner)
    assert runner.running == 0


async def test_a_reaper_that_fails_to_start_a_run(stage: Stage) -> None:
    """The start could not be stored: the run stays open, and the reaper begins it later, as its first attempt."""
    times = 2

    async def before(session: str, drafts: Sequence[Draft]) -> None:
        nonlocal times
        if drafts[0].type == "run.started" and times:
            times -= 1
            raise StoreError("The disk is on strike.")

    stage.store.before = before
    runner = stage.runner(echo, lease_ttl=0.03)
    sent = await runner.send(await stage.session(), "hello")
    await stage.idle(runner)
    await runner.start()
    assert (await stage.ended(sent)).type == "run.completed"
    started = await stage.seen(sent.session, "run.started")
    assert started.data["attempt"] == 1


async def test_the_same_key_with_metadata_that_json_changes(stage: Stage) -> None:
    """A message sent again with its key is the same message, also when its metadata holds a tuple."""
    runner, session = stage.runner(echo), await stage.session()
    first = await runner.send(session, "hello", metadata={"range": (1, 2)}, key="k")
    again = await runner.send(session, "hello", metadata={"range": (1, 2)}, key="k")
    assert (first.run, True) == (again.run, again.repeated)


async def test_metadata_that_is_not_json(stage: Stage) -> None:
    """It is refused by every store alike, and nothing is stored."""
    session = await stage.session()
    with pytest.raises(InvalidInput, match="JSON"):
        await stage.runner(echo).send(session, "hello", metadata={"what": object()})
    assert 1 == len(await stage.events(session))


async def test_the_runner_keeps_nothing_of_a_session_it_has_left(stage: Stage) -> None:
    """A session that is deleted while messages come in leaves no trace in the runner."""
    runner, sent = await begun(stage, Held())
    await runner.send(sent.session, "another")
    await stage.store.append(sent.session, [draft("session.deleted", {})])
    await stage.idle(runner)
    assert set() == runner._kicked


async def test_drain_while_a_further_attempt_reads_its_past(stage: Stage) -> None:
    """A run that is not yet with its agent when the runner stops is not begun any more."""
    agent = Held()
    await begun(stage, Agent(agent, name="held", on_crash="retry"))
    await stage.crash()
    runner = stage.runner(Agent(agent, name="held", on_crash="retry"))
    reading, go = asyncio.Event(), asyncio.Event()

    async def read(*args: Any, **settings: Any) -> Any:
        if settings.get("deltas", True):
            reading.set()
            await go.wait()
        return await stage.store.inner.read(*args, **settings)

    stage.store.read = read
    await runner.start()
    async with asyncio.timeout(NET):
        await reading.wait()
        stopping = asyncio.create_task(runner.stop())
        await asyncio.sleep(0)
        go.set()
        await stage.idle(runner)
        await stopping
    assert ["hello"] == agent.begun


async def test_a_run_does_not_hold_its_session_s_past(stage: Stage) -> None:
    """While it goes on, only whole messages are held of earlier runs, not each event, such as a tool's output."""
    agent = Held()
    runner, session = stage.runner(agent), await stage.session()
    held: list[weakref.ref[Any]] = []

    async def read(*args: Any, **settings: Any) -> Any:
        events = await stage.store.inner.read(*args, **settings)
        if not settings.get("deltas", True):
            events = [msgspec.structs.replace(event, data=Past(event.data)) for event in events]
            held.extend(weakref.ref(event.data) for event in events if event.type == "session.created")
        return events

    stage.store.read = read
    await runner.send(session, "hello")
    await stage.seen(session, "text.delta")
    gc.collect()
    assert held
    assert [None] * len(held) == [past() for past in held]


async def test_a_log_that_cannot_be_understood(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """A message whose session's past cannot be read ends as failed; it is not tried again for ever."""
    runner, session = stage.runner(echo), await stage.session()
    odd = [draft("message.created", {"id": "m", "role": "user", "text": "?"}, "odd"), draft("run.completed", {}, "odd")]
    await stage.store.append(session, odd)
    stage._sessions.remove(session)  # its log breaks the rules
    sent = await runner.send(session, "hello")
    async with asyncio.timeout(NET):
        ended = await stage.ended(sent)
    assert ("run.failed", "internal_error") == (ended.type, ended.data["code"])
    assert "KeyError" in caplog.text
