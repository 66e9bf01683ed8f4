"""The inspector's operations: what this process does now, and what a session's log is on each wire.

All of it is read-only, and made when it is asked for: a stream does nothing for the inspector but keep its own cursor.
The wire forms come from the very encoders that serve readers, fed from the log. The rule: an answer has a bound,
however long the log is and however many read it.

The page is ``web/inspect.html``; ``docs/inspect.md`` says what it shows.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Protocol, runtime_checkable

import msgspec

from ..dialect import chat, deva, mix
from ..dialect.responses import ResponseEncoder
from ..errors import InvalidInput, SessionNotFound
from ..event import DELTAS, Event
from ..log import Log, OpenRun, SessionInfo, Store
from ..run import Runner
from .operation import Answer, Operation, Param, Request
from .stored import Found
from .stream import Pump, Streams

READERS = 200
"""Readers in one answer; those that are furthest behind come first."""
RUNS = 100
"""Open runs in one answer."""
OUTLINE = 5_000
"""Events in one page of an outline, at about 12 bytes each."""
PAGE_BYTES = 2 * 1024 * 1024
"""A page of wire forms ends when it holds so much: the last event of a long answer says all of it again, four times."""
COLUMNS = 8
"""Dialects in one page of wire forms."""
FOLDS = 32
"""Folds that are kept between pages; each holds the text of a run as far as it has come."""
STALLED = 2.0
"""Seconds that a write may wait before its reader is told to be stalled."""

Encode = Callable[[Event], bytes]


@runtime_checkable
class Describes(Protocol):
    """A store that tells something of itself."""

    def facts(self) -> dict[str, str | int]:
        """Names and figures."""
        ...


# What is answered -----------------------------------------------------------------------------------------------------


class _Facts(msgspec.Struct, rename="camel", kw_only=True):
    """camelCase on the wire. Times are seconds since the epoch, by this server's clock."""


class Reader(_Facts):
    """One open stream of this process.

    Attributes:
        number: which one, counted since the process began.
        dialect: ``mix/PROFILE``, ``responses``, ``chat`` or ``deva``.
        cursor: the offset up to which everything has been written to its connection.
        since: when it was opened.
        bytes: written so far.
        waiting: seconds since which its connection takes nothing; 0 when it does.
    """

    number: int
    session: str
    dialect: str
    cursor: int
    since: float
    bytes: int
    waiting: float


class OpenRunFacts(_Facts):
    """A run without its terminal event.

    Attributes:
        offset: of its message.
        here: this process drives it.
        epoch: how often somebody has taken it.
        lease: seconds until it may be taken over; null when nobody holds it.
    """

    session: str
    run: str
    offset: int
    started: bool
    here: bool
    epoch: int
    lease: float | None


class SessionFacts(_Facts):
    """A session, without reading its log.

    Attributes:
        head: the offset of its last event.
        runs: how many have not ended.
        readers: streams of it in this process.
        listening: who waits for its doorbell, readers or not.
    """

    id: str
    title: str
    head: int
    created_at: float
    updated_at: float
    runs: int
    readers: int
    listening: int


class Inspected(_Facts):
    """This process and its store.

    Attributes:
        store: its ``kind``, and what else it tells.
        streams, max_streams: open, and how many may be.
        running: runs that this process drives; ``open_runs`` are those of the store, the first 100.
        stalled: readers that have taken nothing for two seconds.
        sessions: those last written to.
    """

    version: str
    now: float
    started_at: float
    draining: bool
    agents: list[str]
    store: dict[str, str | int]
    streams: int
    max_streams: int
    running: int
    open_runs: list[OpenRunFacts]
    stalled: list[Reader]
    sessions: list[SessionFacts]


class Outline(_Facts):
    """A stretch of a log in columns, one entry for each event, offsets being dense from ``after`` + 1.

    Attributes:
        next: the ``after`` of the next page; null when this one ends at the head.
        types, runs: names that ``type`` and ``run`` are places in; ``run`` is -1 for an event of the session itself.
        at: milliseconds since the session's first event.
        size: characters of a delta; 0 for other events.
    """

    after: int
    next: int | None
    types: list[str]
    runs: list[str]
    type: list[int]
    run: list[int]
    at: list[int]
    size: list[int]


class InspectedSession(_Facts):
    """A session: its facts, who reads it, and a page of its outline. ``reading`` is the number of all its readers."""

    now: float
    session: SessionFacts
    runs: list[OpenRunFacts]
    readers: list[Reader]
    reading: int
    outline: Outline


class WireRow(_Facts):
    """A stored event, and the text of the frames that it is, by dialect; those in which it is silent are left out."""

    offset: int
    type: str
    run: str | None
    at: float
    data: dict[str, Any]
    wire: dict[str, str]


class WirePage(_Facts):
    """Events with their wire forms. ``next`` is the ``after`` of the next page, null when this one ends at ``head``."""

    rows: list[WireRow]
    head: int
    next: int | None


# Wire forms -----------------------------------------------------------------------------------------------------------


def _responses(found: Found) -> Encode:
    return ResponseEncoder(found.fold()).encode


def _chat(found: Found) -> Encode:
    return chat.ChatEncoder(found.run, agent=found.agent).encode


def _deva(found: Found) -> Encode:
    return deva.AnswerEncoder(found.session, found.run).encode


FOLDED: dict[str, Callable[[Found], Encode]] = {"responses": _responses, "chat": _chat, "deva": _deva}
"""Dialects in which what an event is depends on what came before it in its run."""


def _mix(session: str, profile: mix.Profile) -> Encode:
    def encode(event: Event) -> bytes:
        # On a copy: what the inspector looks at must not stay in the tail cache for nobody.
        return mix.encode(msgspec.structs.replace(event, wire=dict(event.wire)), session, profile)

    return encode


class Column:
    """One dialect's view of a page.

    Args:
        store, session: the log.
        name: a key of ``FOLDED``, or ``mix/PROFILE``.
        paused: folds of earlier pages, by dialect and run; taken from here and put back with the place they are at.
    """

    def __init__(self, store: Store, session: str, name: str, paused: Paused) -> None:
        self.name = name
        self._store = store
        self._session = session
        self._paused = paused
        kind, _, client = name.partition("/")
        if kind != "mix" and name not in FOLDED:
            known = ", ".join(["mix/CLIENT", *FOLDED])
            raise InvalidInput(f"dialects are of {known}, got {name[:60]!r}.", dialect=name[:60])
        self._mix = _mix(session, mix.profile(client)) if kind == "mix" else None
        self._open: dict[str, Encode] = {}

    async def frames(self, event: Event) -> str:
        """What ``event`` is to a reader, as text. To be called for each event of the page, in order."""
        if self._mix is not None:
            return self._mix(event).decode()
        if event.run is None:
            return ""
        encode = self._open.get(event.run)
        if encode is None:
            encode = self._open[event.run] = await self._fold(event.run, event.offset)
        return encode(event).decode()

    def pause(self, at: int) -> None:
        """The page is over, at this offset: keep what has been folded for the next."""
        for run, encode in self._open.items():
            self._paused.put((self.name, run), at, encode)

    async def _fold(self, run: str, offset: int) -> Encode:
        """The run's fold as it is just before ``offset``."""
        done, encode = self._paused.take((self.name, run), before=offset)
        if encode is None:
            found = await _found(self._store, self._session, run)
            if found is None:
                raise SessionNotFound(self._session)  # deleted meanwhile
            done, encode = found.before, FOLDED[self.name](found)
        async for event in Log(self._store, self._session).all(done, until=offset - 1):
            if event.run == run:
                encode(event)
        return encode


class Paused:
    """Folds between two pages, so that a page costs what is in it and not what came before; the oldest are let go."""

    def __init__(self, limit: int = FOLDS) -> None:
        self._limit = limit
        self._folds: OrderedDict[tuple[str, str], tuple[int, Encode]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._folds)

    def take(self, key: tuple[str, str], *, before: int) -> tuple[int, Encode | None]:
        """The fold and the offset it is at, if that lies before ``before``; it is no longer here then."""
        at, _ = self._folds.get(key, (before, None))
        return self._folds.pop(key) if at < before else (0, None)

    def put(self, key: tuple[str, str], at: int, encode: Encode) -> None:
        """Keep a fold that has been given everything up to and with ``at``."""
        self._folds[key] = (at, encode)
        self._folds.move_to_end(key)
        if len(self._folds) > self._limit:
            self._folds.popitem(last=False)


# Operations -----------------------------------------------------------------------------------------------------------


class InspectRoutes:
    """The operations under ``/api/inspect``.

    Args:
        store, runner, streams: of the application.
    """

    def __init__(self, store: Store, runner: Runner, streams: Streams) -> None:
        self._store = store
        self._runner = runner
        self._streams = streams
        self._started_at = time.time()
        self._paused = Paused()
        self._folding = asyncio.Lock()

    async def server(self, request: Request) -> Answer:
        """What this process does: its runs, its readers in trouble, its sessions."""
        limit = request.number("limit", default=40, least=1, most=200)
        now = time.time()
        stalled = [pump for pump in self._streams.readers() if pump.stalled(STALLED)]
        inspected = Inspected(
            version=version("legato"),
            now=now,
            started_at=self._started_at,
            draining=self._runner.draining or self._streams.draining,
            agents=list(self._runner.agents),
            store=_described(self._store),
            streams=len(self._streams),
            max_streams=self._streams.total,
            running=self._runner.running,
            open_runs=self._runs(await self._store.open_runs(), now),
            stalled=_readers(stalled),
            sessions=[self._facts(info) for info in await self._store.sessions(limit=limit)],
        )
        return Answer(200, inspected)

    async def session(self, request: Request) -> Answer:
        """One session: who reads it and how far they are, its open runs, and an outline of its log."""
        after = request.number("after", default=0, least=0, most=10**15 - 1)
        limit = request.number("limit", default=2_000, least=1, most=OUTLINE)
        session = request.path["id"]
        # In this order, so that no reader seems to be ahead of the log.
        pumps = self._streams.readers(session)
        readers, reading = _readers(pumps), len(pumps)
        info = await self._store.info(session)
        outline = await self._outline(info, after, limit)
        inspected = InspectedSession(
            now=time.time(),
            session=self._facts(info),
            runs=self._runs(info.open_runs, time.time()),
            readers=readers,
            reading=reading,
            outline=outline,
        )
        return Answer(200, inspected)

    async def wire(self, request: Request) -> Answer:
        """Events of a session beside the bytes that they are in each of some dialects."""
        after = request.number("after", default=0, least=0, most=10**15 - 1)
        limit = request.number("limit", default=100, least=1, most=500)
        session = request.path["id"]
        info = await self._store.info(session)
        names = list(dict.fromkeys(filter(None, request.query.get("dialects", "").split(","))))
        if len(names) > COLUMNS:
            raise InvalidInput(f"At most {COLUMNS} dialects, got {len(names)}.", limit=COLUMNS)
        columns = [Column(self._store, session, name, self._paused) for name in names]
        events = await self._store.read(session, after, limit=limit)
        async with self._folding:  # one at a time: the process has readers to serve
            rows = await _rows(events, columns)
        last = rows[-1].offset if rows else info.head
        return Answer(200, WirePage(rows=rows, head=info.head, next=last if last < info.head else None))

    async def _outline(self, info: SessionInfo, after: int, limit: int) -> Outline:
        outline = _Columns(info)
        at = after
        while outline.room(limit) and at < info.head:
            events = await self._store.read(info.session, at, limit=min(outline.room(limit), 500))
            if not events:
                break
            outline.add(events)
            at = events[-1].offset
        return outline.page(after, None if at >= info.head else at)

    def _facts(self, info: SessionInfo) -> SessionFacts:
        return SessionFacts(
            id=info.session,
            title=info.data.get("title", ""),
            head=info.head,
            created_at=info.created_at,
            updated_at=info.updated_at,
            runs=len(info.open_runs),
            readers=self._streams.count(info.session),
            listening=self._store.doorbell.listening(info.session),
        )

    def _runs(self, runs: Sequence[OpenRun], now: float) -> list[OpenRunFacts]:
        return [
            OpenRunFacts(
                session=run.session,
                run=run.run,
                offset=run.offset,
                started=run.started,
                here=run.owner == self._runner.owner,
                epoch=run.epoch,
                lease=None if run.owner is None else run.expires_at - now,
            )
            for run in runs[:RUNS]
        ]

    def operations(self) -> list[Operation]:
        """All of them, as the router and the document need them."""
        session = Param("id", "path", "The session's id.", required=True)
        after = Param("after", "query", "Events after this offset.", {"type": "integer", "minimum": 0})
        dialects = Param(
            "dialects", "query", f"Up to {COLUMNS} of `{'`, `'.join(FOLDED)}`, `mix/CLIENT`, with commas between."
        )
        return [
            Operation("inspectServer", "GET", "/api/inspect", "inspector", "What the server does now", self.server,
                      {200: Inspected}, params=[_limit(200)]),
            Operation("inspectSession", "GET", "/api/inspect/sessions/{id}", "inspector",
                      "Who reads a session, and an outline of its log", self.session, {200: InspectedSession},
                      params=[session, after, _limit(OUTLINE)], errors=(404,)),
            Operation("inspectWire", "GET", "/api/inspect/sessions/{id}/wire", "inspector",
                      "A session's events in the form of each dialect", self.wire, {200: WirePage},
                      params=[session, after, _limit(500), dialects], errors=(404,)),
        ]  # fmt: skip


async def _found(store: Store, session: str, run: str) -> Found | None:
    """The run as it lies in the log, also if it has been withdrawn: its events are there, and were sent."""
    agent = "default"
    async for event in Log(store, session).all(deltas=False):
        if event.type == "session.created":
            agent = event.data.get("agent") or agent
        elif event.type == "message.created" and event.run == run:
            return Found(session=session, run=run, message=event, agent=event.data.get("agent") or agent)
    return None


async def _rows(events: Sequence[Event], columns: Sequence[Column]) -> list[WireRow]:
    rows: list[WireRow] = []
    room = PAGE_BYTES
    for event in events:
        frames = {column.name: text for column in columns if (text := await column.frames(event))}
        rows.append(
            WireRow(offset=event.offset, type=event.type, run=event.run, at=event.at, data=event.data, wire=frames)
        )
        room -= sum(map(len, frames.values()))
        if room <= 0:
            break
    if rows:
        for column in columns:
            column.pause(rows[-1].offset)
    return rows


class _Columns:
    """An outline as it is gathered."""

    def __init__(self, info: SessionInfo) -> None:
        self._begin = info.created_at
        self._types: dict[str, int] = {}
        self._runs: dict[str, int] = {}
        self._rows: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [])

    def room(self, limit: int) -> int:
        return limit - len(self._rows[0])

    def add(self, events: Sequence[Event]) -> None:
        type_, run, at, size = self._rows
        for event in events:
            type_.append(self._types.setdefault(event.type, len(self._types)))
            run.append(-1 if event.run is None else self._runs.setdefault(event.run, len(self._runs)))
            at.append(round((event.at - self._begin) * 1000))
            size.append(_size(event))

    def page(self, after: int, next: int | None) -> Outline:
        type_, run, at, size = self._rows
        return Outline(
            after=after,
            next=next,
            types=list(self._types),
            runs=list(self._runs),
            type=type_,
            run=run,
            at=at,
            size=size,
        )


def _size(event: Event) -> int:
    if event.type not in DELTAS:
        return 0
    return len(event.data["arguments" if event.type == "tool_call.delta" else "text"])


def _reader(pump: Pump) -> Reader:
    return Reader(
        number=pump.number,
        session=pump.session,
        dialect=pump.dialect,
        cursor=pump.cursor,
        since=pump.opened_at,
        bytes=pump.bytes,
        waiting=pump.waiting,
    )


def _readers(pumps: Sequence[Pump]) -> list[Reader]:
    return sorted(map(_reader, pumps), key=_place)[:READERS]


def _place(reader: Reader) -> tuple[int, int]:
    return reader.cursor, reader.number


def _described(store: Store) -> dict[str, str | int]:
    if isinstance(store, Describes):
        return store.facts()
    return {"kind": type(store).__name__.removesuffix("Store").lower()}


def _limit(most: int) -> Param:
    return Param("limit", "query", "How many at most.", {"type": "integer", "minimum": 1, "maximum": most})
