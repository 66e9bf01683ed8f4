"""What it costs to be looked after: figures that are asked for each second, and spans of each run.

*Nobody looks* counts as all the others do, since counting is not turned off; with ``--base`` a revision that does not
count is measured beside it. Spans are gathered by OpenTelemetry's SDK and then thrown away. All servers run at the same
time, with the same to do, and little of it; see ``support/pairs.py`` for how they are compared.

Two works: sessions whose agents speak, each with a reader; and messages, each answered by one word.

    python benchmarks/operations.py [--base CHECKOUT] [--seconds S] [--quick] [--save]
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

from chat import LONGEST, SETTLE
from support.chats import PATH, make_sessions, send_all
from support.load import Server, request, serving
from support.pairs import AGAIN, Rounds
from support.results import machine
from support.sides import parser, sides
from support.sseload import Load

SESSIONS, RATE = 40, 20.0
"""Of each server; a tenth of a core."""
MESSAGES = 40.0
"""A second, to each server."""
EVERY = 1.0
"""Seconds between two scrapes; Prometheus' own default is a minute."""
ROUND = 2.0
"""Seconds: as many scrapes in each."""
NOBODY = "nobody looks"
WAYS = {
    NOBODY: [],
    f"{NOBODY}, {AGAIN}": [],
    "scraped": ["--metrics"],
    "traced": ["--traces"],
    "scraped and traced": ["--metrics", "--traces"],
}


@contextlib.asynccontextmanager
async def meanwhile(*bodies: Callable[[], object]) -> AsyncIterator[None]:
    """While this lasts, do these over and over, on a schedule of their own; what they raise is raised at the end."""

    async def repeat(body: Callable[[], object]) -> None:
        while True:
            await body()  # type: ignore[misc]

    tasks = [asyncio.create_task(repeat(body)) for body in bodies]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        for outcome in await asyncio.gather(*tasks, return_exceptions=True):
            if not isinstance(outcome, asyncio.CancelledError):
                raise outcome


def spent(server: Server) -> float:
    """Microseconds of CPU of all its threads, as the scheduler counts: the usual figure has steps of 10 ms."""
    times = Path(f"/proc/{server.pids[0]}/task").glob("*/schedstat")
    return sum(int(path.read_text().split()[0]) for path in times) / 1e3


async def compare(title: str, servers: Mapping[str, Server], seconds: float, done: Callable[[Server], float]) -> Rounds:
    """What each thing costs that is done, in so many rounds; ``done`` says how many have been."""
    rounds = Rounds(title, NOBODY)
    for _ in range(max(round(seconds / ROUND), 1)):
        before = {name: (spent(server), done(server)) for name, server in servers.items()}
        await asyncio.sleep(ROUND)
        now = {name: (spent(server), done(server)) for name, server in servers.items()}
        rounds.add({name: (now[name][0] - cpu) / (now[name][1] - count) for name, (cpu, count) in before.items()})
    return rounds


def scrapes(servers: Mapping[str, Server]) -> list[Callable[[], object]]:
    async def scrape(server: Server) -> None:
        await server.bench("metrics")
        await asyncio.sleep(EVERY)

    return [lambda server=server: scrape(server) for name, server in servers.items() if "scraped" in name]


async def tokens(servers: Mapping[str, Server], seconds: float) -> Rounds:
    loads = []
    for server in servers.values():
        await make_sessions(server, SESSIONS)
        load = Load(server, SESSIONS, seconds, ["--tokens", PATH])
        await load.open()
        loads.append(load)
        await send_all(server, SESSIONS, f"tokens {RATE} {RATE * LONGEST:.0f}")
    await asyncio.sleep(SETTLE)
    for load in loads:
        load.go()
    begun = time.monotonic()
    async with meanwhile(*scrapes(servers)):
        title = f"CPU µs a token, {SESSIONS} sessions x {RATE:g}/s"
        # Each says so many a second on a schedule that does not drift; the load clients count them.
        found = await compare(title, servers, seconds, lambda _: (time.monotonic() - begun) * SESSIONS * RATE)
    for name, load in zip(servers, loads, strict=True):
        kept = (await load.figures())["tokens_per_s"] / (SESSIONS * RATE)
        if kept < 0.97:
            print(f"{name} has kept {kept:.2f} of the rate: the machine has too much to do.", flush=True)
    for server in servers.values():
        await asyncio.gather(*(server.ask("POST", f"/api/sessions/c{each}/cancel") for each in range(SESSIONS)))
    return found


async def messages(servers: Mapping[str, Server], seconds: float) -> Rounds:
    counts = dict.fromkeys(servers.values(), 0)

    async def talk(server: Server) -> None:
        post, begun = await server.post(), time.monotonic()
        for number in range(round((seconds + SETTLE) * MESSAGES * 2)):
            await asyncio.sleep(max(begun + number / MESSAGES - time.monotonic(), 0))
            await post.send(request("POST", f"/api/sessions/m{number % 30}/messages", {"text": "word"}))
            counts[server] += 1

    for server in servers.values():
        await make_sessions(server, 30, "m")
    talks = [lambda server=server: talk(server) for server in servers.values()]
    async with meanwhile(*scrapes(servers), *talks):
        await asyncio.sleep(SETTLE)
        return await compare(f"CPU µs a message, {MESSAGES:g} a second", servers, seconds, counts.__getitem__)


async def measure(servers: Mapping[str, Server], seconds: float) -> list[str]:
    lines = []
    for work in (tokens, messages):
        table = (await work(servers, seconds)).table()
        lines += [*table, ""]
        print("\n".join(table), end="\n\n", flush=True)
    return lines


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--seconds", type=float, default=100.0, help="of each work")
    made.add_argument("--quick", action="store_true")
    options = made.parse_args()
    this, *base = sides(options)
    about = [*machine().values(), "; ".join(f"{side.name}: {side.revision}" for side in (this, *base)), ""]
    print("\n".join(about), flush=True)
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(serving(this, *arguments)) for name, arguments in WAYS.items()}
        servers |= {f"{NOBODY}, base": stack.enter_context(serving(each)) for each in base}
        lines = asyncio.run(measure(servers, 4.0 if options.quick else options.seconds))
    if options.save:
        (options.save / "operations.txt").write_text("\n".join([*about, *lines]))


if __name__ == "__main__":
    main()
