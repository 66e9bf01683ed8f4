"""What a reader holds of the server's memory: one of many readers of an answer, one of a session in which nothing is
said, and one of a session that is being answered.

Reported is by how much the server's resident memory grew from before the first reader came, for each of them. What the
kernel keeps for a socket is not in it. Peers have no session in which nothing is said: theirs is a stream with a token
an hour.

    python benchmarks/memory.py [--base CHECKOUT] [--rounds N] [--seconds S] [--works WORD] [--quick] [--save]
"""

from __future__ import annotations

import asyncio

from support.chats import PATH, make_sessions, send_all
from support.contenders import Contender, contenders
from support.load import Mix
from support.results import Column, Figures, Results, parser
from support.sseload import Load, asking, faults

READERS = 1_000
RATES = {"fan-out": 10.0, "idle": 1 / 3600, "chat": 10.0}
"""Tokens a second of each channel."""


async def measure(contender: Contender, work: str, readers: int, seconds: float) -> Figures:
    rate = RATES[work]
    channels = 1 if work == "fan-out" else readers
    talk = f"tokens {rate} 100000"
    with contender.serving(channels, rate) as server:
        ours, nchan = contender.side is not None, contender.name == "nchan"
        mix = Mix()
        if ours and work == "fan-out":
            await mix.begin(server, talk)
            arguments = asking(mix.live)
        elif ours:
            await make_sessions(server, readers)
            arguments = [PATH]
        elif work == "fan-out":
            arguments = ["/sub/0" if nchan else "/fan"]
        else:
            arguments = ["/sub/{i}" if nchan else "/chat"]
        load = Load(server, readers, seconds, arguments)
        await load.open()
        if ours and work == "chat":
            await send_all(server, readers, talk)
        load.go()
        found = await load.figures()
        before, _, after = found["server_rss_kb"]
        return {"kb": (after - before) / readers, "before": before / 1024, "faults": faults(found)}


def main() -> None:
    options = parser(__doc__, rounds=1, seconds=6.0).parse_args()
    readers = READERS
    if options.quick:
        options.seconds, readers = 2.0, 300
    columns = [
        Column("kb", "KB/reader"),
        Column("before", "before, MB", ".0f"),
        Column("faults", "faults", ".0f", most=True),
    ]
    results = Results("memory", options, columns, ratio="kb")
    everybody = contenders(options, "raw ASGI", "sse-starlette", "nchan")
    for work in RATES:
        results.run(
            f"{work}, {readers:,} readers",
            everybody,
            lambda each, work=work: asyncio.run(measure(each, work, readers, options.seconds)),
        )
    results.save("kb", "KB of the server's memory for each reader")


if __name__ == "__main__":
    main()
