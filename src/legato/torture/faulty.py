"""A node's way to its store, on which everything goes wrong that does between two machines: calls and answers are late,
lost or held up, rings are not heard, and whoever called has died meanwhile.

What the store itself does is never touched: an append that comes through is stored, and one that does not is not.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from ..doorbell import Bell, Doorbell, Listener
from ..errors import LegatoError, StoreError
from ..event import Draft, Offset
from ..log import READ_LIMIT, Appended, SessionInfo, SessionPage, Store, Storing, Take
from ..machine import Lease, OpenRun

T = TypeVar("T")


class Faults:
    """What a node's way to the store is like now.

    Args:
        usual: seconds that a call takes at most, and its answer, when all is well.

    Attributes:
        cut: each call is refused, and what was under way is not answered.
        slow: seconds that a call takes at most, and its answer.
        refused: the share of calls that fail before the store has them.
        unanswered: the share of calls whose answer is lost: the store has done what it was asked.
        unheard: the share of rings that are lost.
        dead: the node has ended: nothing of it goes on.
    """

    def __init__(self, usual: float) -> None:
        self.dead = False
        self._usual = usual
        self._going = asyncio.Event()
        self._going.set()
        self.mend()

    def mend(self) -> None:
        """All is well."""
        self.cut = False
        self.slow = self._usual
        self.refused = self.unanswered = self.unheard = 0.0
        self._going.set()

    @property
    def paused(self) -> bool:
        """Whether the node stands still, and what it had asked with it."""
        return not self._going.is_set()

    def pause(self) -> None:
        """Stand still from now on."""
        self._going.clear()

    def go_on(self) -> None:
        """Stand still no more."""
        self._going.set()

    async def going(self) -> None:
        """Wait as long as the node stands still."""
        await self._going.wait()


class Witness:
    """Is told what stores have done. Whoever checks a store overrides what is of interest."""

    def stored(self, session: str, appended: Appended, lease: Lease | None, fence: int) -> None:
        """An append was stored; ``fence`` is the epoch that its run was known to have when the store was asked."""

    def granted(self, lease: Lease) -> None:
        """A lease was taken."""

    def renewed(self, owner: str, ttl: float) -> None:
        """Whoever this is has what leases it had for so many seconds more."""

    def released(self, lease: Lease) -> None:
        """A lease was given back, if it was one still."""

    def fence(self, session: str, run: str) -> int:
        """The highest epoch of a run that is known to have been granted."""
        return 0


class FaultyStore:
    """``inner``, as a node with such ``faults`` has it.

    Args:
        inner: the store, open.
        draws: decides what goes wrong when.
        witness: is told what the store has done, whether or not the node hears of it.
        usual: see ``Faults``.
    """

    def __init__(self, inner: Store, draws: random.Random, witness: Witness, *, usual: float = 0.02) -> None:
        self.inner = inner
        self.faults = Faults(usual)
        self.doorbell: Doorbell = _FaultyBell(inner.doorbell, self.faults, draws)
        self._draws = draws
        self._witness = witness

    def __getattr__(self, name: str) -> Any:
        if name == "peek":  # every look takes time
            raise AttributeError(name)
        return getattr(self.inner, name)

    async def _way(self) -> None:
        if self.faults.slow and self._draws.random() < 0.7:
            await asyncio.sleep(self._draws.random() * self.faults.slow)
        await self.faults.going()
        if self.faults.dead:
            raise asyncio.CancelledError

    async def _call(self, ask: Callable[[], Awaitable[T]]) -> T:
        await self._way()
        if self.faults.cut or self._draws.random() < self.faults.refused:
            raise StoreError("The store cannot be reached.")
        error: LegatoError | None = None
        try:
            answer = await ask()
        except LegatoError as exc:
            error = exc
        await self._way()
        if self.faults.cut or self._draws.random() < self.faults.unanswered:
            raise StoreError("The store has not answered.")
        if error is not None:
            raise error
        return answer

    async def open(self) -> None:
        """The inner store is."""

    async def close(self) -> None:
        """The inner store is not this node's."""

    def append(
        self,
        session: str,
        drafts: Sequence[Draft],
        *,
        lease: Lease | None = None,
        once: str | None = None,
        head: Offset | None = None,
        take: Take | None = None,
    ) -> Awaitable[Appended]:
        """See ``Store``."""
        if self.faults.dead:
            return Storing(error=StoreError("This node has ended."), over=True)

        def ask() -> Awaitable[Appended]:
            fence = 0 if lease is None else self._witness.fence(session, lease.run)
            asked = self.inner.append(session, drafts, lease=lease, once=once, head=head, take=take)

            def tell(appended: Appended) -> None:
                self._witness.stored(session, appended, lease, fence)
                if appended.lease is not None:
                    self._witness.granted(appended.lease)

            if isinstance(asked, Storing):  # as the store has it: told before anybody can read it
                asked.add_done_callback(lambda storing: None if storing.error else tell(storing.outcome))
                return asked
            return _telling(asked, tell)

        well = not (self.faults.cut or self.faults.paused or self.faults.refused or self.faults.unanswered)
        return ask() if well and self._draws.random() < 0.4 else self._call(ask)

    async def read(self, session: str, after: Offset, *, limit: int = READ_LIMIT, deltas: bool = True) -> list[Any]:
        """See ``Store``."""
        return await self._call(lambda: self.inner.read(session, after, limit=limit, deltas=deltas))

    async def info(self, session: str) -> SessionInfo:
        """See ``Store``."""
        return await self._call(lambda: self.inner.info(session))

    async def sessions(self, *, limit: int = 100, after: str | None = None, owner: str | None = None) -> SessionPage:
        """See ``Store``."""
        return await self._call(lambda: self.inner.sessions(limit=limit, after=after, owner=owner))

    async def open_runs(self, *, limit: int = READ_LIMIT) -> list[OpenRun]:
        """See ``Leaser``."""
        return await self._call(lambda: self.inner.open_runs(limit=limit))

    async def acquire(self, session: str, run: str, *, owner: str, ttl: float) -> Lease:
        """See ``Leaser``."""

        async def ask() -> Lease:
            lease = await self.inner.acquire(session, run, owner=owner, ttl=ttl)
            self._witness.granted(lease)
            return lease

        return await self._call(ask)

    async def claim(self, *, owner: str, ttl: float, limit: int) -> list[Lease]:
        """See ``Leaser``."""

        async def ask() -> list[Lease]:
            leases = await self.inner.claim(owner=owner, ttl=ttl, limit=limit)
            for lease in leases:
                self._witness.granted(lease)
            return leases

        return await self._call(ask)

    async def renew(self, *, owner: str, ttl: float) -> None:
        """See ``Leaser``."""

        async def ask() -> None:
            await self.inner.renew(owner=owner, ttl=ttl)
            self._witness.renewed(owner, ttl)

        await self._call(ask)

    async def release(self, lease: Lease) -> None:
        """See ``Leaser``."""

        async def ask() -> None:
            self._witness.released(lease)
            await self.inner.release(lease)

        await self._call(ask)


async def _telling(asked: Awaitable[Appended], tell: Callable[[Appended], None]) -> Appended:
    appended = await asked
    tell(appended)
    return appended


class _Relay(Bell):
    """Rings a node's own bells when the store's ring reaches it."""

    __slots__ = ("_pass",)

    def __init__(self, give: Callable[[], None]) -> None:
        super().__init__()
        self._pass = give

    def ring(self) -> None:
        self._pass()


class _FaultyBell(Doorbell):
    """The store's bells, as one node hears them."""

    def __init__(self, inner: Doorbell, faults: Faults, draws: random.Random) -> None:
        super().__init__()
        self._inner = inner
        self._faults = faults
        self._draws = draws
        self._relays: dict[tuple[str, bool], _Relay] = {}
        self._work = _Relay(lambda: self._later(self.ring_work))

    def hang(self, session: str, bell: Listener, *, outside: bool = False) -> None:
        super().hang(session, bell, outside=outside)
        key = (session, outside)
        if key not in self._relays:
            self._relays[key] = _Relay(lambda: self._later(lambda: self._ring(key)))
            self._inner.hang(session, self._relays[key], outside=outside)

    def take(self, session: str, bell: Listener, *, outside: bool = False) -> None:
        super().take(session, bell, outside=outside)
        if (session, outside) not in self._bells and (session, outside) in self._relays:
            self._inner.take(session, self._relays.pop((session, outside)), outside=outside)

    def hang_work(self, bell: Bell) -> None:
        super().hang_work(bell)
        self._inner.hang_work(self._work)

    def take_work(self, bell: Bell) -> None:
        super().take_work(bell)
        if not self._workers:
            self._inner.take_work(self._work)

    def hang_forget(self, callback: Callable[[bool], object]) -> None:
        self._inner.hang_forget(callback)

    def take_forget(self, callback: Callable[[bool], object]) -> None:
        self._inner.take_forget(callback)

    def _ring(self, key: tuple[str, bool]) -> None:
        for bell in list(self._bells.get(key, ())):
            bell.ring()

    def _later(self, ring: Callable[[], None]) -> None:
        if self._faults.dead or self._faults.cut or self._draws.random() < self._faults.unheard:
            return
        if self._draws.random() < 0.5:
            ring()
        else:
            asyncio.get_running_loop().call_later(self._draws.random() * self._faults.slow, ring)
