"""The honest load: people who talk, reload in the middle of an answer, and read what was said. It checks every answer.

What it measures is what people feel: how long a piece takes from the agent's ``yield`` to the reader, how long it takes
until a message is taken, and how long ``GET /health``.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import defaultdict

import msgspec

from ..client import AsyncClient, CompleteEvent, ContentEvent
from ..http.errors import ClientError

RATE, PIECES = 20, 40
MESSAGES = 5
"""Messages in one conversation; then it is deleted, and another one begins."""


class Measured(msgspec.Struct):
    """What was measured, and what was wrong.

    Attributes:
        waits: seconds, by what was waited for.
        answers: that came to their ends, with all that was said.
        faults: what was lost, doubled, out of order, or ended otherwise than it should.
        refused: how often by which code.
    """

    waits: dict[str, list[float]] = msgspec.field(default_factory=lambda: defaultdict(list))
    answers: int = 0
    faults: list[str] = []
    refused: dict[str, int] = msgspec.field(default_factory=lambda: defaultdict(int))

    def quantile(self, name: str, share: float) -> float:
        """The time within which this share of the waits was over; 0 if there were none."""
        waits = sorted(self.waits[name])
        return waits[min(int(len(waits) * share), len(waits) - 1)] if waits else 0.0


async def honest_load(url: str, people: int, seconds: float, seed: int, load: Measured | None = None) -> Measured:
    """Let so many people talk for so long, and wait until the last has had its answer.

    Args:
        url: of the server.
        people: who talk at once.
        seconds: after which nobody says anything more.
        seed: of what is random in it.
        load: what has been measured so far, for who looks meanwhile.
    """
    load = Measured() if load is None else load
    until = time.monotonic() + seconds
    async with AsyncClient(url) as client:
        await asyncio.gather(
            _look_after(client, load, until),
            *(_talk(client, load, until, random.Random(f"{seed} {each}")) for each in range(people)),  # noqa: S311  # no secret
        )
    return load


async def _look_after(client: AsyncClient, load: Measured, until: float) -> None:
    while time.monotonic() < until:
        await asyncio.sleep(0.1)
        began = time.monotonic()
        await client.system.get_health()
        load.waits["health"].append(time.monotonic() - began)


async def _talk(client: AsyncClient, load: Measured, until: float, dice: random.Random) -> None:
    await asyncio.sleep(dice.random())
    while time.monotonic() < until:
        try:
            session = (await client.sessions.create(title="honest", agent="honest")).id
            for _ in range(MESSAGES):
                await _ask(client, load, session, dice)
                await asyncio.sleep(dice.random())
                if time.monotonic() > until:
                    break
            said = await client.sessions.messages(session)
            if len(said) % 2:
                load.faults.append(f"{session}: {len(said)} messages in the history")
            await client.sessions.delete(session)
        except ClientError as exc:
            load.refused[exc.code] += 1


async def _ask(client: AsyncClient, load: Measured, session: str, dice: random.Random) -> None:
    key = f"k{dice.getrandbits(64):x}"
    text = f"{RATE} {PIECES}"
    leaves = dice.randrange(PIECES) if dice.random() < 0.3 else None
    if leaves is not None:  # a page that is reloaded in the middle of the answer
        async with client.ask(text, session_id=session, idempotency_key=key) as answer:
            pieces = 0
            async for event in answer:
                pieces += isinstance(event, ContentEvent)
                if pieces > leaves:
                    break
    began = time.monotonic()
    async with client.ask(text, session_id=session, idempotency_key=key) as answer:
        load.waits["taken"].append(time.monotonic() - began)
        got = ""
        async for event in answer:
            if isinstance(event, ContentEvent):
                now = time.monotonic_ns()
                got += event.data.content
                if leaves is None:  # else it has waited for us
                    sent = [int(piece.partition("@")[2]) for piece in event.data.content.split()]
                    load.waits["piece"] += [(now - each) / 1e9 for each in sent]
    numbers = [int(piece.partition("@")[0]) for piece in got.split()]
    if numbers != list(range(PIECES)):
        load.faults.append(f"{session}: got the pieces {numbers}, expected {PIECES} in order")
    elif not isinstance(answer.outcome, CompleteEvent) or answer.outcome.data.content != got:
        load.faults.append(f"{session}: the answer ended as {answer.outcome}"[:500])
    else:
        load.answers += 1
