"""When to reconnect, from where, and after how long: the client's half of a stream without a gap. No I/O.

This module knows cursors, cuts and waiting times; it does not know HTTP, sockets or what events mean. The one rule:
a message that was handed out moves the cursor, and nothing else does, so after any cut the next connection goes on
exactly behind the last message the caller has. (An id by itself does, too, as in browsers, and an empty one takes the
cursor away.)

One round of its life, driven by a face (``sync``, ``aio``)::

    headers = resume.connect()            # the request's headers
    resume.opened(legato_cursor)          # the answer's head was good
    messages = resume.receive(chunk)      # ... for each chunk of the body
    wait = resume.lost()                  # the body ended, however it did; then sleep and connect() again
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable
from typing import Final

from ..check import digits
from ..errors import InvalidInput
from ..http.backoff import MAX_RETRY_AFTER, ReconnectBackoff, Waits, is_final
from ..sse import Decoder, SSEMessage

__all__ = ["CONTROL", "MAX_RETRY_AFTER", "ReconnectBackoff", "Resume", "is_final"]

CONTROL: Final = frozenset({"connected", "heartbeat"})
"""Events that are about the connection; their id repeats where the reader stands."""

_HEALTHY: Final = 30.0
"""Seconds; a connection that is heard for longer is progress, though nothing happens in the session."""


class Resume:
    """Where a reader of a stream stands, and when it should come back.

    Args:
        last_event_id: the cursor to start from; None starts where the server likes.
        heartbeat_timeout: seconds of silence after which the face should call the connection lost.
        backoff: the waiting times.
        random: gives a float from 0 to 1, for the jitter.
        clock: seconds of a clock that never goes back.

    Attributes:
        cursor: the id of the last message handed out; None before the first.
        reset: the server could not continue the cursor: it started this connection as for a new reader.
    """

    def __init__(
        self,
        last_event_id: str | None = None,
        *,
        heartbeat_timeout: float = 45.0,
        backoff: ReconnectBackoff | None = None,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if last_event_id is not None and not (last_event_id.isascii() and last_event_id.isprintable()):
            raise InvalidInput("A last event id is printable ASCII.", last_event_id=last_event_id[:128])
        self.cursor = last_event_id or None
        self.heartbeat_timeout = heartbeat_timeout
        self.reset = False
        self._from: str | None = None  # the incarnation that the cursor is from
        self._incarnation: str | None = None  # that of the present connection
        self._waits = Waits(backoff or ReconnectBackoff(), random=random, clock=clock)
        self._decoder = Decoder()
        self._offsets = False
        self._forget = False
        self._clock = clock
        self._opened_at = math.inf

    @property
    def attempts(self) -> int:
        """How many connections were lost since the last progress."""
        return self._waits.attempts

    def connect(self) -> dict[str, str]:
        """The headers of the next request. What was left of an unfinished event is forgotten."""
        self._decoder = Decoder(last_event_id=self.cursor or "")
        if self.cursor is None:
            return {}
        # With the cursor goes where it is from: a server put back from a backup may have given its number anew.
        known = {} if self._from is None else {"legato-incarnation": self._from}
        return {"last-event-id": self.cursor.strip(" \t"), **known}

    def opened(self, legato_cursor: str | None = None, incarnation: str | None = None) -> None:
        """Take note of a good answer's ``Legato-Cursor`` header (None: the server is not a Legato server), and of
        ``Legato-Incarnation``.

        Only with the former are ids known to be offsets, which makes a repeated message recognisable.
        """
        self._incarnation = incarnation
        self._offsets = legato_cursor is not None
        self.reset = legato_cursor == "reset"
        # The ids to come are of another history, and smaller. The old cursor goes with the first message, not now: if
        # this connection dies before it, the next one must be told of the reset again.
        self._forget = self.reset
        self._opened_at = self._clock()

    def receive(self, chunk: bytes) -> list[SSEMessage]:
        """The messages that this chunk completes, without those that were handed out before.

        Raises:
            StreamFormatError: a line or an event beyond the decoder's limits.
        """
        if self._waits.troubled and self._clock() - self._opened_at > _HEALTHY:
            self._waits.progress()
        messages = [message for message in self._decoder.feed(chunk) if self._take(message)]
        if not self._offsets or not self._decoder.last_event_id:
            self.cursor = self._decoder.last_event_id or None
        if self._decoder.retry is not None:
            self._waits.retry = self._decoder.retry / 1000
        return messages

    def _take(self, message: SSEMessage) -> bool:
        """Move the cursor to a message; False when the caller has had it."""
        if message.event not in CONTROL:
            # A greeting alone is no progress: a server in trouble may greet and hang up for ever.
            self._waits.progress()
        if self._forget:
            self._forget = False
            self.cursor = None
        self._from = self._incarnation
        if not self._offsets:
            self.cursor = message.id or None
            return True
        offset, last = _offset(message.id), _offset(self.cursor)
        if offset is None:
            return True
        if last is None or offset > last:
            self.cursor = message.id
            return True
        # The message of the turn in which a fresh stream begins has the cursor of the greeting before it.
        return message.event in CONTROL or (message.event == "user_message_created" and offset == last)

    def lost(self, *, status: int | None = None, retry_after: float | None = None) -> float | None:
        """How many seconds to wait before the next ``connect()``; None: give up.

        Args:
            status: the HTTP status, when the server itself has answered with an error.
            retry_after: seconds from the answer's ``Retry-After``.
        """
        if status is not None and is_final(status):
            return None
        return self._waits.next(retry_after)


def _offset(cursor: str | None) -> int | None:
    """The offset that a cursor stands for; None when it is not a plain decimal number."""
    return digits(cursor, most=19)
