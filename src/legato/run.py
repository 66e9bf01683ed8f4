"""The runner: takes messages, drives their runs one after another in each session, and ends what others left.

The runner belongs to the application, never to a request: a reader that leaves ends nothing. It keeps no list of what
is to be done; the store's open runs are that list, so a restart or another machine goes on where this one stopped.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from .agent import Agent, Turn
from .errors import (
    AskNotFound,
    Conflict,
    Draining,
    InvalidInput,
    KeyReused,
    LeaseHeld,
    LegatoError,
    NotFound,
    QueueFull,
    RunEnded,
    SessionNotFound,
    StaleLease,
    StoreError,
    TooLarge,
)
from .event import TERMINAL, Draft, Event, as_json
from .execution import (
    CANCELLED,
    INTERRUPTED,
    LEFT_OPEN,
    WATCH_HEARTBEAT,
    WATCH_RETRY,
    Ending,
    Execution,
    Limits,
    expired,
    failed,
    resolve_key,
    terminal,
)
from .log import Lease, Log, OpenRun, Store, Subscription
from .transcript import Recorder, Transcript, asks, fold, history

logger = logging.getLogger("legato")

OVERLOADED = failed("overloaded", "Too many answers are being given at once; send the message again later.")
BROKEN = failed("internal_error", "The server could not answer. Its log has the details.")
REWOUND = failed("rewound", "The message was taken back before it was answered.")


class Sent(msgspec.Struct, frozen=True):
    """What became of a message.

    Attributes:
        session, run, message: ids.
        offset: of its ``message.created``; a reader that starts just before it sees the whole turn.
        repeated: it had been sent before, under the same key; or the run was there already, see ``Runner.retry``.
    """

    session: str
    run: str
    message: str
    offset: int
    repeated: bool


def _sent(session: str, event: Event, *, repeated: bool) -> Sent:
    assert event.run is not None
    return Sent(session=session, run=event.run, message=event.data["id"], offset=event.offset, repeated=repeated)


class Runner:
    """Drives the runs of all sessions of one application.

    Args:
        store: open, and shared with the readers.
        agents: by name; the first is the default.
        limits: see ``Limits``.
        lease_ttl: seconds after which a dead owner's runs may be taken over.
        clock: seconds since the epoch.
    """

    def __init__(
        self,
        store: Store,
        agents: Mapping[str, Agent],
        *,
        limits: Limits | None = None,
        lease_ttl: float = 15.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.store = store
        self.agents = agents
        self.limits = limits or Limits()
        self.draining = False
        self.owner = secrets.token_hex(8)
        self._lease_ttl = lease_ttl
        self._clock = clock
        self._places = asyncio.Semaphore(self.limits.concurrent_runs)
        self._kicked: set[str] = set()
        self._workers: dict[str, asyncio.Task[None]] = {}
        self._executions: dict[str, tuple[Execution, Agent]] = {}
        self._reaper: asyncio.Task[None] | None = None

    @property
    def running(self) -> int:
        """How many runs this process drives now."""
        return len(self._executions)

    # What users do ----------------------------------------------------------------------------------------------------

    async def send(
        self,
        session: str,
        text: str,
        *,
        agent: str | None = None,
        metadata: dict[str, Any] | None = None,
        key: str | None = None,
    ) -> Sent:
        """Store a user's message and have it answered, after those that wait already.

        Args:
            session: its id.
            text: not blank.
            agent: which agent answers; the session's, or the default.
            metadata: JSON values for the agent.
            key: the same key with the same message attaches to the same run, however often it is sent.

        Raises:
            InvalidInput, TooLarge, SessionNotFound, KeyReused, QueueFull, Draining: nothing was stored.
        """
        self._check_message(text, agent)
        if self.draining:
            raise Draining("The server is shutting down and takes no new messages; try again.")
        info = await self.store.info(session)
        if len(info.open_runs) > self.limits.queued_messages and not await self._sent_before(session, key):
            raise QueueFull(
                f"{len(info.open_runs)} messages wait in this session already.", limit=self.limits.queued_messages
            )
        run = f"{session}~{secrets.token_hex(6)}"
        data: dict[str, Any] = {"id": f"{run}~u", "role": "user", "text": text}
        data |= {k: v for k, v in (("agent", agent), ("metadata", as_json("metadata", metadata)), ("key", key)) if v}
        draft = Draft(type="message.created", data=data, run=run)
        appended = await self.store.append(session, [draft], once=f"send:{key}" if key else None)
        event = appended.events[0]
        if appended.repeated and {**event.data, "id": ""} != {**data, "id": ""}:
            raise KeyReused("This idempotency key came with another message before.", key=key)
        self._kick(session)
        return _sent(session, event, repeated=appended.repeated)

    def _check_message(self, text: str, agent: str | None) -> None:
        if not text.strip():
            raise InvalidInput("A message needs text, got nothing but blanks.")
        if len(text) > self.limits.message_characters:
            raise TooLarge(
                f"A message may have {self.limits.message_characters} characters, got {len(text)}.",
                limit=self.limits.message_characters,
            )
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidInput("The text holds half of a surrogate pair, which cannot be stored as UTF-8.") from None
        self.check_agent(agent)

    def check_agent(self, agent: str | None) -> None:
        """Raise ``InvalidInput`` if ``agent`` is not None and there is none of that name."""
        if agent is not None and agent not in self.agents:
            known = ", ".join(self.agents)
            raise InvalidInput(f"There is no agent {agent[:100]!r}; this server has: {known}.", agents=known)

    async def _sent_before(self, session: str, key: str | None) -> bool:
        if key is None:
            return False
        events = Log(self.store, session).all(deltas=False)
        return any([event.data.get("key") == key async for event in events if event.type == "message.created"])

    async def retry(self, session: str, message: str, *, run: str | None = None) -> Sent:
        """Have the last user message of a session answered anew, because a person asked for it.

        The answer so far is taken back out of the history, and the message is stored again, under its id, for a new
        run. Of those who ask at the same time, each gets the same run.

        Args:
            session: its id.
            message: the id of the message; its run has ended in whatever way, or it never had one.
            run: the run whose end the caller has seen, which makes it safe to ask again however late; None for the
                newest.

        Raises:
            SessionNotFound, NotFound: no such session; no such message of a user in its history, or no such run of it.
            Conflict: it is being answered, or it is not the last one.
            Draining: nothing was stored.
        """
        events, found = await self._asks(session, message)
        last = found[-1]
        open = last.run is not None and not any(e.run == last.run and e.type in TERMINAL for e in events)
        if run is None:
            known = last if open and "retries" in last.data else None
        else:
            known = next((ask for ask in found if ask.data.get("retries") == run), None)
        if known is not None:
            return _sent(session, known, repeated=True)
        if run not in (None, last.run):
            raise NotFound(f"Run {str(run)[:200]!r} is not one of message {message[:200]!r}.")
        if open:
            raise Conflict("The message is being answered; cancel its run first.", run=last.run)
        return await self._answer_anew(session, last, events)

    async def answer(self, session: str, message: str) -> Sent:
        """The newest run of a user's message, begun now if it never had one: a fork copies messages without runs.

        Raises:
            SessionNotFound, NotFound: no such session; no such message of a user.
            Conflict: it never had a run, and it is not the last message.
            Draining: nothing was stored.
        """
        events, found = await self._asks(session, message)
        if found[-1].run is not None:
            return _sent(session, found[-1], repeated=True)
        return await self._answer_anew(session, found[-1], events)

    async def _asks(self, session: str, message: str) -> tuple[list[Event], list[Event]]:
        """The session's events without deltas, and those among them that are this message of a user, once or more."""
        await self.store.info(session)
        events = [event async for event in Log(self.store, session).all(deltas=False)]
        found = asks(events, message)
        if not found:
            raise NotFound(f"The session has no message {message[:200]!r} of a user.")
        return events, found

    async def _answer_anew(self, session: str, ask: Event, events: list[Event]) -> Sent:
        messages = history(events)
        place = next((n for n in reversed(range(len(messages))) if messages[n].role == "user"), None)
        if place is None or messages[place].id != ask.data["id"]:
            if any(message.id == ask.data["id"] for message in messages):
                raise Conflict("Only the last message of a session can be answered anew.")
            raise NotFound("The message has been taken back.")
        if self.draining:
            raise Draining("The server is shutting down and takes no new messages; try again.")
        # What others store from now on comes after ``until``: a message that crosses this one is not taken back.
        back = {"to": messages[place - 1].id if place else "", "until": events[-1].offset}
        data = {**ask.data, "retries": ask.run}
        data.pop("key", None)
        drafts = [
            Draft(type="session.rewound", data=back),
            Draft(type="message.created", data=data, run=f"{session}~{secrets.token_hex(6)}"),
        ]
        appended = await self.store.append(session, drafts, once=f"retry:{ask.run or ask.data['id']}")
        self._kick(session)
        return _sent(session, appended.events[-1], repeated=appended.repeated)

    async def cancel(self, session: str, run: str | None = None) -> list[str]:
        """Ask ``run``, or all open runs of the session, to stop; the request is in the log when this returns.

        Returns:
            The runs that were open.
        """
        info = await self.store.info(session)
        asked = []
        for open_run in info.open_runs:
            if run in (None, open_run.run):
                draft = Draft(type="run.cancel_requested", data={}, run=open_run.run)
                try:
                    await self.store.append(session, [draft], once=f"cancel:{open_run.run}")
                except RunEnded:
                    continue
                asked.append(open_run.run)
        self._kick(session)
        return asked

    async def resolve_permission(self, id: str, granted: bool) -> bool:
        """Answer a permission request. The first answer wins.

        Returns:
            The answer that holds, which may be an earlier one.

        Raises:
            AskNotFound: no such request.
        """
        request = await self._find_ask(id, "permission.requested")
        expired = request.data.get("expires_at", float("inf")) <= self._clock()
        data = {"id": id, "granted": granted and not expired, "by": "timeout" if expired else "user"}
        draft = Draft(type="permission.resolved", data=data, run=request.run)
        try:
            appended = await self.store.append(id.partition("~")[0], [draft], once=resolve_key(id))
        except RunEnded:
            raise AskNotFound(f"The run that asked {id[:200]!r} has ended.") from None
        return bool(appended.events[0].data["granted"])

    async def resolve_notification(self, id: str, response: str, value: str | None = None) -> None:
        """Answer a notification, once.

        Raises:
            AskNotFound: unknown, expired, or answered already.
            InvalidInput: not an answer of the kind it asked for.
        """
        created = await self._find_ask(id, "notification.created")
        asked = created.data
        if response != asked["response"]:
            raise InvalidInput(f"This notification expects an answer of type {asked['response']!r}, got {response!r}.")
        if response == "choice" and value not in asked["choices"]:
            raise InvalidInput(f"Expected one of {asked['choices']}, got {value!r}.", choices=asked["choices"])
        if response == "text" and value is None:
            raise InvalidInput("An answer of type 'text' needs a value.")
        if asked["created_at"] + asked["timeout"] <= self._clock():
            raise AskNotFound("The notification's time to answer is over.")
        data = {"id": id, "response": response, "by": "user", "run": created.run}
        if value is not None:
            data["value"] = value
        draft = Draft(type="notification.resolved", data=data)
        if (await self.store.append(id.partition("~")[0], [draft], once=resolve_key(id))).repeated:
            raise AskNotFound("The notification has been answered already.")

    async def _find_ask(self, id: str, type: str) -> Event:
        # An ask's id begins with its session's, so that any node can find it without an index.
        async for event in Log(self.store, id.partition("~")[0]).all(deltas=False):
            if event.type == type and event.data["id"] == id:
                return event
        raise AskNotFound(f"There is no {type.partition('.')[0]} {id[:200]!r}.")

    # The life of the runner -------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Take up every run that waits, and end or retry every run whose owner died."""
        await self._sweep()
        self._reaper = asyncio.create_task(self._reap(), name="legato-reaper")

    async def stop(self, grace: float = 0.0) -> None:
        """Take no more messages, let runs finish for ``grace`` seconds, then interrupt them. Idempotent."""
        self.draining = True
        workers = [task for task in self._workers.values() if not task.done()]
        if workers and grace > 0:
            await asyncio.wait(workers, timeout=grace)
        for execution, agent in list(self._executions.values()):
            execution.stop(INTERRUPTED if agent.on_crash == "fail" else LEFT_OPEN)
        if self._reaper is not None:
            self._reaper.cancel()
        if workers := [task for task in self._workers.values() if not task.done()]:
            _, late = await asyncio.wait(workers, timeout=self.limits.cancel_grace + 5.0)
            for task in late:
                task.cancel()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(self._lease_ttl / 3)
            try:
                await self.store.renew(owner=self.owner, ttl=self._lease_ttl)
                await self._sweep()
            except LegatoError as exc:
                logger.warning("cannot look after leases: %s", exc)
            except Exception:  # whatever it is: without the reaper leases would lapse and runs stay open
                logger.exception("cannot look after leases")

    async def _sweep(self) -> None:
        now = self._clock()
        for run in await self.store.open_runs():
            if run.owner in (None, self.owner) or run.expires_at <= now:
                self._kick(run.session)

    def _kick(self, session: str) -> None:
        if self.draining:
            return
        self._kicked.add(session)
        if session not in self._workers:
            self._workers[session] = asyncio.create_task(self._work(session), name=f"legato-session-{session}")

    async def _work(self, session: str) -> None:
        try:
            while session in self._kicked:
                self._kicked.discard(session)
                while not self.draining and (run := await self._next(session)) is not None:
                    if not await self._drive(run):
                        return  # somebody else has it, or it waits for the next owner: the reaper looks again
        except (LeaseHeld, RunEnded, StaleLease, SessionNotFound) as exc:
            logger.info("session %s is driven elsewhere: %s", session, exc)
        except LegatoError as exc:
            logger.error("session %s: a run was left open: %s", session, exc, exc_info=exc)
        finally:
            # No await since the last look at _kicked: a kick after it starts a new worker. One that came before an
            # error is left to the reaper; a session that has gone must not be remembered for it.
            self._kicked.discard(session)
            del self._workers[session]

    async def _next(self, session: str) -> OpenRun | None:
        info = await self.store.info(session)
        return info.open_runs[0] if info.open_runs else None

    # One run ----------------------------------------------------------------------------------------------------------

    async def _drive(self, run: OpenRun) -> bool:
        lease = await self.store.acquire(run.session, run.run, owner=self.owner, ttl=self._lease_ttl)
        if not await self._take_place(run):
            return await self._answer(lease, run, OVERLOADED)
        try:
            return await self._answer(lease, run)
        except LegatoError:
            raise  # the store's, or somebody else's run now: the log is as it should be
        except Exception:  # a log that we do not understand: tried again, it would fail again, for ever
            logger.exception("run %s cannot be driven", run.run)
            return await self._finish(lease, BROKEN, Transcript(), [])
        finally:
            self._places.release()

    async def _take_place(self, run: OpenRun) -> bool:
        """Wait for a place among the runs; False if there was none in time, or the run is to stop before it begins."""
        if not self._places.locked():
            return await self._places.acquire()
        try:
            async with asyncio.timeout(self.limits.place_seconds) as patience:
                watcher = asyncio.create_task(self._watch_waiting(run, patience))
                try:
                    return await self._places.acquire()
                finally:
                    watcher.cancel()
        except TimeoutError:
            return False

    async def _watch_waiting(self, run: OpenRun, patience: asyncio.Timeout) -> None:
        """End the patience of a run that waits, once somebody wants it to stop."""
        with Subscription(
            self.store, run.session, run.offset, heartbeat=WATCH_HEARTBEAT, deltas=False, outside=True
        ) as subscription:
            while not patience.expired():
                try:
                    events = await subscription.next()
                except StoreError as exc:
                    logger.warning("run %s: cannot read its log while it waits: %s", run.run, exc)
                    await asyncio.sleep(WATCH_RETRY)
                    continue
                if not patience.expired() and any(_stops(event, run.run) for event in events):
                    patience.reschedule(asyncio.get_running_loop().time())
                    return

    async def _answer(self, lease: Lease, run: OpenRun, ending: Ending | None = None) -> bool:
        log = Log(self.store, run.session)
        events = [event async for event in log.all(deltas=False)]
        mine = [event for event in events if event.run == run.run]
        if not mine:
            return False  # the session has been deleted meanwhile
        attempt = 1 + sum(event.type == "run.started" for event in mine)
        name = mine[0].data.get("agent") or events[0].data.get("agent") or next(iter(self.agents))
        agent = self.agents.get(name)
        left = [event async for event in log.all(run.offset - 1) if event.run == run.run] if attempt > 1 else mine
        if self.draining:  # no await from here until ``stop`` can see the execution
            return False  # the run waits for the next start
        transcript = fold(left)
        messages = history(events)
        del events  # a run may last for an hour, and the tools of all runs before it may have had much to say
        place = next((place for place, message in enumerate(messages) if message.run == run.run), None)
        ending = self._ending_before(mine, attempt, name, agent) or ending or (REWOUND if place is None else None)
        if ending is not None or agent is None or place is None:
            return await self._finish(lease, ending or CANCELLED, transcript, mine)
        recorder = Recorder(
            run.run,
            earlier=transcript,
            resumed=agent.on_crash == "resume",
            max_event_bytes=self.limits.event_bytes,
            max_run_characters=self.limits.run_characters,
        )
        execution = Execution(
            self.store,
            lease,
            limits=self.limits,
            recorder=recorder,
            earlier=mine,
            clock=self._clock,
        )
        turn = Turn(
            desk=execution,
            session=run.session,
            run=run.run,
            message=messages[place],
            history=messages[:place],
            agent=name,
            attempt=attempt,
            events=left if attempt > 1 else (),
            max_event_bytes=self.limits.event_bytes,
        )
        self._executions[run.run] = (execution, agent)
        started = Draft(type="run.started", data={"agent": name, "attempt": attempt}, run=run.run)
        try:
            await self.store.append(run.session, [started], lease=lease)
            return await execution.run(agent, turn, after=run.offset)
        finally:
            del self._executions[run.run]

    def _ending_before(self, mine: list[Event], attempt: int, name: str, agent: Agent | None) -> Ending | None:
        """How the run ends without the agent being asked, or None if it is to be asked."""
        if any(event.type == "run.cancel_requested" for event in mine):
            return CANCELLED
        if agent is None:
            return failed("unknown_agent", f"This server has no agent {name!r}.")
        if attempt > 1 and (agent.on_crash == "fail" or attempt > self.limits.attempts):
            return INTERRUPTED
        return None

    async def _finish(self, lease: Lease, ending: Ending, transcript: Transcript, mine: list[Event]) -> bool:
        for event in mine:
            if event.type == "permission.requested":
                id = event.data["id"]
                await self.store.append(lease.session, [expired(id, lease.run)], lease=lease, once=resolve_key(id))
        await self.store.append(lease.session, [terminal(ending, lease.run, transcript)], lease=lease)
        return True


def _stops(event: Event, run: str) -> bool:
    return event.type == "session.deleted" or (event.type == "run.cancel_requested" and event.run == run)
