"""``Doorbell``: tells who listens in this process that a log has grown.

It carries no data and knows no store: a lost ring costs its listener a heartbeat, never an event.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol


class Listener(Protocol):
    """What a ``Doorbell`` rings for."""

    def ring(self) -> None:
        """The log has grown. To be quick, and to raise nothing: many are rung one after another."""
        ...


class Bell:
    """One listener's ear: remembers that it rang since it was last cleared, and nothing else."""

    __slots__ = ("_rung", "_timer", "_until", "_waiter")

    def __init__(self) -> None:
        self._rung = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._until = 0.0

    def ring(self) -> None:
        """Remember the ring and wake who waits."""
        self._rung = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def clear(self) -> None:
        """Forget the rings so far. Do it before the read whose emptiness you will wait on."""
        self._rung = False

    async def wait(self, timeout: float) -> bool:
        """Wait for a ring, at most ``timeout`` seconds. True if it rang, also if it had rung since ``clear``."""
        if self._rung:
            return True
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        # One timer for many waits: it looks whether it is time, instead of being made and cancelled for each.
        self._until = loop.time() + timeout
        if self._timer is not None and self._timer.when() > self._until:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            self._timer = loop.call_later(timeout, self._expire, loop)
        try:
            await self._waiter
        finally:
            self._waiter = None
        return self._rung

    def close(self) -> None:
        """Let go of the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        rest = self._until - loop.time()
        if rest > 0:
            self._timer = loop.call_later(rest, self._expire, loop)
        else:
            self._waiter.set_result(None)


class Doorbell:
    """Tells listeners in this process that a session's log has grown. Carries no data. For one event loop. Who has
    listened for longest is rung first, so that a seed of the simulator tells all.

    Whoever drives a run need not be woken by its own events: a bell hung up with ``outside`` rings only for appends
    that were made without a lease (messages, cancels, answers).
    """

    def __init__(self) -> None:
        self._bells: dict[tuple[str, bool], dict[Listener, None]] = {}
        self._workers: dict[Bell, None] = {}
        self._forgetful: list[Callable[[bool], object]] = []

    def ring(self, session: str, *, outside: bool = True) -> None:
        """Wake everybody who listens to ``session``."""
        for bell in self._bells.get((session, False), ()):
            bell.ring()
        if outside:
            for bell in self._bells.get((session, True), ()):
                bell.ring()

    def hang(self, session: str, bell: Listener, *, outside: bool = False) -> None:
        """From now on ``bell`` rings for ``session``."""
        self._bells.setdefault((session, outside), {})[bell] = None

    def take(self, session: str, bell: Listener, *, outside: bool = False) -> None:
        """Take the bell away again. Idempotent."""
        bells = self._bells.get((session, outside))
        if bells is not None:
            bells.pop(bell, None)
            if not bells:
                del self._bells[session, outside]

    def ring_work(self) -> None:
        """Wake everybody who looks for runs: one may be free."""
        for bell in self._workers:
            bell.ring()

    def hang_work(self, bell: Bell) -> None:
        """From now on ``bell`` rings when a run may be free."""
        self._workers[bell] = None

    def take_work(self, bell: Bell) -> None:
        """Take the bell away again. Idempotent."""
        self._workers.pop(bell, None)

    def sessions(self) -> set[str]:
        """The sessions that somebody listens to."""
        return {session for session, _ in self._bells}

    def hears(self, session: str) -> bool:
        """Whether somebody listens to ``session``."""
        return (session, False) in self._bells or (session, True) in self._bells

    def forget(self, *, lost: bool = True) -> None:
        """Have everybody forget what they know of logs: the store is not what it was, see ``Store`` on incarnations. To
        be called before anything is read from what it is now.

        ``lost``: something is gone; else logs only go on under another name, and readers come again to be told that.
        """
        for callback in list(self._forgetful):
            callback(lost)

    def hang_forget(self, callback: Callable[[bool], object]) -> None:
        """From now on ``callback`` is called, with ``lost``, when all that is known is to be forgotten. It must raise
        nothing."""
        self._forgetful.append(callback)

    def take_forget(self, callback: Callable[[bool], object]) -> None:
        """Call it no more. Idempotent."""
        if callback in self._forgetful:
            self._forgetful.remove(callback)

    def listening(self, session: str) -> int:
        """How many listen to all of ``session`` now."""
        return len(self._bells.get((session, False), ()))
