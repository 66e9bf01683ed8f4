"""One, two and four nodes on one store: what a token costs, and how soon it is at a reader of the same or another node.

Each store is beside what people build for that: FastAPI and sse-starlette, ``XADD`` for each token, a blocking
``XREAD`` for each reader, whose ``id:`` is Redis' own (*Redis Streams*, with Valkey as it comes, which writes nothing
to disk meanwhile; *synced*: with the settings that Legato's Valkey has). PostgreSQL has ``fsync`` on, and Legato's
Valkey ``appendfsync always``. Nodes, databases and readers are processes of this machine; agents are spread evenly over
nodes, readers at random, and what a token costs is told apart by nodes and database. Figures are per *delivered* token:
with two readers each is delivered twice.

- *live*: sessions, each with an agent that speaks and readers.
- *apart*: all agents at one of two nodes, all readers at the other one.
- *logs*: sessions that have 100 or 10,000 events: readers from the start of them, all at once; readers who have all but
  ten events; and what a token costs at their end.
- *appends*: so many processes at once, without HTTP, each with 100 appenders who wait for each append.

    python benchmarks/nodes.py [--rounds N] [--seconds S] [--front] [--quick] [--markdown] [--save]

With ``--front``, HAProxy stands before the nodes, and gives each connection to one or another.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.chats import make_sessions, send_all
from support.load import SERVED, Server
from support.pages import down
from support.results import Column, Figures, Results, parser
from support.sides import HERE, Side, sides
from support.sseload import Load, faults

sys.path[:0] = [str(HERE.parent / "src"), str(HERE.parent / "tests")]

SETTLE = 1.0
"""Seconds between the last message and the measuring."""
LONGEST = 600
"""Seconds for which the agents would speak."""
APPENDERS = 100
LONG_SESSIONS, LEFT = 5, 10
"""Sessions with a log of some length, and what its last readers lack of it."""
PATIENCE = 120.0
TEXT = " and then some words more"
RUN = "bench~0"
STORES = ["SQLite", "PostgreSQL", "Valkey", "Redis Streams", "Redis Streams, synced"]
_names = itertools.count(1)

LIVE = [
    Column("us", "nodes, CPU us"),
    Column("database", "database, us"),
    Column("all", "both, us"),
    Column("same_50", "here p50 ms", ".2f"),
    Column("same_99", "p99 ms", ".1f"),
    Column("other_50", "elsewhere p50", ".2f"),
    Column("other_99", "p99, ms", ".1f"),
    Column("kept", "rate kept", ".2f"),
    Column("faults", "faults", ".0f", most=True),
]
APART = [
    Column("said", "us a token said", ".0f"),
    Column("read", "us a token read"),
    Column("database", "database, us"),
    Column("other_50", "p50 ms", ".2f"),
    Column("other_99", "p99 ms", ".1f"),
    Column("kept", "rate kept", ".2f"),
    Column("faults", "faults", ".0f", most=True),
]
LOGS = [
    Column("whole", "whole, CPU ms", ".2f"),
    Column("whole_database", "database, ms", ".2f"),
    Column("whole_s", "all have it, s", ".2f"),
    Column("tail", "tail, CPU ms", ".2f"),
    Column("tail_database", "database ms", ".2f"),
    *(column for column in LIVE if column.key in ("all", "same_50", "other_50", "other_99")),
    Column("faults", "faults", ".0f", most=True),
]
APPENDS = [
    Column("a_second", "appends/s", ",.0f"),
    Column("p50", "p50 ms", ".2f"),
    Column("p99", "p99 ms", ".1f"),
    Column("us", "CPU us each"),
    Column("database", "database, us"),
]


# Who is measured ------------------------------------------------------------------------------------------------------


class Place(NamedTuple):
    """Where logs live.

    Attributes:
        fresh: gives the URL of a new, empty store; of the peer, its port, when the server has been emptied.
        pid: of the database; 0 if there is none.
    """

    fresh: Callable[[], str]
    pid: int = 0


class Places:
    """Where logs live, by the name of the store; a database is started when it is first asked for, and ends with
    ``stack``.
    """

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self._known: dict[str, Place] = {}

    def __getitem__(self, store: str) -> Place:
        if store not in self._known:
            self._known[store] = getattr(self, f"_{store.split()[0].lower()}")("synced" in store)
        return self._known[store]

    def _sqlite(self, _: bool) -> Place:
        folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="legato-bench-"))
        return Place(lambda: f"sqlite:///{folder}/{next(_names)}.db")

    def _postgresql(self, _: bool) -> Place:
        from databases import postgres

        server = self._stack.enter_context(postgres(fsync="on"))
        assert server.process is not None
        return Place(lambda: f"{server.url()}?schema=bench{next(_names)}", server.process.pid)

    def _valkey(self, _: bool) -> Place:
        from valkeys import valkey

        server = self._stack.enter_context(valkey())
        assert server.process is not None
        return Place(server.url, server.process.pid)

    def _redis(self, synced: bool) -> Place:
        from valkeys import valkey

        server = self._stack.enter_context(valkey(appendonly="yes" if synced else "no"))
        assert server.process is not None

        def fresh() -> str:
            server.ask("FLUSHALL")
            return str(server.port)

        return Place(fresh, server.process.pid)


class Nodes(NamedTuple):
    """So many nodes on one store."""

    store: str
    places: Places
    size: int
    side: Side

    @property
    def place(self) -> Place:
        return self.places[self.store]

    @property
    def name(self) -> str:
        return f"{self.store}, {self.size} node{'s' if self.size > 1 else ''}"

    @property
    def peer(self) -> bool:
        return self.store.startswith("Redis Streams")

    def command(self, url: str, rate: float) -> subprocess.Popen[str]:
        if self.peer:
            return self.side.start(HERE / "support" / "peers.py", "redis-nodes", str(rate), url)
        return self.side.start(SERVED, url)

    @contextlib.contextmanager
    def serving(self, url: str, rate: float) -> Iterator[list[Server]]:
        """Running nodes."""
        processes = [self.command(url, rate) for _ in range(self.size)]
        try:
            ports = [process.stdout.readline() for process in processes if process.stdout is not None]
            if not all(ports):
                raise SystemExit(f"A node of {self.name} did not start.")
            yield [Server(int(port), [process.pid]) for port, process in zip(ports, processes, strict=True)]
        finally:
            for process in processes:
                process.kill()
                process.wait()
                for pipe in (process.stdin, process.stdout):
                    if pipe is not None:
                        pipe.close()

    def stream(self, node: int, number: int) -> str:
        """The path of the stream of a session that was begun at a node."""
        name = session(node, number)
        return f"/chat/{name}" if self.peer else f"/stream?sessionId={name}"

    async def begin(self, servers: Sequence[Server], counts: Sequence[int], rate: float) -> None:
        """Have agents speak, in so many sessions of each node."""
        for node, (server, count) in enumerate(zip(servers, counts, strict=True)):
            if self.peer:
                for number in range(count):
                    await server.ask("POST", f"/chat/{session(node, number)}")
            elif count:
                await send_all(server, count, f"tokens {rate} {rate * LONGEST:.0f}", name=session(node))


def session(node: int, number: int | str = "") -> str:
    return f"n{node}x{number}"


def spread(sessions: int, nodes: int) -> list[int]:
    """How many of them each node has."""
    return [len(range(node, sessions, nodes)) for node in range(nodes)]


# Measuring ------------------------------------------------------------------------------------------------------------


class Clocks:
    """The CPU of processes, each with its children, from when this is made.

    Args:
        pids: 0 is none, and uses nothing.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = pids
        self._before = [0.0] * len(pids)
        self._begun = time.monotonic()
        self._before = self.spent()

    def spent(self) -> list[float]:
        """Seconds of each. What runs counts to the nanosecond, what was a child's that has ended to 10 ms."""
        ticks, found = os.sysconf("SC_CLK_TCK"), dict.fromkeys(self._pids, 0.0)
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):  # it has just ended
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                own, parent = int(folder.name), int(fields[1])
                if own not in found and parent not in found:
                    continue
                taken = sum(int(path.read_text().split()[0]) for path in folder.glob("task/*/schedstat")) / 1e9
                if own in found:
                    found[own] += taken + sum(map(int, fields[13:15])) / ticks
                if parent in found:
                    found[parent] += taken
        found[0] = 0.0
        return [found[pid] - before for pid, before in zip(self._pids, self._before, strict=True)]

    def per_second(self) -> list[float]:
        """Microseconds in a second, of each."""
        return [each / (time.monotonic() - self._begun) * 1e6 for each in self.spent()]


class Work(NamedTuple):
    sessions: int
    rate: float
    readers: int
    apart: bool = False

    def __str__(self) -> str:
        apart = ", agents at one node and readers at the other" if self.apart else ""
        return f"{self.sessions} sessions x {self.rate:g}/s x {self.readers} readers{apart}"


@contextlib.asynccontextmanager
async def front(servers: Sequence[Server], wanted: bool) -> AsyncIterator[Server | None]:
    """HAProxy before them, if it is wanted."""
    if not wanted:
        yield None
        return
    from legato.torture.cluster import front_door

    with tempfile.TemporaryDirectory(prefix="legato-bench-") as folder:
        async with front_door("haproxy", [server.port for server in servers], Path(folder)) as port:
            door = Server(port, [])
            while True:
                with contextlib.suppress(
                    OSError, IndexError, RuntimeError
                ):  # it does not listen yet, or has not looked
                    await up(door)
                    break
                await asyncio.sleep(0.02)
            yield door


class Readers:
    """Readers of streams, at nodes of their own.

    Args:
        to: of each, its server and the path.
        options: of the load client.
    """

    def __init__(self, to: Sequence[tuple[Server, str]], seconds: float, *options: str, at_once: bool = False) -> None:
        self.count = len(to)
        self._file = tempfile.NamedTemporaryFile("w", prefix="legato-bench-")  # noqa: SIM115  # it lives as long as this
        self._file.writelines(f"{server.port} {path}\n" for server, path in to)
        self._file.flush()
        arguments = ["--tokens", "--to", self._file.name, *options]
        self.load = Load(Server(0, []), self.count, seconds, arguments, at_once=at_once)


async def live(nodes: Nodes, work: Work, options: Any) -> Figures:
    """Sessions whose agents speak."""
    with nodes.serving(nodes.place.fresh(), work.rate) as servers:
        await asyncio.gather(*(up(server) for server in servers))
        counts = [work.sessions, 0] if work.apart else spread(work.sessions, nodes.size)
        if not nodes.peer:
            for node, (server, count) in enumerate(zip(servers, counts, strict=True)):
                await make_sessions(server, count, session(node))
        return await spoken(nodes, servers, counts, work, options)


async def spoken(
    nodes: Nodes, servers: Sequence[Server], counts: Sequence[int], work: Work, options: Any, after: str = ""
) -> Figures:
    """What it costs while so many sessions of each node, which are there, are spoken in; readers begin ``after``."""
    chance = random.Random(work.sessions)
    here: list[tuple[Server, str]] = []
    elsewhere: list[tuple[Server, str]] = []
    async with front(servers, options.front) as door:
        for node, count in enumerate(counts):
            for number, _ in itertools.product(range(count), range(work.readers)):
                at = 1 if work.apart else chance.randrange(nodes.size)
                path = nodes.stream(node, number)
                if door is not None:
                    elsewhere.append((door, path))
                else:
                    (here if at == node else elsewhere).append((servers[at], path))
        options_of_load = ["-h", f"Last-Event-ID: {after}"] if after else []
        readers = {
            name: Readers(to, options.seconds, *options_of_load)
            for name, to in (("same", here), ("other", elsewhere))
            if to
        }
        for each in readers.values():
            await each.load.open()
        await nodes.begin(servers, counts, work.rate)
        await asyncio.sleep(SETTLE)
        for each in readers.values():
            each.load.go()
        clocks = Clocks(*(server.pids[0] for server in servers), nodes.place.pid)
        await asyncio.sleep(options.seconds * 0.97)  # the load clients end by themselves, and the streams with them
        per_second = clocks.per_second()
        found = {name: await each.load.figures() for name, each in readers.items()}
    delivered = sum(each["tokens_per_s"] for each in found.values()) or 1.0
    figures = {
        "us": sum(per_second[:-1]) / delivered,
        "database": per_second[-1] / delivered,
        "all": sum(per_second) / delivered,
        "kept": delivered / (work.sessions * work.rate * work.readers),
        "faults": sum(map(faults, found.values())),
    }
    for name, each in found.items():
        figures |= {f"{name}_50": each["lat_us"]["p50"] / 1e3, f"{name}_99": each["lat_us"]["p99"] / 1e3}
    if work.apart:
        figures |= {"said": per_second[0] / (work.sessions * work.rate), "read": per_second[1] / delivered}
    return figures


async def up(server: Server) -> None:
    """Wait until a node answers: it listens before it has started."""
    with contextlib.suppress(RuntimeError):  # a peer knows no such path, and has answered
        await server.ask("GET", "/health")


async def logs(nodes: Nodes, length: int, options: Any) -> Figures:
    """Resumes of logs of this length, and what a token costs at their end."""
    url = nodes.place.fresh()
    counts = spread(options.long_sessions, nodes.size)
    names = [(node, number) for node, count in enumerate(counts) for number in range(count)]
    head = await (fill_streams if nodes.peer else fill)(url, [session(*name) for name in names], length)
    after = f"{head - LEFT}-0" if nodes.peer else str(head - LEFT)
    from_start = "" if nodes.peer else "&from=start"
    work = Work(len(names), 50, 4)
    with nodes.serving(url, work.rate) as servers:
        await asyncio.gather(*(up(server) for server in servers))
        figures: Figures = {}
        for name, times, path, tokens, header in (
            ("whole", 4, from_start, length, []),
            ("tail", 20, "", LEFT, ["-h", f"Last-Event-ID: {after}"]),
        ):
            streams = [nodes.stream(*name) + path for name in names] * times
            to = [(servers[n // len(names) % nodes.size], stream) for n, stream in enumerate(streams)]
            readers = Readers(to, PATIENCE, "--expect", str(tokens), *header, at_once=True)
            clocks = Clocks(*(server.pids[0] for server in servers), nodes.place.pid)
            await readers.load.start()
            found = await readers.load.figures()
            *spent, database = clocks.spent()
            missing = abs(found["all_tokens"] - readers.count * tokens)
            figures |= {
                name: sum(spent) * 1e3 / readers.count,
                f"{name}_database": database * 1e3 / readers.count,
                f"{name}_s": found["seconds"],
                "faults": figures.get("faults", 0) + faults(found) + missing,
            }
        ended = await spoken(nodes, servers, counts, work, options, str(head))
        return {**ended, **figures, "faults": figures["faults"] + ended["faults"]}


async def fill(url: str, names: Sequence[str], length: int) -> int:
    """Sessions of so many pieces that were said before; gives the head of each."""
    from support.tokens import token

    from legato.event import Draft, MessageCreated, RunCompleted, RunStarted, Said, SessionCreated, TextDelta
    from legato.log import Take
    from legato.store import open_store

    store = open_store(url)
    await store.open()
    begin = [
        Draft(SessionCreated()),
        Draft(MessageCreated("m", "user", "go"), RUN),
        Draft(RunStarted("speaker", 1), RUN),
    ]

    async def say(name: str) -> int:
        lease = (await store.append(name, begin, take=Take(RUN, "bench", 600))).lease
        said = ""
        for first in range(1, length + 1, 500):
            drafts = []
            for number in range(first, min(first + 500, length + 1)):
                text = token(number)
                drafts.append(Draft(TextDelta(0, 1, len(said), text), RUN))
                said += text
            await store.append(name, drafts, lease=lease)
        # What it said is not told again in the end, so that readers who count have each piece once.
        end = await store.append(name, [Draft(RunCompleted("stop", Said("a", "", [])), RUN)], lease=lease)
        return int(end.events[-1].offset)

    heads = await asyncio.gather(*map(say, names))
    await store.close()
    return heads[0] - 1  # the offset of the last piece


async def fill_streams(port: str, names: Sequence[str], length: int) -> int:
    """The same for the peer."""
    import redis.asyncio
    from support.tokens import token

    store = redis.asyncio.Redis(port=int(port))
    for name in names:
        for first in range(1, length + 1, 500):
            async with store.pipeline(transaction=False) as pipe:
                for number in range(first, min(first + 500, length + 1)):
                    pipe.xadd(
                        name,
                        {"event": "content", "data": json.dumps({"type": "content", "content": token(number)})},
                        id=f"{number}-0",
                    )
                await pipe.execute()
    await store.aclose()
    return length


def appends(nodes: Nodes, seconds: float) -> Figures:
    """What several processes store at once, each by ``store_append.py``, or as the peer does."""
    url, pid = nodes.place.fresh(), nodes.place.pid
    if nodes.peer:
        command = [__file__, "xadd", url, str(APPENDERS), str(seconds)]
    else:
        command = [str(HERE / "store_append.py"), "one", "append", url, "", str(APPENDERS), "1", str(seconds), "0"]
    clocks = Clocks(pid)
    running = [
        subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, text=True) for _ in range(nodes.size)
    ]
    found: list[dict[str, float]] = [json.loads(each.communicate()[0].splitlines()[-1]) for each in running]
    [spent] = clocks.spent()
    rates = [each["events/s"] for each in found]
    return {
        "a_second": sum(rates),
        "p50": max(each["p50 ms"] for each in found),
        "p99": max(each["p99 ms"] for each in found),
        "us": sum(each["CPU us"] * rate for each, rate in zip(found, rates, strict=True)) / sum(rates),
        "database": spent * 1e6 / (sum(rates) * seconds),
    }


async def add(port: int, appenders: int, seconds: float) -> None:
    """As the peer's agents do: ``XADD``, and wait for its answer."""
    import redis.asyncio

    store = redis.asyncio.Redis(port=port, max_connections=10_000)
    times: list[float] = []
    cpu, start = time.process_time(), time.perf_counter()

    async def speak(name: str) -> None:
        while (now := time.perf_counter()) < start + seconds:
            await store.xadd(name, {"event": "content", "data": TEXT}, maxlen=20_000, approximate=True)
            times.append(time.perf_counter() - now)

    await asyncio.gather(*(speak(f"{os.getpid()}:{number}") for number in range(appenders)))
    took, cpu = time.perf_counter() - start, time.process_time() - cpu
    times.sort()
    figures = {"events/s": len(times) / took, "p50 ms": times[len(times) // 2] * 1e3,
               "p99 ms": times[len(times) * 99 // 100] * 1e3, "CPU us": cpu / len(times) * 1e6}  # fmt: skip
    print(json.dumps(figures))


# All of it ------------------------------------------------------------------------------------------------------------


def main() -> None:
    if sys.argv[1:2] == ["xadd"]:
        import uvloop

        uvloop.run(add(int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])))
        return
    made = parser(__doc__, rounds=2, seconds=2.5)
    made.add_argument("--front", action="store_true", help="HAProxy before the nodes")
    made.add_argument("--markdown", action="store_true", help="print the tables once more, as Markdown")
    options = made.parse_args()
    counts, base, long_logs = [1, 2, 4], Work(100, 10, 2), [100, 10_000]
    growing = [Work(25, 10, 2), Work(400, 10, 2), Work(20, 10, 1), Work(20, 10, 40)]
    options.long_sessions = LONG_SESSIONS
    if options.quick:
        options.rounds, options.seconds, options.long_sessions = 1, min(options.seconds, 1.0), 2
        counts, base, long_logs, growing = [1, 2], Work(20, 10, 2), [100], []
    results = Results("nodes", options, LIVE, ratio="all")
    [side, *_] = sides(options)
    with contextlib.ExitStack() as stack:
        place = Places(stack)
        everybody = [
            Nodes(store, place, count, side)
            for count in counts
            for store in STORES
            if count == 1 or store != "SQLite"
            if count == 2 or store != "Redis Streams, synced"
        ]
        if options.only:
            everybody = [each for each in everybody if any(word in each.name for word in options.only)]
        beside = {each.name: each._replace(store="Redis Streams").name for each in everybody if not each.peer}
        two = [each for each in everybody if each.size == 2 or each.store == "SQLite"]
        shared = [each for each in two if each.size == 2]

        def run(work: Work, who: Sequence[Nodes], columns: Sequence[Column] = ()) -> None:
            results.run(
                str(work), who, lambda each: asyncio.run(live(each, work, options)), columns=columns, beside=beside
            )

        run(base, everybody)
        for work in growing:
            run(work, two)
        if not options.front:
            run(base._replace(apart=True), shared, APART)
        for length in long_logs:
            results.run(
                f"logs of {length:,} events",
                two,
                lambda each, length=length: asyncio.run(logs(each, length, options)),
                columns=LOGS,
            )
        results.run(
            f"appends by {APPENDERS} appenders in each process",
            everybody,
            lambda each: appends(each, options.seconds),
            columns=APPENDS,
        )
    results.save()
    if options.markdown:
        print(f"\n{down(results.found)}")


if __name__ == "__main__":
    main()
