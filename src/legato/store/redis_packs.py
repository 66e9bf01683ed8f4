"""Packs of a Redis store: deltas of answers that are over, or long, in a fraction of the memory.

Deltas that go on from each other are one *stretch*: what they say together, and of each its length and its time. So a
pack gives each of them again, to the byte, and no reader sees that it was packed. What retention makes thin loses the
times within a stretch, and no word: so no node has to be told of it, and every cursor goes on.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Sequence
from itertools import groupby, pairwise, zip_longest
from typing import Any

import msgspec

from ..errors import StoreCorrupt, StoreError
from ..event import DAMAGE, EVENTS, AnyFact, CallDelta, Event, Offset, OtherFact, read_fact, settle
from ..log import MICRO, Thinning
from ..thin import stretches, words
from .redis_plan import Record, binary, era_of, offset_of, records_of
from .redis_scripts import PACK, REPACK
from .redis_server import RedisServer

logger = logging.getLogger("legato")

PACK_BYTES, PACK_ENTRIES = 64 * 1024, 256
"""Of deltas, before they are compressed, in one pack: as much is read for one of them. And entries looked at for it."""
UNPACKED_BYTES = 4 * PACK_BYTES
"""Of an answer that goes on, as JSON, before some of it is packed."""
UNPACKED_SESSIONS = 10_000
"""Whose answers go on, of which it is known how much that is."""


class Stretch(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Deltas that go on from each other.

    Attributes:
        offset, at: of the first; microseconds since the epoch.
        call: its id, of a tool call's arguments; else None.
        start: where in its part the first begins, in characters.
        text: what they say together.
        lengths: of each, in characters.
        later: by how much each but the first is later than the one before it, in microseconds; none where that is not
            kept any more (``thin``), or there is no other.
    """

    offset: Offset
    at: int
    type: str
    run: str | None
    era: int
    part: int
    step: int
    call: str | None
    start: int
    text: str
    lengths: list[int]
    later: list[int]

    @property
    def last(self) -> Offset:
        """The offset of the last."""
        return self.offset + len(self.lengths) - 1

    def records(self) -> list[Record]:
        """Each of them."""
        kind: Any = EVENTS[self.type]
        found: list[Record] = []
        at, done = self.at, 0
        for number, (length, later) in enumerate(zip_longest(self.lengths, [0, *self.later], fillvalue=0)):
            about = (self.part, self.step) if self.call is None else (self.part, self.step, self.call)
            fact = kind(*about, self.start + done, self.text[done : done + length])
            done, at = done + length, at + later
            found.append((self.offset + number, at, self.type, self.run, settle(fact)[1], self.era))
        return found


_pack = msgspec.msgpack.Decoder(tuple[list[Record], list[Stretch]]).decode


def packed(records: Sequence[Record]) -> bytes:
    """A pack of these deltas, in order."""
    plain: list[Record] = []
    found: list[Stretch] = []
    for _, some in groupby(records, era_of):
        rows = list(some)
        events = [Event(_fact(row), row[0], row[1] / MICRO, row[3], row[4]) for row in rows]
        done = 0
        for start, end in stretches(events):
            stretch = _stretch(rows[start:end], [event.fact for event in events[start:end]])
            if stretch.records() == rows[start:end]:  # else there is more in it than this version knows
                plain += rows[done:start]
                found.append(stretch)
                done = end
        plain += rows[done:]
    return zlib.compress(binary((plain, found)))


def _fact(row: Record) -> AnyFact:
    try:
        return read_fact(row[2], row[4])
    except DAMAGE:
        return OtherFact(row[2], {})


def _stretch(rows: Sequence[Record], facts: Sequence[Any]) -> Stretch:
    (offset, at, type, run, _, era), one = rows[0], facts[0]
    said = [words(fact) or "" for fact in facts]
    later = [two[1] - one[1] for one, two in pairwise(rows)]
    about = one.part, one.step, one.id if isinstance(one, CallDelta) else None, one.start
    return Stretch(offset, at, type, run, era, *about, "".join(said), [len(text) for text in said], later)


def unpack(entry: bytes) -> list[Record]:
    """The events of an entry, or of a pack: that is compressed, and begins as no list in MessagePack does.

    Raises:
        StoreCorrupt: it cannot be read.
    """
    if entry[:1] != b"x":
        try:
            return records_of(entry)
        except msgspec.MsgspecError as exc:
            raise StoreCorrupt(f"An entry of a log cannot be read: {type(exc).__name__}.") from exc
    plain, found = _taken_apart(entry)
    return sorted([*plain, *(record for stretch in found for record in stretch.records())], key=offset_of)


def _taken_apart(pack: bytes) -> tuple[list[Record], list[Stretch]]:
    try:
        return _pack(zlib.decompress(pack))
    except (zlib.error, msgspec.MsgspecError) as exc:
        raise StoreCorrupt(f"A pack of pieces of answers cannot be read: {type(exc).__name__}.") from exc


def thin(pack: bytes, until: Offset) -> tuple[bytes, int, Offset, int]:
    """A pack in which the deltas of a stretch have the time of its first, as far as they end by ``until``: the times
    are most of what a pack is. With it how many are not as before, the offset of its last, and how many it holds."""
    plain, found = _taken_apart(pack)
    last = max([*map(offset_of, plain), *(stretch.last for stretch in found)])
    count = len(plain) + sum(len(stretch.lengths) for stretch in found)
    changed = 0
    for place, stretch in enumerate(found):
        if stretch.later and stretch.last <= until:
            found[place] = msgspec.structs.replace(stretch, later=[])
            changed += len(stretch.lengths)
    return (zlib.compress(binary((plain, found))) if changed else pack), changed, last, count


class Packer:
    """Packs what was stored, in the background: what is not packed when the process dies is, with what comes next.

    Args:
        server: where it stands.
    """

    def __init__(self, server: RedisServer) -> None:
        self._server = server
        self._wake = asyncio.Event()
        self._packing: dict[str, Offset] = {}  # up to where, whatever that is; 0: as long as there is much
        self._unpacked: dict[str, int] = {}

    def stored(self, session: str, events: Sequence[Event], *, deleted: bool) -> None:
        """These were, and the session is deleted or not."""
        size = self._unpacked.pop(session, 0) + sum(len(event.json) for event in events if event.fact.delta)
        ended = max((event.offset for event in events if event.fact.terminal), default=0)
        if size > UNPACKED_BYTES or ended:
            self._packing[session] = max(ended, self._packing.get(session, 0))
            self._wake.set()
        elif size and not deleted:
            self._unpacked[session] = size
            if len(self._unpacked) > UNPACKED_SESSIONS:
                del self._unpacked[next(iter(self._unpacked))]  # its run may be another process's by now

    async def go_on(self) -> None:
        """Put packs in the place of deltas, where an answer is over or has become long."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._packing:
                session, ended = self._packing.popitem()
                try:
                    await self.pack(session, ended)
                except StoreError as exc:
                    logger.debug("session %s: it is packed with what comes next: %s", session, exc)
                except Exception:  # of one session, and not of all others
                    logger.exception("session %s: it cannot be packed", session)

    async def pack(self, session: str, ended: Offset) -> None:
        """Pack the deltas of a session up to the end of an answer; 0: it goes on, and there may be much of it."""
        while await self._pack(session, ended):
            pass

    async def _pack(self, session: str, ended: Offset) -> bool:
        keys = self._server.keys(session, "deltas", "packs")
        rows = await self._server.do(keys[0], "XRANGE", keys[0], "-", ended or "+", "COUNT", PACK_ENTRIES)
        records: list[Record] = []
        size = 0
        for _, (_, entry) in rows:
            records += unpack(entry)
            size += len(entry)
            if size >= PACK_BYTES:
                break
        if not records or (size < PACK_BYTES and len(rows) < PACK_ENTRIES and not ended):
            return False
        pack = await asyncio.get_running_loop().run_in_executor(None, packed, records)
        return bool(await self._server.run(PACK, keys, rows[0][0], records[-1][0], pack))

    async def thin(self, session: str, after: Offset, limit: int, until: Offset) -> Thinning:
        """See ``Store.thin``; up to ``until`` the session's runs have ended. A pack takes the place of another one if
        that is still there: of two who do it at the same time one does, and of what is deleted nothing comes back."""
        await self.pack(session, until)
        key = self._server.keys(session, "packs")[0]
        seen = changed = 0
        while seen < limit and after < until:
            found = await self._server.do(key, "ZRANGE", key, after + 1, "+inf", "BYSCORE", "LIMIT", 0, 1)
            if not found:
                return Thinning(changed, None)
            pack, more, last, count = await asyncio.get_running_loop().run_in_executor(None, thin, found[0], until)
            if more and await self._server.run(REPACK, [key], last, found[0], pack):
                changed += more
            after, seen = last, seen + count
        return Thinning(changed, after if after < until else None)
