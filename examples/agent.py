"""The smallest agent: a file with one function.

legato serve agent.py
"""

import asyncio
from collections.abc import AsyncIterator

from legato import Turn


async def agent(turn: Turn) -> AsyncIterator[str]:
    """Counts the words of what you say."""
    words = turn.message.text.split()
    for number, word in enumerate(words, start=1):
        yield f"{number}. {word}\n"
        await asyncio.sleep(0.2)
    yield f"That makes {len(words)}."
