"""The contents of a log: which messages stand in it and where, as a fold that goes on with it.

What a verb or a run has to know of a session (was there this key, that message, this question; what comes before) it
finds here, so that it costs the same after ten messages and after ten thousand. What was said stays in the log, and is
read from there as far as it is wanted.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import UNSET, UnsetType

from .blobs import Blobs
from .errors import SessionNotFound
from .event import (
    BlobRef,
    Event,
    Fact,
    MessageCreated,
    MessageRevised,
    NotificationCreated,
    Offset,
    OtherFact,
    PermissionRequested,
    PermissionResolved,
    RunStarted,
    RunWithdrawn,
    SessionDeleted,
    SessionRewound,
    SessionUpdated,
    Terminal,
    length,
)
from .history import Asking, answer_place, askings, attached, revised, rewound, told
from .log import READ_LIMIT, SessionInfo, Store
from .part import Message
from .taken import referring

KEPT = 100_000
"""Entries kept in memory, of all sessions; some 500 bytes each. What was let go is read anew when it is asked for."""


class Entry(msgspec.Struct, frozen=True, gc=False):
    """A message, without what it says.

    Attributes:
        id, role, run: as ``Message`` has them.
        offset, at: of the event that has it, and its time.
        size: bytes of what that event says, see ``event.length``.
        files: of these, of what its metadata has beside the log.
        retries: see ``MessageCreated``.
        revised: the offset of the event with what it says now; None if that is the first.
    """

    id: str
    role: str
    run: str | None
    offset: Offset
    size: int
    retries: str | UnsetType | None = UNSET
    at: float = 0.0
    revised: Offset | None = None
    files: int = 0


class Contents:
    """What stands where in a log.

    Attributes:
        after: the offset up to which the log has been taken.
        whole: the offset of the last event that was taken and is no delta.
        entries: the messages, as ``history.history`` has them.
        asked: by the id of a user's message: each time that it was put to an agent.
        runs: the messages that runs answer.
        agents: who answers, by run, as far as one was asked.
        last: the run of the last message that was stored.
        left: runs of users' messages that are not withdrawn.
        withdrawn: runs that are.
        keys: the messages that came under a key, by the sender's subject and the key.
        asks: of permissions and notifications, by type and id: their runs, and where they stand.
        granted: the answers that permissions have had.
        updated: where the last change of the session's metadata stands.
        ended: where the last run's end stands.
        began: of runs that have begun: where the last run's end stood then.
        gone: the session has been deleted.
        bytes: of all events that were taken, see ``event.length``; of what stands beside the log, once.
        blobs: what of it does, by hash.
        weight: how many things it holds.
    """

    def __init__(self) -> None:
        self.after: Offset = 0
        self.whole: Offset = 0
        self.entries: list[Entry] = []
        self.asked: dict[str, list[Entry]] = {}
        self.runs: dict[str, Entry] = {}
        self.agents: dict[str | None, str] = {}
        self.last: str | None = None
        self.left: set[str] = set()
        self.withdrawn: set[str] = set()
        self.keys: dict[tuple[str, str], Entry] = {}
        self.asks: dict[tuple[str, str], tuple[str | None, Offset]] = {}
        self.granted: dict[str, bool] = {}
        self.updated: Offset | None = None
        self.ended: Offset = 0
        self.began: dict[str, Offset] = {}
        self.gone = False
        self.bytes = 0
        self.blobs: dict[str, BlobRef] = {}
        self.weight = 0

    def take(self, event: Event) -> None:
        """Go on with the next event that is no delta. One that has been taken does nothing."""
        if event.offset <= self.after:
            return
        self.after = self.whole = event.offset
        self.bytes += len(event.json)
        self.weight += 1
        fact = event.fact
        if isinstance(fact, MessageCreated | MessageRevised):
            for ref in fact.blobs or ():
                if self.blobs.setdefault(ref.hash, ref) is ref:
                    self.bytes += ref.size
                    self.weight += 1
        if isinstance(fact, MessageCreated):
            self._message(event, fact)
        elif isinstance(fact, RunStarted):
            self.began.setdefault(event.run or "", self.ended)
            self.agents[event.run] = fact.agent
        elif isinstance(fact, Terminal):
            self.began.setdefault(event.run or "", self.ended)
            self.ended = event.offset
            place = answer_place(self.entries, event.run)
            if place is not None:
                answer = Entry(fact.said.id, "assistant", event.run, event.offset, len(event.json), at=event.at)
                self.entries.insert(place, answer)
        elif isinstance(fact, SessionRewound):
            self.entries = rewound(self.entries, fact, event.offset)
        elif isinstance(fact, MessageRevised):
            self._revise(event, fact)
        elif isinstance(fact, SessionUpdated):
            self.updated = event.offset
        elif isinstance(fact, RunWithdrawn):
            self.withdrawn.add(fact.run)
            self.left.discard(fact.run)
        elif isinstance(fact, PermissionRequested | NotificationCreated):
            self.asks.setdefault((fact.type, fact.id), (event.run, event.offset))
        elif isinstance(fact, PermissionResolved):
            self.granted.setdefault(fact.id, fact.granted)
        elif isinstance(fact, SessionDeleted):
            self.gone = True
        else:
            self.weight -= 1

    def _message(self, event: Event, fact: MessageCreated) -> None:
        size, files = length(event), _files(fact)
        entry = Entry(fact.id, fact.role, event.run, event.offset, size, fact.retries, event.at, files=files)
        self.entries.append(entry)
        self.last = event.run
        if fact.key is not None:
            self.keys.setdefault((fact.caller or "", fact.key), entry)
        if event.run is not None:
            self.runs.setdefault(event.run, entry)
        if fact.role == "user":
            self.asked.setdefault(fact.id, []).append(entry)
            if event.run is not None and event.run not in self.withdrawn:
                self.left.add(event.run)

    def _revise(self, event: Event, fact: MessageRevised) -> None:
        place = next((n for n, entry in enumerate(self.entries) if entry.id == fact.id), None)
        if place is None:
            return  # taken back meanwhile
        old = self.entries[place]
        if fact.gone:
            del self.entries[place]
            return
        new = msgspec.structs.replace(old, revised=event.offset, size=length(event), files=_files(fact))
        self.entries[place] = new
        if old.run is not None and self.runs.get(old.run) is old:
            self.runs[old.run] = new
        if old in (asked := self.asked.get(old.id, [])):
            asked[asked.index(old)] = new

    def before(self, run: str) -> Offset:
        """The offset after which all that a run has said stands, and nothing of the answer before it."""
        return max(self.began.get(run, self.ended), self.runs[run].offset - 1)

    def place(self, run: str) -> int | None:
        """The place among ``entries`` of the message that ``run`` answers; None if it has been taken back."""
        asked, entries = self.runs.get(run), self.entries
        return next((n for n in reversed(range(len(entries))) if entries[n] is asked), None)


def window(entries: Sequence[Entry], *, messages: int, bytes: int, files: bool = True) -> int:
    """Where the last of ``entries`` begin that are so many messages at most, and so many bytes, with or without
    ``files``; one in any case."""
    begin = len(entries)
    while begin > 0 and len(entries) - begin < messages:
        bytes -= entries[begin - 1].size - (0 if files else entries[begin - 1].files)
        if bytes < 0 and begin < len(entries):
            break
        begin -= 1
    return begin


def stretches(entries: Sequence[Entry], *, bytes: int) -> list[Sequence[Entry]]:
    """``entries`` in pieces of so many bytes at most, or of one entry."""
    found: list[list[Entry]] = []
    room = 0
    for entry in entries:
        room -= entry.size
        if room < 0 or not found:
            found.append([])
            room = bytes - entry.size
        found[-1].append(entry)
    return [*found]


def _files(fact: MessageCreated | MessageRevised) -> int:
    """Bytes of what the metadata of a message has beside the log."""
    return sum(ref.characters for ref in fact.blobs or () if ref.at[0] == "metadata")


def _without_files(event: Event) -> Event:
    """An event whose metadata stays as it is in the log, whatever stands beside it."""
    fact = event.fact
    if not isinstance(fact, MessageCreated | MessageRevised) or not _files(fact):
        return event
    kept = [ref for ref in fact.blobs or () if ref.at[0] != "metadata"] or None
    return msgspec.structs.replace(event, fact=msgspec.structs.replace(fact, blobs=kept))


def with_files(message: Message, fact: Fact | OtherFact | None) -> Message:
    """The message, with what the log says of its files."""
    if not message.metadata and not message.files:
        return message
    files = attached(fact) if isinstance(fact, MessageCreated | MessageRevised) else []
    return msgspec.structs.replace(message, files=files) if files or message.files else message


class Catalogue:
    """The contents of the logs that were used last, each as far as somebody has looked.

    Args:
        store: where the logs live.
        blobs: what stands beside them.
        kept: entries at most; the session that was not looked at for longest goes first.
    """

    def __init__(self, store: Store, blobs: Blobs | None = None, *, kept: int = KEPT) -> None:
        self._store = store
        self._blobs = blobs or Blobs(store)
        self._kept = kept
        self._known: OrderedDict[str, tuple[Contents, int]] = OrderedDict()  # and what each was counted as
        self._held = 0

    def known(self, session: str) -> Contents | None:
        """The contents of a log as far as somebody has looked, if they are in memory."""
        found = self._known.get(session)
        return None if found is None else found[0]

    async def of(self, session: str, head: Offset) -> Contents:
        """The contents of a log up to ``head``, or further. They go on changing: what is decided by them is decided
        before the next await.

        Raises:
            SessionNotFound: the session has been deleted.
        """
        contents, _ = self._known.setdefault(session, (Contents(), 0))
        try:
            while contents.after < head and not contents.gone:
                events = await self._store.read(session, contents.after, deltas=False)
                for event in events:  # whoever took some of them meanwhile has left those that follow
                    contents.take(event)
                if not events:  # there are none up to the head, which was there before the read
                    contents.after = max(contents.after, head)
                if len(events) == READ_LIMIT:
                    await asyncio.sleep(0)  # between two pages out of memory others go on
        finally:
            self._count(session, contents)
        if contents.gone:
            raise SessionNotFound(session)
        return contents

    async def blobs(self, info: SessionInfo) -> Mapping[str, BlobRef]:
        """What a session refers to that stands beside its log, by hash."""
        return (await self.of(info.session, info.head)).blobs

    def forget(self) -> None:
        """Know nothing any more: logs are not what they were."""
        self._known.clear()
        self._held = 0

    def _count(self, session: str, contents: Contents) -> None:
        known = self._known.get(session)
        if known is None or known[0] is not contents:
            return  # let go meanwhile
        self._held += contents.weight - known[1]
        self._known[session] = (contents, contents.weight)
        self._known.move_to_end(session)
        if contents.gone:
            self._held -= self._known.pop(session)[1]
        while self._held > self._kept and len(self._known) > 1:
            self._held -= self._known.popitem(last=False)[1][1]

    async def event(self, session: str, offset: Offset) -> Event:
        """The event that stands at ``offset``, without what of it stands beside the log.

        Raises:
            SessionNotFound: the session has been deleted.
        """
        events = await self._store.read(session, offset - 1, limit=1)
        if not events or events[0].offset != offset:
            raise SessionNotFound(session)
        return events[0]

    async def asking(self, session: str, entry: Entry) -> Asking:
        """A user's message, as it was put to an agent."""
        return askings([await self.event(session, entry.offset)])[0]

    async def messages(self, session: str, entries: Sequence[Entry], *, files: bool = True) -> list[Message]:
        """What these messages say, in their order, with what of it stands beside the log: with ``files``, also what is
        in their metadata.

        Raises:
            SessionNotFound: the session has been deleted.
        """
        missing = sorted([entry.offset for entry in entries])
        found: dict[Offset, Message] = {}
        known: dict[str, bytes] = {}
        place = 0
        while place < len(missing):
            # What stands between two messages is little as a rule, so it is read along with them.
            span = missing[-1] - missing[place] + 1
            events = await self._store.read(session, missing[place] - 1, limit=min(span, READ_LIMIT), deltas=False)
            if not events or events[0].offset != missing[place]:
                raise SessionNotFound(session)
            for event in events:
                if place < len(missing) and event.offset == missing[place]:
                    whole = await self._whole(session, event, known, files=files) if referring(event) else event
                    message = told(whole)
                    found[event.offset] = with_files(message, event.fact) if message.metadata else message
                    place += 1
            if place < len(missing):
                await asyncio.sleep(0)
        for entry in entries:
            if entry.revised is not None:
                event = await self.event(session, entry.revised)
                now = (await self._whole(session, event, known, files=files)).fact
                assert isinstance(now, MessageRevised)
                found[entry.offset] = with_files(revised(found[entry.offset], now), event.fact)
        return [found[entry.offset] for entry in entries]

    async def _whole(self, session: str, event: Event, known: dict[str, bytes], *, files: bool) -> Event:
        return await self._blobs.whole(session, event if files else _without_files(event), known)

    async def revision(self, session: str, offset: Offset) -> MessageRevised:
        """The revision that stands at ``offset``, without what of it stands beside the log.

        Raises:
            SessionNotFound: the session has been deleted.
        """
        fact = (await self.event(session, offset)).fact
        assert isinstance(fact, MessageRevised)
        return fact
