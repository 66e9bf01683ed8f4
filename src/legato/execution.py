"""One run being driven: from what the agent yields to the log, until exactly one terminal event.

Two tasks share the work. The *speaker* iterates over the agent and turns what it yields into drafts, which it puts into
the run's outbox; the *watcher* reads what others append to the session (a cancel, an answer). The speaker may be ahead
of the store by a bounded number of drafts.

The one rule: the terminal event is appended last, once, under the lease, after everything that the agent said.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable

from .agent import Agent, Turn
from .asks import Resolved
from .bounds import Limits
from .check import as_name, as_text, refused
from .desk import RunDesk
from .ending import CANCELLED, GONE, LEFT_OPEN, TOO_LONG, Ending, failed, terminal
from .errors import AgentError, InvalidInput, LeaseHeld, NotFound, RunEnded, StaleLease, StoreError, StoreLost, TooLarge
from .event import CancelRequested, Event, SessionDeleted
from .fault import contained
from .figures import Figures
from .json import JsonObject
from .log import Log, Store, Subscription
from .logs import is_word
from .machine import Lease
from .outbox import AHEAD, Outbox, is_of_another_owner
from .part import Usage, as_json, encode
from .recorder import Recorder
from .traces import RunSpan
from .transcript import Transcript, fold

logger = logging.getLogger("legato")

WATCH_HEARTBEAT = 5.0
"""Seconds after which the watcher looks at the log without having been woken."""
WATCH_RETRY = 1.0
"""Seconds after which the watcher tries again to read a log that could not be read."""
ERROR_CHARACTERS = 10_000
"""Of an error's text for people; a longer one, such as a page of a provider's, is cut."""


class Execution:
    """Drives one run under its lease.

    Args:
        store: where the log lives.
        outbox: stores what the run says.
        recorder: with what earlier attempts left.
        desk: at which its turn asks.
        limits: see ``Limits``.
        figures: where it is counted how the run ended, and what its model took.
        refused: counts what limits have refused, see ``bounds``.
        span: of the run, if somebody traces.
    """

    def __init__(
        self,
        store: Store,
        outbox: Outbox,
        recorder: Recorder,
        desk: RunDesk,
        *,
        limits: Limits,
        figures: Figures,
        refused: Counter[str] | None = None,
        span: RunSpan | None = None,
    ) -> None:
        self._session, self._run = outbox.lease.session, outbox.lease.run
        self._store = store
        self._outbox = outbox
        self._recorder = recorder
        self._desk = desk
        self._limits = limits
        self._figures = figures
        self._refused = refused
        self._span = span
        self._astray = False  # the recorder has seen what was not stored
        self._after = 0
        self._ending: Ending | None = None
        self._abandoned = False
        self._speaker: asyncio.Task[None] | None = None
        self._subscription: Subscription | None = None
        self._taken = False  # somebody else drives the run
        self._grace: asyncio.TimerHandle | None = None
        self._turn: Turn | None = None

    @property
    def lease(self) -> Lease:
        """The present one; another than at first once an append has failed."""
        return self._outbox.lease

    @property
    def asking(self) -> bool:
        """Whether it waits for somebody's answer."""
        return self._desk.asking

    @property
    def events(self) -> int:
        """How many it has made, before those that could be joined were."""
        return self._outbox.count

    # The life of a run ------------------------------------------------------------------------------------------------

    async def run(self, agent: Agent, turn: Turn, *, after: int) -> bool:
        """Drive ``agent`` until the run has ended.

        Args:
            agent, turn: what to drive, with what.
            after: the offset from which others may have appended for this run.

        Returns:
            True if the run has its terminal event; False if it was left open, or taken over by somebody else.
        """
        self._after = after
        self._outbox.begin(after, turn.attempt)
        if self._ending is not None:  # stopped before it began
            return await self._end()
        self._turn = turn
        self._speaker = asyncio.create_task(self._speak(agent, turn), name=f"legato-agent-{turn.run}")
        self._speaker.add_done_callback(self._on_silence)
        watcher = asyncio.create_task(self._watch(after))
        timer = asyncio.get_running_loop().call_later(self._limits.run_seconds, self._time_out)
        try:
            await self._outbox.emptied
            if await self._end():
                return True
            self._figures.lost += self._taken
            return False
        except (StaleLease, LeaseHeld, RunEnded, NotFound) as exc:
            logger.warning("run %s is no longer ours: %s", turn.run, exc)
            self._figures.lost += not isinstance(exc, NotFound)  # which is a session that was deleted
            return False
        finally:
            watcher.cancel()
            timer.cancel()
            if self._grace is not None:
                self._grace.cancel()
            self._abandoned = True
            self._speaker.cancel()
            self._outbox.give_up()
            self._desk.close()

    def _time_out(self) -> None:
        if self._refused is not None and self._ending is None:
            self._refused["run_seconds"] += 1
        self.stop(failed("timeout", f"The run took longer than {self._limits.run_seconds:g} seconds."))

    def stop(self, ending: Ending) -> None:
        """End the run this way, unless it is ending already. The agent is cancelled and may say a last word."""
        self._outbox.hurry(leaving=ending is LEFT_OPEN)
        if self._ending is not None or (self._speaker is not None and self._speaker.done()):
            return
        self._ending = ending
        if self._speaker is None or self._turn is None:
            return
        self._turn.cancelled = True
        self._turn.left_open = ending is LEFT_OPEN
        self._speaker.cancel()
        self._grace = asyncio.get_running_loop().call_later(self._limits.cancel_grace, self._abandon)

    def hurry(self) -> None:
        """Try at once to store what could not be stored: the store may be there again."""
        self._outbox.hurry()

    def look(self) -> None:
        """See at once what others have appended: somebody else may have the run."""
        if self._subscription is not None:
            self._subscription.wake()

    def forget(self, ending: Ending) -> None:
        """End the run this way, with what the log has of it now: it has lost some of what was stored."""
        self._astray = True
        self._outbox.drafts.clear()  # they go on from what was lost
        self.stop(ending)
        if self._ending is None:  # the agent has said all, but it is not known what of that is there
            self._ending = ending

    def _abandon(self) -> None:
        self._abandoned = True
        if self._speaker is not None and not self._speaker.done():
            logger.warning("run %s: the agent goes on although it was told to stop; nobody listens", self._run)
        self._outbox.close()

    async def _speak(self, agent: Agent, turn: Turn) -> None:
        if self._span is not None:
            self._span.enter()
        with contained("the agent"):
            await self._listen(agent.stream(turn))

    async def _listen(self, stream: AsyncGenerator[object, None]) -> None:
        proceed: Callable[[], Awaitable[object]] = stream.__anext__
        outbox, advance, spoken = self._outbox, proceed, 0
        try:
            while True:
                try:
                    item = await advance()
                except StopAsyncIteration:
                    outbox.put(self._recorder.end())
                    return
                if self._abandoned:
                    return
                advance = proceed
                try:
                    outbox.put(self._recorder.record(item))
                except (InvalidInput, TooLarge):
                    self._astray = True  # it was recorded in part, and none of it is stored
                    raise
                spoken += 1
                try:
                    if not spoken % AHEAD:
                        await asyncio.sleep(0)  # an agent may yield for ever without waiting, even what stores nothing
                    while len(outbox.drafts) >= AHEAD:
                        await outbox.room()
                except asyncio.CancelledError as exc:
                    # It hit us between two yields; the agent is to hear of it where it stands.
                    advance = functools.partial(stream.athrow, exc)
        finally:
            await stream.aclose()

    def _on_silence(self, speaker: asyncio.Task[None]) -> None:
        self._outbox.close()
        if self._ending is not None and not speaker.cancelled() and speaker.exception() is not None:
            # It does not decide how the run ends, so the log is the only place to tell it.
            logger.warning("run %s: the agent failed when stopped", self._run, exc_info=speaker.exception())

    # The end ----------------------------------------------------------------------------------------------------------

    async def _end(self) -> bool:
        ending = self._ending or self._outcome()
        if ending.kind is None:
            return False
        await self._desk.expire()
        run, usage = self._run, self._recorder.usage
        try:
            await self._outbox.append([terminal(ending, run, await self._transcript(), usage)])
        except (InvalidInput, TooLarge) as exc:
            logger.error("run %s: its end cannot be stored with all that it said: %s", run, exc)
            ending = TOO_LONG if ending.kind == "completed" else ending
            await self._outbox.append([terminal(ending, run, Transcript(), usage)])
        self._count_end(ending, usage)
        return True

    def _count_end(self, ending: Ending, usage: Usage | None) -> None:
        figures = self._figures
        figures.ended.add(str(ending.kind), ending.code if is_word(ending.code) or not ending.code else "other")
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
        if not self._astray and not self._outbox.drafts:
            return self._recorder.transcript
        events = Log(self._store, self._session).all(self._after)
        return fold([event async for event in events if event.run == self._run])

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
                    logger.warning("run %s: the agent did what it cannot: %s", self._run, error)
                return self._told(error)
            except (InvalidInput, TooLarge) as refusal:
                logger.warning("run %s: the agent's error cannot be told: %s", self._run, refusal)
                return failed(refusal.code, refusal.message)
            except Exception as exc:  # what is no JSON, or a class of the agent's own without what an error has
                logger.warning("run %s: the agent's error cannot be told: %s", self._run, type(exc).__name__)
        logger.error("run %s: the agent failed", self._run, exc_info=error)
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
            logger.warning("run %s: an error is told without its detail of %d bytes", self._run, size)
            return failed(code, message)
        return Ending("failed", code=code, message=message, detail=_object("AgentError.detail", error.detail))

    # What others append -----------------------------------------------------------------------------------------------

    async def _watch(self, after: int) -> None:
        with Subscription(
            self._store, self._session, after, heartbeat=WATCH_HEARTBEAT, deltas=False, outside=True
        ) as subscription:
            self._subscription = subscription
            while True:
                try:
                    events = await subscription.next()
                except StoreError as exc:
                    level = logging.DEBUG if isinstance(exc, StoreLost) else logging.WARNING  # as all runs would say it
                    logger.log(level, "run %s: cannot read its log: %s", self._run, exc)
                    await asyncio.sleep(WATCH_RETRY)
                    continue
                for event in events:
                    self._take(event)

    def _take(self, event: Event) -> None:
        fact, mine = event.fact, event.run == self._run
        if isinstance(fact, Resolved):
            self._desk.hear(fact)
        elif isinstance(fact, CancelRequested) and mine:
            self.stop(CANCELLED)
        elif isinstance(fact, SessionDeleted):
            self.stop(GONE)
        elif mine and self._turn is not None and is_of_another_owner(fact, self._turn.attempt):
            self._taken = True
            self.stop(LEFT_OPEN)


def _object(name: str, value: object) -> JsonObject | None:
    if not isinstance(value, dict):
        raise refused(name, "a dict", value)
    return as_json(name, value) or None
