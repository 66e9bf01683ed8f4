"""``Edits``: what becomes of a conversation without anybody being asked: messages are added, or said to be otherwise,
and what dialects keep with it changes."""

from __future__ import annotations

import secrets
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from .admission import Admission, Seen
from .aside import Aside
from .caller import Caller
from .contents import Entry
from .copies import owned
from .errors import Conflict, HeadMoved, KeyReused, NotFound
from .event import BlobRef, Draft, Event, MessageCreated, MessageRevised, SessionCreated, SessionUpdated
from .history import told
from .json import JsonObject
from .log import Store
from .part import Message
from .questions import once_key
from .run import Runner
from .taken import bare


class Edits:
    """The verbs of ``Sessions`` for that, under the same rules.

    Args:
        store: open.
        runner: whose limits count.
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
        self._blobs = runner.blobs

    async def metadata(self, caller: Caller, session: str) -> JsonObject:
        """What dialects keep with a session, as it is now."""
        return await self._metadata(await self._admission.look(caller, session, "info"))

    async def _metadata(self, seen: Seen) -> JsonObject:
        changed: JsonObject = {}
        if seen.contents.updated is not None:
            fact = (await self._contents.event(seen.info.session, seen.contents.updated)).fact
            assert isinstance(fact, SessionUpdated)
            changed = fact.metadata
        return {**(seen.info.created.metadata or {}), **changed}

    async def update(self, caller: Caller, session: str, change: JsonObject) -> JsonObject:
        """Change some fields of a session's metadata, and give back all.

        Raises:
            InvalidInput, TooLarge: nothing was stored.
        """
        while True:
            seen = await self._admission.look(caller, session, "edit")
            metadata = {**await self._metadata(seen), **change}
            begun = seen.info.created.metadata or {}
            different = {name: value for name, value in metadata.items() if begun.get(name) != value}
            try:
                await self._store.append(session, [Draft(SessionUpdated(different))], head=seen.head)
            except HeadMoved:
                continue
            return metadata

    async def add(
        self,
        caller: Caller,
        session: str,
        said: Sequence[MessageCreated],
        *,
        begin: SessionCreated | None = None,
        key: str | None = None,
        size: int = 0,
    ) -> list[Message]:
        """Add messages to a session that are not to be answered, after all that there is.

        Args:
            caller: who adds.
            session: its id.
            said: the messages; ids are given here.
            begin: what begins the session, if it does not exist yet.
            key: the same key with the same messages adds them once.
            size: see ``Question``.

        Raises:
            InvalidInput, TooLarge, SessionNotFound, SessionExists, KeyReused: nothing was stored.
        """
        stamp = secrets.token_hex(6)
        known: Mapping[str, BlobRef] = {}
        drafts: list[Draft] = []
        if begin is not None:
            self._admission.check_begin(caller)
            drafts.append(Draft(owned(begin, caller)))
        else:
            info = await self._admission.info(caller, session, "edit")
            await self._admission.check_room(info)
        if not drafts and not said:
            return []
        found = await self._blobs.take(said, size=size, most=self._runner.limits.blob_bytes)
        await self._admission.admit(caller, "edit" if begin is None else "create", session)
        if found.blobs and begin is None:
            known = await self._contents.blobs(info)
        async with (
            self._accounts.session(caller.subject if begin is not None else ""),
            self._blobs.kept(session, found, known, begun=begin is None) as facts,
        ):
            drafts += [
                Draft(msgspec.structs.replace(each, id=f"{session}~h{stamp}.{n}")) for n, each in enumerate(facts)
            ]
            drafts = [*await self._aside.settled(size, iter(drafts))]
            appended = await self._store.append(session, drafts, once=once_key("add", caller, key))
        stored = [event for event in appended.events if isinstance(event.fact, MessageCreated)]
        if appended.repeated and _unnamed(stored) != _unnamed(drafts):
            raise KeyReused("This idempotency key came with other messages before.", key=key)
        return [told(await self._blobs.whole(session, event)) for event in stored]

    async def versions(
        self, caller: Caller, session: str, entries: Sequence[Entry]
    ) -> list[tuple[Message, MessageRevised | None]]:
        """What some messages of a session said first, each with its last revision."""
        await self._admission.info(caller, session, "history")
        first = [msgspec.structs.replace(entry, revised=None) for entry in entries]
        return [
            (message, None if entry.revised is None else await self._contents.revision(session, entry.revised))
            for entry, message in zip(entries, await self._contents.messages(session, first), strict=True)
        ]

    async def revise(
        self,
        caller: Caller,
        session: str,
        message: str,
        change: Callable[[Message, MessageRevised | None], MessageRevised],
    ) -> None:
        """Have a message say something else, or nothing.

        Args:
            caller: who asks.
            session: its id.
            message: its id.
            change: from what it said first, and its last revision, to the next one; nothing is stored if it raises.

        Raises:
            NotFound: there is no such message in the history. Conflict: it is being answered.
        """
        while True:
            seen = await self._admission.look(caller, session, "edit")
            entry = next((entry for entry in seen.contents.entries if entry.id == message), None)
            if entry is None:
                raise NotFound(f"The session has no message {message[:200]!r}.")
            if entry.run in seen.info.runs:
                raise Conflict("The message is being answered; cancel its run first.", run=entry.run)
            [(first, last)] = await self.versions(caller, session, [entry])
            found = await self._blobs.take([change(first, last)], size=entry.size, most=sys.maxsize)
            try:
                async with self._blobs.kept(session, found, seen.contents.blobs) as [fact]:
                    await self._store.append(session, [Draft(fact)], head=seen.head)
            except HeadMoved:
                continue
            return


def _unnamed(said: Iterable[Draft | Event]) -> list[MessageCreated]:
    """What of it is messages, without their ids."""
    return [msgspec.structs.replace(bare(each.fact), id="") for each in said if isinstance(each.fact, MessageCreated)]
