"""A store whose appends and reads can be held, so that a race is built instead of hoped for."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from legato.errors import StoreError
from legato.store.memory import MemoryStore

Wanted = Callable[[Sequence[Any]], bool]
"""Whether an append is meant, by what it is to store; each draft has a ``type``."""

ROUNDS = 300
"""Rounds of the event loop after which nothing more happens by itself, on a store in memory."""


def having(*types: str) -> Wanted:
    """Appends with at least one draft of each of these types."""
    return lambda drafts: set(types) <= {draft.type for draft in drafts}


def anything(drafts: Sequence[Any]) -> bool:
    """All appends."""
    return True


async def quiet(*, rounds: int = ROUNDS) -> None:
    """Let everybody act who can. Whoever waits for what is held goes on waiting; no clock is involved."""
    for _ in range(rounds):
        await asyncio.sleep(0)


class Hold:
    """What is held of one kind of call.

    Attributes:
        waiting: how many calls are held now.
    """

    def __init__(self, wanted: Wanted, skip: int, times: int) -> None:
        self.waiting = 0
        self._wanted = wanted
        self._skip = skip
        self._skipped: Counter[asyncio.Task[Any] | None] = Counter()
        self._times = times
        self._come = asyncio.Event()
        self._go = asyncio.Event()

    async def pass_through(self, drafts: Sequence[Any]) -> None:
        """Called by the store: wait if this call is one of those that are meant."""
        if self._go.is_set() or not self._times or not self._wanted(drafts):
            return
        task = asyncio.current_task()
        if self._skipped[task] < self._skip:
            self._skipped[task] += 1
            return
        self._times -= 1
        self.waiting += 1
        self._come.set()
        try:
            await self._go.wait()
        finally:
            self.waiting -= 1

    async def reached(self, *unless: asyncio.Future[Any]) -> None:
        """Wait until a call is held, or one of the tasks is over without having made one."""
        come = asyncio.ensure_future(self._come.wait())
        try:
            async with asyncio.timeout(30):
                await asyncio.wait([come, *unless], return_when=asyncio.FIRST_COMPLETED)
        finally:
            come.cancel()

    def let_go(self) -> None:
        """Let all that is held go on, in the order in which it came; nothing more is held."""
        self._go.set()


class HeldStore:
    """A store like ``inner``, whose calls can be held or made to fail.

    Args:
        inner: the store; one in memory if none is given.
    """

    def __init__(self, inner: Any = None) -> None:
        self.inner = MemoryStore() if inner is None else inner
        self._appends: list[Hold] = []
        self._reads: list[Hold] = []
        self._failing: Callable[[Sequence[Any]], bool] | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def hold(self, wanted: Wanted = anything, *, skip: int = 0, times: int = 1) -> Hold:
        """Hold appends of this kind: ``times`` of them, after the first ``skip`` of each task."""
        hold = Hold(wanted, skip, times)
        self._appends.append(hold)
        return hold

    def hold_reads(self, *, skip: int = 0, times: int = 1_000_000) -> Hold:
        """Hold what asks the store (``read``, ``info``) after the first ``skip`` calls of each task."""
        hold = Hold(anything, skip, times)
        self._reads.append(hold)
        return hold

    def fail(self, wanted: Wanted, *, skip: int = 0) -> None:
        """Let each append of this kind fail but for the first ``skip``, until ``mend``."""
        left = skip

        def failing(drafts: Sequence[Any]) -> bool:
            nonlocal left
            if not wanted(drafts):
                return False
            left -= 1
            return left < 0

        self._failing = failing

    def mend(self) -> None:
        """No append fails any more."""
        self._failing = None

    async def append(self, session: str, drafts: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
        for hold in self._appends:
            await hold.pass_through(drafts)
        if self._failing is not None and self._failing(drafts):
            raise StoreError("The disk is on strike.")
        return await self.inner.append(session, drafts, *args, **kwargs)

    async def read(self, *args: Any, **kwargs: Any) -> Any:
        return await self._asked(self.inner.read, args, kwargs)

    async def info(self, *args: Any, **kwargs: Any) -> Any:
        return await self._asked(self.inner.info, args, kwargs)

    async def _asked(self, ask: Callable[..., Awaitable[Any]], args: Any, kwargs: Any) -> Any:
        for hold in self._reads:
            await hold.pass_through(())
        return await ask(*args, **kwargs)
