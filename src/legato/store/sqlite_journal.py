"""The journal of a SQLite store: deltas in the order in which they came, until they are packed.

A row for each delta would cost a page of the log for each session in each commit. So the deltas of a commit, of all
sessions, are one row of the table ``journal``; later, many of one session become one row of the table ``pack``. This
module decides what is packed when, and remembers what is not. It knows no SQL.

The one rule that must hold: memory changes after the commit, in one step for each session. So whoever looks here first
and at the disk then misses nothing that was visible before, though it may see something twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence, Set
from typing import NamedTuple

from ..event import Offset
from .sqlite_file import JOURNAL, PACK, PACKED, Arrived, Record, journal_data, pack_data

PACK_EVENTS = 32
"""A session's deltas are packed each time its head passes a multiple of it: the bytes and the work of a row, shared."""
PACK_LIMIT = 4 * PACK_EVENTS
"""Deltas in one pack at most, since who wants one of them reads all."""
JOURNAL_BYTES = 8 * 1024 * 1024
"""What came so long ago is packed, however little it is of its session: it is what a start reads, at 100 MB/s or so."""
JOURNAL_PIECE = 256 * 1024
"""Rows that are not needed any more are deleted when they are so many bytes."""


class _Unpacked:
    """A session's deltas that are not packed: ``row`` of the journal has the first of them. From the offset ``due`` on
    they are to be."""

    __slots__ = ("due", "id", "records", "row")

    def __init__(self, id: int, row: int, records: list[Record]) -> None:
        self.id, self.row, self.records, self.due = id, row, records, _due(records[0][0], id)


def _due(first: Offset, id: int) -> Offset:
    """The first offset from ``first`` on that ends a multiple of ``PACK_EVENTS``, shifted by the session's id, so that
    not all do so at once."""
    return first + PACK_EVENTS - 1 - (first + id) % PACK_EVENTS


def packs(id: int, records: Sequence[Record]) -> list[object]:
    """Deltas of the session of this id, in order, as rows."""
    rows: list[object] = []
    for start in range(0, len(records), PACK_LIMIT):
        pack = records[start : start + PACK_LIMIT]
        rows += (PACK, id, pack[-1][0], pack_data(pack), None, None, None, None)
    return rows


class Filing(NamedTuple):
    """What a commit does to the journal; ``rows`` for the view ``change``.

    Attributes:
        packed: the sessions of which nothing is left in it.
        kept: the new deltas of others.
        start, end: where the journal begins and ends afterwards.
    """

    rows: list[object]
    packed: Collection[str]
    kept: Mapping[str, Arrived]
    start: int
    end: int


class Journal:
    """What of the journal is not packed.

    A row's id is how many bytes came before it, so the journal's length is a subtraction. For the writer's thread;
    ``after`` and ``heads`` for any.

    Args:
        rows: what the table has: id, length, and what arrived, but for what is packed.
    """

    def __init__(self, rows: Sequence[tuple[int, int, Mapping[str, Arrived]]]) -> None:
        self._sessions: dict[str, _Unpacked] = {}  # those with the oldest deltas first
        self._start = self._end = rows[0][0] if rows else 0
        for id, length, arrived in rows:
            self._keep(id, arrived)
            self._end = id + length

    def after(self, session: str) -> list[Record]:
        """The session's deltas that are not packed. Look here before the disk."""
        unpacked = self._sessions.get(session)
        return [] if unpacked is None else unpacked.records[:]

    def head(self, session: str) -> Offset:
        """The last of them; 0 if there are none."""
        unpacked = self._sessions.get(session)
        return 0 if unpacked is None else unpacked.records[-1][0]

    def heads(self) -> dict[str, Offset]:
        """``head`` of all that have any. Look here before the disk."""
        return {name: unpacked.records[-1][0] for name, unpacked in self._sessions.copy().items()}

    def file(self, arrived: Mapping[str, Arrived], deleted: Set[str]) -> Filing:
        """What a commit is to do with new deltas; ``filed`` once it is done.

        The words of a deleted session stand among those of others, so all that is left of the journal is packed.
        """
        if not arrived and not deleted:  # so that whoever only looks writes nothing, also when nothing can be written
            return Filing([], (), {}, self._start, self._end)
        if deleted:
            packed = {*self._sessions, *arrived}
        else:
            packed = self._due(arrived)
            for name, unpacked in self._sessions.items():
                if unpacked.row >= self._end - JOURNAL_BYTES:
                    break
                packed.add(name)
        rows: list[object] = []
        kept, start, end = arrived, self._start, self._end
        if packed or deleted:  # rows of what was packed before may still have the words of who is deleted
            for name in packed - deleted:
                rows += self._pack(name, *arrived.get(name, (0, [])))
            kept = {name: new for name, new in arrived.items() if name not in packed}
            left = (unpacked.row for name, unpacked in self._sessions.items() if name not in packed)
            needed = next(left, end)
            if needed - start >= (1 if deleted else JOURNAL_PIECE):
                start = needed
                rows += (PACKED, start, None, None, None, None, None, None)
        if kept:
            data = journal_data([*kept.values()])
            rows += (JOURNAL, end, data, None, None, None, None, None)
            end += len(data)
        return Filing(rows, packed, kept, start, end)

    def _pack(self, name: str, id: int, records: list[Record]) -> list[object]:
        """All that there is of a session, as rows: what is not packed, and these."""
        if (unpacked := self._sessions.get(name)) is not None:
            id, records = unpacked.id, unpacked.records + records
        return packs(id, records)

    def filed(self, filing: Filing) -> None:
        """It has been committed."""
        for name in filing.packed:
            self._sessions.pop(name, None)
        self._keep(self._end, filing.kept)
        self._start, self._end = filing.start, filing.end

    def _keep(self, row: int, arrived: Mapping[str, Arrived]) -> None:
        for name, (id, records) in arrived.items():
            unpacked = self._sessions.get(name)
            if unpacked is None:
                self._sessions[name] = _Unpacked(id, row, records)
            else:
                unpacked.records += records

    def _due(self, arrived: Mapping[str, Arrived]) -> set[str]:
        """The sessions whose deltas are many enough."""
        due: set[str] = set()
        for name, (id, records) in arrived.items():
            unpacked = self._sessions.get(name)
            if records[-1][0] >= (_due(records[0][0], id) if unpacked is None else unpacked.due):
                due.add(name)
        return due
