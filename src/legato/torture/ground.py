"""Where the stores of a simulated world are: who has one, and what is left of it when a node ends."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable
from typing import Any, Protocol

from ..event import Draft, SessionDeleted
from ..log import SessionPage, Store
from ..store.memory import MemoryStore


class Ground(Protocol):
    """Where the stores of a simulated world are.

    Attributes:
        shared: whether several nodes have the store at once.
        real: whether it needs real time.
        has_power: whether it can be cut.
        forgetful: whether that may take what was acknowledged.
        prefix: what the names of its sessions begin with.
    """

    shared: bool
    real: bool
    has_power: bool
    forgetful: bool
    prefix: str

    async def boot(self, clock: Callable[[], float], draws: random.Random) -> Store:
        """A store for a node that begins, open."""
        ...

    async def drop(self, store: Store, *, cut: random.Random | None) -> None:
        """The node of this store has ended: by a cut of the power, if that is given."""
        ...

    async def leave(self, store: Store) -> None:
        """The node of this store has been stopped."""
        ...

    async def see(self) -> Store | None:
        """The store for who checks it; None while nobody has it."""
        ...

    async def close(self) -> None:
        """Let go of all; every node has ended."""
        ...


class MemoryGround:
    """One store in memory, which all nodes share, and which outlives them."""

    shared, real, has_power, forgetful = True, False, False, False
    prefix = ""

    def __init__(self) -> None:
        self._store: MemoryStore | None = None

    async def boot(self, clock: Callable[[], float], draws: random.Random) -> Store:
        """See ``Ground``, as all here."""
        if self._store is None:
            self._store = MemoryStore(clock=clock)
            await self._store.open()
        return self._store

    async def drop(self, store: Store, *, cut: random.Random | None) -> None:
        """It stays."""

    async def leave(self, store: Store) -> None:
        """It stays."""

    async def see(self) -> Store | None:
        """The one."""
        return self._store

    async def close(self) -> None:
        """There is nothing to let go of."""


class SQLiteGround:
    """A file, which one node has at a time, on a disk whose power may be cut.

    Args:
        folder: for it.
        disk: a ``power.PowerDisk`` that is in use.
        durability: see ``SQLiteStore``.
    """

    shared, real, has_power = False, False, True
    prefix = ""

    def __init__(self, folder: str, disk: Any, durability: str = "full") -> None:
        self._path = f"{folder}/simulated.db"
        self._disk = disk
        self._durability = durability
        self._store: Any = None
        self.forgetful = durability != "full"

    async def boot(self, clock: Callable[[], float], draws: random.Random) -> Store:
        """See ``Ground``, as all here."""
        from .power import SLOWEST, stepped_store

        self._store = stepped_store(
            self._path, durability=self._durability, clock=clock, pause=lambda: draws.random() * SLOWEST
        )
        await self._store.open()
        store: Store = self._store
        return store

    async def drop(self, store: Store, *, cut: random.Random | None) -> None:
        """What is left is what the disk has."""
        images = self._disk.images(self._path, cut)
        self._store.die()
        self._store = None
        self._disk.put_back(self._path, images)

    async def leave(self, store: Store) -> None:
        """It is closed."""
        await store.close()
        self._store = None

    async def see(self) -> Store | None:
        """That of the node, if there is one."""
        store: Store | None = self._store
        return store

    async def close(self) -> None:
        """Its last node has let go of it."""


class GivenGround:
    """Stores that ``make`` makes, one for each node, or one and the same for all.

    Args:
        make: from the name of a place and a clock, as for ``testing.check_store``.
        name: of the place.
        shared: whether several may be open at once. If not, a node's end closes its store, since nobody else can.
        real: whether they need real time, as what is reached over a network does. Then sessions have names that were
            never there before, and are deleted in the end.
    """

    has_power, forgetful = False, False

    def __init__(
        self, make: Callable[[str, Callable[[], float]], Store], name: str, *, shared: bool, real: bool
    ) -> None:
        self.shared, self.real = shared, real
        self.prefix = f"sim{os.urandom(4).hex()}" if real else ""
        self._make = make
        self._name = name
        self._open: list[Store] = []  # once for each node; first that of who checks, if they can be several
        self._mine: Store | None = None
        self._booting = asyncio.Lock()

    async def boot(self, clock: Callable[[], float], draws: random.Random) -> Store:
        """See ``Ground``, as all here."""
        async with self._booting:
            if self.shared and self._mine is None:
                self._mine = await self._begin(clock)
            return await self._begin(clock)

    async def _begin(self, clock: Callable[[], float]) -> Store:
        store = self._make(self._name, clock)
        if not any(each is store for each in self._open):
            await store.open()
        self._open.append(store)
        return store

    async def drop(self, store: Store, *, cut: random.Random | None) -> None:
        """It is closed, unless others have it."""
        self._open = [each for place, each in enumerate(self._open) if place != self._place(store)]
        if not any(each is store for each in self._open):
            await store.close()

    def _place(self, store: Store) -> int:
        return max(place for place, each in enumerate(self._open) if each is store)

    async def leave(self, store: Store) -> None:
        """As ``drop``."""
        await self.drop(store, cut=None)

    async def see(self) -> Store | None:
        """The first that is open."""
        return self._open[0] if self._open else None

    async def close(self) -> None:
        """Delete what was made, and close."""
        if self._mine is None:
            return
        page = SessionPage([], "") if self.prefix else SessionPage([])
        while page.next is not None:
            page = await self._mine.sessions(after=page.next or None)
            for info in page.infos:
                if info.session.startswith(self.prefix):
                    await self._mine.append(info.session, [Draft(SessionDeleted())])
        await self.leave(self._mine)
