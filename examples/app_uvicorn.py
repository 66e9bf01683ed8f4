"""Legato as an application of its own, under any ASGI server.

    uvicorn app_uvicorn:app --port 8088

Then open http://localhost:8088, or use the API: see http://localhost:8088/docs.
"""

import asyncio
import os
from collections.abc import AsyncIterator

from legato import Legato, Turn

app = Legato(os.environ.get("LEGATO_STORE", "sqlite:///legato.db"))


@app.agent
async def echo(turn: Turn) -> AsyncIterator[str]:
    """Says your words back, one at a time."""
    for word in turn.message.text.split():
        yield f"{word} "
        await asyncio.sleep(0.05)
