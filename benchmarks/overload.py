"""More than a process can do: a thousand runs, each with a reader, at a rate that is kept or not, and at twice that.

Messages come over some seconds, whoever waits; then the runs speak until they have said all of it. Reported: CPU for
each token over the whole time, for how much longer than planned the last reader had to wait, how many tokens have not
come (none may), how long a message took to be answered, and how many were refused (503, and sent again after the
``Retry-After`` that must be with it).

    python benchmarks/overload.py [--base CHECKOUT] [--rounds N] [--seconds S] [--works WORD] [--quick] [--save]
"""

from __future__ import annotations

import asyncio
import time

from support.chats import PATH, make_sessions, send_all
from support.contenders import Contender, contenders
from support.results import Column, Figures, Results, parser
from support.sseload import Load, per_token

SENDING = 5.0
"""Seconds over which the messages come."""
PATIENCE = 90.0
"""Seconds after which who has not got everything has lost something."""
RATES = [30.0, 60.0]
COLUMNS = [
    Column("us", "CPU us/token"),
    Column("us_event", "us/event"),
    Column("p50", "p50 ms", ".0f"),
    Column("p99", "p99 ms", ".0f"),
    Column("late", "last late, s"),
    Column("missing", "tokens lost", ".0f", most=True),
    Column("faults", "faults", ".0f", most=True),
    Column("post_p50", "POST p50 ms"),
    Column("post_p99", "POST p99 ms"),
    Column("post_max", "POST max ms", ".0f", most=True),
    Column("refused", "refused", ".0f", most=True),
]


async def measure(contender: Contender, sessions: int, rate: float, seconds: float) -> Figures:
    with contender.serving(sessions, rate) as server:
        await make_sessions(server, sessions)
        load = Load(server, sessions, PATIENCE, ["--tokens=content", "--stop-event", "complete", PATH])
        await load.open()
        load.go()
        begun = time.monotonic()
        count = int(rate * seconds)
        tries = await send_all(server, sessions, f"tokens {rate} {count}", seconds=SENDING)
        found = await load.figures()
        times = sorted(each.took * 1e3 for each in tries)
        return {
            **per_token(found, sessions * rate),
            "late": time.monotonic() - begun - SENDING - seconds,
            "missing": sessions * count - found["all_tokens"],
            "post_p50": times[len(times) // 2],
            "post_p99": times[int(len(times) * 0.99)],
            "post_max": times[-1],
            "refused": len(tries) - sessions,
        }


def main() -> None:
    options = parser(__doc__, rounds=1, seconds=6.0).parse_args()
    sessions = 1_000
    if options.quick:
        options.seconds, sessions = 2.0, 300
    results = Results("overload", options, COLUMNS)
    everybody = contenders(options)
    for rate in RATES:
        results.run(
            f"{sessions:,} runs x {rate:g}/s",
            everybody,
            lambda each, rate=rate: asyncio.run(measure(each, sessions, rate, options.seconds)),
        )
    results.save("us", "CPU µs of the server for each token")


if __name__ == "__main__":
    main()
