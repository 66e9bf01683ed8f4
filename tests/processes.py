"""Servers in processes of their own, for what cannot be seen from inside: signals, sockets, the end of a process."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

EXAMPLES = Path(__file__).parent.parent / "examples"


class Server:
    """A server process and its address."""

    def __init__(
        self, process: subprocess.Popen[str], said: list[str], threads: list[threading.Thread], url: str
    ) -> None:
        self.process = process
        self.url = url
        self._said = said
        self._threads = threads

    @property
    def output(self) -> str:
        """What it has printed, as far as it has been read."""
        return "".join(self._said)

    def said(self, text: str) -> bool:
        """Wait until it has printed this. The bound is a safety net."""
        until = time.monotonic() + 60
        while text not in self.output and time.monotonic() < until:
            time.sleep(0.02)
        return text in self.output

    def stopped(self) -> int:
        """Wait for its end, and for its last words; its exit status. The bounds are safety nets: a server that hangs
        would wait for ever, and what it has started may have its output."""
        status = self.process.wait(timeout=60)
        for thread in self._threads:
            thread.join(10)
        return status


@contextmanager
def running(
    *arguments: str,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    python: Path | str = sys.executable,
) -> Iterator[Server]:
    """``python -u -m`` with ``arguments``, from when it has told its address until it is killed."""
    process = subprocess.Popen(
        [str(python), "-u", "-m", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,  # of its own: what two threads write to one pipe may stand in one line
        text=True,
        cwd=cwd,
        env={**os.environ, **(env or {})},
    )
    assert process.stdout
    assert process.stderr
    pipes = [process.stdout, process.stderr]
    said: list[str] = []
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()

    def drain(pipe: IO[str]) -> None:  # to the end, so that a server that logs much never waits for us
        for line in pipe:
            said.append(line)
            lines.put(line)
        lines.put("")

    threads = [threading.Thread(target=drain, args=(pipe,), daemon=True) for pipe in pipes]
    for thread in threads:
        thread.start()
    try:
        open_pipes = len(pipes)
        while open_pipes:
            line = lines.get(timeout=60)
            if found := re.search(r"http://[\w.\[\]:]+:\d+", line):
                yield Server(process, said, threads, found.group())
                break
            open_pipes -= not line
        else:
            raise AssertionError(f"The server gave no address: {''.join(said)}")
    finally:
        process.kill()
        process.wait()
        for thread, pipe in zip(threads, pipes, strict=True):
            thread.join(30)
            pipe.close()


def finished(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """``python -m`` with ``arguments``, once it has ended, with all that it has written."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        check=False,
    )  # fmt: skip
