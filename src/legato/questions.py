"""``Questions``: messages that are to be answered, stored with what begins their runs, or so that these wait.

A message whose run has a place is stored with the run's lease and its ``run.started``, so the agent is asked after one
commit.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import secrets
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from .admission import Admission, Seen
from .aside import Aside
from .caller import Caller
from .contents import Entry
from .errors import (
    Conflict,
    Draining,
    HeadMoved,
    KeyReused,
    LegatoError,
    NotFound,
    Overloaded,
    QueueFull,
    SessionExists,
    SessionFull,
    SessionNotFound,
    TooMany,
)
from .event import BlobRef, Draft, MessageCreated, Offset, RunWaiting, SessionCreated, SessionRewound
from .history import Asking, askings
from .json import LARGE, JsonObject
from .log import Appended, SessionInfo, Store
from .part import as_json
from .run import Runner
from .taken import Taken, bare


class Sent(msgspec.Struct, frozen=True):
    """What became of a message.

    Attributes:
        session, run, message: ids.
        offset: of its ``message.created``; a reader that starts just before it sees the whole turn.
        repeated: it had been sent before, under the same key; or the run was there already, see ``Sessions.retry``.
    """

    session: str
    run: str
    message: str
    offset: int
    repeated: bool


class Question(msgspec.Struct, frozen=True):
    """A message that is to be answered.

    Attributes:
        text: not blank.
        agent: who answers; None: the session's agent, or the default.
        metadata: JSON values for the agent.
        key: the same key with the same message attaches to the same run, however often it is sent.
        earlier: what was said before it, in order, to be stored with it; ids and runs are given here.
        size: of what it was read from as JSON, in bytes. If it is ``json.LARGE``, the metadata is known not to be too
            deep, and nobody else has it.
    """

    text: str
    agent: str | None = None
    metadata: JsonObject | None = None
    key: str | None = None
    earlier: Sequence[MessageCreated] = ()
    size: int = 0


class Destination(NamedTuple):
    """Where a question is to be stored: what begins its session, or what that looks like if it is there."""

    session: str
    begin: list[Draft]
    info: SessionInfo | None


class Questions:
    """Stores messages that are to be answered.

    Args:
        store: open.
        runner: drives what is stored.
        admission: to the store's sessions.
        aside: where what is large is worked on.
    """

    def __init__(self, store: Store, runner: Runner, admission: Admission, aside: Aside) -> None:
        self._store = store
        self._runner = runner
        self._admission = admission
        self._aside = aside
        self._accounts = runner.accounts
        self._contents = runner.contents

    async def ask(
        self,
        caller: Caller,
        session: str,
        question: Question,
        decide: Callable[[bool], Awaitable[Destination]],
    ) -> Sent:
        """Store a question where ``decide`` says, told whether what it would begin has turned out to exist."""
        self._admission.check_text(question.text)
        self._admission.check_agent(question.agent)
        metadata = question.metadata or None
        if metadata and question.size <= LARGE:
            metadata = as_json("metadata", metadata)
        said = MessageCreated(
            "",
            "user",
            question.text,
            None,
            question.agent or None,
            metadata,
            caller.subject or None,
            question.key,
            trace=self._runner.traced(),
        )
        try:
            return await self._ask_new(caller, session, question, said, decide)
        except (Draining, Overloaded, QueueFull, SessionFull, TooMany):
            # What came before, under the same key, is not refused, since nothing is to be done for it.
            before = await self._sent_before(caller, session, said, question.size)
            if before is None:
                raise
            return before

    async def _sent_before(self, caller: Caller, session: str, said: MessageCreated, size: int) -> Sent | None:
        """What came before under the key of this message, in its session or in the one that it would branch off."""
        for each in (session, new_session(caller, said.key)) if said.key is not None else ():
            with contextlib.suppress(SessionNotFound):
                contents = (await self._admission.look(caller, each, "send")).contents
                entry = contents.keys.get((caller.subject, said.key or ""))
                if entry is not None:
                    asking = await self._contents.asking(each, entry)
                    [said] = (await self._take([said], size)).facts
                    return _sent_again(each, asking, said)
        return None

    async def _ask_new(
        self,
        caller: Caller,
        session: str,
        question: Question,
        said: MessageCreated,
        decide: Callable[[bool], Awaitable[Destination]],
    ) -> Sent:
        self._admission.check_ready()
        await self._admission.admit(caller, "send", session)
        found = await self._take([*question.earlier, said], question.size)
        stamp = secrets.token_hex(6)
        exists = False
        mine: dict[str, dict[str, BlobRef]] = {}  # what has been put, by session, to be put once
        while True:
            session, before, info = await decide(exists)
            if info is not None:
                self._admission.check_queue(info)
                await self._admission.check_room(info)
            stem = f"{session}~h" if info is None else f"{session}~h{stamp}."
            known = mine.setdefault(session, {})
            if info is not None and found.blobs:
                known |= await self._contents.blobs(info)
            try:
                async with (
                    self._accounts.session(caller.subject if info is None else ""),
                    self._runner.blobs.kept(session, found, known, begun=info is not None) as (*said_before, last),
                ):
                    known |= {ref.hash: ref for each in (*said_before, last) for ref in each.blobs or ()}
                    fact = msgspec.structs.replace(last, id=f"{session}~{stamp}~u")
                    drafts = _numbered(said_before, stem, Draft(fact, f"{session}~{stamp}"))
                    *earlier, asked = await self._aside.settled(question.size, drafts)
                    appended = await self._append_question(
                        session,
                        [*before, *earlier],
                        asked,
                        party=caller.party,
                        idle=info is None or not info.open_runs,
                        agent=question.agent or _agent_of(before, info),
                        once=once_key("send", caller, question.key),
                        head=0 if info is None else info.head,
                    )
            except HeadMoved:
                continue
            except SessionExists:
                if question.key is None or exists:
                    raise
                exists = True  # the same request came before; if that was another one, its message will say so
                continue
            break
        stored = next(asking for asking in askings(appended.events) if asking.run is not None)
        if appended.repeated:
            return _sent_again(session, stored, found.facts[-1])
        return sent(session, stored.fact.id, stored, repeated=False)

    async def _take(self, facts: Sequence[MessageCreated], size: int) -> Taken[MessageCreated]:
        return await self._runner.blobs.take(facts, size=size, most=self._runner.limits.blob_bytes)

    async def ask_anew(self, caller: Caller, seen: Seen, asked: Entry, key: str | None = None) -> Sent:
        """Have a message answered once more; what was said after it is taken back. It stands under ``key`` then."""
        session, until = seen.info.session, seen.head
        self._admission.check_ready()
        await self._admission.admit(caller, "send", session)
        while True:
            # What others have stored since the first look comes after ``until``: it is not taken back, and it does not
            # matter that this message is no longer the last.
            known = (entry for entry in reversed(seen.contents.entries) if entry.offset <= until)
            last = next((entry for entry in known if entry.role == "user"), None)
            before = next(known, None)
            if last is None or last.id != asked.id:
                if any(entry.id == asked.id for entry in seen.contents.entries):
                    raise Conflict("Only the last message of a session can be answered anew.")
                raise NotFound("The message has been taken back.")
            self._admission.check_ready()
            await self._admission.check_room(seen.info)
            back = SessionRewound("" if before is None else before.id, until=until)
            idle, head, created = not seen.info.open_runs, seen.head, seen.info.created
            fact = (await self._contents.asking(session, asked)).fact
            if last.revised is not None:
                now = await self._contents.revision(session, last.revised)
                fact = msgspec.structs.replace(
                    fact, text=now.text, parts=now.parts, metadata=now.metadata, blobs=now.blobs
                )
            again = msgspec.structs.replace(
                fact,
                caller=caller.subject or None,
                author=None if fact.by == caller.subject else fact.by,
                key=key,
                retries=asked.run,
                trace=self._runner.traced(),
            )
            try:
                appended = await self._append_question(
                    session,
                    [Draft(back)],
                    Draft(again, f"{session}~{secrets.token_hex(6)}"),
                    party=caller.party,
                    idle=idle,
                    agent=again.agent or created.agent,
                    once=f"retry:{asked.run or asked.id}",
                    head=head,
                )
            except HeadMoved:
                seen = await self._admission.look(caller, session, "send")
                continue
            stored = next(each for each in askings(appended.events) if each.run is not None)
            return sent(session, asked.id, stored, repeated=appended.repeated)

    async def _append_question(
        self,
        session: str,
        before: list[Draft],
        question: Draft,
        *,
        party: str,
        idle: bool,
        agent: str | None,
        once: str | None,
        head: Offset | None,
    ) -> Appended:
        """Store a question; with the lease and the beginning of its run, if there is a place for it, and else as one
        that waits: from then on it does so until it has one.

        Raises:
            TooMany: too much of this party waits already.
        """
        run = question.run
        assert run is not None
        drafts = [*before, question]
        if idle:
            with self._runner.load.waited():
                begun = await self._runner.begin(session, drafts, run, party=party, agent=agent, once=once, head=head)
            if begun is not None:
                return begun
            drafts.append(Draft(RunWaiting(), run))
        places = self._runner.places
        try:
            places.check(party)
        except TooMany:
            await self._runner.backlog.recount()
            places.check(party)
        # Before it is stored, so that the bound holds however many come at once.
        places.queue(session, run, party, here=True, stored=False)
        refused = False
        try:
            with self._runner.load.waited():
                appended = await self._store.append(session, drafts, once=once, head=head)
        except LegatoError:
            refused = True
            raise
        finally:  # stored or not, as far as a cancelled caller knows
            if refused:
                places.unqueue(session, run)
            else:  # again: whoever has looked meanwhile for what waits has not found it
                places.queue(session, run, party, here=True)
            self._runner.wake(session)
        if appended.repeated:
            places.unqueue(session, run)
        return appended


def new_session(caller: Caller, key: str | None, prefix: str = "s_") -> str:
    """An id that nobody can guess; under a key always the same one, since the request may come again."""
    if key is None:
        return f"{prefix}{secrets.token_urlsafe(16)}"
    scope = f"{caller.subject} {key}" if caller.subject else key
    digest = hashlib.sha256(f"responses:{scope}".encode()).digest()[:16]
    return prefix + base64.urlsafe_b64encode(digest).decode().rstrip("=")


def session_of(id: str) -> str:
    """The session of a run, a message, a permission or a notification, as far as its id was drawn here."""
    return id.partition("~")[0]


def once_key(verb: str, caller: Caller, key: str | None) -> str | None:
    """Under which a store keeps what came with a caller's key. A key holds no blank, so nobody's are nobody else's."""
    return None if key is None else f"{verb}:{caller.subject} {key}" if caller.subject else f"{verb}:{key}"


def _numbered(earlier: Sequence[MessageCreated], stem: str, asked: Draft) -> Iterator[Draft]:
    """What was said before, each with an id, and what is asked."""
    for place, each in enumerate(earlier):
        yield Draft(msgspec.structs.replace(each, id=f"{stem}{place}"))
    yield asked


def _agent_of(drafts: Sequence[Draft], info: SessionInfo | None) -> str | None:
    if info is not None:
        return info.created.agent
    return next((draft.fact.agent for draft in drafts if isinstance(draft.fact, SessionCreated)), None)


def _sent_again(session: str, stored: Asking, said: MessageCreated) -> Sent:
    if msgspec.structs.replace(bare(stored.fact), id=said.id, trace=said.trace) != bare(said):
        raise KeyReused("This idempotency key came with another message before.", key=said.key)
    return sent(session, stored.fact.id, stored, repeated=True)


def sent(session: str, message: str, asked: Asking | Entry, *, repeated: bool) -> Sent:
    """What became of a message that stands where ``asked`` says."""
    assert asked.run is not None
    return Sent(session=session, run=asked.run, message=message, offset=asked.offset, repeated=repeated)
