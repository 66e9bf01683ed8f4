"""A crowd: the readers of one log, in one form, who stand at its head. They share one bell, one read, one encoding and
one chunk, which is written to each one's line.

A crowd is a cursor that many readers have in common. Who is behind, or whose line is full, has a cursor of their own
and reads for themselves until they are at the head again. Live, replay and slow still differ in one integer.

No task stands behind it: the bell calls, and what came is read, encoded and written at once. Only where something has
to be waited for (the disk, a fold that another reader holds) a task does that first.

The one rule is that of ``Subscription.next``: a ring that comes while the log is being read leads to another look.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from starlette.types import Send

from ..dialect.fold import Encoder
from ..event import PIECES, Event, Offset
from ..figures import Figures
from ..load import Round
from ..log import READ_LIMIT, Subscription

WRITE_BYTES = 16_384
"""A backlog goes out in writes of about this size: one reader's replay does not hold the loop, and a reader that has
stopped reading holds no more than this in memory (benchmarks/stalled.py)."""


LARGE_FRAME = 32_768
"""Bytes beyond which a frame goes out in pieces: each reader has it read and written alone, so that what a connection
holds is bounded by this and not by the frame."""
SMALL_TEXT = LARGE_FRAME // 8
"""Characters that make no large frame, whatever they are: one takes six bytes of JSON, or two of those."""


class Line(Protocol):
    """A reader's connection, to which bytes can be handed without waiting.

    Attributes:
        send: of the ASGI request whose answer goes over it; what wraps that must be asked, and a line is not for it.
    """

    send: Send

    @property
    def full(self) -> bool:
        """Whether the reader takes less than it is sent; what is written now would wait in memory."""
        ...

    @property
    def framing(self) -> object:
        """What lines have in common that make the same of the same body."""
        ...

    def take(self, lost: Callable[[], None]) -> bool:
        """Begin to write here instead of by ASGI; ``lost`` is called if the reader leaves. False: it has left."""
        ...

    def frame(self, body: bytes) -> bytes:
        """``body`` as it is sent on this line; nothing if it is empty."""
        ...

    def put(self, framed: bytes) -> None:
        """Hand bytes over at once, whether or not the line is full."""
        ...

    async def write(self, body: bytes) -> None:
        """Wait until the line is not full, and hand over ``body``, which may be empty."""
        ...

    def end(self, *, proper: bool) -> None:
        """End the stream; if not properly, the reader sees that it was cut off. What was put before still goes out."""
        ...

    def abort(self) -> None:
        """Drop the connection, with what waits in it."""
        ...


class Member(Protocol):
    """One reader, as a crowd knows it.

    Attributes:
        crowd: in which it is, or is about to be; set by the crowd.
        bytes: of body handed over.
    """

    crowd: Crowd | None
    bytes: int

    @property
    def line(self) -> Line:
        """Its connection."""
        ...

    def go_alone(self, cursor: Offset, encoder: Encoder | None) -> None:
        """Read for yourself from now on, from ``cursor``; with your own encoder, if there is none."""
        ...

    def finish(self) -> None:
        """Nothing can follow."""
        ...

    def fail(self, exc: Exception) -> None:
        """The log cannot be read, or not be understood."""
        ...


class Preparation(Protocol):
    """What is to be done with events before they can be encoded."""

    async def ready(self, events: Sequence[Event], joined_after: Offset | None = None) -> None:
        """Do it. Of events that were joined it is said which offset they follow."""
        ...

    def ready_now(self, events: Sequence[Event]) -> bool:
        """Do it if it takes no waiting; whether it is done."""
        ...


class Crowd:
    """Readers at the head of a log.

    Args:
        subscription: where they stand; the crowd's own from now on.
        encoder: of one of them; what it makes is for all.
        preparation: before events are encoded.
        soon: calls what it is given at the end of the round, see ``Round``.
        closed: called when nobody is left.
        figures: where it is counted how long events take.
    """

    def __init__(
        self,
        subscription: Subscription,
        encoder: Encoder,
        preparation: Preparation | None,
        soon: Callable[[Callable[[], None]], None],
        closed: Callable[[], object],
        figures: Figures,
    ) -> None:
        self._figures = figures
        self._members: dict[Member, Line] = {}
        self._newcomers: dict[Member, Offset] = {}  # who came while something is waited for
        self._subscription = subscription
        self._encoder = encoder
        self._preparation = preparation
        self._soon = soon
        self._closed = closed
        self._open = True
        self._loop = asyncio.get_running_loop()
        self._due = False
        self._waiting: asyncio.Task[None] | None = None
        self._sent_at = self._loop.time()
        self._timer = self._loop.call_later(subscription.heartbeat, self._look_for_silence)
        subscription.hang(self)

    @property
    def cursor(self) -> Offset:
        """The offset up to which everything has been handed over."""
        return self._subscription.after

    def join(self, member: Member, cursor: Offset) -> bool:
        """Take in a reader who has been given everything up to ``cursor``; False: there is more to be read."""
        if self._due or cursor > self.cursor:
            self.go()
        if self._waiting is not None:
            self._newcomers[member] = cursor
        elif cursor == self.cursor and self._open:
            self._members[member] = member.line
        else:
            return False
        member.crowd = self
        return True

    def remove(self, member: Member) -> None:
        """Let a reader go. Idempotent."""
        self._members.pop(member, None)
        self._newcomers.pop(member, None)
        member.crowd = None
        self._close_if_empty()

    def part(self, member: Member) -> None:
        """Let a reader go who goes on alone. Between two rounds of encoding, whose state it takes along."""
        cursor = self._newcomers.get(member)
        self.remove(member)
        if cursor is None:
            member.go_alone(self.cursor, copy.copy(self._encoder))
        else:
            member.go_alone(cursor, None)

    def _close_if_empty(self) -> None:
        if self._open and not self._members and not self._newcomers and self._waiting is None:
            self._open = False
            self._subscription.take(self)
            self._timer.cancel()
            self._closed()

    def ring(self) -> None:
        """See ``Listener``."""
        if not self._due:
            self._due = True
            self._soon(self.go)

    def go(self) -> None:
        """Give everybody what has come."""
        if self._waiting is not None:
            return  # it looks again when that is over, since ``_due`` stays
        self._due = False
        try:
            while self._members:
                events = self._subscription.peek()
                if events is None or (
                    events and self._preparation is not None and not self._preparation.ready_now(events)
                ):
                    self._waiting = self._loop.create_task(self._wait(), name="legato-crowd")
                    return
                if events:
                    self._give(events)
                if len(events) < READ_LIMIT:
                    return  # that was all
        except Exception as exc:
            self._fail(exc)

    async def _wait(self) -> None:
        """Go once, with what takes waiting."""
        try:
            events = await self._subscription.look()
            if events and self._members:
                if self._preparation is not None:
                    await self._preparation.ready(events)
                self._give(events)
        except Exception as exc:
            self._fail(exc)
            events = []
        self._waiting = None
        if events or self._due:
            self.go()
        newcomers, self._newcomers = self._newcomers, {}
        for member, cursor in newcomers.items():
            if not self.join(member, cursor):
                member.crowd = None
                member.go_alone(cursor, None)
        if newcomers:
            self.ring()  # what has come while there was nobody else has been read by nobody
        self._close_if_empty()

    def _fail(self, exc: Exception) -> None:
        for member in list(self._members):
            self.remove(member)
            member.fail(exc)

    def _give(self, events: Sequence[Event]) -> None:
        chunk: list[bytes] = []
        size = 0
        for line in self._members.values():
            if line.full:
                self._part_from_the_slow()
                break
        previous = self._subscription.after
        for event in events:
            fact: Any = event.fact
            small = type(fact) in PIECES and len(fact.text) <= SMALL_TEXT
            before = None if small else copy.copy(self._encoder)
            frame = self._encoder.encode(event)
            if before is not None and len(frame) > LARGE_FRAME:
                if chunk:
                    self._write(b"".join(chunk))
                self._subscription.after, self._encoder = previous, before
                for member in list(self._members):
                    self.part(member)
                return
            previous = event.offset
            if frame:
                chunk.append(frame)
                size += len(frame)
                if size >= WRITE_BYTES:
                    self._write(b"".join(chunk))
                    self._subscription.after = event.offset
                    self._part_from_the_slow()
                    chunk, size = [], 0
        if chunk:
            self._write(b"".join(chunk))
            if self._figures.due:
                self._figures.delivered(time.time(), events[-1].at)
        self._subscription.after = events[-1].offset
        if self._encoder.over:
            for member, line in list(self._members.items()):
                if line.full:
                    self.part(member)  # it ends when the last of it has been taken
                else:
                    self.remove(member)
                    member.finish()

    def _part_from_the_slow(self) -> None:
        # Before anything is encoded: whoever goes alone takes the encoder along as it is now.
        for member in [member for member, line in self._members.items() if line.full]:
            self.part(member)

    def _write(self, body: bytes) -> None:
        framing: object = self  # nobody's
        framed = b""
        size = len(body)
        for member, line in self._members.items():
            if line.framing is not framing:
                framing = line.framing
                framed = line.frame(body)
            line.put(framed)
            member.bytes += size
        self._sent_at = self._loop.time()

    def _look_for_silence(self) -> None:
        rest = self._sent_at + self._subscription.heartbeat - self._loop.time()
        if rest <= 0:
            rest = self._subscription.heartbeat
            try:
                self._part_from_the_slow()
                self._write(self._encoder.heartbeat(self.cursor))
            except Exception as exc:
                self._fail(exc)
            self.ring()  # a heartbeat repairs what a lost ring may have missed
        if self._open:
            self._timer = self._loop.call_later(rest, self._look_for_silence)


class Crowds:
    """All crowds of an application, by what their readers have in common.

    Attributes:
        kept: bytes of what was read for readers whose lines are full, by estimate.
    """

    def __init__(self, figures: Figures | None = None) -> None:
        self._figures = figures or Figures()
        self.kept = 0
        self._crowds: dict[Hashable, Crowd] = {}
        self._round = Round()

    def __len__(self) -> int:
        return len(self._crowds)

    def join(
        self, key: Hashable, member: Member, subscription: Subscription, encoder: Encoder,
        preparation: Preparation | None,
    ) -> bool:  # fmt: skip
        """Take in a reader who found nothing more to read; False: there is more by now.

        Args:
            key: readers of one key are given the same bytes from the same place on.
            member: the reader.
            subscription, encoder, preparation: the reader's; where it is the first, a copy of them is the crowd's.
        """
        crowd = self._crowds.get(key)
        if crowd is not None:
            return crowd.join(member, subscription.after)
        crowd = self._crowds[key] = Crowd(
            copy.copy(subscription),
            copy.copy(encoder),
            preparation,
            self._round.add,
            lambda: self._crowds.pop(key),
            self._figures,
        )
        crowd.join(member, subscription.after)
        crowd.go()  # its bell was not hung up yet when the reader looked
        return True
