"""The inspector's operations: what this process does now, and what a session's log is on each wire.

All of it is read-only, and made when it is asked for: a stream does nothing for the inspector but keep its own cursor.
The wire forms come from the very encoders that serve readers, fed from the log. The rule: an answer has a bound,
however long the log is and however many read it.

The page is ``web/inspect.html``; ``docs/inspect.md`` says what it shows.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import msgspec

import legato

from ..dialect import mix
from ..dialect.common import OFFSET_MOST
from ..errors import InvalidInput, LegatoError
from ..event import CallDelta, Event, MessageCreated, TextPiece
from ..figures import Spread
from ..json import JsonObject
from ..log import Log, SessionInfo, Store
from ..machine import OpenRun
from ..sessions import Located, located
from ..spending import is_own
from .life import Life
from .measures import STALLED, Measure, measures
from .memory import Memory
from .operation import Dialect, Operation, Param, session_id
from .pump import Pump
from .reply import Body, View
from .request import Request

logger = logging.getLogger("legato")

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


@runtime_checkable
class Describes(Protocol):
    """A store that tells something of itself."""

    def facts(self) -> dict[str, str | int]:
        """Names and figures."""
        ...


# What is answered -----------------------------------------------------------------------------------------------------


class _Inspected(msgspec.Struct, rename="camel", kw_only=True):
    """camelCase on the wire. Times are seconds since the epoch, by this server's clock."""


class ReaderFacts(_Inspected):
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


class OpenRunFacts(_Inspected):
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


class SessionFacts(_Inspected):
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


class Inspected(_Inspected):
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
    stalled: list[ReaderFacts]
    sessions: list[SessionFacts]


class Outline(_Inspected):
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


class InspectedSession(_Inspected):
    """A session: its facts, who reads it, and a page of its outline. ``reading`` is the number of all its readers."""

    now: float
    session: SessionFacts
    runs: list[OpenRunFacts]
    readers: list[ReaderFacts]
    reading: int
    outline: Outline


class WireRow(_Inspected):
    """A stored event, and the text of the frames that it is, by dialect; those in which it is silent are left out."""

    offset: int
    type: str
    run: str | None
    at: float
    data: JsonObject
    wire: dict[str, str]


class WirePage(_Inspected):
    """Events with their wire forms. ``next`` is the ``after`` of the next page, null when this one ends at ``head``."""

    rows: list[WireRow]
    head: int
    next: int | None


class MeasureFacts(_Inspected):
    """A figure of this process, as its operators know it.

    Attributes:
        name, help, labels: as Prometheus has them.
        value: of what is spread, how many values there were.
        mean, most: of what is spread; of 100 values 99 are not beyond ``most``, one of the bounds by which they are
            counted. Null of others, and where there is none.
    """

    name: str
    help: str
    labels: dict[str, str]
    value: float
    mean: float | None = None
    most: float | None = None


class InspectedMeasures(_Inspected):
    """All figures of this process and its store, since it began."""

    now: float
    measures: list[MeasureFacts]


# Wire forms -----------------------------------------------------------------------------------------------------------


class Column:
    """One dialect's view of a page.

    Args:
        session: whose log.
        name: for example ``mix/legato``.
        view: what that name is.
    """

    def __init__(self, session: str, name: str, view: View) -> None:
        self.name = name
        self.folds = view.fold is not None
        self._session = session
        self._view = view

    async def prepare(self, events: Sequence[Event], runs: Sequence[Located], memory: Memory) -> None:
        """Work out what these events, a page in order, are. Folds are those that serve the readers."""
        for run in runs if self.folds else ():
            try:
                await memory.of(run, self._view).ready(events)
            except LegatoError:
                raise
            except Exception:  # the other columns can be shown
                logger.exception("run %s cannot be shown as %s", run.run, self.name)

    def frames(self, event: Event) -> str:
        """What ``event`` is to a reader, as text."""
        if self._view.event is None:
            return event.wire.get(self._view.key, b"").decode()
        # On a copy: what the inspector looks at must not stay in the tail cache for nobody.
        return self._view.event(msgspec.structs.replace(event, wire=dict(event.wire)), self._session).decode()


def _column(dialects: Sequence[Dialect], session: str, name: str) -> Column:
    view = next((view for dialect in dialects if (view := dialect.view(name)) is not None), None)
    if view is None:
        raise InvalidInput(f"dialects are of {', '.join(_views(dialects))}, got {name[:60]!r}.", dialect=name[:60])
    return Column(session, name, view)


def _views(dialects: Sequence[Dialect]) -> list[str]:
    return [name for dialect in dialects for name in dialect.views]


# Operations -----------------------------------------------------------------------------------------------------------


class Inspector:
    """The operations under ``/api/inspect``.

    Args:
        dialects: those whose forms can be shown.
    """

    def __init__(self, dialects: Sequence[Dialect]) -> None:
        self._dialects = dialects

    async def server(self, request: Request) -> Body:
        """What this process does: its runs, its readers in trouble, its sessions."""
        request.sessions.check_inspect(request.caller)
        limit = request.number("limit", default=40, least=1, most=200)
        now, life = time.time(), request.life
        stalled = [pump for pump in life.streams.readers() if pump.stalled(STALLED)]
        inspected = Inspected(
            version=legato.__version__,
            now=now,
            started_at=life.began_at,
            draining=life.runner.draining or life.streams.draining,
            agents=list(life.runner.agents),
            store=_described(life.store),
            streams=len(life.streams),
            max_streams=life.streams.total,
            running=life.runner.running,
            open_runs=_runs(life, await life.store.open_runs(limit=RUNS), now),
            stalled=_readers(stalled),
            sessions=[
                _facts(life, info)
                for info in (await life.store.sessions(limit=limit)).infos
                if not is_own(info.session)
            ],
        )
        return Body(200, inspected)

    async def measures(self, request: Request) -> Body:
        """The figures that Prometheus is given, too."""
        request.sessions.check_inspect(request.caller)
        return Body(200, InspectedMeasures(now=time.time(), measures=_measures(await measures(request.life))))

    async def session(self, request: Request) -> Body:
        """One session: who reads it and how far they are, its open runs, and an outline of its log."""
        request.sessions.check_inspect(request.caller)
        after = request.number("after", default=0, least=0, most=OFFSET_MOST)
        limit = request.number("limit", default=2_000, least=1, most=OUTLINE)
        session, life = session_id(request.path["id"]), request.life
        # In this order, so that no reader seems to be ahead of the log.
        pumps = life.streams.readers(session)
        readers, reading = _readers(pumps), len(pumps)
        info = await life.store.info(session)
        outline = await _outline(life.store, info, after, limit)
        inspected = InspectedSession(
            now=time.time(),
            session=_facts(life, info),
            runs=_runs(life, info.open_runs, time.time()),
            readers=readers,
            reading=reading,
            outline=outline,
        )
        return Body(200, inspected)

    async def wire(self, request: Request) -> Body:
        """Events of a session beside the bytes that they are in each of some dialects."""
        request.sessions.check_inspect(request.caller)
        after = request.number("after", default=0, least=0, most=OFFSET_MOST)
        limit = request.number("limit", default=100, least=1, most=500)
        session, store = session_id(request.path["id"]), request.life.store
        info = await store.info(session)
        names = list(dict.fromkeys(filter(None, request.query.get("dialects", "").split(","))))
        if len(names) > COLUMNS:
            raise InvalidInput(f"At most {COLUMNS} dialects, got {len(names)}.", limit=COLUMNS)
        columns = [_column(self._dialects, session, name) for name in names]
        events = await store.read(session, after, limit=limit)
        if any(column.folds for column in columns):
            wanted = _runs_of(events)
            asked = [  # the log may be long, and only this of it is needed
                event
                async for event in Log(store, session).all(deltas=False)
                if event.offset == 1 or (event.run in wanted and isinstance(event.fact, MessageCreated))
            ]
            runs = [run for name in wanted if (run := located(session, name, asked)) is not None]
            for column in columns:
                await column.prepare(events, runs, request.life.memory)
        rows = _rows(events, columns)
        last = rows[-1].offset if rows else info.head
        return Body(200, WirePage(rows=rows, head=info.head, next=last if last < info.head else None))

    def operations(self) -> list[Operation]:
        """All of them, as the router and the document need them."""
        session = Param("id", "path", "The session's id.", required=True)
        after = Param(
            "after", "query", "Events after this offset.", {"type": "integer", "minimum": 0, "maximum": OFFSET_MOST}
        )
        views = _views(self._dialects)
        name = "|".join(re.escape(view).replace("CLIENT", f"(?:{mix.CLIENT_PATTERN})") for view in views)
        dialects = Param(
            "dialects",
            "query",
            f"Up to {COLUMNS} of `{'`, `'.join(views)}`, with commas between.",
            {"type": "string", "pattern": f"^(?:(?:{name})(?:,(?:{name})){{0,{COLUMNS - 1}}})?$"},
        )
        return [
            Operation("inspectServer", "GET", "/api/inspect", "inspector", "What the server does now", self.server,
                      {200: Inspected}, params=[_limit(200)], errors=(403,)),
            Operation("inspectMeasures", "GET", "/api/inspect/measures", "inspector", "Figures of the server",
                      self.measures, {200: InspectedMeasures}, errors=(403,)),
            Operation("inspectSession", "GET", "/api/inspect/sessions/{id}", "inspector",
                      "Who reads a session, and an outline of its log", self.session, {200: InspectedSession},
                      params=[session, after, _limit(OUTLINE)], errors=(403, 404)),
            Operation("inspectWire", "GET", "/api/inspect/sessions/{id}/wire", "inspector",
                      "A session's events in the form of each dialect", self.wire, {200: WirePage},
                      params=[session, after, _limit(500), dialects], errors=(403, 404)),
        ]  # fmt: skip


def _measures(found: Sequence[Measure]) -> list[MeasureFacts]:
    facts = []
    for measure in found:
        for labels, value in measure.samples:
            fact = MeasureFacts(name=measure.name, help=measure.help, labels=dict(labels), value=0.0)
            if isinstance(value, Spread):
                count, most = value.count, value.within(0.99)
                fact.value = count
                fact.mean = value.sum / count if count else None
                fact.most = None if most is None or math.isinf(most) else most
            else:
                fact.value = value
            facts.append(fact)
    return facts


def _runs_of(events: Sequence[Event]) -> list[str]:
    return list(dict.fromkeys(event.run for event in events if event.run is not None))


def _rows(events: Sequence[Event], columns: Sequence[Column]) -> list[WireRow]:
    rows: list[WireRow] = []
    room = PAGE_BYTES
    for event in events:
        frames = {column.name: text for column in columns if (text := column.frames(event))}
        rows.append(
            WireRow(offset=event.offset, type=event.type, run=event.run, at=event.at, data=event.shown, wire=frames)
        )
        room -= sum(map(len, frames.values()))
        if room <= 0:
            break
    return rows


async def _outline(store: Store, info: SessionInfo, after: int, limit: int) -> Outline:
    outline = _Columns(info)
    at = after
    while outline.room(limit) and at < info.head:
        events = await store.read(info.session, at, limit=min(outline.room(limit), 500))
        if not events:
            break
        outline.add(events)
        at = events[-1].offset
    return outline.page(after, None if at >= info.head else at)


def _facts(life: Life, info: SessionInfo) -> SessionFacts:
    return SessionFacts(
        id=info.session,
        title=info.created.title or "",
        head=info.head,
        created_at=info.created_at,
        updated_at=info.updated_at,
        runs=len(info.open_runs),
        readers=len(life.streams.readers(info.session)),
        listening=life.store.doorbell.listening(info.session),
    )


def _runs(life: Life, runs: Sequence[OpenRun], now: float) -> list[OpenRunFacts]:
    return [
        OpenRunFacts(
            session=run.session,
            run=run.run,
            offset=run.offset,
            started=run.started,
            here=run.owner == life.runner.owner,
            epoch=run.epoch,
            lease=None if run.owner is None else run.expires_at - now,
        )
        for run in runs[:RUNS]
    ]


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
    if isinstance(event.fact, TextPiece):
        return len(event.fact.text)
    return len(event.fact.arguments) if isinstance(event.fact, CallDelta) else 0


def _reader(pump: Pump) -> ReaderFacts:
    return ReaderFacts(
        number=pump.number,
        session=pump.session,
        dialect=pump.dialect,
        cursor=pump.cursor,
        since=pump.opened_at,
        bytes=pump.bytes,
        waiting=pump.waiting,
    )


def _readers(pumps: Sequence[Pump]) -> list[ReaderFacts]:
    return sorted(map(_reader, pumps), key=_place)[:READERS]


def _place(reader: ReaderFacts) -> tuple[int, int]:
    return reader.cursor, reader.number


def _described(store: Store) -> dict[str, str | int]:
    if isinstance(store, Describes):
        return store.facts()
    return {"kind": type(store).__name__.removesuffix("Store").lower()}


def _limit(most: int) -> Param:
    return Param("limit", "query", "How many at most.", {"type": "integer", "minimum": 1, "maximum": most})
