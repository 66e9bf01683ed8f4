"""The SDK on asyncio: ``AsyncClient``, ``AsyncEventStream``, ``AsyncAnswerStream``.

It moves bytes and sleeps; the rest decides. ``sync`` is its twin, with the same methods.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar, Unpack

from ..check import as_text
from ..http.aio import open_stream, read_chunk, send
from ..http.backoff import ReconnectBackoff
from ..http.call import HttpCall, Options, RequestArguments, answer
from ..http.errors import ClientError
from ..http.packages import httpx2
from ..http.retry import UNSET, RetryConfig, Unset
from ..http.settings import address
from ..http.tasks import chunks, new_http_client
from . import operations
from .answer import AnswerView
from .call import refusal, signature
from .errors import APIError, ErrorResponse
from .events import StreamEvent
from .models import SendResult
from .reader import HEARTBEAT_TIMEOUT, OnReconnect, ReaderView, StreamCall, stream_events
from .settings import DEFAULT_URL, TIMEOUT, ClientSettings
from .tasks import AsyncGate, Coro, Key, Opening, key_of, opening

__all__ = ["AsyncAnswerStream", "AsyncClient", "AsyncEventStream", "Opening"]

T = TypeVar("T")
P = ParamSpec("P")


class _AsyncMethods:
    """Some of a client's methods."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client


def _method(operation: Callable[P, HttpCall[T]]) -> Callable[Concatenate[_AsyncMethods, P], Coro[T]]:
    """The method that carries out an operation and returns what it answers."""

    @wraps(operation)
    async def method(self: _AsyncMethods, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self._client.call(operation(*args, **kwargs))

    method.__signature__ = signature(operation)  # type: ignore[attr-defined]  # what inspect looks for
    return method


def _stream_method(
    operation: Callable[P, StreamCall],
) -> Callable[Concatenate[_AsyncMethods, P], Opening[AsyncEventStream]]:
    @wraps(operation)
    def method(self: _AsyncMethods, /, *args: P.args, **kwargs: P.kwargs) -> Opening[AsyncEventStream]:
        call = operation(*args, **kwargs)
        return opening(lambda: self._client.stream(call))

    method.__signature__ = signature(operation, "Opening[AsyncEventStream]")  # type: ignore[attr-defined]  # what inspect looks for
    return method


class AsyncStreamingMethods(_AsyncMethods):
    """Events as they happen."""

    stream_events = _stream_method(stream_events)
    send_streaming_message = _method(operations.send_streaming_message)


class AsyncSessionMethods(_AsyncMethods):
    """Conversations."""

    create = _method(operations.create_session)
    list = _method(operations.list_sessions)
    get = _method(operations.get_session)
    delete = _method(operations.delete_session)
    rewind = _method(operations.rewind_session)
    fork = _method(operations.fork_session)
    export = _method(operations.export_session)
    messages = _method(operations.list_messages)
    events = _method(operations.list_session_events)
    blob = _method(operations.get_blob)
    cancel = cancel_processing = _method(operations.cancel_session)


class AsyncMessageMethods(_AsyncMethods):
    """What was said in them."""

    send = _method(operations.send_message)
    list = _method(operations.list_messages)
    history = _method(operations.list_history)


class AsyncPermissionMethods(_AsyncMethods):
    """Answers to an agent that asks whether it may."""

    grant = _method(operations.grant_permission)
    deny = _method(operations.deny_permission)


class AsyncNotificationMethods(_AsyncMethods):
    """Answers to an agent that tells or asks something."""

    respond = _method(operations.respond_notification)


class AsyncSystemMethods(_AsyncMethods):
    """The server itself."""

    get_health = _method(operations.get_health)


class AsyncClient:
    """A client of a Legato server on asyncio; close it, or use it in ``async with``.

    Tasks may share one. Its errors are those of ``legato.client.errors``.

    Args:
        base_url: the server's address. ``server_url`` is another name for it.
        retry_config: how failed requests are repeated; None: not at all. ``UNSET``: for a minute.
        timeout: seconds for each wait on the network. Streams use ``heartbeat_timeout`` instead.
        api_key: what signs in, sent as ``Authorization: Bearer ...``: a text, or a function that is asked for it before
            each request, and once more when the server does not accept it. What that raises is raised.
        headers: added to each request; an ``authorization`` there is sent instead.
        http_client: an httpx2 client to use; it is not closed with this one.
        heartbeat_timeout: seconds of silence after which a stream reconnects. The server is heard every 15.
        reconnect_backoff: how long a stream waits before it reconnects, and when it gives up.
        sleep: waits before a reconnect, in place of the clock.
        random: gives a float from 0 to 1, for the jitter of reconnects.
    """

    def __init__(
        self,
        base_url: str = DEFAULT_URL,
        *,
        server_url: str | None = None,
        retry_config: RetryConfig | Unset | None = UNSET,
        timeout: float = TIMEOUT,
        api_key: Key | None = None,
        headers: Mapping[str, str] | None = None,
        http_client: httpx2.AsyncClient | None = None,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        reconnect_backoff: ReconnectBackoff | None = None,
        sleep: Callable[[float], Awaitable[object]] | None = None,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.settings = ClientSettings(
            base_url=address(server_url or base_url, of="server"),
            headers=dict(headers or {}),
            timeout=timeout,
            heartbeat_timeout=heartbeat_timeout,
            retry_config=retry_config,
            reconnect_backoff=reconnect_backoff,
            random=random,
        )
        self.http = new_http_client() if http_client is None else http_client
        self._owns_http = http_client is None
        self._sleep = sleep
        self._api_key = api_key
        self.streaming = AsyncStreamingMethods(self)
        self.sessions = AsyncSessionMethods(self)
        self.messages = AsyncMessageMethods(self)
        self.permissions = AsyncPermissionMethods(self)
        self.notifications = AsyncNotificationMethods(self)
        self.system = AsyncSystemMethods(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections. Doing so twice does no harm."""
        if self._owns_http:
            await self.http.aclose()

    def ask(
        self,
        question: str,
        *,
        session_id: str | None = None,
        agent: str | None = None,
        idempotency_key: str | None = None,
        on_reconnect: OnReconnect | None = None,
        **options: Unpack[Options],
    ) -> Opening[AsyncAnswerStream]:
        """Ask a question: an async iterator of the answer's events.

        Nothing is sent before it is awaited, entered or iterated over.

        Args:
            question: not empty; InvalidInput if it is no text.
            session_id: the conversation; None begins one.
            agent: who answers; None is the default.
            idempotency_key: see ``messages.send``; asking again with it follows the same answer from its start.
            on_reconnect: see ``streaming.stream_events``.
        """
        as_text("question", question)

        async def open_() -> AsyncAnswerStream:
            id = session_id
            if id is None:
                made = await self.sessions.create(title=question[:80], agent=agent, **options)
                id = made.id
            sent = await self.messages.send(id, text=question, agent=agent, idempotency_key=idempotency_key, **options)
            stream = await self.streaming.stream_events(
                session_id=id, last_event_id=sent.cursor, quiet=True, on_reconnect=on_reconnect, **options
            )
            return AsyncAnswerStream(self, sent, stream)

        return opening(open_)

    async def call(self, call: HttpCall[T]) -> T:
        """Carry out an operation, as its method does."""
        async for attempt in self.settings.retrying(call.retries, repeatable=call.repeatable):
            with attempt:
                try:
                    return await self._once(call)
                except ErrorResponse as error:
                    if attempt.num == 1 or error.code != call.already:
                        raise
                    return await self._once(call.instead) if call.instead else call.nothing()
        raise AssertionError("Attempts end with a value or an error.")

    async def _once(self, call: HttpCall[T]) -> T:
        follow = call.method == "GET"
        response = await send(self.http, await self._signed(self.settings.request(call)), follow_redirects=follow)
        if response.status_code == 401 and callable(self._api_key):
            response = await send(self.http, await self._signed(self.settings.request(call)), follow_redirects=follow)
        if not response.is_success:
            raise refusal(response)
        return answer(call, response)

    async def stream(self, call: StreamCall) -> AsyncEventStream:
        """Open a stream, as ``streaming.stream_events`` does."""
        stream = AsyncEventStream(self, call, sleep=self._sleep)
        async for attempt in self.settings.retrying(call.retries):
            with attempt:
                await stream.connect()
        return stream

    async def connect(self, call: HttpCall[None]) -> httpx2.Response:
        """The response to a request for a stream, its body unread.

        Raises:
            ClientError: there is none.
        """
        try:
            request = await self._signed(self.settings.stream_request(call))
            return await open_stream(self.http, request, refusal, follow_redirects=True)
        except APIError as error:
            if error.status_code != 401 or not callable(self._api_key):
                raise
        request = await self._signed(self.settings.stream_request(call))
        return await open_stream(self.http, request, refusal, follow_redirects=True)

    async def _signed(self, request: RequestArguments) -> RequestArguments:
        key = await key_of(self._api_key)
        if key is not None:
            request["headers"].setdefault("authorization", f"Bearer {key}")
        return request


class AsyncEventStream(ReaderView):
    """The events of a session, over as many connections as it takes: an async context manager and iterator.

    Leaving ``async with`` closes it. Cancelling a wait for the next event (``asyncio.timeout``, ``wait_for``) loses
    nothing: the next one goes on behind the last event.
    """

    _body: AsyncIterator[bytes]

    def __init__(
        self, client: AsyncClient, call: StreamCall, *, sleep: Callable[[float], Awaitable[object]] | None = None
    ) -> None:
        self._client = client
        self._reader = client.settings.reader(call)
        self._gate = AsyncGate()
        self._sleep = sleep or self._gate.wait
        self._response: httpx2.Response | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamEvent:
        while not self._gate.closed:
            event = self._reader.next()
            if event is not None:
                return event
            if self._reader.ended:
                break
            try:
                with self._gate.reading:
                    await self._fill()
            except ClientError:
                await self.aclose()
                raise
        await self.aclose()
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection and end the iteration. The session and its runs go on."""
        await self._gate.close(self._disconnect)

    async def connect(self) -> None:
        """Make the next connection; the client and the iteration do this.

        Raises:
            ClientError: there is none.
        """
        call = self._reader.connect()
        response = await self._client.connect(call)
        try:
            self._reader.opened(response)
        except ClientError:
            await response.aclose()
            raise
        self._response, self._body = response, chunks(response)

    async def _fill(self) -> None:
        """Read one chunk, or make the next connection."""
        error: ClientError | None = None
        try:
            chunk = None if self._gate.closed else await read_chunk(self._body)
        except ClientError as exc:
            error = exc
        else:
            if chunk is not None:
                self._reader.receive(chunk)
                return
        await self._reconnect(error)

    async def _reconnect(self, error: ClientError | None) -> None:
        await self._disconnect()
        while not self._gate.closed:
            wait = self._reader.lost(error)
            if wait is None:
                return
            await self._sleep(wait)
            try:
                if not self._gate.closed:
                    await self.connect()
                return
            except ClientError as exc:
                error = exc

    async def _disconnect(self) -> None:
        if self._response is not None:
            await self._response.aclose()


class AsyncAnswerStream(AnswerView):
    """The events of one answer, up to its end: an async context manager and iterable, to be read once.

    The last event is ``complete``, ``error`` (it is not raised) or ``session_deleted``. Leaving the loop early closes
    the connection; the answer goes on being written, and can be read later. ``cancel()`` ends it.

    Attributes:
        stream: the stream of the whole session.
    """

    def __init__(self, client: AsyncClient, sent: SendResult, stream: AsyncEventStream) -> None:
        super().__init__(sent)
        self.stream = stream
        self._client = client

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        await self.aclose()

    async def __aiter__(self) -> AsyncIterator[StreamEvent]:
        # A generator, so that a ``break`` closes the connection.
        async with self.stream:
            async for event in self.stream:
                if self._state.take(event):
                    yield event
                if self._state.outcome is not None:
                    return

    async def read(self) -> str:
        """Read to the end and return the answer's text; ``outcome`` tells how it ended."""
        async for _ in self:
            pass
        return self.text

    async def cancel(self) -> None:
        """Ask for the end of the answer; go on reading to see it end."""
        if self.outcome is None:
            await self._client.sessions.cancel(self.session_id, run_id=self.run_id)

    async def aclose(self) -> None:
        """Close the connection; the answer goes on being written."""
        await self.stream.aclose()
