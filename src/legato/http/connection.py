"""One connection of HTTP/1.1 on asyncio: a request and its answer, and then the next one. Made for long streams.

A piece of a body costs one callback of the event loop and one wake of its reader: no task, no lock, no timer of its
own. What bounds the waits is one timer for each connection, which is looked at when it is due, not moved by each piece.
"""

from __future__ import annotations

import asyncio
import math
import select
import sys
from collections.abc import Callable
from typing import Final, NamedTuple, Self, cast

import httpx2
from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

__all__ = ["HttpConnection", "HttpExchange", "Origin", "ResponseHead"]

Origin = tuple[str, str, int]
"""A scheme, a host and a port."""

# The bound of h11, which httpx2 stands on.
MAX_HEAD_BYTES: Final = 100 * 1024

# While its reader does not come, a body is received up to here, and by what one call of the system gives beyond it.
MAX_HELD_BYTES: Final = 64 * 1024


class HttpConnection(asyncio.Protocol):
    """A connection, with at most one request under way. It belongs to the event loop that it was made on.

    Args:
        origin: whom it leads to.
        on_lost: called when it has ended, whoever ended it.

    Attributes:
        exchange: the request that is under way; None: it is free.
        paused: nothing is received, see ``pause``.
    """

    def __init__(self, origin: Origin, on_lost: Callable[[HttpConnection], None]) -> None:
        self.origin = origin
        self.loop = asyncio.get_running_loop()
        self.exchange: HttpExchange | None = None
        self._on_lost = on_lost
        self._transport: asyncio.Transport
        self._blocked = False  # the transport takes no more for now
        self.paused = False
        self._waiter: asyncio.Future[None] | None = None
        self._late: type[httpx2.TimeoutException] = httpx2.ReadTimeout
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when the timer is
        self._deadline = math.inf  # what it is for

    async def send(self, data: bytes, timeout: float | None) -> None:
        """Send a request, until the system has nearly all of it, or the server has begun to answer.

        Args:
            data: the whole request.
            timeout: seconds; None: without end.

        Raises:
            httpx2.WriteTimeout: the server does not take it.
        """
        assert self.exchange is not None
        if self._transport.is_closing():
            self.exchange.end(None)
            return
        self._transport.write(data)
        while self._blocked and not (self.exchange.head or self._transport.is_closing()):
            await self.wait(timeout, httpx2.WriteTimeout)

    def wait(self, seconds: float | None, late: type[httpx2.TimeoutException]) -> asyncio.Future[None]:
        """Wait until something has happened.

        Args:
            seconds: None: without end.
            late: raised after them.
        """
        if self._waiter is not None and not self._waiter.done():
            raise RuntimeError("The body of an answer has one reader at a time.")
        self.call_in(seconds)
        self._late = late
        self._waiter = self.loop.create_future()
        return self._waiter

    def is_open(self) -> bool:
        """Whether it can be asked. The system is asked, too: it knows of an end before the event loop does."""
        if self._transport.is_closing() or self.loop.time() > self._deadline:
            return False
        descriptor = self._transport.get_extra_info("socket").fileno()
        if sys.platform == "win32":
            return not select.select([descriptor], [], [], 0)[0]
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return not poll.poll(0)

    def free(self, seconds: float | None) -> bool:
        """Whether it can be asked again after this exchange; it is closed if not.

        Args:
            seconds: after which it closes, unless it is asked again; None: never.
        """
        if self.exchange is None or not self.exchange.reusable or self._blocked or self._transport.is_closing():
            self.close()
            return False
        self.exchange = None
        self.resume()
        self.call_in(seconds)
        return True

    def close(self) -> None:
        """End it at once. What belongs to another event loop (of a thread, or from before a fork) is left to that."""
        if asyncio._get_running_loop() is self.loop:
            if self.exchange is not None:  # an end that we make ourselves is none of the body's
                self.exchange.end(ConnectionAbortedError("The connection was closed here."))
            self._transport.abort()

    def pause(self) -> None:
        """Receive nothing until ``resume``."""
        if not self.paused:
            self.paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Receive again."""
        if self.paused and not self._transport.is_closing():
            self.paused = False
            self._transport.resume_reading()

    # The timer --------------------------------------------------------------------------------------------------------

    def call_in(self, seconds: float | None) -> None:
        """Be late in so many seconds; None: never."""
        self._deadline = math.inf if seconds is None else self.loop.time() + seconds
        if self._deadline < self._due:
            self._set_timer()

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._deadline
        self._timer = self.loop.call_at(self._due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer, self._due = None, math.inf
        if self.loop.time() < self._deadline:
            if self._deadline < math.inf:
                self._set_timer()
        elif self.exchange is None:
            self.close()
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(self._late("The server was silent for too long."))

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._deadline = math.inf
            self._waiter.set_result(None)

    # What the event loop calls ----------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See ``asyncio.Protocol``."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if self.exchange is None:
            self.close()  # nobody has asked
        else:
            self.exchange.feed(data)
            self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        if self._timer is not None:
            self._timer.cancel()
        if self.exchange is not None:
            self.exchange.end(exc)
        self._wake()
        self._on_lost(self)

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self._blocked = True

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        self._blocked = False
        self._wake()


class ResponseHead(NamedTuple):
    """What comes before a body."""

    status: int
    reason: bytes
    version: bytes
    headers: list[tuple[bytes, bytes]]


class HttpExchange(httpx2.AsyncByteStream):
    """One request over a connection, and its answer as it comes: an async iterator of the body, to be closed.

    Args:
        connection: a free one.
        request: whose errors these are, and whose time-outs.
        on_closed: called once, when the caller is done.

    Attributes:
        head: None before it is here.
        reusable: whether the answer is whole, and the server keeps the connection.
    """

    def __init__(
        self, connection: HttpConnection, request: httpx2.Request, on_closed: Callable[[HttpConnection], None]
    ) -> None:
        connection.exchange = self
        self.head: ResponseHead | None = None
        self.reusable = False
        self._connection = connection
        self._request = request
        self._on_closed: Callable[[HttpConnection], None] | None = on_closed
        self._timeout: float | None = None
        self._parser: HttpResponseParser | None = HttpResponseParser(self)
        # As httpx2 has it. No other program reads this answer, so there is none that could understand it otherwise.
        self._parser.set_dangerous_leniencies(
            lenient_chunked_length=True, lenient_optional_cr_before_lf=True, lenient_spaces_after_chunk_size=True
        )
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._parts: list[bytes] = []
        self._held = 0  # bytes in the parts
        self._beside = 0  # bytes since the last that were of the body
        self._over = False
        self._keep_alive = False
        self._until_end = False  # the body is as long as the connection
        self._error: httpx2.TransportError | None = None  # why nothing follows

    # For the caller ---------------------------------------------------------------------------------------------------

    async def ask(self, data: bytes) -> ResponseHead:
        """The head of the answer.

        Args:
            data: the whole request, as bytes.

        Raises:
            httpx2.TransportError: there is none.
        """
        timeouts = self._request.extensions.get("timeout", {})
        await self._connection.send(data, timeouts.get("write"))
        while self.head is None:
            if self._error is not None:
                raise self._error
            await self._connection.wait(timeouts.get("read"), httpx2.ReadTimeout)
        return self.head

    def __aiter__(self) -> Self:
        self._timeout = self._request.extensions.get("timeout", {}).get("read")
        return self

    async def __anext__(self) -> bytes:
        """All bytes of the body that are here, at least one. Cancelling it closes the connection.

        Raises:
            httpx2.TransportError: the body is not whole.
        """
        parts = self._parts
        while not parts:
            if self._over:
                raise StopAsyncIteration
            try:
                if self._error is not None:
                    raise self._error
                await self._connection.wait(self._timeout, httpx2.ReadTimeout)
            except BaseException as exc:
                self._connection.close()
                if isinstance(exc, httpx2.TransportError):
                    exc.request = self._request
                raise
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        parts.clear()
        self._held = 0
        if self._connection.paused and self._on_closed is not None:
            self._connection.resume()
        return body

    async def aclose(self) -> None:
        """Be done with it: the connection is free for the next request, or closed if there is more to come."""
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            on_closed(self._connection)

    # For the connection -----------------------------------------------------------------------------------------------

    def feed(self, data: bytes) -> None:
        """Take what was received."""
        if self._parser is None:  # behind the end, where nothing belongs
            self.reusable = False
            return
        self._beside += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as exc:
            self.reusable = False
            if not self._over:
                self._fail(f"The answer is no HTTP/1.1: {exc}")
        if self._over:
            self._parser = None
        elif self._beside > MAX_HEAD_BYTES:
            self._fail(f"More than {MAX_HEAD_BYTES} bytes came that are not of a body.")
        elif self._held > MAX_HELD_BYTES:
            self._connection.pause()

    def _fail(self, why: str) -> None:
        self._parser = None
        self._error = self._error or httpx2.RemoteProtocolError(why)
        self._connection.close()

    def end(self, exc: Exception | None) -> None:
        """Take note that the connection has ended, by this error."""
        self.reusable = False
        self._parser = None
        if self._error is not None or self._over:
            return
        if exc is not None:
            self._error = httpx2.ReadError(str(exc))
        elif self.head is None:
            self._error = httpx2.RemoteProtocolError("Server disconnected without sending a response.")
        elif self._until_end:
            self._over = True
        else:
            self._error = httpx2.RemoteProtocolError("peer closed connection without sending complete message body")

    # What the parser calls --------------------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        """See ``httptools``."""
        if self._over:
            raise ValueError("An answer came that nobody had asked for.")

    def on_status(self, reason: bytes) -> None:
        """See ``httptools``."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """See ``httptools``. After the body come trailers, which nobody reads."""
        if self.head is None:
            self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """See ``httptools``. Informational answers (1xx) come before the one that counts."""
        assert self._parser is not None
        status = self._parser.get_status_code()
        if status < 200:
            self._reason, self._headers = b"", []
            return
        version = b"HTTP/" + self._parser.get_http_version().encode()
        self.head = ResponseHead(status, self._reason, version, self._headers)
        self._keep_alive = self._parser.should_keep_alive()
        lengths = {b"content-length", b"transfer-encoding"}
        self._until_end = not any(name.lower() in lengths for name, _ in self._headers)

    def on_body(self, body: bytes) -> None:
        """See ``httptools``."""
        self._parts.append(body)
        self._held += len(body)
        self._beside = 0

    def on_message_complete(self) -> None:
        """See ``httptools``."""
        if self.head is not None:
            self._over = True
            self.reusable = self._keep_alive
