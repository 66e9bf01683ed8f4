"""The load of an event loop, as how late its timers are, and what is done to lower it.

A loop that has too much to do goes on, only ever later, and nobody in it notices. Here a timer looks at the clock.
While it is late, what runs say is *gathered* before it is stored: for longer and longer, until the loop keeps up, since
an event costs the same whether it holds one token or ten. And whoever would add to the load can ask how late it is.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterator

from .figures import Figures

logger = logging.getLogger("legato")

BEAT = 0.05
"""Seconds between two looks."""
LOOKS = 3
"""So many in a row tell how late the loop is."""
LATE = 0.010
"""Seconds by which the loop may be late; beyond, runs gather for twice as long as before."""
FIRST, MOST = 0.010, 0.400
"""Seconds for which they gather at first, and at most: 12 tokens of a run that says 30 in a second."""
EASED = 0.8
"""What is left of that time after a look at a loop that is not late,"""
BUSY, HELD = 0.85, 0.98
"""and what is left while the process uses more than so much of a core: if runs gathered less, it would be late again,
and the cost of a token would go up and down with it."""


class Round:
    """What is to be done at the end of a round of an event loop, in one turn for all, instead of one for each."""

    def __init__(self) -> None:
        self._due: list[Callable[[], None]] = []
        self._context = contextvars.Context()  # that of whoever came first is not everybody's

    def add(self, callback: Callable[[], None]) -> None:
        """Call ``callback`` at the end of this round. It should raise nothing; what it does is logged."""
        if not self._due:
            asyncio.get_running_loop().call_soon(self._go, context=self._context)
        self._due.append(callback)

    def _go(self) -> None:
        due, self._due = self._due, []
        for callback in due:
            try:
                callback()
            except Exception:  # the others have their turn all the same
                logger.exception("what was due at the end of a round failed")


class Load:
    """How late an event loop is. For one loop, between ``start`` and ``stop``.

    Args:
        least: seconds for which runs gather what they say when the loop is not late.
        clock: monotonic, in seconds.
        spent: seconds of a core that the process has used.
        figures: where it is counted how late the loop was.

    Attributes:
        soon: calls what it is given at the end of the round, see ``Round``.
        gather: seconds for which a run is to gather what it says, now.
        lag: seconds by which each of the last ``LOOKS`` looks was late at least: a long step makes one of them late.
    """

    def __init__(
        self,
        least: float = 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        spent: Callable[[], float] = time.process_time,
        figures: Figures | None = None,
    ) -> None:
        self.figures = figures or Figures()
        self.gather = least
        self.lag = 0.0
        self._least = least
        self._clock = clock
        self._spent = spent
        self._looked = (0.0, 0.0)  # when it was looked last, and what had been spent
        self._late = deque([0.0] * LOOKS, LOOKS)
        self._waits: dict[object, float] = {}  # since when, the oldest first
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self.soon = Round().add

    @property
    def waiting(self) -> float:
        """Seconds for which the oldest of what is ``waited`` for has been."""
        since = next(iter(self._waits.values()), None)
        return 0.0 if since is None else self._clock() - since

    @contextlib.contextmanager
    def waited(self) -> Iterator[None]:
        """Around what somebody outside waits for."""
        key = object()
        self._waits[key] = self._clock()
        try:
            yield
        finally:
            del self._waits[key]

    def start(self) -> None:
        """Begin to look. Idempotent."""
        self.stop()
        self._due = math.inf
        self.look()

    def stop(self) -> None:
        """Look no more. Idempotent."""
        if self._timer is not None:
            self._timer.cancel()

    def look(self) -> None:
        """Look at the clock, and again in ``BEAT`` seconds."""
        now, spent = self._clock(), self._spent()
        busy = spent - self._looked[1] > BUSY * (now - self._looked[0])
        self._looked = now, spent
        self._late.append(max(now - self._due, 0.0))
        self.figures.lag.add(self._late[-1])
        self.figures.due = True
        self.lag = min(self._late)
        if self.lag > LATE:
            self.gather = min(max(self.gather * 2, FIRST), max(self._least, MOST))
        else:
            gather = self.gather * (HELD if busy else EASED)
            self.gather = self._least if gather < max(self._least, FIRST / 2) else gather
        self._due = now + BEAT
        self._timer = asyncio.get_running_loop().call_later(BEAT, self.look)
