"""Packs of a PostgreSQL store: deltas of answers that were given long ago, many in one row.

A pack stands at the offset of its last delta, has no type, and its data is a list where that of an event is an object:
type, time, run and JSON of each. Offsets are dense, so a page of a log that begins within it needs no more than the
next row; and what is read is what was stored, so no reader and no cache has to know. PostgreSQL compresses what is
large, to a tenth as a rule.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import msgspec

from ..event import Event, Offset
from ..log import Thinning
from .group import KnownRuns, read_event
from .postgres_link import Link
from .postgres_sql import Int8Array, TextArray

PACK_EVENTS, PACK_BYTES = 500, 128 * 1024
"""In one pack at most: as much is read for one of them. More would be read in vain, with less an index keeps more empty
pages: it gives back those on which nothing is left."""
LARGE_BYTES = 4 * 1024
"""A delta that is larger stays by itself."""

LOCK_LOG = "SELECT id, head, runs FROM legato.session WHERE name = %s AND NOT deleted FOR UPDATE"
"""Whoever deletes the session, or packs it elsewhere, comes before or after."""
LOOSE = f"""
    SELECT type, data, "offset", at, run FROM legato.event e
    WHERE session = %s AND "offset" > %s AND "offset" <= %s AND delta AND type <> ''
        AND octet_length(data) <= {LARGE_BYTES}
        AND NOT EXISTS (
            SELECT FROM legato.once o WHERE o.session = e.session AND e."offset" BETWEEN o.first AND o.last
        )
    ORDER BY "offset" LIMIT %s
"""  # noqa: S608
"""Deltas that are not packed; but for what was stored under a key, which is read by its offsets."""
TAKE = """
    DELETE FROM legato.event e USING unnest(%s::bigint[], %s::bigint[]) p (first, last)
    WHERE e.session = %s AND e."offset" BETWEEN p.first AND p.last
"""
PUT = """
    INSERT INTO legato.event SELECT %s, last, at, '', NULL, true, data
    FROM unnest(%s::bigint[], %s::bigint[], %s::text[]) p (last, at, data)
"""

Row = Sequence[Any]
"""Type, data, offset, time and run of an event, or of a pack."""
_encode = msgspec.json.Encoder().encode
_pack = msgspec.json.Decoder(list[tuple[str, int, str | None, str]])


def events_of(session: str, rows: Iterable[Row], after: Offset = 0) -> Iterator[Event]:
    """The events of rows behind an offset."""
    for type, text, offset, at, run in rows:
        if type or not text.startswith("["):
            yield read_event(session, type, text.encode(), offset, at, run)
            continue
        try:
            pack = _pack.decode(text)
        except (msgspec.MsgspecError, ValueError):
            yield read_event(session, type, text.encode(), offset, at, run)  # which shows it as damaged
            continue
        first = offset - len(pack) + 1
        skipped = max(after + 1 - first, 0)
        for place, (kind, stored_at, of, json) in enumerate(pack[skipped:], first + skipped):
            yield read_event(session, kind, json.encode(), place, stored_at, of)


def packs_of(rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
    """Those of the rows that make one pack: several deltas, one behind the other."""
    start = size = 0
    for place, row in enumerate(rows):
        length = len(row[1])
        if place > start and (
            row[2] != rows[place - 1][2] + 1 or place - start == PACK_EVENTS or size + length > PACK_BYTES
        ):
            yield rows[start:place]
            start, size = place, 0
        size += length
    yield rows[start:]


async def thin(link: Link, runs: KnownRuns, session: str, after: Offset, limit: int) -> Thinning:
    """See ``Store``: some deltas are packed, as far as their runs have ended, in one transaction."""
    async with link.transaction() as conn:
        found = await (await link.execute(conn, LOCK_LOG, (session,))).fetchone()
        if found is None:
            return Thinning(0, None)
        id, head, text = found
        until = min((run.offset - 1 for run in runs.read(session, text).values()), default=head)
        rows = await (await link.execute(conn, LOOSE, (id, after, until, limit))).fetchall()
        packs = [pack for pack in packs_of(rows) if len(pack) > 1]
        if packs:
            firsts, lasts = ([pack[place][2] for pack in packs] for place in (0, -1))
            said = [_encode([(type, at, run, json) for type, json, _, at, run in pack]) for pack in packs]
            await link.execute(conn, TAKE, (Int8Array(firsts), Int8Array(lasts), id))
            times = Int8Array([pack[-1][3] for pack in packs])
            await link.execute(conn, PUT, (id, Int8Array(lasts), times, TextArray(said)))
    return Thinning(sum(map(len, packs)), rows[-1][2] if 0 < limit <= len(rows) else None)
