"""The reading side of a Redis store: pages of logs, what is kept of them in memory, and what other processes tell.

A page is asked for each time, as only the server knows what other processes have acknowledged. What followers at the
head are given without asking is in the tail cache: that there is no more it says only while others' messages are heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

import msgspec

from ..check import is_text
from ..doorbell import Doorbell
from ..errors import StoreCorrupt, StoreError
from ..event import Event, Offset, read_stored
from ..log import MICRO, READ_LIMIT
from .redis_eras import Eras
from .redis_packs import unpack
from .redis_plan import Record, is_deleted, offset_of
from .redis_scripts import READ
from .redis_server import RedisServer
from .tail import BlockCache, TailCache

logger = logging.getLogger("legato")

PAGE_BYTES = 4 * 1024 * 1024
"""A page of events or of sessions ends when it holds so much, whatever its limit."""
POLL_SECONDS, DEAF_SECONDS = 5.0, 0.5
"""Between two looks at the sessions that somebody listens to: a message may be lost, or there may be none for now."""
SILENCE_SECONDS = 5.0
"""After which the connection that listens is asked whether it is there; twice in vain, and it is made anew."""
MAX_OFFSET, MAX_LIMIT = 2**53, 10**9
_said = msgspec.msgpack.Decoder(tuple[str, list[tuple[str, Offset, bool]], bool]).decode


class RedisReader:
    """Reads, and hears.

    Args:
        server: where it stands.
        eras: are told how far each bucket is found to be.
        doorbell: of the store; rings for what others have stored, too.
        me: the name of this process in messages.
        version: gives the version at which this process knew a session last.
        events, bytes: bounds of the tail cache. What readers who are behind share may take half as many bytes again.

    Attributes:
        tail, blocks: the newest events, and what readers who are behind share.
        hears: the others' messages come here.
        look: set, when what is listened to is to be looked at.
    """

    def __init__(
        self,
        server: RedisServer,
        eras: Eras,
        doorbell: Doorbell,
        me: str,
        version: Callable[[str], bytes | None],
        *,
        events: int,
        bytes: int,
    ) -> None:
        self.hears = False
        self.look = asyncio.Event()
        self._server, self._eras, self._doorbell, self._me, self._version = server, eras, doorbell, me, version
        self._bounds = {"events": events, "bytes": bytes}
        self.begin_anew()
        self._shared: dict[tuple[str, Offset], asyncio.Event] = {}  # blocks that are being read
        self._reading: dict[str, int] = {}  # reads under way
        self._missed: dict[str, Offset] = {}  # how far the sessions of those have grown meanwhile
        self._behind: dict[str, tuple[Offset, bool]] = {}  # what has grown elsewhere, and is to be read
        self._fetch = asyncio.Event()

    def begin_anew(self) -> None:
        """Hold nothing of what logs were."""
        self.tail, self.blocks = TailCache(**self._bounds), BlockCache(bytes=self._bounds["bytes"] // 2)

    async def read(self, session: str, after: Offset, limit: int = READ_LIMIT, deltas: bool = True) -> list[Event]:
        """See ``RedisStore.read``."""
        if limit <= 0 or after >= MAX_OFFSET or not is_text(session):
            return []
        after, blocks = max(after, 0), self.blocks
        if not deltas or limit < READ_LIMIT:
            return await self._read(session, after, limit, deltas)
        start = after - after % READ_LIMIT
        if (reading := self._shared.get((session, start))) is not None:
            await reading.wait()  # after a restart, all readers of a session come at once
        if (events := blocks.read(session, after)) and await self._is_there(session) and blocks is self.blocks:
            return events
        floor = self.tail.floor(session)
        if floor is None or floor >= start + READ_LIMIT:
            limit = start + READ_LIMIT - after
        if after != start or (session, start) in self._shared:
            return await self._read(session, after, limit, deltas)
        self._shared[session, start] = reading = asyncio.Event()
        forgotten = blocks.forgotten
        try:
            events = await self._read(session, after, limit, deltas)
            if len(events) == READ_LIMIT:
                blocks.put(session, start, events, forgotten)
        finally:
            del self._shared[session, start]
            reading.set()
        return events

    async def _is_there(self, session: str) -> bool:
        """Whether what was read of a session is still what it has; if not, it is forgotten."""
        bucket = self._server.bucket(session)
        known, (era, state) = self._eras.known(bucket), self._server.keys(session, "era", "state")
        place, head = await asyncio.gather(
            self._server.do(era, "HMGET", era, "n", "count"), self._server.do(state, "HGET", state, "h")
        )
        await self._eras.meet(bucket, known, *place)
        if head is not None and not is_deleted(head):
            return True
        self.blocks.forget(session)
        return False

    async def _read(self, session: str, after: Offset, limit: int, deltas: bool) -> list[Event]:
        evictions, tail = self.tail.evictions, self.tail
        self._reading[session] = self._reading.get(session, 0) + 1
        try:
            records, whole = await self.find(session, after, limit, deltas=deltas)
            missed = self._missed.get(session, 0)
        finally:
            self._reading[session] -= 1
            if not self._reading[session]:
                del self._reading[session]
                self._missed.pop(session, None)
        events: list[Event] = []
        room, last = PAGE_BYTES, after
        for offset, at, type_, run, json, _ in records:
            if deltas and offset != last + 1 and type_ != "session.deleted":
                break
            fact, json = read_stored(session, offset, type_, json)
            events.append(Event(fact, offset, at / MICRO, run, json))
            last, room = offset, room - len(json)
            if room <= 0 or len(events) == limit:
                break
        if records and not events:
            raise StoreCorrupt(f"Events after offset {after} are gone: {self._server.shown}.")
        if whole and deltas and self.hears and len(events) == len(records) and tail is self.tail:
            tail.seed(session, after, events, evictions)
            if (tail.head(session) or 0) < missed:
                self._fall_behind(session, missed, False)
        return events

    def peek(self, session: str, after: Offset, limit: int, deltas: bool) -> list[Event] | None:
        """See ``RedisStore.peek``."""
        if not self.hears or session in self._behind:
            return None
        return self.tail.read(session, after, limit, deltas=deltas)

    async def find(self, session: str, after: Offset, limit: int, *, deltas: bool) -> tuple[list[Record], bool]:
        """What stands after an offset, perhaps with gaps in the end, and whether that is all."""
        keys = self._server.keys(session, "era", "whole", "deltas", "packs")
        asked = after + 1, min(limit, MAX_LIMIT), PAGE_BYTES, int(deltas)
        bucket = self._server.bucket(session)
        known = self._eras.known(bucket)
        place, whole, *streams = await self._server.run(READ, keys, *asked)
        await self._eras.meet(bucket, known, *place)
        found = [record for stream in streams for entry in stream for record in unpack(entry) if record[0] > after]
        found.sort(key=offset_of)
        return found, bool(whole)

    async def between(self, session: str, first: Offset, last: Offset) -> list[Event]:
        """The events from one offset to another."""
        events: list[Event] = []
        while first <= last and (page := await self.read(session, first - 1)):
            events += [event for event in page if event.offset <= last]
            first = page[-1].offset + 1
        return events

    # Others' bells ----------------------------------------------------------------------------------------------------

    async def listen(self) -> None:
        """Hear from other processes what has grown."""
        deaf = False
        while True:
            try:
                async with self._server.listen() as pubsub:
                    asked = False
                    while True:
                        message = await pubsub.get_message(timeout=SILENCE_SECONDS)
                        if message is None and asked:
                            raise TimeoutError("no answer to a ping")
                        asked = message is None
                        if message is None:
                            await pubsub.ping()
                        elif message["type"] in ("subscribe", "ssubscribe"):
                            self.tail = TailCache(**self._bounds)
                            self.hears = True
                            self.look.set()
                            if deaf:
                                await self._eras.look_back()
                                self._doorbell.ring_work()
                        elif message["type"] in ("message", "smessage"):
                            self.hear(message["data"])
                        elif message["type"] == "sunsubscribe":
                            raise ConnectionError("the channel has moved to another node of the cluster")
            except Exception as exc:
                if self.hears or not deaf:
                    logger.warning("%s: others' writes are not heard of for now: %s", self._server.shown, exc)
            self.hears, deaf = False, True
            await asyncio.sleep(DEAF_SECONDS / 2)

    def hear(self, data: bytes) -> None:
        """A message has come. One that cannot be read is of another version, or another program: all is looked at."""
        try:
            writer, grown, work = _said(data)
        except msgspec.MsgspecError:
            self.tail = TailCache(**self._bounds)
            self.look.set()
            self._doorbell.ring_work()
            return
        if writer == self._me:
            return
        for session, head, outside in grown:
            if session in self._reading:
                self._missed[session] = max(head, self._missed.get(session, 0))
            tail = self.tail.head(session)
            if tail is not None and head > tail:
                if self._doorbell.listening(session):
                    self._fall_behind(session, head, outside)
                    continue
                self.tail.forget(session)
            self._doorbell.ring(session, outside=outside)
        if work:
            self._doorbell.ring_work()

    def _fall_behind(self, session: str, head: Offset, outside: bool) -> None:
        """What this session has up to ``head`` is to be read, and then rung for."""
        before = self._behind.get(session, (0, False))
        self._behind[session] = max(head, before[0]), outside or before[1]
        self._fetch.set()

    async def catch_up(self) -> None:
        """Read what has grown elsewhere, once for all who follow it here, and then ring."""
        while True:
            await self._fetch.wait()
            self._fetch.clear()
            await asyncio.gather(*(self._follow(session) for session in list(self._behind)))

    async def _follow(self, session: str) -> None:
        tail = self.tail
        after = tail.head(session)
        try:
            events = [] if after is None else await self.read(session, after)
        except Exception:  # whatever it is: whoever follows will be told, and others are read on
            events = []
        head, outside = self._behind.pop(session)
        if tail is self.tail and after is not None and tail.head(session) == after:
            if events:
                tail.put(session, events)
            if (tail.head(session) or 0) < head:
                tail.forget(session)
        self._doorbell.ring(session, outside=outside)

    async def poll(self) -> None:
        """Look at what is listened to: a message may be lost, and while nothing is heard this is all there is."""
        seen: dict[str, Any] = {}
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(POLL_SECONDS if self.hears else DEAF_SECONDS):
                    await self.look.wait()
            self.look.clear()
            before, seen = seen, {}
            sessions = [session for session in self._doorbell.sessions() if is_text(session)]
            for start in range(0, len(sessions), READ_LIMIT):
                some = sessions[start : start + READ_LIMIT]
                keys = [self._server.keys(session, "state")[0] for session in some]
                try:
                    found = await asyncio.gather(*(self._server.do(key, "HGET", key, "v") for key in keys))
                except StoreError:
                    break
                for session, version in zip(some, found, strict=True):
                    seen[session] = version
                    known = self._version(session)
                    if version != known and (session not in before or before[session] != version):
                        self.tail.forget(session)
                        self._doorbell.ring(session)
