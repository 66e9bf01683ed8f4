"""The peers that are Python: what people build to stream tokens, without storing them, or through Redis.

    python benchmarks/support/peers.py NAME RATE [REDIS-PORT]

Prints its port. ``/fan`` is one stream of ``RATE`` tokens a second for all who read it, ``/chat`` one for each reader.
Of ``redis-nodes``, a post to ``/chat/NAME`` has tokens said, and each reader of ``/chat/NAME`` gets them, at any node.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import resource
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any

import uvicorn
from starlette.requests import Request
from tokens import tokens

HEADERS = [(b"content-type", b"text/event-stream"), (b"cache-control", b"no-cache")]


def data(text: str) -> str:
    return json.dumps({"type": "content", "content": text}, separators=(",", ":"))


class Moment:
    """A token that is there or will be, and the way to the one after it: a reader loses nothing, and needs no queue."""

    __slots__ = ("come", "next", "number", "text")

    def __init__(self) -> None:
        self.come = asyncio.Event()

    def set(self, number: int, text: str) -> Moment:
        self.number, self.text, self.next = number, text, Moment()
        self.come.set()
        return self.next


class Channel:
    """The tokens that all readers of ``/fan`` are sent."""

    newest: Moment

    async def speak(self, rate: float) -> None:
        self.newest = Moment()
        async for number, text in tokens(rate):
            self.newest = self.newest.set(number, data(text))

    async def read(self) -> AsyncIterator[Moment]:
        moment = self.newest
        while True:
            await moment.come.wait()
            yield moment
            moment = moment.next


def raw_asgi(rate: float) -> Any:
    """The least that can be done in Python: bytes to ``send``. Nobody looks whether the reader is still there."""
    channel = Channel()

    def body(number: int, text: str) -> dict[str, Any]:
        frame = f"event: content\ndata: {text}\nid: {number}\n\n".encode()
        return {"type": "http.response.body", "body": frame, "more_body": True}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            speaking = asyncio.create_task(channel.speak(rate))
            await send({"type": "lifespan.startup.complete"})
            await receive()
            speaking.cancel()
            return
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        if scope["path"] == "/fan":
            async for moment in channel.read():
                await send(body(moment.number, moment.text))
        else:
            async for number, text in tokens(rate):
                await send(body(number, data(text)))

    return app


def sse_starlette(rate: float) -> Any:
    """FastAPI, and the package most use for streams of events."""
    from fastapi import FastAPI
    from sse_starlette import EventSourceResponse

    channel = Channel()

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        speaking = asyncio.create_task(channel.speak(rate))
        yield
        speaking.cancel()

    app = FastAPI(lifespan=lifespan)

    def event(number: int, text: str) -> dict[str, str]:
        return {"event": "content", "data": text, "id": str(number)}

    @app.get("/fan")
    async def fan() -> Any:
        return EventSourceResponse(event(each.number, each.text) async for each in channel.read())

    @app.get("/chat")
    async def chat() -> Any:
        return EventSourceResponse(event(number, data(text)) async for number, text in tokens(rate))

    return app


def redis_streams(rate: float, port: int) -> Any:
    """The same with Redis between: who makes the tokens adds them to a stream, and the reader waits there for them."""
    import redis.asyncio
    from fastapi import FastAPI
    from sse_starlette import EventSourceResponse

    store = redis.asyncio.Redis(port=port, max_connections=10_000)  # the reads that wait take one each
    names = itertools.count()
    app = FastAPI()

    async def speak(name: str) -> None:
        async for number, text in tokens(rate):
            await store.xadd(name, {"number": number, "data": data(text)}, maxlen=10_000, approximate=True)

    async def read(name: str) -> AsyncIterator[dict[str, str]]:
        speaking = asyncio.create_task(speak(name))
        after: Any = "0"
        try:
            while True:
                for _, entries in await store.xread({name: after}, block=15_000):
                    after = entries[-1][0]
                    for _, fields in entries:
                        yield {"event": "content", "data": fields[b"data"].decode(), "id": fields[b"number"].decode()}
        finally:
            speaking.cancel()

    @app.get("/chat")
    async def chat() -> Any:
        return EventSourceResponse(read(f"chat:{next(names)}"))

    return app


def redis_nodes(rate: float, port: int) -> Any:
    """The same for many nodes: each reader waits in Redis itself, from the last id that it had, which is Redis' own."""
    import redis.asyncio
    from fastapi import FastAPI
    from sse_starlette import EventSourceResponse

    store = redis.asyncio.Redis(port=port, max_connections=10_000)
    speakers: set[asyncio.Task[None]] = set()
    app = FastAPI()

    async def speak(name: str) -> None:
        async for _, text in tokens(rate):
            await store.xadd(name, {"event": "content", "data": data(text)}, maxlen=20_000, approximate=True)

    async def read(name: str, after: str | bytes) -> AsyncIterator[dict[str, str]]:
        while True:
            for _, entries in await store.xread({name: after}, block=15_000):
                for after, fields in entries:
                    yield {"event": fields[b"event"].decode(), "data": fields[b"data"].decode(), "id": after.decode()}

    @app.post("/chat/{name}")
    async def begin(name: str) -> Any:
        speaking = asyncio.create_task(speak(name))
        speakers.add(speaking)
        return {}

    @app.get("/chat/{name}")
    async def chat(name: str, request: Request) -> Any:
        return EventSourceResponse(read(name, request.headers.get("last-event-id", "0")))

    return app


APPS = {"raw": raw_asgi, "sse-starlette": sse_starlette, "redis": redis_streams, "redis-nodes": redis_nodes}


def main() -> None:
    name, rate, *rest = sys.argv[1:]
    app = APPS[name](float(rate), *map(int, rest))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    main()
