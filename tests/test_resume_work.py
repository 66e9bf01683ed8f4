"""What a resume costs the event loop, counted in events and not in time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from driving import Chat, chatting, decoded
from held_store import HeldStore, quiet
from legato.testing import ASGIStream
from raw_log import canonical

DELTAS = 2_000
READERS = 50
AT_ONCE = 5_000
"""Events that may be read from the log, by all readers together, before the loop gets to something else."""


class Counting(HeldStore):
    """A store that counts the events it gives out, and how many of them between two ticks of the loop.

    Attributes:
        given: in all.
        most: between two ticks, at most.
    """

    def __init__(self) -> None:
        super().__init__()
        self.given = self.most = 0
        self._since_tick = 0

    async def read(self, *args: Any, **kwargs: Any) -> Any:
        events = await super().read(*args, **kwargs)
        self.given += len(events)
        self._since_tick += len(events)
        self.most = max(self.most, self._since_tick)
        return events

    async def tick(self) -> None:
        """Stand for all else that the loop has to do: once in each of its rounds."""
        while True:
            self._since_tick = 0
            await asyncio.sleep(0)


def mix(chat: Chat, sent: dict[str, str], head: int) -> ASGIStream:
    return chat.stream("client=legato", last=str(head - 3))


def responses(chat: Chat, sent: dict[str, str], head: int) -> ASGIStream:
    # Its numbers: created, in_progress, item and part added, and one for each delta.
    target = f"/v1/responses/resp_{sent['runId']}?stream=true&starting_after={DELTAS}"
    return chat.driver.stream(target)


def deva(chat: Chat, sent: dict[str, str], head: int) -> ASGIStream:
    target = f"/api/sdk/chat/{chat.session}/messages/{sent['messageId']}/query/stream"
    return chat.driver.stream(target, method="POST", headers={"last-event-id": f"{head - 3}.0"})


@pytest.mark.parametrize("resume", [mix, responses, deva])
async def test_many_that_resume_near_the_end_do_not_hold_the_loop(
    resume: Callable[[Chat, dict[str, str], int], ASGIStream],
) -> None:
    """Fifty readers come back at once to an open run of 2,000 deltas: others get their turn in between."""
    go = asyncio.Event()

    async def long(turn: Any) -> AsyncIterator[str]:
        for number in range(DELTAS):
            yield f"{number} "
            await turn.stored()  # more at once would be stored as fewer
        await go.wait()
        yield "end"

    store = Counting()
    async with chatting(None, long, store=store) as chat:
        sent = (await chat.send()).json()
        async with asyncio.timeout(30):
            while (await chat.get("/events?limit=1")).json()["head"] < DELTAS + 3:
                await quiet(rounds=100)
        head = (await chat.get("/events?limit=1")).json()["head"]
        assert head == DELTAS + 3

        ticking = asyncio.create_task(store.tick())
        streams = [resume(chat, sent, head) for _ in range(READERS)]
        try:
            store.given = store.most = 0
            async with asyncio.timeout(60):
                await asyncio.gather(*(stream.__aenter__() for stream in streams))
                first = await asyncio.gather(*(stream.read() for stream in streams))
                await quiet()
            given, most = store.given, store.most
            assert {stream.status for stream in streams} == {200}
            assert all(first)
            go.set()
            for stream in streams:  # all of them get the rest
                async with asyncio.timeout(30):
                    while b"end" not in stream.body:
                        assert await stream.read()
                frames = [message.data for message in decoded(stream.body) if message.event != "connected"]
                assert not any('"1990 "' in data for data in frames)
        finally:
            ticking.cancel()
            await asyncio.gather(ticking, return_exceptions=True)
            for stream in streams:
                stream.disconnect()
            await asyncio.gather(*(stream.finished() for stream in streams))
        assert len(await canonical(chat.driver, chat.session)) > DELTAS
        assert most <= AT_ONCE, f"{given} events were read in all"
