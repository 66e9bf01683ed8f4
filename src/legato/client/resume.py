"""When to reconnect, from where, and after how long: the client's half of a stream without a gap. No I/O.

This module knows cursors, cuts and waiting times; it does not know HTTP, sockets or what events mean. The one rule:
a message that was handed out moves the cursor, and nothing else does, so after any cut the next connection goes on
exactly behind the last message the caller has.

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
from dataclasses import dataclass
from typing import Final

from ..errors import InvalidInput
from ..sse import Decoder, Message

__all__ = ["CONTROL", "ReconnectBackoff", "Resume", "is_final"]

CONTROL: Final = frozenset({"connected", "heartbeat"})
"""Events that are about the connection; their id repeats where the reader stands."""

MAX_RETRY_AFTER: Final = 60.0
"""Seconds; a server that asks for more is asked again after this long."""

# `retry: 0` means at once, which is fine once and a hot loop when the server ends each connection.
_MIN_RETRY: Final = 0.1

_HEALTHY: Final = 30.0
"""Seconds; a connection that is heard for longer is progress, though nothing happens in the session."""


@dataclass(frozen=True, slots=True)
class ReconnectBackoff:
    """How long to wait before a reconnect: ``base * factor ** attempts`` seconds, at most ``cap``, half of it random.

    The law is that of all clients, see "Coming back" in ``docs/concepts.md``.

    Attributes:
        base: seconds; a ``retry:`` of the server takes its place.
        factor: growth from one attempt to the next.
        cap: seconds.
        give_up_after: seconds without progress after which the stream is given up; None means never.
    """

    base: float = 1.0
    factor: float = 2.0
    cap: float = 30.0
    give_up_after: float | None = 600.0

    def wait(
        self, attempt: int, random: float, *, retry: float | None = None, retry_after: float | None = None
    ) -> float:
        """How many seconds to wait before a reconnect. ``tests/vectors/waits.json`` holds here and in ``resume.js``.

        Args:
            attempt: how many were made since the last progress.
            random: from 0 to 1; all clients of a restarted server must not come back at once.
            retry: seconds from the stream's ``retry:``, which the server has spread itself: the first attempt waits
                exactly so long.
            retry_after: seconds from the ``Retry-After`` of the answer before; what is waited anyway comes on top, and
                of it no more than ``MAX_RETRY_AFTER`` counts.
        """
        base = min(self.base if retry is None else max(retry, _MIN_RETRY), self.cap)
        # The exponent is bounded: 2.0 ** 1024 is an OverflowError, after some hours of an endless retry.
        most = min(base * self.factor ** min(attempt, 32), self.cap)
        wait = base if attempt == 0 and retry is not None else most * (1 + random) / 2
        return wait + min(max(retry_after or 0.0, 0.0), MAX_RETRY_AFTER)


def is_final(status: int) -> bool:
    """Whether an HTTP status says that asking again is of no use."""
    return status < 500 and status not in (408, 425, 429)


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
        attempts: connections that were lost since the last progress.
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
        self.attempts = 0
        self.reset = False
        self._backoff = backoff or ReconnectBackoff()
        self._retry: float | None = None
        self._random = random
        self._clock = clock
        self._decoder = Decoder()
        self._offsets = False
        self._forget = False
        self._lost_at: float | None = None
        self._opened_at = math.inf

    def connect(self) -> dict[str, str]:
        """The headers of the next request. What was left of an unfinished event is forgotten."""
        self._decoder = Decoder()
        return {} if self.cursor is None else {"last-event-id": self.cursor}

    def opened(self, legato_cursor: str | None = None) -> None:
        """Take note of a good answer's ``Legato-Cursor`` header; None: the server is not a Legato server.

        Only with that header are ids known to be offsets, which makes a repeated message recognisable.
        """
        self._offsets = legato_cursor is not None
        self.reset = legato_cursor == "reset"
        # The ids to come are of another history, and smaller. The old cursor goes with the first message, not now: if
        # this connection dies before it, the next one must be told of the reset again.
        self._forget = self.reset
        self._opened_at = self._clock()

    def receive(self, chunk: bytes) -> list[Message]:
        """The messages that this chunk completes, without those that were handed out before.

        Raises:
            StreamFormatError: a line or an event beyond the decoder's limits.
        """
        if self._lost_at is not None and self._clock() - self._opened_at > _HEALTHY:
            self._progress()
        messages = [message for message in self._decoder.feed(chunk) if self._take(message)]
        if self._decoder.retry is not None:
            self._retry = self._decoder.retry / 1000
        return messages

    def _progress(self) -> None:
        self.attempts = 0
        self._lost_at = None

    def _take(self, message: Message) -> bool:
        """Move the cursor to a message; False when the caller has had it."""
        if message.event not in CONTROL:
            # A greeting alone is no progress: a server in trouble may greet and hang up for ever.
            self._progress()
        if self._forget:
            self._forget = False
            self.cursor = None
        if not self._offsets:
            self.cursor = message.id or self.cursor
            return True
        offset, last = _offset(message.id), _offset(self.cursor)
        if offset is None:
            return True
        if last is None or offset > last:
            self.cursor = message.id
            return True
        return message.event in CONTROL

    def lost(self, *, status: int | None = None, retry_after: float | None = None) -> float | None:
        """How many seconds to wait before the next ``connect()``; None: give up.

        Args:
            status: the HTTP status, when the server answered with an error.
            retry_after: seconds from its ``Retry-After``.
        """
        if status is not None and is_final(status):
            return None
        now = self._clock()
        if self._lost_at is None:
            self._lost_at = now
        give_up_after = self._backoff.give_up_after
        if give_up_after is not None and now - self._lost_at > give_up_after:
            return None
        wait = self._backoff.wait(self.attempts, self._random(), retry=self._retry, retry_after=retry_after)
        self.attempts += 1
        return wait


def _offset(cursor: str | None) -> int | None:
    """The offset that a cursor stands for; None when it is not a plain decimal number."""
    if cursor and len(cursor) <= 19 and cursor.isascii() and cursor.isdigit():
        return int(cursor)
    return None
