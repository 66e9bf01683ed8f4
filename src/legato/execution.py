"""One run being driven: from what the agent yields to the log, until exactly one terminal event.

Two tasks share the work. The *speaker* iterates over the agent and turns what it yields into drafts, which go to the
store at the end of the event loop's round; the *watcher* reads what others append to the session (a cancel, an answer).
One append is under way at a time: meanwhile drafts gather, neighbouring deltas become one, and the end of the append
hands them over. No task waits for the store, since its steps would cost more than all else does for a token. The
speaker may be ahead of the store by a bounded number of drafts.

The one rule: the terminal event is appended last, once, under the lease, after everything that the agent said.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import Any

import msgspec

from .agent import Agent, Answer, Turn
from .asks import A, Asked, Deadlines, Resolved, expired, is_permission, question, resolve_key
from .bounds import Limits
from .check import as_name, as_text, refused
from .ending import CANCELLED, GONE, LEFT_OPEN, TOO_LONG, Ending, failed, terminal
from .errors import AgentError, InvalidInput, LeaseHeld, NotFound, RunEnded, StaleLease, StoreError, TooLarge
from .event import (
    CancelRequested,
    Draft,
    Event,
    NotificationCreated,
    NotificationResolved,
    PermissionRequested,
    PermissionResolved,
    RunCancelled,
    RunCompleted,
    RunFailed,
    RunStarted,
    SessionDeleted,
    settle,
)
from .fault import contained
from .json import JsonObject
from .load import Load
from .log import Appended, Log, Store, Storing, Subscription
from .machine import Lease
from .part import Usage, as_json, encode
from .recorder import Recorder, merge
from .traces import RunSpan
from .transcript import Transcript, fold

logger = logging.getLogger("legato")

AHEAD = 256
"""Drafts that an agent may be ahead of the store; then it waits."""
STORE_RETRIES = (0.1, 0.5, 2.0, 5.0, 10.0)
"""Seconds between tries of a failed append: the answer has been paid for, and a full disk may be emptied."""
WATCH_HEARTBEAT = 5.0
"""Seconds after which the watcher looks at the log without having been woken."""
WATCH_RETRY = 1.0
"""Seconds after which the watcher tries again to read a log that could not be read."""
ERROR_CHARACTERS = 10_000
"""Of an error's text for people; a longer one, such as a page of a provider's, is cut."""


class Execution:
    """Drives one run under its lease; also the ``Desk`` at which its turn asks.

    Args:
        store: where the log lives.
        lease: of the run.
        limits: see ``Limits``.
        recorder: with what earlier attempts left.
        load: says for how long what the run says is to gather.
        earlier: the run's events so far, without deltas: questions asked before are not asked twice.
        clock: seconds since the epoch.
        deadlines: of what is asked.
        lease_ttl: seconds of the lease.
        refused: counts what limits have refused, see ``bounds``.
        asked_at: when the message was sent, seconds since the epoch; None if this is no first attempt.
        span: of the run, if somebody traces.

    Attributes:
        lease: the present one; another than at first once an append has failed.
    """

    def __init__(
        self,
        store: Store,
        lease: Lease,
        *,
        limits: Limits,
        recorder: Recorder,
        load: Load,
        earlier: Iterable[Event] = (),
        clock: Callable[[], float] = time.time,
        deadlines: Deadlines | None = None,
        lease_ttl: float = 15.0,
        refused: Counter[str] | None = None,
        asked_at: float | None = None,
        span: RunSpan | None = None,
    ) -> None:
        self._span = span
        self._asked_at = asked_at  # as long as nothing has been said
        self._store = store
        self._refused = refused
        self.lease = lease
        self._lease_ttl = lease_ttl
        self._stored_to = 0  # the offset of the last event of this run that is known to be stored
        self._limits = limits
        self._recorder = recorder
        self._load = load
        self._astray = False  # the recorder has seen what was not stored
        self._clock = clock
        self._deadlines = deadlines or Deadlines()
        self._drafts: list[Draft] = []
        self._count = 0
        self._room: asyncio.Event | None = None  # something has been stored, for who waits for it
        self._after = 0
        self._due = False  # at the end of this round of the loop it goes on
        self._handed: list[Draft] = []  # what is being stored, to try again if it fails; none if that is done
        self._storing: Storing | asyncio.Future[Any] | None = None  # the append that is under way, or that has failed
        self._handed_at = -math.inf  # when drafts were last handed over, by the loop's time
        self._gathering: asyncio.TimerHandle | None = None  # hands over what gathers
        self._loop = asyncio.get_running_loop()
        self._all_stored: asyncio.Future[None] = self._loop.create_future()  # once done, nothing more is
        self._ending: Ending | None = None
        self._abandoned = False
        self._silent = False  # nothing more can come from the agent
        self._speaker: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._hurried: asyncio.Event | None = None
        self._taken = False  # somebody else drives the run
        self._leaving = False  # what cannot be stored now is left to others
        self._grace: asyncio.TimerHandle | None = None
        self._turn: Turn | None = None
        self._numbers = {"p": 0, "n": 0}
        self._asked: dict[str, Asked] = {}
        self._resolved: dict[str, Resolved] = {}
        self._waiting: dict[str, asyncio.Future[Resolved]] = {}
        for event in earlier:
            if isinstance(event.fact, Asked):
                self._asked[event.fact.id] = event.fact
            self._take(event)

    @property
    def asking(self) -> bool:
        """Whether it waits for somebody's answer."""
        return bool(self._waiting)

    # The life of a run ------------------------------------------------------------------------------------------------

    async def run(self, agent: Agent, turn: Turn, *, after: int) -> bool:
        """Drive ``agent`` until the run has ended.

        Args:
            agent, turn: what to drive, with what.
            after: the offset from which others may have appended for this run.

        Returns:
            True if the run has its terminal event; False if it was left open, or taken over by somebody else.
        """
        self._after = self._stored_to = after
        if self._ending is not None:  # stopped before it began
            return await self._end()
        self._turn = turn
        self._speaker = asyncio.create_task(self._speak(agent, turn), name=f"legato-agent-{turn.run}")
        self._speaker.add_done_callback(self._on_silence)
        watcher = asyncio.create_task(self._watch(after))
        timer = self._loop.call_later(self._limits.run_seconds, self._time_out)
        try:
            await self._all_stored
            if await self._end():
                return True
            self._load.figures.lost += self._taken
            return False
        except (StaleLease, LeaseHeld, RunEnded, NotFound) as exc:
            logger.warning("run %s is no longer ours: %s", turn.run, exc)
            self._load.figures.lost += not isinstance(exc, NotFound)  # which is a session that was deleted
            return False
        finally:
            watcher.cancel()
            for each in (timer, self._grace, self._gathering):
                if each is not None:
                    each.cancel()
            self._abandoned = True
            self._speaker.cancel()
            self._all_stored.cancel()
            if self._storing is not None:
                self._storing.cancel()
            self._release_asks()

    @property
    def events(self) -> int:
        """How many it has made, before those that could be joined were."""
        return self._count

    def _time_out(self) -> None:
        if self._refused is not None and self._ending is None:
            self._refused["run_seconds"] += 1
        self.stop(failed("timeout", f"The run took longer than {self._limits.run_seconds:g} seconds."))

    def stop(self, ending: Ending) -> None:
        """End the run this way, unless it is ending already. The agent is cancelled and may say a last word."""
        self._leaving = self._leaving or ending is LEFT_OPEN
        self.hurry()
        if self._ending is not None or (self._speaker is not None and self._speaker.done()):
            return
        self._ending = ending
        if self._speaker is None or self._turn is None:
            return
        self._turn.cancelled = True
        self._turn.left_open = ending is LEFT_OPEN
        self._speaker.cancel()
        self._grace = self._loop.call_later(self._limits.cancel_grace, self._abandon)

    def hurry(self) -> None:
        """Try at once to store what could not be stored: the store may be there again, or there is no time to wait."""
        if self._hurried is not None:
            self._hurried.set()

    def look(self) -> None:
        """See at once what others have appended: somebody else may have the run."""
        if self._subscription is not None:
            self._subscription.wake()

    def forget(self, ending: Ending) -> None:
        """End the run this way, with what the log has of it now: it has lost some of what was stored."""
        self._astray = True
        self._drafts.clear()  # they go on from what was lost
        self.stop(ending)
        if self._ending is None:  # the agent has said all, but it is not known what of that is there
            self._ending = ending

    def _abandon(self) -> None:
        self._abandoned = self._silent = True
        if self._speaker is not None and not self._speaker.done():
            logger.warning("run %s: the agent goes on although it was told to stop; nobody listens", self.lease.run)
        self._go_on()

    async def _speak(self, agent: Agent, turn: Turn) -> None:
        if self._span is not None:
            self._span.enter()
        with contained("the agent"):
            await self._listen(agent.stream(turn))

    async def _listen(self, stream: AsyncGenerator[object, None]) -> None:
        proceed: Callable[[], Any] = stream.__anext__
        advance, spoken = proceed, 0
        try:
            while True:
                try:
                    item = await advance()
                except StopAsyncIteration:
                    self._put(self._recorder.end())
                    return
                if self._abandoned:
                    return
                advance = proceed
                try:
                    self._put(self._recorder.record(item))
                except (InvalidInput, TooLarge):
                    self._astray = True  # it was recorded in part, and none of it is stored
                    raise
                spoken += 1
                try:
                    if not spoken % AHEAD:
                        await asyncio.sleep(0)  # an agent may yield for ever without waiting, even what stores nothing
                    while len(self._drafts) >= AHEAD:
                        await self._wait_for_room()
                except asyncio.CancelledError as exc:
                    # It hit us between two yields; the agent is to hear of it where it stands.
                    advance = functools.partial(stream.athrow, exc)
        finally:
            await stream.aclose()

    def _on_silence(self, speaker: asyncio.Task[None]) -> None:
        self._silent = True
        self._go_on()
        if self._ending is not None and not speaker.cancelled() and speaker.exception() is not None:
            # It does not decide how the run ends, so the log is the only place to tell it.
            logger.warning("run %s: the agent failed when stopped", self.lease.run, exc_info=speaker.exception())

    def _put(self, drafts: list[Draft]) -> None:
        self._count += len(drafts)
        if self._span is not None:
            self._span.heard(drafts)
        if self._asked_at is not None and drafts and drafts[0].fact.delta:
            self._load.figures.first_words.add(self._clock() - self._asked_at)
            self._asked_at = None
        if self._count > self._limits.run_events:
            raise _too_many_events(self._limits.run_events)
        self._drafts += drafts
        if self._storing is not None or self._due:
            return
        if (
            self._gathering is None or len(self._drafts) >= AHEAD or not _gathers(drafts)
        ):  # else its timer will see to it
            self._due = True
            self._load.soon(self._go_on)

    async def stored(self) -> None:
        """See ``Desk``."""
        while self._drafts or self._storing is not None:
            self._check_not_over()
            self._end_gathering()  # whoever waits for it is not to wait for more
            if self._storing is not None:
                await self._wait_for_room()

    async def _wait_for_room(self) -> None:
        if self._room is None:
            self._room = asyncio.Event()
        await self._room.wait()

    def _make_room(self) -> None:
        room, self._room = self._room, None
        if room is not None:
            room.set()

    # Storing ----------------------------------------------------------------------------------------------------------

    def _go_on(self) -> None:
        """Hand over what is ready, unless an append is under way or more is to gather. Once nothing more can come, the
        run may end."""
        self._due = False
        if self._storing is not None or self._all_stored.done():
            return
        if self._drafts and (self._silent or not self._load.gather or self._has_gathered()):
            self._hand_over()
        if self._silent and not self._drafts and self._storing is None:
            self._all_stored.set_result(None)

    def _hand_over(self) -> None:
        drafts, self._drafts = self._drafts, []
        if len(drafts) > 1:
            drafts = merge(drafts)
        if self._load.gather:
            self._handed_at = self._loop.time()
        try:
            storing = self._store.append(self.lease.session, drafts, lease=self.lease)
        except Exception as exc:  # a store that says so at once says the same
            storing = self._loop.create_future()
            storing.set_exception(exc)
        if not isinstance(storing, Storing):
            storing = asyncio.ensure_future(storing)
        elif storing.over and storing.error is None:
            self._stored_to = storing.outcome.events[-1].offset
            if self._room is not None:
                self._make_room()
            return
        self._handed, self._storing = drafts, storing
        storing.add_done_callback(self._on_stored)

    def _has_gathered(self) -> bool:
        """Whether it has been long enough since drafts were handed over; if not, they will be when it is. Only deltas
        gather, since somebody may wait for all else, and not more than an agent may be ahead."""
        until = self._handed_at + self._load.gather
        enough = len(self._drafts) >= AHEAD or until <= self._loop.time()
        if enough or not _gathers(self._drafts):
            return True
        if self._gathering is None:
            self._gathering = self._loop.call_at(until, self._end_gathering)
        return False

    def _end_gathering(self) -> None:
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        self._handed_at = -math.inf
        self._go_on()

    def _on_stored(self, storing: Storing | asyncio.Future[Any]) -> None:
        error: BaseException | None
        if isinstance(storing, Storing):
            error = storing.error
        elif storing.cancelled():
            self._all_stored.cancel()
            return
        else:
            error = storing.exception()
        if error is None:
            self._stored_to = storing.result().events[-1].offset
            self._storing = None
            if self._drafts or self._silent:
                self._go_on()
            if self._room is not None:
                self._make_room()
        elif self._all_stored.done():
            pass  # the run has been given up meanwhile
        elif self._handed and isinstance(error, StoreError):
            drafts, self._handed = self._handed, []
            self._storing = self._loop.create_task(self._append_again(drafts, error))
            self._storing.add_done_callback(self._on_stored)
        else:
            self._all_stored.set_exception(error)

    def _try(self, drafts: list[Draft], once: str | None = None) -> Awaitable[Appended]:
        return self._store.append(self.lease.session, drafts, lease=self.lease, once=once)

    async def _append(self, drafts: list[Draft], *, once: str | None = None) -> list[Event]:
        try:
            appended = await self._try(drafts, once)
        except StoreError as exc:
            appended = await self._append_again(drafts, exc, once)
        return appended.events

    async def _append_again(self, drafts: list[Draft], error: StoreError, once: str | None = None) -> Appended:
        """Try what has failed with ``error`` again, after longer and longer waits."""
        for wait in STORE_RETRIES:
            logger.warning("run %s: append failed, trying again in %g s: %s", self.lease.run, wait, error)
            self._hurried = asyncio.Event()
            if not self._leaving:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._hurried.wait(), wait)
            try:
                return await self._append_once_more(drafts, once)
            except StoreError as exc:
                error = exc
            if self._leaving:
                break  # whoever goes on with the run need not wait for us
        raise error

    async def _append_once_more(self, drafts: list[Draft], once: str | None) -> Appended:
        """Append what failed, unless it is in the log all the same: an answer of the store may have been lost. A new
        epoch comes first: what is still on its way under the old one is refused from then on, so the log has it now or
        never."""
        session, run = self.lease.session, self.lease.run
        self.lease = await self._store.acquire(session, run, owner=self.lease.owner, ttl=self._lease_ttl)
        mine = [event async for event in Log(self._store, session).all(self._stored_to) if event.run == run]
        if any(self._is_of_another_owner(event.fact) for event in mine):
            raise StaleLease(f"Run {run!r} has been driven elsewhere.", run=run)
        begun = max((place for place, event in enumerate(mine) if isinstance(event.fact, RunStarted)), default=0)
        first, _ = settle(drafts[0].fact)
        for place, event in enumerate(mine[begun:], begun):
            if event.fact == first:
                return Appended(mine[place : place + len(drafts)], repeated=True)
        return await self._try(drafts, once)

    # The end ----------------------------------------------------------------------------------------------------------

    async def _end(self) -> bool:
        ending = self._ending or self._outcome()
        if ending.kind is None:
            return False
        for id in list(self._asked):
            if id not in self._resolved and is_permission(id):
                await self._append([expired(id, self.lease.run)], once=resolve_key(id))
        run, usage = self.lease.run, self._recorder.usage
        try:
            await self._append([terminal(ending, run, await self._transcript(), usage)])
        except (InvalidInput, TooLarge) as exc:
            logger.error("run %s: its end cannot be stored with all that it said: %s", run, exc)
            ending = TOO_LONG if ending.kind == "completed" else ending
            await self._append([terminal(ending, run, Transcript(), usage)])
        self._count_end(ending, usage)
        return True

    def _count_end(self, ending: Ending, usage: Usage | None) -> None:
        figures = self._load.figures
        figures.ended.add(str(ending.kind), ending.code)
        if self._span is not None:
            self._span.end(str(ending.kind), ending.code, usage)
        if usage is None or self._turn is None:
            return
        for kind, count in (
            ("input", usage.input_tokens),
            ("output", usage.output_tokens),
            ("cached", usage.cached_tokens),
            ("reasoning", usage.reasoning_tokens),
        ):
            if count:
                figures.tokens.add(self._turn.agent, kind, count=count)
        if usage.cost:
            figures.cost.add(self._turn.agent, count=usage.cost)

    async def _transcript(self) -> Transcript:
        """What the log has of the answer; read from there only when the recorder may have seen more."""
        if not self._astray and not self._drafts:
            return self._recorder.transcript
        events = Log(self._store, self.lease.session).all(self._after)
        return fold([event async for event in events if event.run == self.lease.run])

    def _outcome(self) -> Ending:
        assert self._speaker is not None
        if not self._speaker.done() or self._speaker.cancelled():
            return failed("agent_error", "The agent was cancelled from within.")
        error = self._speaker.exception()
        if error is None:
            return Ending("completed", self._recorder.finish_reason)
        if isinstance(error, AgentError | InvalidInput | TooLarge):
            if self._refused is not None and error.bound:
                self._refused[error.bound] += 1
            try:
                if not isinstance(error, AgentError):
                    logger.warning("run %s: the agent did what it cannot: %s", self.lease.run, error)
                return self._told(error)
            except (InvalidInput, TooLarge) as refusal:
                logger.warning("run %s: the agent's error cannot be told: %s", self.lease.run, refusal)
                return failed(refusal.code, refusal.message)
            except Exception as exc:  # what is no JSON, or a class of the agent's own without what an error has
                logger.warning("run %s: the agent's error cannot be told: %s", self.lease.run, type(exc).__name__)
        logger.error("run %s: the agent failed", self.lease.run, exc_info=error)
        return failed("agent_error", "The agent failed. The server's log has the details.")

    def _told(self, error: AgentError | InvalidInput | TooLarge) -> Ending:
        """How a run ends by an error whose words are for users."""
        code = as_name(f"{type(error).__name__}.code", error.code)
        if code != error.code:
            raise ValueError("a code for programs is not mended")
        message = as_text(f"{type(error).__name__}.message", error.message)
        if len(message) > ERROR_CHARACTERS:
            message = f"{message[: ERROR_CHARACTERS - 1]}…"
        size = len(encode(error.detail))
        if size > self._limits.event_bytes:  # the error is worth more than what goes with it
            logger.warning("run %s: an error is told without its detail of %d bytes", self.lease.run, size)
            return failed(code, message)
        return Ending("failed", code=code, message=message, detail=_object("AgentError.detail", error.detail))

    # What others append -----------------------------------------------------------------------------------------------

    async def _watch(self, after: int) -> None:
        with Subscription(
            self._store, self.lease.session, after, heartbeat=WATCH_HEARTBEAT, deltas=False, outside=True
        ) as subscription:
            self._subscription = subscription
            while True:
                try:
                    events = await subscription.next()
                except StoreError as exc:
                    logger.warning("run %s: cannot read its log: %s", self.lease.run, exc)
                    await asyncio.sleep(WATCH_RETRY)
                    continue
                for event in events:
                    self._take(event)

    def _take(self, event: Event) -> None:
        fact, mine = event.fact, event.run == self.lease.run
        if isinstance(fact, Resolved):
            self._resolved.setdefault(fact.id, fact)
            self._deadlines.forget(fact.id)
            waiting = self._waiting.get(fact.id)
            if waiting is not None and not waiting.done():
                waiting.set_result(fact)
        elif isinstance(fact, CancelRequested) and mine:
            self.stop(CANCELLED)
        elif isinstance(fact, SessionDeleted):
            self.stop(GONE)
        elif mine and self._is_of_another_owner(fact):
            self._taken = True
            self.stop(LEFT_OPEN)

    def _is_of_another_owner(self, fact: object) -> bool:
        if self._turn is None:
            return False
        ended = isinstance(fact, RunCompleted | RunFailed | RunCancelled)
        return ended or (isinstance(fact, RunStarted) and fact.attempt > self._turn.attempt)

    # The desk ---------------------------------------------------------------------------------------------------------

    async def ask_permission(self, request: PermissionRequested, timeout: float | None) -> bool:
        """See ``Desk``."""
        until = None if timeout is None else self._clock() + timeout
        asked = self._ask(request, expires_at=until)
        answer = await self._answer(asked.id, asked.expires_at, timeout)
        if answer is None:
            late = PermissionResolved(asked.id, False, "timeout")
            answer = await self._resolve(late, run=self.lease.run)
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
            answer = await self._resolve(NotificationResolved(asked.id, "timeout", self.lease.run), run=None)
        return Answer(by=answer.by, value=answer.value if isinstance(answer, NotificationResolved) else None)

    def _ask(self, request: A, **times: float | None) -> A:
        """Store the question, unless an earlier attempt asked the very same; in any case, what the log has of it."""
        self._check_not_over()
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
            self._put([Draft(asked, self.lease.run)])
            self._asked[id] = asked
        assert isinstance(asked, type(request))
        return asked

    def _identify(self, request: Asked) -> str:
        # Counted, not drawn: a further attempt that asks the same in the same order finds its answers. One that asks
        # something else must not: a yes to one question is no answer to another.
        kind = "p" if isinstance(request, PermissionRequested) else "n"
        while True:
            self._numbers[kind] += 1
            id = f"{self.lease.run}~{kind}{self._numbers[kind]}"
            before = self._asked.get(id)
            if before is None or question(before) == request:
                return id

    async def _resolve(self, fact: Resolved, *, run: str | None) -> Resolved:
        """Resolve an ask from within, unless somebody was faster; the answer that holds."""
        await self.stored()  # the question comes before its answer
        stored = (await self._append([Draft(fact, run)], once=resolve_key(fact.id)))[0].fact
        assert isinstance(stored, Resolved)
        return stored

    def _check_not_over(self) -> None:
        if self._all_stored.done():
            raise RunEnded(f"Run {self.lease.run!r} has ended.", run=self.lease.run)

    def _release_asks(self) -> None:
        # The agent's own task is cancelled; this is for its threads and for tasks that it has left behind.
        self._make_room()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(RunEnded(f"Run {self.lease.run!r} has ended.", run=self.lease.run))

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


def _object(name: str, value: object) -> JsonObject | None:
    if not isinstance(value, dict):
        raise refused(name, "a dict", value)
    return as_json(name, value) or None


def _gathers(drafts: list[Draft]) -> bool:
    return not [draft for draft in drafts if not draft.fact.delta]


def _too_many_events(limit: int) -> TooLarge:
    error = TooLarge(f"The run has passed its limit of {limit} events.", bound="run_events", limit=limit)
    error.code = "too_many_events"
    return error
