"""``Copies``: sessions that begin with what was said in others, however much that is."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Sequence

import msgspec

from .blobs import Blobs
from .caller import Caller
from .contents import Catalogue, Entry, stretches
from .event import BlobRef, Draft, MessageCreated, SessionCreated
from .log import SessionInfo, Store, build
from .spending import Accounts

COPY_BYTES = 1024 * 1024
"""Bytes of messages that are copied in one go."""


class Copies:
    """Copies messages of one session into new ones.

    Args:
        store: open.
        contents: of its sessions.
        accounts: of those to whom sessions belong.
        blobs: of its sessions; a copy has its own.
    """

    def __init__(self, store: Store, contents: Catalogue, accounts: Accounts, blobs: Blobs) -> None:
        self._store = store
        self._blobs = blobs
        self._contents = contents
        self._accounts = accounts

    def is_small(self, entries: Sequence[Entry]) -> bool:
        """Whether the copy of some messages can be stored together with what is said after them."""
        return sum(entry.size for entry in entries) <= COPY_BYTES

    async def make(
        self, caller: Caller, source: SessionInfo, entries: Sequence[Entry], session: str, title: str | None
    ) -> None:
        """Begin a session of the caller's with copies of some messages, read and stored piece by piece."""
        begin = Draft(begin_copy(source, caller, title))
        pieces = stretches(entries, bytes=COPY_BYTES)
        known: dict[str, BlobRef] = {}

        async def read() -> AsyncIterator[Sequence[Draft]]:
            yield [begin]
            for some in pieces:
                yield await self.drafts(source.session, some, session, known)

        async with self._accounts.session(caller.subject):
            if len(pieces) > 1:
                await build(self._store, session, read())
            else:
                await self._store.append(session, [begin, *await self.drafts(source.session, entries, session)])

    async def drafts(
        self, source: str, entries: Sequence[Entry], session: str, known: dict[str, BlobRef] | None = None
    ) -> list[Draft]:
        """Copies of some messages, to be stored as what begins ``session``; ``known`` are its blobs so far."""
        known = {} if known is None else known
        copies = [
            MessageCreated(
                id=m.id,
                role=m.role,
                text=m.text,
                parts=m.parts or None,
                metadata=m.metadata or None,
                opaque=m.opaque or None,
                author=m.author or None,
            )
            for m in await self._contents.messages(source, entries)
        ]
        found = await self._blobs.take(copies, size=sum(entry.size for entry in entries), most=sys.maxsize)
        async with self._blobs.kept(session, found, known, begun=False) as copies:
            known |= {ref.hash: ref for copy in copies for ref in copy.blobs or ()}
            return [Draft(copy) for copy in copies]


def begin_copy(source: SessionInfo, caller: Caller, title: str | None) -> SessionCreated:
    """What begins a copy, which is the caller's."""
    return owned(msgspec.structs.replace(source.created, title=title, forked_from=source.session), caller)


def owned(begin: SessionCreated, caller: Caller) -> SessionCreated:
    """What begins a session, as the caller's."""
    return msgspec.structs.replace(begin, owner=caller.subject or None)
