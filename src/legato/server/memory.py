"""The memory of folds: what a run's events are in a dialect that joins what came before is worked out once.

One *live* fold for each run and view goes on with the log, and leaves the bytes that it made with the events
(``Event.wire``), where every reader finds them. At intervals it leaves a *mark*, a copy of itself, so that who is
further behind than the events are kept begins at the next mark before and not at the run's first event. So a reader
pays for what it is given, wherever it comes in.

The rule: bytes are made in the log's order, by one task at a time for each run, which gives way to others.
"""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ..dialect.fold import Encoder, Fold, after_frames
from ..event import Event, Offset, SessionDeleted
from ..log import Log, Store
from ..sessions import Located
from .operation import View
from .pace import Pace

MARK_EVERY = 256
"""Events of a run between two marks of the live fold."""
MARK_GAP = 64
"""Offsets that a mark is behind the one before it at least."""
PAGES = 16
"""Batches of events, read anew from a log, whose bytes are kept for the next reader who comes by."""
RUNS = 1_000
"""Runs that are remembered, each in each view."""
BYTES = 64 * 1024 * 1024
"""Of the events that the remembered folds have been given; the oldest of them are let go beyond."""
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
        bytes: of the events that it was given.
    """

    def __init__(self, store: Store, run: Located, view: View, pace: Pace) -> None:
        assert view.fold is not None
        self.run = run
        self.key = view.key
        self.fold: Fold = view.fold(run)
        self.at: Offset = run.before
        self.bytes = 0
        self._log = Log(store, run.session)
        self._marks: list[Fold] = [self.fold.copy()]
        self._marked: list[Offset] = [self.at]  # where each of them stands
        self._since = 0  # events since the last mark
        self._pages: OrderedDict[tuple[Offset, Offset], list[bytes]] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()
        self._pace = pace

    async def catch_up(self) -> Fold:
        """The live fold, as far as the log has come or the run has gone. Look, and do not feed it."""
        async with self._one_at_a_time:
            await self._read(self.fold, self.at, None, live=True)
        return self.fold

    async def ready(self, events: Sequence[Event]) -> None:
        """See to it that each of these events, a batch from the log in order, has its bytes for this view."""
        if all(self.key in event.wire for event in events if self._is_mine(event)):
            return
        async with self._one_at_a_time:
            missing = next((e for e in events if self._is_mine(e) and self.key not in e.wire), None)
            if missing is None:
                return
            if self.at < missing.offset:
                at = await self._read(self.fold, self.at, events[0].offset - 1, live=True)
                await self._feed(self.fold, [event for event in events if event.offset > at], live=True)
            elif not self._turn_to(events):
                place = bisect_left(self._marked, missing.offset) - 1
                fold = self._marks[place].copy()
                at = await self._read(fold, self._marked[place], events[0].offset - 1, live=False)
                await self._feed(fold, [event for event in events if event.offset > at], live=False)
                self._mark(events[-1].offset, fold)
                self._keep(events)

    def _turn_to(self, events: Sequence[Event]) -> bool:
        """Give these events the bytes that another reader's had, who came by of late; False if none did."""
        page = self._pages.get((events[0].offset, events[-1].offset))
        if page is None:
            return False
        mine = [event for event in events if self._is_mine(event)]
        for event, frames in zip(mine, page, strict=True):
            event.wire.setdefault(self.key, frames)
        return True

    def _keep(self, events: Sequence[Event]) -> None:
        page = [event.wire[self.key] for event in events if self._is_mine(event)]
        self._pages[events[0].offset, events[-1].offset] = page
        if len(self._pages) > PAGES:
            self._pages.popitem(last=False)

    def _mark(self, at: Offset, fold: Fold) -> None:
        place = bisect_left(self._marked, at)
        if at - self._marked[place - 1] >= MARK_GAP and (place == len(self._marked) or self._marked[place] != at):
            self._marks.insert(place, fold.copy())
            self._marked.insert(place, at)

    def gone(self, event: Event) -> bytes:
        """What a reader is told when the session is deleted: no event of the run, and so kept with none."""
        return self.fold.copy().encode(event)

    def _is_mine(self, event: Event) -> bool:
        return event.run == self.run.run

    async def _read(self, fold: Fold, at: Offset, until: Offset | None, *, live: bool) -> Offset:
        """Give a fold what the log has behind ``at``, up to ``until`` or as long as there is something."""
        while (until is None or at < until) and not fold.over:
            events = await self._log.read(at)
            if until is not None:
                events = [event for event in events if event.offset <= until]
            if not events:
                break
            await self._feed(fold, events, live=live)
            at = events[-1].offset
        return at

    async def _feed(self, fold: Fold, events: Iterable[Event], *, live: bool) -> None:
        began = time.monotonic()
        for event in events:
            if self._is_mine(event):
                frames = fold.encode(event)
                event.wire.setdefault(self.key, frames)
                if live:
                    self.bytes += len(event.json)
                    self._since += 1
            if live:
                self.at = event.offset
                if self._since >= MARK_EVERY:
                    self._mark(self.at, fold)
                    self._since = 0
            if time.monotonic() - began > GO_SECONDS:
                await self._pace.keep()
                began = time.monotonic()


class Memory:
    """What is remembered of the runs that are read, or were of late.

    Args:
        store: open.
        pace: for folding, shared with others.
    """

    def __init__(self, store: Store, pace: Pace) -> None:
        self._store = store
        self._pace = pace
        self._runs: OrderedDict[tuple[str, str], RunMemory] = OrderedDict()

    def of(self, run: Located, view: View) -> RunMemory:
        """The memory of a run in a view."""
        memory = self._runs.get((view.key, run.run))
        if memory is None:
            memory = self._runs[view.key, run.run] = RunMemory(self._store, run, view, self._pace)
        self._runs.move_to_end((view.key, run.run))
        while len(self._runs) > 1 and (
            len(self._runs) > RUNS or sum(memory.bytes for memory in self._runs.values()) > BYTES
        ):
            self._runs.popitem(last=False)
        return memory


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
        self._heartbeat = memory.fold.heartbeat
        self._after, self._skip = after

    def encode(self, event: Event) -> bytes:
        """See ``Encoder``; ``RunMemory.ready`` has been awaited."""
        if self.over or event.run != self._run:
            if self.over or not isinstance(event.fact, SessionDeleted):
                return b""
            self.over = True
            return self._memory.gone(event)
        self.over = event.fact.terminal
        if event.offset <= self._after:
            return after_frames(event.wire[self._key], self._skip) if event.offset == self._after else b""
        return event.wire[self._key]

    def heartbeat(self, cursor: Offset) -> bytes:
        """See ``Encoder``."""
        return self._heartbeat(cursor)


_: type[Encoder] = SharedEncoder
