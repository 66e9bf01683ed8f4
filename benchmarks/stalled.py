"""What readers cost that stopped reading: the same run read by one healthy reader, without and with 1,000 stalled ones.

A stalled reader asks for the whole session, which holds two million characters, and never reads from its socket; when
it is cut off, it comes back and does the same. Reported: how long a token takes from the agent's ``yield`` to the
healthy reader, what each stalled reader holds of the server's memory, by how much that grew while the run went on (at
most, and in the end), and how many were cut off. ``--seconds 600`` is ten minutes of it. (In the server's user space;
what the kernel buffers for each stalled socket is bounded by the listening socket's TCP_NOTSENT_LOWAT.)

    python benchmarks/stalled.py [--base CHECKOUT] [--rounds 3] [--seconds 6] [--quick] [--save]
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import select
import socket
from pathlib import Path

from support.contenders import Contender, contenders
from support.load import Mix, Server
from support.results import Column, Figures, Results, parser
from support.sseload import Load, asking, faults

STALLED = 1_000
FILL = 2_000_000
RATE = 200
COLUMNS = [
    Column("p50", "p50 ms", ".2f"),
    Column("p99", "p99 ms", ".2f"),
    Column("kb", "KB/stalled"),
    Column("most", "at most, MB", most=True),
    Column("grown", "grew, MB"),
    Column("cut", "cut off", ".0f"),
    Column("faults", "faults", ".0f", most=True),
]


class Stalled:
    """Connections whose readers have asked for the stream and stopped reading.

    Attributes:
        cut: how often one was cut off.
    """

    def __init__(self, server: Server, request: bytes, count: int) -> None:
        self.cut = 0
        self._server = server
        self._request = request
        self._readers: dict[int, socket.socket] = {}
        self._poll = select.poll()
        for _ in range(count):
            self._open()

    def _open(self) -> None:
        reader = socket.socket()
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect(("127.0.0.1", self._server.port))
        reader.sendall(self._request)
        self._readers[reader.fileno()] = reader
        self._poll.register(reader, select.POLLRDHUP)

    def come_back(self) -> None:
        """Those that were cut off begin anew."""
        for descriptor, _ in self._poll.poll(0):
            self.cut += 1
            self._poll.unregister(descriptor)
            self._readers.pop(descriptor).close()
            self._open()

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()


def memory(server: Server) -> float:
    """Resident memory in MB."""
    pages = sum(int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in server.pids)
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


async def measure(contender: Contender, stalled: int, seconds: float) -> Figures:
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contender.serving(1, RATE))
        mix = Mix()
        await mix.begin(server, f"fill {FILL}")
        filled = Load(server, 1, 60, ["--stop-event", "complete", *asking(mix.first)], at_once=True)
        await filled.start()
        await filled.figures()
        empty = memory(server)
        readers = Stalled(server, mix.first, stalled)
        stack.callback(readers.close)
        load = Load(server, 1, seconds, ["--tokens=content", *asking(mix.live)])
        await load.open()
        await asyncio.sleep(2.0)  # until all have stalled
        before = memory(server)
        await mix.say(server, f"tokens {RATE} {RATE * max(600, round(2 * seconds))}")
        await asyncio.sleep(0.5)
        load.go()
        figures = asyncio.create_task(load.figures())
        most = 0.0
        while not (await asyncio.wait([figures], timeout=0.5))[0]:
            most = max(most, memory(server) - before)
            readers.come_back()
        found = figures.result()
        return {
            "p50": found["lat_us"]["p50"] / 1e3,
            "p99": found["lat_us"]["p99"] / 1e3,
            "kb": (before - empty) * 1e3 / stalled if stalled else 0.0,
            "most": most,
            "grown": memory(server) - before,
            "cut": readers.cut,
            "faults": faults(found),
        }


def main() -> None:
    options = parser(__doc__, seconds=6.0).parse_args()
    stalled = STALLED
    if options.quick:
        options.rounds, options.seconds, stalled = 1, 2.0, 300
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    results = Results("stalled", options, COLUMNS, ratio="")
    everybody = contenders(options, memory=False)
    for count in (0, stalled):
        results.run(
            f"{count:,} stalled readers",
            everybody,
            lambda each, count=count: asyncio.run(measure(each, count, options.seconds)),
        )
    results.save()


if __name__ == "__main__":
    main()
