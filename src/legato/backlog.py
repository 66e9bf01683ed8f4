"""``Backlog``: what waits in the store for a place, be it of an earlier life or of another node.

The store's open runs are the list of what is to be done; this only lets ``Places`` know of them, in the order in which
they were sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import Awaitable, Callable, Container, Iterable, Mapping

from .caller import Caller
from .errors import HeadMoved, NotFound, RunEnded
from .event import Draft, MessageCreated, RunWaiting
from .log import Store
from .machine import OpenRun
from .places import Places

CLAIM = 32
"""Runs that are taken, or looked at, in one go: others come in between, be it nodes or the renewal of leases."""

AT_ONCE = 1_000
"""Runs that are looked at in one step, and before a start is over."""

RECOUNT = 1.0
"""Seconds between two looks whether what waits still does, for senders who are to be refused."""


class Backlog:
    """Looks through the store for what waits.

    Args:
        store: open.
        places: is told of it.
        count: gives how many runs the process may drive.
        clock: seconds since the epoch.
        busy: the sessions in which it drives one.
        renew: renews leases, if it is time.

    Attributes:
        learned: whether what waited before this life is known.
    """

    def __init__(
        self,
        store: Store,
        places: Places,
        *,
        count: Callable[[], int],
        clock: Callable[[], float],
        busy: Container[str],
        renew: Callable[[], Awaitable[object]],
    ) -> None:
        self.learned = False
        self._store = store
        self._places = places
        self._count = count
        self._clock = clock
        self._busy = busy
        self._renew = renew
        self._orphans: list[OpenRun] = []  # of what was learned, what had begun elsewhere
        self._recounted = 0.0  # when that was done last, by the loop's time

    async def learn(self) -> None:
        """Let all that waits be known, with whose it is: at a start what an earlier life took, later what other nodes
        have; and forget what waits no more. Where there are places for all it does not matter whose they are.

        Raises:
            StoreError: it cannot be seen.
        """
        self.learned = True
        before = self._places.queued
        runs = await self._store.open_runs(limit=sys.maxsize)
        self._let_go(before, runs)
        now = self._clock()
        firsts: dict[str, OpenRun] = {}
        for run in runs:
            firsts.setdefault(run.session, run)
        waiting = [name for name, run in firsts.items() if not run.held(now)]
        if not self._places.waiting and len(waiting) <= self._count() - self._places.taken:
            return
        new = [run for run in runs if run.run not in before and not run.held(now)]
        found: list[tuple[float, OpenRun, str]] = []
        for place in range(0, len(new), CLAIM):
            found += await asyncio.gather(*map(self._whose, new[place : place + CLAIM]))
            await self._renew()
        first: dict[str, float] = {}
        self._orphans += [run for run in new if run.started]
        for place, (at, run, party) in enumerate(sorted(found, key=lambda each: each[0])):
            self._places.queue(run.session, run.run, party)
            first.setdefault(run.session, at)
            if not place % AT_ONCE:
                await asyncio.sleep(0)  # they may be many
        for place, session in enumerate(sorted(waiting, key=lambda session: first.get(session, 0.0))):
            if session not in self._busy:
                self._places.wait(session)
            if not place % AT_ONCE:
                await asyncio.sleep(0)

    async def tell(self) -> None:
        """Let readers know that the answers wait which another node, or an earlier life, has begun and left, and for
        which there is no place here.

        Raises:
            StoreError: they cannot be told now.
        """
        while self._orphans:
            queued = self._places.queued
            some = [run for run in self._orphans[:CLAIM] if run.run in queued]
            await asyncio.gather(*map(self._tell, some))
            del self._orphans[:CLAIM]
            await self._renew()

    async def recount(self) -> None:
        """See whether what is known to wait still does, since other nodes take of it; not more than once a second.

        Raises:
            StoreError: it cannot be seen.
        """
        now = asyncio.get_running_loop().time()
        if now >= self._recounted + RECOUNT:
            self._recounted = now
            before = self._places.queued
            self._let_go(before, await self._store.open_runs(limit=sys.maxsize))

    async def _tell(self, run: OpenRun) -> None:
        with contextlib.suppress(HeadMoved, RunEnded, NotFound):  # somebody has it
            info = await self._store.info(run.session)
            now = info.runs.get(run.run)
            if now is not None and not now.held(self._clock()):
                once = f"waiting:{run.run}:{now.epoch}"
                await self._store.append(run.session, [Draft(RunWaiting(), run.run)], once=once, head=info.head)

    def _let_go(self, waited: Mapping[str, str], runs: Iterable[OpenRun]) -> None:
        """Of what waited, with its sessions, let what has ended, or has been taken by another node, wait no more."""
        now = self._clock()
        still = {run.run for run in runs if not run.held(now)}
        for name, session in waited.items():
            if name not in still:
                self._places.unqueue(session, name)

    async def _whose(self, run: OpenRun) -> tuple[float, OpenRun, str]:
        """When the message of a run was sent, and whose it is as far as the log has it."""
        events = await self._store.read(run.session, run.offset - 1, limit=1)
        sent = next((event.fact for event in events if isinstance(event.fact, MessageCreated)), None)
        return events[0].at if events else 0.0, run, Caller("" if sent is None else sent.caller or "").party
