"""What a process of a shared store knows of the others: their rings, and a tail cache that they write past.

The tail cache holds what this process has stored and what others have told; that there is nothing more it says only
to readers who are rung when there is. The one rule that must hold: a ring that is heard makes the tail complete, or
lets go of it, before it rings here. It knows no database: the store carries the messages.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import msgspec

from ..doorbell import Bell, Doorbell
from ..errors import LegatoError
from ..event import Event, Offset
from .tail import BlockCache, TailCache

logger = logging.getLogger("legato")

HOUR = 3_600.0
MESSAGE_BYTES = 7_000
"""Of one message; PostgreSQL takes less than 8,000. A name that is longer is not told, but that there was something."""

T = TypeVar("T")
_json = msgspec.json.Encoder()
_message = msgspec.json.Decoder(tuple[str, bool, list[tuple[str, bool]]])


class Neighbours:
    """The other processes.

    Args:
        doorbell: of the store; rings for what others have stored, too.
        fill: gives, for sessions and offsets, the heads of those that exist and what follows the offsets in them, in
            order and as far as is read at once.
        events, bytes: bounds of the tail cache. What readers who are behind share may take half as many bytes again.

    Attributes:
        me: the name of this process in messages.
        tail, blocks: the newest events, and what readers who are behind share.
        hears: the others' messages come here.
        over: nothing more will come from here.
    """

    def __init__(
        self,
        doorbell: Doorbell,
        fill: Callable[[Sequence[str], Sequence[Offset]], Awaitable[Mapping[str, tuple[Offset, list[Event]]]]],
        *,
        events: int,
        bytes: int,
    ) -> None:
        self.me = secrets.token_urlsafe(9)
        self.hears = False
        self._call = Bell()
        self._doorbell = doorbell
        self._fill = fill
        self._bounds = events, bytes
        self._begin_anew()
        self._rings: dict[str, bool] = {}
        self.over = False
        self._work = False
        self._seen: dict[str, Offset] = {}

    def _begin_anew(self) -> None:
        events, bytes = self._bounds
        self.tail, self.blocks = TailCache(events=events, bytes=bytes), BlockCache(bytes=bytes // 2)

    # What is stored here ----------------------------------------------------------------------------------------------

    def stored(self, session: str, events: Sequence[Event], *, outside: bool) -> None:
        """These events of a session have been committed: ring here, and tell the others."""
        self.tail.put(session, events)
        self._doorbell.ring(session, outside=outside)
        self._rings[session] = outside or self._rings.get(session, False)
        self._call.ring()

    def ring_work(self) -> None:
        """A run may be free."""
        self._doorbell.ring_work()
        self._work = True
        self._call.ring()

    async def messages(self) -> list[bytes] | None:
        """Wait for what is to be told to the others, once; None: there is nothing, and nothing more will come."""
        while not self._rings and not self._work:
            if self.over:
                self._call.close()
                return None
            self._call.clear()
            await self._call.wait(HOUR)
        rings, work, self._rings, self._work = self._rings, self._work, {}, False
        found, names, size = [], list[tuple[str, bool]](), 0
        for name, outside in rings.items():
            length = len(_json.encode(name)) + 10
            if length > MESSAGE_BYTES:
                name, length = "", 10
            if size + length > MESSAGE_BYTES:
                found.append(_json.encode((self.me, work, names)))
                names, size = [], 0
            names.append((name, outside))
            size += length
        return [*found, _json.encode((self.me, work, names))]

    def end(self) -> None:
        """Nothing more will come."""
        self.over = True
        self._call.ring()

    # What others have stored ------------------------------------------------------------------------------------------

    async def heard(self, messages: Iterable[bytes | str]) -> None:
        """Ring for what others tell."""
        rings: dict[str, bool] = {}
        work = False
        for message in messages:
            try:
                who, free, names = _message.decode(message)
            except msgspec.MsgspecError:  # of another version, or another program
                who, free, names = "", True, [("", True)]
            if who != self.me:
                work = work or free
                for name, outside in names:
                    rings[name] = outside or rings.get(name, False)
        if "" in rings:
            rings = dict.fromkeys(self._doorbell.sessions(), True)
        await self.ring(rings)
        if work:
            self._doorbell.ring_work()

    async def ring(self, rings: Mapping[str, bool]) -> None:
        """Ring for these sessions, for whoever listens to what comes from outside of runs, too, or not."""
        tail = self.tail
        held = [name for name in rings if tail.head(name) is not None and self._doorbell.hears(name)]
        for name in rings.keys() - held:
            tail.forget(name)
        tail.evictions += 1  # what is being read meanwhile may lack it
        try:
            found = await self._fill(held, [tail.head(name) or 0 for name in held]) if held else {}
        except LegatoError as exc:
            logger.debug("what others have stored cannot be read: %s", exc)
            found = {}
        for name in held:
            head, events = found.get(name, (-1, []))
            now = tail.head(name)
            if now is None or now >= head >= 0:
                continue  # let go of, or told here meanwhile
            if events and events[-1].offset == head and (events[0].offset <= now + 1 or len(events) == 1):
                tail.put(name, events)
            else:
                tail.forget(name)
        for name, outside in rings.items():
            self._doorbell.ring(name, outside=outside)

    async def look(self, heads: Callable[[Sequence[str]], Awaitable[Mapping[str, Offset]]]) -> None:
        """Ring for what has grown unheard, of all that is listened to."""
        names = list(self._doorbell.sessions())
        found = await heads(names) if names else {}
        before, self._seen = self._seen, dict(found)
        grown = [name for name, head in found.items() if (self.tail.head(name) or before.get(name)) != head]
        await self.ring(dict.fromkeys(grown, True))

    def forget(self) -> None:
        """Something may have been missed, or be gone: hold nothing, and let everybody look."""
        self._begin_anew()
        for session in self._doorbell.sessions():
            self._doorbell.ring(session)
        self._doorbell.ring_work()


class Together(Generic[T]):
    """One question for all who ask in one round of the event loop.

    Args:
        ask: gives what is known under these names.
    """

    def __init__(self, ask: Callable[[Sequence[str]], Awaitable[Mapping[str, T]]]) -> None:
        self._ask = ask
        self._asked: dict[str, asyncio.Future[T | None]] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def of(self, name: str) -> T | None:
        """What is known under a name, not before it was asked; None if it is nothing."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._begin)
        future = self._asked.setdefault(name, loop.create_future())
        return await asyncio.shield(future)

    def _begin(self) -> None:
        asked, self._asked = self._asked, {}
        task = asyncio.create_task(self._answer(asked))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, asked: Mapping[str, asyncio.Future[T | None]]) -> None:
        try:
            found = await self._ask(list(asked))
        except Exception as exc:
            for future in asked.values():
                future.set_exception(exc)
                future.exception()  # nobody has to wait for it any more
        else:
            for name, future in asked.items():
                future.set_result(found.get(name))
