"""For tests that count pieces: what an agent says at once is stored as one piece, so it is to wait after each."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from legato import Agent, Turn


def stepwise(agent: Agent) -> Agent:
    """The agent, which goes on when what it said is stored."""

    async def answer(turn: Turn) -> AsyncIterator[Any]:
        async with contextlib.aclosing(agent.stream(turn)) as items:
            async for item in items:
                yield item
                await turn.stored()

    return Agent(answer, name=agent.name, on_crash=agent.on_crash, description=agent.description)
