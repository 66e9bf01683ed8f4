"""The server that is tortured, in a process of its own: agents good and bad, and ``GET /torture/state``.

    python -m legato.torture.served STORE

It prints its port, and serves until it is told to stop or its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec

from ..agent import Turn
from ..server.app import Legato
from ..server.operation import Dialect, Operation
from ..server.reply import Body
from ..server.request import Request
from ..server.serve import listen, serve
from ..yields import Checkpoint, Thinking, ToolCall, ToolResult, Usage

GRACE = 5.0
MEMORY = 4 << 30
"""Bytes that the server may have; beyond, it fails, and not the machine."""


class State(msgspec.Struct, frozen=True):
    """What the server's process holds at one moment.

    Attributes:
        rss: bytes of memory, its children's included.
        descriptors, threads, tasks, streams, runs: how many there are.
    """

    rss: int
    descriptors: int
    threads: int
    tasks: int
    streams: int
    runs: int


async def honest(turn: Turn) -> AsyncIterator[Any]:
    """Give ``count`` pieces, ``rate`` of them a second, each with its number and its time: ``"17@123456789 "``."""
    rate, count = (float(word) for word in turn.message.text.split()[:2])
    began = time.monotonic()
    for number in range(int(count)):
        await asyncio.sleep(max(0.0, began + number / rate - time.monotonic()))
        yield f"{number}@{time.monotonic_ns()} "


async def hostile(turn: Turn) -> AsyncIterator[Any]:
    """Do what the message's first word says, all of which an agent should not do."""
    match turn.message.text.split():
        case ["huge", *_]:
            for _ in range(200):
                yield "x" * 65_536
        case ["tools", *_]:
            for number in range(1_500):
                yield ToolCall(str(number), "\u202e" + "n" * 10_000, "{}")
                yield ToolResult(str(number), success=None)  # type: ignore[arg-type]
        case ["usage", *_]:
            yield Usage(input_tokens=None, output_tokens="12", cost=float("nan"))  # type: ignore[arg-type]
        case ["notes", *_]:
            for _ in range(2_000):
                yield Checkpoint({"at": "c" * 60_000})
        case ["exits", *_]:
            try:
                yield "going"
                await asyncio.sleep(30)
            finally:
                sys.exit(3)
        case ["stays", *_]:
            for _ in range(3):
                with contextlib.suppress(asyncio.CancelledError):
                    yield "staying"
                    await asyncio.sleep(10)
        case ["object", *_]:
            yield object()
        case ["surrogate", *_]:
            yield "half a pair: \ud800"
        case ["raises", *_]:
            raise BaseException("x" * 100_000)  # the worst that there is
        case ["thinks", *_]:
            for _ in range(2_000):  # long, unless it is stopped
                yield Thinking("hm " * 50)
                await asyncio.sleep(0.01)
        case _:
            yield turn.message.text


async def state(request: Request) -> Body:
    """What the process holds now."""
    return Body(200, State(
        rss=sum(_rss(each) for each in (os.getpid(), *_children())),
        descriptors=len(os.listdir("/dev/fd")),
        threads=threading.active_count(),
        tasks=len(asyncio.all_tasks()),
        streams=len(request.life.streams),
        runs=request.life.runner.running,
    ))  # fmt: skip


def _rss(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * resource.getpagesize()
    except OSError:  # no Linux; or it has gone
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 if pid == os.getpid() else 0


def _children() -> list[int]:
    found: list[int] = []
    for path in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += map(int, path.read_text("ascii").split())
    return found


STATE = Operation("tortureState", "GET", "/torture/state", "torture", "What the server holds", state, {200: State})


def main() -> None:
    """Serve until told to stop, or until whoever started this has gone."""
    faulthandler.enable()  # where it stood when it is ended for having stopped
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    app = Legato(sys.argv[1], agents=[honest, hostile], grace=GRACE, dialects=[Dialect("torture", [STATE])])
    listener = listen("127.0.0.1", 0)

    def leave() -> None:
        sys.stdin.read()
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=leave, daemon=True).start()
    serve(app, listener, on_ready=lambda: print(listener.getsockname()[1], flush=True))  # noqa: T201  # to who started it


if __name__ == "__main__":
    main()
