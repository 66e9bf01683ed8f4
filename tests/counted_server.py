"""A Legato server that counts its work, for ``test_work.py``: its agents speak, and it counts, when it is told to.

    python tests/counted_server.py STORE

Prints its port. Then each byte of standard input is a command: ``t`` lets every agent say one token more, ``b`` begins
to count, ``e`` ends it and prints a line of JSON. What is counted belongs to the event loop's thread, except ``pages``.
"""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import FrameType
from typing import Any

import apsw

from legato import Legato
from legato.agent import Turn
from legato.server.serve import listen, serve

COROUTINE = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
IO = Path("/proc/self/io")


class Ticks:
    """How many tokens every agent may have said."""

    def __init__(self) -> None:
        self.count = 0
        self._waiting: list[asyncio.Future[None]] = []

    def ring(self) -> None:
        self.count += 1
        waiting, self._waiting = self._waiting, []
        for each in waiting:
            each.set_result(None)

    async def wait(self) -> None:
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        await waiter


class Counter:
    """What was done between ``begin`` and ``end``.

    ``calls`` of Python functions, ``resumed`` coroutines among them (each time one goes on, and each that it is awaited
    by), ``c_calls`` of built-in functions, ``blocks`` of memory that were kept, ``pages`` that SQLite wrote, and
    ``writes`` that the kernel was asked for (Linux).
    """

    def __init__(self) -> None:
        self.calls = self.resumed = self.c_calls = 0
        self._connections: list[apsw.Connection] = []
        self._before: dict[str, int] = {}
        apsw.connection_hooks.append(self._connections.append)

    def begin(self) -> None:
        gc.collect()
        self._before = self._levels()
        self.calls = self.resumed = self.c_calls = 0
        sys.setprofile(self._profile)

    def end(self) -> dict[str, int]:
        sys.setprofile(None)
        levels = self._levels()
        counts = {"calls": self.calls, "resumed": self.resumed, "c_calls": self.c_calls}
        return {**counts, **{name: levels[name] - self._before[name] for name in levels}}

    def _profile(self, frame: FrameType, event: str, arg: Any) -> None:
        if event == "call":
            self.calls += 1
            if frame.f_code.co_flags & COROUTINE:
                self.resumed += 1
        elif event == "c_call":
            self.c_calls += 1

    def _levels(self) -> dict[str, int]:
        pages = sum(each.status(apsw.SQLITE_DBSTATUS_CACHE_WRITE)[0] for each in self._connections)
        levels = {"blocks": sys.getallocatedblocks(), "pages": pages}
        if IO.exists():
            fields = dict(line.split(": ") for line in IO.read_text().splitlines())
            levels["writes"] = int(fields["syscw"])
        return levels


def main() -> None:
    counter, ticks = Counter(), Ticks()
    app = Legato(sys.argv[1], heartbeat=600, page=False)

    @app.agent
    async def speaker(turn: Turn) -> AsyncIterator[str]:
        if turn.message.text.startswith("word"):
            yield turn.message.text
            return
        said = 0
        while True:
            while said == ticks.count:
                await ticks.wait()
            said += 1
            yield f"token {said}. "

    def command() -> None:
        for each in os.read(0, 1) or b"q":
            match chr(each):
                case "t":
                    ticks.ring()
                case "b":
                    counter.begin()
                case "e":
                    print(json.dumps(counter.end()), flush=True)
                case "q":
                    os._exit(0)

    def ready() -> None:
        asyncio.get_running_loop().add_reader(0, command)
        print(listener.getsockname()[1], flush=True)

    listener = listen("127.0.0.1", 0)
    serve(app, listener, on_ready=ready)


if __name__ == "__main__":
    main()
