"""The tally: what the nodes of one store count together, so that a bound of an owner holds over all of them.

Each node counts for itself, and refuses at once what would pass a bound by its own count. Twice a second it tells the
store what it counts, and is told what the others do; so a caller who spreads what they ask for over many nodes can have
what a second of it brings beyond the bound, and no more. What a node told is forgotten when it is heard of no more.

Only what is named by a subject is told: an address is somebody's, and is written nowhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping

import msgspec

from .errors import LegatoError

logger = logging.getLogger("legato")

EVERY = 0.5
"""Seconds between two times that a node tells what it counts."""
TTL = 5.0
"""Seconds for which that counts, if it is heard of no more."""
NAMES = 10_000
"""Counts that a node tells; those that are largest, if there are more."""

_counts = msgspec.json.Decoder(dict[str, int])

SUBJECT = "subject "
"""How a party is named that is a subject, see ``Caller.party``; others are told to nobody."""

Told = Callable[[str, Mapping[str, int], float], Awaitable[Mapping[str, int]]]


def as_text(counts: Mapping[str, int]) -> str:
    """Counts as a store may keep them."""
    return msgspec.json.encode(counts).decode()


def added(told: Iterable[str | bytes]) -> dict[str, int]:
    """What several nodes count, added up."""
    sums: Counter[str] = Counter()
    for text in told:
        sums.update(_counts.decode(text))
    return dict(sums)


def named(what: str, counts: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    """What is counted by party, as far as others may know whose it is, by the names that it has in a tally."""
    return ((f"{what} {party}", count) for party, count in counts.items() if party.startswith(SUBJECT))


class NodeTally:
    """See the module's head. On a store that no other process can use, the others count nothing.

    Args:
        store: may have ``tally``, see ``Store``.
        node: a name that no other node has.

    Attributes:
        sources: what gives counts of this node, by name; names begin with what is counted.
        watchers: are told what the others counted before, and what they do now.
    """

    def __init__(self, store: object, node: str) -> None:
        self.sources: list[Callable[[], Iterable[tuple[str, int]]]] = []
        self.watchers: list[Callable[[Mapping[str, int], Mapping[str, int]], object]] = []
        self._told: Told | None = getattr(store, "tally", None)
        self._node = node
        self._others: Mapping[str, int] | None = None
        self._task: asyncio.Task[None] | None = None

    def elsewhere(self, name: str) -> int:
        """What all other nodes count under this name, as of a second ago."""
        return 0 if self._others is None else self._others.get(name, 0)

    async def tell(self) -> None:
        """Tell what this node counts, and be told what the others do.

        Raises:
            LegatoError: the store cannot be asked; what was told before stays.
        """
        if self._told is not None:
            counts = {name: count for source in self.sources for name, count in source() if count}
            if len(counts) > NAMES:
                counts = dict(sorted(counts.items(), key=lambda each: -each[1])[:NAMES])
            before, self._others = self._others, await self._told(self._node, counts, TTL)
            if before is not None:
                for watcher in self.watchers:
                    watcher(before, self._others)

    def start(self) -> None:
        """Do so twice a second, until ``stop``."""
        if self._told is not None:
            self._task = asyncio.create_task(self._keep_telling(), name="legato-tally")

    async def stop(self) -> None:
        """Count for nothing any more. Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])
            self.sources = []
            try:
                await self.tell()
            except LegatoError as exc:
                logger.info("what this node counted goes on to count for %g s: %s", TTL, exc)

    async def _keep_telling(self) -> None:
        while True:
            try:
                await self.tell()
            except LegatoError as exc:
                logger.info("what nodes count is not told: %s", exc)
            except Exception:
                logger.exception("what nodes count is not told")
            await asyncio.sleep(EVERY)
