"""From an agent's ``yield`` to the client's hands: Legato (durable) beside FastAPI + sse-starlette (nothing stored).

Many runs at once, each yielding text at a steady rate, each read by one client over HTTP/1.1 on loopback. Every piece
carries the time at which it was yielded. Reported per server: p50 and p99 of the way to the client, and CPU seconds of
the server process (user + system, from /proc) per delivered event. The servers take turns, so that both meet the same
noise; the figures to compare are the ratios.

    python benchmarks/live.py [--runs 100] [--rate 50] [--seconds 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

CONTENDERS = {
    "legato, sqlite full": ["legato", "full"],
    "legato, sqlite normal": ["legato", "normal"],
    "legato, memory": ["legato", "memory"],
    "fastapi + sse-starlette": ["peer"],
}


async def talk(rate: float, seconds: float):
    """The agent of both servers: one piece each ``1 / rate`` seconds, on a schedule that does not drift."""
    begin = time.monotonic()
    for number in range(int(rate * seconds)):
        await asyncio.sleep(max(begin + (number + 1) / rate - time.monotonic(), 0))
        yield f"{time.time():.6f} token "


def serve_legato(kind: str, rate: float, seconds: float) -> None:
    from legato import Legato
    from legato.server.serve import listen, serve

    folder = tempfile.mkdtemp(prefix="legato-bench-")
    store = "memory:" if kind == "memory" else f"sqlite:///{folder}/bench.db?durability={kind}"
    app = Legato(store, max_streams_per_session=5000)

    @app.agent
    async def speaker(turn):
        if turn.message.text.startswith("fill"):
            yield "x" * int(turn.message.text.split()[1])
            return
        async for piece in talk(rate, seconds):
            yield piece

    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    serve(app, listener)


def serve_peer(rate: float, seconds: float) -> None:
    import uvicorn
    from fastapi import FastAPI
    from sse_starlette import EventSourceResponse

    from legato.server.serve import listen

    app = FastAPI()

    @app.get("/stream")
    async def stream():
        async def events():
            number = 0
            async for piece in talk(rate, seconds):
                number += 1
                yield {"event": "content", "data": json.dumps({"type": "content", "content": piece}), "id": str(number)}
            yield {"event": "complete", "data": "{}"}

        return EventSourceResponse(events())

    listener = listen("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    config = uvicorn.Config(app, log_level="warning", access_log=False)
    uvicorn.Server(config).run(sockets=[listener])


STAMP = re.compile(rb'"content": ?"(\d{10}\.\d{6})')


class Reader(asyncio.Protocol):
    """The cheapest client there is: finds the stamps in whatever arrives."""

    def __init__(self, request: bytes, delays: list[float]) -> None:
        self.done = asyncio.get_running_loop().create_future()
        self._request = request
        self._delays = delays
        self._rest = b""

    def connection_made(self, transport) -> None:
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now = time.time()
        self._rest += data
        end = 0
        spoken, _, over = self._rest.partition(b"event: complete")
        for match in STAMP.finditer(spoken):
            self._delays.append(now - float(match[1]))
            end = match.end()
        if over:
            self._transport.close()
        self._rest = self._rest[max(end, len(self._rest) - 64) :]

    def connection_lost(self, exc) -> None:
        if not self.done.done():
            self.done.set_result(None)


async def post(port: int, path: str, body: dict) -> dict:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    text = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(text)}\r\nconnection: close\r\n\r\n"
    writer.write(head.encode() + text)
    answer = await reader.read()
    writer.close()
    return json.loads(answer.split(b"\r\n\r\n", 1)[1])


async def measure(port: int, pid: int, legato: bool, runs: int) -> tuple[list[float], float]:
    loop = asyncio.get_running_loop()
    delays: list[float] = []
    readers = []
    paths = ["/stream"] * runs
    if legato:
        made = [await post(port, "/api/sessions", {"title": "bench"}) for _ in range(runs)]
        paths = [f"/stream?sessionId={session['id']}" for session in made]
    before = cpu(pid)
    for path in paths:
        request = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\r\n".encode()
        _, reader = await loop.create_connection(lambda request=request: Reader(request, delays), "127.0.0.1", port)
        readers.append(reader)
    if legato:
        for session in made:
            await post(port, f"/stream/{session['id']}/message", {"content": "go"})
    await asyncio.gather(*(reader.done for reader in readers))
    return delays, cpu(pid) - before


def cpu(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def one_round(name: str, options: argparse.Namespace) -> tuple[float, float, float, int]:
    command = [sys.executable, __file__, "--serve", *CONTENDERS[name]]
    command += ["--rate", str(options.rate), "--seconds", str(options.seconds)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        time.sleep(1.0)
        delays, seconds = asyncio.run(measure(port, server.pid, name.startswith("legato"), options.runs))
    finally:
        server.kill()
        server.wait()
    delays.sort()
    p50, p99 = delays[len(delays) // 2], delays[int(len(delays) * 0.99)]
    return p50 * 1e3, p99 * 1e3, seconds / len(delays) * 1e6, len(delays)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--rate", type=float, default=50.0, help="pieces per second of each run")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--only", action="append", help="names of contenders")
    options = parser.parse_args()
    if options.serve:
        if options.serve[0] == "peer":
            serve_peer(options.rate, options.seconds)
        else:
            serve_legato(options.serve[1], options.rate, options.seconds)
        return
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs, shared machine")
    print(f"{options.runs} runs at {options.rate:g} events/s for {options.seconds:g} s, median of {options.rounds}\n")
    names = options.only or list(CONTENDERS)
    results: dict[str, list[tuple[float, float, float, int]]] = {name: [] for name in names}
    for _ in range(options.rounds):
        for name in names:
            results[name].append(one_round(name, options))
    expected = options.runs * int(options.rate * options.seconds)
    base = statistics.median(r[2] for r in results[names[-1]])
    print(f"{'server':<26}{'p50 ms':>9}{'p99 ms':>9}{'CPU us/event':>14}{'ratio':>7}{'events':>9} of {expected}")
    for name, rounds in results.items():
        p50, p99, each, count = (statistics.median(r[i] for r in rounds) for i in range(4))
        print(f"{name:<26}{p50:>9.2f}{p99:>9.2f}{each:>14.1f}{each / base:>7.2f}{count:>9.0f}")


if __name__ == "__main__":
    main()
