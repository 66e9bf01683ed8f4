"""Many sessions, each with a reader: how they are made, read and spoken in, over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator
from typing import NamedTuple

from .load import Post, Server, request
from .sseload import Load

POSTS_AT_ONCE = 8


class Sent(NamedTuple):
    """One try to send a message: seconds until it was answered, and for how long it was refused, if it was."""

    took: float
    refused: float | None


async def make_sessions(server: Server, count: int, name: str = "c") -> None:
    """Sessions ``c0``, ``c1`` and so on, or of another name."""
    posts = [await server.post() for _ in range(POSTS_AT_ONCE)]

    async def make(first: int, post: Post) -> None:
        for number in range(first, count, POSTS_AT_ONCE):
            await post.send(request("POST", "/api/sessions", {"id": f"{name}{number}"}))

    await asyncio.gather(*(make(first, post) for first, post in enumerate(posts)))


PATH = "/stream?sessionId=c{i}"
"""Of the stream of a session, as the load client wants it."""


@contextlib.asynccontextmanager
async def crowd(server: Server, count: int, name: str) -> AsyncIterator[None]:
    """So many sessions that are spoken in at 30 tokens a second and read, for as long as this lasts."""
    await make_sessions(server, count, name)
    load = Load(server, count, 3_600, [PATH.replace("=c", f"={name}")])
    await load.open()
    await send_all(server, count, "tokens 30 100000", name=name)
    try:
        yield
    finally:
        await load.stop()
        await asyncio.gather(*(server.ask("POST", f"/api/sessions/{name}{each}/cancel") for each in range(count)))


async def send_all(server: Server, count: int, text: str, *, seconds: float = 0.0, name: str = "c") -> list[Sent]:
    """A message to each session, until it is taken: as fast as they are answered, or spread over ``seconds``.

    Spread out, a message waits for no other: it has a connection of its own if none is free. Who is refused (503) comes
    back when it was told to.
    """
    begun = time.monotonic()
    free = [await server.post() for _ in range(POSTS_AT_ONCE)]
    places = asyncio.Semaphore(count if seconds else POSTS_AT_ONCE)
    tries: list[Sent] = []

    async def send(number: int) -> None:
        await asyncio.sleep(begun + seconds * number / count - time.monotonic())
        async with places:
            while True:
                post = free.pop() if free else await server.post()
                at = time.perf_counter()
                head, _ = await post.exchange(request("POST", f"/api/sessions/{name}{number}/messages", {"text": text}))
                refused = _refused(head)
                tries.append(Sent(time.perf_counter() - at, refused))
                free.append(post)
                if refused is None:
                    return
                await asyncio.sleep(refused)

    await asyncio.gather(*map(send, range(count)))
    return tries


def _refused(head: bytes) -> float | None:
    status = int(head.split()[1])
    if status < 300:
        return None
    after = re.search(rb"(?i)retry-after: (\d+)", head)
    if status != 503 or after is None:
        raise RuntimeError(f"A message was refused without a time to come back: {head!r}")
    return float(after[1])
