"""Functions that return a ``Result`` instead of raising: ``result = create_session(client, title="...")``.

With a ``Client`` they return the ``Result``, with an ``AsyncClient`` an awaitable of it. A type checker knows after
``if result.ok:`` that ``result.value`` is there, and otherwise ``result.error``. Errors of the request, of the network
and of the server are in the result; errors of a stream after it was opened are raised by its iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, Literal, ParamSpec, TypeVar, overload

import msgspec

from ..errors import LegatoError
from ..http.call import HttpCall
from . import operations, reader
from .aio import AsyncClient, AsyncEventStream
from .reader import StreamCall
from .sync import Client, EventStream
from .tasks import Coro

__all__ = [
    "Err",
    "Ok",
    "Result",
    "cancel_session",
    "create_session",
    "delete_session",
    "deny_permission",
    "export_session",
    "fork_session",
    "get_blob",
    "get_health",
    "get_session",
    "grant_permission",
    "list_history",
    "list_messages",
    "list_session_events",
    "list_sessions",
    "respond_notification",
    "rewind_session",
    "send_message",
    "send_streaming_message",
    "stream_events",
]

T = TypeVar("T")
P = ParamSpec("P")


class Ok(msgspec.Struct, Generic[T], frozen=True):
    """It went well: ``value`` is the answer."""

    value: T
    error: None = None
    ok: Literal[True] = True


class Err(msgspec.Struct, frozen=True):
    """It did not: ``error`` says why."""

    error: LegatoError
    value: None = None
    ok: Literal[False] = False


Result = Ok[T] | Err
"""What a function of this module returns."""


class Function(Generic[P, T]):
    """An operation as a function of a client."""

    def __init__(self, operation: Callable[P, HttpCall[T]]) -> None:
        self._operation = operation
        self.__doc__ = operation.__doc__
        self.__name__ = operation.__name__

    @overload
    def __call__(self, core: Client, /, *args: P.args, **kwargs: P.kwargs) -> Result[T]: ...

    @overload
    def __call__(self, core: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Coro[Result[T]]: ...

    def __call__(self, core: Client | AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Result[T] | Coro[Result[T]]:
        if isinstance(core, Client):
            return _attempt(lambda: core.call(self._operation(*args, **kwargs)))
        return _attempt_async(lambda: core.call(self._operation(*args, **kwargs)))


class StreamFunction(Generic[P]):
    """The opening of a stream as a function of a client."""

    def __init__(self, operation: Callable[P, StreamCall]) -> None:
        self._operation = operation
        self.__doc__ = operation.__doc__
        self.__name__ = operation.__name__

    @overload
    def __call__(self, core: Client, /, *args: P.args, **kwargs: P.kwargs) -> Result[EventStream]: ...

    @overload
    def __call__(self, core: AsyncClient, /, *args: P.args, **kwargs: P.kwargs) -> Coro[Result[AsyncEventStream]]: ...

    def __call__(
        self, core: Client | AsyncClient, /, *args: P.args, **kwargs: P.kwargs
    ) -> Result[EventStream] | Coro[Result[AsyncEventStream]]:
        if isinstance(core, Client):
            return _attempt(lambda: core.stream(self._operation(*args, **kwargs)))
        return _attempt_async(lambda: core.stream(self._operation(*args, **kwargs)))


def _attempt(act: Callable[[], T]) -> Result[T]:
    try:
        return Ok(act())
    except LegatoError as error:
        return Err(error)


async def _attempt_async(act: Callable[[], Coro[T]]) -> Result[T]:
    try:
        return Ok(await act())
    except LegatoError as error:
        return Err(error)


cancel_session: Final = Function(operations.cancel_session)
create_session: Final = Function(operations.create_session)
delete_session: Final = Function(operations.delete_session)
deny_permission: Final = Function(operations.deny_permission)
export_session: Final = Function(operations.export_session)
fork_session: Final = Function(operations.fork_session)
get_blob: Final = Function(operations.get_blob)
get_health: Final = Function(operations.get_health)
get_session: Final = Function(operations.get_session)
grant_permission: Final = Function(operations.grant_permission)
list_history: Final = Function(operations.list_history)
list_messages: Final = Function(operations.list_messages)
list_session_events: Final = Function(operations.list_session_events)
list_sessions: Final = Function(operations.list_sessions)
respond_notification: Final = Function(operations.respond_notification)
rewind_session: Final = Function(operations.rewind_session)
send_message: Final = Function(operations.send_message)
send_streaming_message: Final = Function(operations.send_streaming_message)
stream_events: Final = StreamFunction(reader.stream_events)
