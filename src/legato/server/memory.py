"""The memory of folds: what a run's events are in a dialect that joins what came before is worked out once.

One *live* fold for each run and view goes on with the log, and leaves the bytes that it made with the events
(``Event.wire``), where every reader finds them. At intervals it leaves a *mark*, a copy of itself, so that who is
further behind than the events are kept begins at the next mark before and not at the run's first event. So a reader
pays for what it is given, wherever it comes in.

The rule: bytes are made in the log's order, by one task at a time for each run, which gives way to others. What is
interrupted there, by an error or because its reader has left, leaves the live fold at a place that it knows.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from weakref import WeakValueDictionary

from ..dialect.fold import Encoder, Fold, after_frames
from ..errors import SessionNotFound
from ..event import Event, Offset, SessionDeleted
from ..log import Log, Store
from ..sessions import Located
from .pace import Pace
from .reply import View

MARK_EVERY = 256
"""Events of a run between two marks of the live fold, at first."""
MARK_GAP = 64
"""Offsets that a mark is behind the one before it at least, at first."""
MARKS = 64
"""Marks of a run. Beyond, every second one is let go, and the next are twice as far apart: a mark is small, but not
where there are thousands of tool calls."""
PAGES = 16
"""Batches of events, read anew from a log, whose bytes are kept for the next reader who comes by."""
RUNS = 1_000
"""Runs that are remembered when nobody reads them any more, each in each view."""
BYTES = 64 * 1024 * 1024
"""Of what is remembered of them; the oldest are let go beyond."""
GO_EVENTS = 32
"""Events that are folded in one go, before anybody looks at the clock."""
GO_SECONDS = 0.002
"""After so long in one go, folding lets others go on."""


class RunMemory:
    """One run in one view.

    Args:
        store: where its log is.
        run: the run.
        view: has ``fold``.
        pace: shared with others.

    Attributes:
        fold: the live one; not to be fed by others.
        at: the offset up to which it has been given the log.
        bytes: of the events that it was given, and of the pages that are kept.
    """

    def __init__(self, store: Store, run: Located, view: View, pace: Pace) -> None:
        assert view.fold is not None
        self.run = run
        self.key = view.key
        self.fold: Fold = view.fold(run)
        self._gone = view.gone
        self.at: Offset = run.before
        self.bytes = 0
        self._reached: Offset = self.at  # as far as it has ever come
        self._log = Log(store, run.session)
        self._marks: list[Fold] = [self.fold.copy()]
        self._marked: list[Offset] = [self.at]  # where each of them stands
        self._since = 0  # events since the last mark
        self._apart = 1  # times as far as at first marks are apart
        self._pages: OrderedDict[tuple[Offset, Offset], list[bytes]] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()
        self._pace = pace

    async def catch_up(self) -> Fold:
        """The live fold, as far as the log has come or the run has gone. Look, and do not feed it."""
        async with self._one_at_a_time:
            await self._read(self.fold, self.at, None, live=True)
        return self.fold

    async def ready(self, events: Sequence[Event], joined_after: Offset | None = None) -> None:
        """See to it that each of these events, a batch from the log in order, has its bytes for this view.

        Args:
            events: the batch.
            joined_after: its deltas were joined, and this is the offset that it follows; None: it is as it was.

        Raises:
            SessionNotFound: what came before them has been deleted meanwhile.
        """
        mine = self._mine(events)
        # Also where others have left all bytes, the live fold comes along: it says how the reader's stream ends.
        if not mine or (mine[-1].offset <= self.at and self._known(mine)):
            return
        async with self._one_at_a_time:
            if joined_after is not None:
                await self._ready_joined(events, joined_after)
                return
            behind = [event for event in events if event.offset <= self.at]
            ahead = events[len(behind) :]
            if not self._known(behind) and not self._turn_to(behind):
                await self._work_out(behind)
            if self._mine(ahead):
                await self._read(self.fold, self.at, ahead[0].offset - 1, live=True)
                await self._feed(self.fold, ahead, live=True)

    async def _ready_joined(self, events: Sequence[Event], after: Offset) -> None:
        """As ``ready``. A joined delta says all that was said from its beginning on, so it is given only to a fold that
        stands before that."""
        if self.at < after:
            await self._read(self.fold, self.at, after, live=True)
        if self.at == after:
            await self._feed(self.fold, events, live=True)
            return
        if not self._known(events):
            place = bisect_right(self._marked, after) - 1
            fold = self._marks[place].copy()
            await self._read(fold, self._marked[place], after, live=False)
            await self._feed(fold, events, live=False)
            self._mark(events[-1].offset, fold)
        await self._read(self.fold, self.at, events[-1].offset, live=True)

    def ready_now(self, events: Sequence[Event]) -> bool:
        """As ``ready``, if that takes no waiting; whether it is done."""
        mine = self._mine(events)
        if not mine or (mine[-1].offset <= self.at and self._known(mine)):
            return True
        if self._one_at_a_time.locked() or events[0].offset != self.at + 1 or len(events) > GO_EVENTS:
            return False
        self._feed_some(self.fold, events, live=True)
        return True

    async def _work_out(self, events: Sequence[Event]) -> None:
        """Give these events, which lie behind the live fold, their bytes: from the mark before them on."""
        missing = next(event for event in events if self._is_mine(event) and self.key not in event.wire)
        place = bisect_left(self._marked, missing.offset) - 1
        fold, at = self._marks[place].copy(), self._marked[place]
        await self._read(fold, at, events[0].offset - 1, live=False)
        await self._feed(fold, [event for event in events if event.offset > at], live=False)
        self._mark(events[-1].offset, fold)
        self._keep(events)

    def _turn_to(self, events: Sequence[Event]) -> bool:
        """Give these events the bytes that another reader's had, who came by of late; False if none did."""
        page = self._pages.get((events[0].offset, events[-1].offset))
        if page is None:
            return False
        for event, frames in zip(self._mine(events), page, strict=True):
            event.wire.setdefault(self.key, frames)
        return True

    def _keep(self, events: Sequence[Event]) -> None:
        page = [event.wire[self.key] for event in self._mine(events)]
        self._pages[events[0].offset, events[-1].offset] = page
        self.bytes += sum(map(len, page))
        if len(self._pages) > PAGES:
            _, page = self._pages.popitem(last=False)
            self.bytes -= sum(map(len, page))

    def _mark(self, at: Offset, fold: Fold) -> None:
        place = bisect_left(self._marked, at)
        gap = MARK_GAP * self._apart
        if at - self._marked[place - 1] >= gap and (place == len(self._marked) or self._marked[place] != at):
            self._marks.insert(place, fold.copy())
            self._marked.insert(place, at)
        if len(self._marks) > MARKS:
            del self._marks[1::2], self._marked[1::2]
            self._apart *= 2

    def gone(self, event: Event, place: tuple[Offset, int]) -> bytes:
        """What a reader at ``place`` is told when the session is deleted: no event of the run, so kept with none.

        How far the run has come says nothing of how far the reader has: it may have ended, and the reader be behind.
        """
        return self._marks[0].copy().encode(event) if self._gone is None else self._gone(self.fold, place)

    def _is_mine(self, event: Event) -> bool:
        return event.run == self.run.run

    def _mine(self, events: Sequence[Event]) -> list[Event]:
        return [event for event in events if event.run == self.run.run]

    def _known(self, events: Sequence[Event]) -> bool:
        run, key = self.run.run, self.key
        return not [event for event in events if event.run == run and key not in event.wire]

    async def _read(self, fold: Fold, at: Offset, until: Offset | None, *, live: bool) -> None:
        """Give a fold what the log has behind ``at``, up to ``until`` or as long as there is something."""
        while (until is None or at < until) and not fold.over:
            events = await self._log.read(at)
            if until is not None:
                events = [event for event in events if event.offset <= until]
            if not events:
                if until is not None:  # only a tombstone is left
                    raise SessionNotFound(self.run.session)
                return
            await self._feed(fold, events, live=live)
            at = events[-1].offset

    async def _feed(self, fold: Fold, events: Sequence[Event], *, live: bool) -> None:
        began = time.monotonic()
        for start in range(0, len(events), GO_EVENTS):
            self._feed_some(fold, events[start : start + GO_EVENTS], live=live)
            if time.monotonic() - began > GO_SECONDS:
                await self._pace.keep()
                began = time.monotonic()

    def _feed_some(self, fold: Fold, events: Sequence[Event], *, live: bool) -> None:
        try:
            count, size = self._encode(fold, events)
        except Exception:
            if live:
                self._step_back()
            raise
        if live:
            self.at = events[-1].offset
            if self.at > self._reached:
                self._reached = self.at
                self.bytes += size
            self._since += count
            if self._since >= MARK_EVERY * self._apart:
                self._mark(self.at, fold)
                self._since = 0

    def _encode(self, fold: Fold, events: Sequence[Event]) -> tuple[int, int]:
        """Give a fold some events, and those of the run their bytes; how many they are, and of how many bytes."""
        run, key, encode = self.run.run, self.key, fold.encode
        count = size = 0
        for event in events:
            if event.run == run:
                frames = encode(event)
                event.wire.setdefault(key, frames)
                count += 1
                size += len(event.json) + len(frames)
        return count, size

    def _step_back(self) -> None:
        """Go back to the last mark: the live fold failed in the middle of an event, and nobody knows how it stands."""
        place = bisect_right(self._marked, self.at) - 1
        self.fold, self.at = self._marks[place].copy(), self._marked[place]
        self._since = 0


class Memory:
    """What is remembered of the runs that are read, or were of late.

    Args:
        store: open.
        pace: for folding, shared with others.
    """

    def __init__(self, store: Store, pace: Pace) -> None:
        self._store = store
        self._pace = pace
        self._held: WeakValueDictionary[tuple[str, str], RunMemory] = WeakValueDictionary()  # by anybody, now
        self._recent: OrderedDict[tuple[str, str], RunMemory] = OrderedDict()

    def of(self, run: Located, view: View) -> RunMemory:
        """The memory of a run in a view."""
        key = view.key, run.run
        memory = self._held.get(key)
        if memory is None:
            memory = self._held[key] = RunMemory(self._store, run, view, self._pace)
        self._recent[key] = memory
        self._recent.move_to_end(key)
        while len(self._recent) > 1 and (
            len(self._recent) > RUNS or sum(memory.bytes for memory in self._recent.values()) > BYTES
        ):
            self._recent.popitem(last=False)
        return memory

    def forget(self) -> None:
        """Remember nothing: logs are not what they were."""
        self._held = WeakValueDictionary()
        self._recent.clear()

    def forget_session(self, session: str) -> None:
        """Let go of the runs of a session, whose log is not what it was; nobody reads it."""
        for key in [key for key, memory in self._held.items() if memory.run.session == session]:
            self._held.pop(key, None)
            self._recent.pop(key, None)


class SharedEncoder:
    """One reader of a run, out of the memory of it.

    Args:
        memory: of the run.
        after: an offset and a number: leave out what comes from earlier events, and so many frames of this one.
    """

    def __init__(self, memory: RunMemory, *, after: tuple[Offset, int] = (0, 0)) -> None:
        self.over = False
        self._memory = memory
        self._run = memory.run.run
        self._key = memory.key
        self._has = after

    def encode(self, event: Event) -> bytes:
        """See ``Encoder``; ``RunMemory.ready`` has been awaited."""
        if self.over or event.run != self._run:
            if self.over or not isinstance(event.fact, SessionDeleted):
                return b""
            self.over = True
            return self._memory.gone(event, self._has)
        self.over = event.fact.terminal
        offset, skip = self._has
        if event.offset < offset:
            return b""
        self._has = event.offset + 1, 0
        frames = event.wire[self._key]
        return after_frames(frames, skip) if skip and event.offset == offset else frames

    def heartbeat(self, cursor: Offset) -> bytes:
        """See ``Encoder``."""
        return self._memory.fold.heartbeat(cursor)


_: type[Encoder] = SharedEncoder
