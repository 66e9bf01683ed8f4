"""The agents that Deva's library talks to: one at a walking pace, that goes on where a dead process stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from legato.agent import Agent, Turn
from legato.errors import AgentError

# Seconds between two words: slow enough that readers come and go in between, whatever the machine.
PACE = 0.02
WORDS = tuple(f"word-{number} " for number in range(60))


async def walk(turn: Turn) -> AsyncIterator[Any]:
    """Says all words, or what the message asks for: ``stand`` goes no further than to the middle before its process
    has died, and ``until FILE`` before there is that file.
    """
    if turn.message.text == "short":
        for piece in ("One é🎵\n\n", "two ", '"three"'):
            yield piece
            await turn.stored()  # else what is said at once is one piece
        return
    said = "".join(event.data["text"] for event in turn.events if event.type == "text.delta")
    for place, word in enumerate(WORDS):
        if len("".join(WORDS[:place])) < len(said):
            continue
        while _waits(turn, place):  # noqa: ASYNC110
            await asyncio.sleep(PACE)
        yield word
        if turn.message.text == "fail" and place == 2:
            raise AgentError("No.", code="no")
        await asyncio.sleep(PACE)


def _waits(turn: Turn, place: int) -> bool:
    text = turn.message.text
    if place != len(WORDS) // 2:
        return False
    return (text == "stand" and turn.attempt == 1) or (text.startswith("until ") and not Path(text[6:]).exists())


agent = Agent(walk, name="walk", on_crash="resume")
