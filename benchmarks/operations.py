"""What it costs to be looked after: figures that are asked for each second, and spans of each run.

*Nobody looks* counts as all the others do, since counting is not turned off; with ``--base`` a revision that does not
count is measured beside it. Spans are gathered by OpenTelemetry's SDK and then thrown away.

Two works: sessions whose agents speak, each with a reader; and messages, each answered by one word, one after another.

    python benchmarks/operations.py [--base CHECKOUT] [--rounds N] [--seconds S] [--quick] [--save]
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

from chat import LONGEST, SETTLE
from support.chats import PATH, make_sessions, send_all
from support.contenders import Contender
from support.load import Server, request, serving
from support.results import TOKENS, Column, Figures, Results, parser
from support.sides import sides
from support.sseload import Load, per_token

SESSIONS, RATE = 200, 30.0
EVERY = 1.0
"""Seconds between two scrapes; Prometheus' own default is a minute."""
WAYS = {"scraped": ["--metrics"], "traced": ["--traces"], "scraped and traced": ["--metrics", "--traces"]}


@contextlib.asynccontextmanager
async def scraping(server: Server, wanted: bool) -> AsyncIterator[None]:
    async def scrape() -> None:
        while True:
            await server.bench("metrics")
            await asyncio.sleep(EVERY)

    task = asyncio.create_task(scrape()) if wanted else None
    try:
        yield
    finally:
        if task is not None:
            task.cancel()


async def tokens(contender: Contender, seconds: float) -> Figures:
    with contender.serving(SESSIONS, RATE) as server:
        await make_sessions(server, SESSIONS)
        load = Load(server, SESSIONS, seconds, ["--tokens", PATH])
        await load.open()
        await send_all(server, SESSIONS, f"tokens {RATE} {RATE * LONGEST:.0f}")
        async with scraping(server, "scraped" in contender.name):
            await asyncio.sleep(SETTLE)
            load.go()
            return per_token(await load.figures(), SESSIONS * RATE)


async def messages(contender: Contender, seconds: float) -> Figures:
    with contender.serving(1, 0) as server:
        await make_sessions(server, 30)
        post = await server.post()
        async with scraping(server, "scraped" in contender.name):
            for warm in (True, False):
                began, before, count = time.monotonic(), _cpu(server), 0
                while time.monotonic() < began + (1.0 if warm else seconds):
                    body = {"text": "word"}
                    await post.send(request("POST", f"/api/sessions/c{count % 30}/messages", body))
                    count += 1
        return {"us": (_cpu(server) - before) / count * 1e6, "a_second": count / (time.monotonic() - began)}


def _cpu(server: Server) -> float:
    """Seconds that the server has used of a core."""
    fields = Path(f"/proc/{server.pids[0]}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    options = parser(__doc__, seconds=5.0).parse_args()
    if options.quick:
        options.rounds, options.seconds = 1, 2.0
    this, *base = sides(options)
    who = [Contender("Legato", this), *(Contender("Legato, base", each) for each in base)]
    for name, arguments in WAYS.items():
        serve = functools.partial(serving, this, *arguments)
        who.append(Contender(name, serve=lambda channels, rate, serve=serve: serve()))
    results = Results("operations", options, [*TOKENS])
    results.run(f"{SESSIONS} sessions x {RATE:g}/s", who, lambda each: asyncio.run(tokens(each, options.seconds)))
    results.save("us", "CPU µs of the server for each token")
    options.save = None
    more = Results("messages", options, [Column("us", "CPU us/message"), Column("a_second", "a second")])
    more.run("messages", who, lambda each: asyncio.run(messages(each, options.seconds)))


if __name__ == "__main__":
    main()
