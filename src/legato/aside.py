"""Threads for what is in proportion to what a caller has sent, when that is much, so that the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from .errors import Overloaded
from .event import Draft, settled
from .json import LARGE

P = ParamSpec("P")
T = TypeVar("T")

HUGE = 262_144
"""Bytes of what has a thread of its own, so that what is smaller does not wait for it."""

WAITING = 67_108_864
"""Bytes of all that waits."""


class Aside:
    """Two threads, which begin when they are needed; with more, the loop would wait for more to let it go on.

    What is done in them should be done in steps that are short: a single call of a C function lets nobody else go on.
    """

    def __init__(self) -> None:
        self._waiting = 0
        self._threads: dict[bool, ThreadPoolExecutor] = {}

    async def do(self, size: int, work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
        """What ``work`` gives, or raises, which takes as long as what has so many bytes.

        Raises:
            Overloaded: too much waits already.
        """
        if self._waiting + size > WAITING:
            raise Overloaded("Too many large requests wait; try again later.")
        thread = self._threads.get(size > HUGE)
        if thread is None:
            thread = self._threads[size > HUGE] = ThreadPoolExecutor(1, thread_name_prefix="legato-aside")
        self._waiting += size
        try:
            return await asyncio.wrap_future(thread.submit(work, *args, **options))
        finally:
            self._waiting -= size

    async def settled(self, size: int, drafts: Iterable[Draft]) -> Iterable[Draft]:
        """Drafts as they will be stored, of what was ``size`` bytes of JSON: here, if they are small.

        Raises:
            Overloaded: too much waits already.
        """
        return drafts if size <= LARGE else await self.do(size, settled, drafts)

    def close(self) -> None:
        """End the threads after what they do now."""
        for thread in self._threads.values():
            thread.shutdown(wait=False)
        self._threads.clear()
