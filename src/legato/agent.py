"""Agents and turns: the user's code, and what it is given.

An agent is any of four kinds of function of one argument, the ``Turn``:

* an async generator that yields events (the usual one);
* an async function that returns its whole answer as text (or an async iterator of events);
* a generator, or a plain function that returns text: run in a thread of its own.

Objects with such a ``__call__``, bound methods and ``functools.partial`` count as what they call.

This module turns all of them into one form, an async generator. It knows nothing of logs: what a turn asks of the
world goes through the ``Desk`` it was made with.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import functools
import inspect
import threading
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Sequence,
)
from typing import Any, Literal, Protocol, TypeVar, get_args

import msgspec

from .caller import NOBODY, Caller
from .check import as_flag, as_id, as_name, as_seconds, as_text, as_word, refused
from .errors import InvalidInput
from .event import CheckpointNoted, Event, NotificationCreated, PermissionRequested
from .figures import ProviderFigures
from .json import JsonObject
from .part import Message, as_json

T = TypeVar("T")

OnCrash = Literal["fail", "retry", "resume"]
"""What becomes of a run whose process died: it is ended as failed, run anew, or run to go on where it stopped."""

NotificationKind = Literal["info", "warning", "error", "question"]
ResponseType = Literal["acknowledge", "text", "choice"]


class Answer(msgspec.Struct, frozen=True):
    """What came of a notification.

    Attributes:
        by: ``"user"``, or ``"timeout"`` when nobody answered in time.
        value: the text or choice, if the user gave one.
    """

    by: str
    value: str | None = None


class Desk(Protocol):
    """What a turn can ask for; the runner provides it."""

    async def ask_permission(self, request: PermissionRequested, timeout: float | None) -> bool:
        """Ask the user, wait for the first answer, ``timeout`` seconds at most (None: as long as the run may
        last); none by then is a no. The desk gives the request its id and its end."""
        ...

    async def notify(self, notification: NotificationCreated, timeout: float | None, wait: bool) -> Answer | None:
        """Tell the user something; wait for the answer if ``wait``, which may come within ``timeout`` seconds (None:
        a day). The desk gives it its id and times."""
        ...

    async def stored(self) -> None:
        """Wait until everything that was said is stored."""
        ...


class Turn:
    """What an agent is given: one user message to answer, and what goes with it.

    Attributes:
        session, run: ids.
        message: the user's message; ``message.text`` is what they wrote.
        history: the messages before it, oldest first, each whole; of a long conversation the last ones
            (``Limits.history_messages``, ``history_bytes``).
        omitted: how many messages before those are not in ``history``; ``earlier`` has them.
        agent: the name under which this agent was called.
        caller: who sent the message.
        attempt: 1, or more when earlier attempts died with their process (``on_crash`` is ``retry`` or ``resume``).
        events: what earlier attempts stored; empty in the first.
        max_event_bytes: bound of one event's JSON, such as a tool's output: a longer one fails the run.
    """

    def __init__(
        self,
        *,
        desk: Desk,
        session: str,
        run: str,
        message: Message,
        history: Sequence[Message] = (),
        omitted: int = 0,
        earlier: Callable[[int], Awaitable[list[Message]]] | None = None,
        agent: str = "",
        caller: Caller = NOBODY,
        attempt: int = 1,
        events: Sequence[Event] = (),
        max_event_bytes: int = 262_144,
    ) -> None:
        self.session = session
        self.run = run
        self.message = message
        self.history = list(history)
        self.omitted = omitted
        self.agent = agent
        self.caller = caller
        self.attempt = attempt
        self.events = list(events)
        self.max_event_bytes = max_event_bytes
        self.cancelled = False
        """True once the run was told to stop; the agent also gets ``asyncio.CancelledError`` where it waits."""
        self.left_open = False
        """True when it was told to stop because the server does, and a further attempt is to go on: what was begun
        elsewhere for this run is not to be ended."""
        self._desk = desk
        self._earlier = earlier
        self._loop = asyncio.get_running_loop()
        self._left = False
        self._waits: set[concurrent.futures.Future[Any]] = set()

    @property
    def checkpoint(self) -> Any:
        """The data of the last ``Checkpoint`` that an earlier attempt yielded; None if there was none."""
        notes = (event.fact.data for event in reversed(self.events) if isinstance(event.fact, CheckpointNoted))
        return next(notes, None)

    async def ask_permission(
        self,
        tool: str,
        description: str,
        *,
        action: str = "execute",
        path: str | None = None,
        params: JsonObject | None = None,
        call: str | None = None,
        timeout: float | None = 600.0,
    ) -> bool:
        """Ask the user whether ``tool`` may act, and wait. The first answer wins, from any reader or tab.

        Args:
            tool: its name.
            description: what the user needs to know to decide, in words (some clients show nothing else).
            action: the verb.
            path: the file or place, if there is one.
            params: further facts, JSON values.
            call: the id of the tool call that it is for, if it is for one: what was answered for another call is no
                answer then, even if a further attempt asks in the very same words.
            timeout: seconds after which the answer is no; None waits as long as the run may last.

        Returns:
            True if granted. False if denied or nobody answered in time.

        Raises:
            InvalidInput, TooLarge: an argument is not what it must be; the text names it.
        """
        if params is not None and not isinstance(params, dict):
            raise refused("ask_permission's params", "a dict", params)
        request = PermissionRequested(
            "",
            as_name("ask_permission's tool", tool),
            as_text("ask_permission's description", description),
            as_text("ask_permission's action", action),
            None if path is None else as_text("ask_permission's path", path),
            None if params is None else as_json("ask_permission's params", params),
            None if call is None else as_id("ask_permission's call", call),
        )
        return await self._desk.ask_permission(request, as_seconds("ask_permission's timeout", timeout))

    async def notify(
        self,
        title: str,
        message: str,
        *,
        kind: NotificationKind = "info",
        response: ResponseType = "acknowledge",
        choices: Sequence[str] | None = None,
        timeout: float | None = 600.0,
        wait: bool = False,
    ) -> Answer | None:
        """Show the user a notification, and if ``wait``, wait for what they answer.

        Args:
            title, message: the text.
            kind: how it is shown.
            response: what kind of answer is expected.
            choices: what to choose from, when ``response`` is ``"choice"``.
            timeout: seconds until it can no longer be answered; None for a day.
            wait: whether to wait; without it None is returned at once.

        Raises:
            InvalidInput, TooLarge: an argument is not what it must be; the text names it.
        """
        if choices is not None and (isinstance(choices, str | bytes) or not isinstance(choices, Sequence)):
            raise refused("notify's choices", "a list of texts", choices)
        asked = [as_text("A choice of notify", choice) for choice in choices or ()]
        expected = as_word("notify's response", response, get_args(ResponseType))
        if (expected == "choice") != bool(asked):
            raise InvalidInput("notify needs choices with response='choice', and only then.")
        notification = NotificationCreated(
            "",
            as_word("notify's kind", kind, get_args(NotificationKind)),
            as_text("notify's title", title),
            as_text("notify's message", message),
            expected,
            0.0,
            0.0,
            asked or None,
        )
        return await self._desk.notify(
            notification, as_seconds("notify's timeout", timeout), as_flag("notify's wait", wait)
        )

    async def earlier(self, most: int | None = None) -> list[Message]:
        """The messages before those of ``history``, oldest first.

        Args:
            most: so many at most, the newest of them; None: all ``omitted`` ones.
        """
        most = self.omitted if most is None else max(most, 0)
        return [] if self._earlier is None else await self._earlier(most)

    async def stored(self) -> None:
        """Wait until everything that was yielded so far is stored, so that no crash can make it forgotten.

        For an agent that is about to do what must not be done twice: yield what is going to happen (``ToolStarted``, a
        ``Checkpoint``), wait for this, do it. A further attempt then knows that it may have been done.
        """
        await self._desk.stored()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """For agents that run in a thread: wait for ``coroutine``, for example ``turn.wait(turn.notify(...))``.

        Raises:
            concurrent.futures.CancelledError: the run is over, or was told to stop.
            InvalidInput: called on the event loop, where it would wait for itself; ``await`` there.
        """
        if _on_loop(self._loop):
            coroutine.close()
            raise InvalidInput("turn.wait is for agents that run in a thread; an async agent awaits instead.")
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._waits.add(future)
        if self._left:  # looked at after adding, so that either this line or ``leave`` cancels it
            future.cancel()
        try:
            return future.result()
        finally:
            self._waits.discard(future)

    def leave(self) -> None:
        """End every ``wait``, now and from now on: nobody listens to the agent's thread any more. Idempotent."""
        self._left = True
        for future in list(self._waits):
            future.cancel()


def _on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


AgentFunction = Callable[[Turn], Any]


class Agent:
    """A named function that answers messages.

    Args:
        function: see the module's head for the kinds.
        name: by which sessions and messages choose it; the function's own by default.
        on_crash: what becomes of its runs when the process dies in the middle, see ``OnCrash``.
        description: one sentence for people; the first line of the function's docstring by default.
        on_stop: awaited when the application has stopped, to let go of what the agent holds.
        tools: the names of those that it runs itself, as far as requests may choose among them.
        figures: what is counted of its requests to a model, if it asks one.
        lacks: of a message's metadata: the setting that the agent cannot heed, and why, or None. Over the APIs of
            OpenAI such a message is refused.
    """

    def __init__(
        self,
        function: AgentFunction,
        *,
        name: str | None = None,
        on_crash: OnCrash = "fail",
        description: str | None = None,
        on_stop: Callable[[], Awaitable[object]] | None = None,
        tools: Callable[[], Collection[str]] = tuple,
        lacks: Callable[[JsonObject], tuple[str, str] | None] = lambda _: None,
        figures: ProviderFigures | None = None,
    ) -> None:
        if not callable(function):
            raise InvalidInput(f"An agent is a function of one argument, got {type(function).__name__}.")
        if on_crash not in ("fail", "retry", "resume"):
            raise InvalidInput(f"on_crash is 'fail', 'retry' or 'resume', got {on_crash!r}.")
        named = _unpartial(function)
        self.function = function
        self.name: str = name or str(getattr(named, "__name__", type(named).__name__))
        self.on_crash = on_crash
        self.on_stop = on_stop
        self.tools = tools
        self.lacks = lacks
        self.figures = figures
        self.description = description or (inspect.getdoc(named) or "").partition("\n")[0]
        _check_arguments(function, self.name)

    def stream(self, turn: Turn) -> AsyncGenerator[object, None]:
        """The answer to ``turn``, as an async generator whatever kind of function it is. Its errors come from there."""
        if not _is_async(self.function):
            return _from_thread(self.function, turn)
        try:
            answer = self.function(turn)
        except Exception as exc:
            return _from_error(exc)
        # A generator as it is: what is thrown into it must arrive in the agent's own code.
        return answer if isinstance(answer, AsyncGenerator) else _from_answer(answer)


def _unpartial(function: AgentFunction) -> AgentFunction:
    while isinstance(function, functools.partial):
        function = function.func
    return function


def _check_arguments(function: AgentFunction, name: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # some callables written in C do not tell
    try:
        signature.bind(None)
    except TypeError:
        raise InvalidInput(f"An agent takes one argument, the turn; {name!r} takes {signature}.") from None


def _is_async(function: AgentFunction) -> bool:
    target = _unpartial(function)
    if not inspect.isroutine(target) and not inspect.isclass(target):
        target = getattr(target, "__call__", target)  # noqa: B004  # an object that is an agent by its __call__
    # A decorator may hide an async function behind a plain one, or the other way round: either is called on the loop.
    return any(
        inspect.isasyncgenfunction(each) or inspect.iscoroutinefunction(each)
        for each in (target, inspect.unwrap(target))
    )


async def _from_error(error: Exception) -> AsyncGenerator[object, None]:
    raise error
    yield


async def _from_answer(answer: object) -> AsyncGenerator[object, None]:
    """What an async function gave: an awaitable of it, an async iterator of items, a plain one, or a single item."""
    if inspect.isawaitable(answer):
        answer = await answer
    if isinstance(answer, AsyncIterator):
        async with contextlib.aclosing(answer) if isinstance(answer, AsyncGenerator) else contextlib.nullcontext():
            async for item in answer:
                yield item
    else:
        for item in _items(answer):
            yield item


_AHEAD = 64
"""Items that a thread may be ahead of the loop."""


async def _from_thread(function: AgentFunction, turn: Turn) -> AsyncGenerator[object, None]:
    loop = asyncio.get_running_loop()
    arrived = asyncio.Event()
    items: list[object] = []
    outcome: list[Exception | None] = []
    handed: list[object] = []
    room = threading.Semaphore(_AHEAD)
    stopped = threading.Event()

    def arrive(item: object) -> None:
        items.append(item)
        arrived.set()

    def finish(error: Exception | None) -> None:
        outcome.append(error)
        arrived.set()

    def work() -> None:
        error: Exception | None = None
        try:
            result = function(turn)
            if isinstance(result, AsyncIterator) or inspect.isawaitable(result):
                handed.append(result)  # a plain function around an async one, a lambda for example
                return
            for item in _items(result):
                room.acquire()
                if stopped.is_set():
                    break
                loop.call_soon_threadsafe(arrive, item)
        except Exception as exc:
            error = exc
        except BaseException as exc:
            # sys.exit() ends a thread; raised again on the loop it would end the server.
            error = RuntimeError(f"The agent's thread ended by {type(exc).__name__}.")
        finally:
            try:
                loop.call_soon_threadsafe(finish, error)
            except RuntimeError:
                pass  # the loop is closed: nobody is left to be told

    context = contextvars.copy_context()
    threading.Thread(target=context.run, args=(work,), daemon=True, name=f"legato-agent-{turn.run}").start()
    try:
        while items or not outcome:
            if not items:
                await arrived.wait()
            arrived.clear()
            batch, items[:] = list(items), []
            for item in batch:
                room.release()
                yield item
    finally:
        stopped.set()
        room.release()
        turn.leave()
    if outcome[0] is not None:
        raise outcome[0]
    for answer in handed:
        async with contextlib.aclosing(_from_answer(answer)) as rest:
            async for item in rest:
                yield item


def _items(result: object) -> Iterator[object]:
    if isinstance(result, Iterator):
        try:
            yield from result
        finally:
            close = getattr(result, "close", None)
            if close is not None:
                close()
    elif result is not None:
        yield result
