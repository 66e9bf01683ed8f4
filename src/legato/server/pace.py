"""Pace: how many tasks go on between two looks of the event loop at its sockets, so that a crowd does not hold it.

A thousand readers who come back at the same moment are a thousand tasks that can go on at the same moment, and the loop
would run them all before it does anything else. Here they go on in groups; a group grows while it is done quickly.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque

GROUP_SECONDS = 0.005
"""How long one group is to take at most, while others wait."""
FIRST, MOST = 8, 256
"""Tasks in a group, at first and at most."""


class Pace:
    """Lets tasks go on in groups. For one event loop."""

    def __init__(self) -> None:
        self._share = FIRST
        self._taken = 0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._began: float | None = None  # when the first of the present group went on, if it had to wait
        self._ticking = False

    async def keep(self) -> None:
        """Go on in one of the next groups: at once, unless many want to."""
        loop = asyncio.get_running_loop()
        if not self._ticking:
            self._ticking = True
            loop.call_soon(self._tick, loop)
        if self._taken < self._share and not self._waiting:
            self._taken += 1
            return
        waiter = loop.create_future()
        self._waiting.append(waiter)
        await waiter
        # Not from the tick on: what the loop does before that is not the group's doing, and not held against it. Nor is
        # what it does after somebody has gone on at once: in a busy loop, who comes alone would leave no room for many.
        if self._began is None:
            self._began = time.monotonic()

    def _tick(self, loop: asyncio.AbstractEventLoop) -> None:
        if self._began is not None:
            spent = time.monotonic() - self._began
            if spent > GROUP_SECONDS:
                self._share = max(self._share // 2, 1)
            elif spent < GROUP_SECONDS / 2 and self._waiting:
                self._share = min(self._share * 2, MOST)
        self._began, self._taken = None, 0
        while self._waiting and self._taken < self._share:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._taken += 1
        if self._taken:
            loop.call_soon(self._tick, loop)
        else:
            self._ticking = False
            self._share = FIRST
