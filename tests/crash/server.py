"""A server to be killed: ``python server.py FILE DURABILITY`` prints its address and serves until it dies."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator

from legato import Legato, Turn
from legato.bounds import Limits
from legato.server.serve import listen, serve
from legato.store.sqlite import SQLiteStore

PACE = 0.003
"""Seconds between two words."""

app = Legato(SQLiteStore(sys.argv[1], durability=sys.argv[2]), limits=Limits(attempts=100), page=False)


def words(turn: Turn, number: int) -> list[str]:
    return [f"{turn.message.text}:{word} " for word in range(number)]


@app.agent
async def quick(turn: Turn) -> AsyncIterator[str]:
    for word in words(turn, 3):
        yield word


@app.agent
async def slow(turn: Turn) -> AsyncIterator[str]:
    for word in words(turn, 60):
        await asyncio.sleep(PACE)
        yield word


@app.agent(on_crash="retry")
async def retry(turn: Turn) -> AsyncIterator[str]:
    for word in words(turn, 30):
        await asyncio.sleep(PACE)
        yield word


@app.agent(on_crash="resume")
async def resume(turn: Turn) -> AsyncIterator[str]:
    said = "".join(event.data["text"] for event in turn.events if event.type == "text.delta").count(" ")
    for word in words(turn, 40)[said:]:
        await asyncio.sleep(PACE)
        yield word


if __name__ == "__main__":
    listener = listen("127.0.0.1", 0)
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    serve(app, listener)
