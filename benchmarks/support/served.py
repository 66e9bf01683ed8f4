"""The server under test: Legato from the sources that ``PYTHONPATH`` names, an agent, and figures under ``/bench``.

Of Legato it uses the application, an agent's ``turn`` and ``legato.server.serve``; everything else is asked over HTTP.

    python benchmarks/support/served.py STORE [--trace] [--metrics] [--traces]

Prints its port, and serves until its standard input ends. With ``--metrics``, ``/bench/metrics`` makes those, and with
``--traces`` runs are traced. With ``--trace``, each statement of SQLite and each commit is
noted, which costs time: figures of time and of statements come from different servers.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import sys
import threading
import time
from typing import Any

from sides import check_sources
from tokens import token, tokens

from legato import Legato
from legato.server.serve import listen, serve

BEAT = 0.001
"""Seconds between two looks at the clock: how exactly the longest hold of the event loop is known, within 1 ms."""
SPAN = 0.020
QUIET = "quiet."
"""The last piece before the agent waits. Readers look for it in the bytes, so no other piece has it."""


class Heart:
    """Sleeps for a moment, over and over, and notes for how much longer the event loop kept it.

    Attributes:
        held: the longest time in seconds.
        busy: the most CPU seconds that the loop's thread took in one such time. What the machine did to others counts
            in ``held`` alone.
        long: how often it was longer than ``SPAN``.
    """

    def __init__(self) -> None:
        self.held = self.busy = self.cpu = 0.0
        self.long = 0
        self._task: asyncio.Task[None] | None = None

    def reset(self) -> None:
        """Begin anew."""
        if self._task is None:
            self._task = asyncio.create_task(self._beat())
        self.held = self.busy = 0.0
        self.long = 0
        self.cpu = time.process_time()

    async def _beat(self) -> None:
        clock, spent = time.perf_counter(), time.thread_time()
        while True:
            await asyncio.sleep(BEAT)
            now, cpu = time.perf_counter(), time.thread_time()
            held = now - clock - BEAT
            if held > self.held:
                self.held = held
            if cpu - spent > self.busy:
                self.busy = cpu - spent
            self.long += held > SPAN
            clock, spent = now, cpu


class Trace:
    """What SQLite was asked, in order, with marks of our own between."""

    def __init__(self) -> None:
        self.notes: list[tuple[str, str]] = []

    def attach(self) -> None:
        """Note every statement and commit of each connection that is opened from now on."""
        import apsw

        def on_statement(event: dict[str, Any]) -> None:
            if not event["trigger"]:
                kind = "read" if event["readonly"] else "write"
                self.note(kind, f"{thread()}: {' '.join(event['sql'][:400].split())}")

        def on_commit() -> bool:
            self.note("commit", thread())
            return False

        def thread() -> str:
            return threading.current_thread().name.rpartition("_")[0] or threading.current_thread().name

        def on_connection(connection: apsw.Connection) -> None:
            connection.trace_v2(apsw.SQLITE_TRACE_STMT, on_statement)
            connection.set_commit_hook(on_commit)

        apsw.connection_hooks.append(on_connection)

    def note(self, kind: str, text: str = "") -> None:
        self.notes.append((kind, text))


class Served(Legato):
    """The application, with ``/bench`` before it."""

    heart = Heart()
    trace = Trace()
    gates: dict[str, asyncio.Event] = {}  # noqa: RUF012  # there is one application in this process
    times: list[float] = []  # noqa: RUF012
    asked = 0.0
    scraped: Any = None  # with ``--metrics``

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        path = scope.get("path", "")
        if path.startswith("/bench/"):
            if path == "/bench/metrics":
                body = json.dumps(len((await self.scraped.text())[0])).encode()
            else:
                body = json.dumps(self.bench(path.split("/")[2:])).encode()
            headers = [(b"content-length", str(len(body)).encode())]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})
            return
        if scope["type"] == "http" and scope["method"] == "POST" and not path.endswith("/stream"):
            self.trace.note("request", path)
            Served.asked = time.perf_counter()
        await super().__call__(scope, receive, send)

    def bench(self, path: list[str]) -> Any:
        match path:
            case ["reset"]:
                self.heart.reset()
                self.trace.notes.clear()
            case ["figures"]:
                heart, memory = self.heart, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
                cpu = time.process_time()
                return {"held": heart.held, "busy": heart.busy, "long": heart.long, "cpu": cpu - heart.cpu,
                        "memory": memory}  # fmt: skip
            case ["cpu"]:
                return time.process_time()
            case ["times"]:
                return self.times
            case ["times", "reset"]:
                self.times.clear()
            case ["trace"]:
                return self.trace.notes
            case ["go", name]:
                self.gate(name).set()
        return None

    @classmethod
    def gate(cls, name: str) -> asyncio.Event:
        return cls.gates.setdefault(name, asyncio.Event())


async def speaker(turn: Any) -> Any:
    """What the first word of the message says:

    - ``word``: one piece, and a note when it is stored.
    - ``deltas N NAME``: N pieces, and after ``go/NAME`` 3 more.
    - ``tokens RATE COUNT``: tokens at a rate.
    - ``fill COUNT``: so many characters.
    - ``many COUNT NAME``: tokens as fast as they are stored one by one. With a name, the end waits for ``go/NAME``.
    """
    match turn.message.text.split():
        case ["word", *_]:
            yield "word"
            await turn.stored()
            Served.times.append(time.perf_counter() - Served.asked)
            Served.trace.note("stored")
        case ["deltas", count, name]:
            for number in range(1, int(count)):
                yield f" w{number:05d}"
                await turn.stored()  # else those that wait would be merged
            yield QUIET
            await Served.gate(name).wait()
            for number in range(3):
                yield f" and {number}"
        case ["tokens", rate, count]:
            async for _, text in tokens(float(rate), int(count)):
                yield text
        case ["many", count, *name]:
            for number in range(1, int(count) + 1):
                yield token(number)
                await turn.stored()  # else those that wait would be merged
            for each in name:
                await Served.gate(each).wait()
        case ["fill", count]:
            yield "x" * int(count)
        case _:
            yield "What?"


def record_spans() -> None:
    """Have spans made, gathered and thrown away, as an exporter would have them."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    provider = TracerProvider()
    provider.add_span_processor(BatchSpanProcessor(InMemorySpanExporter()))
    trace.set_tracer_provider(provider)


def main() -> None:
    check_sources()
    if "--trace" in sys.argv:
        Served.trace.attach()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    app = Served(sys.argv[1], agents=[speaker], heartbeat=600, page=False, max_streams_per_session=10_000)
    if "--metrics" in sys.argv:
        Served.scraped = app.metrics()
    if "--traces" in sys.argv:
        record_spans()
        Legato.trace(app)
    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)

    def leave() -> None:
        sys.stdin.read()
        os._exit(0)  # what it stored is thrown away, so there is nothing to finish

    threading.Thread(target=leave, daemon=True).start()
    serve(app, listener)


if __name__ == "__main__":
    main()
