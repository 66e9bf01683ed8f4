"""What it costs to store one delta in the SQLite store: by the clock, in CPU, and on the disk.

Appenders, each with a session and a run of its own, append one short text delta under its lease and wait for its answer
before the next one: as fast as they can, or, as a chat does, 30 times a second each. The event holds some 150 bytes:
its run, its type, its place and its text. *Written* is what the process has given to the disk (Linux: ``write_bytes``
of ``/proc/self/io``), with the checkpoint at the end, from when the write-ahead log was full for the first time. Then
what it costs to read the log again after a restart, by one reader and by 100 who begin together.

Each side has a process of its own for each measurement; they take turns, and the medians of the rounds count. On a
machine that others use, compare CPU and bytes. The folder should be on the disk that you want to know about.

    python benchmarks/sqlite_append.py [--base PATH] [--rounds 3] [--seconds 2] [--folder DIR] [--save]
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from support.sides import Report, Side, check_sources, in_turn, parser, sides

TEXT = " and then some words more"
RUN = "s_0123456789abcdef0123456789abcdef~0a"
RATE = 30
LOADS = [(1, 0, "full"), (10, 0, "full"), (100, 0, "full"), (400, 0, "full"), (100, 0, "normal"), (400, RATE, "full")]
"""Appenders, appends a second of each (0: as fast as they can), and durability."""
WAL_FILL = 6
"""Megabytes stored before the measurement: SQLite begins anew at the beginning of its write-ahead log after 4."""
DELTAS, READERS = 20_000, 100

Figures = dict[str, float]


def written() -> int:
    """Bytes that this process has given to the disk."""
    path = Path("/proc/self/io")
    lines = path.read_text().splitlines() if path.exists() else []
    return next((int(line.split()[1]) for line in lines if line.startswith("write_bytes")), 0)


async def append(folder: str, appenders: int, rate: float, durability: str, seconds: float) -> Figures:
    """Figures for each append: acknowledged in a second, milliseconds of 50 and 99 of 100, CPU (us), bytes written."""
    from legato.event import Draft, MessageCreated, SessionCreated, TextDelta
    from legato.log import Take
    from legato.store.sqlite import SQLiteStore

    store = SQLiteStore(Path(folder) / "log.db", durability=durability)
    await store.open()
    begin = [Draft(SessionCreated()), Draft(MessageCreated("m", "user", "go"), RUN)]
    names = [f"s{number}" for number in range(appenders)]
    begun = await asyncio.gather(*[store.append(name, begin, take=Take(RUN, "me", 1_000)) for name in names])
    for _ in range(WAL_FILL):
        await store.append(names[0], [Draft(TextDelta(0, 1, 0, "x" * 1_000_000), RUN)])
    times: list[float] = []
    before, cpu, start = written(), time.process_time(), time.perf_counter()

    async def speak(number: int) -> None:
        name, lease, place = names[number], begun[number].lease, 0
        due = start + (number / appenders / rate if rate else 0)
        while (now := time.perf_counter()) < start + seconds:
            if due > now:
                await asyncio.sleep(due - now)
                now = time.perf_counter()
            await store.append(name, [Draft(TextDelta(0, 1, place, TEXT), RUN)], lease=lease)
            times.append(time.perf_counter() - now)
            place += len(TEXT)
            due += 1 / rate if rate else 0

    await asyncio.gather(*map(speak, range(appenders)))
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    await store.close()
    times.sort()
    return {
        "acks/s": len(times) / took,
        "p50 ms": times[len(times) // 2] * 1e3,
        "p99 ms": times[len(times) * 99 // 100] * 1e3,
        "CPU us": cpu / len(times) * 1e6,
        "written": (written() - before) / len(times),
    }


async def read(folder: str) -> Figures:
    """CPU for each event given to a reader (us), after a restart."""
    from legato.event import Draft, MessageCreated, SessionCreated, TextDelta
    from legato.log import Log
    from legato.store.sqlite import SQLiteStore

    figures: Figures = {}
    store = SQLiteStore(Path(folder) / "log.db", durability="normal")
    await store.open()
    await store.append("s", [Draft(SessionCreated()), Draft(MessageCreated("m", "user", "go"), RUN)])
    for place in range(0, DELTAS, 4):
        await store.append("s", [Draft(TextDelta(0, 1, place + number, TEXT), RUN) for number in range(4)])

    async def follow() -> None:
        if len([event async for event in Log(store, "s").all()]) != DELTAS + 2:
            raise RuntimeError("A reader has not been given the whole log.")

    for readers in (1, READERS):
        await store.close()
        await store.open()
        cpu = time.process_time()
        await asyncio.gather(*[follow() for _ in range(readers)])
        figures[f"{readers} reader{'s' if readers > 1 else ''}"] = (time.process_time() - cpu) / DELTAS / readers * 1e6
    await store.close()
    return figures


def serve(place: str, seconds: float, load: int) -> None:
    """One measurement, as a process of its own."""
    import uvloop

    check_sources()
    with tempfile.TemporaryDirectory(dir=place) as folder:
        doing = append(folder, *LOADS[load], seconds) if load < len(LOADS) else read(folder)
        print(json.dumps(uvloop.run(doing)))


def measure(side: Side, *arguments: str) -> Figures:
    process = side.start(Path(__file__), "serve", *arguments)
    output, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{side.name} failed.")
    figures: Figures = json.loads(output)
    return figures


def main() -> None:
    if sys.argv[1:2] == ["serve"]:
        serve(sys.argv[2], float(sys.argv[3]), int(sys.argv[4]))
        return
    options = parser(__doc__)
    options.add_argument("--seconds", type=float, default=2, help="of each measurement")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--folder", type=Path, default=Path(), help="where the files are made (default: here)")
    chosen = options.parse_args()
    both = sides(chosen)
    report = Report("sqlite_append", both)
    titles = [
        f"{count:,} appender{'s' if count > 1 else ''}, {f'{rate}/s each' if rate else 'no pause'}, {durability}"
        for count, rate, durability in LOADS
    ]
    for number, title in enumerate([*titles, f"reading {DELTAS:,} deltas after a restart, CPU us for each"]):
        rounds: dict[str, list[Figures]] = {side.name: [] for side in both}
        for turn in range(chosen.rounds):
            for side in in_turn(both, turn):
                found = measure(side, str(chosen.folder), str(chosen.seconds), str(number))
                rounds[side.name].append(found)
        report.head(title)
        for figure in found:
            values = [statistics.median(each[figure] for each in rounds[side.name]) for side in both]
            report.row(figure, values, form=",.0f" if figure in ("acks/s", "written") else ",.2f")
    if chosen.save:
        report.save(chosen.save)


if __name__ == "__main__":
    main()
