"""Groups of requests: which are decided together, when, and what of them others feel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from facts import stored
from legato.doorbell import Bell, Doorbell
from legato.errors import StoreBusy, StoreError, StoreLost
from legato.event import Event, Offset
from legato.store.group import GroupWriter, RowGroup, RowRequest
from legato.store.neighbours import Neighbours, Together

NET = 30.0


class Writing:
    """A writer whose groups are looked at instead of written.

    Attributes:
        groups: the sessions of each.
        wrong: raises for a group, if it is to fail.
    """

    def __init__(self) -> None:
        self.groups: list[list[str | None]] = []
        self.wrong: Callable[[list[str | None]], None] = lambda sessions: None
        self._changed = asyncio.Event()

    async def transact(self, group: RowGroup) -> None:
        sessions = [request.session for request in group.requests]
        self.groups.append(sessions)
        self._changed.set()
        self.wrong(sessions)

    async def idle(self, trouble: StoreError | None) -> None:
        self.wrong([])

    async def until(self, count: int) -> list[list[str | None]]:
        async with asyncio.timeout(NET):
            while len(self.groups) < count:
                self._changed.clear()
                await self._changed.wait()
        return self.groups


async def nothing(names: Sequence[str], afters: Sequence[Offset]) -> Mapping[str, tuple[Offset, list[Event]]]:
    return {}


@asynccontextmanager
async def writing() -> AsyncIterator[tuple[Writing, GroupWriter]]:
    made = Writing()

    def error(exc: Exception) -> StoreError:
        return exc if isinstance(exc, StoreError) else StoreError(str(exc))

    writer = GroupWriter(
        made.transact, made.idle, error, Neighbours(Doorbell(), nothing, events=10, bytes=10_000)
    )  # fmt: skip
    task = asyncio.create_task(writer.run())
    try:
        yield made, writer
    finally:
        writer.end()
        await task


def ask(writer: GroupWriter, session: str, *, outside: bool = False) -> RowRequest:
    request = RowRequest(session, lambda group, request: None)
    request.outside = outside
    return writer.submit(request)


async def test_busy_sessions_are_paced(monkeypatch: pytest.MonkeyPatch) -> None:
    """When several sessions are busy, a group waits for the others of the one before it, until all have come, or
    something comes from outside of runs."""
    monkeypatch.setattr("legato.store.group.PACE_SECONDS", 3_600)
    async with writing() as (made, writer):
        names = ["a", "b", "c", "d", "e"]
        for name in names:
            ask(writer, name)
        assert await made.until(1) == [names]
        for name in names[:-1]:
            ask(writer, name)
        for _ in range(100):
            await asyncio.sleep(0)
        assert len(made.groups) == 1
        ask(writer, "e")
        assert (await made.until(2))[1] == names
        ask(writer, "a")
        ask(writer, "message", outside=True)
        assert (await made.until(3))[2] == ["a", "message"]


async def test_who_is_alone_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few sessions are written as they come."""
    monkeypatch.setattr("legato.store.group.PACE_SECONDS", 3_600)
    async with writing() as (made, writer):
        for count in range(1, 6):
            ask(writer, "a")
            assert await made.until(count) == [["a"]] * count


async def test_what_fails_is_tried_alone() -> None:
    """A group that fails is written request by request, so that only what is wrong is refused."""
    async with writing() as (made, writer):

        def wrong(sessions: list[str | None]) -> None:
            if "b" in sessions:
                raise ValueError("b")

        made.wrong = wrong
        requests = [ask(writer, name) for name in "abc"]
        done = await asyncio.gather(*requests, return_exceptions=True)
        assert [isinstance(each, StoreError) for each in done] == [False, True, False]
        assert made.groups == [["a", "b", "c"], ["a"], ["b"], ["c"]]


async def test_what_fails_for_all_is_not_tried_for_each() -> None:
    """Each try at a locked database takes seconds: two sessions are enough, and from then on it is a trouble."""
    async with writing() as (made, writer):

        def wrong(sessions: list[str | None]) -> None:
            if sessions:
                raise StoreBusy("locked")

        made.wrong = wrong
        done = await asyncio.gather(*[ask(writer, name) for name in "aaabcd"], return_exceptions=True)
        assert [type(each) for each in done] == [StoreBusy] * 6
        assert made.groups == [[*"aaabcd"], ["a"], ["a"], ["a"], ["b"]]
        made.wrong = lambda sessions: None
        await ask(writer, "a")


async def test_a_trouble_that_stays_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is noted for longer than one is patient refuses requests at once, until it is over."""
    async with writing() as (made, writer):
        writer.note(StoreLost("away"))
        assert writer.trouble is None
        monkeypatch.setattr("legato.store.group.PATIENCE", -1.0)
        assert isinstance(writer.trouble, StoreLost)
        with pytest.raises(StoreLost):
            ask(writer, "a")
        writer.note(None)
        ask(writer, "a")
        assert await made.until(1) == [["a"]]


async def test_one_question_for_all() -> None:
    """Who asks in one round is answered by one question, and who asks later by another."""
    asked: list[list[str]] = []

    async def answer(names: Sequence[str]) -> dict[str, int]:
        asked.append(sorted(names))
        return {name: len(asked) for name in names if name != "none"}

    together = Together(answer)
    assert await asyncio.gather(*map(together.of, ["a", "b", "a", "none"])) == [1, 1, 1, None]
    assert await together.of("a") == 2
    assert asked == [["a", "b", "none"], ["a"]]


async def test_what_was_read_before_all_is_forgotten_is_not_kept() -> None:
    """It may be of an era of the database that has ended while it was read."""

    async def follow(names: Sequence[str], afters: Sequence[Offset]) -> dict[str, tuple[Offset, list[Event]]]:
        assert (names, afters) == (["s"], [1])
        neighbours.forget()
        return {"s": (2, [stored("text.delta", {}, offset=2, at=0.0)])}

    bell, doorbell = Bell(), Doorbell()
    doorbell.hang("s", bell)
    neighbours = Neighbours(doorbell, follow, events=10, bytes=10_000)
    neighbours.stored("s", [stored("text.delta", {}, offset=1, at=0.0)], outside=True)
    await neighbours.ring({"s": True})
    assert neighbours.tail.head("s") is None
    assert await bell.wait(0.0)
