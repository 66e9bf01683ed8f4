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
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from ..dialect.fold import Encoder, Fold, after_frames
from ..event import Event, Offset, SessionDeleted
from ..log import Log, Store
from ..sessions import Located
from .operation import View

MARK_EVERY = 256
"""Events of a run between two marks."""
RUNS = 1_000
"""Runs that are remembered, each in each view."""
BYTES = 64 * 1024 * 1024
"""Of the events that the remembered folds have been given; the oldest of them are let go beyond."""
TURN_SECONDS = 0.005
"""After so long in one go, folding lets others have their turn."""


class RunMemory:
    """One run in one view.

    Args:
        store: where its log is.
        run: the run.
        view: has ``fold``.

    Attributes:
        fold: the live one; not to be fed by others.
        at: the offset up to which it has been given the log.
        bytes: of the events that it was given.
    """

    def __init__(self, store: Store, run: Located, view: View) -> None:
        assert view.fold is not None
        self.run = run
        self.key = view.key
        self.fold: Fold = view.fold(run)
        self.at: Offset = run.before
        self.bytes = 0
        self._log = Log(store, run.session)
        self._marks: list[tuple[Offset, Fold]] = [(self.at, self.fold.copy())]
        self._since = 0  # events since the last mark
        self._turn = asyncio.Lock()

    async def catch_up(self) -> Fold:
        """The live fold, as far as the log has come or the run has gone. Look, and do not feed it."""
        async with self._turn:
            await self._read(self.fold, self.at, None, live=True)
        return self.fold

    async def ready(self, events: Sequence[Event]) -> None:
        """See to it that each of these events, a batch from the log in order, has its bytes for this view."""
        if all(self.key in event.wire for event in events if self._is_mine(event)):
            return
        async with self._turn:
            missing = next((e for e in events if self._is_mine(e) and self.key not in e.wire), None)
            if missing is None:
                return
            live = self.at < missing.offset
            if live:
                at, fold = self.at, self.fold
            else:
                at, mark = max(
                    ((at, mark) for at, mark in self._marks if at < missing.offset), key=lambda each: each[0]
                )
                fold = mark.copy()
            at = await self._read(fold, at, events[0].offset - 1, live=live)
            await self._feed(fold, [event for event in events if event.offset > at], live=live)

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
                    self._marks.append((self.at, fold.copy()))
                    self._since = 0
            if time.monotonic() - began > TURN_SECONDS:
                await asyncio.sleep(0)
                began = time.monotonic()


class Memory:
    """What is remembered of the runs that are read, or were of late.

    Args:
        store: open.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._runs: OrderedDict[tuple[str, str], RunMemory] = OrderedDict()

    def of(self, run: Located, view: View) -> RunMemory:
        """The memory of a run in a view."""
        memory = self._runs.get((view.key, run.run))
        if memory is None:
            memory = self._runs[view.key, run.run] = RunMemory(self._store, run, view)
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
