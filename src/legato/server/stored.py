"""Responses as they lie in the store: found by their ids, folded, awaited, deleted.

A response is a run, and its id begins with its session's, so any node finds it without an index. Deleting one says in
the log that its run is withdrawn; the conversation that it was part of keeps it. Only the last one takes the log along.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ..dialect.responses import Fold, parse_id, response_id, settings
from ..dialect.responses_api import ResponseNotFound
from ..errors import Draining, HeadMoved, SessionNotFound
from ..event import TERMINAL, Draft, Event
from ..log import Log, Store, Subscription
from .stream import Streams

WAIT_HEARTBEAT = 2.0
"""Seconds after which a request that waits for its answer looks whether the server is about to stop."""


class Found(msgspec.Struct, frozen=True):
    """A run in the log.

    Attributes:
        message: its ``message.created``.
        agent: who answers, as far as the log says.
    """

    session: str
    run: str
    message: Event
    agent: str

    @property
    def before(self) -> int:
        """The offset after which the run's events begin."""
        return self.message.offset - 1

    def fold(self) -> Fold:
        """A new fold for it."""
        return Fold(self.session, self.run, agent=self.agent)

    def queued(self) -> dict[str, Any]:
        """The response as it was when it was asked for."""
        fold = self.fold()
        fold.feed(self.message)
        return fold.response()


class StoredResponses:
    """The responses of an application.

    Args:
        store, streams: of the application.
    """

    def __init__(self, store: Store, streams: Streams) -> None:
        self._store = store
        self._streams = streams

    async def find(self, id: str) -> Found:
        """The run that is response ``id``.

        Raises:
            ResponseNotFound: there is none, it was not to be kept, or it has been deleted.
        """
        place = parse_id(id)
        found = await self.locate(*place) if place else None
        if found is None:
            raise ResponseNotFound(id)
        given = settings(found.message.data.get("metadata", {}))
        if given.store is False and not given.background:
            raise ResponseNotFound(id)
        return found

    async def locate(self, session: str, run: str) -> Found | None:
        """The run, unless it has been withdrawn; also if it was not to be kept."""
        agent, found = "default", None
        async for event in Log(self._store, session).all(deltas=False):
            if event.type == "session.created":
                agent = event.data.get("agent") or agent
            elif event.type == "message.created" and event.run == run:
                found = Found(session=session, run=run, message=event, agent=event.data.get("agent") or agent)
            elif event.type == "session.run_withdrawn" and event.data["run"] == run:
                return None
        return found

    async def folded(self, found: Found) -> Fold:
        """The response as it is now.

        Raises:
            ResponseNotFound: it was deleted meanwhile.
        """
        fold = found.fold()
        async for event in Log(self._store, found.session).all(found.before):
            fold.feed(event)
            if fold.ended:
                break
        if not fold.sequence:
            raise ResponseNotFound(response_id(found.run))
        return fold

    async def until_ended(self, found: Found) -> None:
        """Wait until the run has ended.

        Raises:
            ResponseNotFound: its session was deleted meanwhile.
            Draining: the server is about to stop.
        """
        with Subscription(
            self._store, found.session, found.before, heartbeat=WAIT_HEARTBEAT, deltas=False
        ) as subscription:
            while True:
                events = await subscription.next()
                if any(event.run == found.run and event.type in TERMINAL for event in events):
                    return
                if any(event.type == "session.deleted" for event in events):
                    raise ResponseNotFound(response_id(found.run))
                if not events and self._streams.draining:
                    raise Draining("The server is shutting down; the answer is kept.")

    async def delete(self, found: Found) -> None:
        """Withdraw the run, and delete the log if no run is left in it that has not been withdrawn.

        Raises:
            ResponseNotFound: it was deleted meanwhile.
        """
        withdrawn = Draft(type="session.run_withdrawn", data={"run": found.run})
        try:
            appended = await self._store.append(found.session, [withdrawn], once=f"withdraw:{found.run}")
            if appended.repeated:
                raise ResponseNotFound(response_id(found.run))
        except SessionNotFound:
            raise ResponseNotFound(response_id(found.run)) from None
        while not await self._settled(found.session):
            pass  # the log has grown meanwhile; whatever came has to be looked at

    async def _settled(self, session: str) -> bool:
        """Delete the log unless a run is left; False if it has grown since it was read."""
        try:
            head = (await self._store.info(session)).head
            runs: set[str | None] = set()
            async for event in Log(self._store, session).all(until=head, deltas=False):
                if event.type == "message.created" and event.run is not None:
                    runs.add(event.run)
                elif event.type == "session.run_withdrawn":
                    runs.discard(event.data["run"])
            if not runs:
                await self._store.append(session, [Draft(type="session.deleted", data={})], head=head)
        except HeadMoved:
            return False
        except SessionNotFound:
            pass  # somebody else has deleted it
        return True
