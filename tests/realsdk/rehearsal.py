"""Readers for the deploy rehearsal (``test_rehearsal.py``): ``rehearsal.py KIND`` with what to read on standard input.

It prints ``open`` when each reader has a connection, and then what each was told, as JSON. It runs under the Python
that has the kind's library, so it imports nothing else.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

LAST = "<last>"
"""In the text of the answer at whose end a reader leaves."""
PAUSE = 0.3
"""Seconds before a library that does not come back by itself is asked to."""


class Reader:
    """One reader: at a proxy, of a session."""

    def __init__(self, base: str, session: str, opened: asyncio.Semaphore) -> None:
        self.base = base
        self.session = session
        self.told: list[tuple[str, str, str]] = []
        self.connections = 0
        self.over = False
        self._opened = opened
        self._last = False

    def open(self) -> None:
        self.connections += 1
        if self.connections == 1:
            self._opened.release()

    def take(self, event: str, id: str, data: Any) -> None:
        text = data.content if event == "content" else ""
        if event == "connected":
            self.open()
        if event in ("connected", "heartbeat"):
            return
        self.told.append((event, id, text))
        self._last = self._last or LAST in text
        self.over = self.over or (self._last and event == "complete")


async def legato(reader: Reader) -> None:
    """Our own client, as it comes."""
    from legato import AsyncClient

    async with (
        AsyncClient(reader.base) as client,
        client.streaming.stream_events(session_id=reader.session, from_="start") as stream,
    ):
        async for event in stream:
            reader.take(event.event, event.id or "", event.data)
            if reader.over:
                return


async def openai(reader: Reader) -> None:
    """An answer of its own, asked for in the background, as OpenAI's guide says to read one that may be cut."""
    from openai import APIConnectionError, APIStatusError, AsyncOpenAI
    from openai.types.responses import ResponseStreamEvent

    async with AsyncOpenAI(base_url=f"{reader.base}/v1", api_key="none", max_retries=10) as client:
        response, after = "", -1
        while not reader.over:
            try:
                if not response:
                    stream: Any = await client.responses.create(
                        model="agent", input="openai", stream=True, background=True
                    )
                else:
                    stream = await client.responses.retrieve(response, stream=True, starting_after=after)
                event: ResponseStreamEvent
                async for event in stream:
                    response = event.response.id if event.type == "response.created" else response
                    if event.type == "response.created":
                        reader.open()
                    after = event.sequence_number
                    reader.told.append((event.type, str(after), getattr(event, "delta", "")))
                    reader.over = reader.over or event.type == "response.completed"
            except (APIConnectionError, APIStatusError, OSError) as exc:
                if getattr(exc, "status_code", 503) < 500:
                    raise
            except Exception as exc:  # of its HTTP library, in the middle of a body
                if not type(exc).__module__.startswith("httpx"):
                    raise
            await asyncio.sleep(0 if reader.over else PAUSE)


async def mix(reader: Reader) -> None:
    """The published SDK, which never comes back by itself."""
    import httpx
    from mix_python_sdk import Mix
    from mix_python_sdk.errors import MixError

    async with Mix(server_url=reader.base, async_client=httpx.AsyncClient(timeout=None)) as client:
        last = "0"  # from the start
        while not reader.over:
            try:
                answer = await client.streaming.stream_events_async(session_id=reader.session, last_event_id=last)
                async for event in answer.result:
                    last = event.id or last
                    reader.take(event.event, event.id or "", event.data)
                    if reader.over:
                        break
            except (httpx.TransportError, MixError) as exc:
                if getattr(exc, "status_code", 503) < 500:
                    raise
            await asyncio.sleep(0 if reader.over else PAUSE)


KINDS = {"legato": legato, "openai": openai, "mix": mix}


async def main() -> None:
    """Read as all of them at once."""
    wanted = json.loads(sys.stdin.readline())
    opened = asyncio.Semaphore(0)
    readers = [Reader(base, session, opened) for base, session in wanted]
    tasks = [asyncio.create_task(KINDS[sys.argv[1]](reader)) for reader in readers]  # type: ignore[arg-type]
    gathered = asyncio.gather(*tasks)
    for _ in readers:
        waiting = asyncio.create_task(opened.acquire())
        await asyncio.wait({waiting, gathered}, return_when=asyncio.FIRST_COMPLETED)
        if not waiting.done():
            await gathered
    print("open", flush=True)
    await gathered
    print(json.dumps([[reader.told, reader.connections] for reader in readers]), flush=True)


asyncio.run(main())
