"""How long a stream waits before it is connected again, and when it is given up. No I/O."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

__all__ = ["MAX_RETRY_AFTER", "ReconnectBackoff", "Waits", "is_final"]

MAX_RETRY_AFTER: Final = 60.0
"""Seconds; a server that asks for more is asked again after this long."""


# `retry: 0` means at once, which is fine once and a hot loop when the server ends each connection.
_MIN_RETRY: Final = 0.1


@dataclass(frozen=True, slots=True)
class ReconnectBackoff:
    """How long to wait before a reconnect: ``base * factor ** attempts`` seconds, at most ``cap``, half of it random.

    The law is that of all clients, see "Coming back" in ``docs/concepts.md``.

    Attributes:
        base: seconds; a ``retry:`` of the server takes its place.
        factor: growth from one attempt to the next.
        cap: seconds.
        give_up_after: seconds without progress after which the stream is given up; None means never.
    """

    base: float = 1.0
    factor: float = 2.0
    cap: float = 30.0
    give_up_after: float | None = 600.0

    def wait(
        self, attempt: int, random: float, *, retry: float | None = None, retry_after: float | None = None
    ) -> float:
        """How many seconds to wait before a reconnect. ``tests/vectors/waits.json`` holds here and in ``resume.js``.

        Args:
            attempt: how many were made since the last progress.
            random: from 0 to 1; all clients of a restarted server must not come back at once.
            retry: seconds from the stream's ``retry:``, which the server has spread itself: the first attempt waits
                exactly so long.
            retry_after: seconds from the ``Retry-After`` of the answer before; what is waited anyway comes on top, and
                of it no more than ``MAX_RETRY_AFTER`` counts.
        """
        base = min(self.base if retry is None else max(retry, _MIN_RETRY), self.cap)
        # The exponent is bounded: 2.0 ** 1024 is an OverflowError, after some hours of an endless retry.
        most = min(base * self.factor ** min(attempt, 32), self.cap)
        wait = base if attempt == 0 and retry is not None else most * (1 + random) / 2
        return wait + min(max(retry_after or 0.0, 0.0), MAX_RETRY_AFTER)


def is_final(status: int) -> bool:
    """Whether an HTTP status says that asking again is of no use."""
    return status < 500 and status not in (408, 425, 429)


class Waits:
    """The waits of one stream.

    Args:
        backoff: the waiting times.
        random: gives a float from 0 to 1; all clients of a restarted server must not come back at once.
        clock: seconds of a clock that never goes back.

    Attributes:
        retry: seconds from the stream's ``retry:``, once it has told.
        attempts: connections that were lost since the last progress.
    """

    def __init__(
        self,
        backoff: ReconnectBackoff,
        *,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.retry: float | None = None
        self.attempts = 0
        self._backoff = backoff
        self._random = random
        self._clock = clock
        self._lost_at: float | None = None

    @property
    def troubled(self) -> bool:
        """Whether there has been a loss and no progress since."""
        return self._lost_at is not None

    def progress(self) -> None:
        """Take note that something new came."""
        self.attempts = 0
        self._lost_at = None

    def next(self, retry_after: float | None = None) -> float | None:
        """How many seconds to wait after a loss; None: give up.

        Args:
            retry_after: seconds that the server asked for.
        """
        now = self._clock()
        if self._lost_at is None:
            self._lost_at = now
        give_up_after = self._backoff.give_up_after
        if give_up_after is not None and now - self._lost_at > give_up_after:
            return None
        wait = self._backoff.wait(self.attempts, self._random(), retry=self.retry, retry_after=retry_after)
        self.attempts += 1
        return wait
