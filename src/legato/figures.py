"""Figures: what a server counts of itself, as plain numbers. Whoever wants to know reads them; nobody is told.

So counting costs an addition where something happens anyway, and what figures are called elsewhere, such as in
Prometheus, is known in one place (``server/measures.py``). Nothing here is kept for each session or caller: a name that
would grow without bound is counted as ``other``.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)
NAMES = 200
"""That a tally tells apart."""


class Spread:
    """How values are spread.

    Args:
        bounds: in order; a value belongs to the first that it is not beyond.

    Attributes:
        counts: of the values of each bound, and last of those beyond all.
        sum: of all values.
    """

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float) -> None:
        """One more. A clock that was set back makes none of it negative."""
        value = max(value, 0.0)
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def within(self, share: float) -> float | None:
        """The bound that so many of them (0 to 1) are not beyond: infinite, if they are; None if there are none."""
        count, seen = self.count, 0
        for bound, more in zip(self.bounds, self.counts, strict=False):
            seen += more
            if count and seen >= share * count:
                return bound
        return float("inf") if count else None

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)


class Counts:
    """Counts, each under one or several names."""

    __slots__ = ("counts",)

    def __init__(self) -> None:
        self.counts: dict[tuple[str, ...], float] = {}

    def add(self, *names: str, count: float = 1) -> None:
        """So many more under these names; where there are too many, under ``other``."""
        if names not in self.counts and len(self.counts) >= NAMES:
            names = ("other",) * len(names)
        self.counts[names] = self.counts.get(names, 0) + count

    def __getitem__(self, names: str | tuple[str, ...]) -> float:
        return self.counts.get((names,) if isinstance(names, str) else names, 0)


class StoreFigures:
    """What a store counts, which any may: as its ``figures``.

    Attributes:
        commits: transactions that were committed.
        failed: that could not be.
        sizes: requests (appends, leases) in each.
        seconds: that each took, the sync included.
    """

    __slots__ = ("commits", "failed", "seconds", "sizes")

    def __init__(self) -> None:
        self.commits = 0
        self.failed = 0
        self.sizes = Spread(SIZES)
        self.seconds = Spread()

    def committed(self, requests: int, seconds: float) -> None:
        """One more, of so many requests, which took so long."""
        self.commits += 1
        self.sizes.add(requests)
        self.seconds.add(seconds)


class ProviderFigures:
    """What is counted of an agent's requests to its model.

    Attributes:
        requests: that were sent, repeated ones included.
        asked: that were wanted: each is sent once, if all goes well.
        errors: what asking failed with in the end, by the error's class and the status (0: none).
    """

    __slots__ = ("asked", "errors", "requests")

    def __init__(self) -> None:
        self.requests = 0
        self.asked = 0
        self.errors = Counts()


class Figures:
    """What an application counts while it lives.

    Attributes:
        waits: seconds from a message to the beginning of its run, of first attempts.
        first_words: and to the first piece of its answer.
        runs: seconds of runs, as far as one process drove them.
        ended: runs, by outcome and error code.
        taken_over: runs that were begun elsewhere, or in an earlier life.
        lost: runs that somebody else drives, though they were ours.
        tokens: by agent and kind. Cached ones are part of the input, reasoning of the output.
        cost: by agent.
        streams: that were opened, by dialect and beginning: ``new``, ``resumed``, ``reset``.
        answers: to requests, by operation and status.
        requests: seconds until answers that are no streams.
        delivery: seconds from an event's time to its being handed to connections: a sample, 20 in a second at most.
        lag: seconds by which each look of the event loop's timer was late.
        due: the next delivery is to be looked at.
    """

    def __init__(self) -> None:
        self.waits = Spread()
        self.first_words = Spread()
        self.runs = Spread()
        self.ended = Counts()
        self.taken_over = 0
        self.lost = 0
        self.tokens = Counts()
        self.cost = Counts()
        self.streams = Counts()
        self.answers = Counts()
        self.requests = Spread()
        self.delivery = Spread()
        self.lag = Spread()
        self.due = False

    def delivered(self, now: float, at: float) -> None:
        """What was stored at ``at`` has been handed on."""
        self.due = False
        self.delivery.add(now - at)
