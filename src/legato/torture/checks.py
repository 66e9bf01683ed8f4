"""What must hold of a simulated world (R1 to R7 of ``docs/design.md``), and what is known of it for that."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence

import msgspec

from ..blobs import INSIDE, OUTSIDE, Blobs
from ..blobs import session_of as session_of_files
from ..bounds import Limits
from ..caller import NOBODY
from ..dialect import mix
from ..errors import LegatoError, SessionNotFound
from ..event import (
    CallDelta,
    CancelRequested,
    Event,
    MessageCreated,
    RunCompleted,
    RunFailed,
    RunStarted,
    SessionDeleted,
    Terminal,
    TextPiece,
)
from ..log import Appended, SessionInfo, Store
from ..machine import Lease, OpenRun, RunState, advance
from ..questions import session_of
from ..sessions import Sessions
from ..sse import Decoder, SSEMessage
from ..taken import referring
from ..transcript import fold
from . import scripts
from .ground import Ground, MemoryGround
from .inhabitants import Follower, RunFollower, Surroundings
from .report import Chart

STALE = 5.0
"""Seconds after which a node sees what another has stored, over a network, whatever becomes of the doorbell."""
LATE = 1.0
"""Seconds after which a reader has what its log has, where nothing goes wrong: far less than a heartbeat."""


class Checked(Surroundings):
    """A world that knows what it was told, and looks whether that is so."""

    def __init__(self, ground: Ground, seed: int, chart: Chart, *, calm: bool) -> None:
        super().__init__(seed, chart, scale=0.05 if ground.real else 1.0, calm=calm)
        self.ground = ground
        self.counts: Counter[str] = Counter()
        self._checks = 0
        self._set_back = False  # which may deceive a store about what was put back
        self._logs: dict[str, dict[int, Event]] = {}  # all that anybody was told is stored
        self._read_to: Counter[str] = Counter()
        self._seen: dict[str, _RunsSeen] = {}
        self._told: dict[str, list[SSEMessage]] = {}  # what a reader of all is told of a session
        self._told_to: Counter[str] = Counter()
        self._deleted: dict[str, None] = {}
        self._deleting: dict[str, None] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        self._given: dict[tuple[str, str], set[int]] = {}
        self._leases: list[Lease] = []
        self._held: dict[tuple[str, str], Lease] = {}  # the last one of each run, until it is given back
        self._in_vain: set[tuple[str, str, int]] = set()  # leases of runs that had been cancelled before
        self._to_cancel: set[str] = set()
        self._followers: list[Follower] = []
        self._runs: list[RunFollower] = []
        self._sent: dict[tuple[str, str], tuple[str, str]] = {}  # by session and key: the run, and the text
        self._answers: dict[str, bool] = {}
        self._updates: dict[str, list[str]] = {}
        self._cancelled: dict[str, float] = {}
        self._waiting: dict[str, float] = {}

    # What stores do ---------------------------------------------------------------------------------------------------

    def stored(self, session: str, appended: Appended, lease: Lease | None, fence: int) -> None:
        """See ``Witness``: it must be there from now on, and have come from nobody who was fenced."""
        log = self._logs.setdefault(session, {})
        for event in appended.events:
            self._know(session, log, event)
        if appended.events and isinstance(appended.events[-1].fact, SessionDeleted):
            self._deleted[session] = None
        if appended.repeated:
            return
        if lease is not None and lease.epoch < fence:
            self.fault(f"R5 run {lease.run} was at epoch {fence}, and an append of epoch {lease.epoch} was stored")
        for event in appended.events:
            if isinstance(event.fact, CancelRequested):
                self._to_cancel.add(event.run or "")
            elif (
                isinstance(event.fact, RunStarted)
                and lease is not None
                and (session, lease.run, lease.epoch) in self._in_vain
            ):
                self.fault(f"R4 run {lease.run} had been cancelled before it was taken, and has begun")

    def _know(self, session: str, log: dict[int, Event], event: Event) -> None:
        before = log.setdefault(event.offset, event)
        if before is not event and before != event:
            self.fault(f"R1 offset {event.offset} of {session} was {_short(before)}, and is {_short(event)}")

    def granted(self, lease: Lease) -> None:
        """See ``Witness``: nobody has had this epoch before."""
        key = lease.session, lease.run
        # Over a network the answers of two who took it one after the other may come in any order.
        given = lease.epoch in self._given.setdefault(key, set())
        self._given[key].add(lease.epoch)
        if given or (lease.epoch <= self._epochs.get(key, 0) and not self.ground.real):
            self.fault(f"R5 run {lease.run} was given epoch {lease.epoch} after {self._epochs.get(key)}")
        self._epochs[key] = max(lease.epoch, self._epochs.get(key, 0))
        self._leases.append(lease)
        held = self._held.get(key)
        if held is not None and held.owner != lease.owner and held.expires_at > self.clock() and self._tells_all:
            self.fault(f"R5 run {lease.run} was taken by {lease.owner}, while {held.owner} had it")
        self._held[key] = lease
        if lease.run in self._to_cancel:
            self._in_vain.add((*key, lease.epoch))

    @property
    def _tells_all(self) -> bool:
        """Whether what the store has done is told at once, in order, by clocks that nobody has set back."""
        return isinstance(self.ground, MemoryGround) and not self._set_back

    def renewed(self, owner: str, ttl: float) -> None:
        """See ``Witness``: what is over already may have been taken by another before."""
        now = self.clock()
        for key, lease in self._held.items():
            if lease.owner == owner and lease.expires_at > now:
                self._held[key] = msgspec.structs.replace(lease, expires_at=now + ttl)

    def released(self, lease: Lease) -> None:
        """See ``Witness``."""
        held = self._held.get((lease.session, lease.run))
        if held is not None and held.epoch == lease.epoch:
            del self._held[lease.session, lease.run]

    def fence(self, session: str, run: str) -> int:
        """See ``Witness``."""
        return self._epochs.get((session, run), 0)

    def may_reset(self, session: str) -> bool:
        """Whether a reader may be told that its cursor is not of this log."""
        return self.ground.forgetful or self._set_back or session in self._deleting

    def _forget(self) -> None:
        """What was acknowledged may be gone, from some event on: whoever comes back is to be told."""
        self._logs.clear()
        self._told.clear()
        self._seen.clear()
        self._read_to.clear()
        self._told_to.clear()
        self._epochs.clear()
        self._given.clear()
        self._leases.clear()
        self._held.clear()
        self._in_vain.clear()
        self._to_cancel.clear()
        self._sent.clear()
        self._updates.clear()
        self._answers.clear()
        self._deleted.clear()
        for follower in self._followers:
            follower.checked, follower.astray = 0, True
        for reader in self._runs:
            reader.astray = True

    async def _remember(self, store: Store) -> None:
        """Look what there is."""
        async for info in _infos(store):
            self._logs.setdefault(info.session, {})

    # What must hold ---------------------------------------------------------------------------------------------------

    async def _check(self) -> None:
        store = await self.ground.see()
        if store is None:
            return
        self._checks += 1
        for session in list(self._logs):
            await self._check_log(store, session, whole=self._checks % 25 == 0)
        for follower in self._followers:
            self._check_follower(follower)
        if self.calm:
            for run, at in list(self._cancelled.items()):
                if self.now - at <= LATE + 0.5:
                    continue
                del self._cancelled[run]
                if run in await _open(store, session_of(run)):
                    self.fault(f"run {run} was cancelled {self.now - at:.3f} s ago and has not ended")
            await self._check_waiting(store)

    async def _check_waiting(self, store: Store) -> None:
        """What could run does, where nothing goes wrong."""
        firsts: dict[str, OpenRun] = {}
        for run in await self._open_runs(store):
            firsts.setdefault(run.session, run)
        room = any(node.runner.places.taken < node.runner.limits.concurrent_runs for node in self._nodes.values())
        free = [run.run for run in firsts.values() if run.owner is None and room]
        self._waiting = {name: self._waiting.get(name, self.now) for name in free}
        for name, since in self._waiting.items():
            if self.now - since > LATE:
                self.fault(f"run {name} waits for {self.now - since:.3f} s, although there are places")

    async def _check_log(self, store: Store, session: str, *, whole: bool = False) -> None:
        """R1, R2: what was seen once stays, and offsets are dense."""
        log = self._logs[session]
        after = 0 if whole else self._read_to[session]
        found = await self._read_log(store, session, after)
        deleted = bool(found) and isinstance(found[-1].fact, SessionDeleted)
        if deleted or session in self._deleted:
            self._deleted[session] = None
            if whole and [event.type for event in found] != ["session.deleted"]:
                self.fault(f"{session} was deleted, and still has {[_short(event) for event in found[:3]]}")
            for event in found:
                self._know(session, log, event)
            return
        for expected, event in enumerate(found, after + 1):
            if event.offset != expected:
                self.fault(f"R2 {session} goes on with offset {event.offset} after {expected - 1}")
                return
            self._know(session, log, event)
        self._read_to[session] = max(self._read_to[session], found[-1].offset if found else after)
        if whole and self._read_to[session] < max(log, default=0) and not deleted:
            # What was told last may have been stored after this was read; and who was not told of it by the store's own
            # doorbell yet, as over a network, may see it a little later.
            head, until = max(log), self.now + (STALE if self.ground.real else 0.0)
            while True:
                again = await self._read_log(store, session, self._read_to[session])
                deleted = bool(again) and isinstance(again[-1].fact, SessionDeleted)
                reached = again[-1].offset if again else self._read_to[session]
                if deleted or reached >= head:
                    break
                if self.now >= until:
                    self.fault(f"R1 {session} ends at {reached}, and had come to {head}")
                    break
                await asyncio.sleep(0.05)
        self._check_runs(session, log)
        if not of_files(session):
            self.chart.level(f"log {session}", self.now, float(max(log, default=0)), session)

    async def _read_log(self, store: Store, session: str, after: int) -> list[Event]:
        found: list[Event] = []
        while events := await store.read(session, after):
            if events[0].offset <= after:
                self.fault(f"R2 {session} was read after offset {after}, and gave {events[0].offset}")
                break
            found += events
            after = events[-1].offset
        return found

    def _check_runs(self, session: str, log: dict[int, Event]) -> None:
        """R4, R6, R7: runs move by the table and end once; pieces follow each other; a key counts once."""
        seen = self._seen.setdefault(session, _RunsSeen())
        while (event := log.get(seen.offset + 1)) is not None:
            seen.offset += 1
            fact, run = event.fact, event.run
            if isinstance(fact, MessageCreated) and fact.key is not None and seen.keys.setdefault(fact.key, run) != run:
                self.fault(f"R6 key {fact.key} stands in {session} twice: runs {seen.keys[fact.key]} and {run}")
            if run is None:
                continue
            try:
                seen.states[run] = advance(seen.states.get(run), event.type)
            except LegatoError as exc:
                self.fault(f"R4 {session}, offset {seen.offset}: {exc}")
            if isinstance(fact, TextPiece | CallDelta):
                length = seen.lengths.get((run, fact.part), 0)
                if fact.start != length:
                    self.fault(f"R7 {session}, offset {seen.offset}: a piece at {fact.start} of a text of {length}")
                text = fact.arguments if isinstance(fact, CallDelta) else fact.text
                seen.lengths[run, fact.part] = fact.start + len(text)

    def _check_follower(self, follower: Follower, *, at_end: bool = False) -> None:
        """R3: who was cut off was told what the others were, and in time."""
        if follower.astray:
            follower.behind_since = None
            return
        session = follower.session
        told = self._told.setdefault(session, [])
        log = self._logs.get(session, {})
        while (event := log.get(self._told_to[session] + 1)) is not None:
            self._told_to[session] += 1
            told += mix.messages(event, session, mix.LEGATO)
        begin = sum(int(each.id) <= follower.after for each in told) if follower.after else 0
        for place in range(follower.checked, len(follower.messages)):
            message = follower.messages[place]
            if message.event == "session_deleted":
                follower.checked = len(follower.messages)
                return
            if begin + place >= len(told):
                if session not in self._deleted and not self.ground.forgetful and (at_end or not self.ground.real):
                    self.fault(f"R1 {follower.lane} saw {message} of {session}, which nobody has stored")
                return
            if told[begin + place] != message:
                self.fault(f"R3 {follower.lane} of {session} saw {message} instead of {told[begin + place]}")
                return
            follower.checked = place + 1
        behind = follower.checked + begin < len(told) and not follower.over
        if not behind:
            follower.behind_since = None
        elif follower.behind_since is None or follower.checked > follower.behind_at:
            follower.behind_since, follower.behind_at = self.now, follower.checked
        elif self.calm and self.now - follower.behind_since > LATE and session not in self._deleted:
            self.fault(
                f"{follower.lane} of {session} has not seen what is there for {self.now - follower.behind_since:.3f} s"
            )

    async def _check_end(self) -> None:
        """What must be when all has had its time."""
        store = await self.ground.see()
        assert store is not None
        for session in list(self._logs):
            await self._check_log(store, session, whole=True)
        for left in await self._open_runs(store):
            self.fault(f"run {left.run} of {left.session} is {left.state.value} for ever, owner {left.owner}")
        listed = [info async for info in _infos(store) if info.session.startswith(self.ground.prefix)]
        heads = {session: max(log) for session, log in self._logs.items() if session not in self._deleted}
        if {info.session: info.head for info in listed} != heads or len(listed) != len(heads):
            self.fault(f"the list of sessions has {[(info.session, info.head) for info in listed]} for {heads}")
        for session, log in self._logs.items():
            if of_files(session):
                if session_of_files(session) in self._deleted and session not in self._deleted:
                    self.fault(f"{session} is there, and its session is not")
            elif session not in self._deleted:
                self._check_answers(session, log)
                await self._check_files(store, session, log)
                await self._check_views(store, session)
        for (session, key), (run, text) in self._sent.items():
            if session not in self._deleted:
                runs = [
                    event.run
                    for event in self._logs[session].values()
                    if isinstance(event.fact, MessageCreated) and event.fact.key == key and event.fact.text == text
                ]
                if runs != [run]:
                    self.fault(f"R6 key {key} of {session} was acknowledged with run {run}; the log has {runs}")
        for follower in self._followers:
            self._check_follower(follower, at_end=True)
            if follower.behind_since is not None and follower.session not in self._deleted:
                self.fault(f"{follower.lane} of {follower.session} never saw what is there")
        for reader in self._runs:
            self._check_run_follower(reader)

    async def _open_runs(self, store: Store) -> list[OpenRun]:
        return [run for run in await store.open_runs() if run.session.startswith(self.ground.prefix)]

    async def _check_views(self, store: Store, session: str) -> None:
        """Every node has the same history, and what was changed at once is all there."""
        fresh = Sessions(store, next(iter(self._nodes.values())).runner)
        expected = await fresh.history(NOBODY, session)
        for node in self._nodes.values():
            contents = await node.sessions.contents(NOBODY, session)
            messages = await node.sessions.messages(NOBODY, session, contents.entries)
            if messages != expected:
                self.fault(f"{node.lane} has another history of {session}: {messages} instead of {expected}")
            fields = await node.sessions.edits.metadata(NOBODY, session)
            if lost := [field for field in self._updates.get(session, ()) if field not in fields]:
                self.fault(f"{node.lane} lacks of the metadata of {session} what was acknowledged: {lost}")

    async def _check_files(self, store: Store, session: str, log: dict[int, Event]) -> None:
        """A message has the file with which it was sent, as have its copies."""
        blobs = Blobs(store)
        for event in in_order(log):
            if referring(event) is not None:
                whole = (await blobs.whole(session, event)).fact
                assert isinstance(whole, MessageCreated)
                if whole.metadata != scripts.file_for(whole.text):
                    self.fault(f"offset {event.offset} of {session} has not the file with which it was sent")
                self.counts["file"] += 1

    def _check_answers(self, session: str, log: dict[int, Event]) -> None:
        """Each answer is what its agent said, and what its deltas add up to."""
        asked: dict[str, MessageCreated] = {}
        mine: dict[str, list[Event]] = {}
        for event in in_order(log):
            if event.run is not None:
                mine.setdefault(event.run, []).append(event)
                if isinstance(event.fact, MessageCreated):
                    asked[event.run] = event.fact
        for run, events in mine.items():
            last = events[-1].fact
            if not isinstance(last, Terminal):
                self.fault(f"R4 run {run} of {session} has no end")
                continue
            self.counts[last.type] += 1
            if fold(events).message(run) != last.said:
                self.fault(f"R7 run {run} of {session} said {fold(events).message(run)} and ends with {last.said}")
            if isinstance(last, RunCompleted):
                self._check_said(run, asked[run].text, events, scripts.told(last.said.parts))
            elif isinstance(last, RunFailed) and last.code == "interrupted" and self._goes_on(events):
                self.fault(f"run {run} of {session} was interrupted, and its agent would have gone on")
            elif self.calm and isinstance(last, RunFailed) and last.code not in ("agent_error", "timeout", "rewound"):
                self.fault(f"run {run} of {session} failed although nothing went wrong: {last.code}, {last.message}")

    def _goes_on(self, events: Sequence[Event]) -> bool:
        """Whether the agent of a run is one that goes on after a crash, and has not died too often."""
        starts = [event.fact for event in events if isinstance(event.fact, RunStarted)]
        return bool(starts) and starts[-1].agent in scripts.ON_CRASH and len(starts) < Limits().attempts

    def _check_said(self, run: str, text: str, events: Sequence[Event], said: list[scripts.Spoken]) -> None:
        starts = [event.fact for event in events if isinstance(event.fact, RunStarted)]
        agent, attempts = starts[-1].agent, len(starts)
        begins = {"asks": ("May I? Yes. ", "May I? No. "), "notifies": ("By user. ", "By timeout. ", "By nobody. ")}
        wanted = [scripts.expected(text, begin) for begin in begins.get(agent, ("",))]
        if attempts > 1 and agent in ("retry", "asks"):  # what an attempt before had said stays before it
            said = said[-len(wanted[0]) :]
        if said not in wanted:
            self.fault(f"run {run} was to say {wanted[0]}, and the log has {said}")

    def _check_run_follower(self, reader: RunFollower) -> None:
        if not reader.over or reader.astray or reader.sent.session in self._deleted:
            return
        encoder, decoder = reader.encoder(None), Decoder()
        whole = RunFollower(self, reader.sent, reader.agent)
        for event in in_order(self._logs[reader.sent.session]):
            whole.take(decoder, encoder.encode(event))
        if whole.told != reader.told:
            place = next((n for n, pair in enumerate(zip(whole.told, reader.told)) if pair[0] != pair[1]), -1)  # noqa: B905
            self.fault(f"R3 who read {reader.sent.run} over Responses was told something else from {place} on")


class _RunsSeen:
    """What the runs of a log have come to, up to an offset."""

    def __init__(self) -> None:
        self.offset = 0
        self.states: dict[str, RunState | None] = {}
        self.lengths: dict[tuple[str, int], int] = {}
        self.keys: dict[str, str | None] = {}


def of_files(session: str) -> bool:
    """Whether a log has files of another session."""
    return session.startswith((INSIDE, OUTSIDE))


def in_order(log: dict[int, Event]) -> list[Event]:
    """What is known of a log, by its offsets."""
    return [log[offset] for offset in sorted(log)]


def _short(event: Event) -> str:
    return f"{event.offset} {event.type} {str(event.fact)[:80]}"


async def _infos(store: Store) -> AsyncIterator[SessionInfo]:
    """All sessions, a few in a page."""
    page = await store.sessions(limit=3)
    while True:
        for info in page.infos:
            yield info
        if page.next is None:
            return
        page = await store.sessions(limit=3, after=page.next)


async def _open(store: Store, session: str) -> Iterable[str]:
    try:
        return (await store.info(session)).runs
    except SessionNotFound:
        return ()
