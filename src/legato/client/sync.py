# Made from aio.py by tools/faces.py. Change that one, and run: make faces
"""The SDK with threads: ``Client``, ``EventStream``, ``AnswerStream``.

It moves bytes and sleeps; the rest decides. ``aio`` is its twin, with the same methods.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from functools import wraps
from types import TracebackType
from typing import Concatenate, ParamSpec, Self, TypeVar, Unpack

from ..check import as_text
from ..http.backoff import ReconnectBackoff
from ..http.call import HttpCall, Options, RequestArguments, answer
from ..http.errors import ClientError
from ..http.packages import httpx2
from ..http.retry import UNSET, RetryConfig, Unset
from ..http.settings import address
from ..http.sync import open_stream, read_chunk, send
from ..http.threads import chunks, new_http_client
from . import operations
from .answer import AnswerView
from .call import refusal, signature
from .errors import APIError, ErrorResponse
from .events import StreamEvent
from .models import SendResult
from .reader import HEARTBEAT_TIMEOUT, OnReconnect, ReaderView, StreamCall, stream_events
from .settings import DEFAULT_URL, TIMEOUT, ClientSettings
from .threads import Gate, Key, key_of, opening

__all__ = ["AnswerStream", "Client", "EventStream"]

T = TypeVar("T")
P = ParamSpec("P")


class _Methods:
    """Some of a client's methods."""

    def __init__(self, client: Client) -> None:
        self._client = client


def _method(operation: Callable[P, HttpCall[T]]) -> Callable[Concatenate[_Methods, P], T]:
    """The method that carries out an operation and returns what it answers."""

    @wraps(operation)
    def method(self: _Methods, /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._client.call(operation(*args, **kwargs))

    method.__signature__ = signature(operation)  # type: ignore[attr-defined]  # what inspect looks for
    return method


def _stream_method(
    operation: Callable[P, StreamCall],
) -> Callable[Concatenate[_Methods, P], EventStream]:
    @wraps(operation)
    def method(self: _Methods, /, *args: P.args, **kwargs: P.kwargs) -> EventStream:
        call = operation(*args, **kwargs)
        return opening(lambda: self._client.stream(call))

    method.__signature__ = signature(operation, "EventStream")  # type: ignore[attr-defined]  # what inspect looks for
    return method


class StreamingMethods(_Methods):
    """Events as they happen."""

    stream_events = _stream_method(stream_events)
    send_streaming_message = _method(operations.send_streaming_message)


class SessionMethods(_Methods):
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


class MessageMethods(_Methods):
    """What was said in them."""

    send = _method(operations.send_message)
    list = _method(operations.list_messages)
    history = _method(operations.list_history)


class PermissionMethods(_Methods):
    """Answers to an agent that asks whether it may."""

    grant = _method(operations.grant_permission)
    deny = _method(operations.deny_permission)


class NotificationMethods(_Methods):
    """Answers to an agent that tells or asks something."""

    respond = _method(operations.respond_notification)


class SystemMethods(_Methods):
    """The server itself."""

    get_health = _method(operations.get_health)


class Client:
    """A client of a Legato server, for programs with threads; close it, or use it in ``with``.

    Threads may share one. Its errors are those of ``legato.client.errors``.

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
        http_client: httpx2.Client | None = None,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        reconnect_backoff: ReconnectBackoff | None = None,
        sleep: Callable[[float], object] | None = None,
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
        self.streaming = StreamingMethods(self)
        self.sessions = SessionMethods(self)
        self.messages = MessageMethods(self)
        self.permissions = PermissionMethods(self)
        self.notifications = NotificationMethods(self)
        self.system = SystemMethods(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Doing so twice does no harm."""
        if self._owns_http:
            self.http.close()

    def ask(
        self,
        question: str,
        *,
        session_id: str | None = None,
        agent: str | None = None,
        idempotency_key: str | None = None,
        on_reconnect: OnReconnect | None = None,
        **options: Unpack[Options],
    ) -> AnswerStream:
        """Ask a question: an iterator of the answer's events.

        Args:
            question: not empty; InvalidInput if it is no text.
            session_id: the conversation; None begins one.
            agent: who answers; None is the default.
            idempotency_key: see ``messages.send``; asking again with it follows the same answer from its start.
            on_reconnect: see ``streaming.stream_events``.
        """
        as_text("question", question)

        def open_() -> AnswerStream:
            id = session_id
            if id is None:
                made = self.sessions.create(title=question[:80], agent=agent, **options)
                id = made.id
            sent = self.messages.send(id, text=question, agent=agent, idempotency_key=idempotency_key, **options)
            stream = self.streaming.stream_events(
                session_id=id, last_event_id=sent.cursor, quiet=True, on_reconnect=on_reconnect, **options
            )
            return AnswerStream(self, sent, stream)

        return opening(open_)

    def call(self, call: HttpCall[T]) -> T:
        """Carry out an operation, as its method does."""
        for attempt in self.settings.retrying(call.retries, repeatable=call.repeatable):
            with attempt:
                try:
                    return self._once(call)
                except ErrorResponse as error:
                    if attempt.num == 1 or error.code != call.already:
                        raise
                    return self._once(call.instead) if call.instead else call.nothing()
        raise AssertionError("Attempts end with a value or an error.")

    def _once(self, call: HttpCall[T]) -> T:
        follow = call.method == "GET"
        response = send(self.http, self._signed(self.settings.request(call)), follow_redirects=follow)
        if response.status_code == 401 and callable(self._api_key):
            response = send(self.http, self._signed(self.settings.request(call)), follow_redirects=follow)
        if not response.is_success:
            raise refusal(response)
        return answer(call, response)

    def stream(self, call: StreamCall) -> EventStream:
        """Open a stream, as ``streaming.stream_events`` does."""
        stream = EventStream(self, call, sleep=self._sleep)
        for attempt in self.settings.retrying(call.retries):
            with attempt:
                stream.connect()
        return stream

    def connect(self, call: HttpCall[None]) -> httpx2.Response:
        """The response to a request for a stream, its body unread.

        Raises:
            ClientError: there is none.
        """
        try:
            request = self._signed(self.settings.stream_request(call))
            return open_stream(self.http, request, refusal, follow_redirects=True)
        except APIError as error:
            if error.status_code != 401 or not callable(self._api_key):
                raise
        request = self._signed(self.settings.stream_request(call))
        return open_stream(self.http, request, refusal, follow_redirects=True)

    def _signed(self, request: RequestArguments) -> RequestArguments:
        key = key_of(self._api_key)
        if key is not None:
            request["headers"].setdefault("authorization", f"Bearer {key}")
        return request


class EventStream(ReaderView):
    """The events of a session, over as many connections as it takes: a context manager and an iterator.

    Leaving ``with`` closes it. ``close()`` from another thread takes effect with the next event or heartbeat.
    """

    _body: Iterator[bytes]

    def __init__(self, client: Client, call: StreamCall, *, sleep: Callable[[float], object] | None = None) -> None:
        self._client = client
        self._reader = client.settings.reader(call)
        self._gate = Gate()
        self._sleep = sleep or self._gate.wait
        self._response: httpx2.Response | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> StreamEvent:
        while not self._gate.closed:
            event = self._reader.next()
            if event is not None:
                return event
            if self._reader.ended:
                break
            try:
                with self._gate.reading:
                    self._fill()
            except ClientError:
                self.close()
                raise
        self.close()
        raise StopIteration

    def close(self) -> None:
        """Close the connection and end the iteration. The session and its runs go on."""
        self._gate.close(self._disconnect)

    def connect(self) -> None:
        """Make the next connection; the client and the iteration do this.

        Raises:
            ClientError: there is none.
        """
        call = self._reader.connect()
        response = self._client.connect(call)
        try:
            self._reader.opened(response)
        except ClientError:
            response.close()
            raise
        self._response, self._body = response, chunks(response)

    def _fill(self) -> None:
        """Read one chunk, or make the next connection."""
        error: ClientError | None = None
        try:
            chunk = None if self._gate.closed else read_chunk(self._body)
        except ClientError as exc:
            error = exc
        else:
            if chunk is not None:
                self._reader.receive(chunk)
                return
        self._reconnect(error)

    def _reconnect(self, error: ClientError | None) -> None:
        self._disconnect()
        while not self._gate.closed:
            wait = self._reader.lost(error)
            if wait is None:
                return
            self._sleep(wait)
            try:
                if not self._gate.closed:
                    self.connect()
                return
            except ClientError as exc:
                error = exc

    def _disconnect(self) -> None:
        if self._response is not None:
            self._response.close()


class AnswerStream(AnswerView):
    """The events of one answer, up to its end: a context manager and an iterable, to be read once.

    The last event is ``complete``, ``error`` (it is not raised) or ``session_deleted``. Leaving the loop early closes
    the connection; the answer goes on being written, and can be read later. ``cancel()`` ends it.

    Attributes:
        stream: the stream of the whole session.
    """

    def __init__(self, client: Client, sent: SendResult, stream: EventStream) -> None:
        super().__init__(sent)
        self.stream = stream
        self._client = client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[StreamEvent]:
        # A generator, so that a ``break`` closes the connection.
        with self.stream:
            for event in self.stream:
                if self._state.take(event):
                    yield event
                if self._state.outcome is not None:
                    return

    def read(self) -> str:
        """Read to the end and return the answer's text; ``outcome`` tells how it ended."""
        for _ in self:
            pass
        return self.text

    def cancel(self) -> None:
        """Ask for the end of the answer; go on reading to see it end."""
        if self.outcome is None:
            self._client.sessions.cancel(self.session_id, run_id=self.run_id)

    def close(self) -> None:
        """Close the connection; the answer goes on being written."""
        self.stream.close()
