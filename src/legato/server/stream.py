"""The pump: from a subscription to the socket, one per reader. Plain ASGI, bytes that were encoded once.

Three things end a stream: the reader leaves, the session is deleted, or the server drains. None of them ends a run,
and none of them is told to the reader as an error: a reader that is cut off comes back with its cursor.

A slow reader costs a cursor that is behind and what the kernel buffers, nothing here: the next events are read from
the log when the last write has gone out. No server raises from ``send`` after a disconnect, so a task waits on
``receive`` beside every stream; and a write that does not go out for ``SEND_TIMEOUT`` ends the stream.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import StoreError, TooMany
from ..event import Event
from ..log import Store, Subscription

logger = logging.getLogger("legato")

SEND_TIMEOUT = 60.0
"""Seconds that one write may take; then the reader is taken for dead (nginx: 60 s between two writes)."""
WRITE_BYTES = 16_384
"""A backlog goes out in writes of about this size: one reader's replay does not hold the loop, and a reader that has
stopped reading holds no more than this in memory (benchmarks/stalled.py)."""
HEADERS: list[tuple[bytes, bytes]] = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache, no-store, no-transform"),  # no-transform: proxies that compress also buffer
    (b"x-accel-buffering", b"no"),  # nginx and others switch buffering off for this answer
    (b"vary", b"Origin, Authorization, Cookie"),
]


class Streams:
    """All open streams of an application: their bounds, and their common end.

    Args:
        total: streams at once.
        per_session: streams of one session at once.
    """

    def __init__(self, *, total: int = 10_000, per_session: int = 2_000) -> None:
        self.total = total
        self.per_session = per_session
        self._pumps: set[Pump] = set()
        self._sessions: dict[str, int] = {}
        self._numbers = itertools.count(1)
        self._sweeper: asyncio.Task[None] | None = None
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._pumps)

    def readers(self, session: str | None = None) -> list[Pump]:
        """The open streams, of one session or of all."""
        return [pump for pump in self._pumps if session in (None, pump.session)]

    def count(self, session: str) -> int:
        """How many streams of ``session`` are open."""
        return self._sessions.get(session, 0)

    def admit(self, session: str) -> None:
        """Raise ``TooMany`` if another stream of ``session`` would pass a bound."""
        if len(self._pumps) >= self.total:
            raise TooMany(f"This server has {self.total} open streams and takes no more.", limit=self.total)
        if self._sessions.get(session, 0) >= self.per_session:
            raise TooMany(
                f"This session has {self.per_session} open streams and takes no more.", limit=self.per_session
            )

    def add(self, pump: Pump) -> None:
        """Count ``pump`` in."""
        pump.number = next(self._numbers)
        pump.opened_at = time.time()
        self._pumps.add(pump)
        self._empty.clear()
        self._sessions[pump.session] = self._sessions.get(pump.session, 0) + 1
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep(), name="legato-streams")
        if self.draining:
            pump.end()

    def remove(self, pump: Pump) -> None:
        """Count ``pump`` out."""
        self._pumps.discard(pump)
        self._sessions[pump.session] -= 1
        if not self._sessions[pump.session]:
            del self._sessions[pump.session]
        if not self._pumps:
            self._empty.set()

    async def run(
        self, pump: Pump, first: bytes, headers: Sequence[tuple[bytes, bytes]], receive: Any, send: Any
    ) -> None:
        """Answer with ``pump``, counted in while it lasts; see ``Pump.run``."""
        self.add(pump)
        try:
            await pump.run(first, headers, receive, send)
        finally:
            self.remove(pump)

    async def _sweep(self) -> None:
        # One timer for all streams instead of one for each write.
        while True:
            await asyncio.sleep(SEND_TIMEOUT / 12)
            for pump in list(self._pumps):
                if pump.stalled(SEND_TIMEOUT):
                    logger.info(
                        "a reader of session %s took nothing for %g s and was cut off", pump.session, SEND_TIMEOUT
                    )
                    pump.abort()

    def drain(self) -> None:
        """End every stream after what is written now. Idempotent; new streams end at once, too."""
        self.draining = True
        for pump in list(self._pumps):
            pump.end()

    async def close(self, timeout: float = 2.0) -> None:
        """Drain, and after ``timeout`` seconds cut off readers that do not take what is being written."""
        self.drain()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout)
        except TimeoutError:
            logger.info("%d readers were cut off", len(self._pumps))
        for pump in list(self._pumps):
            pump.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None


def unless_cut(send: Any, over: Callable[[], bool]) -> Any:
    """``send``, but without the clean end of a stream that is not ``over``.

    For clients that take a clean end for the end of the answer, whatever came before: where a stream ends early, at the
    server's shutdown, they are left without one, notice, and come back.
    """

    async def send_unless_cut(message: Any) -> None:
        if message.get("more_body", True) or over():
            await send(message)

    return send_unless_cut


def _is_deletion(event: Event) -> bool:
    return event.type == "session.deleted"


class Pump:
    """One reader's stream.

    Args:
        store, session, after: the log, and where the reader begins.
        encode: the bytes of an event in the reader's dialect, empty if it has none there.
        heartbeat: the bytes for a silence, given the reader's cursor.
        interval: seconds of silence before a heartbeat.
        over: whether nothing can follow an event that has been encoded; asked of the last one read.
        dialect: what it is called in the inspector.

    Attributes:
        number: which stream of the application this is, from 1; 0 until it is counted in.
        opened_at: when it was counted in, seconds since the epoch.
        cursor: the offset up to which everything has been handed to the server's transport. What the reader has of it
            only the reader knows: the transport and the kernel hold some 50 KB at most.
        bytes: of body handed over.
    """

    def __init__(
        self,
        store: Store,
        session: str,
        after: int,
        *,
        encode: Callable[[Event], bytes],
        heartbeat: Callable[[int], bytes],
        interval: float,
        over: Callable[[Event], bool] = _is_deletion,
        dialect: str = "",
    ) -> None:
        self.session = session
        self.dialect = dialect
        self.number = 0
        self.opened_at = 0.0
        self.cursor = after
        self.bytes = 0
        self._over = over
        self._encode = encode
        self._heartbeat = heartbeat
        self._subscription = Subscription(store, session, after, heartbeat=interval)
        self._sending_since = 0.0
        self._sent_at = 0.0
        self._task: asyncio.Task[Any] | None = None
        self._aborted = False

    @property
    def waiting(self) -> float:
        """Seconds since which a write has not gone out; 0 when there is none."""
        return time.monotonic() - self._sending_since if self._sending_since else 0.0

    def stalled(self, seconds: float) -> bool:
        """Whether a write has been waiting for longer than ``seconds``."""
        return self.waiting > seconds

    def end(self) -> None:
        """Finish after what is in the log now."""
        self._subscription.stop()

    def abort(self) -> None:
        """Finish now, in the middle of a write if need be."""
        self._aborted = True
        if self._task is not None:
            self._task.cancel()

    async def run(self, first: bytes, headers: Sequence[tuple[bytes, bytes]], receive: Any, send: Any) -> None:
        """Answer with the stream: head and first frame at once, then the log as it grows."""
        self._task = asyncio.current_task()
        with self._subscription:
            watcher = asyncio.create_task(self._watch(receive))
            try:
                await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS, *headers]})
                await self._send(send, first)
                await self._pump(send)
                await self._send(send, b"", more=False)
            except asyncio.CancelledError:
                if not self._aborted:
                    raise
            except OSError:
                pass  # the reader has left; some servers say so in this way, too
            except StoreError as exc:
                # The head is out, so no error can be answered; an unclean end makes the reader come back.
                logger.error("session %s cannot be read: %s", self.session, exc)
                raise
            finally:
                watcher.cancel()

    async def _pump(self, send: Any) -> None:
        subscription = self._subscription
        while True:
            events = await subscription.next()
            if events:
                chunk: list[bytes] = []
                size = 0
                for event in events:
                    frame = self._encode(event)
                    if frame:
                        chunk.append(frame)
                        size += len(frame)
                        if size >= WRITE_BYTES:
                            await self._send(send, b"".join(chunk))
                            chunk, size = [], 0
                            self.cursor = event.offset
                if chunk:
                    await self._send(send, b"".join(chunk))
                self.cursor = subscription.after
                if self._over(events[-1]):
                    return
                # What has no name in the reader's dialect is silence to it, and to the proxies on the way.
                if time.monotonic() - self._sent_at >= subscription.heartbeat:
                    await self._send(send, self._heartbeat(subscription.after))
            elif subscription.stopped:
                return
            else:
                await self._send(send, self._heartbeat(subscription.after))

    async def _send(self, send: Any, body: bytes, *, more: bool = True) -> None:
        self._sending_since = time.monotonic()
        await send({"type": "http.response.body", "body": body, "more_body": more})
        self._sending_since = 0.0
        self._sent_at = time.monotonic()
        self.bytes += len(body)

    async def _watch(self, receive: Any) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self.abort()
