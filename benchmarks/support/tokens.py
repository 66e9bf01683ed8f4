"""What every agent and every peer says: numbered tokens, each with the time at which it was made.

    @MICROSECONDS.NUMBER; token

``sseload --tokens`` finds them however a server puts them into events, and checks that the numbers have no gap.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator


def token(number: int) -> str:
    return f"@{time.time_ns() // 1000}.{number}; token "


async def tokens(rate: float, count: int | None = None) -> AsyncIterator[tuple[int, str]]:
    """``rate`` tokens a second, on a schedule that does not drift: who is held up makes up for it.

    Args:
        rate: per second.
        count: how many; None: for ever.
    """
    begun = time.monotonic()
    for number in itertools.count(1) if count is None else range(1, count + 1):
        await asyncio.sleep(max(begun + number / rate - time.monotonic(), 0))
        yield number, token(number)
