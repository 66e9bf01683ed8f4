"""``Streams``: all that are open in an application, how many there may be, and when they end."""

from __future__ import annotations

import asyncio
import functools
import itertools
import logging
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence

from .. import bounds
from ..errors import TooMany
from ..figures import Figures
from .crowd import Crowds, Line
from .pump import Pump, Sink

logger = logging.getLogger("legato")

SEND_TIMEOUT = 60.0
"""Seconds that one write may take, by default; then the reader is taken for dead (nginx: 60 s between two writes)."""
EXPIRED, REVOKED = b": expired\n", b": revoked\n"
"""What a stream ends with whose reader may not read any more: a comment, which is nothing to every client. Who comes
back is answered with 401, until they have signed in again."""
LOOK_AGAIN = 86_400.0
"""Seconds after which it is looked at the clock again of a sign-in that lasts longer."""


class Reserved:
    """A place among the streams, taken until it is given back."""

    def __init__(self, streams: Streams, session: str, party: str) -> None:
        self.session = session
        self.party = party
        self._streams = streams
        self._held = True

    def give_back(self) -> None:
        """Let others have it. Idempotent."""
        if self._held:
            self._held = False
            self._streams.count_out(self.session, self.party)

    def move(self, session: str) -> None:
        """Count it for another session: that it would be for this one was not known before."""
        if self._held and session != self.session:
            self._streams.count_out(self.session, self.party)
            self.session = session
            self._streams.count_in(session, self.party)


class Streams:
    """All open streams of an application: their bounds, and their common end.

    Args:
        total: streams at once.
        per_session: streams of one session at once.
        per_owner, per_address: of one signed-in subject; of one address, where nobody is signed in. 0: as many as
            there are.
        seconds: that a stream lasts at most; it ends after a random 80 to 100 % of it, so that not all come back at
            once, and only where its clients come back from an end. 0: for as long as it likes.
        stalled_seconds: for which a reader may take nothing.
        refused: counts what limits have refused, see ``bounds``.
        elsewhere: gives how many streams of a party other nodes have.
        figures: where it is counted how long events take to reach them.

    Attributes:
        parties: how many streams each party has here.
    """

    def __init__(
        self,
        *,
        total: int = 10_000,
        per_session: int = 2_000,
        per_owner: int = 1_000,
        per_address: int = 5_000,
        seconds: float = 3600.0,
        stalled_seconds: float = SEND_TIMEOUT,
        refused: Counter[str] | None = None,
        elsewhere: Callable[[str], int] = lambda party: 0,
        figures: Figures | None = None,
    ) -> None:
        self.total = total
        self.per_session = per_session
        self.per_owner = per_owner
        self.per_address = per_address
        self.seconds = seconds
        self.stalled_seconds = stalled_seconds
        self._refused = bounds.tally() if refused is None else refused
        self.figures = figures or Figures()
        self.crowds = Crowds(self.figures)
        self._bytes = 0  # of streams that have ended
        self._pumps: set[Pump] = set()
        self._places = 0
        self._sessions: dict[str, int] = {}
        self.parties: Counter[str] = Counter()
        self._elsewhere = elsewhere
        self._numbers = itertools.count(1)
        self._sweeper: asyncio.Task[None] | None = None
        self._revoked: set[str] = set()
        self._empty = asyncio.Event()
        self._empty.set()
        self.draining = False

    def __len__(self) -> int:
        return len(self._pumps)

    @property
    def sent(self) -> int:
        """Bytes of body that have been handed over."""
        return self._bytes + sum(pump.bytes for pump in self._pumps)

    def readers(self, session: str | None = None) -> list[Pump]:
        """The open streams, of one session or of all."""
        return [pump for pump in self._pumps if session in (None, pump.session)]

    def count(self, session: str) -> int:
        """How many streams of ``session`` are open, or about to be."""
        return self._sessions.get(session, 0)

    def reserve(self, session: str, party: str = "") -> Reserved:
        """A place for a stream of ``session`` ("": of one that does not exist yet), for a party (see ``Caller``).

        Raises:
            TooMany: another stream would pass a bound.
        """
        if self._places >= (most := self.total):
            raise TooMany(f"This server has {most} open streams and takes no more.", bound="max_streams", limit=most)
        if session and self._sessions.get(session, 0) >= (most := self.per_session):
            raise TooMany(
                f"This session has {most} open streams and takes no more.", bound="max_streams_per_session", limit=most
            )
        if party:
            whose = "owner" if party.startswith("subject ") else "address"
            count = self.parties[party] + self._elsewhere(party)
            most = self.per_owner if whose == "owner" else self.per_address
            if 0 < most <= count:
                raise TooMany(
                    f"You have {most} open streams, as many as you may.", bound=f"max_streams_per_{whose}", limit=most
                )
        self.count_in(session, party)
        return Reserved(self, session, party)

    def count_in(self, session: str, party: str) -> None:
        """Count a place in, see ``Reserved``."""
        if party:
            self.parties[party] += 1
        self._places += 1
        self._sessions[session] = self._sessions.get(session, 0) + 1

    def count_out(self, session: str, party: str) -> None:
        """Count a place out, see ``Reserved``."""
        if party:
            self.parties[party] -= 1
            if not self.parties[party]:
                del self.parties[party]
        self._places -= 1
        self._sessions[session] -= 1
        if not self._sessions[session]:
            del self._sessions[session]

    async def run(self, pump: Pump, sink: Sink, headers: Sequence[tuple[bytes, bytes]] = ()) -> None:
        """Answer with ``pump``, counted in while it lasts; see ``Pump.run``. Its place has been reserved."""
        self._add(pump)
        self._watch(pump)
        try:
            await pump.run(sink, headers, self.figures)
        finally:
            self._discard(pump)

    def follow(self, pump: Pump, line: Line, place: Reserved) -> None:
        """Go on with a stream whose head has been sent, on a line; its place is given back when it ends."""

        def over() -> None:
            self._discard(pump)
            place.give_back()

        self._add(pump)
        pump.follow(line, self.crowds, over)
        if pump in self._pumps:
            self._watch(pump)

    def dismiss(self, credential: str, gone: bool = True) -> None:
        """End the streams of those who signed in with what has been revoked, those to come included; if it is not
        ``gone`` but there again, those to come are let be."""
        if not gone:
            self._revoked.discard(credential)
            return
        self._revoked.add(credential)
        for pump in list(self._pumps):
            if pump.caller.credential == credential:
                pump.dismiss(REVOKED)

    def _watch(self, pump: Pump) -> None:
        """End a stream when its reader's sign-in does."""
        caller = pump.caller
        if caller.credential in self._revoked:
            pump.dismiss(REVOKED)
        elif caller.expires_at is not None:
            rest = caller.expires_at - time.time()
            if rest <= 0:
                pump.dismiss(EXPIRED)
            else:
                pump.call_later(min(rest, LOOK_AGAIN), functools.partial(self._watch, pump))

    def _add(self, pump: Pump) -> None:
        pump.number = next(self._numbers)
        pump.opened_at = time.time()
        if self.seconds and not pump.resets:
            pump.until = time.monotonic() + self.seconds * random.uniform(0.8, 1.0)  # noqa: S311  # no secret
        self._pumps.add(pump)
        self._empty.clear()
        if self._sweeper is None:
            self._sweeper = asyncio.create_task(self._sweep(), name="legato-streams")
        if self.draining:
            pump.end()

    def _discard(self, pump: Pump) -> None:
        pump.call_off()
        if pump in self._pumps:
            self._pumps.remove(pump)
            self._bytes += pump.bytes
        if not self._pumps:
            self._empty.set()

    async def _sweep(self) -> None:
        # One timer for all streams instead of one for each write.
        while True:
            await asyncio.sleep(min(self.stalled_seconds, 60.0, self.seconds or 60.0) / 12)
            now = time.monotonic()
            for pump in list(self._pumps):
                if pump.stalled(self.stalled_seconds):
                    logger.info(
                        "a reader of session %s took nothing for %g s and was cut off",
                        pump.session,
                        self.stalled_seconds,
                    )
                    self._refused["stalled_seconds"] += 1
                    pump.abort()
                elif now >= pump.until:
                    pump.until = math.inf
                    self._refused["stream_seconds"] += 1
                    pump.end()

    def drain(self) -> None:
        """End every stream after what is written now. Idempotent; new streams end at once, too."""
        self.draining = True
        for pump in list(self._pumps):
            pump.end()

    def cut(self) -> None:
        """Cut every stream off, where it is; readers come back with their cursors."""
        for pump in list(self._pumps):
            pump.abort()

    async def close(self, timeout: float = 2.0) -> None:
        """Drain, and after ``timeout`` seconds cut off readers that do not take what is being written."""
        self.drain()
        try:
            await asyncio.wait_for(self._empty.wait(), timeout)
        except TimeoutError:
            logger.info("%d readers were cut off", len(self._pumps))
        for pump in list(self._pumps):
            pump.abort()
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None
