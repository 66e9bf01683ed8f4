"""``RunDesk``: what one run asks its user, and what came of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

import msgspec

from .agent import Answer
from .asks import A, Asked, Deadlines, Resolved, expired, is_permission, question, resolve_key
from .bounds import Limits
from .errors import RunEnded, TooLarge
from .event import (
    Draft,
    Event,
    NotificationCreated,
    NotificationResolved,
    PermissionRequested,
    PermissionResolved,
    settle,
)
from .outbox import Outbox
from .part import encode
from .recorder import Recorder


class RunDesk:
    """The ``Desk`` of a run.

    Args:
        run: its id.
        outbox: stores what is asked.
        recorder: counts it.
        limits: see ``Limits``.
        earlier: the run's events so far, without deltas: questions asked before are not asked twice.
        clock: seconds since the epoch.
        deadlines: of what is asked.
    """

    def __init__(
        self,
        run: str,
        outbox: Outbox,
        recorder: Recorder,
        *,
        limits: Limits,
        earlier: Iterable[Event] = (),
        clock: Callable[[], float] = time.time,
        deadlines: Deadlines | None = None,
    ) -> None:
        self._run = run
        self._outbox = outbox
        self._recorder = recorder
        self._limits = limits
        self._clock = clock
        self._deadlines = deadlines or Deadlines()
        self._numbers = {"p": 0, "n": 0}
        self._asked: dict[str, Asked] = {}
        self._resolved: dict[str, Resolved] = {}
        self._waiting: dict[str, asyncio.Future[Resolved]] = {}
        for event in earlier:
            if isinstance(event.fact, Asked):
                self._asked[event.fact.id] = event.fact
            elif isinstance(event.fact, Resolved):
                self.hear(event.fact)

    @property
    def asking(self) -> bool:
        """Whether somebody's answer is waited for."""
        return bool(self._waiting)

    async def ask_permission(self, request: PermissionRequested, timeout: float | None) -> bool:
        """See ``Desk``."""
        until = None if timeout is None else self._clock() + timeout
        asked = self._ask(request, expires_at=until)
        answer = await self._answer(asked.id, asked.expires_at, timeout)
        if answer is None:
            late = PermissionResolved(asked.id, False, "timeout")
            answer = await self._resolve(late, run=self._run)
        return isinstance(answer, PermissionResolved) and answer.granted

    async def notify(self, notification: NotificationCreated, timeout: float | None, wait: bool) -> Answer | None:
        """See ``Desk``."""
        seconds = 86_400.0 if timeout is None else timeout
        asked = self._ask(notification, timeout=seconds, created_at=self._clock())
        if not wait:
            self._expect(asked.id, asked.created_at + asked.timeout, seconds)
            return None
        answer = await self._answer(asked.id, asked.created_at + asked.timeout, seconds)
        if answer is None:
            answer = await self._resolve(NotificationResolved(asked.id, "timeout", self._run), run=None)
        return Answer(by=answer.by, value=answer.value if isinstance(answer, NotificationResolved) else None)

    async def stored(self) -> None:
        """See ``Desk``."""
        await self._outbox.stored()

    def hear(self, answer: Resolved) -> None:
        """Something that was asked has been answered. The first answer holds."""
        self._resolved.setdefault(answer.id, answer)
        self._deadlines.forget(answer.id)
        waiting = self._waiting.get(answer.id)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer)

    async def expire(self) -> None:
        """Refuse what nobody has answered: the run ends."""
        for id in list(self._asked):
            if id not in self._resolved and is_permission(id):
                await self._outbox.append([expired(id, self._run)], once=resolve_key(id))

    def close(self) -> None:
        """Nobody waits here any longer: neither threads of the agent, nor tasks that it has left behind."""
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(RunEnded(f"Run {self._run!r} has ended.", run=self._run))

    def _ask(self, request: A, **times: float | None) -> A:
        """Store the question, unless an earlier attempt asked the very same; in any case, what the log has of it."""
        self._outbox.check_not_over()
        settled, _ = settle(request)  # as the log has it, for comparing with what an earlier attempt asked
        assert type(settled) is type(request)
        id = self._identify(settled)
        asked = self._asked.get(id)
        if asked is None:
            asked = msgspec.structs.replace(settled, id=id, **times)
            size = len(encode(asked))
            if size > (limit := self._limits.event_bytes):
                raise TooLarge(f"A {asked.type} event is beyond the limit of {limit} bytes.", bound="event_bytes")
            self._recorder.spend(size)
            self._outbox.put([Draft(asked, self._run)])
            self._asked[id] = asked
        assert isinstance(asked, type(request))
        return asked

    def _identify(self, request: Asked) -> str:
        # Counted, not drawn: a further attempt that asks the same in the same order finds its answers. One that asks
        # something else must not: a yes to one question is no answer to another.
        kind = "p" if isinstance(request, PermissionRequested) else "n"
        while True:
            self._numbers[kind] += 1
            id = f"{self._run}~{kind}{self._numbers[kind]}"
            before = self._asked.get(id)
            if before is None or question(before) == request:
                return id

    async def _resolve(self, fact: Resolved, *, run: str | None) -> Resolved:
        """Resolve an ask from within, unless somebody was faster; the answer that holds."""
        await self.stored()  # the question comes before its answer
        stored = (await self._outbox.append([Draft(fact, run)], once=resolve_key(fact.id)))[0].fact
        assert isinstance(stored, Resolved)
        return stored

    def _expect(self, id: str, expires_at: float | None, seconds: float | None) -> None:
        """Note by when this is to be answered: in ``seconds``; or, if an earlier life asked it, in what the clock says
        is left of them."""
        if expires_at is not None and seconds is not None and self._deadlines.left(id) is None:
            self._deadlines.set(id, min(expires_at - self._clock(), seconds))

    async def _answer(self, id: str, expires_at: float | None, seconds: float | None) -> Resolved | None:
        if id in self._resolved:
            return self._resolved[id]
        self._expect(id, expires_at, seconds)
        left = self._deadlines.left(id)
        waiting: asyncio.Future[Resolved] = asyncio.get_running_loop().create_future()
        self._waiting[id] = waiting
        try:
            async with asyncio.timeout(None if left is None else max(left, 0)):
                return await waiting
        except TimeoutError:
            return None
        finally:
            del self._waiting[id]
