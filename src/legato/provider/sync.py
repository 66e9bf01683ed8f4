# Made from aio.py by tools/faces.py. Change that one, and run: make faces
"""Models for programs with threads: ``ResponsesClient`` and the providers.

It moves bytes and sleeps; the rest decides. ``aio`` is its twin, with the same methods.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

from ..http.backoff import ReconnectBackoff
from ..http.call import HttpCall
from ..http.errors import APIError, ClientError
from ..http.packages import httpx2
from ..http.retry import UNSET, RetryConfig, Unset
from ..http.settings import address
from ..http.sync import open_stream, read_chunk, send
from ..http.threads import chunks, new_http_client
from ..json import JsonObject
from . import responses_requests
from .anthropic import AnthropicWire
from .chat_completions import ChatCompletionsWire
from .errors import ProviderRefused, answered, provider_error, refused, too_busy
from .events import ResponseEvent
from .last_pass import Addressee, told
from .responses import Response, ResponsesWire
from .result import ChatResult, StreamChunk
from .settings import ProviderSettings, Timeouts
from .stream import RESUME_BACKOFF, FoldedCall, MayPass
from .wire import Wire, chat_options, chat_resume, raw_stream, resume_raw, tagged, untagged, with_headers

__all__ = [
    "AnthropicProvider",
    "ChatCompletionsProvider",
    "ResponsesClient",
    "ResponsesProvider",
    "Stream",
]

T = TypeVar("T")


class _Face:
    """A client of one provider; close it, or use it in ``with``. Threads may share one.

    Args:
        base_url: the address up to the version, for example ``"https://host/v1"``.
        api_key: None sends none.
        timeouts: how long to wait.
        retry_config: how a request is repeated before its answer begins; None: not at all. ``UNSET``: for a minute.
        reconnect_backoff: how long to wait before a stream that was cut is continued, where the provider can do so;
            None never continues one.
        headers: added to each request.
        rules: what is known of who reads the conversations, of ``last_pass.RULES``, besides what its address says.
        http_client: an httpx2 client to use; it is not closed with this one.
        sleep: waits before a stream is continued.
        random: gives a float from 0 to 1, for the jitter of that.
    """

    wire: Wire = ResponsesWire()

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        *,
        timeouts: Timeouts | None = None,
        retry_config: RetryConfig | Unset | None = UNSET,
        reconnect_backoff: ReconnectBackoff | None = RESUME_BACKOFF,
        headers: Mapping[str, str] | None = None,
        rules: Collection[str] = (),
        http_client: httpx2.Client | None = None,
        sleep: Callable[[float], object] = time.sleep,
        random: Callable[[], float] = random.random,
    ) -> None:
        self.settings = ProviderSettings(
            base_url=address(base_url, of="provider"),
            headers={**self.wire.headers(api_key), **(headers or {})},
            timeouts=timeouts or Timeouts(),
            retry_config=retry_config,
            reconnect_backoff=reconnect_backoff,
            random=random,
        )
        self.rules = frozenset(rules)
        self.http = new_http_client() if http_client is None else http_client
        self.sleep = sleep
        self._owns_http = http_client is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections. Doing so twice does no harm."""
        if self._owns_http:
            self.http.close()

    def send(self, call: HttpCall[JsonObject]) -> JsonObject:
        """The JSON object that answers a request.

        Raises:
            ProviderError: there is none.
        """
        try:
            for attempt in self.settings.attempts():
                with attempt:
                    return self._once(call)
        except MayPass as exc:
            raise exc.failure from None
        except ClientError as exc:
            raise provider_error(exc) from exc
        raise AssertionError("Attempts end with a value or an error.")

    def _once(self, call: HttpCall[JsonObject]) -> JsonObject:
        # Redirects are not followed: a key in a header of its own would go with them, wherever that is.
        response = send(self.http, self.settings.request(call), follow_redirects=False)
        if not response.is_success:
            raise refused(response)
        raw = answered(call, response)
        if (failure := too_busy(raw)) is not None:
            raise MayPass(failure)
        return raw

    def connect(self, call: HttpCall[object]) -> httpx2.Response:
        """The response to a request for a stream, its body unread.

        Raises:
            LegatoError: there is none.
        """
        response = open_stream(self.http, self.settings.request(call), refused, follow_redirects=False)
        self.settings.opened(response)
        return response


class Stream(Generic[T]):
    """What a model sends, as it comes: an iterable, to be read once, and a context manager.

    The request is sent when the iteration begins. Leaving the loop, or ``with``, closes the connection at once.
    """

    def __init__(self, face: _Face, asked: FoldedCall[T]) -> None:
        self._face = face
        self._state = face.settings.state(asked)
        self._response: httpx2.Response | None = None
        self._body: Iterator[bytes]

    @property
    def id(self) -> str | None:
        """The provider's id of the answer; None before it is known."""
        return self._state.id

    @property
    def partial(self) -> ChatResult:
        """What came so far; in the end, all of it."""
        return self._state.partial

    @property
    def sequence_number(self) -> int | None:
        """The number of the last event that was handed out whole; ``resume`` goes on behind it. None: not numbered."""
        return self._state.sequence_number

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        # A generator, so that a ``break`` closes the connection.
        state = self._state
        state.begin()
        try:
            self._open()
            while True:
                yield from state.items()
                if state.ended:
                    return
                if state.broken:
                    self._reopen()
                    continue
                try:
                    state.receive(read_chunk(self._body))
                except ClientError as exc:
                    state.cut(exc)
        finally:
            self.close()

    def close(self) -> None:
        """Close the connection. What was read can still be asked for."""
        if self._response is not None:
            self._response.close()

    def _open(self) -> None:
        """Connect, and wait for the first bytes: until they are here, all of it may be tried again."""
        try:
            for attempt in self._face.settings.attempts():
                with attempt:
                    self._connect()
                    self._state.receive(read_chunk(self._body))
                    self._listen()
        except MayPass as exc:
            raise exc.failure from None
        except ClientError as exc:
            raise provider_error(exc) from exc

    def _listen(self) -> None:
        """Read until something was said: only that it cannot answer now may a provider say before."""
        while not self._state.begun():
            try:
                self._state.receive(read_chunk(self._body))
            except ClientError as exc:
                self._state.cut(exc)

    def _connect(self) -> None:
        self.close()
        face, call = self._face, self._face.settings.wanted(self._state.request())
        try:
            self._response = face.connect(call)
        except APIError as refusal:
            if not face.settings.learn(call, refusal):
                raise
            self._response = face.connect(face.settings.wanted(call))
        self._state.opened(self._response.headers)
        self._body = chunks(self._response)

    def _reopen(self) -> None:
        self.close()
        self._face.sleep(self._state.pause())
        try:
            self._connect()
        except (ClientError, ProviderRefused) as exc:
            self._state.cut(exc)


class ResponsesClient(_Face):
    """The Responses API as it is: raw events in order, whole responses. ``ResponsesProvider`` has chunks."""

    def send_message_stream(
        self, message: str | Sequence[JsonObject], *, model: str | None = None, **options: object
    ) -> Stream[ResponseEvent]:
        """Ask, and read every event in order. After an event that says that it failed, the error is raised.

        Args:
            message: a text, or input items.
            model: who answers.
            options: all else that the API knows. With ``background=True`` a stream that is cut goes on by itself.
        """
        return Stream(self, raw_stream(message, model, options))

    def send_message(
        self, message: str | Sequence[JsonObject], *, model: str | None = None, **options: object
    ) -> Response:
        """Ask for a whole response.

        Raises:
            ProviderError: there is none, it failed, or it was stopped before its end.
        """
        return Response.read(self.send(responses_requests.create(message, model, options))).succeeded()

    def retrieve(self, id: str) -> Response:
        """A response that the provider has kept; ``status`` and ``failure`` tell what became of it."""
        return Response.read(self.send(responses_requests.retrieve(id)))

    def cancel(self, id: str) -> Response:
        """End a background response, and return what it is then."""
        return Response.read(self.send(responses_requests.cancel(id)))

    def resume(self, id: str, *, starting_after: int | None = None) -> Stream[ResponseEvent]:
        """Read the events of a background response behind the one of this number; None: from the first on."""
        return Stream(self, resume_raw(id, starting_after))


class _Provider(_Face):
    """The two verbs of a chat."""

    def addressee(self, model: str) -> Addressee:
        """Who is told what is asked of ``model``; its ``owner`` is whose the ``opaque`` of an answer is."""
        return Addressee(self.wire.name, str(self.settings.base_url), model, self.rules)

    def chat_stream(
        self,
        *,
        model: str,
        messages: Sequence[JsonObject],
        max_tokens: int | None = None,
        tools: Sequence[JsonObject] | None = None,
        temperature: float | None = None,
        headers: Mapping[str, str] | None = None,
        think_tag: str | None = None,
        **options: object,
    ) -> Stream[StreamChunk]:
        """Ask, and read the answer as it comes.

        Args:
            model: who answers.
            messages: the conversation, as Chat Completions has it: ``role``, ``content``, ``tool_calls`` ...
            max_tokens: how long the answer may be.
            tools: functions the model may call: ``name``, ``description``, ``parameters`` (their JSON schema).
            temperature: how freely words are chosen.
            headers: of this request, besides the client's own.
            think_tag: the name of the tag between which the model thinks at the beginning of its text, for servers that
                leave it there: ``"think"``. None: tags are text.
            options: all else that the API knows, by its own names.
        """
        asked = chat_options(model, max_tokens, tools, temperature, options)
        heard = told(messages, self.addressee(model))
        return Stream(self, tagged(with_headers(self.wire.chat_stream(heard, asked), headers), think_tag))

    def chat(
        self,
        *,
        model: str,
        messages: Sequence[JsonObject],
        max_tokens: int | None = None,
        tools: Sequence[JsonObject] | None = None,
        temperature: float | None = None,
        think_tag: str | None = None,
        **options: object,
    ) -> ChatResult:
        """Ask, and wait for the whole answer. The arguments are those of ``chat_stream``.

        Raises:
            ProviderError: there is none, it failed, or it was stopped before its end.
        """
        asked = chat_options(model, max_tokens, tools, temperature, options)
        heard = told(messages, self.addressee(model))
        return untagged(self.wire.result(self.send(self.wire.chat(heard, asked))), think_tag)


class ResponsesProvider(_Provider):
    """Chats over the Responses API. With ``background=True`` a stream that is cut goes on by itself."""

    def chat_resume(
        self, id: str, *, starting_after: int | None = None, think_tag: str | None = None
    ) -> Stream[StreamChunk]:
        """Read a background answer again, behind an event, for example after a crash of this program.

        Args:
            id: the ``id`` of its stream.
            starting_after: the ``sequence_number`` of its stream; None gives all chunks. All events are read anew, so
                that ``partial`` and the indexes of tool calls are those of the whole answer.
            think_tag: as it was given to ``chat_stream``.
        """
        return Stream(self, tagged(chat_resume(id, starting_after), think_tag))

    def retrieve(self, id: str) -> Response:
        """A background answer as it is now, also when it is too old to be read as a stream."""
        return Response.read(self.send(responses_requests.retrieve(id)))

    def cancel(self, id: str) -> Response:
        """End a background answer, and return what it is then."""
        return Response.read(self.send(responses_requests.cancel(id)))


class ChatCompletionsProvider(_Provider):
    """Chats over the Chat Completions API, which most local servers and gateways speak."""

    wire = ChatCompletionsWire()


class AnthropicProvider(_Provider):
    """Chats over the Anthropic Messages API."""

    wire = AnthropicWire()
