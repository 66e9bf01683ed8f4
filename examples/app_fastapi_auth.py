"""Legato inside a FastAPI application that signs users in: by the same dependency as its own routes.

    pip install 'legato[server]' fastapi
    uvicorn app_fastapi_auth:api --port 8088
    curl localhost:8088/token -d 'username=alice&password=wonderland'

What is for real is yours: how passwords are checked, and what a token is.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.security import OAuth2PasswordBearer

from legato import Legato, Turn

oauth2 = OAuth2PasswordBearer(tokenUrl="token")
tokens: dict[str, str] = {}  # yours: a database, or signed tokens


async def current_user(token: Annotated[str, Depends(oauth2)]) -> str:
    """Who asks: the dependency of all routes."""
    if token not in tokens:
        raise HTTPException(401, "Sign in first.")
    return tokens[token]


async def user(request: Request) -> str:
    """The same for Legato."""
    return await current_user(await oauth2(request) or "")


chat = Legato(os.environ.get("LEGATO_STORE", "sqlite:///legato.db"), auth=user)


@chat.agent
async def echo(turn: Turn) -> AsyncIterator[str]:
    """Says your words back, to you by your name."""
    yield f"{turn.caller.subject}: "
    for word in turn.message.text.split():
        yield f"{word} "
        await asyncio.sleep(0.05)


api = FastAPI(lifespan=chat.lifespan)
api.mount("/chat", chat)


@api.post("/token")
async def sign_in(request: Request) -> dict[str, str]:
    """A token for who knows the password."""
    said = dict(pair.split("=", 1) for pair in (await request.body()).decode().split("&") if "=" in pair)
    if not secrets.compare_digest(said.get("password", ""), "wonderland"):
        raise HTTPException(401, "That is not the password.")
    token = secrets.token_urlsafe(32)
    tokens[token] = said.get("username", "somebody")
    return {"access_token": token, "token_type": "bearer"}


@api.get("/me")
async def me(name: Annotated[str, Depends(current_user)]) -> dict[str, str]:
    """A route of your own, with the same dependency."""
    return {"name": name}
