"""Readers who come late, all at once, to a long answer: to its start, after the server has been started again.

The answer is over, or it is still being given: its agent waits with the last word until all have what there is. After
the restart, nothing of the finished one is in memory; the running one is begun after it, since a run ends with its
process.

Reported: CPU of the server for each reader, and for each token and reader; bytes for each reader; and the time until
the last one had everything.

    python benchmarks/catch_up.py [--base CHECKOUT] [--rounds 1] [--dialects mix] [--quick] [--save]
"""

from __future__ import annotations

import asyncio
import tempfile

from support.contenders import Contender, contenders
from support.load import DIALECTS, Dialect, Server
from support.results import Column, Figures, Results, parser
from support.sseload import Load, asking, faults

READERS, TOKENS = 500, 20_000
PATIENCE = 300.0
COUNTED = {"mix": "content", "responses": "response.output_text.delta", "deva": "content"}
"""The events whose text counts, in dialects that say it again at the end."""
COLUMNS = [
    Column("cpu_ms", "CPU ms/reader", ".1f"),
    Column("us", "CPU us/token", ".2f"),
    Column("frames", "events/reader", ".0f"),
    Column("kb", "KB/reader", ".0f"),
    Column("took", "took, s", ".1f"),
    Column("rss", "RSS MB", ".0f"),
    Column("missing", "tokens lost", ".0f", most=True),
    Column("faults", "faults", ".0f", most=True),
]


async def speak(server: Server, dialect: Dialect, said: str, *options: str) -> None:
    """Have an answer given, and wait until a first reader has it."""
    await dialect.begin(server, said)
    load = Load(server, 1, PATIENCE, [*options, *asking(dialect.first)], at_once=True)
    await load.start()
    await load.figures()


async def measure(contender: Contender, dialect: Dialect, running: bool, readers: int, count: int) -> Figures:
    counted = COUNTED.get(dialect.name)
    all_tokens = [f"--tokens={counted}" if counted else "--tokens", "--expect", str(count)]
    with tempfile.TemporaryDirectory(prefix="legato-bench-") as folder:
        if not running:
            with contender.serving(1, 0, folder=folder) as server:
                await speak(server, dialect, f"many {count}", "--stop-event", "complete")
        with contender.serving(1, 0, folder=folder) as server:
            if running:
                await speak(server, dialect, f"many {count} last", *all_tokens)
            load = Load(server, readers, PATIENCE, [*all_tokens, *asking(dialect.first)], at_once=True)
            await load.start()
            found = await load.figures()
    return {
        "cpu_ms": found["server_cpu_s"] * 1e3 / readers,
        "us": found["server_cpu_s"] * 1e6 / (readers * count),
        "frames": found["all_events"] / readers,
        "kb": found["wire_bytes"] / 1e3 / readers,
        "took": found["seconds"],
        "rss": found["server_rss_kb"][2] / 1024,
        "missing": readers * count - found["all_tokens"],
        "faults": faults(found),
    }


def main() -> None:
    made = parser(__doc__, rounds=1)
    made.add_argument("--dialects", default="mix", help="which of mix, responses, chat and deva")
    options = made.parse_args()
    readers, count = READERS, TOKENS
    if options.quick:
        readers, count = 50, 5_000
    results = Results("catch_up", options, COLUMNS, ratio="cpu_ms")
    everybody = contenders(options, memory=False)
    for dialect in [each for each in DIALECTS if each.name in options.dialects.split(",")]:
        for running in (False, True):
            work = f"{readers} readers from the start of {'a running' if running else 'a finished'} answer of {count:,}"
            results.run(
                f"{work} tokens, {dialect.name}",
                everybody,
                lambda each, dialect=dialect, running=running: asyncio.run(
                    measure(each, dialect(), running, readers, count)
                ),
            )
    results.save("cpu_ms", "CPU ms of the server for each reader")


if __name__ == "__main__":
    main()
