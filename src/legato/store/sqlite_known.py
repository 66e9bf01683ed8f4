"""What the writer of a SQLite store knows of sessions without asking the disk."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec

from ..event import SessionCreated
from ..log import created, moment
from ..machine import OpenRun, SessionState
from .sqlite_file import apsw, last_at, value
from .sqlite_journal import Journal
from .sqlite_reading import read_heads, read_open_runs, read_waiting

KNOWN_SESSIONS = 10_000
"""Sessions whose head the writer remembers; others cost a look-up,"""
KNOWN_BYTES = 16 * 1024 * 1024
"""as do those of which it would remember more than so much of what began them."""
DAMAGE = (apsw.Error, msgspec.MsgspecError)
"""What reading a damaged session raises."""


class Look(msgspec.Struct, frozen=True, gc=False):
    """A session as it is after a group.

    Attributes:
        created: what its first event says, stored at ``created_at`` (microseconds since the epoch, as all here).
        updated_at: the time of its last event that is no delta.
        size: bytes of ``created`` as JSON.
    """

    state: SessionState
    created: SessionCreated
    created_at: int
    updated_at: int
    size: int


class Built(NamedTuple):
    """A session as far as it has been built: its row's id, its state, and what begins it, stored when, and how long."""

    id: int
    state: SessionState
    created: SessionCreated
    created_at: int
    size: int


class KnownSession:
    """What the writer remembers of a session: its row's id, and what it looks like."""

    __slots__ = ("created", "created_at", "id", "size", "state", "updated_at")

    def __init__(
        self, id: int, state: SessionState, created: SessionCreated, created_at: int, updated_at: int, size: int
    ) -> None:
        self.id, self.state, self.size = id, state, size
        self.created, self.created_at, self.updated_at = created, created_at, updated_at

    def look(self) -> Look:
        """For others."""
        return Look(self.state, self.created, self.created_at, self.updated_at, self.size)


class Known:
    """What the writer knows without asking the disk. After a failed commit it is thrown away and read again.

    Attributes:
        journal: what is committed of it, so it stays.
        sessions: the most recently written ones.
        runs: all open runs, by session and run, in the order of their messages. The sessions whose first run has been
            the first for longest come first.
        next_id: for the next new session.
        last_at: the time of the last append, in microseconds.
    """

    def __init__(self, connection: apsw.Connection, journal: Journal) -> None:
        self.journal = journal
        self.sessions: OrderedDict[str, KnownSession] = OrderedDict()
        self.bytes = 0  # of what began them
        runs: dict[str, dict[str, OpenRun]] = {name: {} for name in read_waiting(connection)}
        for run in read_open_runs(connection):
            runs[run.session][run.run] = run
        self.runs: dict[str, Mapping[str, OpenRun]] = {**runs}
        self.next_id = 1 + (value(connection, "SELECT max(id) FROM session") or 0)
        self.last_at = last_at(connection)

    def load(self, connection: apsw.Connection, names: Iterable[str]) -> dict[str, Exception]:
        """Make sure that ``sessions`` has all of these that exist; gives what is wrong with those that are damaged."""
        missing = []
        for name in names:
            if name in self.sessions:
                self.sessions.move_to_end(name)
            else:
                missing.append(name)
        if not missing:
            return {}
        try:
            heads = read_heads(connection, missing)
        except DAMAGE as exc:
            if len(missing) == 1:
                return {missing[0]: exc}
            # One by one, so that a damaged session harms nobody else.
            return {name: error for each in missing for name, error in self.load(connection, [each]).items()}
        for id, name, head, whole, deleted, begun, updated_at in heads:
            state = SessionState(name, max(head, self.journal.head(name)), whole, deleted, self.runs.get(name, {}))
            fact, created_at, size = begun
            self.sessions[name] = KnownSession(id, state, created(fact), created_at, updated_at, size)
            self.bytes += size
        return {}

    def shrink(self) -> None:
        """Forget sessions beyond ``KNOWN_SESSIONS``. Between groups only: a group's heads are not on the disk yet."""
        while len(self.sessions) > KNOWN_SESSIONS or self.bytes > KNOWN_BYTES:
            self.bytes -= self.sessions.popitem(last=False)[1].size

    def now(self, now: float) -> int:
        """The time of the next append, see ``moment``."""
        self.last_at = at = moment(now, self.last_at)
        return at
