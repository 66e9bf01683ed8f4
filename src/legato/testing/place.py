"""Where one rule of the contract of stores is tried: a store, its clock, and what is said there."""

from __future__ import annotations

from collections.abc import Callable

from ..event import (
    CancelRequested,
    Draft,
    MessageCreated,
    RunCompleted,
    RunStarted,
    Said,
    SessionCreated,
    SessionDeleted,
    TextDelta,
)
from ..log import Log, Store
from ..machine import Lease


class FakeClock:
    """A clock that stands still until told otherwise. Call it for the time, seconds since the epoch."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """The time."""
        return self.now

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self.now += seconds


MakeStore = Callable[[str, Callable[[], float]], Store]
"""Makes a store, not yet open, from the name of a place (letters and ``_``) and a clock.

Different names are different places, each empty at first. The same name is the same place again: what was stored
there and closed is found there. (For a store in memory: give the same object again.)
"""


class Place:
    """Where one check works.

    Attributes:
        store: open.
        clock: the store's.
    """

    def __init__(self, make: MakeStore, name: str) -> None:
        self._make = make
        self._name = name
        self._others: list[Store] = []
        self.clock = FakeClock()
        self.store = make(name, self.clock)

    async def reopen(self) -> Store:
        """Close the store, and open another one on the same place."""
        await self.store.close()
        self.store = self._make(self._name, self.clock)
        await self.store.open()
        return self.store

    async def another(self, name: str) -> Store:
        """A store on another place, open; it is closed with this one."""
        self._others.append(self._make(f"{self._name}_{name}", self.clock))
        await self._others[-1].open()
        return self._others[-1]

    async def close(self) -> None:
        """Close the store, and all others."""
        for store in (self.store, *self._others):
            await store.close()

    async def begin(self, session: str = "s", *runs: str) -> Log:
        """A new session with these runs open."""
        log = Log(self.store, session)
        await log.append(Draft(SessionCreated(session)), *[message(run) for run in runs])
        return log

    async def lease(self, session: str, run: str, *, owner: str = "owner", ttl: float = 30.0) -> Lease:
        """The lease of an open run."""
        return await self.store.acquire(session, run, owner=owner, ttl=ttl)


def message(run: str, text: str = "Hello") -> Draft:
    """A user's message, which opens a run."""
    return Draft(MessageCreated(f"m-{run}", "user", text), run)


def text(run: str, text: str = "x", start: int = 0) -> Draft:
    """A piece of what a run says."""
    return Draft(TextDelta(0, 0, start, text), run)


def started(run: str) -> Draft:
    """A run's beginning,"""
    return Draft(RunStarted("a", 1), run)


SAID = Said("m", "", [])


def completed(run: str) -> Draft:
    """its end,"""
    return Draft(RunCompleted("stop", SAID), run)


def cancel(run: str) -> Draft:
    """and the wish that it stop."""
    return Draft(CancelRequested(), run)


DELETED = Draft(SessionDeleted())
