"""Our HTTP protocol: uvicorn's, with bounds of its own, times by when things are to be done, and *lines*.

A line lets a stream be written to the connection without the request's task, which ends once the head is out: what is
the same for many readers is framed once, and a reader who waits costs a connection and nothing else.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from ..errors import InvalidInput, LegatoError
from .adaptor import LINE, PEER
from .connections import Connections, refusal
from .traffic import BudgetSpent, RequestTimeout, Traffic

logger = logging.getLogger("legato")

WRITE_BUFFER = 16_384
"""Bytes that may wait in the process for a reader before its stream is held up; uvicorn's own bound is 64 KiB."""
HEAD_BYTES = 65_536
"""Bytes that the head of a request may have; so many may also come behind a request that is being answered, or of
a body's chunks and trailers without any of the body."""

HEAD_FIELDS = 256
"""Fields that the head of a request may have."""
FIELD_COST = 128
"""Bytes that one takes here besides its own."""
WAITING = 16
"""Requests that may wait on a connection behind the one that is being answered; HTTP has it that clients ask again for
what was not."""
GRACE = 5.0
"""Seconds that whoever reads a body has to refuse it before its connection is ended."""
LINGER = 5.0
"""Seconds in which the rest of a body may come that nobody reads: its sender might else not see why."""

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


class BadHead(InvalidInput):
    """The head of a request is none that can be acted upon."""

    code = "bad_request"


class HTTPProtocol(HttpToolsProtocol):
    """HTTP/1.1 on one connection.

    What is expected of who asks has a time: the end of a head, the end of a body, the next request, and that an answer
    is taken. A stream has its own (``Streams``). What cannot be acted upon is refused; behind an answer that is
    being written nothing can be said, so there it is heard no more, and the connection ends with the answer.

    Args:
        config, server_state, app_state, _loop: of uvicorn.
        connections: of the process, this one among them.
        address: from which it comes, where it has been counted.
    """

    line: HTTPLine | None = None
    """The stream that is being written past its request, if there is one."""
    _in_head = False
    _in_body = False
    _head = 0  # bytes of the head that have come in pieces with nothing else
    _first = 0  # bytes of the piece in which it began
    _fields = 0  # bytes of its fields
    _body = 0  # bytes of the body that have come
    _began = 0.0  # when the head or the body that is being read could begin
    _silent = 0  # bytes since the last of a body that were none: of chunks' sizes and extensions, of trailers
    _behind = 0  # bytes that have come behind a request that is being answered
    _declined = False  # this head offers another protocol, and is to be read again without that
    _deaf = False
    _answering: RequestResponseCycle | None = None

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, object],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        connections: Connections | None = None,
        address: str | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._connections = connections or Connections(Traffic())
        self._traffic = self._connections.traffic
        self._address = address

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See ``asyncio.Protocol``."""
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER)
        self._connections.open += 1
        self._connections.idle(self)
        self._connections.expect(self, self._traffic.head_seconds, self._say_nothing)

    def connection_lost(self, exc: Exception | None) -> None:
        """See ``asyncio.Protocol``."""
        self._connections.open -= 1
        if self._address is not None:
            self._connections.count_out(self._address)
        self._connections.busy(self)
        self._connections.met(self)
        self._connections.met(self.flow)
        self._connections.let_head_go(self)
        self._connections.let_head_go(self.flow)
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
        self._behind = 0
        self._connections.let_head_go(self.flow)
        if self.transport.is_closing():  # once it has been taken
            self._connections.expect(self, self._traffic.write_seconds, self.transport.abort)
        elif self._answering is not None:
            if self._in_head or self._in_body:  # until now it was us who did not read
                self._expect_more()
        else:
            self._unset_keepalive_if_required()
            if self._in_body:  # nobody wants the rest of it
                self._connections.expect(self, min(LINGER, self._traffic.body_seconds), self.close_idle)
            elif not self._in_head:
                self._connections.idle(self)
                self._connections.expect(self, self._traffic.idle_seconds, self.close_idle)

    def _take_line_back(self) -> None:
        """Let a request and its line, which know each other, go when they are not needed: without the collector."""
        cycle, self._answering = self._answering, None
        if cycle is not None and cycle.scope is not None:
            cycle.scope.pop("extensions", None)

    # Writing ----------------------------------------------------------------------------------------------------------

    def pause_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().pause_writing()
        if self.line is not None:
            self.line.full = True
        else:
            self._connections.expect(self.flow, self._traffic.write_seconds, self._untaken)

    def resume_writing(self) -> None:
        """See ``asyncio.Protocol``."""
        super().resume_writing()
        if self.line is not None:
            self.line.full = False
        else:
            self._connections.met(self.flow)

    def _untaken(self) -> None:
        if self.line is None:
            logger.info("who was answered took nothing for a while and was cut off")
            self._connections.refused["write_seconds"] += 1
            self.transport.abort()

    # Reading ----------------------------------------------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        """See ``asyncio.Protocol``."""
        if self._deaf:
            return
        in_head, in_body, body = self._in_head, self._in_body, self._body
        try:
            rest: bytes | None = data
            while rest is not None:
                rest = self._feed(rest)
        except httptools.HttpParserError as exc:
            cause = exc.__context__
            self._refuse(cause if isinstance(cause, LegatoError) else BadHead(f"This is no HTTP request: {exc}."))
            return
        if self._in_head:
            if in_head:
                self._head += len(data)
            else:
                self._first = len(data)
            if self._head > HEAD_BYTES:
                self._refuse(BadHead(f"The head of a request may have {HEAD_BYTES} bytes."))
            elif not self._connections.hold_head(self, self._first + self._head + FIELD_COST * len(self.headers)):
                most = self._traffic.head_bytes
                self._refuse(BudgetSpent(f"This server holds {most} bytes of heads at once; try again."))
        elif in_body and self._in_body:
            self._silent = self._silent + len(data) if self._body == body else 0
            if self._silent > HEAD_BYTES:
                self._refuse(BadHead(f"A body may have {HEAD_BYTES} bytes between two chunks, and behind the last."))
        if self._answering is not None and (self._in_head or self.pipeline):
            self._behind += len(data)
            if self._behind > HEAD_BYTES or not self._connections.hold_head(self.flow, self._behind):
                self._hear_no_more()

    def _feed(self, data: bytes) -> bytes | None:
        """Give the parser what has come; what is to be given to it besides."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as exc:
            # An offer may be declined, and then the request is one like all others, its body included. The parser can
            # only take it; so it is another one that is given the request, without the offer.
            method, version = self.parser.get_method(), self.parser.get_http_version().encode()
            head = [b"%b %b HTTP/%b\r\n" % (method, self.url, version)]
            head += [b"%b: %b\r\n" % field for field in _without_offer(self.headers)]
            self.parser = httptools.HttpRequestParser(self)
            self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # it is not read
            return b"%b\r\n%b" % (b"".join(head), data[exc.args[0] :])
        return None

    def on_message_begin(self) -> None:
        """A request begins."""
        if self._deaf:
            return
        super().on_message_begin()
        self._in_head, self._head, self._fields, self._declined = True, 0, 0, False
        self._connections.busy(self)
        self._expect_more()

    def on_url(self, url: bytes) -> None:
        """A piece of the request's target."""
        if self._deaf:
            return
        super().on_url(url)
        if len(self.url) > HEAD_BYTES:
            raise BadHead(f"The head of a request may have {HEAD_BYTES} bytes.")

    def on_header(self, name: bytes, value: bytes) -> None:
        """A field of the head; or of a trailer, which could else add to what has been checked."""
        if self._deaf or not self._in_head:
            return
        self._fields += len(name) + len(value) + 4
        if len(self.headers) >= HEAD_FIELDS or self._fields > HEAD_BYTES:
            raise BadHead(f"The head of a request may have {HEAD_FIELDS} fields and {HEAD_BYTES} bytes.")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head of a request is there."""
        if self._deaf:
            return
        check_head(self.parser.get_method(), self.parser.get_http_version(), self.url, self.headers)
        if self.parser.should_upgrade():
            self._declined = True
            return
        self._in_head = False
        self._connections.let_head_go(self)
        self._in_body, self._body, self._silent = True, 0, 0
        self._expect_more()
        super().on_headers_complete()
        if len(self.pipeline) > WAITING:
            self._hear_no_more()

    def on_body(self, body: bytes) -> None:
        """A piece of the body."""
        self._body += len(body)
        if not self._deaf:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is there."""
        if self._declined or self._deaf:
            return
        super().on_message_complete()
        self._in_body = False
        self._connections.met(self)
        if self._answering is None and not self.transport.is_closing():  # it was answered before its end
            self._connections.idle(self)
            self._connections.expect(self, self._traffic.idle_seconds, self.close_idle)

    def forget(self, cycle: RequestResponseCycle) -> None:
        """Let go of the head of this request, unless the next one is here already."""
        if self.cycle is cycle and not self._in_head:
            self.scope, self.headers = None, []  # type: ignore[assignment]

    def _say_nothing(self) -> None:
        """Close a connection on which nothing has been asked yet."""
        self._connections.refused["head_seconds"] += 1
        self.close_idle()

    def close_idle(self) -> None:
        """See ``Idle``. It is nobody's fault, and nothing is said."""
        self._deaf = True
        self.transport.close()
        self._connections.expect(self, self._traffic.write_seconds, self.transport.abort)

    def _expect_more(self) -> None:
        """Give what has begun its time from now on."""
        self._began = self._connections.clock()
        seconds = self._traffic.body_seconds + GRACE if self._in_body else self._traffic.head_seconds
        self._connections.expect(self, seconds, self._late)

    def _late(self) -> None:
        """What has begun has not ended in its time."""
        if self._in_body:
            has = self._traffic.body_seconds + GRACE + self._body / self._traffic.body_rate
            left = self._began + has - self._connections.clock()
            if left > 0:
                self._connections.expect(self, left, self._late)
                return
        if self.flow.read_paused:  # it is us who do not read
            self._expect_more()
            return
        self._connections.refused["body_seconds" if self._in_body else "head_seconds"] += 1
        self._refuse(RequestTimeout("The request did not come in time."))

    def _refuse(self, error: LegatoError) -> None:
        """Read no more of this connection, and say why if nothing else is being said."""
        answering = self._answering
        if self._in_body and answering is self.cycle and answering is not None and not answering.response_complete:
            # It is this request, whose handler may wait for more of it, or write already.
            answering.disconnected = True
            answering.message_event.set()
            if answering.response_started:
                self.transport.abort()
                return
        elif answering is not None and not answering.response_complete:
            self._hear_no_more()
            return
        self._deaf = True
        if not self.transport.is_closing():
            self.transport.write(refusal(error))
        self.close_idle()

    def _hear_no_more(self) -> None:
        """Ignore what comes from now on, and end with the last answer to what has come in full."""
        self._deaf = True
        self._connections.met(self)
        if self.pipeline and self._in_body:
            self.pipeline.popleft()
        last = self.pipeline[0][0] if self.pipeline else self._answering
        if last is not None:
            last.keep_alive = False

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        peer = self.client[0] if self.client else ""
        extensions: dict[str, Any] = {LINE: HTTPLine(self, cycle), PEER: peer}
        cycle.scope["extensions"] = extensions
        super()._start_asgi_task(cycle, app)


# Heads ----------------------------------------------------------------------------------------------------------------

_HOST = re.compile(rb"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+;=%-]{1,255})(:[0-9]{1,5})?")


def check_head(method: bytes, version: str, target: bytes, fields: Sequence[tuple[bytes, bytes]]) -> None:
    """Refuse a head that two programs could read in two ways; what the parser passes is looked at here.

    Args:
        fields: names in lower case.

    Raises:
        BadHead: it is one.
    """
    if version not in ("1.0", "1.1"):
        raise BadHead(f"This server speaks HTTP/1.1, got {version}.")
    if method == b"CONNECT":
        raise BadHead("This server is no proxy.")
    hosts = [value for name, value in fields if name == b"host"]
    if len(hosts) > 1 or (not hosts and version == "1.1"):
        raise BadHead(f"A request names one Host, got {len(hosts)}.")
    if hosts and _HOST.fullmatch(hosts[0].strip(b" \t")) is None:
        raise BadHead(f"Host is a name or an address, and a port if need be, got {hosts[0][:100]!r}.")
    if b"#" in target:
        raise BadHead("The target of a request has no fragment.")
    if not target.startswith(b"/"):
        scheme, mark, rest = target.partition(b"://")
        authority = re.split(rb"[/?]", rest, maxsplit=1)[0]
        if not mark or scheme.lower() not in (b"http", b"https") or len(authority) == len(rest):
            raise BadHead("The target of a request is a path.")
        if not hosts or authority.lower() != hosts[0].lower().strip(b" \t"):
            raise BadHead("The target of a request names another host than Host does.")
    codings = [value.lower().strip(b" \t") for name, value in fields if name == b"transfer-encoding"]
    if codings and (codings != [b"chunked"] or version == "1.0"):
        raise BadHead("A body comes as it is or in chunks, in no other coding.")


def _without_offer(fields: Sequence[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """The fields of a head without those that offer another protocol."""
    for name, value in fields:
        if name == b"connection":
            tokens = [token.strip() for token in value.split(b",")]
            value = b", ".join(token for token in tokens if token.lower() not in (b"upgrade", b"http2-settings"))
        if name not in (b"upgrade", b"http2-settings"):
            yield name, value
