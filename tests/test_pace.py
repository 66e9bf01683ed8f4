"""Tasks that go on in groups: in the order in which they came, in groups that are done quickly, and none is left."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from legato.server import pace as module
from legato.server.pace import FIRST, GROUP_SECONDS, MOST, Pace


class Loop:
    """The clock that a pace looks at, and what tasks cost by it.

    Attributes:
        now: seconds.
        groups: how many went on in each round of the event loop in which any did.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        self.groups: list[int] = []
        self._round = -1
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: self.now))

    async def rounds(self) -> None:
        """Count rounds of the event loop, as long as it is not cancelled."""
        self._round = 0
        while True:
            await asyncio.sleep(0)
            self._round += 1

    async def others(self, cost: float) -> None:
        """Take so long in each round of the event loop, as long as it is not cancelled."""
        while True:
            self.now += cost
            await asyncio.sleep(0)

    async def crowd(self, pace: Pace, size: int, cost: float) -> list[int]:
        """So many tasks want to go on at once, each of which takes so long: the order in which they did."""
        order: list[int] = []
        by_round: dict[int, int] = {}

        async def one(number: int) -> None:
            await pace.keep()
            order.append(number)
            by_round[self._round] = by_round.get(self._round, 0) + 1
            self.now += cost

        counter = asyncio.create_task(self.rounds())
        await asyncio.gather(*(one(number) for number in range(size)))
        counter.cancel()
        self.groups = list(by_round.values())
        return order


@pytest.fixture
def loop(monkeypatch: pytest.MonkeyPatch) -> Loop:
    return Loop(monkeypatch)


async def idle(pace: Pace) -> None:
    """Let the pace come to rest; nothing of it is scheduled then."""
    for _ in range(3):
        await asyncio.sleep(0)
    assert not pace._ticking
    assert not pace._waiting


async def test_who_comes_alone_goes_on_at_once(loop: Loop) -> None:
    """Without giving way to anybody."""
    pace = Pace()
    for _ in range(5):
        coroutine = pace.keep()
        with pytest.raises(StopIteration):
            coroutine.send(None)
        await idle(pace)


@pytest.mark.parametrize("cost", [0.0, GROUP_SECONDS / 100, GROUP_SECONDS / 3, GROUP_SECONDS * 2])
async def test_first_come_first_served(loop: Loop, cost: float) -> None:
    """However long each of them takes; all go on, and then nothing is left."""
    pace = Pace()
    assert await loop.crowd(pace, 1_000, cost) == list(range(1_000))
    await idle(pace)


async def test_a_group_grows_while_it_is_done_quickly(loop: Loop) -> None:
    """To its bound; the first one is small, since nobody knows yet what a task costs."""
    pace = Pace()
    await loop.crowd(pace, 2_000, 0.0)
    assert loop.groups[0] == FIRST
    assert max(loop.groups) == MOST
    assert loop.groups[:-1] == sorted(loop.groups[:-1])


async def test_a_group_shrinks_while_it_takes_long(loop: Loop) -> None:
    """To one, and it grows again afterwards."""
    pace = Pace()
    await loop.crowd(pace, 2_000, 0.0)
    await loop.crowd(pace, 600, GROUP_SECONDS * 3)
    assert loop.groups[-1] == 1
    assert loop.groups == sorted(loop.groups, reverse=True)
    await loop.crowd(pace, 2_000, 0.0)
    assert max(loop.groups) == MOST


async def test_a_group_takes_about_as_long_as_it_may(loop: Loop) -> None:
    """With what a task costs in between, the size settles where a group takes its time, and not twice that."""
    pace = Pace()
    cost = GROUP_SECONDS / 20
    await loop.crowd(pace, 500, cost)
    assert all(GROUP_SECONDS / 4 <= size * cost <= GROUP_SECONDS * 1.5 for size in loop.groups[3:-1])


async def test_a_group_is_not_held_to_account_for_others(loop: Loop) -> None:
    """A loop that has much else to do in each of its rounds lets as many go on as one that has not."""
    pace = Pace()
    sizes = []
    for cost in (0.0, GROUP_SECONDS * 10):
        others = asyncio.create_task(loop.others(cost))
        await asyncio.sleep(0)
        await loop.crowd(pace, 1_000, GROUP_SECONDS / 20)
        others.cancel()
        sizes.append(loop.groups[-2])
    assert sizes[0] == sizes[1] > FIRST


async def test_who_comes_alone_in_a_busy_loop_leaves_room_for_many(loop: Loop) -> None:
    """What the loop does after somebody has gone on at once makes no group smaller."""
    pace = Pace()
    others = asyncio.create_task(loop.others(GROUP_SECONDS * 10))
    for _ in range(20):
        await pace.keep()
        await idle(pace)
    await loop.crowd(pace, 100, 0.0)
    others.cancel()
    assert loop.groups[0] == FIRST


@pytest.mark.parametrize("stride", [1, 2, 7])
async def test_who_leaves_takes_nobodys_turn(loop: Loop, stride: int) -> None:
    """Of those that wait, some are cancelled, before it is their turn and just when it is."""
    pace = Pace()
    gone_on: list[int] = []

    async def one(number: int) -> None:
        await pace.keep()
        gone_on.append(number)

    tasks = [asyncio.create_task(one(number)) for number in range(200)]
    for start in range(3):
        await asyncio.sleep(0)
        for task in tasks[40 + start :: 3 * stride]:
            task.cancel()
    done: list[Any] = await asyncio.gather(*tasks, return_exceptions=True)
    stayed = [number for number, result in enumerate(done) if result is None]
    assert gone_on == stayed
    assert len(stayed) >= 40
    await idle(pace)
    assert await loop.crowd(pace, 50, 0.0) == list(range(50))


async def test_when_all_have_left_nothing_is_scheduled(loop: Loop) -> None:
    """Only those wait who have been cancelled: it comes to rest all the same."""
    pace = Pace()
    tasks = [asyncio.create_task(pace.keep()) for _ in range(50)]
    await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await idle(pace)


async def test_others_have_a_look_between_two_groups() -> None:
    """What the event loop hears of meanwhile is done while most of the crowd still waits."""
    pace, seen = Pace(), []

    async def one() -> None:
        await pace.keep()
        seen.append(1)

    tasks = [asyncio.create_task(one()) for _ in range(100)]
    await asyncio.sleep(0)
    heard = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_soon(heard.set_result, None)
    await heard
    assert len(seen) < 50
    await asyncio.gather(*tasks)
    assert len(seen) == 100
