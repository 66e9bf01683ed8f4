"""``Sessions``: everything that a caller can do, one verb each. Routes, dialects and commands hold it, never a store.

A verb reads what it needs at one head, decides, and stores all of it in one append: at that head (it begins again if
the log has grown by more than deltas), under a key that can be used once, or, where something is taken back, with the
offset up to which it has seen the log. So a request that is refused has stored nothing, and no two of them meet half
way. What a caller may not touch is not there for them.
"""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

import msgspec

from .admission import Admission
from .agent import Agent
from .aside import Aside
from .bounds import Limits
from .caller import Caller, May, MayWithSession, Quota, Verb
from .caller import may as may_what_is_theirs
from .contents import Contents, Entry, with_files
from .copies import Copies, begin_copy, owned
from .edits import Edits
from .ending import CANCELLED, ended
from .errors import (
    BlobNotFound,
    Conflict,
    Draining,
    HeadMoved,
    InvalidInput,
    KeyReused,
    NotFound,
    RunEnded,
    RunInProgress,
    RunNotFound,
    SessionExists,
    SessionNotFound,
    StoreError,
)
from .event import (
    BlobRef,
    CancelRequested,
    Draft,
    Event,
    MessageCreated,
    MessageRevised,
    Offset,
    RunWithdrawn,
    SessionCreated,
    SessionDeleted,
    SessionRewound,
)
from .fault import contained
from .history import Asking, answer_place, askings, default_agent, history
from .log import READ_LIMIT, Log, SessionInfo, SessionPage, Store, Subscription
from .machine import RunState
from .part import Message
from .probe import Probe
from .questions import Destination, Question, Questions, Sent, new_session, once_key, sent
from .resolutions import Resolutions
from .retention import LEAST_SECONDS
from .run import Runner
from .sharing import Shared, listed, owners_of
from .spending import is_own
from .taken import referring
from .thin import says_nothing

WAIT_HEARTBEAT = 2.0
"""Seconds after which who waits for an answer looks whether the server is about to stop."""


class Located(msgspec.Struct, frozen=True):
    """A run as it lies in its log.

    Attributes:
        asked: the message that it answers.
        agent: who answers, as far as the log said when it was asked.
    """

    session: str
    run: str
    asked: Asking
    agent: str

    @property
    def before(self) -> Offset:
        """The offset after which the run's events begin."""
        return self.asked.offset - 1


class Sessions:
    """The verbs. Each takes a caller first, and raises ``SessionNotFound`` for what is not theirs; ``Forbidden`` where
    it would begin a session and the caller may not; and ``ScopeMissing`` before anything is looked at.

    Args:
        store: open.
        runner: drives what is sent.
        may: decides what a caller may do, see ``caller.may`` and ``caller.MayWithSession``.
        quota: the application's own limit, see ``caller.Quota``.
        shared: whose sessions are in lists, see ``sharing.Shared``.

    Attributes:
        aside: where what is large is worked on; to be closed in the end.
        edits: the verbs for what is said without anybody being asked.
    """

    def __init__(
        self,
        store: Store,
        runner: Runner,
        *,
        may: May | MayWithSession = may_what_is_theirs,
        quota: Quota | None = None,
        shared: Shared | None = None,
    ) -> None:
        self._store = store
        self._runner = runner
        self._accounts = runner.accounts
        self._contents = runner.contents
        self.aside = Aside()
        self._admission = Admission(store, runner, may, quota)
        self._blobs = runner.blobs
        self._copies = Copies(store, runner.contents, runner.accounts, runner.blobs)
        self._questions = Questions(store, runner, self._admission, self.aside)
        self.edits = Edits(store, runner, self._admission, self.aside)
        self._resolutions = Resolutions(store, runner, self._admission)
        self._probe = Probe(store)
        self._shared = shared

    @property
    def agents(self) -> Mapping[str, Agent]:
        """By name, the default one first."""
        return self._runner.agents

    @property
    def limits(self) -> Limits:
        """What bounds a message and a run."""
        return self._runner.limits

    @property
    def draining(self) -> bool:
        """Whether no new messages are taken."""
        return self._runner.draining

    @property
    def trouble(self) -> StoreError | None:
        """Why nothing can be stored for now, as far as the store knows."""
        return self._probe.trouble

    async def check_store(self) -> None:
        """See ``Probe.check``: ``StoreError`` if nothing can be stored for now."""
        await self._probe.check()

    @property
    def incarnation(self) -> str:
        """The name of the store's present life; "" if it has none."""
        incarnation: str = getattr(self._store, "incarnation", "")
        return incarnation

    async def holds(self, incarnation: str | None, session: str, offset: Offset) -> bool:
        """Whether a reader who had events up to ``offset`` from this incarnation of the store has those of this log.
        True where nobody knows."""
        if incarnation and self.incarnation:
            holds: Callable[[str, str, Offset], Awaitable[bool]] = getattr(self._store, "holds")  # noqa: B009
            if not await holds(incarnation[:100], session, offset):
                return False
        return not await self._is_thin(session, offset)

    async def _is_thin(self, session: str, offset: Offset) -> bool:
        """Whether what stands at ``offset`` says nothing any more: what follows would say it again. What was written to
        of late is as it was, so nothing is read for it."""
        if getattr(self._store, "thin", None) is None:
            return False
        with contextlib.suppress(SessionNotFound):
            info = await self._store.info(session)
            if self._runner.clock() - info.updated_at > LEAST_SECONDS:
                events = await self._store.read(session, offset - 1, limit=1) if offset > 0 else []
                return bool(events) and events[0].offset == offset and says_nothing(events[0].fact)
        return False

    @property
    def running(self) -> int:
        """How many runs this process drives now."""
        return self._runner.running

    # Looking ----------------------------------------------------------------------------------------------------------

    async def info(self, caller: Caller, session: str, *, verb: Verb = "info") -> SessionInfo:
        """What is known of a session without reading its log.

        Raises:
            SessionNotFound: there is none, or the caller may not do ``verb`` to it.
        """
        return await self._admission.info(caller, session, verb)

    def allowed(self, caller: Caller, info: SessionInfo) -> list[str]:
        """What the caller may do to a session that was read for them, see ``Admission.allowed``."""
        return self._admission.allowed(caller, info)

    async def index(self, caller: Caller, *, limit: int = 100, after: str | None = None) -> SessionPage:
        """A page of up to ``limit`` of the caller's sessions, and of those that are shared with them, those last
        written to first. It may have fewer than there are, or none, and there are more as long as it has a ``next``.

        Raises:
            CursorInvalid: ``after`` is not the ``next`` of a page.
        """
        self._admission.check_scope(caller, "index")
        everybodys = self._admission.may(caller, "index", None, None)
        if not everybodys and not self._admission.may(caller, "index", caller.subject, None):
            return SessionPage([])
        if self._shared is not None and not everybodys:
            return await self._listed(caller, self._shared, limit, after)
        owner, found = None if everybodys else caller.subject, list[SessionInfo]()
        while True:
            page = await self._store.sessions(limit=limit - len(found), after=after, owner=owner)
            found += [info for info in page.infos if not is_own(info.session)]
            after = page.next
            if after is None or len(found) >= limit:
                return SessionPage(found, after)

    async def _listed(self, caller: Caller, shared: Shared, limit: int, after: str | None) -> SessionPage:
        with contained("shared"):
            found = shared(caller)
            if inspect.isawaitable(found):
                found = await found

        def shows(info: SessionInfo) -> bool:
            own = info.owner == caller.subject
            return not is_own(info.session) and (own or self._admission.may(caller, "info", info.owner, info))

        owners = list(dict.fromkeys([caller.subject, *owners_of(found)]))
        return await listed(self._store, owners, shows, limit=limit, after=after)

    async def contents(self, caller: Caller, session: str) -> Contents:
        """Which messages stand in a session, without what they say; it changes with the next await."""
        return (await self._admission.look(caller, session, "history")).contents

    async def messages(
        self, caller: Caller, session: str, entries: Sequence[Entry], *, files: bool = True
    ) -> list[Message]:
        """What some of them say, in their order; without ``files`` their metadata is as the log has it."""
        await self.info(caller, session, verb="history")
        return await self._contents.messages(session, entries, files=files)

    async def history(self, caller: Caller, session: str) -> list[Message]:
        """The conversation, see ``history.history``: all of it, however much was said."""
        known: dict[str, bytes] = {}
        events = await self.events(caller, session)
        whole = [await self._blobs.whole(session, event, known) if referring(event) else event for event in events]
        said = {f.id: f for event in events if isinstance(f := event.fact, MessageCreated | MessageRevised)}
        return [with_files(message, said.get(message.id)) for message in history(whole)]

    async def events(self, caller: Caller, session: str, *, verb: Verb = "history") -> list[Event]:
        """The session's events but for deltas: all of them, so this costs what the session is long."""
        info = await self.info(caller, session, verb=verb)
        events = [event async for event in Log(self._store, session).all(until=info.head, deltas=False)]
        if not events:  # nothing but a tombstone, beyond the head
            raise SessionNotFound(session)
        return events

    async def question(self, caller: Caller, run: Located) -> MessageCreated:
        """What a run was asked, with the files in it."""
        await self.info(caller, run.session, verb="read")
        asked = run.asked
        whole = await self._blobs.whole(run.session, Event(asked.fact, asked.offset, asked.at, asked.run))
        assert isinstance(whole.fact, MessageCreated)
        return whole.fact

    async def blob(self, caller: Caller, session: str, hash: str) -> BlobRef:
        """What is known of a file that came in one of the session's messages.

        Raises:
            SessionNotFound, BlobNotFound: there is no such session, or file in it.
        """
        contents = (await self._admission.look(caller, session, "read")).contents
        if (ref := contents.blobs.get(hash)) is None:
            raise BlobNotFound(f"No message of the session has a file {hash[:64]!r}.")
        return ref

    async def blob_bytes(self, caller: Caller, session: str, ref: BlobRef) -> bytes:
        """Its bytes.

        Raises:
            SessionNotFound: it has been deleted. BlobLost: they are not there. StoreError: nobody knows.
        """
        await self.info(caller, session, verb="read")
        return await self._blobs.get(session, ref)

    async def read(self, caller: Caller, session: str, after: Offset, *, limit: int = READ_LIMIT) -> list[Event]:
        """A page of the log, see ``Store.read``."""
        await self.info(caller, session, verb="read")
        return await self._store.read(session, after, limit=limit)

    async def all(
        self, caller: Caller, session: str, after: Offset = 0, *, deltas: bool = True, verb: Verb = "read"
    ) -> AsyncIterator[Event]:
        """Every event of the log that is there now, page by page."""
        info = await self.info(caller, session, verb=verb)
        async for event in Log(self._store, session).all(after, until=info.head, deltas=deltas):
            yield event

    async def follow(
        self, caller: Caller, session: str, after: Offset, *, heartbeat: float = 15.0, deltas: bool = True
    ) -> Subscription:
        """A cursor on the log, see ``Subscription``."""
        await self.info(caller, session, verb="read")
        return Subscription(self._store, session, after, heartbeat=heartbeat, deltas=deltas)

    async def find(self, caller: Caller, session: str, run: str, *, withdrawn: bool = False) -> Located | None:
        """A run; None if there is no such run, or if it has been withdrawn and that is not wanted."""
        try:
            info, contents = await self._admission.look(caller, session, "read")
            asked = contents.runs.get(run)
            if asked is None or asked.role != "user" or (run in contents.withdrawn and not withdrawn):
                return None
            asking = await self._contents.asking(session, asked)
        except SessionNotFound:
            return None
        return Located(session, run, asking, asking.fact.agent or info.created.agent or "default")

    async def going_on(self, info: SessionInfo) -> tuple[Offset, Event] | None:
        """The turn that was running by ``info``, or waited first: the offset after which its answer begins, and its
        message. None if there was none."""
        if not info.open_runs:
            return None
        run = info.open_runs[0]
        before = (await self._contents.of(info.session, info.head)).before(run.run)
        return before, await self._contents.event(info.session, run.offset)

    async def run_at(self, caller: Caller, session: str, offset: Offset) -> str | None:
        """The run whose event stands at ``offset``; None if it is no run's, or there is no such event."""
        events = await self.read(caller, session, max(offset - 1, 0), limit=1)
        return events[0].run if events and events[0].offset == offset else None

    async def until_ended(self, caller: Caller, run: Located) -> None:
        """Wait until a run has ended.

        Raises:
            RunNotFound: its session was deleted meanwhile.
            Draining: the server is about to stop.
        """
        subscription = await self.follow(caller, run.session, run.before, heartbeat=WAIT_HEARTBEAT, deltas=False)
        with subscription:
            while True:
                events = await subscription.next()
                if any(event.run == run.run and event.fact.terminal for event in events):
                    return
                if any(isinstance(event.fact, SessionDeleted) for event in events):
                    raise RunNotFound(run.run)
                if not events and self.draining:
                    raise Draining("The server is shutting down; the answer is kept.")

    def check_inspect(self, caller: Caller) -> None:
        """Raise ``Forbidden`` if the caller may not look at everything that the server does."""
        self._admission.check_inspect(caller)

    # Beginning and ending sessions ------------------------------------------------------------------------------------

    async def create(self, caller: Caller, session: str, begin: SessionCreated) -> SessionInfo:
        """Begin a session under this id, which becomes the caller's.

        Raises:
            SessionExists, InvalidInput: nothing was stored.
        """
        self._admission.check_begin(caller)
        self._admission.check_agent(begin.agent)
        await self._admission.admit(caller, "create", session)
        async with self._accounts.session(caller.subject):
            await self._store.append(session, [Draft(owned(begin, caller))])
        return await self._store.info(session)

    async def fork(
        self, caller: Caller, source: str, session: str, *, last: int, title: str | None = None
    ) -> SessionInfo:
        """Begin a session with a copy of another's messages up to and with number ``last``, from 0.

        Raises:
            InvalidInput: there is no message of that number. SessionExists: there is one of the id ``session``.
        """
        seen = await self._admission.look(caller, source, "fork")
        self._admission.check_begin(caller)
        entries = seen.contents.entries
        if last >= len(entries):
            raise InvalidInput(
                f"messageIndex counts from 0 and the session has {len(entries)} messages, got {last}.",
                messages=len(entries),
            )
        entries = entries[: last + 1]
        await self._admission.admit(caller, "fork", source)
        await self._copies.make(caller, seen.info, entries, session, title)
        return await self._store.info(session)

    async def rewind(self, caller: Caller, session: str, to: str, *, key: str | None = None) -> None:
        """Make history end at message ``to``. A message that crosses the request is not taken back; nor is one that was
        stored after it was first made under ``key``.

        Raises:
            NotFound: there is no such message. Conflict: an answer is being given.
        """
        until: Offset | None = None
        once = once_key("rewind", caller, key)
        while True:
            seen = await self._admission.look(caller, session, "rewind")
            until = seen.head if until is None else until  # what has come since the first look stays
            rewound = [Draft(SessionRewound(to, until=until))]
            if once is not None and await self._was_done(session, rewound, once):
                return
            if seen.info.open_runs:
                raise Conflict("A session cannot be rewound while an answer is being given; cancel it first.")
            if all(entry.id != to for entry in seen.contents.entries):
                raise NotFound(f"The session has no message {to[:200]!r}.")
            try:
                await self._store.append(session, rewound, once=once, head=seen.head)
            except HeadMoved:
                continue
            return

    async def _was_done(self, session: str, drafts: Sequence[Draft], once: str) -> bool:
        """Whether something was stored under this key. Nothing is stored by asking: no log that is there ends at 0."""
        try:
            return (await self._store.append(session, drafts, once=once, head=0)).repeated
        except HeadMoved:
            return False

    async def delete(self, caller: Caller, session: str) -> None:
        """Delete a session, its log and whatever runs in it, also what has come since the caller looked; and its
        blobs."""
        info = await self.info(caller, session, verb="delete")
        await self._blobs.check_gone(session)
        await self._store.append(session, [Draft(SessionDeleted())])
        self._accounts.gone(info.owner)
        await self._blobs.forget(session)

    async def withdraw(self, caller: Caller, session: str, run: str) -> None:
        """Let a run no longer be had by its id, and delete the log with the last of them.

        Raises:
            RunNotFound: it was withdrawn before, or the session has been deleted.
        """
        while True:
            try:
                seen = await self._admission.look(caller, session, "withdraw")
                left = seen.contents.left
                if run not in left:
                    raise RunNotFound(run)
                if len(left) > 1:
                    await self._store.append(session, [Draft(RunWithdrawn(run))], head=seen.head)
                    return
                await self._blobs.check_gone(session)
                await self._store.append(session, [Draft(SessionDeleted())], head=seen.head)
                await self._blobs.forget(session)
            except HeadMoved:
                continue  # whatever came has to be looked at
            except SessionNotFound:
                raise RunNotFound(run) from None
            return

    # Asking -----------------------------------------------------------------------------------------------------------

    async def send(
        self, caller: Caller, session: str, question: Question, *, begin: SessionCreated | None = None
    ) -> Sent:
        """Store a user's message and have it answered, after those that wait already.

        Args:
            caller: who asks.
            session: its id.
            question: the message, with what was said before.
            begin: what begins the session if it does not exist yet.

        Raises:
            InvalidInput, TooLarge, SessionNotFound, SessionExists, KeyReused, QueueFull, SessionFull, TooMany,
                Draining, Overloaded: nothing was stored.
        """

        async def decide(exists: bool) -> Destination:
            if begin is None or exists:
                return Destination(session, [], await self.info(caller, session, verb="send"))
            self._admission.check_begin(caller, "send")
            return Destination(session, [Draft(owned(begin, caller))], None)

        return await self._questions.ask(caller, session, question, decide)

    async def branch(self, caller: Caller, session: str, run: str, question: Question) -> Sent:
        """Send a message that goes on from the answer of ``run``: in its session, if it is the last there; else in a
        copy of the session up to that answer.

        Raises:
            RunNotFound: its answer is no part of the conversation (any more).
            RunInProgress: it is still being given, and others wait behind it.
            InvalidInput, TooLarge, KeyReused, QueueFull, SessionFull, TooMany, Draining, Overloaded: nothing was
                stored.
        """
        built = ""

        async def decide(exists: bool) -> Destination:
            nonlocal built
            info, contents = await self._admission.look(caller, session, "send")
            entries = contents.entries
            place = answer_place(entries, run)  # after the last of the two that are the run's
            if run in contents.withdrawn or place is None:
                raise RunNotFound(run)
            if contents.last == run or _key_used(contents, caller, question.key):
                return Destination(session, [], info)
            if entries[place - 1].role != "assistant":
                raise RunInProgress("The answer is still being given, and others wait behind it.", run=run)
            self._admission.check_begin(caller, "send")
            branched = built or new_session(caller, question.key)
            if not exists and not built:
                copied = entries[:place]
                if self._copies.is_small(copied):
                    begin = Draft(begin_copy(info, caller, info.created.title))
                    return Destination(branched, [begin, *await self._copies.drafts(session, copied, branched)], None)
                # Too much for one append: the copy is there first, and the message comes to it.
                try:
                    await self._copies.make(caller, info, copied, branched, info.created.title)
                except SessionExists:
                    if question.key is None:
                        raise
                built = branched
            return Destination(branched, [], await self.info(caller, branched, verb="send"))

        return await self._questions.ask(caller, session, question, decide)

    async def retry(
        self, caller: Caller, session: str, message: str, *, run: str | None = None, key: str | None = None
    ) -> Sent:
        """Have the last user message of a session answered anew, because a person asked for it.

        The answer so far is taken back out of the history, and the message is stored again, under its id, for a new
        run. Of those who ask at the same time, each gets the same run.

        Args:
            caller: who asks.
            session: its id.
            message: the id of the message; its run has ended in whatever way, or it never had one.
            run: the run whose end the caller has seen, which makes it safe to ask again however late; None for the
                newest.
            key: does the same where no run was seen.

        Raises:
            SessionNotFound, NotFound: no such session; no such message of a user in its history, or no such run of it.
            Conflict: it is being answered, or it is not the last one.
            KeyReused: something else came under this key.
            Draining, Overloaded: nothing was stored.
        """
        seen = await self._admission.look(caller, session, "send")
        if key is not None and (before := seen.contents.keys.get((caller.subject, key))) is not None:
            if before.id != message or before.retries is msgspec.UNSET:
                raise KeyReused("This idempotency key came with another message before.", key=key)
            return sent(session, message, before, repeated=True)
        found = _asked(seen.contents, message)
        last = found[-1]
        going_on = last.run in seen.info.runs
        if run is None:
            known = last if going_on and last.retries is not msgspec.UNSET else None
        else:
            known = next((entry for entry in found if entry.retries == run), None)
        if known is not None:
            return sent(session, message, known, repeated=True)
        if run not in (None, last.run):
            raise NotFound(f"Run {str(run)[:200]!r} is not one of message {message[:200]!r}.")
        if going_on:
            raise Conflict("The message is being answered; cancel its run first.", run=last.run)
        return await self._questions.ask_anew(caller, seen, last, key)

    async def answer(self, caller: Caller, session: str, message: str) -> Sent:
        """The newest run of a user's message, begun now if it never had one: a fork copies messages without runs.

        Raises:
            SessionNotFound, NotFound: no such session; no such message of a user.
            Conflict: it never had a run, and it is not the last message.
            Draining, Overloaded: nothing was stored.
        """
        seen = await self._admission.look(caller, session, "send")
        last = _asked(seen.contents, message)[-1]
        if last.run is not None:
            return sent(session, message, last, repeated=True)
        return await self._questions.ask_anew(caller, seen, last)

    async def asked(self, caller: Caller, session: str, message: str) -> list[Entry]:
        """Where a user's message stands, once for each time that it was put to an agent, oldest first.

        Raises:
            SessionNotFound, NotFound: no such session; no such message of a user.
        """
        return list(_asked((await self._admission.look(caller, session, "history")).contents, message))

    # Stopping and answering -------------------------------------------------------------------------------------------

    async def cancel(
        self, caller: Caller, session: str, run: str | None = None, *, key: str | None = None
    ) -> list[str]:
        """Ask ``run``, or all open runs of the session, to stop; the request is in the log when this returns.

        A run that waits, for a place or behind another, ends with that.

        Args:
            caller: who asks.
            session: its id.
            run: which; None for all that are open.
            key: if ``run`` is None: however often and late this comes under one key, it is for those that were open
                the first time, be it none.

        Returns:
            The runs that were open.
        """
        info = await self.info(caller, session, verb="cancel")
        runs = [each.run for each in info.open_runs if run in (None, each.run)]
        once = once_key("cancel-all", caller, key) if run is None else f"cancel:{run}"
        while True:
            left = [info.runs[name] for name in runs if name in info.runs]
            waiting = [each for each in left if each.owner is None]
            drafts = [
                Draft(CancelRequested(), each.run)
                for each in left
                if (run is None and key) or each.owner is None or each.state is not RunState.CANCELLING
            ]
            for each in waiting:
                drafts += await ended(self._store, each, CANCELLED)
            if not drafts:
                if run is not None or key is None:
                    return [each.run for each in left]
                drafts = [Draft(CancelRequested())]  # that nothing was to be stopped holds, too, when it comes again
            try:
                # At the head that was seen: nobody has asked since, and a run that is ended here has said no more.
                appended = await self._store.append(session, drafts, once=once, head=info.head)
            except (HeadMoved, RunEnded) as exc:
                runs = [name for name in runs if name != exc.detail.get("run")]
                info = await self._store.info(session)
                continue
            if appended.repeated:
                return [event.run for event in appended.events if event.run and isinstance(event.fact, CancelRequested)]
            if waiting:
                self._runner.figures.ended.add("cancelled", "", count=len(waiting))
            return [each.run for each in left]

    async def resolve_permission(self, caller: Caller, id: str, granted: bool) -> bool:
        """Answer a permission request, and get the answer that holds: see ``Resolutions.permission``."""
        return await self._resolutions.permission(caller, id, granted)

    async def resolve_notification(self, caller: Caller, id: str, response: str, value: str | None = None) -> None:
        """Answer a notification, see ``Resolutions.notification``."""
        await self._resolutions.notification(caller, id, response, value)


def located(session: str, run: str, events: Sequence[Event]) -> Located | None:
    """A run as it lies among the events of its session (its deltas may be missing); None if there is no such run."""
    asked = next((asking for asking in askings(events) if asking.run == run), None)
    if asked is None:
        return None
    return Located(session, run, asked, asked.fact.agent or default_agent(events, "default"))


def _key_used(contents: Contents, caller: Caller, key: str | None) -> bool:
    return key is not None and (caller.subject, key) in contents.keys


def _asked(contents: Contents, message: str) -> list[Entry]:
    found = contents.asked.get(message)
    if found is None:
        raise NotFound(f"The session has no message {message[:200]!r} of a user.")
    return found
