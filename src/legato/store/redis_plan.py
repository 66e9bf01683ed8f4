"""What becomes of a session of a Redis store, and how it stands in the server.

Nothing here waits for anything. What is asked of a session at the same time is one *call*; it is decided as one *plan*
on what is known of the session, and is done if the session is still at the version that was known.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import msgspec

from ..check import check_text
from ..errors import TooLarge
from ..event import Draft, Event, Offset, SessionCreated, read_stored, settle
from ..log import MICRO, SessionInfo, SessionRecord, Storing, created
from ..machine import OpenRun, RunState, SessionState, free, leased

ENTRY_EVENTS, ENTRY_BYTES = 256, 64 * 1024
"""Events, and their bytes, in one entry of a stream, unless one event has more."""
MAX_DATA_BYTES = 64 * 1024 * 1024
"""An event's data, as JSON."""
MARK_SECONDS = 300
"""How long a session remembers a writer's last write, by which that knows it when the answer was lost."""

Record = tuple[Offset, int, str, str | None, bytes, int]
"""An event as it is stored: offset, time, type, run, JSON, and the era of the server in which it was."""
binary: Callable[[Any], bytes] = msgspec.msgpack.Encoder().encode
records_of: Callable[[bytes], list[Record]] = msgspec.msgpack.Decoder(list[Record]).decode
_head = msgspec.msgpack.Decoder(tuple[int, int, bool, int, dict[str, tuple[int, int]]]).decode
_runs = msgspec.msgpack.Decoder(tuple[int, list[tuple[str, int, RunState, str | None, int, float]]]).decode
_first = msgspec.msgpack.Decoder(tuple[int, bytes]).decode
read_place = msgspec.msgpack.Decoder(tuple[int, int]).decode
offset_of, era_of = itemgetter(0), itemgetter(5)


class KeptSession(msgspec.Struct, frozen=True, gc=False):
    """All that is known of a session but its events. Times are microseconds since the epoch.

    Attributes:
        version: the name of its last write; b"" of a session that never was.
        marks: the last write of each writer of late: its number, and when it was.
        waits: when the first of its open runs became the first.
        size: bytes of what began it, as JSON.
    """

    version: bytes
    state: SessionState
    updated_at: int = 0
    marks: Mapping[str, tuple[int, int]] = {}
    waits: int = 0
    created_at: int = 0
    created: SessionCreated = SessionCreated()
    size: int = 0

    @property
    def claimable(self) -> str:
        """From when on somebody may claim a run of it; "-" if it has none."""
        run = next(iter(self.state.runs.values()), None)
        return "-" if run is None else str(self.waits if run.owner is None else round(run.expires_at * MICRO))


class SessionPlan:
    """What becomes of a session by what is asked of it at the same time, decided on what is known of it."""

    def __init__(self, kept: KeptSession, now: float, used: Mapping[str, list[Event]]) -> None:
        self.before = kept
        self.now = now
        self.state = kept.state
        self.waits = kept.waits
        self.events: list[Event] = []
        self.once: dict[str, tuple[Offset, Offset]] = {}
        self.begun: Event | None = None
        self.updated_at = kept.updated_at
        self.taken: set[str] = set()
        self.outside = self.work = False
        self.outcomes: list[tuple[Any, Exception | None]] = []
        self.number = 0
        self.after = kept
        self._used = dict(used)

    def found(self, key: str | None) -> list[Event] | None:
        """What was stored under a key before."""
        if key is None:
            return None
        if key in self.once:
            first, last = self.once[key]
            return [event for event in self.events if first <= event.offset <= last]
        return self._used.get(key)

    def take(self, run: str, owner: str, ttl: float, state: SessionState) -> SessionState:
        """The state with a lease."""
        self.taken.add(owner)
        return leased(state, run, owner=owner, now=self.now, until=self.now + ttl)

    def add(self, state: SessionState, drafts: Sequence[Draft], at: int, once: str | None) -> list[Event]:
        """These drafts are stored, and lead to ``state``."""
        before, offset = self.state, self.state.head
        events = [Event(d.fact, offset + n, at / MICRO, d.run, d.json) for n, d in enumerate(drafts, 1)]
        if offset == 0:
            self.begun = events[0]
        if once is not None:
            self.once[once] = offset + 1, state.head
        if state.deleted:
            self.events, self.once, self._used = events[-1:], {}, {}
        else:
            self.events += events
        if state.whole > before.whole:
            self.updated_at = at
            if next(iter(state.runs), None) != next(iter(before.runs), None):
                self.waits = at
            self.work = self.work or free(state.runs, self.now) is not None
        self.state = state
        return events

    def adopt(self, state: SessionState, begun: Event, record: SessionRecord, waits: int) -> None:
        """The session is what another store had, whose events stand elsewhere."""
        self.state, self.begun, self.events = state, begun, [begun]
        self.once, self.updated_at, self.waits = {**record.once}, round(record.updated_at * MICRO), waits
        self.outside = True
        self.work = free(state.runs, self.now) is not None

    def close(self, writer: str, number: int) -> None:
        """No more: what is known of the session once it is stored."""
        if self.state is self.before.state:
            return
        self.number = number
        at = round(self.now * MICRO)
        marks = {name: mark for name, mark in self.before.marks.items() if at - mark[1] < MARK_SECONDS * MICRO}
        marks[writer] = number, at
        begun = self.begun
        self.after = KeptSession(
            f"{writer}:{number}".encode(),
            self.state,
            self.updated_at,
            marks,
            self.waits,
            round(begun.at * MICRO) if begun else self.before.created_at,
            created(begun.fact) if begun else self.before.created,
            len(begun.json) if begun else self.before.size,
        )

    def changes(self) -> list[Any]:
        """What of the session is to be written: version, head, runs, what begins it, and its places in the indexes; ""
        is for what stays."""
        before, after, state = self.before, self.after, self.state
        if after is before:
            return [""] * 6
        runs: str | bytes = ""
        first: str | bytes = ""
        updated = ""
        if state.runs is not before.state.runs:
            rows = [(r.run, r.offset, r.state, r.owner, r.epoch, r.expires_at) for r in state.runs.values()]
            runs = binary((self.waits, rows))
        if self.begun is not None:
            first = binary((after.created_at, self.begun.json))
        if state.deleted:
            updated, first = "-", binary((after.created_at, b"{}"))  # what is left does not say whose it was
        elif after.updated_at != before.updated_at:
            updated = str(after.updated_at)
        claimable = "" if after.claimable == before.claimable else after.claimable
        head = binary((state.head, state.whole, state.deleted, after.updated_at, after.marks))
        return [after.version, head, runs, first, claimable, updated]

    @property
    def how(self) -> str:
        """What is to be done besides."""
        return "deleted" if self.state.deleted and self.after is not self.before else ""


class SessionRequest(Storing):
    """What is asked of one session."""

    __slots__ = ("begins", "decide", "once", "patient", "staged")

    def __init__(
        self,
        decide: Callable[[SessionPlan], Any],
        once: str | None,
        begins: bool,
        staged: Sequence[bytes],
        patient: bool,
    ) -> None:
        super().__init__()
        self.decide = decide
        self.once = once
        self.begins = begins  # the session; as a rule there is none of that name
        self.staged = staged  # streams that were built, to become the session's
        self.patient = patient  # to be told what became of it, however long that takes


class SessionCall:
    """What is asked of one session at the same time.

    Attributes:
        used: what was stored before under keys that are asked about.
        plan: what was decided last.
        sent: it may have been done, but no answer came.
        look: it is only asked what the session's state is.
        lost: what this process had stored of the session was not there any more.
    """

    __slots__ = ("look", "lost", "plan", "requests", "sent", "session", "used")

    def __init__(self, session: str, requests: list[SessionRequest]) -> None:
        self.session = session
        self.requests = requests
        self.used: dict[str, list[Event]] = {}
        self.plan: SessionPlan | None = None
        self.sent = self.look = self.lost = False


# How it stands in the server ------------------------------------------------------------------------------------------


def entries_of(events: Sequence[Event], era: int) -> Iterator[tuple[Offset, bytes]]:
    """Entries of a stream: the offset of the last event in each, and all of them."""
    records: list[Record] = []
    size = 0
    for event in events:
        records.append((event.offset, round(event.at * MICRO), event.type, event.run, event.json, era))
        size += len(event.json)
        if size >= ENTRY_BYTES or len(records) == ENTRY_EVENTS:
            yield event.offset, binary(records)
            records, size = [], 0
    if records:
        yield records[-1][0], binary(records)


def read_state(session: str, version: Any, head: Any, runs: Any, first: Any) -> KeptSession | None:
    """What is known of a session by the fields of its hash; None if there is none."""
    if version is None:
        return None
    offset, whole, deleted, updated_at, marks = _head(head)
    waits, rows = (0, []) if runs is None else _runs(runs)
    created_at, json = _first(first)
    state = SessionState(
        session, offset, whole, deleted, {row[0]: OpenRun(session, *row) for row in rows} if not deleted else {}
    )
    begun = created(read_stored(session, 1, "session.created", json)[0])
    return KeptSession(version, state, updated_at, marks, waits, created_at, begun, len(json))


def is_deleted(head: bytes) -> bool:
    """Whether a session is, by that field of its hash."""
    return _head(head)[2]


def session_info(kept: KeptSession) -> SessionInfo:
    """What a caller is told of a session."""
    state = kept.state
    times = kept.created_at / MICRO, kept.updated_at / MICRO
    return SessionInfo(state.session, state.head, *times, kept.created, list(state.runs.values()))


def settled(draft: Draft) -> Draft:
    """The draft as it is kept.

    Raises:
        InvalidInput, TooLarge: it cannot be.
    """
    fact, json = (draft.fact, draft.json) if draft.json else settle(draft.fact)
    if fact.open:  # as deltas are not
        check_text(fact.type, fact.owner if isinstance(fact, SessionCreated) else None)
    if len(json) > MAX_DATA_BYTES:
        raise TooLarge(f"The data of {fact.type} is beyond {MAX_DATA_BYTES} bytes.", limit=MAX_DATA_BYTES)
    return Draft(fact, draft.run, json)
