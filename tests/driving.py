"""What the tests of the server have in common: an application in this process, a session in it, and its stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from msgspec import UNSET

from held_store import quiet
from legato.server.app import Legato
from legato.sse import Decoder, SSEMessage
from legato.testing import ASGIResponse, ASGIStream, Driver

OWN_FRAMES = ("connected", "heartbeat")
"""Frames that are not in the log: they carry the reader's own cursor."""


@pytest.fixture(params=["asgi", "line"], autouse=True)
def lines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test of a module that imports this once as under any ASGI server, and once as under our own."""
    monkeypatch.setattr(Driver, "lines", request.param == "line")


async def echo(turn: Any) -> AsyncIterator[str]:
    """Says the message again."""
    yield "You said: "
    yield turn.message.text


class Gate:
    """An agent that says one word for each call of ``let``, and is done after ``close``."""

    def __init__(self) -> None:
        self._words: asyncio.Queue[Any] = asyncio.Queue()

    def let(self, *words: Any) -> None:
        for word in words:
            self._words.put_nowait(word)

    def close(self) -> None:
        self._words.put_nowait(None)

    async def __call__(self, turn: Any) -> AsyncIterator[Any]:
        while (word := await self._words.get()) is not None:
            yield word


class Chat:
    """A driver and one session of the application."""

    def __init__(self, app: Legato, driver: Driver, session: str) -> None:
        self.app = app
        self.driver = driver
        self.session = session

    async def send(self, text: str = "hello", *, headers: dict[str, str] | None = None, **fields: Any) -> ASGIResponse:
        target = f"/api/sessions/{self.session}/messages"
        return await self.driver.request("POST", target, json={"text": text, **fields}, headers=headers)

    async def said(self, text: str = "hello", **fields: Any) -> ASGIResponse:
        """Send, and wait until the answer is over."""
        answer = await self.send(text, **fields)
        await self.follow(answer.json()["cursor"], until=ends(answer.json()["runId"]))
        return answer

    def stream(self, query: str = "", *, last: str | None = None, **options: Any) -> ASGIStream:
        headers = options.pop("headers", {}) | ({} if last is None else {"last-event-id": last})
        query = f"&{query}" if query else ""
        return self.driver.stream(f"/stream?sessionId={self.session}{query}", headers=headers, **options)

    async def follow(
        self, last: str | None = None, query: str = "client=legato", *, until: Callable[[SSEMessage], bool]
    ) -> list[SSEMessage]:
        """The messages from a cursor (or as a fresh reader) to the first that is wanted."""
        seen = []
        async with asyncio.timeout(30), self.stream(query, last=last) as stream:
            assert stream.status == 200
            async for message in stream.messages():
                seen.append(message)
                if until(message):
                    break
            else:
                raise AssertionError(f"The stream ended before: {seen[-1:]}")
        return seen

    async def get(self, path: str = "") -> ASGIResponse:
        return await self.driver.request("GET", f"/api/sessions/{self.session}{path}")

    async def post(self, path: str, json: Any = UNSET) -> ASGIResponse:
        return await self.driver.request("POST", f"/api/sessions/{self.session}{path}", json=json)


def data(message: SSEMessage) -> dict[str, Any]:
    return dict(json.loads(message.data))


def ends(run: str) -> Callable[[SSEMessage], bool]:
    return lambda message: message.event in ("complete", "error") and data(message)["runId"] == run


def named(name: str) -> Callable[[SSEMessage], bool]:
    return lambda message: message.event == name


def logged(messages: list[SSEMessage]) -> list[SSEMessage]:
    """Those of the log, without the reader's own."""
    return [message for message in messages if message.event not in OWN_FRAMES]


def decoded(body: bytes) -> list[SSEMessage]:
    return Decoder().feed(body)


async def at_once(stream: ASGIStream, *, patience: float = 0.0) -> ASGIResponse:
    """The answer to a request that has not been made yet; of a stream that stays open, what comes at once.

    Status 0 if the answer has to be waited for, beyond ``patience`` seconds for what is answered elsewhere.
    """
    opening = asyncio.create_task(stream.__aenter__())
    await asyncio.wait({opening}, timeout=patience)
    for _ in range(10):
        await quiet(rounds=50)
        if opening.done():
            break
    if waits := not opening.done():
        stream.disconnect()
    async with asyncio.timeout(30):
        await opening
        if stream.headers.get("content-type", "").startswith("text/event-stream"):
            await stream.read()
        else:
            async for _ in stream:
                pass
            await stream.finished()
        await stream.__aexit__(None, None, None)
    return ASGIResponse(0 if waits else stream.status, stream.headers, stream.body, stream.error)


def reason(response: ASGIResponse) -> tuple[int, str, str]:
    """Status, type and reason of an error, its form checked."""
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert response.headers["content-type"].startswith("application/json")
    assert set(error) <= {"code", "message", "type", "reason", "detail"}
    assert error["code"] == response.status
    assert isinstance(error["message"], str)
    assert error["message"]
    assert error["type"] in ("bad_request", "not_found", "internal_error", "unauthorized", "validation_error")
    return response.status, error["type"], error["reason"]


@asynccontextmanager
async def chatting(app: Legato | None = None, *agents: Any, **options: Any) -> AsyncIterator[Chat]:
    """A chat with ``agents`` (or the echo) in memory, or with ``app``."""
    if app is None:
        app = Legato(options.pop("store", "memory:"), agents=agents or [echo], **options)
    app.drain_on_signal = False
    app.grace = 0.0
    async with Driver(app) as driver:
        created = await driver.request("POST", "/api/sessions", json={"title": "A chat"})
        assert created.status == 201
        yield Chat(app, driver, created.json()["id"])
