"""How long sessions are kept, and who sees to it: a pass over all of them, a few at a time, over and over; and one over
the blobs that a crash has left."""

from __future__ import annotations

import asyncio
import logging
import math
import re
import time
from collections.abc import Callable

import msgspec

from .blobs import Blobs
from .errors import BlobsAway, CursorInvalid, HeadMoved, InvalidInput, LegatoError, SessionNotFound
from .event import Draft, Offset, SessionDeleted
from .log import SessionInfo, Store, Thinning
from .spending import is_own

logger = logging.getLogger("legato")

TICK_SECONDS = 10.0
"""Between two ticks,"""
TICK_SESSIONS = 500
"""each of which looks at so many sessions"""
TICK_CHANGES = 100
"""and changes so many at most: others are to store something in between."""
THIN_EVENTS = 2_000
"""That are looked at in one transaction."""
KNOWN = 100_000
"""Sessions that are known to be thin; others are looked at again."""
SWEEP_SECONDS = 3600.0
"""Between two passes over blobs."""
LEAST_SECONDS = 60.0
"""That anything is kept at least: what is younger may still be read."""

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}


class Retention(msgspec.Struct, frozen=True):
    """How long what is kept, in seconds; 0 for ever.

    Attributes:
        sessions: a whole session, since something was last stored in it that is no delta.
        deltas: pieces of its answers, since then; what they say is said together then, see ``thin``.
        of: of one owner, by their subject ("" for nobody in particular); None: as here. It is called on the event loop,
            for each session in each pass, so it is to be quick.
    """

    sessions: float = 0.0
    deltas: float = 0.0
    of: Callable[[str], Retention | None] | None = None

    def check(self) -> None:
        """Raise ``InvalidInput`` if that is too short to be meant."""
        for name, seconds in (("sessions", self.sessions), ("deltas", self.deltas)):
            if seconds and not LEAST_SECONDS <= seconds < math.inf:
                raise InvalidInput(
                    f"{name} are kept for {LEAST_SECONDS:g} seconds at least, or 0: ever; got {seconds}."
                )

    def for_owner(self, owner: str) -> Retention:
        """What holds for an owner."""
        own = None if self.of is None else self.of(owner)
        return self if own is None else own


def seconds_of(text: str) -> float:
    """How long ``90d``, ``12h``, ``30m``, ``3600s``, ``2w`` or a number of seconds is.

    Raises:
        InvalidInput: it is none of them.
    """
    match = re.fullmatch(r"(\d{1,9}(?:\.\d{1,6})?)\s*([smhdw]?)", text.strip(), re.ASCII)
    if match is None:
        raise InvalidInput(f"A time is a number with s, m, h, d or w, such as 90d, got {text[:60]!r}.")
    return float(match[1]) * _UNITS[match[2] or "s"]


class Keeper:
    """Deletes what need not be kept any more. On several nodes each does, and none of them minds the others.

    Args:
        store: open.
        retention: what holds.
        clock: seconds since the epoch.
        read: whether somebody reads a session now.
        forget: what is remembered of a session's log, which is not what it was.
        blobs: of the sessions in ``store``; None: all of them are in it.

    Attributes:
        deleted: how many sessions it has deleted.
        thinned: how many events say less.
        swept: of how many sessions blobs were left.
    """

    def __init__(
        self,
        store: Store,
        retention: Retention,
        clock: Callable[[], float] = time.time,
        read: Callable[[str], object] = lambda session: False,
        forget: Callable[[str], object] = lambda session: None,
        blobs: Blobs | None = None,
    ) -> None:
        self.deleted = self.thinned = self.swept = 0
        self._blobs = blobs or Blobs(store)
        self._blobs_after: str | None = None
        self._sweep_at = 0.0  # by the clock
        self._thin: dict[str, Offset] = {}  # sessions that are, by their heads
        self._store = store
        self._retention = retention
        self._clock = clock
        self._read = read
        self._forget = forget
        self._after: str | None = None
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = asyncio.create_task(self._go_on(), name="legato-retention")

    async def stop(self) -> None:
        """Stop. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self._task = None

    async def _go_on(self) -> None:
        while True:
            await asyncio.sleep(TICK_SECONDS)
            try:
                if self._retention.sessions or self._retention.deltas or self._retention.of is not None:
                    await self.tick()
                await self.sweep()
            except LegatoError as exc:
                logger.warning("what need not be kept cannot be deleted now: %s", exc)
            except Exception:  # a rule of the application's, as a rule: it may be right the next time
                logger.exception("what need not be kept cannot be deleted")

    async def tick(self) -> bool:
        """Look at some sessions; whether that was the end of a pass."""
        try:
            page = await self._store.sessions(limit=TICK_SESSIONS, after=self._after)
        except CursorInvalid:  # of another life of the store
            self._after = None
            return True
        changes = 0
        for info in page.infos:
            if changes >= TICK_CHANGES:
                return False  # the page again, of which those are gone
            changes += await self._look(info)
        self._after = page.next
        return page.next is None

    async def sweep(self) -> None:
        """Look at some blobs, if it is time for that."""
        now = self._clock()
        if now < self._sweep_at:
            return
        try:
            self._blobs_after, swept = await self._blobs.sweep(now, self._blobs_after)
        except CursorInvalid:
            self._blobs_after, swept = None, 0
        self.swept += swept
        if self._blobs_after is None:
            self._sweep_at = now + SWEEP_SECONDS

    async def _look(self, info: SessionInfo) -> bool:
        """Do what is to be done with one session; whether something was."""
        if is_own(info.session) or info.open_runs:
            return False
        keep = self._retention.for_owner(info.owner)
        age = self._clock() - info.updated_at
        if keep.deltas and age > max(keep.deltas, LEAST_SECONDS) and not (keep.sessions and age > keep.sessions):
            return await self._make_thin(info)
        if not keep.sessions or age <= max(keep.sessions, LEAST_SECONDS):
            return False
        try:
            await self._blobs.check_gone(info.session)
        except BlobsAway as exc:  # which is no reason to keep the others
            logger.warning("session %s is kept: %s", info.session, exc.message)
            return False
        try:  # at the head that was seen: whoever writes in it now keeps it
            await self._store.append(info.session, [Draft(SessionDeleted())], head=info.head)
        except (HeadMoved, SessionNotFound):
            return False
        await self._blobs.forget(info.session)
        self.deleted += 1
        return True

    async def _make_thin(self, info: SessionInfo) -> bool:
        """Have the deltas of a session say together what they say, unless somebody reads it now, who would be given the
        one half as it was and the other as it is then. Whether there was much to do."""
        thin = getattr(self._store, "thin", None)
        if thin is None or self._thin.get(info.session) == info.head or self._read(info.session):
            return False
        changed = 0
        after: Offset | None = 0
        while after is not None:
            step: Thinning = await thin(info.session, after, THIN_EVENTS)
            changed, after = changed + step.changed, step.after
            if step.changed:
                self._forget(info.session)
        self.thinned += changed
        self._thin[info.session] = info.head
        while len(self._thin) > KNOWN:
            del self._thin[next(iter(self._thin))]
        return changed > 0
