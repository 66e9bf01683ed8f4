"""What connections may take of a server, in seconds and in bytes; and a budget, which is bytes that many share.

A bound for each and a bound of how many there may be are no bound of what they hold together: their product is larger
than a process. So what is in flight is counted together, and when it is too much, who hardly moves gives way.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from operator import itemgetter

import msgspec

from ..errors import LegatoError, Overloaded

logger = logging.getLogger("legato")

SMALL = 65_536
"""Bytes up to which something is small: as much again as the budget is kept for it, so that a few large ones in flight
are no reason to refuse a message."""
PRESSED_RATE = 65_536
"""Bytes a second on average; who is slower gives way when a budget is spent."""
PRESSED_AFTER = 1.0
"""Seconds before anybody is taken to be slow."""
LOOK_EVERY = 0.05
"""Seconds for which it is known who is slow."""
LOG_SECONDS = 10.0
"""Between two lines in the log about the same refusals."""


class Traffic(msgspec.Struct, frozen=True):
    """What connections may take of the server.

    Attributes:
        head_seconds: from a connection, or the first byte of a request, to the end of the request's head.
        body_seconds: for a body; longer only if it comes at ``body_rate`` bytes a second on average from then on.
        idle_seconds: between two requests of a connection. Longer than proxies keep theirs: most of them 60 to 120 s.
        write_seconds: for which who asked may take nothing of an answer.
        stalled_seconds: for which a reader may take nothing of a stream.
        stream_seconds: that a stream lasts at most, where its clients come back from an end: a random 80 to 100 % of
            it, so that not all come back at once. 0: for as long as it likes.
        connections: at once in one process; fewer if there are not as many descriptors. Beyond, the one that has been
            idle for longest is closed, and if none is, the new one is refused.
        connections_per_address: of these, of one address (of IPv6, of its first half); 0: all.
        head_bytes: of all heads that have not come in full, and of what waits behind an answer that is being given; a
            connection with 8 KB or less of it does not count.
        body_bytes: of all bodies that are being read.
        answer_bytes: of all answers that are being written and are no streams.
    """

    head_seconds: float = 10.0
    body_seconds: float = 30.0
    body_rate: int = 4096
    idle_seconds: float = 130.0
    write_seconds: float = 30.0
    stalled_seconds: float = 60.0
    stream_seconds: float = 3600.0
    connections: int = 20_000
    connections_per_address: int = 10_000
    head_bytes: int = 33_554_432
    body_bytes: int = 67_108_864
    answer_bytes: int = 67_108_864


class BudgetSpent(Overloaded):
    """What is in flight is as much as this server holds at once; try again in a moment."""

    code = "too_much_in_flight"


class RequestTimeout(LegatoError):
    """A request did not come in the time that it had."""

    code = "request_timeout"
    status = 408


class Refusals:
    """Counts what is refused for one reason, and says so in the log, once per so often.

    Args:
        what: a sentence with one ``%d``, for how many it were since the last line; and more, for what ``add`` is given.
        level: of the line.

    Attributes:
        count: of all.
    """

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic, *, level: int = logging.WARNING) -> None:
        self.count = 0
        self._what = what
        self._level = level
        self._clock = clock
        self._said_at = -LOG_SECONDS
        self._said = 0

    def add(self, *about: object) -> None:
        """One more."""
        self.count += 1
        now = self._clock()
        if now - self._said_at >= LOG_SECONDS:
            logger.log(self._level, self._what, self.count - self._said, *about)
            self._said_at, self._said = now, self.count


class Held:
    """Some bytes of a budget, until they are given back.

    Args:
        budget: of which.
        size: of what is held.
        let_go: called, once, when it has to give way.
    """

    def __init__(self, budget: Budget, size: int, let_go: Callable[[], None]) -> None:
        self.size = size
        self.let_go = let_go
        self.moved = 0
        self._budget = budget
        self._since = budget.clock()

    def __enter__(self) -> Held:
        return self

    def __exit__(self, *exc: object) -> None:
        self._budget.give_back(self)

    def move(self, count: int) -> None:
        """So many bytes more have come, or gone."""
        self.moved += count

    def grow(self, size: int) -> None:
        """Hold as much as this at least.

        Raises:
            BudgetSpent: there is no room for it.
        """
        if size > self.size and self._budget.holds(self):
            self._budget.make_room(size - self.size, size, self)
            self.size = size

    def rate(self, now: float) -> float:
        """Bytes a second; who has just come is not slow."""
        age = now - self._since
        return self.moved / age if age >= PRESSED_AFTER else PRESSED_RATE


class Budget:
    """Bytes that many share. One that is larger than the budget is let in when nobody else holds anything.

    Args:
        total: bytes.
        what: they are, for people.
        bound: the name of the limit, see ``bounds``.
    """

    def __init__(self, total: int, what: str, clock: Callable[[], float] = time.monotonic, *, bound: str = "") -> None:
        self.total = total
        self._bound = bound
        self.used = 0
        self.clock = clock
        self._what = what
        self._holders: set[Held] = set()
        self._slowest: list[Held] = []  # who has to give way, as of the last look
        self._look_again = -math.inf
        self._refusals = Refusals(f"%d refused: {what} in flight have the {total} bytes that they may have", clock)

    def hold(self, size: int, let_go: Callable[[], None]) -> Held:
        """Take ``size`` bytes, to be used as a context manager.

        Raises:
            BudgetSpent: there is no room, and nobody who would have to make some.
        """
        self.make_room(size, size)
        held = Held(self, size, let_go)
        self._holders.add(held)
        self.used += size
        return held

    def make_room(self, more: int, size: int, by: Held | None = None) -> None:
        """Have the slowest let go until ``more`` bytes fit, for one that has ``size`` then; see ``hold``."""
        total = self.total if size > SMALL else 2 * self.total
        others = self.used - (0 if by is None else by.size)
        excess = min(self.used + more - total, others)
        if excess > 0:
            for held in self._slow(excess, by):
                self.give_back(held)
                held.let_go()
        if by is not None:
            self.used += more

    def _slow(self, excess: int, by: Held | None) -> list[Held]:
        """Those who are to give way so that so many bytes are free, the slowest first."""
        now = self.clock()
        if now >= self._look_again:  # for a flood of those who want some, one look will do
            self._look_again = now + LOOK_EVERY
            rates = [(held.rate(now), held) for held in self._holders if held.size > SMALL]
            self._slowest = [held for rate, held in sorted(rates, key=itemgetter(0)) if rate < PRESSED_RATE]
        self._slowest = [held for held in self._slowest if held in self._holders]
        found = []
        for held in self._slowest:
            if excess <= 0:
                break
            if held is not by:
                found.append(held)
                excess -= held.size
        if excess > 0:
            self._refusals.add()
            raise BudgetSpent(
                f"This server holds {self.total} bytes of {self._what} at once; try again.", bound=self._bound
            )
        return found

    def holds(self, held: Held) -> bool:
        """Whether it has not been given back, nor had to give way."""
        return held in self._holders

    def give_back(self, held: Held) -> None:
        """What was held. Idempotent."""
        if held in self._holders:
            self._holders.remove(held)
            self.used -= held.size
