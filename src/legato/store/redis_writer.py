"""The writer of a Redis store: one task that takes what waits, of all sessions, decides it, and has it written at once.

The server writes a session if it still has the *version* that was decided on: the name of its last write, which is
drawn for each. Else it gives the session's state, and that is decided again. A call whose answer was lost is sent
again, as it was: if it was done, the session has the writer's mark. So nobody is told that nothing was stored before
that is known, and nothing is stored twice.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import secrets
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any

from ..errors import StoreError, StoreFull, StoreLost
from ..event import Event, Offset
from ..figures import StoreFigures
from ..log import MICRO, tell_trouble
from ..machine import SessionState, released
from .redis_eras import Eras
from .redis_errors import is_lost, is_unknown, store_error
from .redis_plan import (
    MARK_SECONDS,
    KeptSession,
    SessionCall,
    SessionPlan,
    SessionRequest,
    binary,
    entries_of,
    read_place,
    read_state,
)
from .redis_server import Command, RedisServer

logger = logging.getLogger("legato")

GROUP_SESSIONS, GROUP_REQUESTS = 500, 256
"""Sessions in one pipeline, and requests of one session in it, at most."""
KNOWN_SESSIONS, KNOWN_BYTES = 10_000, 16 * 1024 * 1024
"""Sessions that are remembered, and bytes of what began them; of others it has to be asked before it can be decided."""
TEND_SECONDS = 1.0
"""Between two looks whether something can be stored, while nothing is,"""
BACKOFF = (0.05, 1.0)
"""and while it cannot: at first, and at most."""
UNKNOWN_SECONDS = 15.0
"""For which who asked from outside of a run waits to be told what became of it, where an answer was lost."""
NEVER = b"?"
"""A version that no session has."""
DONE, USED, ANOTHER_ERA, GONE = 1, 2, 3, 4
"""How ``WRITE`` answers; 0: the session is at another version."""
KEYS = ("era", "state", "whole", "deltas", "packs", "once", "open", "updated", "gone")
_NOTHING = KeptSession(b"", SessionState(""))


class RedisWriter:
    """Writes what waits.

    Args:
        server: what it is written to.
        eras: in which it is written.
        clock: gives the time, seconds since the epoch; None: it is the server's.
        stored: called with what was stored, in one turn of the event loop.
        read: gives the events between two offsets of a session.

    Attributes:
        name: of this writer, which no other one has.
        trouble: why nothing can be stored for now.
        leases: by owner, the sessions of which somebody has had a lease from here.
    """

    def __init__(
        self,
        server: RedisServer,
        eras: Eras,
        clock: Callable[[], float] | None,
        stored: Callable[[Sequence[SessionCall]], None],
        read: Callable[[str, Offset, Offset], Awaitable[list[Event]]],
    ) -> None:
        self.name = secrets.token_urlsafe(6)
        self.leases: dict[str, set[str]] = {}
        self.trouble: StoreError | None = None
        self.open = True
        self._server, self._clock = server, clock
        self._stored, self._eras, self._read = stored, eras, read
        self._ahead: float | None = None  # the server's clock before ours
        self._number = 0
        self._stored_at = 0.0
        self.figures = StoreFigures()
        self._kept: OrderedDict[str, KeptSession] = OrderedDict()
        self._kept_bytes = 0
        self._waiting: dict[str, deque[SessionRequest]] = {}
        self._wake = asyncio.Event()

    def submit(
        self,
        session: str,
        decide: Callable[[SessionPlan], Any],
        once: str | None = None,
        *,
        begins: bool = False,
        staged: Sequence[bytes] = (),
        patient: bool = True,
        frees: bool = False,
    ) -> SessionRequest:
        """Ask something of a session, see ``SessionRequest``. Who is not patient is told after ``UNKNOWN_SECONDS`` that
        nobody knows what became of it, while that is still found out before anything else is done. What ``frees``
        memory is tried when that is full, too.

        Raises:
            StoreError: nothing can be stored for now.
        """
        trouble = self.trouble or self._server.behind
        if trouble is not None and not (frees and isinstance(trouble, StoreFull)):
            raise store_error(trouble, self._server.shown)
        request = SessionRequest(decide, once, begins, staged, patient)
        self._waiting.setdefault(session, deque()).append(request)
        self._wake.set()
        return request

    def now(self) -> float:
        """The time by the store's clock, seconds since the epoch."""
        if self._clock is not None:
            return self._clock()
        return time.time() if self._ahead is None else time.monotonic() + self._ahead

    async def _heard(self, session: str, count: Any, seconds: Any, micro: Any) -> None:
        await self._eras.heard(self._server.bucket(session), int(count or 0))
        # It is later than that by what the answer took, so the largest difference is the truest.
        ahead = int(seconds) + int(micro) / MICRO - time.monotonic()
        if self._ahead is None or ahead > self._ahead or ahead < self._ahead - 0.2:
            self._ahead = ahead

    def version(self, session: str) -> bytes | None:
        """The version at which a session was known last."""
        kept = self._kept.get(session)
        return None if kept is None else kept.version

    # Writing ----------------------------------------------------------------------------------------------------------

    async def write(self) -> None:
        """Write what waits, until the end (``finish``)."""
        while True:
            if not self._waiting:
                if not self.open:
                    return
                self._wake.clear()
                await self._wake.wait()
                continue
            calls = [self._next(session) for session in list(itertools.islice(self._waiting, GROUP_SESSIONS))]
            try:
                await self._commit(calls)
            except Exception as exc:
                logger.exception("%s: a write failed", self._server.shown)
                _fail(calls, store_error(exc, self._server.shown))
            except asyncio.CancelledError:
                _fail(calls, StoreError(f"Closed before it was known what became of it: {self._server.shown}."))
                self._refuse(StoreError(f"The store is closed: {self._server.shown}."))
                raise

    def finish(self) -> None:
        """After what waits, end."""
        self.open = False
        self._wake.set()

    def _next(self, session: str) -> SessionCall:
        waiting = self._waiting[session]
        requests = [waiting.popleft()]
        while waiting and len(requests) < GROUP_REQUESTS and not waiting[0].staged and not requests[0].staged:
            requests.append(waiting.popleft())
        if not waiting:
            del self._waiting[session]
        return SessionCall(session, requests)

    def _refuse(self, error: StoreError) -> None:
        """Nothing of what waits was stored."""
        waiting, self._waiting = self._waiting, {}
        _fail([SessionCall(session, list(requests)) for session, requests in waiting.items()], error)

    async def _commit(self, calls: list[SessionCall]) -> None:
        """Write these, again and again until it is known of each what became of it."""
        pause, most = BACKOFF
        since = time.monotonic()
        while calls:
            left: list[SessionCall] = []
            done: list[SessionCall] = []
            trouble: StoreError | None = None
            began = time.monotonic()
            for call, reply in zip(calls, await self._send(calls), strict=True):
                try:
                    (done if await self._answered(call, reply) else left).append(call)
                except StoreError as exc:
                    if call.sent:
                        left.append(call)
                    else:
                        _fail([call], exc)
                    if isinstance(exc, StoreLost | StoreFull):
                        trouble = exc
            if done:
                self.figures.committed(sum(len(call.requests) for call in done), time.monotonic() - began)
            self.figures.failed += trouble is not None
            self._deliver(done)
            freed = all(call.plan is not None and call.plan.how for call in done)
            if trouble is not None or not (freed and isinstance(self.trouble, StoreFull)):  # else it may be as full
                self._note(trouble)
            calls[:] = left
            if trouble is None:
                self._stored_at, pause = asyncio.get_running_loop().time(), BACKOFF[0]
            else:
                self._refuse(trouble)
                if time.monotonic() - since > UNKNOWN_SECONDS:
                    _fail(left, _unknown(trouble), impatient=True)
                if left:
                    await asyncio.sleep(pause)
                    pause = min(pause * 2, most)

    async def _send(self, calls: Sequence[SessionCall]) -> Sequence[Any]:
        try:
            for bucket in {self._server.bucket(call.session) for call in calls}:
                if self._eras.scripts(bucket) is None:
                    await self._eras.enter(bucket)
            commands = [self._command(call) for call in calls]
            # In one server what is sent later is done later, so the others hear of it when it is there.
            bells = [] if self._server.cluster else self._bell(calls)
            return (await self._server.ask([*commands, *bells], wait=True))[: len(calls)]
        except StoreError as exc:
            return [exc] * len(calls)

    def _command(self, call: SessionCall) -> Command:
        """What is to be done for a call; where it has been sent before, the same again."""
        server, session, staged = self._server, call.session, call.requests[0].staged
        bucket = server.bucket(session)
        entered = self._eras.scripts(bucket)
        assert entered is not None
        (usual, freeing), era = entered
        if not call.sent:
            call.plan = self._plan(call)
        plan = None if call.look else call.plan
        # Most writes are of deltas alone, and these have few keys.
        simple = plan is None or (
            plan.state.runs is plan.before.state.runs and all(event.fact.delta for event in plan.events)
        )
        asked = _asked(call) if plan is not None else []
        keys = server.keys(session, *(KEYS[:4] if simple and not asked else KEYS))
        if len(keys) == len(KEYS):
            owner = (_NOTHING if plan is None else plan.after).created.owner or ""
            keys += [server.key(bucket, "owned", owner), *(staged or keys[:2])]
        arguments: list[Any]
        if plan is None:
            arguments = [era, NEVER, *[""] * 9, 0, 0]
        else:
            now = "" if self._clock is not None else round(plan.now * MICRO)
            arguments = [era, plan.before.version, now, *plan.changes(), session, "built" if staged else plan.how]
            arguments += [len(plan.once), len(asked), *asked]
            for key, place in plan.once.items():
                arguments += [key, binary(place)]
            for stream, delta in ((3, False), (4, True)) if not staged else ():
                for last, entry in entries_of([e for e in plan.events if e.fact.delta is delta], int(era)):
                    arguments += [stream, last, entry]
        name = freeing if plan is None or plan.how else usual
        return keys[0], ("EVALSHA", name, len(keys), *keys, *arguments)

    def _plan(self, call: SessionCall) -> SessionPlan | None:
        """Decide on what is known of the session; None if that is nothing."""
        kept = self._kept.get(call.session)
        if kept is None:
            if not call.requests[0].begins:
                return None
            kept = KeptSession(b"", SessionState(call.session))
        plan = SessionPlan(kept, self.now(), call.used)
        if call.lost:
            for run in kept.state.runs.values():
                if call.session in self.leases.get(run.owner or "", ()):
                    plan.state = released(plan.state, run.lease())
                    plan.work = True
        for request in call.requests:
            try:
                plan.outcomes.append((request.decide(plan), None))
            except Exception as exc:
                plan.outcomes.append((None, exc))
        self._number += 1
        plan.close(self.name, self._number)
        return plan

    async def _answered(self, call: SessionCall, reply: Any) -> bool:
        """Take an answer: whether it is done. If not, the call is to be made again.

        Raises:
            StoreError: it failed; unless the call is ``sent``, nothing was stored.
        """
        if isinstance(reply, Exception):
            if not is_unknown(reply):
                call.sent = call.sent or (is_lost(reply) and call.plan is not None and call.plan.number > 0)
                raise store_error(reply, self._server.shown) from reply
            reply = [ANOTHER_ERA]
        code, *rest = reply
        if code == ANOTHER_ERA:
            self._eras.leave(self._server.bucket(call.session))
            call.look = call.sent
        elif code == USED and call.sent:
            call.look = True  # it may be by this very call
        elif code == USED:
            first, last = read_place(rest[1])
            call.used[_asked(call)[rest[0]]] = await self._read(call.session, first, last)
        elif code == GONE:
            raise StoreLost(f"What was built of a session is gone: {self._server.shown}.")
        elif code == DONE:
            await self._heard(call.session, *rest[:3])
            assert call.plan is not None
            return self._accept(call, call.plan.after)
        else:
            await self._heard(call.session, *rest[:3])
            now = read_state(call.session, *rest[3:]) or KeptSession(b"", SessionState(call.session))
            if call.sent and call.plan is not None and now.marks.get(self.name, (0, 0))[0] == call.plan.number:
                return self._accept(call, now)
            call.sent = call.look = False
            call.lost = call.lost or self._has_lost(call.session, now)
            self._keep(now)
        return False

    def _has_lost(self, session: str, now: KeptSession) -> bool:
        """Whether what was stored from here is not there any more. Leases are void then: who holds one believes that
        something has been said that nobody can read."""
        known = self._kept.get(session)
        mine = None if known is None else known.marks.get(self.name)
        if known is None or mine is None:
            return False
        theirs = now.marks.get(self.name)
        forgotten = mine[1] < round((self.now() - MARK_SECONDS) * MICRO)
        return now.state.head < known.state.head or (not forgotten if theirs is None else theirs[0] < mine[0])

    def _keep(self, kept: KeptSession) -> None:
        session = kept.state.session
        before = self._kept.pop(session, None)
        self._kept_bytes += kept.size - (0 if before is None else before.size)
        self._kept[session] = kept
        while len(self._kept) > KNOWN_SESSIONS or self._kept_bytes > KNOWN_BYTES:
            self._kept_bytes -= self._kept.popitem(last=False)[1].size

    def _accept(self, call: SessionCall, now: KeptSession) -> bool:
        self._keep(now)
        if call.lost or not now.state.runs:
            for sessions in self.leases.values():
                sessions.discard(call.session)
        for owner in call.plan.taken if call.plan is not None else ():
            self.leases.setdefault(owner, set()).add(call.session)
        return True

    def _deliver(self, calls: Sequence[SessionCall]) -> None:
        """These are stored: tell everybody."""
        self._stored(calls)
        for call in calls:
            assert call.plan is not None
            for request, (outcome, error) in zip(call.requests, call.plan.outcomes, strict=True):
                if not request.over:
                    request.outcome, request.error = outcome, error
            for request in call.requests:
                request.settle()
        if self._server.cluster:
            for key, command in self._bell(calls):
                self._server.later(key, *command)

    def _bell(self, calls: Iterable[SessionCall]) -> list[Command]:
        """The message to others: what has grown, how far, whether from outside of runs; whether a run may be free."""
        plans = [(call.session, call.plan) for call in calls if call.plan is not None and not call.look]
        grown = [(session, plan.state.head, plan.outside) for session, plan in plans if plan.events]
        work = any(plan.work for _, plan in plans)
        if not grown and not work:
            return []
        channel = self._server.channel
        return [(channel, (self._server.publish, channel, binary((self.name, grown, work))))]

    def _note(self, trouble: StoreError | None) -> None:
        before, self.trouble = self.trouble, trouble
        if (trouble is None) != (before is None):
            tell_trouble(trouble, self._server.shown)

    async def tend(self) -> None:
        """Look whether something can be stored, while nothing is, or while it cannot be."""
        key = self._server.key("meta", "store")
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(TEND_SECONDS if self.trouble is None else BACKOFF[1] / 4)
            if self.trouble is not None or loop.time() - self._stored_at >= TEND_SECONDS:
                try:
                    await self._server.do(key, "HSET", key, "probe", self.name)
                except StoreError as exc:
                    self._note(exc)
                else:
                    self._note(None)


def _asked(call: SessionCall) -> list[str]:
    """The keys of which it is not known whether they were used."""
    return [request.once for request in call.requests if request.once and request.once not in call.used]


def _unknown(trouble: StoreError) -> StoreLost:
    text = "Nobody knows yet whether it was stored: ask again, under the same key, or look into the log"
    return StoreLost(f"{text}. {trouble.message}", **trouble.detail)


def _fail(calls: Iterable[SessionCall], error: Exception, *, impatient: bool = False) -> None:
    for request in [request for call in calls for request in call.requests if not request.over]:
        if not (impatient and request.patient):
            request.error = error
            request.settle()
