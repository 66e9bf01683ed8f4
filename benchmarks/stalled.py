"""What readers cost that stopped reading: the same run read by one healthy reader, without and with 1,000 stalled ones.

A stalled reader asks for the whole session, which holds two million characters, and never reads from its socket.
Reported: how long an event takes from the agent's ``yield`` to the healthy reader, what each stalled reader holds of
the server's memory, and by how much that grew while the run went on. (In its user space; what the kernel buffers for
each stalled socket is bounded by the listening socket's SO_SNDBUF.)

    python benchmarks/stalled.py [--stalled 1000] [--rate 200] [--seconds 8] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import resource
import socket
import statistics
import subprocess
import sys
import time
from pathlib import Path

from live import Reader, post

LIVE = str(Path(__file__).with_name("live.py"))


def stall(port: int, session: str) -> socket.socket:
    """A connection whose reader has asked for the stream and stopped reading."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.connect(("127.0.0.1", port))
    reader.sendall(f"GET /stream?sessionId={session}&from=start HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
    return reader


def memory(pid: int) -> float:
    """Resident memory in MB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


async def measure(port: int, pid: int, stalled: int) -> tuple[float, float, float, float]:
    session = (await post(port, "/api/sessions", {"title": "bench"}))["id"]
    filled: list[float] = []
    request = f"GET /stream?sessionId={session} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
    loop = asyncio.get_running_loop()
    _, filler = await loop.create_connection(lambda: Reader(request, filled), "127.0.0.1", port)
    await post(port, f"/stream/{session}/message", {"content": "fill 2000000"})
    await filler.done
    empty = memory(pid)
    readers = [stall(port, session) for _ in range(stalled)]
    delays: list[float] = []
    _, healthy = await loop.create_connection(lambda: Reader(request, delays), "127.0.0.1", port)
    await asyncio.sleep(3.0)  # until all have stalled
    before = memory(pid)
    await post(port, f"/stream/{session}/message", {"content": "go"})
    await healthy.done
    grown = memory(pid) - before
    for reader in readers:
        reader.close()
    delays.sort()
    each = (before - empty) * 1e3 / max(stalled, 1)
    return delays[len(delays) // 2] * 1e3, delays[int(len(delays) * 0.99)] * 1e3, each, grown


def one_round(stalled: int, options: argparse.Namespace) -> tuple[float, float, float, float]:
    command = [sys.executable, LIVE, "--serve", "legato", "full"]
    command += ["--rate", str(options.rate), "--seconds", str(options.seconds)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        time.sleep(1.0)
        return asyncio.run(measure(port, server.pid, stalled))
    finally:
        server.kill()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stalled", type=int, default=1000)
    parser.add_argument("--rate", type=float, default=200.0, help="events per second of the run")
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    print(f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} CPUs, shared machine")
    print(f"one run at {options.rate:g} events/s for {options.seconds:g} s, median of {options.rounds}\n")
    results: dict[int, list[tuple[float, float, float, float]]] = {0: [], options.stalled: []}
    for _ in range(options.rounds):
        for stalled in results:
            results[stalled].append(one_round(stalled, options))
    print(f"{'stalled readers':>15}{'p50 ms':>9}{'p99 ms':>9}{'KB per reader':>15}{'grew while running, MB':>24}")
    for stalled, rounds in results.items():
        p50, p99, held, grown = (statistics.median(each[i] for each in rounds) for i in range(4))
        print(f"{stalled:>15}{p50:>9.2f}{p99:>9.2f}{held if stalled else 0:>15.1f}{grown:>24.1f}")


if __name__ == "__main__":
    main()
