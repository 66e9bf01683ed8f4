"""Many connections that mean no good: what the server held before it holds again, and others are served meanwhile.

The numbers are small by default. ``LEGATO_FLOODS=40 pytest tests/test_floods.py -s`` multiplies them: 20,000
connections that are dropped, 1,000 readers that never read, 1,000 slow heads and bodies. ``LEGATO_FLOOD_SECONDS=120``
is how long each load lasts. With ``-s`` the figures are printed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from legato.torture.honest import Measured, honest_load
from legato.torture.hostile import Attacker, request
from legato.torture.served import State
from legato.torture.soak import SLACK, ServedProcess, serving

TIMES = int(os.environ.get("LEGATO_FLOODS", "1"))
SECONDS = float(os.environ.get("LEGATO_FLOOD_SECONDS", "1"))
PEOPLE = 5
AT_ONCE = 100
MB = 1 << 20


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[ServedProcess]:
    async with serving("memory:") as found:
        yield found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def alone(server: ServedProcess) -> Measured:
    """What people feel when nobody else is there."""
    return await honest_load(f"http://127.0.0.1:{server.port}", PEOPLE, SECONDS, 1)


async def settled(server: ServedProcess, before: State) -> State:
    """What the server holds once it has let go, or after the safety net of 60 s."""
    for _ in range(600):
        state = await server.state()
        if all(getattr(state, name) <= getattr(before, name) + slack for name, slack in SLACK.items()):
            break
        await asyncio.sleep(0.1)
    return state


def let_go(before: State, after: State) -> None:
    held = {name: (getattr(before, name), getattr(after, name)) for name in SLACK}
    print("held before and after:", held)
    assert {name for name, slack in SLACK.items() if held[name][1] > held[name][0] + slack} == set(), held


def compared(alone: Measured, beside: Measured) -> None:
    """That others were served, and served right; how fast is printed."""
    for name in sorted(alone.waits):
        one, two = (1000 * each.quantile(name, 0.99) for each in (alone, beside))
        print(f"{name}: p99 {one:.1f} ms alone, {two:.1f} ms beside it")
    assert (beside.faults, dict(beside.refused)) == ([], {})
    assert beside.answers > 0


async def beside(server: ServedProcess) -> Measured:
    return await honest_load(f"http://127.0.0.1:{server.port}", PEOPLE, SECONDS, 2)


@contextlib.asynccontextmanager
async def held(server: ServedProcess, *requests: bytes, buffer: int | None = None) -> AsyncIterator[list[Any]]:
    """Connections on which this has been sent, and nothing is read."""
    on = Attacker(server.port, 0)
    writers: list[asyncio.StreamWriter] = []
    try:
        for raw in requests:
            reader, writer = await on.connect(buffer=buffer)
            reader._transport.pause_reading()  # type: ignore[attr-defined]
            writer.write(raw)
            writers.append(writer)
        yield writers
    finally:
        for writer in writers:
            writer.transport.abort()


@pytest.mark.asyncio(loop_scope="module")
async def test_connections_that_are_opened_and_dropped(server: ServedProcess) -> None:
    """At every stage: nothing said, half a head, a stream that has begun. Tasks, descriptors and memory return."""
    on = Attacker(server.port, 0)
    session = await on.session()
    stages = [b"", b"GET /heal", request("GET", "/health"), request("GET", f"/stream?sessionId={session}")]

    async def drop(number: int) -> None:
        reader, writer = await on.connect()
        writer.write(stages[number % 4])
        if number % 8 == 3:
            with contextlib.suppress(OSError):
                await reader.read(100)
        writer.transport.abort()

    async def drop_all(count: int) -> None:
        for first in range(0, count, AT_ONCE):
            await asyncio.gather(*(drop(number) for number in range(first, first + AT_ONCE)))

    await drop_all(AT_ONCE)  # what is loaded, and what the allocator keeps, is there from now on
    before = await server.state()
    await drop_all(500 * TIMES)
    after = await settled(server, before)
    let_go(before, after)
    print(f"memory: {before.rss / MB:.0f} MB before, {after.rss / MB:.0f} after")
    assert after.rss - before.rss < 24 * MB
    assert (await on.ask("GET", "/health")) is not None


@pytest.mark.asyncio(loop_scope="module")
async def test_readers_that_never_read(server: ServedProcess, alone: Measured) -> None:
    """What they hold is bounded, and does not grow while a log of megabytes waits for each of them."""
    on = Attacker(server.port, 0)
    session = await on.session()
    await on.say(session, "huge")
    while (await server.state()).runs:  # noqa: ASYNC110  # of another process
        await asyncio.sleep(0.05)
    before = await server.state()
    readers = 25 * TIMES
    stream = request("GET", f"/stream?sessionId={session}&from=start")
    async with held(server, *[stream] * readers, buffer=4096):
        while (await server.state()).streams < before.streams + readers:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await beside(server)
        early = await server.state()
        compared(alone, await beside(server))
        late = await server.state()
    print(f"{readers} readers: {before.rss / MB:.0f} MB before, {early.rss / MB:.0f} early, {late.rss / MB:.0f} late")
    assert early.rss - before.rss < readers * 256 * 1024 + 48 * MB
    assert late.rss - early.rss < 16 * MB
    await on.ask("DELETE", f"/api/sessions/{session}")
    let_go(before, await settled(server, before))


@pytest.mark.asyncio(loop_scope="module")
async def test_slow_heads_and_slow_bodies(server: ServedProcess, alone: Measured) -> None:
    """A byte now and then; the others do not notice, and nothing is left of it."""
    on = Attacker(server.port, 0)
    before = await server.state()
    body = request("POST", "/v1/responses", {"input": "x" * 200_000, "model": "hostile"})[:100_000]
    slow = [request("GET", "/health")[:20], body] * (25 * TIMES // 2)
    async with held(server, *slow) as writers:

        async def drip() -> None:
            while True:
                for first in range(0, len(writers), 50):  # else those who measure would wait for those who drip
                    for writer in writers[first : first + 50]:
                        with contextlib.suppress(OSError):
                            writer.write(b"a")
                    await asyncio.sleep(0.25 * 50 / max(len(writers), 50))

        dripping = asyncio.create_task(drip())
        compared(alone, await beside(server))
        dripping.cancel()
    let_go(before, await settled(server, before))
    assert (await on.ask("GET", "/health")) is not None
