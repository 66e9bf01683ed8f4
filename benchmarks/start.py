"""How long it takes until there is something: the SDK's client, the command's help, and a server's first answer.

Each program is a new process, from its fork to its end, or of ``legato serve`` to the 200 for ``GET /health`` over
loopback. Both sides take turns, by the process. Bytecode is compiled before, as it is where Legato is installed; it is
kept in a folder of its own, so nothing is written to the other checkout. CPU and memory are the operating system's
figures for the whole process; the server is killed when it has answered.

    python benchmarks/start.py [--base CHECKOUT] [--rounds 20] [--save]
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import NamedTuple

from support.sides import Report, Side, in_turn, parser, sides

from legato.torture.ports import free_port

COMMAND = "from legato.cli import main; main()"
"""What the installed ``legato`` does."""
BENEATH = (
    "import apsw, click, msgspec, starlette.middleware.cors, starlette.requests, uvloop\n"
    "import uvicorn.protocols.http.httptools_impl"
)
"""What a server cannot be without, and is not Legato."""
PROGRAMS: dict[str, Sequence[str]] = {
    "python": ["pass"],
    "import legato; legato.Client": ["import legato; legato.Client"],
    "import legato; legato.Client()": ["import legato; legato.Client()"],
    "import legato; legato.AsyncClient": ["import legato; legato.AsyncClient"],
    "legato --help": [COMMAND, "--help"],
    "legato chat --help": [COMMAND, "chat", "--help"],
    "what serve stands on": [BENEATH],
    "legato serve, first answer": [COMMAND, "serve"],
}
PATIENCE = 30.0


class Started(NamedTuple):
    """Milliseconds on the clock and of CPU, and megabytes at most."""

    clock: float
    cpu: float
    memory: float


def start(side: Side, program: Sequence[str], folder: str) -> Started:
    """Run one program to its end, or a server to its first answer."""
    environment = {**os.environ, "PYTHONPATH": str(side.path / "src"), "PYTHONPYCACHEPREFIX": f"{folder}/bytecode"}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    port = None
    if program[1:] == ["serve"]:
        port = free_port()
        store = tempfile.mkdtemp(dir=folder)
        program = [*program, "--port", str(port), "--store", f"sqlite:///{store}/chat.db"]
    nothing = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0)]
    begun = time.perf_counter()
    process = os.posix_spawn(sys.executable, [sys.executable, "-c", *program], environment, file_actions=nothing)
    if port is not None:
        try:
            first_answer(port, begun + PATIENCE)
        finally:
            os.kill(process, signal.SIGKILL)
        took = time.perf_counter() - begun
    _, status, used = os.wait4(process, 0)
    if port is None:
        took = time.perf_counter() - begun
        if status:
            raise SystemExit(f"{program} of {side.name} failed.")
    return Started(took * 1e3, (used.ru_utime + used.ru_stime) * 1e3, used.ru_maxrss / 1024)


def first_answer(port: int, until: float) -> None:
    """Ask for ``/health`` until there is a 200."""
    while time.perf_counter() < until:
        with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            answer = connection.recv(4096)
            if not answer.startswith(b"HTTP/1.1 200 "):
                raise SystemExit(f"Not well: {answer[:200]!r}")
            return
        time.sleep(0.001)
    raise SystemExit("The server did not start.")


def main() -> None:
    options_of = parser(__doc__)
    options_of.add_argument("--rounds", type=int, default=20)
    options = options_of.parse_args()
    both = sides(options)
    report = Report("start", both)
    with tempfile.TemporaryDirectory(prefix="legato-bench-") as folder:
        found: dict[str, dict[str, list[Started]]] = {label: {side.name: [] for side in both} for label in PROGRAMS}
        for number in range(-1, options.rounds):  # the first one compiles
            for label, program in PROGRAMS.items():
                for side in in_turn(both, number):
                    started = start(side, program, folder)
                    if number >= 0:
                        found[label][side.name].append(started)
    for field, title, pick in (
        ("clock", "From the fork, ms, median", statistics.median),
        ("cpu", "CPU, ms, median", statistics.median),
        ("cpu", "CPU, ms, least: what comes nearest to a quiet machine", min),
        ("memory", "Memory, MB, median", statistics.median),
    ):
        report.head(f"{title}, {options.rounds} processes")
        for label in PROGRAMS:
            values = [pick([getattr(each, field) for each in found[label][side.name]]) for side in both]
            report.row(label, values, form=".1f" if field == "memory" else ".0f")
    if options.save:
        report.save(options.save)


if __name__ == "__main__":
    main()
