"""Many sessions at once, each with an agent that speaks and one reader: what a token costs, and how late it comes.

Legato stores each token, synced to disk, before its reader has it (and once more with its memory store); raw ASGI,
sse-starlette and nchan store nothing; Redis Streams is what people build who want to come back to an answer, with Redis
as it comes, which does not sync.

*Written* is what the server process had the kernel write to disk, for each token.

    python benchmarks/chat.py [--base CHECKOUT] [--rounds N] [--seconds S] [--works WORD] [--quick] [--save]
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from support.chats import PATH, make_sessions, send_all
from support.contenders import Contender, contenders
from support.results import TOKENS, Column, Figures, Results, parser
from support.sseload import Load, per_token

SETTLE = 2.0
"""Seconds between the last message and the measuring."""
LONGEST = 600
"""Seconds for which the agents would speak."""


class Work(NamedTuple):
    sessions: int
    rate: float

    def __str__(self) -> str:
        return f"{self.sessions:,} sessions x {self.rate:g}/s"


WORKS = [Work(100, 30), Work(400, 30), Work(1_000, 30)]


async def measure(contender: Contender, work: Work, seconds: float) -> Figures:
    with contender.serving(work.sessions, work.rate) as server:
        ours = contender.side is not None
        path = PATH if ours else "/sub/{i}" if contender.name == "nchan" else "/chat"
        if ours:
            await make_sessions(server, work.sessions)
        load = Load(server, work.sessions, seconds, ["--tokens", path])
        await load.open()
        if ours:
            await send_all(server, work.sessions, f"tokens {work.rate} {work.rate * LONGEST:.0f}")
        await asyncio.sleep(SETTLE)
        load.go()
        return per_token(await load.figures(), work.sessions * work.rate)


def main() -> None:
    options = parser(__doc__).parse_args()
    works = WORKS
    if options.quick:
        options.rounds, options.seconds = 1, 2.0
        works = [Work(100, 30), Work(400, 30)]
    results = Results("chat", options, [*TOKENS, Column("written", "written B", ".0f")])
    everybody = contenders(options, "raw ASGI", "sse-starlette", "nchan", "Redis Streams")
    for work in works:
        results.run(str(work), everybody, lambda each, work=work: asyncio.run(measure(each, work, options.seconds)))
    results.save("us", "CPU µs of the server for each token")


if __name__ == "__main__":
    main()
