"""The tail cache: the newest events of the sessions that somebody writes or follows, held in memory.

It stands below ``Store.read`` and makes most reads a slice of a list, without leaving the event loop. It knows nothing
of disks or wires, but because all readers get the same ``Event`` objects, bytes encoded for one (``Event.wire``) serve
all. The one rule that must hold: it never answers with a gap. What it holds of a session reaches from a *floor* to the
newest visible event; whoever asks from below the floor gets None, and asks the disk. What the disk says to readers who
are far behind is in the block cache.

For one thread, the event loop's.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from operator import attrgetter

from ..event import Event, Offset
from ..log import READ_LIMIT

EVENT_BYTES = 950
"""What an event costs in memory beside its data: the objects, its encoded bytes in one dialect, and what is lost
between them, as the growth of a process shows it."""
FEW = 8
"""A tail with no more events than so loses none while it is used."""
SLACK = 4
"""A list is trimmed when it is 1/SLACK longer than it may be, so that an event is moved O(1) times."""

_offset = attrgetter("offset")


def _cost(event: Event) -> int:
    return len(event.json) + EVENT_BYTES


class _Tail:
    """One session's newest events: ``events`` is dense and complete for offsets greater than ``floor``.

    ``whole`` holds those of them that are no deltas, and reaches further back, to ``whole_floor``: a run's deltas soon
    push its other events out of ``events``, and those who read without deltas would have to go to the disk each time.
    It is never the longer one.
    """

    __slots__ = ("bytes", "events", "floor", "head", "used", "whole", "whole_floor")

    def __init__(self, floor: Offset) -> None:
        self.used = True  # since it was last looked at for room
        self.floor = self.whole_floor = self.head = floor
        self.events: list[Event] = []
        self.whole: list[Event] = []
        self.bytes = 0

    def trim(self, keep: int) -> int:
        """Let go of all but the newest ``keep`` events of each list; how many bytes that were."""
        freed = 0
        if (drop := len(self.events) - keep) > 0:
            self.floor = self.events[drop - 1].offset
            freed += sum(map(_cost, self.events[:drop]))
            del self.events[:drop]
        if (drop := len(self.whole) - keep) > 0:
            self.whole_floor = self.whole[drop - 1].offset
            freed += sum(map(_cost, self.whole[:drop]))
            del self.whole[:drop]
        self.bytes -= freed
        return freed

    def whole_after(self, after: Offset, limit: int) -> list[Event] | None:
        if after < self.whole_floor:
            return None
        start = bisect_right(self.whole, after, key=_offset)
        return self.whole[start : start + limit]


class TailCache:
    """The newest events of the sessions that were used of late.

    Args:
        events: kept of one session at most (of those that are no deltas, as many again).
        bytes: kept in all, by estimate (an event counts as ``EVENT_BYTES`` and the length of its JSON).
        sessions: kept at most.
    """

    def __init__(self, *, events: int = 1_000, bytes: int = 12 * 1024 * 1024, sessions: int = 10_000) -> None:
        self._events = events
        self._most = events + events // SLACK
        self._bytes = bytes
        self._share = bytes // 2
        self._sessions = sessions
        self._tails: OrderedDict[str, _Tail] = OrderedDict()  # in the order in which they are looked at for room
        self._held = 0
        self.evictions = 0

    def __len__(self) -> int:
        return len(self._tails)

    @property
    def bytes(self) -> int:
        """What it holds, by estimate."""
        return self._held

    def put(self, session: str, events: Sequence[Event]) -> None:
        """Take the session's next events, as they become visible. What is held already stays as it is: somebody may
        have read further than what was stored here, before that was known to be stored.

        Every append to a session that is held must come here, in order; that is what makes the tail complete.
        """
        tail = self._tails.get(session)
        if tail is not None and events[0].offset <= tail.head:
            events = [event for event in events if event.offset > tail.head]
            if not events:
                return
        if tail is None or tail.head + 1 != events[0].offset:
            self.forget(session)
            tail = self._tails[session] = _Tail(events[0].offset - 1)
        if events[-1].fact.type == "session.deleted":
            # The tombstone is all that is left of the session, so this covers it from its beginning.
            self.forget(session)
            tail = self._tails[session] = _Tail(0)
            events = events[-1:]
        tail.head = events[-1].offset
        self._grow(tail, events)

    def seed(self, session: str, after: Offset, events: Sequence[Event], evictions: int) -> None:
        """Take what the disk answered to a read after ``after`` that reached the head.

        ``evictions`` is what the attribute of that name was before that read. If anything has been evicted since, it
        may have been newer events of this very session, and nothing is taken.
        """
        if session not in self._tails and evictions == self.evictions:
            tail = self._tails[session] = _Tail(after)
            if events:
                tail.head = events[-1].offset
            self._grow(tail, events)

    def read(self, session: str, after: Offset, limit: int, *, deltas: bool = True) -> list[Event] | None:
        """As ``Store.read``; None when the events asked for are not (all) held."""
        tail = self._tails.get(session)
        if tail is None:
            return None
        tail.used = True
        if not deltas:
            return tail.whole_after(after, limit)
        if after < tail.floor:
            return None
        # Dense, so the place of an offset is a subtraction; a tombstone alone may begin far above its floor.
        events = tail.events
        start = after + 1 - events[0].offset if events else 0
        return events[start : start + limit] if start > 0 else events[:limit]

    def floor(self, session: str) -> Offset | None:
        """The offset after which it holds all events; None if it holds nothing of the session."""
        tail = self._tails.get(session)
        return None if tail is None else tail.floor

    def head(self, session: str) -> Offset | None:
        """The offset of the last event that it has of the session; None if it holds nothing of it."""
        tail = self._tails.get(session)
        return None if tail is None else tail.head

    def forget(self, session: str) -> None:
        """Let go of a session."""
        tail = self._tails.pop(session, None)
        if tail is not None:
            self._held -= tail.bytes
            self.evictions += 1

    def _grow(self, tail: _Tail, events: Sequence[Event]) -> None:
        tail.used = True
        tail.events += events
        cost = 0
        for event in events:
            cost += len(event.json) + EVENT_BYTES
            if not event.fact.delta:
                tail.whole.append(event)
                cost += _cost(event)
        tail.bytes += cost
        self._held += cost
        if len(tail.events) > self._most:
            self._held -= tail.trim(self._events)
        while tail.bytes > self._share and tail.events:
            # One session alone never takes more than half: the others live too.
            self._held -= tail.trim(len(tail.events) * 7 // 8)
        while self._held > self._bytes or len(self._tails) > self._sessions:
            self._shrink()

    def _shrink(self) -> None:
        """Let go of the session whose turn it is, unless it has been used since its last turn; then take an eighth of
        its events, if those are not few.

        So sessions that are used share the room evenly, however many they are, and idle ones make room. What has just
        come is still there when its readers look.
        """
        session, tail = next(iter(self._tails.items()))
        if not tail.used:
            self.forget(session)
            return
        self._tails.move_to_end(session)
        tail.used = False
        if len(tail.events) > FEW:
            self._held -= tail.trim(len(tail.events) * 7 // 8)


class BlockCache:
    """Blocks of logs as they were read from the disk: ``READ_LIMIT`` events from a multiple of it on, all of them.

    Nothing of such a block changes but by a deletion. Readers who are behind share them, and the bytes that were
    encoded for the first of them.

    Args:
        bytes: kept in all, by the same estimate; the blocks that were not used for longest go first.
    """

    def __init__(self, *, bytes: int) -> None:
        self._bytes = bytes
        self._blocks: OrderedDict[tuple[str, Offset], tuple[list[Event], int]] = OrderedDict()
        self._held = 0
        self.forgotten = 0

    def read(self, session: str, after: Offset) -> list[Event]:
        """What follows ``after`` in its block; nothing if that is not held."""
        key = session, after - after % READ_LIMIT
        held = self._blocks.get(key)
        if held is None:
            return []
        self._blocks.move_to_end(key)
        return held[0][after % READ_LIMIT :]

    def put(self, session: str, start: Offset, events: list[Event], forgotten: int) -> None:
        """Take the block after ``start``. ``forgotten`` is what the attribute of that name was before it was read.

        If a session has been forgotten since, it may have been this one, and nothing is taken.
        """
        if forgotten == self.forgotten and (session, start) not in self._blocks:
            cost = sum(map(_cost, events))
            self._blocks[session, start] = events, cost
            self._held += cost
            while self._held > self._bytes:
                self._held -= self._blocks.popitem(last=False)[1][1]

    def forget(self, session: str) -> None:
        """Let go of a session, which was deleted."""
        self.forgotten += 1
        for key in [key for key in self._blocks if key[0] == session]:
            self._held -= self._blocks.pop(key)[1]
