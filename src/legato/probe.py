"""``Probe``: whether a store answers, for all who want to know."""

from __future__ import annotations

import asyncio
import time

from .errors import StoreError, StoreSilent
from .log import Store
from .machine import OpenRun

PROBE_SECONDS = 2.0
"""For which a store may be silent that is asked whether it answers,"""
PROBE_EVERY = 1.0
"""and seconds for which what came of that is good for others who ask."""


class Probe:
    """Asks a store something small, once for all who ask at the same time.

    Args:
        store: open.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._asked: asyncio.Future[list[OpenRun]] | None = None
        self._asked_at = 0.0

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now, as far as the store knows."""
        return getattr(self._store, "trouble", None)

    async def check(self) -> None:
        """Ask the store for something, as who wants to know whether it answers. Whoever asks within a second of others
        gets what they get, and while it is silent there is one question.

        Raises:
            StoreError: nothing can be stored for now; ``StoreSilent`` if it does not answer.
        """
        if (trouble := self.trouble) is not None:
            raise trouble
        now = time.monotonic()
        if self._asked is None or (self._asked.done() and now > self._asked_at + PROBE_EVERY):
            self._asked, self._asked_at = asyncio.ensure_future(self._store.open_runs(limit=1)), now
            self._asked.add_done_callback(lambda asked: asked.cancelled() or asked.exception())
        _, late = await asyncio.wait([self._asked], timeout=max(self._asked_at + PROBE_SECONDS - now, 0))
        if late:
            raise StoreSilent(f"The store has not answered for {PROBE_SECONDS:g} s.")
        self._asked.result()
