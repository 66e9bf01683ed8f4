"""Our HTTP protocol: uvicorn's, with bounds of its own, and with *lines*.

A line lets a stream be written to the connection without the request's task, which ends once the head is out: what is
the same for many readers is framed once, and a reader who waits costs a connection and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from .adaptor import LINE

WRITE_BUFFER = 16_384
"""Bytes that may wait in the process for a reader before its stream is held up; uvicorn's own bound is 64 KiB."""
HEAD_BYTES = 65_536
"""Bytes that the head of a request may have; uvicorn keeps all that comes until the head is over."""

NOBODY = asyncio.Event()
"""What nobody waits for."""


class HTTPLine:
    """The body of one response, written past the request's task; see ``Line``.

    Args:
        protocol: of the connection.
        cycle: the request and its response.
    """

    __slots__ = ("_cycle", "_lost", "_on_response", "_protocol", "framing", "full", "put", "send")

    def __init__(self, protocol: HTTPProtocol, cycle: RequestResponseCycle) -> None:
        self.full = False
        self.framing: object = None
        self.send: Any = cycle.send
        self.put: Callable[[bytes], None] = protocol.transport.write
        self._protocol = protocol
        self._cycle = cycle
        self._lost: Callable[[], None] | None = None
        self._on_response = cycle.on_response

    def take(self, lost: Callable[[], None]) -> bool:
        """See ``Line``. From here on the cycle is not to know of the response, whose task is about to end."""
        cycle, protocol = self._cycle, self._protocol
        if cycle.disconnected:
            return False
        cycle.disconnected = True
        self.framing = "chunked" if cycle.chunked_encoding else "plain"
        self._lost = lost
        self.full = protocol.flow.write_paused
        protocol.line = self
        protocol.flow.resume_reading()  # else nobody hears that the reader leaves, if another request waits behind
        # What only the request needed would be a third of what a reader who waits costs.
        cycle.scope = None  # type: ignore[assignment]
        cycle.message_event = NOBODY
        protocol.forget(cycle)
        return True

    def frame(self, body: bytes) -> bytes:
        """See ``Line``."""
        if self.framing == "chunked" and body:  # an empty chunk would be the end
            return b"%x\r\n%b\r\n" % (len(body), body)
        return body

    async def write(self, body: bytes) -> None:
        """See ``Line``."""
        while self.full and self._lost is not None:
            await self._protocol.flow.drain()
        if body:
            self.put(self.frame(body))

    def end(self, *, proper: bool) -> None:
        """See ``Line``."""
        self._let_go()
        cycle, transport = self._cycle, self._protocol.transport
        if not proper:
            if self.full:
                transport.abort()  # to close it would be to wait for who does not read
            else:
                transport.close()
            return
        if self.framing == "chunked":
            self.put(b"0\r\n\r\n")
        cycle.response_complete = True
        if not cycle.keep_alive:
            transport.close()
        self._on_response()

    def abort(self) -> None:
        """See ``Line``."""
        self._let_go()
        self._protocol.transport.abort()

    def lost(self) -> None:
        """The connection is gone."""
        lost, self._lost = self._lost, None
        if lost is not None:
            lost()

    def _let_go(self) -> None:
        self._lost = None
        self._protocol.line = None


class HTTPProtocol(HttpToolsProtocol):
    """HTTP/1.1 on one connection."""

    line: HTTPLine | None = None
    """The stream that is being written past its request, if there is one."""
    _in_head = False
    _head = 0
    _answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        super().connection_lost(exc)
        if self.line is not None:
            self.line.lost()
        # uvicorn tells the newest request. While that one waits behind a stream, the stream would not hear of it.
        cycle = self._answering
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        self._take_line_back()

    def on_response_complete(self) -> None:
        """A response is over."""
        self._take_line_back()
        super().on_response_complete()

    def _take_line_back(self) -> None:
        """Let a request and its line, which know each other, go when they are not needed: without the collector."""
        cycle, self._answering = self._answering, None
        if cycle is not None and cycle.scope is not None:
            cycle.scope.pop("extensions", None)

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().pause_writing()
        if self.line is not None:
            self.line.full = True

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().resume_writing()
        if self.line is not None:
            self.line.full = False

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        unfinished = self._in_head
        super().data_received(data)
        if unfinished and self._in_head:
            self._head += len(data)
            if self._head > HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("The head of the request is too large.")

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._in_head, self._head = True, 0

    def on_headers_complete(self) -> None:
        """The head of a request is there."""
        self._in_head = False
        super().on_headers_complete()

    def forget(self, cycle: RequestResponseCycle) -> None:
        """Let go of the head of this request, unless the next one is here already."""
        if self.cycle is cycle and not self._in_head:
            self.scope, self.headers = None, []  # type: ignore[assignment]

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        extensions: dict[str, Any] = {LINE: HTTPLine(self, cycle)}
        cycle.scope["extensions"] = extensions
        super()._start_asgi_task(cycle, app)
