"""The runner: sending, queues, crashes, leases, draining."""

from __future__ import annotations

import asyncio
import gc
import itertools
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import msgspec
import pytest

from facts import draft
from legato.agent import Agent, OnCrash, Turn
from legato.bounds import Limits
from legato.ending import LEFT_OPEN
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
from legato.event import TERMINAL, Draft, Event, SessionCreated
from legato.log import Appended
from legato.machine import Lease, RunState
from legato.part import Message
from legato.questions import Sent
from legato.run import Runner
from legato.transcript import Transcript
from legato.yields import Checkpoint, Thinking, ToolCall, ToolResult
from running import NET, Gate, Stage


async def echo(turn: Turn) -> str:
    return turn.message.text


class Past(dict[str, Any]):
    """Data of a fact that can be seen to be dropped."""


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


async def rounds() -> None:
    """Let everybody act who can, also a thread that writes."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def begun(stage: Stage, agent: Any, **settings: Any) -> tuple[Runner, Sent]:
    """A runner, and a message whose answer has begun to be stored."""
    runner = stage.runner(agent, **settings)
    sent = await runner.send(await stage.session(), "hello")
    await stage.seen(sent.session, "text.delta")
    return runner, sent


async def all_places_are_free(stage: Stage, runner: Runner) -> None:
    """The runner drives nothing, and as many as it has places can meet."""
    await stage.idle(runner)
    await asyncio.wait_for(runner._idle.wait(), NET)  # it may be looking for runs
    assert (runner._left, runner.running) == ({}, 0)
    count = runner.limits.concurrent_runs
    assert count < 5  # a test that asks for this has few
    meeting = asyncio.Barrier(count)

    async def meet(turn: Turn) -> str:
        await meeting.wait()
        return "met"

    runner.agents = {"meet": Agent(meet)}
    sents = [await runner.send(await stage.session(), "meet") for _ in range(count)]
    assert [(await stage.ended(sent)).data["message"]["text"] for sent in sents] == ["met"] * count


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


async def test_what_an_agent_says_at_once_comes_before_the_answer_to_the_message(stage: Stage) -> None:
    """The message is handed over by its sender's task itself, and what the agent says at once is on its way to the disk
    when the sender hears that the message was stored."""
    session, handed, by = await stage.session(), list[str](), list[Any]()
    inner = stage.store.inner

    def append(name: str, drafts: Sequence[Draft], **options: Any) -> Any:
        by.append(asyncio.current_task())
        handed.extend(draft.type for draft in drafts)
        return inner.append(name, drafts, **options)

    stage.store.append = append  # type: ignore[method-assign]
    sent = await stage.runner(echo).send(session, "hello")

    assert handed == ["message.created", "run.started", "text.delta"]
    assert by[0] is asyncio.current_task()
    await stage.ended(sent)


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
    runner = stage.runner(agent, limits=Limits(concurrent_runs=2), lease_ttl=3600.0)  # it must not wait to be woken
    sents = [await runner.send(await stage.session(), "hello") for _ in range(6)]
    for sent in sents:
        await stage.ended(sent)
    assert most == 2


async def test_who_waits_for_a_place_waits_as_long_as_it_takes(stage: Stage) -> None:
    """What was taken is answered, and its readers are told what it waits for; behind a run nobody waits for a place."""
    held = Held()
    runner, first = await begun(stage, held, limits=Limits(concurrent_runs=1))
    second = await stage.waiting(runner, "second")
    behind = await runner.send(second.session, "behind")
    assert await stage.types(second) == ["message.created", "run.waiting"]
    assert await stage.types(behind) == ["message.created"]
    held.go.set()
    for sent in (first, second, behind):
        assert (await stage.ended(sent)).type == "run.completed"
    assert held.begun == ["hello", "second", "behind"]
    await all_places_are_free(stage, runner)


async def test_a_cancelled_run_that_finds_no_place(stage: Stage) -> None:
    """It ends at once, though another of its session comes before it and waits, too."""
    held = Held()
    runner, _ = await begun(stage, held, limits=Limits(concurrent_runs=1))
    session = await stage.session()
    for number in range(2):
        last = await runner.send(session, str(number))
    await runner.cancel(session, last.run)
    assert (await stage.ended(last)).type == "run.cancelled"


async def test_a_store_that_cannot_give_what_waits(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """One session's trouble does not keep others from their places, and it has its own later."""
    held = Held()
    limits = Limits(concurrent_runs=1)
    runner, first = await begun(stage, held, limits=limits, lease_ttl=3600.0)  # nothing else wakes it
    sick, well = await stage.waiting(runner, "sick"), await stage.waiting(runner, "well")
    mended = False

    async def info(session: str) -> Any:
        if session == sick.session and not mended:
            raise StoreError("The disk is on strike.")
        return await stage.store.inner.info(session)

    stage.store.info = info
    held.go.set()
    assert (await stage.ended(well)).type == "run.completed"
    assert await stage.types(sick) == ["message.created", "run.waiting"]
    assert "The disk is on strike." in caplog.text
    mended = True
    await stage.idle(runner)
    await runner.send(first.session, "another")  # whoever is done looks for who waits
    assert (await stage.ended(sick)).type == "run.completed"


async def test_who_waits_for_a_place_comes_before_who_comes_later(stage: Stage) -> None:
    """Also when the place is free already, and the runner is still about to give it to the one who waits."""
    held = Held()
    runner, first = await begun(stage, held, limits=Limits(concurrent_runs=1), lease_ttl=0.03)
    second = await stage.waiting(runner)
    renewing, go = asyncio.Event(), asyncio.Event()

    async def renew(**settings: Any) -> None:
        renewing.set()
        await go.wait()

    stage.store.renew = renew
    async with asyncio.timeout(NET):
        await renewing.wait()  # the runner does nothing else meanwhile
    held.go.set()
    await stage.ended(first)
    await stage.idle(runner)
    assert runner.places.taken == 0
    third = await runner.send(await stage.session(), "third")
    assert await stage.types(third) == ["message.created", "run.waiting"]
    go.set()
    assert [(await stage.ended(sent)).type for sent in (second, third)] == ["run.completed"] * 2
    assert held.begun == ["hello", "waiting", "third"]


async def test_cancel_of_a_run_that_waits_for_a_place(stage: Stage) -> None:
    """It ends at once, while the place is still taken, and is never begun."""
    held = Held()
    runner, first = await begun(stage, held, limits=Limits(concurrent_runs=1, cancel_grace=5.0))
    second = await stage.waiting(runner)
    await runner.cancel(second.session)
    assert (await stage.ended(second)).type == "run.cancelled"
    assert await stage.types(second) == ["message.created", "run.waiting", "run.cancel_requested", "run.cancelled"]
    assert await stage.types(first) == ["message.created", "run.started", "text.delta"]
    held.go.set()
    await stage.ended(first)
    assert held.begun == ["hello"]
    await all_places_are_free(stage, runner)


async def test_a_run_that_waits_is_cancelled_by_whoever_appends_it(stage: Stage) -> None:
    """Another process, too; what others append to the session meanwhile does not end the wait."""
    held = Held()
    runner, _ = await begun(stage, held, limits=Limits(concurrent_runs=1, cancel_grace=5.0))
    second = await stage.waiting(runner)
    others = stage.runner(Held())
    others.draining = True  # it takes nothing up
    third = (await runner.send(second.session, "third")).run
    await others.cancel(second.session, third)
    assert await stage.types(second) == ["message.created", "run.waiting"]
    await others.cancel(second.session, second.run)
    assert (await stage.ended(second)).type == "run.cancelled"


@pytest.mark.parametrize("first", ["cancel", "start"])
async def test_a_place_that_comes_with_the_cancel_is_not_lost(stage: Stage, first: str) -> None:
    """The run gets its place while its cancel is on the way: whatever is stored first, it ends as cancelled, and
    another gets the place."""
    held = Held()
    runner, one = await begun(stage, held, limits=Limits(concurrent_runs=1, cancel_grace=5.0))
    two = await stage.waiting(runner)
    append, cancelling, go = stage.store.append, asyncio.Event(), asyncio.Event()

    async def crossing(session: str, drafts: Sequence[Draft], **options: Any) -> Appended:
        if drafts[-1].type == "run.cancelled" and not cancelling.is_set():
            cancelling.set()
            await go.wait()
        return await append(session, drafts, **options)

    stage.store.append = crossing  # type: ignore[method-assign]
    async with asyncio.timeout(NET):
        cancel = asyncio.create_task(runner.cancel(two.session))
        await cancelling.wait()  # it has seen that nobody has the run
        gate = Gate(stage.store, "run.started")
        held.go.set()
        await stage.ended(one)
        held.go.clear()
        await gate.reached.wait()  # the run has its place
        if first == "cancel":
            go.set()
            assert await cancel == [two.run]
            gate.open()
        else:
            gate.open()
            await stage.seen(two.session, "text.delta")
            go.set()
            assert await cancel == [two.run]
    del stage.store.append
    assert (await stage.ended(two)).type == "run.cancelled"
    assert held.begun == (["hello"] if first == "cancel" else ["hello", "waiting"])
    await all_places_are_free(stage, runner)
    assert runner.figures.lost == 0  # nobody took it


async def test_a_store_that_fails_while_a_run_waits_for_a_place(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """The wait goes on, and so does the look-out: the run gets its place when the store works again."""
    held = Held()
    runner, first = await begun(stage, held, limits=Limits(concurrent_runs=1), lease_ttl=0.03)
    second = await stage.waiting(runner)
    failures = 0

    async def acquire(*args: str, **settings: Any) -> Lease:
        nonlocal failures
        failures += 1
        if failures < 3:
            raise StoreError("The disk is on strike.")
        lease: Lease = await stage.store.inner.acquire(*args, **settings)
        return lease

    stage.store.acquire = acquire
    held.go.set()
    await stage.ended(first)
    assert (await stage.ended(second)).type == "run.completed"
    assert "The disk is on strike." in caplog.text
    await all_places_are_free(stage, runner)


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

    reads = itertools.count()

    async def read(*args: Any, **settings: Any) -> list[Event]:
        if settings.get("deltas") is False and not next(reads):  # its driver's
            await stage.store.append(session, [draft("session.rewound", {"to": first.message})])
        events: list[Event] = await stage.store.inner.read(*args, **settings)
        return events

    stage.store.read = read
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
    assert [event.type for event in await stage.events(second.session)] == ["session.deleted"]
    assert held.begun == ["hello"]
    await all_places_are_free(stage, runner)


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
            lambda event, attempt=attempt: (
                event.type == "text.delta" and event.data["start"] + len(event.data["text"]) == 10 * attempt
            ),
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
    held = Held()
    runner, first = await begun(stage, held)
    sent = await runner.send(first.session, "second")
    gate = Gate(stage.store, "run.started")
    held.go.set()
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    assert (await stage.store.info(sent.session)).runs[sent.run].owner == runner.owner
    await stage.crash()
    await stage.runner(held).start()
    assert (await stage.ended(sent)).type == "run.completed"
    starts = [
        event.data["attempt"] for event in await stage.events(sent.session, sent.run) if event.type == "run.started"
    ]
    assert starts == [1]


async def test_a_crash_before_a_message_was_stored(stage: Stage) -> None:
    """A message that is stored with the start of its run is there with both or not at all; nobody was told of it."""
    gate = Gate(stage.store, "run.started")
    runner, session = stage.runner(echo), await stage.session()
    sending = asyncio.create_task(runner.send(session, "hello", key="k"))
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    await stage.crash()
    with pytest.raises(StoreError):
        await sending
    assert [event.type for event in await stage.events(session)] == ["session.created"]
    runner = stage.runner(echo)
    await runner.start()
    again = await runner.send(session, "hello", key="k")
    assert ((await stage.ended(again)).type, again.repeated) == ("run.completed", False)


async def test_a_crash_after_the_start_was_stored(stage: Stage) -> None:
    """Message and start are one append: from then on it counts as an attempt, though the agent has not been asked."""
    reading = asyncio.Event()

    async def read(*args: Any, **settings: Any) -> Any:
        reading.set()
        await asyncio.Event().wait()

    held = Held()
    runner, session = stage.runner(held), await stage.session()
    await runner.contents.of(session, 1)  # so that sending reads nothing
    stage.store.read = read
    sent = await runner.send(session, "hello")
    async with asyncio.timeout(NET):
        await reading.wait()
    del stage.store.read
    await stage.crash()
    await stage.runner(held).start()
    assert ((await stage.ended(sent)).data["code"], held.begun) == ("interrupted", [])


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
    assert (first.figures.lost, second.figures.lost) == (1, 0)


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
    assert first.figures.lost == 1


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
    assert first.figures.lost == 1


async def test_an_owner_that_lives_keeps_its_lease(stage: Stage) -> None:
    """The reaper renews what it holds, so that nobody else takes a long run."""
    held = Held()
    runner = stage.runner(held, lease_ttl=0.03)
    await runner.start()
    sent = await runner.send(await stage.session(), "hello")
    await stage.seen(sent.session, "text.delta")
    renewed = asyncio.Event()

    async def renew(*, owner: str, ttl: float) -> None:
        stage.clock.now += 0.02 * (owner == runner.owner)
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
    """It says so, of a store once however long it lasts, and goes on."""
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
    assert ("The disk is on strike." in caplog.text) == isinstance(error, StoreError)
    said = [record for record in caplog.records if record.message.startswith("cannot look after leases")]
    assert len(said) == (1 if isinstance(error, StoreError) else 2)


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


async def test_an_idle_runner_takes_its_share(stage: Stage) -> None:
    """What has no place at one runner is begun by another one, at once, as its first attempt."""
    held, other = Held(), Held()
    busy = stage.runner(held, limits=Limits(concurrent_runs=2))
    idle = stage.runner(other, limits=Limits(concurrent_runs=3))
    await busy.start()
    await idle.start()
    sents = [await busy.send(await stage.session(), str(number)) for number in range(7)]
    async with asyncio.timeout(NET):
        while len(held.begun) + len(other.begun) < 5:  # noqa: ASYNC110  # they look in their own time
            await asyncio.sleep(0)
    await rounds()
    assert (len(held.begun), len(other.begun)) == (2, 3)
    owners = Counter([run.owner for run in await stage.store.open_runs()])
    assert owners == {busy.owner: 2, idle.owner: 3, None: 2}
    held.go.set()
    other.go.set()
    for sent in sents:
        assert (await stage.ended(sent)).type == "run.completed"
        starts = [event.data["attempt"] for event in await stage.events(sent.session) if event.type == "run.started"]
        assert starts == [1]
    assert sorted(held.begun + other.begun) == [str(number) for number in range(7)]


async def test_a_stop_leaves_no_timer(stage: Stage) -> None:
    """What waits for work ends with the life that it belongs to."""
    runner = stage.runner(lambda turn: "yes")
    await runner.start()
    async with asyncio.timeout(NET):
        while runner._bell._timer is None:  # noqa: ASYNC110  # it waits soon
            await asyncio.sleep(0)
    await runner.stop()
    assert runner._bell._timer is None


async def test_a_clean_stop_gives_back_at_once(stage: Stage) -> None:
    """What a runner leaves is begun by another one though its clock stands still: nothing has run out."""
    held = Held()
    agent = Agent(held, name="held", on_crash="retry")
    first, sent = await begun(stage, agent)
    await first.send(sent.session, "behind")
    other = stage.runner(agent)
    await other.start()
    await rounds()
    assert held.begun == ["hello"]
    await first.stop()
    async with asyncio.timeout(NET):
        while held.begun != ["hello", "hello"]:  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0)
    held.go.set()
    assert (await stage.ended(sent)).data["message"]["text"] == "begun done"
    assert (first.places.taken, first._left) == (0, {})


async def test_a_release_that_fails_is_tried_again(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Else the lease would be renewed for ever and nobody would drive its run."""
    held = Held()
    runner = stage.runner(held, lease_ttl=0.03, limits=Limits(concurrent_runs=2))
    await runner.start()
    failures = iter([True, True, False])

    async def release(lease: Lease) -> None:
        if next(failures, False):
            raise StoreError("The disk is on strike.")
        await stage.store.inner.release(lease)

    stage.store.release = release
    sent = await runner.send(await stage.session(), "hello")
    await stage.seen(sent.session, "text.delta")
    [lease] = [execution.lease for execution in runner._attempts.executions]
    for execution in list(runner._attempts.executions):
        execution.stop(LEFT_OPEN)
    end = await stage.ended(sent)
    assert (end.data["code"], lease.epoch) == ("interrupted", 1)
    assert caplog.text.count("cannot be given back") == 2
    await all_places_are_free(stage, runner)


@pytest.mark.parametrize("when", ["begun", "claimed"])
async def test_a_store_that_fails_while_a_run_is_driven(stage: Stage, when: str) -> None:
    """Its lease is kept until the next renewal and then given back: no run is tried again and again meanwhile."""
    tries, working = 0, False
    renewing, renew = asyncio.Event(), asyncio.Event()

    async def read(*args: Any, **settings: Any) -> list[Event]:
        nonlocal tries
        if settings.get("deltas") is False and not working:
            tries += args[0] != first.session  # whose watcher may look once more
            raise StoreError("The disk is on strike.")
        events: list[Event] = await stage.store.inner.read(*args, **settings)
        return events

    async def renewed(**settings: Any) -> None:
        renewing.set()
        await renew.wait()
        await stage.store.inner.renew(**settings)

    held = Held()
    agent = Agent(held, name="held", on_crash="retry")
    runner, first = await begun(stage, agent, lease_ttl=0.03, limits=Limits(concurrent_runs=1))
    if when == "claimed":
        sent = await stage.waiting(runner)
    else:
        held.go.set()
        await stage.ended(first)
        await stage.idle(runner)
    session = await stage.session()
    await runner.contents.of(session, 1)  # so that sending reads nothing
    stage.store.read, stage.store.renew = read, renewed
    if when == "begun":
        sent = await runner.send(session, "second")
        runner._work()
    held.go.set()
    async with asyncio.timeout(NET):
        await renewing.wait()
        renew.set()
        while not tries:  # noqa: ASYNC110  # it is driven in its own time
            await asyncio.sleep(0)
        renew.clear()
        renewing.clear()
        await renewing.wait()
        while sent.run not in runner._left:  # noqa: ASYNC110  # and fails
            await asyncio.sleep(0)
    before = tries
    await rounds()
    assert (tries, list(runner._left)) == (before, [sent.run])
    assert (await stage.store.info(sent.session)).runs[sent.run].owner == runner.owner
    working = True
    renew.set()
    assert (await stage.ended(sent)).type == "run.completed"
    await all_places_are_free(stage, runner)


async def test_a_driver_that_is_cancelled_gives_its_lease_back(stage: Stage) -> None:
    """At the next renewal, and the run goes on."""
    held = Held()
    agent = Agent(held, name="held", on_crash="retry")
    runner = stage.runner(agent, lease_ttl=0.03, limits=Limits(concurrent_runs=2))
    await runner.start()
    sent = await runner.send(await stage.session(), "hello")
    await stage.seen(sent.session, "text.delta")
    [driving] = runner._drives
    driving.cancel()
    held.go.set()
    await stage.ended(sent)
    assert held.begun == ["hello", "hello"]
    await all_places_are_free(stage, runner)


async def test_a_stop_gives_back_what_a_cancelled_driver_had(stage: Stage) -> None:
    """A driver that does not end in time is cancelled, and its run is for others, at once."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "begun "
        await asyncio.Event().wait()

    runner, sent = await begun(stage, Agent(agent, on_crash="retry"), limits=Limits(cancel_grace=-5.0))
    gate = Gate(stage.store, "text.delta")
    stuck = await runner.send(await stage.session(), "stuck")
    async with asyncio.timeout(NET):
        await gate.reached.wait()
        await runner.stop()
    for each in (sent, stuck):
        run = (await stage.store.info(each.session)).runs[each.run]
        assert (run.owner, run.state) == (None, RunState.RUNNING)


async def test_a_stop_while_a_message_is_stuck(stage: Stage) -> None:
    """Its place is waited for only so long; who sent it is told."""
    gate = Gate(stage.store, "run.started")
    runner = stage.runner(echo, limits=Limits(cancel_grace=-4.9))
    sending = asyncio.create_task(runner.send(await stage.session(), "hello"))
    async with asyncio.timeout(NET):
        await gate.reached.wait()
        await runner.stop()
        with pytest.raises(StoreError, match="stopped"):
            await sending


async def test_a_stop_while_a_claim_is_stuck(stage: Stage) -> None:
    """It is waited for only so long, too."""
    claiming = asyncio.Event()

    async def claim(**settings: Any) -> list[Lease]:
        claiming.set()
        await asyncio.Event().wait()
        return []

    stage.store.claim = claim
    runner = stage.runner(echo, limits=Limits(cancel_grace=-4.9))
    runner.wake(await stage.session())
    async with asyncio.timeout(NET):
        await claiming.wait()
        await runner.stop()
    assert runner.places.taken == 0


@pytest.mark.parametrize("claimed", [False, True])
async def test_a_stop_while_runs_are_claimed(stage: Stage, claimed: bool) -> None:
    """It waits for the claim, and what came of it is given back: nothing is begun, and another takes it at once."""
    waiting = stage.runner(echo, limits=Limits(concurrent_runs=0))
    claiming, go = asyncio.Event(), asyncio.Event()

    async def claim(**settings: Any) -> list[Lease]:
        leases: list[Lease] = await stage.store.inner.claim(**settings) if claimed else []
        claiming.set()
        await go.wait()
        return leases or await stage.store.inner.claim(**settings)

    sent = await waiting.send(await stage.session(), "hello")
    stage.store.claim = claim
    held = Held()
    runner = stage.runner(held)
    runner.wake(sent.session)
    async with asyncio.timeout(NET):
        await claiming.wait()
        stopping = asyncio.create_task(runner.stop())
        await rounds()
        assert not stopping.done()
        go.set()
        await stopping
    assert (await stage.store.info(sent.session)).runs[sent.run].owner is None
    assert await stage.types(sent) == ["message.created", "run.waiting"]
    assert held.begun == []
    del stage.store.claim
    await stage.runner(echo).start()
    assert (await stage.ended(sent)).type == "run.completed"


async def test_a_sender_that_is_cancelled(stage: Stage) -> None:
    """A request that goes away while its message is stored takes nothing with it: the run is driven."""
    gate = Gate(stage.store, "run.started")
    runner, session = stage.runner(echo, limits=Limits(concurrent_runs=2)), await stage.session()
    sending = asyncio.create_task(runner.send(session, "hello"))
    async with asyncio.timeout(NET):
        await gate.reached.wait()
    sending.cancel()
    await asyncio.wait([sending])
    gate.open()
    assert (await stage.seen(session, "run.completed")).data["message"]["text"] == "hello"
    await all_places_are_free(stage, runner)


async def test_a_sender_that_is_cancelled_where_there_is_no_place(stage: Stage) -> None:
    """What it has stored waits for a place as long as all others."""
    runner, _ = await begun(stage, Held(), limits=Limits(concurrent_runs=1))
    session, stored, append = await stage.session(), asyncio.Event(), stage.store.append

    async def slow(name: str, drafts: Sequence[Draft], **options: Any) -> Appended:
        appended = await append(name, drafts, **options)
        if name == session:
            stored.set()
            await asyncio.Event().wait()
        return appended

    stage.store.append = slow  # type: ignore[method-assign]
    sending = asyncio.create_task(runner.send(session, "hello"))
    async with asyncio.timeout(NET):
        await stored.wait()
    sending.cancel()
    await asyncio.wait([sending])
    stage.store.append = append  # type: ignore[method-assign]
    assert runner.places.queued[(await stage.store.info(session)).open_runs[0].run] == session


async def test_places_are_counted_right_over_failures(stage: Stage) -> None:
    """Whatever goes wrong, a place is given back once."""
    calls = itertools.count()

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "begun "
        if turn.message.text == "fail":
            raise ValueError("no")
        if turn.message.text == "cancelled from within":
            raise asyncio.CancelledError

    async def claim(**settings: Any) -> list[Lease]:
        if next(calls) % 2:
            raise ValueError("The disk is on strike.")
        leases: list[Lease] = await stage.store.inner.claim(**settings)
        return leases

    runner = stage.runner(agent, limits=Limits(concurrent_runs=2, cancel_grace=5.0), lease_ttl=0.03)
    stage.store.claim = claim
    await runner.start()
    for text in ("fine", "fail", "cancelled from within"):
        await stage.ended(await runner.send(await stage.session(), text))
    session = await stage.session()
    stage.store.fail(1, of="message.created")
    with pytest.raises(StoreError):
        await runner.send(session, "not stored")
    sents = [await runner.send(session, text) for text in ("one", "two", "fail", "three")]
    for sent in sents:
        await stage.ended(sent)
    drafts = [draft("message.created", {"id": "m", "role": "user", "text": "?"}, "r")]

    async def begin() -> None:
        while await runner.begin("nobody", drafts, "r", party="") is None:  # it looks for those who were first
            await rounds()

    with pytest.raises(SessionNotFound):
        await begin()
    for sent in await asyncio.gather(*(runner.send(session, str(number)) for number in range(5))):
        await stage.ended(sent)
    del stage.store.claim
    await all_places_are_free(stage, runner)


async def test_a_drain_keeps_its_leases(stage: Stage) -> None:
    """Runs that are let finish are renewed meanwhile, however long that takes: nobody takes them over."""
    held = Held()
    runner, sent = await begun(stage, held, lease_ttl=0.03)
    runner._work()
    other = stage.runner(Held())
    await other.start()
    stopping = asyncio.create_task(runner.stop(grace=NET))
    for _ in range(5):
        renewed = asyncio.Event()

        async def renew(*, owner: str, ttl: float, renewed: asyncio.Event = renewed) -> None:
            await stage.store.inner.renew(owner=owner, ttl=ttl)
            if owner == runner.owner:
                renewed.set()

        stage.clock.now += 0.02
        stage.store.renew = renew  # one that has begun before is none
        async with asyncio.timeout(NET):
            await renewed.wait()
        other.wake(sent.session)
        await stage.idle(other)
    held.go.set()
    await stopping
    assert (await stage.ended(sent)).type == "run.completed"


async def test_a_machine_that_slept(stage: Stage) -> None:
    """Its leases have run out by the clock, and nobody else is there: it renews them before it looks for runs, and does
    not take its own for those of a dead owner."""
    held = Held()
    runner, sent = await begun(stage, held)
    await runner.start()
    await rounds()
    stage.clock.now += 3600.0
    runner.wake(sent.session)
    await rounds()
    held.go.set()
    assert (await stage.ended(sent)).type == "run.completed"
    assert held.begun == ["hello"]


async def test_a_renewal_that_fails(stage: Stage) -> None:
    """Nothing is claimed until one has succeeded, for the same reason."""
    held = Held()
    runner, sent = await begun(stage, held, lease_ttl=0.03)
    tried = asyncio.Event()

    async def renew(**settings: Any) -> None:
        tried.set()
        raise StoreError("The disk is on strike.")

    stage.store.renew = renew
    await runner.start()
    async with asyncio.timeout(NET):
        await tried.wait()
    stage.clock.now += 3600.0
    for _ in range(3):
        runner.wake(sent.session)
        await rounds()
    stage.store.renew = stage.store.inner.renew
    await rounds()
    held.go.set()
    assert (await stage.ended(sent)).type == "run.completed"


async def test_a_question_answered_while_its_run_is_ended(stage: Stage) -> None:
    """The run of a dead owner is ended while somebody answers what it asked: one answer is in the log, theirs."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "granted" if await turn.ask_permission("shell", "Run it?") else "denied"

    runner = stage.runner(agent)
    sent = await runner.send(await stage.session(), "hello")
    request = await stage.seen(sent.session, "permission.requested")
    await stage.crash()
    runner = stage.runner(agent)
    crossings = itertools.count()

    async def before(session: str, drafts: Sequence[Draft]) -> None:
        if drafts[-1].type == "run.failed" and not next(crossings):
            assert await runner.resolve_permission(request.data["id"], True)

    stage.store.before = before
    await runner.start()
    assert (await stage.ended(sent)).data["code"] == "interrupted"
    answers = [event.data["by"] for event in await stage.events(sent.session) if event.type == "permission.resolved"]
    assert answers == ["user"]
    assert await runner.resolve_permission(request.data["id"], False)


async def test_cancel_of_a_run_that_was_given_back(stage: Stage) -> None:
    """Nobody drives it: it ends at once, with what it had said, and what it had asked is refused for good."""

    async def agent(turn: Turn) -> AsyncIterator[str]:
        yield "begun "
        await turn.ask_permission("shell", "Run it?")

    runner = stage.runner(Agent(agent, on_crash="retry"))
    sent = await runner.send(await stage.session(), "hello")
    request = await stage.seen(sent.session, "permission.requested")
    await runner.stop()
    assert await runner.cancel(sent.session) == [sent.run]
    end = (await stage.events(sent.session))[-1]
    assert (end.type, end.data["partial"]["text"]) == ("run.cancelled", "begun ")
    assert not await runner.resolve_permission(request.data["id"], True)


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
    assert await stage.types(second) == ["message.created", "run.waiting"]
    assert (await stage.ended(first)).data["code"] == "interrupted"
    await stage.crash()
    held.go.set()
    await stage.runner(held).start()
    assert (await stage.ended(second)).type == "run.completed"


@pytest.mark.parametrize("waited", [False, True])
async def test_drain_while_a_run_is_being_started(stage: Stage, waited: bool) -> None:
    """A stop that comes while ``run.started`` is stored ends the run like any other; its agent is not asked."""
    held = Held()
    if waited:
        runner, first = await begun(stage, held)
        session = first.session
    else:
        runner, session = stage.runner(held), await stage.session()
    gate = Gate(stage.store, "run.started")
    sending = asyncio.create_task(runner.send(session, "second"))
    if waited:
        await sending
        held.go.set()
    async with asyncio.timeout(NET):
        await gate.reached.wait()
        stopping = asyncio.create_task(runner.stop())
        await rounds()
        assert not stopping.done()
        gate.open()
        await stopping
        sent = await sending
    assert (await stage.events(session))[-1].data["code"] == "interrupted"
    assert (await stage.ended(sent)).data["code"] == "interrupted"
    assert held.begun == (["hello"] if waited else [])


@pytest.mark.parametrize("on_crash", ["fail", "retry"])
async def test_drain_while_a_begun_run_reads_its_past(stage: Stage, on_crash: OnCrash) -> None:
    """It is begun, and not yet to be seen by the stop, which waits for it: it is interrupted, or given back."""
    held = Held()
    runner, session = stage.runner(Agent(held, name="held", on_crash=on_crash)), await stage.session()
    reading, go = asyncio.Event(), asyncio.Event()

    async def read(*args: Any, **settings: Any) -> Any:
        reading.set()
        await go.wait()
        return await stage.store.inner.read(*args, **settings)

    await runner.contents.of(session, 1)  # so that sending reads nothing
    stage.store.read = read
    sent = await runner.send(session, "hello")
    async with asyncio.timeout(NET):
        await reading.wait()
        stopping = asyncio.create_task(runner.stop())
        await rounds()
        assert (stopping.done(), runner.running) == (False, 0)
        go.set()
        await stopping
    assert held.begun == []
    if on_crash == "fail":
        assert (await stage.ended(sent)).data["code"] == "interrupted"
    else:
        run = (await stage.store.info(session)).runs[sent.run]
        assert (run.owner, run.state) == (None, RunState.RUNNING)


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
    async with asyncio.timeout(NET):
        while runner.places.waiting:  # noqa: ASYNC110  # it looks in its own time
            await asyncio.sleep(0)
    await asyncio.wait_for(runner._idle.wait(), NET)
    assert (runner._drives, runner._attempts.executions, runner._left) == ({}, {}, {})


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
            events = [remembered(event) for event in events]
            held.extend(weakref.ref(event.fact.metadata) for event in events if isinstance(event.fact, SessionCreated))
        return events

    def remembered(event: Event) -> Event:
        if not isinstance(event.fact, SessionCreated):
            return event
        return msgspec.structs.replace(event, fact=msgspec.structs.replace(event.fact, metadata=Past()))

    stage.store.read = read
    await runner.send(session, "hello")
    await stage.seen(session, "text.delta")
    gc.collect()
    assert held
    assert [None] * len(held) == [past() for past in held]


async def odd(stage: Stage) -> tuple[str, str]:
    """A session with an open run that has said something in a part which never began; and the run."""
    session = await stage.session()
    piece = {"part": 3, "step": 1, "start": 0, "text": "?"}
    for type, data in [
        ("message.created", {"id": "m", "role": "user", "text": "hello"}),
        ("run.started", {"agent": "echo", "attempt": 1}),
        ("text.delta", piece),
    ]:
        await stage.store.append(session, [draft(type, data, "odd")])
    stage._sessions.remove(session)  # its log breaks the rules
    return session, "odd"


@pytest.mark.parametrize(("on_crash", "code"), [("retry", "internal_error"), ("fail", "interrupted")])
async def test_a_log_that_cannot_be_understood(
    stage: Stage, caplog: pytest.LogCaptureFixture, on_crash: OnCrash, code: str
) -> None:
    """A run whose past cannot be read ends as failed; it is not tried again for ever."""
    session, run = await odd(stage)
    runner = stage.runner(Agent(echo, on_crash=on_crash))
    await runner.start()
    end = await stage.seen(session, lambda event: event.run == run and event.type in TERMINAL)
    assert ("run.failed", code, "") == (end.type, end.data["code"], end.data["partial"]["text"])
    assert "IndexError" in caplog.text
    assert (await stage.ended(await runner.send(session, "again"))).type == "run.completed"


async def test_cancel_of_a_run_that_cannot_be_understood(stage: Stage) -> None:
    """It ends all the same."""
    session, run = await odd(stage)
    assert await stage.runner(echo).cancel(session) == [run]
    assert (await stage.events(session))[-1].type == "run.cancelled"


async def test_a_session_whose_past_cannot_be_understood(
    stage: Stage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message in it ends as failed, at once; it is not tried again for ever."""

    def told(event: Event) -> Message:
        raise KeyError("odd")

    monkeypatch.setattr("legato.attempt.told", told)
    runner, session = stage.runner(echo, lease_ttl=0.03), await stage.session()
    await runner.start()
    ended = await stage.ended(await runner.send(session, "hello"))
    assert ("run.failed", "internal_error") == (ended.type, ended.data["code"])
    assert caplog.text.count("cannot be driven") == 1
