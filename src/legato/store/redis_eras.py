"""Eras of a Redis store: from one loss that was possible (a server was started again, or replaced) to the next."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from typing import Any

from .redis_scripts import BEGIN, ENTER, WRITE
from .redis_server import RedisServer, sha


def writing(era: bytes, name: bytes) -> tuple[str, str]:
    """``WRITE`` for an era, see ``Eras.enter``; and as it is done when the server's memory is full, too."""
    text = f"{WRITE}-- era {era.decode()}.{name.decode()}\n"
    return text, text.replace("#!lua\n", "#!lua flags=allow-oom\n", 1)


class Eras:
    """In which era each bucket is.

    Args:
        server: where they stand.
        changed: called when the incarnation is another, with whether something is lost, and whether it is the first.

    Attributes:
        incarnation: the name of the present era; "" before the first is known.
    """

    def __init__(self, server: RedisServer, changed: Callable[[bool, bool], object]) -> None:
        self.incarnation = ""
        self._server, self._changed = server, changed
        self._era = self._highest = 0
        self._entered: dict[int, tuple[list[str], bytes]] = {}  # of each bucket the names of its scripts, and its era
        self._seen: dict[int, tuple[int, int]] = {}
        self._entering = asyncio.Lock()

    async def enter(self, bucket: int, *, had: tuple[int, int] | None = None) -> int:
        """Find out, or decide, in which era of the servers a bucket is; gives its number. If it is in that of ``had``
        still, and has been written to less often, that era has ended: so it has where it is in none any more.

        A *era* ends when a server may have lost something: when it has been started again, or another one has its
        place. Each write says in which era it believes to be, and is a script whose text has the name of that era:
        servers forget scripts when they end, and do not copy them to others, so a new one does not know what it is
        asked. Then an era begins, before anything is written. Each event has the era in which it was written, so who
        comes with a cursor from era 3 to an event of era 4 is told that what they had is gone (``RedisStore.holds``).
        """
        server = self._server
        async with self._entering:
            eras, own = server.key("era", "eras"), server.key(bucket, "era")
            while True:
                number = await server.do(eras, "HGET", eras, "n")
                here, count = await server.do(own, "HMGET", own, "n", "count")
                # In another era, somebody has found out before: it is not to end for the same once more.
                over = had is not None and (not here or (int(here) == had[0] and int(count or 0) < had[1]))
                for era in filter(None, dict.fromkeys([] if over else [here, number])):
                    name = await server.do(eras, "HGET", eras, era)
                    if name and all(await server.do(own, "SCRIPT", "EXISTS", *map(sha, writing(era, name)))):
                        break
                else:
                    era = b"%d" % (max(int(number or 0), int(here or 0), self._highest) + 1)
                    name = secrets.token_urlsafe(6).encode()
                    if not await server.run(BEGIN, [eras], number or "0", era, name):
                        continue
                    for node in await server.nodes():
                        for script in writing(era, name):
                            await server.do(node, "SCRIPT", "LOAD", script)
                if here == era or await server.run(ENTER, [own], here or "", era):
                    break
            self._entered[bucket] = [*map(sha, writing(era, name))], era
        self._highest = max(self._highest, int(era))
        await self._learn(bucket, int(era), int(count or 0), name)
        return int(era)

    async def of(self, bucket: int) -> int:
        """The number of a bucket's era, as far as it is known."""
        known = self._entered.get(bucket)
        return await self.enter(bucket) if known is None else int(known[1])

    def is_in(self, bucket: int, era: int) -> bool:
        """Whether this is still a bucket's era, as far as it is known."""
        known = self._entered.get(bucket)
        return known is not None and int(known[1]) == era

    def scripts(self, bucket: int) -> tuple[list[str], bytes] | None:
        """What a bucket is written with: the names of the scripts, see ``writing``, and the era."""
        return self._entered.get(bucket)

    def leave(self, bucket: int) -> None:
        """The server says that it is in another one."""
        self._entered.pop(bucket, None)

    async def heard(self, bucket: int, count: int) -> None:
        """It has been written to so often, in the era that is known."""
        if bucket in self._entered:
            await self._learn(bucket, int(self._entered[bucket][1]), count)

    async def _learn(self, bucket: int, era: int, count: int, name: bytes | None = None) -> None:
        """A bucket is in this era, and has been written to so often. If it is a new one, whoever follows a log comes
        again to learn its name; and if there were fewer writes at its beginning than were known of, some are lost."""
        known = self._seen.get(bucket)
        if known is not None and known[0] == era:
            self._seen[bucket] = era, max(count, known[1])
            return
        server, own, eras = self._server, self._server.key(bucket, "era"), self._server.key("era", "eras")
        rows = await server.do(own, "HGETALL", own)
        told = {rows[n].decode(): int(rows[n + 1]) for n in range(0, len(rows), 2)}
        name = name or await server.do(eras, "HGET", eras, era)
        known = self._seen.get(bucket)
        if told.get("n", 0) != era or (known is not None and known[0] == era):
            return  # that was some time ago; or it has been learnt meanwhile
        since = range(1 if known is None else known[0] + 1, era + 1)  # this bucket has not been in each of them
        begun = [told[place] for number in since if (place := f"s{number}") in told]
        lost = known is not None and (era < known[0] or min(begun, default=0) < known[1])
        self._seen[bucket] = era, told.get("count", 0)
        self._highest = max(self._highest, era)
        before = self.incarnation
        if era > self._era or lost:
            self._era, self.incarnation = era, f"{era}.{(name or b'?').decode()}"
        if before != self.incarnation:
            self._changed(lost, not before)

    def known(self, bucket: int) -> tuple[int, int] | None:
        """Of a bucket its era, and how often it had been written to, as far as has been heard."""
        return self._seen.get(bucket)

    async def meet(self, bucket: int, known: tuple[int, int] | None, era: Any, count: Any) -> None:
        """A bucket is so far, of which ``known`` was known when that was asked."""
        if known is not None and (era is None or (int(era) == known[0] and int(count) < known[1])):
            await self.enter(bucket, had=known)  # before anybody has written to what is left
        elif era is not None:
            await self._learn(bucket, int(era), int(count))

    async def look_back(self) -> None:
        """See whether there is still as much as there was."""
        for bucket, known in list(self._seen.items()):
            key = self._server.key(bucket, "era")
            await self.meet(bucket, known, *await self._server.do(key, "HMGET", key, "n", "count"))
