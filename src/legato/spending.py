"""What owners have: how many sessions, and what their runs have spent in a window of time.

What is spent is counted in the store, so that it outlives the process and is one count for all nodes: of each owner
there is an *account*, a session that nobody can ask for, and its last event says what was spent in the window that it
names. Sessions that are deleted take nothing out of it. What an owner may have is looked at before a message is stored;
what has begun by then is finished, so an owner can be beyond a limit by what was running.

How many sessions there are is asked of the store, once a minute at most, and counted here in between.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import msgspec

from .bounds import Limits
from .errors import HeadMoved, LegatoError, QuotaSpent, SessionNotFound, TooMany
from .event import Draft, SessionCreated, SessionUpdated
from .log import SessionInfo, Store
from .part import Usage

logger = logging.getLogger("legato")

OWN = "."
"""How the ids of sessions begin that are Legato's own: no caller can ask for one, and no list shows them."""
COUNTED_FOR = 60.0
"""Seconds for which a count of sessions is gone on with; a fifth of it, once it is more than half of what may be."""
COUNTED = 10_000
"""Owners whose sessions are counted here; the one who began one longest ago is counted anew."""
PAGE = 500
READS = 5
RETRIES = (0.1, 1.0, 5.0)
"""Seconds between tries to store what was spent."""


ACCOUNTS = 10
"""Of one owner that are looked at: two nodes may begin one each at the same moment."""


def holder(subject: str) -> str:
    """Whose an owner's account is in the store: by that it is found, and no list of theirs has it. Its id is drawn, so
    that what is left of it once it is erased tells nobody whose it was."""
    return f"{OWN}spent {subject}"


def is_own(session: str) -> bool:
    """Whether a session is Legato's own, and no conversation."""
    return session.startswith(OWN)


async def own_of(store: Store, holder: str, begins: str = OWN) -> AsyncIterator[SessionInfo]:
    """Sessions of Legato's own, by whose they are and how their ids begin; and none of whoever an earlier version let
    in under that name, however many of theirs there are."""
    after: str | None = None
    while True:
        page = await store.sessions(limit=PAGE, after=after, owner=holder)
        for info in page.infos:
            if info.session.startswith(begins):
                yield info
        after = page.next
        if after is None:
            return


class Spent(msgspec.Struct, omit_defaults=True):
    """What an owner's runs have spent in a window.

    Attributes:
        since: when the window began, seconds since the epoch.
        runs: that have ended, or been given up.
        events, bytes: of those, and of the messages that they answered.
        tokens: of input and output.
        cost: as agents reported it.
    """

    since: int = 0
    runs: int = 0
    events: int = 0
    bytes: int = 0
    tokens: int = 0
    cost: float = 0.0

    def add(self, other: Spent) -> Spent:
        """Both together."""
        return Spent(
            self.since,
            self.runs + other.runs,
            self.events + other.events,
            self.bytes + other.bytes,
            self.tokens + other.tokens,
            self.cost + other.cost,
        )


def spent(events: int, size: int, usage: Usage | None) -> Spent:
    """What one run has spent: in events, and in bytes of them."""
    tokens = 0 if usage is None else max(usage.input_tokens, 0) + max(usage.output_tokens, 0)
    return Spent(0, 1, events, size, tokens, 0.0 if usage is None else max(usage.cost, 0.0))


def _id(account: tuple[Spent, str, int]) -> str:
    return account[1]


class Accounts:
    """The accounts of all owners.

    Args:
        store: open.
        limits: gives what owners may have.
        clock: seconds since the epoch.
        steady: seconds of a clock that nobody sets.
    """

    def __init__(
        self,
        store: Store,
        limits: Callable[[], Limits],
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._limits = limits
        self._clock = clock
        self._steady = steady
        self._pending: dict[str, Spent] = {}  # what is not stored yet, by subject
        self._new: set[str] = set()  # of these, whose account is to begin with it
        self._storing: dict[str, asyncio.Task[None]] = {}
        self._handed: dict[str, tuple[Spent, str, int]] = {}  # what is being stored, where, and the head with it
        self._sessions: dict[str, tuple[float, int]] = {}  # by subject: counted when, and how many with those since
        self._beginning: Counter[str] = Counter()
        self._begun: Counter[str] = Counter()  # all that were, of those who have some

    # What runs spend --------------------------------------------------------------------------------------------------

    @property
    def bounded(self) -> bool:
        """Whether anything that is spent is bounded; if nothing is, nothing is counted."""
        limits = self._limits()
        return any((limits.owner_runs, limits.owner_events, limits.owner_bytes, limits.owner_tokens, limits.owner_cost))

    def add(self, subject: str, more: Spent) -> None:
        """Count what a run of this owner has spent; it is stored soon. The account began with the message (``check``):
        of who was erased meanwhile, nothing begins again with the end of their run."""
        if subject and self.bounded:
            self._add(subject, more)

    def _add(self, subject: str, more: Spent) -> None:
        self._pending[subject] = self._pending.get(subject, Spent()).add(more)
        if subject not in self._storing:
            self._storing[subject] = asyncio.create_task(self._store_pending(subject), name="legato-account")

    async def close(self) -> None:
        """Store what is to be stored."""
        while self._storing:
            await asyncio.wait(self._storing.values())

    def _window(self) -> int:
        now, seconds = int(self._clock()), max(int(self._limits().usage_seconds), 1)
        return now - now % seconds

    async def spent(self, subject: str) -> Spent:
        """What an owner has spent in the window that is now, as far as any node has said."""
        return (await self._has(subject))[0]

    async def _has(self, subject: str) -> tuple[Spent, bool]:
        """What they have spent, and whether they have an account, or soon will."""
        for _ in range(READS):
            here = self._handed.get(subject), self._pending.get(subject)
            found = await self._stored(subject)
            if here == (self._handed.get(subject), self._pending.get(subject)):
                break  # nothing went from here to there meanwhile
        total = Spent(self._window())
        for stored, _, _ in found:
            total = total.add(stored)
        handed, account, head = here[0] or (Spent(), "", 0)
        is_there = any(id == account and has >= head for _, id, has in found)  # and that is not known here yet
        total = total if is_there else total.add(handed)
        return total.add(here[1] or Spent()), bool(found or here[0] or subject in self._new)

    async def _stored(self, subject: str) -> list[tuple[Spent, str, int]]:
        """What the owner's accounts say of the window that is now, with the id of each, and its head."""
        since = self._window()
        found: list[tuple[Spent, str, int]] = []
        async for info in own_of(self._store, holder(subject)):
            events = await self._store.read(info.session, info.head - 1, limit=1)
            fact = events[-1].fact if events else None
            said = msgspec.convert(fact.metadata, Spent) if isinstance(fact, SessionUpdated) else Spent()
            found.append((said if said.since == since else Spent(since), info.session, info.head))
            if len(found) == ACCOUNTS:
                break
        return found

    async def _store_pending(self, subject: str) -> None:
        try:
            await self._store_all(subject)
        finally:  # in the round in which it was seen that nothing is left
            del self._storing[subject]
            self._handed.pop(subject, None)

    async def _store_all(self, subject: str) -> None:
        while (more := self._pending.pop(subject, None)) is not None:
            begins = subject in self._new
            self._new.discard(subject)
            tries = iter(RETRIES)
            stored = False
            while not stored:
                self._handed[subject] = more, "", 0
                try:
                    stored = await self._try(subject, more, begins)
                except LegatoError as exc:
                    wait = next(tries, None)
                    if wait is None:
                        if more != Spent():  # else the next message begins the account
                            logger.error("what an owner has spent cannot be counted: %s", exc)
                        break
                    await asyncio.sleep(wait)

    async def _try(self, subject: str, more: Spent, begins: bool) -> bool:
        """Store it; False if another node was faster."""
        drawn = f"{OWN}spent.{secrets.token_hex(12)}"
        stored, account, head = min(await self._stored(subject), default=(Spent(self._window()), drawn, 0), key=_id)
        if not (head or begins):
            return True  # nowhere: it was erased
        now = Draft(SessionUpdated(msgspec.to_builtins(stored.add(more))))
        begin = [] if head else [Draft(SessionCreated(owner=holder(subject)))]
        self._handed[subject] = more, account, head + len(begin) + 1
        try:
            await self._store.append(account, [*begin, now], head=head or None)
        except (HeadMoved, SessionNotFound):
            return False
        return True

    async def check(self, subject: str) -> None:
        """Raise ``QuotaSpent`` if an owner has spent what they may; begin their account, if they have none."""
        if not subject or not self.bounded:
            return
        limits, (has, known) = self._limits(), await self._has(subject)
        if not known:
            self._new.add(subject)
            self._add(subject, Spent())
        seconds = max(int(limits.usage_seconds), 1)
        for name in ("runs", "events", "bytes", "tokens", "cost"):
            most, had = getattr(limits, f"owner_{name}"), getattr(has, name)
            if most and had >= most:
                left = max(has.since + seconds - self._clock(), 1.0)
                raise QuotaSpent(
                    f"{had:g} {name} of yours were counted in {seconds} seconds, of {most:g} that you may have; there "
                    f"is more in {left:.0f} s.",
                    after=left,
                    bound=f"owner_{name}",
                    limit=most,
                )

    # Sessions ---------------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def session(self, subject: str) -> AsyncIterator[None]:
        """A place for one more session of this owner, which is begun within.

        Raises:
            TooMany: there are as many as there may be.
        """
        most = self._limits().owner_sessions
        if not subject or not most:
            yield
            return
        self._beginning[subject] += 1
        try:
            if await self._count(subject, most) + self._beginning[subject] > most:
                raise TooMany(
                    f"You have {most} sessions, as many as you may; delete some.", bound="owner_sessions", limit=most
                )
            yield
            self._begun[subject] += 1
            if subject in self._sessions:
                at, count = self._sessions.pop(subject)
                self._sessions[subject] = at, count + 1
        finally:
            self._beginning[subject] -= 1
            if not self._beginning[subject]:
                del self._beginning[subject]

    def gone(self, subject: str) -> None:
        """A session of this owner has been deleted."""
        if subject in self._sessions:
            at, count = self._sessions[subject]
            self._sessions[subject] = at, max(count - 1, 0)

    async def _count(self, subject: str, most: int) -> int:
        at, count = self._sessions.get(subject, (-COUNTED_FOR, 0))
        keeps = COUNTED_FOR if 2 * count < most else COUNTED_FOR / 5
        now = self._steady()
        if now - at < keeps and subject in self._sessions:
            return count
        count, after, before = 0, None, self._begun[subject]
        while count < most:
            page: Any = await self._store.sessions(limit=min(PAGE, most), after=after, owner=subject)
            count += sum(not is_own(info.session) for info in page.infos)
            after = page.next
            if after is None:
                break
        count += self._begun[subject] - before  # others' meanwhile, which may have been seen or not
        self._sessions[subject] = now, count
        while len(self._sessions) > COUNTED:
            oldest = next(iter(self._sessions))
            del self._sessions[oldest], self._begun[oldest]
        return count
