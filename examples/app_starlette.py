"""Legato inside a Starlette application, under /chat, with something of the application's own to start and stop.

uvicorn app_starlette:site --port 8088
"""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import RedirectResponse
from starlette.routing import Mount, Route

from legato import Legato, Turn

chat = Legato(os.environ.get("LEGATO_STORE", "sqlite:///legato.db"))


@chat.agent
async def echo(turn: Turn) -> AsyncIterator[str]:
    """Says your words back, one at a time."""
    for word in turn.message.text.split():
        yield f"{word} "
        await asyncio.sleep(0.05)


async def home(request: Request) -> RedirectResponse:
    return RedirectResponse("/chat/")


@asynccontextmanager
async def lifespan(site: Starlette) -> AsyncIterator[None]:
    # open what is yours here
    async with chat.lifespan(site):
        yield
    # and close it here


site = Starlette(routes=[Route("/", home), Mount("/chat", chat)], lifespan=lifespan)
