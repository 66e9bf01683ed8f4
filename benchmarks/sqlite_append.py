"""How fast appends to the SQLite store are acknowledged, and what durability and the way of writing cost.

    python benchmarks/sqlite_append.py [--seconds S] [--rounds N] [--folder DIR] > benchmarks/results/sqlite_append.txt

N appenders, each with a session of its own, append one short text delta and wait for the answer before the next one.
Rounds of all variants are interleaved, and the best round of each counts: what else the machine does only slows. *Busy*
means that the event loop always has other work, as that of a loaded server has: a task that computes for 1 ms, lets the
others run, and so on. The folder should be on the disk that you want to know about.

Columns: the store as it is, with ``durability`` FULL and NORMAL; then, in FULL, two other ways of writing a group
(BEGIN, multi-row INSERTs, COMMIT; and one statement for each row); then the store without its
``sys.setswitchinterval(0.0005)``, which lets a thread have its turn sooner (5 ms is Python's default). The second table
is the reader's side: rows as they are, against one row that SQL makes of them as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import apsw
import msgspec
import uvloop

from legato.event import Draft, Event, MessageCreated, SessionCreated, TextDelta, read_fact
from legato.store import sqlite, sqlite_file, sqlite_writer
from legato.store.sqlite import SQLiteStore
from legato.store.sqlite_file import EVENT, STATEMENT_ROWS, WIDTH

TEXT = " and then some words more"
BEGIN = [Draft(SessionCreated()), Draft(MessageCreated("m", "user", "go"), "r")]
PYTHONS_INTERVAL = 0.005


class Statements(sqlite_writer.Writer):
    """The usual way: BEGIN, multi-row INSERTs, COMMIT."""

    def _write_all(self, rows: list[Any]) -> None:
        if any(rows[at] != EVENT for at in range(0, len(rows), WIDTH)):
            super()._write_all(rows)
        elif rows:
            self._insert([rows[at + 1 : at + WIDTH] for at in range(0, len(rows), WIDTH)])

    def _insert(self, events: list[list[Any]]) -> None:
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        for start, count in chunks(len(events)):
            execute(
                "INSERT INTO event VALUES " + ",".join(["(?,?,?,?,?,?,CAST(? AS TEXT))"] * count),
                [value for event in events[start : start + count] for value in event],
            )
        execute("COMMIT")


class Rows(Statements):
    """The plain way: one statement for each row, by executemany."""

    def _insert(self, events: list[list[Any]]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO event VALUES (?,?,?,?,?,?,CAST(? AS TEXT))", events)
        self._connection.execute("COMMIT")


def chunks(count: int) -> list[tuple[int, int]]:
    """Powers of two that make up ``count``, with where they begin, so that few statements are ever prepared."""
    found, start = [], 0
    while start < count:
        power = min(STATEMENT_ROWS, 1 << ((count - start).bit_length() - 1))
        found.append((start, power))
        start += power
    return found


class Result(NamedTuple):
    per_second: float
    median: float
    late: float


async def measure(folder: Path, appenders: int, durability: str, seconds: float, busy: bool) -> Result:
    """Acknowledged appends in a second, and how long one took (50 and 99 of 100, in milliseconds)."""
    with tempfile.TemporaryDirectory(dir=folder) as place:
        store = SQLiteStore(Path(place) / "log.db", durability=durability)
        await store.open()
        await asyncio.gather(*[store.append(f"s{number}", BEGIN) for number in range(appenders)])
        times: list[float] = []
        end = time.perf_counter() + seconds

        async def append(session: str) -> None:
            start = 0
            now = time.perf_counter()
            while now < end:
                await store.append(session, [Draft(TextDelta(0, 1, start, TEXT), "r")])
                start += len(TEXT)
                before, now = now, time.perf_counter()
                times.append(now - before)

        async def burn() -> None:
            while time.perf_counter() < end:
                until = time.perf_counter() + 0.001
                while time.perf_counter() < until:
                    pass
                await asyncio.sleep(0)

        begun = time.perf_counter()
        await asyncio.gather(*[append(f"s{number}") for number in range(appenders)], *([burn()] if busy else []))
        took = time.perf_counter() - begun
        await store.close()
    times.sort()
    return Result(len(times) / took, times[len(times) // 2] * 1e3, times[len(times) * 99 // 100] * 1e3)


class Column(NamedTuple):
    durability: str = "full"
    writer: type[sqlite_writer.Writer] = sqlite_writer.Writer
    interval: float = sqlite.SWITCH_INTERVAL


COLUMNS = {
    "FULL": Column(),
    "NORMAL": Column(durability="normal"),
    "FULL, multi-row INSERTs": Column(writer=Statements),
    "FULL, row by row": Column(writer=Rows),
    "FULL, switch 5 ms": Column(interval=PYTHONS_INTERVAL),
}


def appends(folder: Path, seconds: float, rounds: int) -> None:
    print("acknowledged appends/s (p50, p99 in ms)\n")
    print("loop  appenders" + "".join(f"{name:>26}" for name in COLUMNS) + "   FULL/NORMAL")
    for busy in (False, True):
        for appenders in (1, 10, 100, 1000):
            results: dict[str, list[Result]] = {name: [] for name in COLUMNS}
            for _ in range(rounds):
                for name, column in COLUMNS.items():
                    sqlite.Writer = column.writer  # type: ignore[misc]
                    sys.setswitchinterval(PYTHONS_INTERVAL)
                    sqlite.SWITCH_INTERVAL = column.interval
                    results[name].append(uvloop.run(measure(folder, appenders, column.durability, seconds, busy)))
            cells = [max(results[name]) for name in COLUMNS]
            text = "".join(f"{f'{cell.per_second:,.0f} ({cell.median:.2f}, {cell.late:.1f})':>26}" for cell in cells)
            share = cells[0].per_second / cells[1].per_second
            print(f"{'busy' if busy else 'idle':4} {appenders:10,}{text}{share:14.0%}", flush=True)
    sqlite.Writer = sqlite_writer.Writer  # type: ignore[misc]
    sys.setswitchinterval(PYTHONS_INTERVAL)


def by_row(connection: apsw.Connection, after: int) -> int:
    return len(sqlite_file.read_page(connection, "s", after, 500, True).events)


AS_JSON = """
    SELECT CAST('[' || group_concat(j, ',') || ']' AS BLOB) FROM (
        SELECT '{"type":' || json_quote(type) || ',"run":' || json_quote(run) || ',"offset":' || "offset" || ',"at":' ||
        printf('%d.%06d', at / 1000000, at % 1000000) || ',"data":' || data || '}' AS j
        FROM event WHERE session = 1 AND "offset" > ? ORDER BY "offset" LIMIT 500
    )
"""


class Row(msgspec.Struct):
    type: str
    run: str | None
    offset: int
    at: float
    data: msgspec.Raw


ROWS = msgspec.json.Decoder(list[Row])


def as_json(connection: apsw.Connection, after: int) -> int:
    rows = ROWS.decode(sqlite_file.value(connection, AS_JSON, (after,)))
    return len([Event(read_fact(row.type, row.data), row.offset, row.at, row.run, bytes(row.data)) for row in rows])


def reads(folder: Path, rounds: int) -> None:
    print("\nreading a page of 500 events from the disk on a thread, ms (best)\n")
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = Path(place) / "log.db"

        async def fill() -> None:
            store = SQLiteStore(path, durability="normal")
            await store.open()
            await store.append("s", BEGIN)
            for start in range(0, 10_000, 500):
                await store.append("s", [Draft(TextDelta(0, 1, start + n, TEXT), "r") for n in range(500)])
            await store.close()

        asyncio.run(fill())
        connection = sqlite_file.connect(str(path), write=False)
        print(f"{'other thread':12} {'row by row':>16} {'one row of JSON':>16}")
        for busy in (False, True):
            cells = [timed(connection, read, busy, rounds) for read in (by_row, as_json)]
            print(f"{'busy' if busy else 'idle':12} {cells[0]:16.2f} {cells[1]:16.2f}", flush=True)
        connection.close()


def timed(connection: apsw.Connection, read: Callable[[apsw.Connection, int], int], busy: bool, rounds: int) -> float:
    stop = threading.Event()

    def burn() -> None:
        while not stop.is_set():
            sum(range(1000))

    thread = threading.Thread(target=burn)
    if busy:
        thread.start()
    times = []
    for number in range(rounds):
        begun = time.perf_counter()
        assert read(connection, 500 * (number % 19)) == 500
        times.append(time.perf_counter() - begun)
    stop.set()
    if busy:
        thread.join()
    return min(times) * 1e3


def machine() -> str:
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []:
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
    return (
        f"{os.cpu_count()} x {model}; {platform.system()} {platform.release()}; Python {platform.python_version()}; "
        f"uvloop {uvloop.__version__}; SQLite {apsw.sqlite_lib_version()} (apsw {apsw.apsw_version()})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=Path(), help="where the files are made (default: here)")
    options = parser.parse_args()
    print(machine() + "\n")
    appends(options.folder, options.seconds, options.rounds)
    reads(options.folder, 5 * options.rounds)


if __name__ == "__main__":
    main()
