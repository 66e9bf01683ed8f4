"""Legato inside a FastAPI application, under /chat.

    pip install 'legato[server]' fastapi
    uvicorn app_fastapi:api --port 8088

A mounted application is not started by the server, so ``lifespan=chat.lifespan`` does it.
"""

import asyncio
import os
from collections.abc import AsyncIterator

from fastapi import FastAPI

from legato import Legato, Turn

chat = Legato(os.environ.get("LEGATO_STORE", "sqlite:///legato.db"))


@chat.agent
async def echo(turn: Turn) -> AsyncIterator[str]:
    """Says your words back, one at a time."""
    for word in turn.message.text.split():
        yield f"{word} "
        await asyncio.sleep(0.05)


api = FastAPI(lifespan=chat.lifespan)
api.mount("/chat", chat)


@api.get("/")
async def hello() -> dict[str, str]:
    """Your own routes stand beside it."""
    return {"chat": "/chat/"}
