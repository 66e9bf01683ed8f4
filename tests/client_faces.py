"""Both faces of the SDK behind one door, so that each test runs on both."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import httpx2

from fake_server import FakeTransport, Handler
from legato.client import AsyncClient, Client, StreamEvent

FACES = ["sync", "async"]


def use(face: str, handler: Handler | str, act: Callable[[Any], Any], **settings: Any) -> Any:
    """What ``act(client)`` gives; a handler is served in memory, a str is a server's address."""

    async def go() -> Any:
        client = (
            {} if isinstance(handler, str) else {"http_client": httpx2.AsyncClient(transport=FakeTransport(handler))}
        )
        url = handler if isinstance(handler, str) else "http://test"

        async def sleep(seconds: float) -> None:
            waits.append(seconds)

        async with asyncio.timeout(30), AsyncClient(url, sleep=sleep, **client, **settings) as c:
            result = act(c)
            return await result if inspect.isawaitable(result) else result

    waits = settings.pop("waits", [])
    if face == "async":
        return asyncio.run(go())
    client = {} if isinstance(handler, str) else {"http_client": httpx2.Client(transport=FakeTransport(handler))}
    url = handler if isinstance(handler, str) else "http://test"
    with Client(url, sleep=waits.append, **client, **settings) as c:
        return act(c)


def drain(iterable: Any) -> Any:
    """All events of a stream or an answer, as a list or as an awaitable of one."""
    if not hasattr(iterable, "__aiter__"):
        with iterable:
            return list(iterable)

    async def go() -> list[StreamEvent]:
        async with iterable as opened:
            return [event async for event in opened]

    return go()


def stream(
    face: str, handler: Handler | str, *, settings: dict[str, Any] | None = None, **asked: Any
) -> list[StreamEvent]:
    """All events of ``stream_events(session_id="s", ...)``."""
    asked = {"session_id": "s", **asked}
    return use(face, handler, lambda c: drain(c.streaming.stream_events(**asked)), **(settings or {}))
