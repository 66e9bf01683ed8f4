"""One stream of events as a caller sees it, over as many connections as it takes. No I/O.

``StreamCall`` is what was asked for; ``EventReader`` is what a face drives: it says what to request, takes the bytes,
gives the events, and decides after each loss whether to wait, to end or to raise.
"""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from types import NoneType
from typing import Final, Self, Unpack

from ..errors import InvalidInput, StreamFormatError
from ..http.backoff import ReconnectBackoff
from ..http.call import HttpCall, Options, header_lists
from ..http.errors import APIError, ClientError, ConnectionLost, ResponseInvalid
from ..http.packages import httpx2
from ..http.retry import UNSET, RetryConfig, Unset
from ..sse import SSEMessage
from .events import ConnectedEvent, SessionDeletedEvent, StreamEvent, decode_event
from .resume import CONTROL, Resume

__all__ = ["EventReader", "OnReconnect", "ReaderView", "StreamCall", "stream_events"]

OnReconnect = Callable[[int, float, ClientError | None], None]
"""Called before each wait: which attempt this is (from 1), the seconds to wait, and the error; None: a clean end."""

HEARTBEAT_TIMEOUT: Final = 45.0
"""Seconds of silence after which a connection counts as dead: three of the server's heartbeats."""


@dataclass(frozen=True, slots=True)
class StreamCall:
    """What a caller of ``stream_events`` asked for."""

    session_id: str
    last_event_id: str | None = None
    from_: str | int | None = None
    reconnect: bool = True
    quiet: bool = False
    on_reconnect: OnReconnect | None = None
    options: Options = field(default_factory=lambda: Options())

    @property
    def retries(self) -> RetryConfig | Unset | None:
        """The caller's wish for the opening."""
        return self.options.get("retries", UNSET)


def stream_events(
    *,
    session_id: str,
    last_event_id: str | None = None,
    from_: str | int | None = None,
    reconnect: bool = True,
    quiet: bool = False,
    on_reconnect: OnReconnect | None = None,
    **options: Unpack[Options],
) -> StreamCall:
    """Open the stream of a session's events: a context manager, and an iterator of typed events.

    A cut connection is made again by itself, behind the last event; nothing is lost or doubled. Iteration ends after
    ``session_deleted``, or when the stream is closed. An error before the stream starts is raised by this call, one
    that ends it (the session is gone, nobody answers for ten minutes) by the iteration.

    Args:
        session_id: the session.
        last_event_id: go on behind this event, for example the ``last_event_id`` of an earlier stream.
        from_: without ``last_event_id``: ``"start"`` (the whole history), ``"tail"`` (only what is new) or an offset.
            None starts with the running turn, or at the tail.
        reconnect: False ends the iteration at the first end of the connection; ``ConnectionLost`` if it was a cut.
        quiet: leave out ``connected`` and ``heartbeat``, except a ``connected`` that says ``reset``.
        on_reconnect: called before each wait.
    """
    if not session_id:
        raise InvalidInput("A session id is expected, not an empty text.")
    return StreamCall(session_id, last_event_id, from_, reconnect, quiet, on_reconnect, options)


class EventReader:
    """The state of one stream.

    Args:
        call: what is followed, and from where.
        heartbeat_timeout: seconds of silence after which a connection is taken for lost.
        backoff: how long to wait before it is asked for again.
        random: from 0 to 1.
        clock: seconds of a clock that nobody sets.

    Attributes:
        last_event_id: the id of the last event that was handed out.
        headers: of the newest answer, as lists.
        ended: nothing follows, and nothing is to be reconnected.
    """

    def __init__(
        self,
        call: StreamCall,
        *,
        heartbeat_timeout: float = HEARTBEAT_TIMEOUT,
        backoff: ReconnectBackoff | None = None,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.last_event_id = call.last_event_id
        self.headers: dict[str, list[str]] = {}
        self.ended = False
        self._call = call
        self._resume = Resume(
            call.last_event_id, heartbeat_timeout=heartbeat_timeout, backoff=backoff, random=random, clock=clock
        )
        self._messages: deque[SSEMessage] = deque()

    @property
    def reset(self) -> bool:
        """Whether the newest connection could not go on where the one before had ended."""
        return self._resume.reset

    def connect(self) -> HttpCall[None]:
        """The request for the next connection."""
        headers = {"accept": "text/event-stream", "accept-encoding": "identity", "cache-control": "no-store"}
        headers |= self._resume.connect()
        query = {"sessionId": self._call.session_id, "client": "legato"}
        if self._call.from_ is not None and "last-event-id" not in headers:
            query["from"] = str(self._call.from_)
        return HttpCall("GET", "/stream", NoneType, query=query, headers=headers, options=self._call.options)

    def opened(self, response: httpx2.Response) -> None:
        """Take note of a good answer's head.

        Raises:
            ResponseInvalid: it is not an event stream.
        """
        kind = response.headers.get("content-type", "")
        if kind.partition(";")[0].strip().lower() != "text/event-stream":
            raise ResponseInvalid(f"An event stream was expected, not {kind!r}.", content_type=kind)
        self.headers = header_lists(response.headers)
        self._resume.opened(response.headers.get("legato-cursor"), response.headers.get("legato-incarnation"))

    def receive(self, chunk: bytes) -> None:
        """Take bytes of the body; ``next()`` gives what they complete.

        Raises:
            ResponseInvalid: a line or an event beyond all bounds.
        """
        try:
            self._messages.extend(self._resume.receive(chunk))
        except StreamFormatError as exc:
            self.ended = True
            raise ResponseInvalid(exc.message, **exc.detail) from exc

    def next(self) -> StreamEvent | None:
        """The next event; None when more bytes are needed, or none will come (``ended``).

        Raises:
            ResponseInvalid: an event that is not as documented. The next call goes on behind it.
        """
        while self._messages:
            message = self._messages.popleft()
            self.last_event_id = message.id or None
            event = decode_event(message)
            if event is None or (self._call.quiet and _is_noise(event)):
                continue
            if isinstance(event, SessionDeletedEvent):
                self.ended = True
                self._messages.clear()
            return event
        return None

    def lost(self, error: ClientError | None) -> float | None:
        """How many seconds to wait before the next ``connect()``; None: the stream has ended.

        Args:
            error: why there is no connection; None when the server ended it properly.

        Raises:
            ClientError: ``error``, when trying again is of no use.
        """
        if error is None and not self._call.reconnect:
            self.ended = True
            return None
        wait = self._wait(error) if self._call.reconnect else None
        if wait is None:
            self.ended = True
            # 204 is how an event stream is told not to come back.
            if isinstance(error, APIError) and error.status_code == 204:
                return None
            raise error or ConnectionLost("The server ended each connection, without an event.", silent=False)
        if self._call.on_reconnect is not None:
            self._call.on_reconnect(self._resume.attempts, wait, error)
        return wait

    def _wait(self, error: ClientError | None) -> float | None:
        if isinstance(error, APIError):
            if error.status_code == 204 or not error.passing:
                return None
            return self._resume.lost(retry_after=error.retry_after)
        return self._resume.lost() if error is None or error.passing else None


class ReaderView:
    """What both faces' streams show of their ``EventReader``."""

    _reader: EventReader

    @property
    def headers(self) -> dict[str, list[str]]:
        """The headers of the newest connection's answer, as lists, by lower-case name."""
        return self._reader.headers

    @property
    def last_event_id(self) -> str | None:
        """The id of the last event that was handed out; a later ``stream_events`` goes on behind it."""
        return self._reader.last_event_id

    @property
    def reset(self) -> bool:
        """Whether the newest connection could not go on where the one before had ended."""
        return self._reader.reset

    @property
    def result(self) -> Self:
        """This stream, for programs that were written for the Mix SDK."""
        return self


def _is_noise(event: StreamEvent) -> bool:
    reset = isinstance(event, ConnectedEvent) and event.data.reset
    return event.event in CONTROL and not reset
