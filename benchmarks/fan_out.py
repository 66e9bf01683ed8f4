"""One answer, many readers: what each token costs for each of them, beside servers that store nothing.

One agent, or one publisher, makes tokens at a steady rate, and all readers get each of them. Of Legato it is one run of
one session, in each of its dialects.

    python benchmarks/fan_out.py [--base CHECKOUT] [--rounds N] [--seconds S] [--works WORD] [--quick] [--save]
"""

from __future__ import annotations

import asyncio
from typing import NamedTuple

from support.contenders import Contender, contenders
from support.load import DIALECTS, Dialect, Mix
from support.results import TOKENS, Figures, Results, parser
from support.sseload import Load, asking, per_token

SETTLE = 2.0
"""Seconds between the last reader's coming and the measuring."""
LONGEST = 3_600
"""Seconds for which the agent would speak."""


class Work(NamedTuple):
    readers: int
    rate: float

    def __str__(self) -> str:
        return f"{self.readers:,} readers x {self.rate:g}/s"


WORKS = [Work(100, 20), Work(1_000, 20), Work(1_000, 50), Work(5_000, 20)]
IN_DIALECTS = Work(1_000, 20)


async def measure(contender: Contender, dialect: Dialect, work: Work, seconds: float) -> Figures:
    with contender.serving(1, work.rate) as server:
        if contender.side is not None:
            await dialect.begin(server, f"tokens {work.rate} {work.rate * LONGEST:.0f}")
            arguments = asking(dialect.live)
        else:
            arguments = ["/sub/0" if contender.name == "nchan" else "/fan"]
        load = Load(server, work.readers, seconds, ["--tokens", *arguments])
        await load.open()
        await asyncio.sleep(SETTLE)
        load.go()
        return per_token(await load.figures(), work.readers * work.rate)


def main() -> None:
    options = parser(__doc__).parse_args()
    works = WORKS
    if options.quick:
        options.rounds, options.seconds = 1, 2.0
        works = [Work(100, 20), Work(1_000, 20)]
    results = Results("fan_out", options, TOKENS)
    everybody = contenders(options, "raw ASGI", "sse-starlette", "nchan")

    def run(name: str, who: list[Contender], dialect: type[Dialect], work: Work) -> None:
        results.run(name, who, lambda each: asyncio.run(measure(each, dialect(), work, options.seconds)))

    for work in works:
        run(str(work), everybody, Mix, work)
    ours = [each for each in everybody if each.side is not None and not each.memory]
    for dialect in DIALECTS:
        if dialect is not Mix:
            run(f"{IN_DIALECTS} over {dialect.name}", ours, dialect, IN_DIALECTS)
    results.save("us", "CPU µs of the server for each token and reader")


if __name__ == "__main__":
    main()
