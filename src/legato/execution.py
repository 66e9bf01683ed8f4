"""One run being driven: from what the agent yields to the log, until exactly one terminal event.

Three tasks share the work. The *speaker* iterates over the agent and turns what it yields into drafts; the *writer*
appends whatever is ready as one batch; the *watcher* reads what others append to the session (a cancel, an answer).
The speaker may run ahead of the writer by a bounded number of drafts.

The one rule: the terminal event is appended last, once, under the lease, after everything that the agent said.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any

import msgspec

from .agent import Agent, Answer, Turn
from .errors import AgentError, InvalidInput, LegatoError, NotFound, RunEnded, StaleLease, StoreError, TooLarge
from .event import Draft, Event
from .log import Lease, Store, Subscription
from .transcript import Recorder, merge

logger = logging.getLogger("legato")

AHEAD = 256
"""Drafts that an agent may be ahead of the store; then it waits."""
MERGE_ABOVE = 32
"""With more drafts than this ready at once, neighbouring deltas are merged before they are stored."""
STORE_RETRIES = (0.1, 0.5, 2.0, 5.0, 10.0)
"""Seconds between tries of a failed append: the answer has been paid for, and a full disk may be emptied."""
WATCH_HEARTBEAT = 5.0
"""Seconds after which the watcher looks at the log without having been woken."""


class Limits(msgspec.Struct, frozen=True):
    """Bounds of what a run may do. Beyond one, the run fails with a code that names it.

    Attributes:
        run_seconds: length of a run (code ``timeout``).
        run_events: events in a run (``too_many_events``).
        run_characters: of the whole message (``too_large``).
        event_bytes: of one event that cannot be split, such as a tool's output (``too_large``).
        message_characters: of a user's message.
        concurrent_runs: that run at once in this process; more wait.
        place_seconds: how long a run waits for its place among them (``overloaded``).
        queued_messages: that may wait in one session.
        attempts: of a run whose process dies again and again, for agents with ``on_crash``.
        cancel_grace: seconds that a cancelled agent has for its last word.
    """

    run_seconds: float = 3600.0
    run_events: int = 100_000
    run_characters: int = 4_194_304
    event_bytes: int = 262_144
    message_characters: int = 1_000_000
    concurrent_runs: int = 1_000
    place_seconds: float = 60.0
    queued_messages: int = 100
    attempts: int = 3
    cancel_grace: float = 0.5


class Ending(msgspec.Struct, frozen=True):
    """How a run is to end when it does not end by itself: a terminal type and its data, or nothing at all.

    With ``type`` None the run is left open: a later owner goes on with it.
    """

    type: str | None
    data: dict[str, Any] = {}


CANCELLED = Ending("run.cancelled")
LEFT_OPEN = Ending(None)
INTERRUPTED = Ending(
    "run.failed",
    {"code": "interrupted", "message": "The server stopped while the answer was being given. What came is kept."},
)


def failed(code: str, message: str, **detail: Any) -> Ending:
    """An ending as ``run.failed``."""
    return Ending("run.failed", {"code": code, "message": message, **({"detail": detail} if detail else {})})


class Execution:
    """Drives one run under its lease; also the ``Desk`` at which its turn asks.

    Args:
        store: where the log lives.
        lease: of the run.
        limits: see ``Limits``.
        recorder: with what earlier attempts left.
        earlier: the run's events so far, without deltas: questions asked before are not asked twice.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        *,
        limits: Limits,
        recorder: Recorder,
        earlier: Iterable[Event] = (),
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store = store
        self._lease = lease
        self._limits = limits
        self._recorder = recorder
        self._clock = clock
        self._drafts: list[Draft] = []
        self._count = 0
        self._ready = asyncio.Event()  # there is something to write, or nothing more will come
        self._room = asyncio.Event()
        self._ending: Ending | None = None
        self._abandoned = False
        self._speaker: asyncio.Task[None] | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._turn: Turn | None = None
        self._numbers = {"p": 0, "n": 0}
        self._asked: dict[str, dict[str, Any]] = {}
        self._resolved: dict[str, dict[str, Any]] = {}
        self._waiting: dict[str, asyncio.Future[dict[str, Any]]] = {}
        for event in earlier:
            if event.type in ("permission.requested", "notification.created"):
                self._asked[event.data["id"]] = event.data
            self._take(event)

    # The life of a run ------------------------------------------------------------------------------------------------

    async def run(self, agent: Agent, turn: Turn, *, after: int) -> bool:
        """Drive ``agent`` until the run has ended.

        Args:
            agent, turn: what to drive, with what.
            after: the offset from which others may have appended for this run.

        Returns:
            True if the run has its terminal event; False if it was left open, or taken over by somebody else.
        """
        loop = asyncio.get_running_loop()
        self._turn = turn
        self._speaker = asyncio.create_task(self._speak(agent.stream(turn)), name=f"legato-agent-{turn.run}")
        self._speaker.add_done_callback(lambda _: self._ready.set())
        watcher = asyncio.create_task(self._watch(after))
        message = f"The run took longer than {self._limits.run_seconds:g} seconds."
        timer = loop.call_later(self._limits.run_seconds, self.stop, failed("timeout", message))
        try:
            await self._write()
            return await self._end()
        except (StaleLease, RunEnded, NotFound) as exc:
            logger.warning("run %s is no longer ours: %s", turn.run, exc)
            return False
        finally:
            timer.cancel()
            watcher.cancel()
            if self._grace is not None:
                self._grace.cancel()
            if not self._speaker.done():
                self._abandoned = True
                self._speaker.cancel()

    def stop(self, ending: Ending) -> None:
        """End the run this way, unless it is ending already. The agent is cancelled and may say a last word."""
        if self._ending is not None or self._speaker is None or self._speaker.done() or self._turn is None:
            return
        self._ending = ending
        self._turn.cancelled = True
        self._speaker.cancel()
        self._grace = asyncio.get_running_loop().call_later(self._limits.cancel_grace, self._abandon)

    def _abandon(self) -> None:
        self._abandoned = True
        self._ready.set()

    async def _speak(self, stream: AsyncGenerator[object, None]) -> None:
        advance: Callable[[], Any] = stream.__anext__
        try:
            while True:
                try:
                    item = await advance()
                except StopAsyncIteration:
                    return
                if self._abandoned:
                    return
                advance = stream.__anext__
                self._put(self._recorder.record(item))
                while len(self._drafts) >= AHEAD:
                    self._room.clear()
                    try:
                        await self._room.wait()
                    except asyncio.CancelledError as exc:
                        # It hit us between two yields; the agent is to hear of it where it stands.
                        advance = functools.partial(stream.athrow, exc)
                        break
        finally:
            await stream.aclose()

    def _put(self, drafts: list[Draft]) -> None:
        self._count += len(drafts)
        if self._count > self._limits.run_events:
            raise _too_many_events(self._limits.run_events)
        self._drafts += drafts
        self._ready.set()

    async def _write(self) -> None:
        assert self._speaker is not None
        while True:
            self._ready.clear()
            drafts, self._drafts = self._drafts, []
            if drafts:
                await self._append(merge(drafts) if len(drafts) > MERGE_ABOVE else drafts)
                self._room.set()
            elif self._speaker.done() or self._abandoned:
                return
            else:
                await self._ready.wait()

    async def _append(self, drafts: list[Draft], *, once: str | None = None) -> list[Event]:
        for wait in (*STORE_RETRIES, None):
            try:
                return (await self._store.append(self._lease.session, drafts, lease=self._lease, once=once)).events
            except StoreError as exc:
                if wait is None:
                    raise
                logger.warning("run %s: append failed, trying again in %g s: %s", self._lease.run, wait, exc)
                await asyncio.sleep(wait)
        raise AssertionError("unreachable")

    async def _end(self) -> bool:
        outcome = self._outcome()
        ending = self._ending or outcome
        if ending.type is None:
            return False
        await expire_asks(self._store, self._lease, [id for id in self._asked if id not in self._resolved])
        await self._append([terminal(ending, self._lease.run, self._recorder)])
        return True

    def _outcome(self) -> Ending:
        assert self._speaker is not None
        if not self._speaker.done() or self._speaker.cancelled():
            return failed("agent_error", "The agent was cancelled from within.")
        error = self._speaker.exception()
        if error is None:
            return Ending("run.completed", {"finish_reason": self._recorder.finish_reason})
        if isinstance(error, AgentError | InvalidInput | TooLarge):
            return failed(error.code, error.message, **error.detail)
        logger.error("run %s: the agent failed", self._lease.run, exc_info=error)
        return failed("agent_error", "The agent failed. The server's log has the details.")

    # What others append -----------------------------------------------------------------------------------------------

    async def _watch(self, after: int) -> None:
        with Subscription(
            self._store, self._lease.session, after, heartbeat=WATCH_HEARTBEAT, deltas=False, outside=True
        ) as subscription:
            while True:
                try:
                    events = await subscription.next()
                except StoreError as exc:
                    logger.warning("run %s: cannot read its log: %s", self._lease.run, exc)
                    await asyncio.sleep(1.0)
                    continue
                for event in events:
                    self._take(event)

    def _take(self, event: Event) -> None:
        if event.type in ("permission.resolved", "notification.resolved"):
            id = event.data["id"]
            self._resolved.setdefault(id, event.data)
            waiting = self._waiting.get(id)
            if waiting is not None and not waiting.done():
                waiting.set_result(event.data)
        elif event.type == "run.cancel_requested" and event.run == self._lease.run:
            self.stop(CANCELLED)
        elif event.type == "session.deleted":
            self.stop(LEFT_OPEN)

    # The desk ---------------------------------------------------------------------------------------------------------

    async def ask_permission(self, request: dict[str, Any], timeout: float | None) -> bool:
        """See ``Desk``."""
        id = self._number("p")
        if timeout is not None:
            request = {**request, "expires_at": self._clock() + timeout}
        asked = self._ask("permission.requested", {"id": id, **request})
        answer = await self._answer(id, asked.get("expires_at"))
        if answer is None:
            refusal = Draft(
                type="permission.resolved", data={"id": id, "granted": False, "by": "timeout"}, run=self._lease.run
            )
            answer = (await self._append([refusal], once=resolve_key(id)))[0].data
        return bool(answer["granted"])

    async def notify(self, notification: dict[str, Any], timeout: float | None, wait: bool) -> Answer | None:
        """See ``Desk``."""
        id = self._number("n")
        seconds = 86_400.0 if timeout is None else timeout
        data = {"id": id, **notification, "timeout": seconds, "created_at": self._clock()}
        asked = self._ask("notification.created", data)
        if not wait:
            return None
        answer = await self._answer(id, asked["created_at"] + asked["timeout"])
        if answer is None:
            draft = Draft(type="notification.resolved", data={"id": id, "by": "timeout", "run": self._lease.run})
            answer = (await self._append([draft], once=resolve_key(id)))[0].data
        return Answer(by=answer["by"], value=answer.get("value"))

    def _number(self, kind: str) -> str:
        # Counted, not drawn: a further attempt that asks the same things in the same order finds its answers.
        self._numbers[kind] += 1
        return f"{self._lease.run}~{kind}{self._numbers[kind]}"

    def _ask(self, type: str, data: dict[str, Any]) -> dict[str, Any]:
        id = data["id"]
        if id not in self._asked:
            draft = Draft(type=type, data=data, run=self._lease.run)
            if len(msgspec.json.encode(data)) > self._limits.event_bytes:
                raise TooLarge(f"A {type} event is beyond the limit of {self._limits.event_bytes} bytes.")
            self._asked[id] = data
            self._put([draft])
        return self._asked[id]

    async def _answer(self, id: str, expires_at: float | None) -> dict[str, Any] | None:
        if id in self._resolved:
            return self._resolved[id]
        waiting = self._waiting[id] = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(None if expires_at is None else max(expires_at - self._clock(), 0)):
                return await waiting
        except TimeoutError:
            return None
        finally:
            del self._waiting[id]


def _too_many_events(limit: int) -> TooLarge:
    error = TooLarge(f"The run has passed its limit of {limit} events.", limit=limit)
    error.code = "too_many_events"
    return error


def resolve_key(id: str) -> str:
    """The ``once`` key under which the one answer to permission or notification ``id`` is stored."""
    return f"resolve:{id}"


def terminal(ending: Ending, run: str, recorder: Recorder) -> Draft:
    """The terminal event's draft: the ending's own data, and the whole message as far as it came."""
    assert ending.type is not None
    field = "message" if ending.type == "run.completed" else "partial"
    data = {**ending.data, field: recorder.transcript.message(run)}
    if recorder.usage is not None:
        data["usage"] = msgspec.to_builtins(recorder.usage)
    return Draft(type=ending.type, data=data, run=run)


async def expire_asks(store: Store, lease: Lease, ids: Iterable[str]) -> None:
    """Resolve what a run that is ending has asked and nobody has answered: a permission is refused.

    A notification may be answered after its run.
    """
    for id in ids:
        if id.rpartition("~")[2].startswith("p"):
            data = {"id": id, "granted": False, "by": "run_ended"}
            draft = Draft(type="permission.resolved", data=data, run=lease.run)
            await store.append(lease.session, [draft], lease=lease, once=resolve_key(id))


def log_unexpected(error: LegatoError, run: str) -> None:
    """Write what a run could not recover from to the server's log."""
    logger.error("run %s was left open: %s", run, error, exc_info=error)
