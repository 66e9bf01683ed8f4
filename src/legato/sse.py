"""Server-Sent Events as bytes: ``SSEMessage``, ``Decoder.feed`` and ``encode``. No I/O and no clock.

The stream format of WHATWG HTML, section 9.2. This module knows lines and fields; it does not know what an id means,
when to reconnect, or where the bytes come from. The one rule: the messages never depend on how the bytes were cut
into chunks.
"""

from __future__ import annotations

from typing import Final, NoReturn

import msgspec

from .errors import FrameError, StreamFormatError

__all__ = ["HEARTBEAT", "MAX_EVENT_BYTES", "MAX_LINE_BYTES", "ODD_LINE", "Decoder", "SSEMessage", "encode"]

# One comment line and no blank line. After an id, a blank line makes the httpx-sse family of decoders (openai and
# anthropic too) invent an empty event; a lone comment line is nothing to every client.
HEARTBEAT: Final = b":\n"

# Agents send tool results of several MiB on one data line, so lines may be long, but not endless.
MAX_LINE_BYTES: Final = 8 * 1024 * 1024
MAX_EVENT_BYTES: Final = 16 * 1024 * 1024

# Exact in JavaScript and in a float; and int() refuses thousands of digits with a ValueError.
_RETRY_DIGITS: Final = 15

# As an int: `13 in chunk` takes 20 ns where `b"\r" in chunk` takes 140.
_CR: Final = 13

# A long unfinished line is kept in pieces of at least this many bytes. Growing one bytearray costs ten times as much.
_PIECE: Final = 4096

# A short str costs some 50 bytes besides its text, so many short data lines of one event are joined in groups.
_GROUP: Final = 1024

ODD_LINE: Final = "\n"
"""The event of a message that is a line without a known field; no stream can name it so."""

_FIELDS: Final = frozenset({"data", "event", "id", "retry"})


class SSEMessage(msgspec.Struct, frozen=True, gc=False):
    """One event of a stream.

    Attributes:
        data: the text, its lines separated by LF.
        event: the event's type.
        id: the last event id after this event; ids are sticky, and "" means none. To be encoded: "" writes no id.
        retry: the reconnection time in milliseconds that stood among this event's lines; None means none did.
    """

    data: str = ""
    event: str = "message"
    id: str = ""
    retry: int | None = None


class Decoder:
    """Turns the chunks of one response body, cut anywhere, into messages.

    There is nothing to flush: an event that the end of the body leaves unfinished is never delivered and its id does
    not count. Start a new decoder for each connection.

    Args:
        max_line_bytes: the longest line, without its end. ``max_event_bytes`` limits lines too.
        max_event_bytes: the most data of one event: UTF-8, with the LF between its lines.
        odd: give lines that are neither a field nor a comment, too, each as a message of ``ODD_LINE``. The format says
            to ignore them; some servers write their errors so.
        last_event_id: the id that the connection before left; it holds until this one says another, or an empty one.

    Attributes:
        last_event_id: the id to resume after, as of the last finished block, even if that had no data; "" means none.
        retry: the reconnection time in milliseconds, from the last valid ``retry`` line; None means none yet.
            It is what the server wrote, up to 15 digits: clamp it before sleeping.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_error",
        "_event",
        "_groups",
        "_held",
        "_id",
        "_max_event",
        "_max_line",
        "_more",
        "_odd",
        "_pieces",
        "_retry",
        "_size",
        "_started",
        "_tail",
        "last_event_id",
        "retry",
    )

    def __init__(
        self,
        *,
        max_line_bytes: int = MAX_LINE_BYTES,
        max_event_bytes: int = MAX_EVENT_BYTES,
        odd: bool = False,
        last_event_id: str = "",
    ) -> None:
        if min(max_line_bytes, max_event_bytes) < 1:
            raise ValueError(f"A limit must be at least 1 byte, got {max_line_bytes} and {max_event_bytes}.")
        self.last_event_id = self._id = last_event_id
        self.retry: int | None = None
        self._max_line = min(max_line_bytes, max_event_bytes)
        self._max_event = max_event_bytes
        self._odd = odd
        self._error: tuple[str, int] | None = None
        self._started = False  # a line has ended, so a byte order mark is text from here on
        self._after_cr = False  # the last byte was a CR: a LF that comes next belongs to it
        self._tail = b""  # the unfinished line, or what follows its pieces
        self._pieces: list[bytes] = []
        self._held = 0  # bytes in the pieces
        # The unfinished block.
        self._event = ""
        self._retry: int | None = None
        self._data: str | None = None  # the first data line
        self._more: list[str] = []  # the data lines after it
        self._groups = 0  # how many entries of _more are joined groups of lines; they come first
        self._size = 0  # bytes of data, counted from the second line on

    def feed(self, chunk: bytes) -> list[SSEMessage]:
        """Return the events that this chunk completes, in order.

        A CR ends its line at once, without waiting for a LF. Invalid UTF-8 becomes U+FFFD.

        Raises:
            StreamFormatError: a line or an event is beyond its limit (``detail["limit"]``). Events complete before it
                are returned first, and the next call raises, be it ``feed(b"")``. From then on each call does, and
                nothing of the stream is held.
        """
        if self._error is not None:
            self._raise(*self._error)
        if self._after_cr or _CR in chunk:
            chunk = self._normalise(chunk)
        messages: list[SSEMessage] = []
        head, line_end, tail = chunk.rpartition(b"\n")
        if not line_end:
            self._keep(tail)
            return messages
        head = self._tail + head
        self._tail = tail
        try:
            if self._pieces or len(head) + len(tail) > self._max_line:
                self._interpret_long(head, messages)
            else:
                self._interpret(head.decode("utf-8", "replace").split("\n"), messages)
        except StreamFormatError:
            if not messages:
                raise
        return messages

    def _keep(self, chunk: bytes) -> None:
        """Keep a part of a line: short ones as one piece, so that neither time nor memory depends on their number."""
        self._tail += chunk
        if len(self._tail) > _PIECE:
            self._pieces.append(self._tail)
            self._held += len(self._tail)
            self._tail = b""
        if self._held + len(self._tail) > self._max_line:
            self._fail("A line", self._max_line)

    def _normalise(self, chunk: bytes) -> bytes:
        """Return the chunk with each line end as one LF, and note a CR at its end."""
        if self._after_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
            self._after_cr = False
        if chunk:
            self._after_cr = chunk.endswith(b"\r")
        return chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _interpret_long(self, head: bytes, messages: list[SSEMessage]) -> None:
        """Interpret lines of which one is long, up to the first that is too long."""
        lines = head.split(b"\n")
        if self._pieces:
            self._end_pieces(lines)
        for line in lines:
            if len(line) > self._max_line:
                self._fail("A line", self._max_line)
            self._interpret([line.decode("utf-8", "replace")], messages)
        if len(self._tail) > self._max_line:
            self._fail("A line", self._max_line)

    def _end_pieces(self, lines: list[bytes]) -> None:
        """Complete the line in pieces with the first of the lines.

        A data line is interpreted at once: to copy 1 MiB once more, to split off its name, takes a third of its time.
        """
        pieces = [*self._pieces, lines[0]]
        length = self._held + len(lines[0])
        self._pieces, self._held = [], 0
        if length <= self._max_line and pieces[0].startswith(b"data: "):
            del lines[0]
            pieces[0] = pieces[0][6:]
            self._started = True
            value = b"".join(pieces).decode("utf-8", "replace")
            if self._data is None:
                self._data = value
            else:
                self._add_line(self._data, value)
        else:
            lines[0] = b"".join(pieces)

    def _interpret(self, lines: list[str], messages: list[SSEMessage]) -> None:
        """Carry out whole lines; this loop is what decoding costs."""
        if not self._started:
            self._started = True
            lines[0] = lines[0].removeprefix("\ufeff")
        data, event, last_id = self._data, self._event, self._id
        for line in lines:
            # Splitting at ": " takes name, colon and the one optional space in one call. Only what is no field then
            # (a comment, an unknown name, a value without the space) is looked at again.
            name, _, value = line.partition(": ")
            if name == "data":
                if data is None:
                    data = value
                else:
                    self._add_line(data, value)
            elif not line:
                if data is not None:
                    if self._more:
                        data = self._join_lines(data)
                    messages.append(SSEMessage(data, event or "message", last_id, self._retry))
                    data = None
                event = ""
                self._retry = None
                self.last_event_id = last_id
            else:
                if name not in _FIELDS:
                    name, _, value = line.partition(":")
                if name == "id":
                    if "\0" not in value:
                        last_id = value
                elif name == "event":
                    event = value
                elif name == "retry":
                    self._set_retry(value)
                elif name == "data":
                    if data is None:
                        data = value
                    else:
                        self._add_line(data, value)
                elif name and self._odd:
                    messages.append(SSEMessage(line, ODD_LINE, last_id))
        self._data, self._event, self._id = data, event, last_id

    def _set_retry(self, value: str) -> None:
        """Take a reconnection time of ASCII digits; anything else, or beyond 15 digits, is ignored."""
        if value.isascii() and value.isdigit():
            digits = value.lstrip("0") or "0"
            if len(digits) <= _RETRY_DIGITS:
                self.retry = self._retry = int(digits)

    def _add_line(self, first: str, value: str) -> None:
        """Keep a data line that is not the first of its event."""
        more = self._more
        if not more:
            self._size = _utf8_size(first)
        self._size += 1 + _utf8_size(value)
        if self._size > self._max_event:
            self._fail("The data of an event", self._max_event)
        more.append(value)
        if len(more) - self._groups == _GROUP:
            more[self._groups :] = ["\n".join(more[self._groups :])]
            self._groups += 1

    def _join_lines(self, first: str) -> str:
        """Return the whole data of an event of several lines, and forget them."""
        data = "\n".join([first, *self._more])
        self._more, self._groups = [], 0
        return data

    def _fail(self, what: str, limit: int) -> NoReturn:
        """Enter the error state and raise."""
        self._error = (what, limit)
        self._tail, self._pieces, self._data, self._more = b"", [], None, []
        self._raise(what, limit)

    def _raise(self, what: str, limit: int) -> NoReturn:
        # A new error each time: a kept one would keep the frames of its traceback, and the chunk in them.
        raise StreamFormatError(f"{what} of the stream is longer than {limit} bytes.", limit=limit)


def encode(message: SSEMessage) -> bytes:
    """Return the bytes of one event: LF only, in one piece, ``id`` as its last field.

    The id comes last so that an event cut short still leaves its reader with the cursor before it. Line ends in
    ``data`` (CR, LF, CRLF) begin a new data line. The event "message" (or ""), the id "" and the retry None are not
    written. What is decoded again equals the message, but for line ends in ``data`` (all LF then), an ``event`` of ""
    ("message" then) and an ``id`` of "" (the decoder's last id then). Leading spaces survive.

    Raises:
        FrameError: CR, LF or NUL in ``event`` or ``id``; a ``retry`` that is not an int from 0 to 999 999 999 999 999;
            a lone surrogate anywhere.
    """
    event, data, id_, retry = message.event, message.data, message.id, message.retry
    head = tail = ""
    if event and event != "message":
        _refuse_forged("event", event)
        head = f"event: {event}\n"
    if retry is not None:
        if type(retry) is not int or not 0 <= retry < 10**_RETRY_DIGITS:
            raise FrameError(
                f"A retry must be an int of milliseconds, 0 to 999999999999999, got {retry!r:.32}.", field="retry"
            )
        head += f"retry: {retry}\n"
    if "\r" in data:
        data = data.replace("\r\n", "\n").replace("\r", "\n")
    if "\n" in data:
        data = data.replace("\n", "\ndata: ")
    if id_:
        _refuse_forged("id", id_)
        tail = f"id: {id_}\n"
    try:
        return f"{head}data: {data}\n{tail}\n".encode()
    except UnicodeEncodeError as exc:
        raise FrameError("A message cannot be written as UTF-8: it holds a lone surrogate.") from exc


def _refuse_forged(field: str, value: str) -> None:
    """Raise if the value would end its line, or be dropped by every reader."""
    if "\n" in value or "\r" in value or "\0" in value:
        raise FrameError(f"CR, LF or NUL in the {field} of a message: {value[:128]!r}.", field=field)


def _utf8_size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode())
