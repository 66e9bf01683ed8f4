"""``sseload.c``, the load client: compiled at its first use, run, and its figures.

A *token* is what an agent says at a time. A server may join several in one event, so what is compared counts tokens.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .load import Server
from .sides import HERE

SOURCE = HERE / "sseload.c"
CONNECT_PER_SECOND = 1_000
FAULTS = ("gaps", "dups", "reorders", "errors")


def sseload() -> Path:
    """The program. It is kept in the temporary folder, under a name that changes with its source."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    program = Path(tempfile.gettempdir()) / f"sseload-{digest}"
    if not program.exists():
        compiler = shutil.which("cc") or shutil.which("gcc")
        if compiler is None:
            raise SystemExit("sseload.c needs a C compiler; on Debian: apt install gcc libc6-dev")
        new = program.with_suffix(".new")
        subprocess.run([compiler, "-O2", "-std=gnu11", "-o", new, SOURCE, "-lpthread"], check=True)
        new.replace(program)
    return program


def asking(request: bytes) -> list[str]:
    """The arguments that make the load client send ``request`` on each of its connections."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *fields = head.decode().split("\r\n")
    method, path, _ = first.split()
    arguments = ["-X", method]
    for field in fields:
        if not field.startswith(("host:", "content-length:")):
            arguments += ["-h", field]
    if body:
        arguments += ["-b", body.decode()]
    return [*arguments, path]


class Load:
    """A load client that is running against ``server``.

    Args:
        connections: how many; each is a reader.
        seconds: of measuring, from ``go``; less if all streams have ended.
        arguments: options and the path, see ``sseload -?``.
        at_once: all come at once and the measuring begins with them, without ``open`` and ``go``.
    """

    def __init__(
        self, server: Server, connections: int, seconds: float, arguments: Sequence[str], *, at_once: bool = False
    ) -> None:
        pids = ",".join(map(str, server.pids))
        options = ["-r", 0] if at_once else ["-r", CONNECT_PER_SECOND, "--go"]
        options += ["-j", "-c", connections, "-d", seconds]
        options += ["-p", server.port, "--pid", pids, "--src-ips", 1 + connections // 10_000]
        self._command = [str(sseload()), *map(str, options), *arguments]

    async def start(self) -> None:
        """Start it, and do not wait for its readers."""
        pipe = asyncio.subprocess.PIPE
        self._process = await asyncio.create_subprocess_exec(*self._command, stdout=pipe, stderr=pipe)

    async def open(self) -> None:
        """Start it, and wait until all readers are there."""
        await self.start()
        assert self._process.stderr is not None
        if await self._process.stderr.readline() != b"open\n":
            raise RuntimeError("sseload did not start")

    def go(self) -> None:
        """From now on it measures."""
        self._process.send_signal(signal.SIGUSR1)

    async def stop(self) -> None:
        """End it, without figures."""
        self._process.kill()
        await self._process.communicate()

    async def figures(self) -> dict[str, Any]:
        """What it found, when its time is over."""
        out, _ = await self._process.communicate()
        found: dict[str, Any] = json.loads(out)
        if faults(found):
            kinds = {name: found[name] for name in FAULTS if found[name]}
            print(f"  faults: {kinds}, first: {found.get('first_error', '')}", flush=True)
        return found


def faults(found: dict[str, Any]) -> int:
    """Gaps, doubles, reorders, and connections that were refused or cut off."""
    return int(sum(found[each] for each in FAULTS))


def per_token(found: dict[str, Any], offered: float) -> dict[str, float]:
    """The figures that every benchmark has; ``offered`` is how many tokens a second should have come."""
    tokens = max(found["tokens"], 1)
    return {
        "us": found["server_cpu_s"] * 1e6 / tokens,
        "us_event": found["server_us_per_event"],
        "p50": found["lat_us"]["p50"] / 1e3,
        "p99": found["lat_us"]["p99"] / 1e3,
        "kept": found["tokens_per_s"] / offered,
        "bytes": found["wire_bytes"] / max(found["all_tokens"], 1),
        "written": found["server_written_bytes"] / tokens,
        "rss": found["server_rss_kb"][2] / 1024,
        "faults": faults(found),
    }
