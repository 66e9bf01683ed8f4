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


@dataclass(frozen=True, slots=True)
class ReconnectBackoff:
    """How long to wait before a reconnect: a random part of ``base * factor ** attempts`` seconds, at most ``cap``.

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


def is_final(status: int) -> bool:
    """Whether an HTTP status says that asking again is of no use."""
    return status < 500 and status not in (408, 429)


class Waits:
    """The waits of one stream.

    Args:
        backoff: the waiting times.
        random: gives a float from 0 to 1; all clients of a restarted server must not come back at once.
        clock: seconds of a clock that never goes back.

    Attributes:
        base: seconds; at first the backoff's.
        attempts: connections that were lost since the last progress.
    """

    def __init__(
        self,
        backoff: ReconnectBackoff,
        *,
        random: Callable[[], float] = random.random,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base = backoff.base
        self.attempts = 0
        self._backoff = backoff
        self._random = random
        self._clock = clock
        self._lost_at: float | None = None

    def progress(self) -> None:
        """Take note that something new came."""
        self.attempts = 0
        self._lost_at = None

    def next(self, retry_after: float | None = None) -> float | None:
        """How many seconds to wait after a loss; None: give up.

        Args:
            retry_after: seconds that the server asked for; taken up to ``MAX_RETRY_AFTER``, with jitter added.
        """
        now = self._clock()
        if self._lost_at is None:
            self._lost_at = now
        give_up_after = self._backoff.give_up_after
        if give_up_after is not None and now - self._lost_at > give_up_after:
            return None
        # The exponent is bounded: 2.0 ** 1024 is an OverflowError, after some hours of an endless retry.
        growth = self._backoff.factor ** min(self.attempts, 32)
        self.attempts += 1
        wait = self._random() * min(self._backoff.cap, self.base * growth)
        return wait + min(max(retry_after or 0.0, 0.0), MAX_RETRY_AFTER)
