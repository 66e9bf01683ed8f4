"""The pump: from a subscription to the socket, one per reader. Bytes that were encoded once.

Three things end a stream: the reader leaves, the session is deleted, or the server drains. None of them ends a run,
and none of them is told to the reader as an error: a reader that is cut off comes back with its cursor.

A slow reader costs a cursor that is behind and what the kernel buffers, nothing here: the next events are read from
the log when the last write has gone out. What has been read for a reader who then takes nothing is let go after
``HOLD_SECONDS``, and read again when it goes on; a write that does not go out for ``SEND_TIMEOUT`` ends the stream.

Under our own server a reader has a *line*, and at the head of its log it is one of a ``Crowd``, without a task; while
it is behind, a task reads for it. Under any other ASGI server the request's task reads and waits all the time.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import math
import time
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, NamedTuple, Protocol

from starlette.types import Receive, Send

from ..caller import NOBODY, Caller
from ..dialect.fold import Encoder
from ..dialect.joined import JoinedPages, cost, joined
from ..errors import SessionNotFound, StoreError, StoreLost
from ..event import PIECES, Event, Offset
from ..figures import Figures
from ..log import Subscription
from .crowd import LARGE_FRAME, SMALL_TEXT, WRITE_BYTES, Crowd, Crowds, Line, Preparation
from .pace import Pace

logger = logging.getLogger("legato")

HOLD_SECONDS = 1.0
"""For which a reader who takes nothing keeps in memory what it is given next."""
KEPT_BYTES = 32 * 1024 * 1024
"""Of what all such readers keep, by estimate; who comes when it is spent keeps nothing."""
DISMISS_SECONDS = 0.5
"""After which such a reader is cut off who does not take what is being written."""
BEHIND = 100
"""Events in one batch from which on a reader is taken to be behind."""
HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store, no-transform"),  # no-transform: proxies that compress also buffer
    (b"x-accel-buffering", b"no"),  # nginx and others switch buffering off for this answer
    (b"vary", b"Origin, Authorization, Cookie"),
]


class _Stalled(Exception):
    """The reader takes nothing. The cursor is where what it has been given ends."""


class _Within(NamedTuple):
    """A place in a frame of which a part has been written: of the event at ``offset``, so many bytes. ``joins``: the
    event stood for several, as those of a page that was joined do."""

    offset: Offset
    bytes: int
    joins: bool


class Sink(Protocol):
    """What a stream is written to. HTTP by ASGI is one; another transport is another."""

    async def start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """Begin the stream."""
        ...

    async def write(self, body: bytes) -> None:
        """Hand over bytes; waits while the reader is too far behind. Raises ``OSError`` if the reader has left."""
        ...

    async def finish(self) -> None:
        """End the stream properly."""
        ...

    async def gone(self) -> None:
        """Return when the reader has left."""
        ...


class ASGISink:
    """A stream as the answer to an HTTP request.

    No server raises from ``send`` after a disconnect, so ``gone`` waits on ``receive``.

    Args:
        receive, send: of the request.
        send_body: past what only looks at the head of an answer; by default ``send``.
    """

    def __init__(self, receive: Receive, send: Send, send_body: Send | None = None) -> None:
        self._receive = receive
        self._send = send
        self._send_body = send_body or send

    async def start(self, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """See ``Sink``."""
        await self._send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})

    async def write(self, body: bytes) -> None:
        """See ``Sink``."""
        await self._send_body({"type": "http.response.body", "body": body, "more_body": True})

    async def finish(self) -> None:
        """See ``Sink``."""
        await self._send_body({"type": "http.response.body", "body": b"", "more_body": False})

    async def gone(self) -> None:
        """See ``Sink``."""
        while (await self._receive())["type"] != "http.disconnect":
            pass


class Pump:
    """One reader's stream.

    Args:
        subscription: the log, from where the reader begins.
        session: whose it is.
        encoder: what the reader is sent.
        first: what it is sent before anything else.
        preparation: what is to be done with events before they are encoded.
        share: what all readers of the session in this dialect have in common who are given the same bytes from the
            same place on; None: nobody is given the same.
        resets: do not end properly before the encoder is over, see ``Follow``.
        dialect: what it is called in the inspector.
        pace: shared with others, so that all who are behind do not hold the loop together.
        pages: joins deltas while the reader is far behind, where its dialect allows it.
        joins: and behind this offset.
        caller: who reads.

    Attributes:
        number: which stream of the application this is, from 1; 0 until it is counted in.
        opened_at: when it was counted in, seconds since the epoch.
        bytes: of body handed over.
        crowd: in which it is while it is at the head.
        resets: as given.
        until: when it is to end, of a clock that nobody sets.
    """

    def __init__(
        self,
        subscription: Subscription,
        session: str,
        encoder: Encoder,
        *,
        first: bytes = b"",
        preparation: Preparation | None = None,
        share: Hashable = None,
        resets: bool = False,
        dialect: str = "",
        pace: Pace | None = None,
        pages: JoinedPages | None = None,
        joins: Offset = 0,
        caller: Caller = NOBODY,
    ) -> None:
        self.session = session
        self.caller = caller
        self.dialect = dialect
        self.number = 0
        self.opened_at = 0.0
        self.bytes = 0
        self.crowd: Crowd | None = None
        self._subscription = subscription
        self._encoder = encoder
        self._first = first
        self._preparation = preparation
        self._key: Hashable = self if share is None else (session, dialect, share)
        self.resets = resets
        self.until = math.inf
        self._pace = pace
        self._pages = pages
        self._joins = joins
        self._within: _Within | None = None
        self._sending_since = 0.0
        self._sent_at = 0.0
        self._task: asyncio.Task[None] | None = None
        self._line: Line | None = None
        self._aborted = False
        self._farewell: bytes | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def line(self) -> Line:
        """See ``Member``."""
        assert self._line is not None
        return self._line

    @property
    def cursor(self) -> Offset:
        """The offset up to which everything has been handed to the server's transport. What the reader has of it only
        the reader knows: the transport and the kernel hold some 80 KB at most."""
        return self._subscription.after if self.crowd is None else self.crowd.cursor

    @property
    def waiting(self) -> float:
        """Seconds since which a write has not gone out; 0 when there is none."""
        return time.monotonic() - self._sending_since if self._sending_since else 0.0

    def stalled(self, seconds: float, now: float | None = None) -> bool:
        """Whether a write has been waiting for longer than ``seconds``."""
        return self._sending_since > 0 and (now or time.monotonic()) - self._sending_since > seconds

    def end(self) -> None:
        """Finish after what is in the log now."""
        self._subscription.stop()
        if self.crowd is not None:
            self.crowd.part(self)

    def dismiss(self, farewell: bytes) -> None:
        """Finish before anything more is read, as the reader may not any more; ``farewell`` is the last of it."""
        if self._farewell is not None:
            return
        self._farewell = farewell
        self.call_later(DISMISS_SECONDS, self.abort)
        crowd = self.crowd
        if crowd is not None and self._line is not None and not self._line.full:
            crowd.remove(self)
            self._line.put(self._line.frame(farewell))
            self.bytes += len(farewell)
            self._hang_up(functools.partial(self._line.end, proper=not self.resets))
        else:
            self.end()

    def call_later(self, seconds: float, act: Callable[[], None]) -> None:
        """Do something, instead of what was to be done before, unless the stream has ended by then."""
        self.call_off()
        self._timer = asyncio.get_running_loop().call_later(seconds, act)

    def call_off(self) -> None:
        """Do it not. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def abort(self) -> None:
        """Finish now, in the middle of a write if need be."""
        self._aborted = True
        if self._task is not None:
            self._task.cancel()
        if self.crowd is not None:
            self.crowd.remove(self)
        if self._line is not None:
            self._hang_up(self._line.abort)

    # As the answer of a request's task --------------------------------------------------------------------------------

    async def run(self, sink: Sink, headers: Sequence[tuple[bytes, bytes]], figures: Figures | None = None) -> None:
        """Write the stream: head and first frame at once, then the log as it grows."""
        self._task = asyncio.current_task()
        with self._subscription:
            watcher = asyncio.create_task(self._watch(sink))
            try:
                await sink.start(headers)
                await self._write(sink.write, self._first)
                await self._pump(sink, figures or Figures())
                if self._encoder.over or not self.resets:
                    await sink.finish()
            except asyncio.CancelledError:
                if not self._aborted:
                    raise
            except OSError:
                pass  # the reader has left; some servers say so in this way, too
            except SessionNotFound:
                pass  # deleted between two reads; without a proper end the reader comes back, and is told
            except StoreError as exc:
                # The head is out, so no error can be answered; an unclean end makes the reader come back.
                self._tell_unreadable(exc)
                raise
            finally:
                watcher.cancel()

    async def _pump(self, sink: Sink, figures: Figures) -> None:
        subscription, encoder = self._subscription, self._encoder
        live = False  # what comes first may have been there for long
        while not encoder.over:
            events = await subscription.wait()
            if self._farewell is not None:
                await self._say_farewell(sink.write)
                return
            if events:
                await self._deliver(events, sink.write)
                if live and figures.due:
                    figures.delivered(time.time(), events[0].at)
                live = len(events) < BEHIND
            elif subscription.stopped:
                return
            else:
                await self._write(sink.write, encoder.heartbeat(subscription.after))

    async def _watch(self, sink: Sink) -> None:
        await sink.gone()
        self.abort()

    # On a line --------------------------------------------------------------------------------------------------------

    def follow(self, line: Line, crowds: Crowds, over: Callable[[], None]) -> None:
        """Write the stream, whose head is out, to ``line``; ``over`` is called when it has ended."""
        if not line.take(self.abort):
            over()
            return
        self._line = line
        self._crowds = crowds
        self._over = over
        if self._first:
            line.put(line.frame(self._first))
            self.bytes += len(self._first)
        self._sent_at = time.monotonic()
        if self._subscription.peek() != [] or not self._join():
            self.go_alone(self._subscription.after, None)

    def go_alone(self, cursor: Offset, encoder: Encoder | None) -> None:
        """See ``Member``."""
        self._subscription.after = cursor
        self._encoder = encoder or self._encoder
        self._task = asyncio.create_task(self._catch_up(), name="legato-reader")

    def finish(self) -> None:
        """See ``Member``."""
        self._hang_up(functools.partial(self.line.end, proper=True))

    def fail(self, exc: Exception) -> None:
        """See ``Member``."""
        if isinstance(exc, StoreError):
            self._tell_unreadable(exc)
        elif not isinstance(exc, SessionNotFound):  # deleted between two reads
            logger.error("session %s: a stream failed", self.session, exc_info=exc)
        self._hang_up(functools.partial(self.line.end, proper=False))

    def _tell_unreadable(self, exc: StoreError) -> None:
        """A store that is away says so once; all its readers would say it again."""
        level = logging.DEBUG if isinstance(exc, StoreLost) else logging.ERROR
        logger.log(level, "session %s cannot be read: %s", self.session, exc)

    def _hang_up(self, end: Callable[[], None]) -> None:
        end()
        self._over()

    def _join(self) -> bool:
        return not self._subscription.stopped and self._crowds.join(
            self._key, self, self._subscription, self._encoder, self._preparation
        )

    async def _catch_up(self) -> None:
        """Read for this reader until it is at the head, or its stream has ended."""
        subscription = self._subscription
        try:
            while not self._encoder.over and self._farewell is None:
                events = await self._look()
                if events:
                    try:
                        await self._deliver(events, functools.partial(self._put, events))
                        continue
                    except _Stalled:
                        pass  # and not in here, where what has been read would be kept
                    del events
                    await self._wait_for_room()
                    continue
                await self._wait_for_room()  # here and not in a crowd, so that it is seen how long
                if subscription.stopped:
                    break
                self._task = None  # a crowd may send us away again at once
                if self._join():
                    return
                self._task = asyncio.current_task()
                with subscription:  # the crowd stands elsewhere: there is more to read, or there will be
                    if not await subscription.wait() and self._farewell is None:
                        await self._write(self.line.write, self._encoder.heartbeat(subscription.after))
            await self._wait_for_room()
            await self._say_farewell(self.line.write)
        except asyncio.CancelledError:
            if not self._aborted:
                self._hang_up(self.line.abort)
                raise
        except Exception as exc:
            self._task = None
            self.fail(exc)
        else:
            self._task = None
            self._hang_up(functools.partial(self.line.end, proper=self._encoder.over or not self.resets))

    async def _put(self, events: Sequence[Event], body: bytes) -> None:
        """Write to the line, unless that takes too long, or too many wait, to keep ``events``, which were read for it.

        Raises:
            _Stalled: it does; nothing was written.
        """
        if self.line.full:
            crowds, holding = self._crowds, sum(map(cost, events))
            if crowds.kept and crowds.kept + holding > KEPT_BYTES:
                raise _Stalled
            crowds.kept += holding
            try:
                async with asyncio.timeout(HOLD_SECONDS):
                    await self.line.write(b"")
            except TimeoutError:
                raise _Stalled from None
            finally:
                crowds.kept -= holding
        await self.line.write(body)

    async def _look(self) -> list[Event]:
        """The next events that are there now; of a frame that has been written in part, those that it was made of."""
        subscription, within = self._subscription, self._within
        events = await subscription.look()
        if within is None:
            return events
        cursor, more = subscription.after, events
        while more and more[-1].offset < within.offset:
            subscription.after = more[-1].offset
            try:
                more = await subscription.look()
            finally:
                subscription.after = cursor
            events = events + more
        events = [event for event in events if event.offset <= within.offset]
        if not more or events[-1].offset != within.offset:
            raise SessionNotFound(self.session)  # deleted meanwhile
        return joined(events) if within.joins else events

    async def _wait_for_room(self) -> None:
        self._sending_since = self._sending_since or time.monotonic()
        await self.line.write(b"")
        self._sending_since = 0.0

    # Both -------------------------------------------------------------------------------------------------------------

    async def _deliver(self, events: Sequence[Event], write: Callable[[bytes], Awaitable[None]]) -> None:
        """Write some events, and move the cursor with what has been handed over."""
        subscription, encoder, within = self._subscription, self._encoder, self._within
        joins = within is not None and within.joins
        if len(events) >= BEHIND and within is None:
            await self._keep_pace()
            if self._pages is not None and events[0].offset > self._joins:
                page, events = events, self._pages.of(self.session, events)
                joins = events is not page
        if self._preparation is not None:
            await self._preparation.ready(events, *([subscription.after] if joins else []))
        chunk: list[bytes] = []
        size, previous = 0, subscription.after
        before = copy.copy(encoder)  # as it was at the cursor, if what follows cannot be written
        try:
            for event in events:
                fact: Any = event.fact
                small = type(fact) in PIECES and len(fact.text) <= SMALL_TEXT
                unsaid = before if small else copy.copy(encoder)
                frame = encoder.encode(event)
                large = not small and len(frame) > LARGE_FRAME
                if large and chunk:
                    await self._write(write, b"".join(chunk))
                    chunk, size = [], 0
                    subscription.after, before = previous, unsaid
                previous = event.offset
                if large:
                    await self._write_large(frame, event.offset, joins, write)
                elif frame:
                    chunk.append(frame)
                    size += len(frame)
                    if size < WRITE_BYTES:
                        continue
                    await self._keep_pace()
                    await self._write(write, b"".join(chunk))
                    chunk, size = [], 0
                else:
                    continue
                subscription.after, before = event.offset, copy.copy(encoder)
            if chunk:
                await self._write(write, b"".join(chunk))
        except _Stalled:
            self._encoder = before
            raise
        subscription.after = events[-1].offset
        # What has no name in the reader's dialect is silence to it, and to the proxies on the way.
        if not self._encoder.over and time.monotonic() - self._sent_at >= subscription.heartbeat:
            await self._write(write, self._encoder.heartbeat(subscription.after))

    async def _write_large(
        self, frame: bytes, offset: Offset, joins: bool, write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Write a frame piece by piece, from where it was left."""
        start = self._within.bytes if self._within is not None and self._within.offset == offset else 0
        view = memoryview(frame)
        while start < len(frame):
            await self._keep_pace()
            await self._write(write, bytes(view[start : start + WRITE_BYTES]))
            start += WRITE_BYTES
            self._within = _Within(offset, start, joins)
        self._within = None

    async def _say_farewell(self, write: Callable[[bytes], Awaitable[None]]) -> None:
        if self._farewell is not None and self._within is None and not self._encoder.over:
            await self._write(write, self._farewell)

    async def _keep_pace(self) -> None:
        # Reads from memory and writes to an empty buffer wait for nothing, so nobody else would have a turn.
        if self._pace is not None:
            await self._pace.keep()

    async def _write(self, write: Callable[[bytes], Awaitable[None]], body: bytes) -> None:
        self._sending_since = now = time.monotonic()
        await write(body)
        self._sending_since = 0.0
        self._sent_at = now
        self.bytes += len(body)
