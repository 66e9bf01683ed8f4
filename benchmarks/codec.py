"""What an event costs on its way through the store and out in each dialect, without sockets.

Three things, in microseconds of CPU for each event (user + system, of the whole process), and by the clock where
something is waited for:

- an append of one delta, awaited, by N sessions at once, on both stores;
- reading it through a ``Subscription`` and encoding it: a first reader of a run of 2,000 deltas, each further one, and
  each of 50 who follow a run live;
- a log of 5,000 deltas that was closed, opened again, read from the disk and encoded.

Each side has a process of its own; they take turns at each measurement, and the best round counts: what else the
machine does only slows.

    python benchmarks/codec.py [--base CHECKOUT] [--rounds 9] [--save]
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import json
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from support.sides import Report, Side, check_sources, in_turn, parser, sides

SESSION = "s"
RUN = "s~0a"
TEXT = " word"
DELTAS = 2_000
COLD = 5_000
FURTHER = 10
FOLLOWERS = 50
LIVE = 200
PAGE = 32
"""Deltas in one append of a log that is only filled."""

# The shim -------------------------------------------------------------------------------------------------------------
# All that this file knows of interfaces which differ from one revision to the next stands in this section; the rest
# uses ``Store``, ``Subscription`` and ``Log``. Imports are in the functions: the process that prints loads no Legato.


class Reader(NamedTuple):
    """What turns events into one reader's bytes.

    Attributes:
        encode: from an event to bytes.
        ready: awaited with each batch before it is encoded, where there is such a thing.
    """

    encode: Callable[[Any], bytes]
    ready: Callable[[Sequence[Any]], Awaitable[None]] | None = None


class Codec(NamedTuple):
    """How one revision makes drafts and readers.

    Attributes:
        delta: a draft of a ``text.delta`` of ``RUN``, given its start; what an agent's ``yield`` makes.
        begin: the drafts that begin ``SESSION`` and ``RUN``.
        readers: by dialect, a function that is given a store, for the life of an application, and makes a function
            that makes a reader.
    """

    delta: Callable[[int], Any]
    begin: Callable[[], list[Any]]
    readers: dict[str, Callable[[Any], Callable[[], Reader]]]


CREATED: dict[str, Any] = {"title": "bench"}
MESSAGE: dict[str, Any] = {"id": f"{RUN}~u", "role": "user", "text": "go"}
STARTED: dict[str, Any] = {"agent": "speaker", "attempt": 1}


def codec() -> Codec:
    """The one of the revision that is imported."""
    from legato.event import Draft

    fields = Draft.__struct_fields__
    if fields[:2] == ("type", "data"):
        return _dicts()
    if fields[0] == "fact":
        return _facts()
    raise RuntimeError(f"This benchmark does not know how to make a Draft of {', '.join(fields)}; see its shim.")


def _dicts() -> Codec:
    """Drafts of a type and a dict."""
    from legato.event import Draft

    def delta(start: int) -> Draft:
        return Draft("text.delta", {"part": 0, "step": 0, "start": start, "text": TEXT}, RUN)

    def begin() -> list[Draft]:
        return [
            Draft("session.created", CREATED),
            Draft("message.created", MESSAGE, RUN),
            Draft("run.started", STARTED, RUN),
        ]

    return Codec(delta, begin, _encoders())


def _encoders() -> dict[str, Callable[[Any], Callable[[], Reader]]]:
    """Each reader folds for itself."""
    from legato.dialect import mix
    from legato.dialect.chat import ChatEncoder
    from legato.dialect.deva import AnswerEncoder
    from legato.dialect.responses import Fold, ResponseEncoder

    profile = mix.profile("python-0.8.1")
    return {
        "mix": lambda store: lambda: Reader(lambda event: mix.encode(event, SESSION, profile)),
        "responses": lambda store: lambda: Reader(ResponseEncoder(Fold(SESSION, RUN, agent="speaker")).encode),
        "chat": lambda store: lambda: Reader(ChatEncoder(RUN, agent="speaker").encode),
        "deva": lambda store: lambda: Reader(AnswerEncoder(SESSION, RUN).encode),
    }


def _facts() -> Codec:
    """Drafts of typed facts."""
    from legato.event import Draft, TextDelta, fact

    def delta(start: int) -> Draft:
        return Draft(TextDelta(0, 0, start, TEXT), RUN)  # so the recorder makes it

    def begin() -> list[Draft]:
        return [
            Draft(fact("session.created", CREATED)),
            Draft(fact("message.created", MESSAGE), RUN),
            Draft(fact("run.started", STARTED), RUN),
        ]

    return Codec(delta, begin, _shared())


def _shared() -> dict[str, Callable[[Any], Callable[[], Reader]]]:
    """Readers of a run share its fold."""
    from legato.dialect import mix
    from legato.event import MessageCreated
    from legato.server.deva import DEVA
    from legato.server.life import Life, Settings
    from legato.server.operation import View
    from legato.server.responses import CHAT_VIEWS, RESPONSES_VIEW
    from legato.sessions import Asking, Located  # where older versions have them, too

    profile = mix.profile("python-0.8.1")
    run = Located(SESSION, RUN, Asking(MessageCreated(**MESSAGE), RUN, 2, 0.0), "speaker")

    def of(view: View | None) -> Callable[[Any], Callable[[], Reader]]:
        assert view is not None

        def begun(store: Any) -> Callable[[], Reader]:
            life = Life(store, {}, Settings())

            def reader() -> Reader:
                follow = life.follow_run(run, view, view.key)
                return Reader(follow.encoder.encode, follow.ready)

            return reader

        return begun

    return {
        "mix": lambda store: lambda: Reader(lambda event: mix.frame(event, SESSION, profile)),
        "responses": of(RESPONSES_VIEW),
        "chat": of(CHAT_VIEWS[False]),
        "deva": of(DEVA.view("deva")),
    }


# Measuring (in a process of the side) ---------------------------------------------------------------------------------

Figures = dict[str, float]


class Watch:
    """CPU and wall time since it was made, for each of ``count`` events, in microseconds."""

    def __init__(self) -> None:
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def cpu(self, count: int) -> float:
        return (time.process_time() - self._cpu) / count * 1e6

    def wall(self, count: int) -> float:
        return (time.perf_counter() - self._wall) / count * 1e6


def open_store(kind: str, folder: str) -> Any:
    from legato.store import open_store

    return open_store("memory:" if kind == "memory" else f"sqlite:///{folder}/{kind}.db")


async def appends(kind: str, sessions: int, each: int) -> Figures:
    made = codec()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(kind, folder)
        await store.open()
        names = [f"s{number}" for number in range(sessions)]
        await asyncio.gather(*(store.append(name, made.begin()) for name in names))

        async def speak(name: str) -> None:
            for number in range(each):
                await store.append(name, [made.delta(number * len(TEXT))])

        watch = Watch()
        await asyncio.gather(*(speak(name) for name in names))
        found = {"cpu": watch.cpu(sessions * each), "wall": watch.wall(sessions * each)}
        await store.close()
    label = f"append, {kind}, {sessions} session{'s' if sessions > 1 else ''}"
    return {f"{label}: CPU": found["cpu"], f"{label}: wall": found["wall"]}


async def fill(store: Any, deltas: int) -> int:
    """The offset of the last event."""
    made = codec()
    await store.append(SESSION, made.begin())
    for start in range(0, deltas, PAGE):
        numbers = range(start, min(start + PAGE, deltas))
        appended = await store.append(SESSION, [made.delta(number * len(TEXT)) for number in numbers])
    return int(appended.events[-1].offset)


async def read(store: Any, reader: Reader, until: int, after: int = 0) -> int:
    """Follow the log up to ``until``; how many bytes that made."""
    from legato.log import Subscription

    size = 0
    with Subscription(store, SESSION, after) as subscription:
        while subscription.after < until:
            events = await subscription.next()
            if reader.ready is not None:
                await reader.ready(events)
            for event in events:
                size += len(reader.encode(event))
    return size


async def replays(kind: str, dialect: str) -> Figures:
    readers = codec().readers[dialect]
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(kind, folder)
        await store.open()
        head = await fill(store, DELTAS)
        make = readers(store)
        watch = Watch()
        size = await read(store, make(), head)
        first = watch.cpu(DELTAS)
        watch = Watch()
        for _ in range(FURTHER):
            if await read(store, make(), head) != size:
                raise RuntimeError("A further reader was told something else.")
        further = watch.cpu(DELTAS * FURTHER)
        await store.close()
    if size < DELTAS * len(TEXT):
        raise RuntimeError(f"{dialect} made {size} bytes of {DELTAS} deltas.")
    return {f"replay, {kind}, {dialect}: first": first, f"replay, {kind}, {dialect}: further": further}


async def follows(kind: str, dialect: str) -> Figures:
    made = codec()
    with tempfile.TemporaryDirectory() as folder:
        store = open_store(kind, folder)
        await store.open()
        await store.append(SESSION, made.begin())
        head = (await store.info(SESSION)).head
        make = made.readers[dialect](store)
        followers = [asyncio.create_task(read(store, make(), head + LIVE)) for _ in range(FOLLOWERS)]
        await asyncio.sleep(0.05)
        watch = Watch()
        for number in range(LIVE):
            await store.append(SESSION, [made.delta(number * len(TEXT))])
            await asyncio.sleep(0)  # every reader takes each event by itself
        await asyncio.gather(*followers)
        each = watch.cpu(LIVE * FOLLOWERS)
        await store.close()
    return {f"live, {kind}, {dialect}: each of {FOLLOWERS}": each}


async def cold(dialect: str | None) -> Figures:
    """Without a dialect, the reading alone."""
    readers = codec().readers[dialect] if dialect else lambda store: lambda: Reader(lambda event: b"")
    with tempfile.TemporaryDirectory() as folder:
        store = open_store("sqlite", folder)
        await store.open()
        head = await fill(store, COLD)
        await store.close()
        store = open_store("sqlite", folder)
        await store.open()
        reader = readers(store)()
        watch = Watch()
        await read(store, reader, head)
        label = f"cold, {dialect or 'read alone'}"
        found = {f"{label}: CPU": watch.cpu(COLD), f"{label}: wall": watch.wall(COLD)}
        await store.close()
    return found


Measurement = Callable[[], Coroutine[Any, Any, Figures]]


def measurements() -> list[Measurement]:
    """All of them, in the order of the tables."""
    dialects = list(codec().readers)
    kinds = ("memory", "sqlite")
    made: list[Measurement] = []
    for kind in kinds:
        made += [functools.partial(appends, kind, *size) for size in ((1, 500), (10, 100), (100, 30))]
    for kind in kinds:
        made += [functools.partial(replays, kind, dialect) for dialect in dialects]
    made += [functools.partial(follows, "memory", dialect) for dialect in dialects]
    return made + [functools.partial(cold, dialect) for dialect in (None, *dialects)]


def serve() -> None:
    """Answer each line of standard input, the number of a measurement, with its figures."""
    import uvloop

    check_sources()
    made = measurements()
    print(len(made), flush=True)
    for line in sys.stdin:
        print(json.dumps(uvloop.run(made[int(line)]())), flush=True)


# Printing -------------------------------------------------------------------------------------------------------------


class Worker:
    """A process of one side that measures when it is told to. ``best`` is the least of each figure so far."""

    def __init__(self, side: Side) -> None:
        self.best: Figures = {}
        self._process = side.start(Path(__file__).resolve(), "--measure")
        self.count = int(self._read())

    def measure(self, number: int) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        for label, figure in json.loads(self._read()).items():
            self.best[label] = min(figure, self.best.get(label, figure))

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _read(self) -> str:
        assert self._process.stdout is not None
        if not (line := self._process.stdout.readline()):
            raise SystemExit("A measuring process ended; see above.")
        return line


TITLES = {
    "append": "append of one delta, us",
    "replay": f"reading and encoding a run of {DELTAS:,} deltas that the store has in memory, CPU us for each event",
    "live": f"one event at a time, read and encoded by {FOLLOWERS} readers, CPU us for each event of each reader",
    "cold": f"a log of {COLD:,} deltas from the disk, us for each event",
}


def main() -> None:
    if sys.argv[1:] == ["--measure"]:
        serve()
        return
    options_of = parser(__doc__)
    options_of.add_argument("--rounds", type=int, default=9)
    options: argparse.Namespace = options_of.parse_args()
    both = sides(options)
    report = Report("codec", both)
    report.line(f"best of {options.rounds}")
    workers = [Worker(side) for side in both]
    try:
        for round_ in range(options.rounds):
            for number in range(workers[0].count):
                for worker in in_turn(workers, round_):
                    worker.measure(number)
    finally:
        for worker in workers:
            worker.stop()
    for kind, title in TITLES.items():
        report.head(title)
        for label in workers[0].best:
            if label.startswith(f"{kind},"):
                report.row(label.removeprefix(f"{kind}, "), [worker.best[label] for worker in workers])
    if options.save:
        report.save(options.save)


if __name__ == "__main__":
    main()
