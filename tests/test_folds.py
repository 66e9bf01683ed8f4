"""The memory of folds: whoever reads a run in whatever order, what each gets is what one fold of it alone would say.

Folds are checked by themselves (copies, logs that make no sense), in the memory that all readers of a run share
(hypothesis: readers at any place, events read anew, evictions, cancellations), and through the application.
"""

from __future__ import annotations

import asyncio
import gc
import json
import weakref
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driving import Chat, Gate, chatting, decoded
from facts import draft
from held_store import quiet
from legato.agent import Agent
from legato.dialect import mix
from legato.dialect.fold import Fold, after_frames
from legato.dialect.joined import JoinedPages
from legato.dialect.responses import DONE, ResponseEncoder
from legato.dialect.trail import Trail
from legato.errors import SessionNotFound
from legato.event import EVENTS, Draft, Event, Fact, OtherFact, SessionDeleted, fact
from legato.log import Subscription
from legato.recorder import Recorder
from legato.server import memory
from legato.server.app import Legato
from legato.server.deva import _VIEWS as DEVA_VIEWS
from legato.server.memory import Memory, RunMemory, SharedEncoder
from legato.server.operation import Dialect, View
from legato.server.pace import Pace
from legato.server.responses import CHAT_VIEWS, RESPONSES_VIEW
from legato.sessions import Located, located
from legato.sse import HEARTBEAT
from legato.store.sqlite import SQLiteStore
from legato.yields import (
    Finish,
    Refusal,
    Thinking,
    ToolArguments,
    ToolCall,
    ToolReady,
    ToolResult,
    ToolStarted,
    Usage,
)
from raw_log import append_raw

SESSION, RUN, OTHER = "s", "s~1", "s~2"
VIEWS = {view.key: view for view in (RESPONSES_VIEW, *CHAT_VIEWS.values(), *DEVA_VIEWS.values())}
"""Every view that is a fold."""
views = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)

# Logs -----------------------------------------------------------------------------------------------------------------

AGAIN = "\0again"
"""Among what an agent yields: its process dies here, and it is asked once more."""
RICH: list[Any] = [
    *(Thinking("H"), Thinking("m"), "Look: ", ToolCall("a", "Read"), ToolCall("b", "Find")),
    *(ToolArguments("b", '{"q":'), ToolArguments("a", '{"p":'), ToolArguments("b", "1}"), ToolArguments("a", "2}")),
    *(ToolReady("b"), ToolStarted("a", "Reading"), ToolResult("b", output={"é": None}), ToolResult("a", "no", False)),
    *("So ", "fa", ToolCall("c", "Cut"), ToolArguments("c", '{"x"'), AGAIN, "So far ", ToolCall("d", "Stop", "{}")),
    *(ToolCall("e", "Ask", "{}", "client"), ToolCall("f", "Far", "{}", "provider"), "Wait. ", ToolStarted("f")),
    *(
        ToolResult("f", output="far"),
        ToolResult("d", output="ok"),
        "it is\n\ndata: x",
        Refusal("I "),
        Refusal("cannot 🎵"),
        Usage(3, 4),
    ),
]


def log_of(items: Sequence[Any], end: str = "run.completed", *, mixed: bool = True, **fields: Any) -> list[Event]:
    """A session's log in which an agent yields ``items``; with events of others in between if ``mixed``."""
    recorder, attempt = Recorder(RUN), 1
    drafts = [
        draft("session.created", {"title": "T"}),
        draft("message.created", {"id": f"{RUN}~u", "role": "user", "text": "hello", **fields}, RUN),
        draft("run.started", {"agent": "a", "attempt": 1}, RUN),
    ]
    for item in items:
        if item == AGAIN:
            attempt += 1
            recorder = Recorder(RUN, earlier=recorder.transcript)
            drafts.append(draft("run.started", {"agent": "b", "attempt": attempt}, RUN))
        else:
            drafts += recorder.record(item)
    if end:
        name = "message" if end == "run.completed" else "partial"
        more = {"run.completed": {"finish_reason": recorder.finish_reason}, "run.failed": {"code": "c", "message": "m"}}
        usage = {} if recorder.usage is None else {"usage": {"input_tokens": 3, "output_tokens": 4}}
        said = recorder.transcript.message(RUN)
        drafts.append(draft(end, {name: said, **more.get(end, {}), **usage}, RUN))
    if mixed:
        drafts = [each for place, own in enumerate(drafts) for each in (own, *foreign(place, own))]
    return [Event(d.fact, place, 1000.0 + place, d.run) for place, d in enumerate(drafts, 1)]


def foreign(place: int, own: Draft) -> list[Draft]:
    """What others store meanwhile: one of them, or nothing."""
    if place == 1:
        return [draft("message.created", {"id": f"{OTHER}~u", "role": "user", "text": "next"}, OTHER)]
    if place % 5 == 3 and not own.fact.terminal:
        return [Draft(OtherFact("future.thing", {"part": 0, "text": "x", "start": 0}), RUN)]
    if place % 7 == 4:
        return [draft("notification.resolved", {"id": "n", "by": "user"}), draft("future.thing", {}, OTHER)]
    return []


LOGS = {
    "rich": log_of(RICH),
    "alone": log_of(RICH, mixed=False),
    "background": log_of(RICH, metadata={"background": True}, agent="c"),
    "failed": log_of(RICH[:20], "run.failed"),
    "cancelled": log_of(RICH[:9], "run.cancelled"),
    "open": log_of(RICH[:11], ""),
    "cut": log_of([*RICH[:3], Finish("length")]),
    "nothing": log_of([]),
    "turned away": log_of([], "run.failed")[:2] + log_of([], "run.failed")[-1:],
    "long": log_of([each for _ in range(40) for each in ("a ", "b ", Thinking("c"))] + RICH + ["d "] * 300),
}
logs = pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)


@st.composite
def yields(draw: st.DrawFn) -> list[Any]:
    """What an agent may yield, in an order in which it may."""
    items: list[Any] = []
    open_calls: list[str] = []
    for number in range(draw(st.integers(0, 25))):
        kind = draw(st.sampled_from("ttthrcaaasdgu"))
        text = draw(st.sampled_from(["a", "bc ", "\n\n", "🎵é", "data: x"]))
        if kind in "thr":
            items.append({"t": str, "h": Thinking, "r": Refusal}[kind](text))
        elif kind == "c":
            open_calls.append(f"t{number}")
            items.append(ToolCall(open_calls[-1], "Tool", by=draw(st.sampled_from(["server", "client", None]))))
        elif kind == "g" and draw(st.booleans()):
            items.append(AGAIN)
            open_calls.clear()
        elif kind == "u":
            items += [Usage(3, 4), Finish(draw(st.sampled_from(["stop", "length", "content_filter"])))]
        elif open_calls:
            call = draw(st.sampled_from(open_calls))
            if kind == "a":
                items.append(ToolArguments(call, text))
            elif kind == "s":
                open_calls.remove(call)
                items.append(ToolReady(call))
            elif kind == "d":
                open_calls.remove(call)
                items.append(ToolResult(call, text, draw(st.booleans())))
    return items


@st.composite
def any_log(draw: st.DrawFn) -> list[Event]:
    end = draw(st.sampled_from(["run.completed", "run.failed", "run.cancelled", ""]))
    background = draw(st.booleans())
    return log_of(draw(yields()), end, metadata={"background": background})


def run_in(log: Sequence[Event], run: str = RUN) -> Located:
    found = located(SESSION, run, log)
    assert found is not None
    return found


def fold_of(view: View, log: Sequence[Event]) -> Fold:
    assert view.fold is not None
    return view.fold(run_in(log))


def frames_of(view: View, log: Sequence[Event]) -> list[bytes]:
    """What each event is, to one fold of the whole."""
    fold = fold_of(view, log)
    return [fold.encode(event) for event in log]


def state(fold: Any) -> Any:
    """All of a fold that can be seen from outside but its frames."""
    if isinstance(fold, ResponseEncoder):
        return fold.fold.response(), [fold.fold.place(number) for number in range(fold.fold.sequence)], fold.over
    return getattr(fold, "completion", lambda: None)(), fold.over


# Folds by themselves --------------------------------------------------------------------------------------------------


@views
@logs
def test_a_copy_goes_on_like_the_original(view: View, log: list[Event]) -> None:
    """Made after each event: it says the same, and is in the same state, whichever of the two goes on first."""
    if len(log) > 200:
        log = [*log[:50], *log[-30:]]
        log = [msgspec.structs.replace(event, offset=place) for place, event in enumerate(log, 1)]
    whole = frames_of(view, log)
    for first in ("copy", "original"):
        for place in range(len(log) + 1):
            original = fold_of(view, log)
            assert [original.encode(event) for event in log[:place]] == whole[:place]
            copy = original.copy()
            assert state(copy) == state(original)
            for fold in (copy, original) if first == "copy" else (original, copy):
                assert [fold.encode(event) for event in log[place:]] == whole[place:]
            assert state(copy) == state(original)


@views
@given(log=any_log(), data=st.data())
@settings(max_examples=60)
def test_copies_of_copies_know_nothing_of_each_other(view: View, log: list[Event], data: st.DataObject) -> None:
    """A crowd of them, each fed at random; one that is fed something else changes no other."""
    whole = frames_of(view, log)
    folds = [(0, fold_of(view, log))]
    for _ in range(data.draw(st.integers(1, 40))):
        which = data.draw(st.integers(0, len(folds) - 1))
        place, fold = folds[which]
        if data.draw(st.booleans()):
            folds.append((place, fold.copy()))
        elif place < len(log):
            step = data.draw(st.integers(1, 4))
            assert [fold.encode(event) for event in log[place : place + step]] == whole[place : place + step]
            folds[which] = (min(place + step, len(log)), fold)
        if data.draw(st.booleans()):
            stray = fold.copy()
            for event in log[: data.draw(st.integers(0, len(log)))][::-1]:
                stray.encode(event)
    for place, fold in folds:
        assert [fold.encode(event) for event in log[place:]] == whole[place:]
    assert len({json.dumps(repr(state(fold))) for _, fold in folds}) == 1


@given(moves=st.lists(st.tuples(st.integers(0, 5), st.sampled_from(["append", "copy"])), max_size=40))
def test_a_trail_is_a_row(moves: list[tuple[int, str]]) -> None:
    """Against lists, whatever is copied and goes on when."""
    trails: list[tuple[Trail[int], list[int]]] = [(Trail([]), [])]
    for number, (which, move) in enumerate(moves):
        trail, row = trails[which % len(trails)]
        if move == "copy":
            trails.append((trail.copy(), list(row)))
        else:
            trail.append(number)
            row.append(number)
        for trail, row in trails:
            assert list(trail) == row
            assert len(trail) == len(row)
            assert [trail[place] for place in range(len(row))] == row
            with pytest.raises(IndexError):
                trail[len(row)]
            with pytest.raises(IndexError):
                trail[-1]


# Logs that make no sense ----------------------------------------------------------------------------------------------


@st.composite
def any_fact(draw: st.DrawFn) -> Fact | OtherFact:
    """A fact of any type, read from a log that says anything."""
    words = st.sampled_from(["", "a", "t1", "t2", "length", "user", RUN, '{"a":1}'])
    values = st.one_of(st.integers(-3, 5), words, st.none(), st.booleans(), st.lists(words, max_size=2))
    type_ = draw(st.sampled_from([*EVENTS, "future.thing"]))
    names = EVENTS[type_].__struct_fields__ if type_ in EVENTS else ("part", "text")
    numbers = {"part", "step", "start", "attempt", "offset"}
    data = {
        name: draw(st.integers(-1, 4) if name in numbers and draw(st.booleans()) else values)
        for name in names
        if draw(st.integers(0, 9))
    }
    for name in ("message", "partial"):
        if name in names and draw(st.booleans()):
            data[name] = {"id": "x", "text": draw(words), "parts": [{"type": draw(words), "step": draw(values)}]}
    return fact(type_, data)  # type: ignore[return-value]


@views
@given(facts=st.lists(any_fact(), max_size=30))
@settings(max_examples=150)
def test_no_fold_ends_on_a_log_that_makes_no_sense(view: View, facts: list[Fact]) -> None:
    """Deltas of parts that never began, results of calls that nobody made: what says nothing is passed over (R16)."""
    begin = LOGS["nothing"][:2]
    log = begin + [Event(each, place, 5.0, RUN) for place, each in enumerate(facts, len(begin) + 1)]
    whole = frames_of(view, log)
    middle = fold_of(view, log)
    for place, event in enumerate(log):
        copy = middle.copy()
        assert middle.encode(event) == whole[place]
        assert copy.encode(event) == whole[place]
    state(middle)
    for event in log:
        mix.frame(event, SESSION, mix.LEGATO)


# The memory -----------------------------------------------------------------------------------------------------------


class Shelf:
    """A log of which the newest events are kept as objects, and older ones are read anew each time: a store with a
    tail that is as short as one likes. Reading lets others go on.

    Attributes:
        visible: how many events there are.
        kept: how many of the newest are the same objects for all.
    """

    def __init__(self, log: Sequence[Event], *, visible: int | None = None, kept: int = 3) -> None:
        self.log = [msgspec.structs.replace(event, wire={}) for event in log]
        self.visible = len(log) if visible is None else visible
        self.kept = kept
        self.reads = 0

    async def read(self, session: str, after: int, *, limit: int = 500, deltas: bool = True) -> list[Event]:
        self.reads += 1
        await asyncio.sleep(0)
        fresh = self.visible - self.kept
        return [
            event if event.offset > fresh else msgspec.structs.replace(event, wire={})
            for event in self.log[: self.visible][after : after + limit]
        ]

    def delete(self) -> None:
        """Leave nothing but a tombstone."""
        tombstone = Event(SessionDeleted(), self.visible + 1, 9.0)
        self.log = [tombstone]

        async def read(session: str, after: int, *, limit: int = 500, deltas: bool = True) -> list[Event]:
            await asyncio.sleep(0)
            return [tombstone] if after < tombstone.offset else []

        self.read = read  # type: ignore[method-assign]


class Yielding(Pace):
    """Lets others go on whenever it is asked."""

    async def keep(self) -> None:
        await asyncio.sleep(0)
        await super().keep()


class Reader:
    """Reads a run out of its memory, and notes what it gets.

    Args:
        shelf, memory: of the session, of the run.
        after: the event it has last, and how many frames of it.
    """

    def __init__(self, shelf: Shelf, memory: RunMemory, after: tuple[int, int] = (0, 0)) -> None:
        self.shelf = shelf
        self.memory = memory
        self.after = after
        self.at = max(memory.run.before, after[0] - 1)
        self.encoder = SharedEncoder(memory, after=after)
        self.got = b""
        self.at_once = False  # as a crowd does
        self.pages: JoinedPages | None = None  # joins what is read, as for who is far behind

    async def read(self, limit: int = 500) -> bool:
        """A batch; False if there was none."""
        events = await self.shelf.read(SESSION, self.at, limit=limit)
        if self.pages is not None and events and events[0].offset > self.after[0]:
            count, events = len(events), self.pages.of(SESSION, events)
            if len(events) < count:
                await self.memory.ready(events, self.at)
        if not self.at_once or (events and not self.memory.ready_now(events)):
            await self.memory.ready(events)
        self.got += b"".join(map(self.encoder.encode, events))
        self.at = events[-1].offset if events else self.at
        return bool(events)

    async def to_the_end(self, limit: int) -> None:
        """Batch after batch, as long as there is one."""
        while await self.read(limit):
            pass

    def check(self, frames: Sequence[bytes]) -> None:
        """It has got what one fold alone says of what it has read, from its place on."""
        offset, count = self.after
        begin = after_frames(frames[offset - 1], count) if 0 < offset <= self.at else b""
        expected = begin + b"".join(frames[offset : self.at])
        if self.pages is None:
            assert self.got == expected
        else:
            assert meaning(self.got) == meaning(expected)


PIECE_FIELDS = {"content", "refusal", "reasoning_content"}


def meaning(body: bytes) -> list[Any]:
    """What the frames of Deva or Chat Completions say: neighbouring pieces of one text are one, with the last id."""
    found: list[Any] = []
    for message in decoded(body):
        said = None if message.data == "[DONE]" else json.loads(message.data)
        kind, text = message.event, said
        if isinstance(said, dict) and said.get("choices"):
            delta = said["choices"][0].pop("delta")
            kind = next(iter(delta)) if len(delta) == 1 and delta.keys() <= PIECE_FIELDS else ""
            text = delta[kind] if kind else delta
        if kind in PIECE_FIELDS and found and found[-1][0] == kind:
            found[-1] = kind, found[-1][1] + text, message.id
        else:
            found.append((kind, text, message.id))
    return found


@views
@given(log=any_log(), data=st.data())
@settings(max_examples=80)
def test_readers_get_what_one_fold_says(view: View, log: list[Event], data: st.DataObject) -> None:
    """Wherever they come in, however much they read at once and together, while the log grows, events are let go and
    read anew, and the memory forgets."""
    frames = frames_of(view, log)
    counts = [each.count(b"\n\n") for each in frames]
    own = [event for event in log if event.run == RUN]

    async def play() -> None:
        shelf = Shelf(log, visible=2, kept=data.draw(st.integers(0, 6)))
        remembered = Memory(shelf, Yielding())  # type: ignore[arg-type]
        run, pages = run_in(log), JoinedPages()
        readers = [Reader(shelf, remembered.of(run, view))]
        for _ in range(data.draw(st.integers(1, 25))):
            move = data.draw(st.sampled_from(["grow", "come", "read", "read", "forget", "keep", "catch up"]))
            if move == "grow":
                shelf.visible = min(shelf.visible + data.draw(st.integers(1, 9)), len(log))
            elif move == "come":
                offset = data.draw(st.sampled_from([0, *(e.offset for e in own if e.offset <= shelf.visible)]))
                count = data.draw(st.integers(0, counts[offset - 1])) if offset else 0
                readers.append(Reader(shelf, remembered.of(run, view), (offset, count)))
                if view.joins and data.draw(st.booleans()):
                    readers[-1].pages = pages
            elif move == "forget":
                remembered._recent.clear()
                if data.draw(st.booleans()):
                    remembered._held.clear()
            elif move == "keep":
                shelf.kept = data.draw(st.integers(0, 9))
            elif move == "catch up":
                fold = await remembered.of(run, view).catch_up()
                alone = fold_of(view, log)
                for event in log[: shelf.visible]:
                    alone.encode(event)
                assert state(fold) == state(alone)
            else:
                several = data.draw(st.lists(st.sampled_from(readers), min_size=1, max_size=4, unique=True))
                limits = [data.draw(st.integers(1, 12)) for _ in several]
                for reader in several:
                    reader.at_once = data.draw(st.booleans())
                await asyncio.gather(*(reader.read(limit) for reader, limit in zip(several, limits, strict=True)))
        shelf.visible = len(log)
        for reader in readers:
            await reader.to_the_end(7)
            reader.check(frames)
            assert reader.encoder.over == any(event.fact.terminal for event in own)

    with pytest.MonkeyPatch.context() as patch:
        make_small(patch, go_events=data.draw(st.sampled_from([1, 4, 32])))
        asyncio.run(play())


def make_small(patch: pytest.MonkeyPatch, *, go_events: int = 1) -> None:
    """Let the memory do in a few events what it does in hundreds, and give way as often as it can."""
    for name, value in {"MARK_EVERY": 5, "MARK_GAP": 3, "PAGES": 2, "GO_SECONDS": 0.0, "GO_EVENTS": go_events}.items():
        patch.setattr(memory, name, value)


@views
async def test_readers_of_a_file_get_what_one_fold_says(view: View, tmp_path: Path) -> None:
    """Of a SQLite store with a short tail, some behind it and some at its head, live."""
    log = LOGS["long"]
    store = SQLiteStore(tmp_path / "log.db", durability="normal", tail_events=8)
    await store.open()
    try:
        for event in log[:2]:
            await store.append(SESSION, [Draft(event.fact, event.run)])
        remembered = Memory(store, Pace())
        run = run_in(log)

        async def follow(after: int, limit: int) -> bytes:
            shared, at = remembered.of(run, view), max(after - 1, run.before)
            encoder, got = SharedEncoder(shared, after=(after, 0)), b""
            with Subscription(store, SESSION, at, limit=limit) as subscription:
                while not encoder.over:
                    events = await subscription.next()
                    await shared.ready(events)
                    got += b"".join(map(encoder.encode, events))
            return got

        readers = {place: asyncio.create_task(follow(place, 1 + place % 50)) for place in range(0, 400, 37)}
        written = []
        for place in range(2, len(log), 11):
            drafts = [Draft(event.fact, event.run) for event in log[place : place + 11]]
            written += (await store.append(SESSION, drafts)).events
            if place % 3 == 0:
                await quiet(rounds=3)
        late = {place: asyncio.create_task(follow(place, 17)) for place in range(1, len(log), 61)}
        whole = [event async for event in _all(store)]
        frames = frames_of(view, whole)
        async with asyncio.timeout(30):
            for place, reader in [*readers.items(), *late.items()]:
                assert await reader == b"".join(frames[max(place - 1, 0) :])
    finally:
        await store.close()


async def _all(store: Any) -> AsyncIterator[Event]:
    at = 0
    while events := await store.read(SESSION, at):
        for event in events:
            yield event
        at = events[-1].offset


# What a reader costs --------------------------------------------------------------------------------------------------


class Counting:
    """A view whose folds count what they are given.

    Attributes:
        calls: how often each offset has been folded.
        breaks: of an offset whether it cannot be folded; halfway through, something has been changed.
    """

    def __init__(self, view: View = RESPONSES_VIEW, key: str | None = None) -> None:
        self.calls: Counter[int] = Counter()
        self.breaks: Callable[[int], bool] = lambda offset: False
        self.view = View(key or view.key, fold=lambda run: CountingFold(view.fold(run), self))  # type: ignore[misc]


class CountingFold:
    def __init__(self, fold: Fold, counting: Counting) -> None:
        self.fold = fold
        self.counting = counting

    @property
    def over(self) -> bool:
        return self.fold.over

    def copy(self) -> CountingFold:
        return CountingFold(self.fold.copy(), self.counting)

    def encode(self, event: Event) -> bytes:
        self.counting.calls[event.offset] += 1
        if self.counting.breaks(event.offset):
            self.fold.encode(event)  # half fed, as far as anybody knows
            raise ZeroDivisionError
        return self.fold.encode(event)

    def heartbeat(self, cursor: int) -> bytes:
        return self.fold.heartbeat(cursor)


def folded(log: Sequence[Event]) -> list[int]:
    return [event.offset for event in log if event.run == RUN]


LONG = log_of([f"{number} " for number in range(2000)], mixed=False)


@pytest.mark.parametrize("kept", [0, 50, 3000])
async def test_a_crowd_near_the_end_has_each_event_folded_once(kept: int) -> None:
    """100 readers who come back to an open run, and then follow it."""
    counting = Counting()
    shelf = Shelf(LONG, visible=1900, kept=kept)
    remembered = Memory(shelf, Pace())  # type: ignore[arg-type]
    crowd = [Reader(shelf, remembered.of(run_in(LONG), counting.view), (1890 + n % 10, 0)) for n in range(100)]
    await asyncio.gather(*(reader.read(20) for reader in crowd))
    while shelf.visible < 1950:
        shelf.visible += 1
        shelf.kept = max(shelf.kept, 1)
        await asyncio.gather(*(reader.read() for reader in crowd))
    again = 10 * (memory.MARK_EVERY + 20) if kept < 50 else 0  # each of the ten batches once, from the last mark on
    assert sum(counting.calls.values()) <= len(folded(LONG[:1950])) + again
    assert max(counting.calls[offset] for offset in range(1901, 1951)) == 1
    for reader in crowd:
        reader.check(frames_of(RESPONSES_VIEW, LONG))


async def test_who_is_far_behind_costs_what_is_read() -> None:
    """Pages that were read anew are worked out from the mark before them, once for all who come by."""
    counting = Counting()
    shelf = Shelf(LONG, kept=0)
    shared = Memory(shelf, Pace()).of(run_in(LONG), counting.view)  # type: ignore[arg-type]
    await shared.catch_up()
    assert sum(counting.calls.values()) == len(folded(LONG))
    for place in (5, 700, 1500, 90, 1999):
        counting.calls.clear()
        crowd = [Reader(shelf, shared, (place, 0)) for _ in range(50)]
        await asyncio.gather(*(reader.read(100) for reader in crowd))
        assert sum(counting.calls.values()) <= 100 + memory.MARK_EVERY + 1
    counting.calls.clear()
    reader = Reader(shelf, shared)
    await reader.to_the_end(100)
    reader.check(frames_of(RESPONSES_VIEW, LONG))
    assert sum(counting.calls.values()) <= 20 * (100 + memory.MARK_EVERY + 1)


async def test_a_memory_lives_as_long_as_it_is_read() -> None:
    """However many others are read meanwhile: its readers, and who comes to them, share it. Then it may go."""
    counting = Counting()
    shelf = Shelf(LONG, kept=3000)
    remembered = Memory(shelf, Pace())  # type: ignore[arg-type]
    reader = Reader(shelf, remembered.of(run_in(LONG), counting.view))
    await reader.read()
    remembered._recent.clear()
    gc.collect()
    assert remembered.of(run_in(LONG), counting.view) is reader.memory
    gone = weakref.ref(reader.memory)
    remembered._recent.clear()
    del reader
    gc.collect()
    assert gone() is None


async def test_what_is_remembered_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of runs, of bytes, of pages of each, and of marks."""
    monkeypatch.setattr(memory, "RUNS", 3)
    shelf = Shelf(LONG, kept=0)
    remembered = Memory(shelf, Pace())  # type: ignore[arg-type]
    run = run_in(LONG)
    for number in range(10):
        remembered.of(msgspec.structs.replace(run, run=f"s~{number:x}"), RESPONSES_VIEW)
        remembered.of(run, RESPONSES_VIEW)
        assert len(remembered._recent) <= 3
    gc.collect()
    assert len(remembered._held) <= 3

    shared = remembered.of(run, RESPONSES_VIEW)
    await shared.catch_up()
    given = shared.bytes
    assert given >= sum(len(event.json) for event in LONG)
    for place in range(1, 1900, 40):
        await Reader(shelf, shared, (place, 0)).read(30)
    assert len(shared._pages) == memory.PAGES
    assert shared.bytes - given == sum(len(each) for page in shared._pages.values() for each in page)
    assert len(shared._marks) == len(shared._marked) <= len(LONG) / memory.MARK_GAP + 1
    assert shared._marked == sorted(set(shared._marked))

    monkeypatch.setattr(memory, "BYTES", shared.bytes - 1)
    remembered.of(msgspec.structs.replace(run, run="s~f"), RESPONSES_VIEW)
    assert list(remembered._recent) == [(RESPONSES_VIEW.key, "s~f")]


@views
@logs
async def test_who_is_behind_is_told_of_a_deletion_where_it_is(view: View, log: list[Event]) -> None:
    """After each event, with the live fold at the end of the run: as if the run had come no further."""
    shelf = Shelf(log, kept=len(log))
    shared = Memory(shelf, Pace()).of(run_in(log), view)  # type: ignore[arg-type]
    await shared.ready(shelf.log)
    reader, alone = SharedEncoder(shared), fold_of(view, log)
    tombstone = Event(SessionDeleted(), len(log) + 1, 9.0)
    for event in shelf.log:
        reader.encode(event)
        alone.encode(event)
        told = copy(reader)
        assert told.encode(tombstone) == alone.copy().encode(tombstone)
        assert told.over
        back = SharedEncoder(shared, after=(event.offset + 1, 0))
        if not alone.over and event.offset > shared.run.before:
            assert back.encode(tombstone) == alone.copy().encode(tombstone)


@logs
async def test_who_came_back_in_the_middle_of_an_event_is_told_of_a_deletion(log: list[Event]) -> None:
    """The number goes on from the one that the reader has."""
    shelf = Shelf(log, kept=len(log))
    shared = Memory(shelf, Pace()).of(run_in(log), RESPONSES_VIEW)  # type: ignore[arg-type]
    fold = await shared.catch_up()
    assert isinstance(fold, ResponseEncoder)
    for number in range(fold.fold.sequence):
        back = SharedEncoder(shared, after=fold.fold.place(number))
        told = back.encode(Event(SessionDeleted(), len(log) + 1, 9.0))
        assert b'"sequence_number":%d,' % (number + 1) in told


@views
async def test_what_goes_on_where_the_fold_stands_takes_no_waiting(view: View, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless somebody else is at work there, something is missing before it, or it is much."""
    shelf = Shelf(LONG, kept=len(LONG))
    shared = Memory(shelf, Yielding()).of(run_in(LONG), view)  # type: ignore[arg-type]
    before = shared.run.before
    reads = shelf.reads
    for event in shelf.log[before : before + 50]:
        assert shared.ready_now([event])
    assert (shared.at, shelf.reads) == (before + 50, reads)
    assert shared.ready_now(shelf.log[before : before + 50])  # they have their bytes
    assert not shared.ready_now(shelf.log[before + 51 : before + 53])
    assert not shared.ready_now(shelf.log[before + 50 : before + 51 + memory.GO_EVENTS])
    catching_up = asyncio.create_task(shared.catch_up())
    await asyncio.sleep(0)
    assert not shared.ready_now(shelf.log[before + 50 : before + 51])
    await catching_up
    assert [event.wire[view.key] for event in shelf.log[before:]] == frames_of(view, LONG)[before:]


async def test_marks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """However long a run is; and from those that are left everything is still worked out."""
    make_small(monkeypatch)
    monkeypatch.setattr(memory, "MARKS", 6)
    shelf = Shelf(LONG, kept=0)
    shared = Memory(shelf, Pace()).of(run_in(LONG), RESPONSES_VIEW)  # type: ignore[arg-type]
    await shared.catch_up()
    assert 3 <= len(shared._marks) == len(shared._marked) <= 6
    assert shared._marked[0] == shared.run.before
    assert shared._marked[-1] > len(LONG) / 2
    for place in (1500, 3, 800, 1999, 64):
        reader = Reader(shelf, shared, (place, 0))
        await reader.to_the_end(100)
        reader.check(frames_of(RESPONSES_VIEW, LONG))
        assert len(shared._marks) == len(shared._marked) <= 6


# What goes wrong in the middle ----------------------------------------------------------------------------------------


@views
@pytest.mark.parametrize("kept", [0, 1000])
async def test_a_reader_that_leaves_in_the_middle_leaves_a_place_that_is_known(
    view: View, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At whatever await: the live fold stands where ``at`` says, and all others get what they are to get."""
    make_small(monkeypatch)
    log = LOGS["rich"]
    frames = frames_of(view, log)
    rounds, done = 0, False
    while not done:
        shelf = Shelf(log, kept=kept)
        shared = Memory(shelf, Yielding()).of(run_in(log), view)  # type: ignore[arg-type]
        leaving: list[asyncio.Task[Any]] = [
            asyncio.create_task(Reader(shelf, shared, (20, 0)).read(6)),
            asyncio.create_task(shared.catch_up()),
            asyncio.create_task(Reader(shelf, shared).read(9)),
        ]
        await quiet(rounds=rounds)
        done = all(task.done() for task in leaving)
        for task in leaving:
            task.cancel()
        await asyncio.gather(*leaving, return_exceptions=True)
        alone = fold_of(view, log)
        for event in log[: shared.at]:
            alone.encode(event)
        assert state(shared.fold) == state(alone)
        for at, fold in zip(shared._marked, shared._marks, strict=True):
            copy = fold.copy()
            assert [copy.encode(event) for event in log[at:]] == frames[at:]
        others = [Reader(shelf, shared, (place, 0)) for place in (0, 1, 9, 25, 30)]
        for reader in others:
            await reader.to_the_end(4)
            reader.check(frames)
        rounds += 1
    assert rounds > 20


@pytest.mark.parametrize("kept", [0, 1000])
@pytest.mark.parametrize("bad", [4, 30, 61])
@pytest.mark.parametrize("go_events", [1, 32])
async def test_a_fold_that_fails_harms_only_who_reads_there(
    bad: int, kept: int, go_events: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A dialect with a mistake in it: whoever comes to that event is cut off, each time; nobody waits for ever, others
    get what they are to get, and once it is mended, all do."""
    make_small(monkeypatch, go_events=go_events)
    log = log_of(["a ", Thinking("b"), *RICH, *["c "] * 40], mixed=False)
    frames = frames_of(RESPONSES_VIEW, log)
    counting = Counting()
    counting.breaks = lambda offset: offset == bad
    shelf = Shelf(log, kept=kept)
    remembered = Memory(shelf, Pace())  # type: ignore[arg-type]
    shared = remembered.of(run_in(log), counting.view)

    async def cut_off(after: int, limit: int) -> Reader:
        reader = Reader(shelf, shared, (after, 0))
        with pytest.raises(ZeroDivisionError):
            await reader.to_the_end(limit)
        return reader

    async with asyncio.timeout(30):
        for _ in range(3):
            for reader in await asyncio.gather(*(cut_off(0, limit) for limit in (1, 2, 7, 100))):
                reader.check(frames)
                assert reader.at < bad
            with pytest.raises(ZeroDivisionError):
                await shared.catch_up()
            before = Reader(shelf, shared)
            while before.at < bad - 1:
                await before.read(min(3, bad - 1 - before.at))
            before.check(frames)
        assert shared.at < bad
        assert shared.bytes < sum(len(event.json) for event in log) + sum(map(len, frames)) * memory.PAGES
        whole = Reader(shelf, remembered.of(run_in(log), CHAT_VIEWS[False]))
        await whole.to_the_end(5)
        whole.check(frames_of(CHAT_VIEWS[False], log))

        counting.breaks = lambda offset: False
        for after in (0, bad - 1, bad, bad + 5):
            reader = Reader(shelf, shared, (after, 0))
            await reader.to_the_end(6)
            reader.check(frames)


@pytest.mark.parametrize("kept", [0, 1000])
@pytest.mark.parametrize("after", [0, 20, 40])
async def test_what_was_deleted_before_it_was_folded_is_not_made_up(after: int, kept: int) -> None:
    """A reader has a batch in its hand, and what came before it is gone: it is cut off, and told when it comes back."""
    log = LOGS["rich"]
    shelf = Shelf(log, kept=kept)
    shared = Memory(shelf, Pace()).of(run_in(log), RESPONSES_VIEW)  # type: ignore[arg-type]
    events = await shelf.read(SESSION, max(after, 1), limit=10)
    shelf.delete()
    if after == 0:  # it begins with the run's first event: nothing is missing
        await shared.ready(events)
        assert [event.wire["responses"] for event in events if event.run == RUN] == [
            frame for frame, event in zip(frames_of(RESPONSES_VIEW, log)[1:11], events, strict=True) if event.run == RUN
        ]
    else:
        with pytest.raises(SessionNotFound):
            await shared.ready(events)
        assert [event for event in events if "responses" in event.wire] == []
    assert shared.gone(Event(SessionDeleted(), 99, 9.0), (1, 0))


# Through the application ----------------------------------------------------------------------------------------------


async def rich(turn: Any) -> AsyncIterator[Any]:
    """Yields all that is rich, but for the crash."""
    for item in RICH:
        if item != AGAIN:
            yield item
    if turn.message.text == "wait":
        await asyncio.Event().wait()


async def body_of(chat: Chat, target: str, *, method: str = "GET", last: str | None = None) -> bytes:
    headers = {} if last is None else {"last-event-id": last}
    async with asyncio.timeout(30), chat.driver.stream(target, method=method, headers=headers) as stream:
        assert stream.status == 200
        body = b"".join([chunk async for chunk in stream])
        assert stream.error is None
        return body


def numbers(body: bytes) -> list[int]:
    return [json.loads(message.data)["sequence_number"] for message in decoded(body) if message.data != "[DONE]"]


async def test_a_response_goes_on_after_each_of_its_numbers() -> None:
    """Once it has ended: exactly what follows; nothing after its last number, no [DONE] alone, nor beyond."""
    async with chatting(None, rich) as chat:
        run = (await chat.said()).json()["runId"]
        target = f"/v1/responses/resp_{run}?stream=true"
        whole = await body_of(chat, target)
        last = numbers(whole)[-1]
        assert numbers(whole) == list(range(last + 1))
        frames = whole.split(b"\n\n")
        for number in range(last):
            rest = await body_of(chat, f"{target}&starting_after={number}")
            assert rest == b"\n\n".join(frames[number + 1 :])
            assert rest.endswith(DONE)
        for number in (last, last + 1, 10**15 - 1):
            assert await body_of(chat, f"{target}&starting_after={number}") == b""
        for odd in ("-1", "x", "1.5", str(10**15)):
            assert (await chat.driver.request("GET", f"{target}&starting_after={odd}")).status == 400


async def test_a_running_response_goes_on_after_each_of_its_numbers() -> None:
    """What was sent so far is followed by the rest, and a number that was never sent is refused."""
    gate = Gate()
    async with chatting(None, gate) as chat:
        run = (await chat.send()).json()["runId"]
        gate.let(*(item for item in RICH[:12] if item != AGAIN))
        await quiet()
        target = f"/v1/responses/resp_{run}?stream=true"
        first = (await chat.driver.request("GET", f"/v1/responses/resp_{run}")).json()
        assert first["status"] == "in_progress"
        async with chat.driver.stream(target) as stream:
            await stream.read()
            await quiet()
            while not stream.body.endswith(b"\n\n"):
                await stream.read()
            sent = numbers(stream.body)[-1]
        for beyond in (sent + 1, sent + 2, 10**9):
            assert (await chat.driver.request("GET", f"{target}&starting_after={beyond}")).status == 400
        bodies = [asyncio.create_task(body_of(chat, f"{target}&starting_after={number}")) for number in range(sent + 1)]
        await quiet()
        gate.let("more")
        gate.close()
        whole = (await body_of(chat, target)).split(b"\n\n")
        for number, body in enumerate(bodies):
            assert await body == b"\n\n".join(whole[number + 1 :])


@pytest.mark.parametrize("times", ["number", "iso"])
async def test_an_answer_of_deva_goes_on_after_each_of_its_frames(times: str) -> None:
    """After the last one there is nothing, and the stream ends."""
    async with chatting(None, rich) as chat:
        message = (await chat.said()).json()["messageId"]
        target = f"/api/sdk/chat/{chat.session}/messages/{message}/query/stream?created_at={times}"
        whole = await body_of(chat, target, method="POST")
        frames = decoded(whole)
        assert [frame.event for frame in frames[-2:]] == ["completion", "response_message"]
        for place, frame in enumerate(frames):
            rest = decoded(await body_of(chat, target, method="POST", last=frame.id))
            assert [(each.event, each.data, each.id) for each in rest] == [
                (each.event, each.data, each.id) for each in frames[place + 1 :]
            ]


@pytest.mark.parametrize("forgetful", [False, True])
async def test_each_reader_is_told_of_the_deletion_in_its_own_words(
    forgetful: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several readers of two runs in all dialects: each ends, with the next number of its own run."""
    if forgetful:
        monkeypatch.setattr(memory, "RUNS", 1)
    gate = Gate()
    async with chatting(None, gate) as chat:
        sent = [(await chat.send(text)).json() for text in ("one", "two")]
        gate.let(*(item for item in RICH[:7] if item != AGAIN))
        await quiet()
        responses = [f"/v1/responses/resp_{each['runId']}?stream=true" for each in sent]
        deva = f"/api/sdk/chat/{chat.session}/messages"
        readers: list[tuple[str, int, asyncio.Task[bytes]]] = []
        for round in range(2):
            for which, each in enumerate(sent):
                stream = f"{deva}/{each['messageId']}/query/stream"
                readers += [
                    ("responses", which, asyncio.create_task(body_of(chat, responses[which]))),
                    ("deva", which, asyncio.create_task(body_of(chat, stream, method="POST"))),
                ]
            readers.append(("resumed", 0, asyncio.create_task(body_of(chat, f"{responses[0]}&starting_after={round}"))))
            await quiet()
        chatting_too = asyncio.create_task(
            chat.driver.request(
                "POST",
                "/v1/chat/completions",
                json={"model": "Gate", "stream": True, "messages": [{"role": "user", "content": "x"}]},
            )
        )
        await quiet()
        assert (await chat.driver.request("DELETE", f"/api/sessions/{chat.session}")).status == 204
        lengths: dict[int, set[int]] = {0: set(), 1: set()}
        async with asyncio.timeout(30):
            for dialect, which, reader in readers:
                body = await reader
                last = decoded(body)[-1]
                assert last.event == "error"
                if dialect == "deva":
                    assert json.loads(last.data)["code"] == "session_not_found"
                else:
                    assert json.loads(last.data)["code"] == "response_deleted"
                    told = numbers(body)
                    assert told == list(range(told[0], told[0] + len(told)))
                    lengths[which].add(told[-1])
        assert [len(each) for each in lengths.values()] == [1, 1]
        assert lengths[0] != lengths[1]
        chatting_too.cancel()


class Half:
    """A dialect with a mistake in it: it cannot say what a tool has done."""

    def __init__(self) -> None:
        counting = Counting(key="half")
        log_offsets: dict[int, bool] = {}
        counting.breaks = lambda offset: log_offsets.get(offset, False)
        self.offsets = log_offsets
        self.row = Dialect("half", [], view=lambda name: counting.view if name == "half" else None, views=("half",))


async def test_the_inspector_shows_what_can_be_shown() -> None:
    """A dialect that fails has an empty column; those beside it are whole."""
    half = Half()
    async with chatting(Legato("memory:", agents=[rich], dialects=[half.row])) as chat:
        await chat.said()
        half.offsets[8] = True
        target = f"/api/inspect/sessions/{chat.session}/wire?limit=500&dialects="
        answer = await chat.driver.request("GET", f"{target}half,responses,chat,deva,mix/legato")
        assert answer.status == 200
        alone = await chat.driver.request("GET", f"{target}responses,chat,deva,mix/legato")
        rows = answer.json()["rows"]
        assert [{name: text for name, text in row["wire"].items() if name != "half"} for row in rows] == [
            row["wire"] for row in alone.json()["rows"]
        ]
        before = [row["offset"] for row in rows if row["offset"] < 8 and "responses" in row["wire"]]
        assert [row["offset"] for row in rows if "half" in row["wire"]] == before
        assert before[:5] == [2, 3, 4, 5, 6]


async def test_a_log_that_makes_no_sense_is_read_to_its_end() -> None:
    """By readers and by the inspector, over each dialect: what says nothing is passed over."""
    async with chatting(None, Agent(rich, name="rich", on_crash="resume")) as chat:
        store, session = chat.app.store, "s_odd"
        run = f"{session}~1"
        await append_raw(store, session, "session.created", {"title": "odd"})
        await append_raw(store, session, "message.created", {"id": f"{run}~u", "role": "user", "text": "x"}, run)
        await append_raw(store, session, "run.started", {"agent": "rich", "attempt": 1}, run)
        for type_, data in (
            ("tool_call.delta", {"part": 7, "step": 1, "id": "t", "start": 0, "arguments": "{"}),
            ("text.delta", {"part": 0, "step": 1, "start": 0, "text": "It "}),
            ("tool_call.completed", {"part": 9, "step": 1, "id": "t", "name": "T", "arguments": "{}"}),
            ("tool.completed", {"id": "u", "name": "T", "progress": "", "success": True, "output": "x"}),
            ("text.delta", {"part": 3, "step": 2, "start": 0, "text": "goes on"}),
            ("run.completed", {"finish_reason": "stop", "message": {"id": "m", "text": "It goes on", "parts": []}}),
        ):
            await append_raw(store, session, type_, data, run)
        responses = await body_of(chat, f"/v1/responses/resp_{run}?stream=true")
        assert numbers(responses) == list(range(len(numbers(responses))))
        assert responses.endswith(DONE)
        deva = await body_of(chat, f"/api/sdk/chat/{session}/messages/{run}~u/query/stream", method="POST")
        assert [frame.event for frame in decoded(deva)] == ["content", "content", "completion", "response_message"]
        target = f"/api/inspect/sessions/{session}/wire?dialects=responses,chat,deva,mix/legato"
        rows = (await chat.driver.request("GET", target)).json()["rows"]
        assert "".join(row["wire"].get("responses", "") for row in rows).encode() == responses.removeprefix(HEARTBEAT)
        assert "[DONE]" in "".join(row["wire"].get("chat", "") for row in rows)
