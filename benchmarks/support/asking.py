"""A program that reads many answers of a model at once, and prints what one chunk costs it, in us of CPU.

python benchmarks/support/asking.py CLIENT LOOP PORT ANSWERS SECONDS
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import uvloop

MODEL = "model"
HELLO = [{"role": "user", "content": "What is a canon?"}]


def legato(wire: str, *, library: bool = False) -> Callable[[str], Callable[[], AsyncIterator[Any]]]:
    def make(url: str) -> Callable[[], AsyncIterator[Any]]:
        import httpx2

        from legato import provider

        limits = httpx2.Limits(max_connections=None)
        http: Any = httpx2.AsyncClient(limits=limits, trust_env=False) if library else None
        asked = getattr(provider, f"Async{wire}Provider")(f"{url}/v1", "key", http_client=http)
        return lambda: asked.chat_stream(model=MODEL, messages=HELLO)

    return make


def openai_chat(url: str) -> Callable[[], AsyncIterator[Any]]:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="key")

    async def read() -> AsyncIterator[Any]:
        async for chunk in await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True):  # type: ignore[arg-type]
            yield chunk

    return read


def openai_responses(url: str) -> Callable[[], AsyncIterator[Any]]:
    from openai import AsyncOpenAI

    client = AsyncOpenAI(base_url=f"{url}/v1", api_key="key")

    async def read() -> AsyncIterator[Any]:
        async for chunk in await client.responses.create(model=MODEL, input="What is a canon?", stream=True):
            yield chunk

    return read


def anthropic(url: str) -> Callable[[], AsyncIterator[Any]]:
    from anthropic import AsyncAnthropic

    client = AsyncAnthropic(base_url=url, api_key="key")

    async def read() -> AsyncIterator[Any]:
        async for chunk in await client.messages.create(model=MODEL, messages=HELLO, max_tokens=1000, stream=True):  # type: ignore[arg-type]
            yield chunk

    return read


class Counting(asyncio.Protocol):
    """Asks, and counts the pieces in which the answer comes."""

    def __init__(self, path: str, counted: Callable[[int], None]) -> None:
        self.request = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n".encode()
        self.counted = counted

    def connection_made(self, transport: Any) -> None:
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.counted(1)


class Decoding(Counting):
    """Counts the JSON values of its events."""

    def __init__(self, path: str, counted: Callable[[int], None]) -> None:
        import httptools
        import msgspec

        from legato.sse import Decoder

        super().__init__(path, counted)
        self.parse = httptools.HttpResponseParser(self).feed_data
        self.feed, self.decode = Decoder().feed, msgspec.json.decode

    def data_received(self, data: bytes) -> None:
        self.parse(data)

    def on_body(self, body: bytes) -> None:
        messages = self.feed(body)
        for message in messages:
            self.decode(message.data)
        self.counted(len(messages))


PATHS = {"ChatCompletions": "/v1/chat/completions", "Responses": "/v1/responses", "Anthropic": "/v1/messages"}
BARE = {"bytes": Counting, "bare": Decoding}
"""Who is no client."""

CLIENTS: dict[str, Callable[[str], Callable[[], AsyncIterator[Any]]]] = {
    **{f"legato-{wire}": legato(wire) for wire in ("ChatCompletions", "Responses", "Anthropic")},
    **{f"library-{wire}": legato(wire, library=True) for wire in ("ChatCompletions", "Responses", "Anthropic")},
    "openai-ChatCompletions": openai_chat,
    "openai-Responses": openai_responses,
    "anthropic-Anthropic": anthropic,
}


async def main(client: str, port: str, answers: int, seconds: float) -> None:
    counts = [0] * answers
    kind, _, wire = client.partition("-")
    ask = None if kind in BARE else CLIENTS[client](f"http://127.0.0.1:{port}")

    async def read(place: int) -> None:
        def count(number: int) -> None:
            counts[place] += number

        if ask is None:
            loop = asyncio.get_running_loop()
            await loop.create_connection(lambda: BARE[kind](PATHS[wire], count), "127.0.0.1", int(port))
        else:
            async for _ in ask():
                counts[place] += 1

    tasks = [asyncio.create_task(read(place)) for place in range(answers)]
    while min(counts) < 2:
        await asyncio.sleep(0.05)
        for task in tasks:
            if task.done():
                task.result()
    chunks, begun, cpu = sum(counts), time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    chunks, cpu, taken = sum(counts) - chunks, time.process_time() - cpu, time.perf_counter() - begun
    print(cpu / chunks * 1e6, chunks / taken, flush=True)
    os._exit(0)  # what the clients do at the end is not the subject


if __name__ == "__main__":
    name, loop, *rest = sys.argv[1:]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop if loop == "uvloop" else None) as runner:
        runner.run(main(name, rest[0], int(rest[1]), float(rest[2])))
