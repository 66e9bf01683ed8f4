"""Every kind of agent function becomes one async generator; threads stop, errors arrive, and turns ask."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import re
import sys
import threading
import types
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from legato.agent import Agent, Answer, Turn
from legato.errors import AgentError, InvalidInput
from legato.event import NotificationCreated, PermissionRequested
from legato.part import Message, to_builtins
from legato.recorder import Recorder
from legato.yields import Text

GREETING = ["Good", " day"]


class Desk:
    """Remembers what it was asked; answers when ``open`` is set, at once by default."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.called = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()

    async def ask_permission(self, request: PermissionRequested, timeout: float | None) -> bool:
        self.asked.append((request, timeout))
        self.called.set()
        await self.open.wait()
        return True

    async def notify(self, notification: NotificationCreated, timeout: float | None, wait: bool) -> Answer | None:
        self.asked.append((notification, timeout, wait))
        return Answer(by="user", value="yes") if wait else None

    async def stored(self) -> None:
        self.asked.append(("stored",))


def make_turn(desk: Desk | None = None) -> Turn:
    return Turn(desk=desk or Desk(), session="s", run="s~r", message=Message(id="m", role="user", text="Hi"))


async def items_of(function: Callable[..., Any], turn: Turn | None = None) -> list[object]:
    async with asyncio.timeout(30):
        return [item async for item in Agent(function).stream(turn or make_turn())]


# Kinds of function ----------------------------------------------------------------------------------------------------


async def async_generator(turn: Turn) -> AsyncIterator[str]:
    """Greets."""
    for word in GREETING:
        yield word


async def async_function(turn: Turn) -> str:
    return "".join(GREETING)


async def async_function_of_an_iterator(turn: Turn) -> AsyncIterator[str]:
    return async_generator(turn)


def generator(turn: Turn) -> Iterator[str]:
    yield from GREETING


def function(turn: Turn) -> str:
    return "".join(GREETING)


class WithAsyncCall:
    """Greets as an object."""

    async def __call__(self, turn: Turn) -> AsyncIterator[str]:
        for word in GREETING:
            yield word

    async def method(self, turn: Turn) -> AsyncIterator[str]:
        for word in GREETING:
            yield word


class WithPlainCall:
    def __call__(self, turn: Turn) -> Iterator[str]:
        yield from GREETING


async def with_model(model: str, turn: Turn) -> AsyncIterator[str]:
    """Greets with a model."""
    for word in GREETING:
        yield word


def plain_with_model(model: str, turn: Turn) -> Iterator[str]:
    yield from GREETING


def decorated(function: Callable[[Turn], Any]) -> Callable[[Turn], Any]:
    @functools.wraps(function)
    def inner(turn: Turn) -> Any:
        return function(turn)

    return inner


def collected(function: Callable[[Turn], AsyncIterator[str]]) -> Callable[[Turn], Any]:
    @functools.wraps(function)
    async def inner(turn: Turn) -> str:
        return "".join([word async for word in function(turn)])

    return inner


async def async_function_of_a_list_iterator(turn: Turn) -> Iterator[str]:
    return iter(GREETING)


@pytest.mark.parametrize(
    "agent",
    [
        async_generator,
        async_function,
        async_function_of_an_iterator,
        async_function_of_a_list_iterator,
        generator,
        function,
        WithAsyncCall(),
        WithAsyncCall().method,
        WithPlainCall(),
        functools.partial(with_model, "m"),
        functools.partial(functools.partial(with_model), "m"),
        functools.partial(plain_with_model, "m"),
        decorated(async_generator),
        decorated(generator),
        collected(async_generator),
        lambda turn: async_generator(turn),
        lambda turn: async_function(turn),
        lambda turn: "".join(GREETING),
    ],
)
async def test_every_kind_of_function_is_an_agent(agent: Callable[[Turn], Any]) -> None:
    """Whatever its kind, the items that come out are what the function gave."""
    assert "".join(GREETING) == "".join(str(item) for item in await items_of(agent))


async def test_none_is_an_empty_answer() -> None:
    """A function that returns nothing says nothing."""

    async def silent(turn: Turn) -> None:
        return None

    assert await items_of(silent) == []
    assert await items_of(lambda turn: None) == []


async def test_a_single_item_is_an_answer() -> None:
    """A function may return one item instead of text."""
    assert [Text("whole")] == await items_of(lambda turn: Text("whole"))


async def test_the_agent_is_given_the_turn() -> None:
    """The function's one argument is the turn, and the message is in it."""

    async def echo(turn: Turn) -> str:
        return f"{turn.session} {turn.run} {turn.message.text} {turn.attempt} {len(turn.history)} {turn.cancelled}"

    assert await items_of(echo) == ["s s~r Hi 1 0 False"]


async def test_what_is_thrown_in_arrives_in_the_agent_s_own_code() -> None:
    """A cancel between two yields reaches the agent where it stands, so that it can have a last word."""

    async def careful(turn: Turn) -> AsyncIterator[str]:
        try:
            yield "one"
            yield "two"
        except asyncio.CancelledError:
            yield "last word"
            raise

    stream = Agent(careful).stream(make_turn())
    assert await anext(stream) == "one"
    assert await stream.athrow(asyncio.CancelledError()) == "last word"


# Names ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("agent", "name", "description"),
    [
        (async_generator, "async_generator", "Greets."),
        (WithAsyncCall(), "WithAsyncCall", "Greets as an object."),
        (functools.partial(with_model, "m"), "with_model", "Greets with a model."),
        (function, "function", ""),
    ],
)
async def test_an_agent_is_named_and_described_after_its_function(
    agent: Callable[[Turn], Any], name: str, description: str
) -> None:
    """The name and the first line of the docstring are the defaults."""
    made = Agent(agent)
    assert (name, description) == (made.name, made.description)


async def test_name_and_description_can_be_given() -> None:
    """What is given wins."""
    made = Agent(function, name="greeter", description="Says good day.", on_crash="retry")
    assert (made.name, made.description, made.on_crash) == ("greeter", "Says good day.", "retry")


@pytest.mark.parametrize("wrong", ["text", 5, None])
def test_what_cannot_be_called_is_refused(wrong: Any) -> None:
    """An agent is a function."""
    with pytest.raises(InvalidInput, match="function of one argument"):
        Agent(wrong)


async def no_argument() -> AsyncIterator[str]:
    yield "x"


def test_a_function_without_room_for_the_turn_is_refused() -> None:
    """A wrong number of arguments is told when the agent is made, not when the first message comes."""
    with pytest.raises(InvalidInput, match="one argument, the turn"):
        Agent(no_argument)
    with pytest.raises(InvalidInput, match="one argument, the turn"):
        Agent(with_model)


def test_an_unknown_on_crash_is_refused() -> None:
    """There are three things that can become of a run whose process died."""
    with pytest.raises(InvalidInput, match="on_crash"):
        Agent(function, on_crash="restart")  # type: ignore[arg-type]


# Errors ---------------------------------------------------------------------------------------------------------------


def raise_at_once(turn: Turn) -> Any:
    raise KeyError("at once")


async def raise_in_coroutine(turn: Turn) -> str:
    raise KeyError("in coroutine")


async def raise_after_one(turn: Turn) -> AsyncIterator[str]:
    yield "one"
    raise KeyError("after one")


def raise_in_generator(turn: Turn) -> Iterator[str]:
    yield "one"
    raise KeyError("in generator")


def hidden_async(turn: Turn) -> Any:
    raise KeyError("before the generator is made")


hidden_async.__wrapped__ = async_generator  # type: ignore[attr-defined]  # as a decorator that fails would leave it


@pytest.mark.parametrize(
    "agent", [raise_at_once, raise_in_coroutine, raise_after_one, raise_in_generator, hidden_async]
)
async def test_an_agent_s_error_comes_out_of_the_stream(agent: Callable[[Turn], Any]) -> None:
    """Making the stream never raises; reading it does, with the agent's own error."""
    stream = Agent(agent).stream(make_turn())

    async def read() -> None:
        async for _ in stream:
            pass

    with pytest.raises(KeyError):
        await read()


async def test_what_came_before_an_error_is_given_out() -> None:
    """A thread's items come before its error."""
    items = []
    with pytest.raises(KeyError):  # noqa: PT012  # what came before is the point
        async for item in Agent(raise_in_generator).stream(make_turn()):
            items.append(item)
    assert items == ["one"]


async def test_sys_exit_in_a_thread_does_not_reach_the_loop() -> None:
    """SystemExit on the loop would end the server; the run gets an ordinary error."""

    def leaves(turn: Turn) -> str:
        raise SystemExit(3)

    with pytest.raises(RuntimeError, match="SystemExit"):
        await items_of(leaves)


# Threads --------------------------------------------------------------------------------------------------------------


async def test_a_plain_function_runs_in_a_thread_of_its_own() -> None:
    """It does not hold the loop, and its thread carries the run's name."""

    def where(turn: Turn) -> str:
        return threading.current_thread().name

    assert await items_of(where) == ["legato-agent-s~r"]


async def test_a_thread_sees_the_context_of_the_loop() -> None:
    """Context variables (a tracer's, for example) reach the thread."""
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")
    assert await items_of(lambda turn: variable.get()) == ["set"]


async def test_a_thousand_items_arrive_in_order() -> None:
    """The thread's lead over the loop is bounded, and nothing is lost at the bound."""

    def count(turn: Turn) -> Iterator[str]:
        yield from map(str, range(1000))

    assert [str(n) for n in range(1000)] == await items_of(count)


async def test_a_thread_is_only_so_far_ahead() -> None:
    """A reader that stops reading stops the thread, after a bounded number of items."""
    made = 0
    full, stopped = threading.Event(), threading.Event()

    def endless(turn: Turn) -> Iterator[str]:
        nonlocal made
        try:
            while True:
                made += 1
                if made == 64:
                    full.set()
                yield "x"
        finally:
            stopped.set()

    stream = Agent(endless).stream(make_turn())
    async with asyncio.timeout(30):
        await anext(stream)
        assert await asyncio.to_thread(full.wait, 20)
        await stream.aclose()
        assert await asyncio.to_thread(stopped.wait, 20)
    assert made < 200


async def test_a_thread_that_is_left_closes_its_generator() -> None:
    """When the run is over, the generator's ``finally`` runs, at its next yield."""
    going, closed = threading.Event(), threading.Event()

    def agent(turn: Turn) -> Iterator[str]:
        try:
            yield "one"
            going.wait(20)
            yield "two"
            yield "three"
        finally:
            closed.set()

    stream = Agent(agent).stream(make_turn())
    async with asyncio.timeout(30):
        assert await anext(stream) == "one"
        await stream.aclose()
        going.set()
        assert await asyncio.to_thread(closed.wait, 20)


async def test_a_cancelled_reader_leaves_at_once() -> None:
    """A thread that is in the middle of something does not hold up the cancel."""
    entered, going = threading.Event(), threading.Event()

    def agent(turn: Turn) -> str:
        entered.set()
        going.wait(20)
        return "late"

    task = asyncio.create_task(items_of(agent))
    async with asyncio.timeout(30):
        await asyncio.to_thread(entered.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    going.set()


# What a turn asks -----------------------------------------------------------------------------------------------------


async def test_ask_permission_leaves_out_what_is_not_given() -> None:
    """The request holds what was said, and no nulls."""
    desk = Desk()
    turn = make_turn(desk)
    assert await turn.ask_permission("Bash", "Run ls?")
    assert await turn.ask_permission("Write", "Write?", action="write", path="a", params={"n": 1}, timeout=None)
    assert [(to_builtins(request), timeout) for request, timeout in desk.asked] == [
        ({"id": "", "tool": "Bash", "description": "Run ls?", "action": "execute"}, 600.0),
        (
            {"id": "", "tool": "Write", "description": "Write?", "action": "write", "path": "a", "params": {"n": 1}},
            None,
        ),
    ]


async def test_notify_returns_at_once_unless_told_to_wait() -> None:
    """A notification is not waited for by default."""
    desk = Desk()
    turn = make_turn(desk)
    assert await turn.notify("Done", "It is done") is None
    answer = await turn.notify("Which?", "A or B", kind="question", response="choice", choices=("a", "b"), wait=True)
    assert Answer(by="user", value="yes") == answer
    assert desk.asked[1][0].choices == ["a", "b"]


@pytest.mark.parametrize("about", [{"response": "choice"}, {"choices": ["a"]}, {"response": "choice", "choices": []}])
async def test_choices_belong_to_the_response_choice(about: dict[str, Any]) -> None:
    """Choices without the kind that needs them, or the other way round, are refused."""
    with pytest.raises(InvalidInput, match="choices"):
        await make_turn().notify("Which?", "A or B", **about)


async def test_a_thread_waits_with_turn_wait() -> None:
    """An agent in a thread asks as an async one does."""

    def agent(turn: Turn) -> Iterator[str]:
        yield f"granted: {turn.wait(turn.ask_permission('Bash', 'Run ls?'))}"

    assert await items_of(agent) == ["granted: True"]


async def test_turn_wait_on_the_loop_is_refused() -> None:
    """On the loop it would wait for itself for ever."""
    turn = make_turn()
    with pytest.raises(InvalidInput, match="awaits instead"):
        turn.wait(turn.ask_permission("Bash", "Run ls?"))


async def test_a_thread_that_waits_is_let_go_when_the_run_is_over() -> None:
    """A cancel ends ``turn.wait``, also when what it waits for has no time limit; and the next one ends at once."""
    desk = Desk()
    desk.open.clear()
    turn = make_turn(desk)
    ended: list[str] = []
    done = threading.Event()

    def agent(turn: Turn) -> Iterator[str]:
        yield "asking"
        for _ in range(2):
            try:
                turn.wait(turn.ask_permission("Bash", "Run ls?", timeout=None))
            except concurrent.futures.CancelledError:
                ended.append("cancelled")
        done.set()

    stream = Agent(agent).stream(turn)
    async with asyncio.timeout(30):
        assert await anext(stream) == "asking"
        await desk.called.wait()
        await stream.aclose()
        assert await asyncio.to_thread(done.wait, 20)
    assert ended == ["cancelled", "cancelled"]


# The page about agents ------------------------------------------------------------------------------------------------

PAGE = Path(__file__).parents[1] / "docs" / "agents.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def agents_of(snippet: str) -> list[Agent]:
    """The agents that a snippet defines; importing a model's client gives a stand-in that is never called."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "openai", types.SimpleNamespace(AsyncOpenAI=lambda: None))
        names: dict[str, Any] = {"__name__": "snippet"}
        exec(compile(snippet, str(PAGE), "exec"), names)
    made = [value for value in names.values() if isinstance(value, Agent)]
    return made or [Agent(value) for value in names.values() if getattr(value, "__module__", "") == "snippet"]


def test_the_page_has_snippets() -> None:
    """The tests below have something to test."""
    assert len(SNIPPETS) >= 10


@pytest.mark.parametrize("snippet", SNIPPETS)
async def test_the_page_s_snippets_are_agents(snippet: str) -> None:
    """Each defines at least one agent, and it says something that can be recorded, or fails as the page says."""
    agents = agents_of(snippet)
    assert agents
    if "AsyncOpenAI" in snippet:
        return
    for agent in agents:
        recorder = Recorder("s~r")
        stream = agent.stream(make_turn())
        async with asyncio.timeout(30):
            try:
                for _ in range(6):
                    recorder.record(await anext(stream))
            except (StopAsyncIteration, AgentError):
                pass
            await stream.aclose()
        assert recorder.transcript.message("s~r").parts
