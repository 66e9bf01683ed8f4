"""Servers in processes of their own, for what cannot be seen from inside: signals, sockets, the end of a process."""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar

T = TypeVar("T")

EXAMPLES = Path(__file__).parent.parent / "examples"

PATIENCE = 60.0
"""Seconds for which a process is waited for; a safety net."""
LONG = 300.0
"""For one that does much before it says anything."""
LAST_WORDS = 10.0
"""Seconds for the rest of what a process has said, once it has ended: what it has started may have its output still."""


@contextmanager
def bounded(
    process: subprocess.Popen[Any],
    awaited: str,
    so_far: Callable[[], object] = lambda: "(it was not kept)",
    seconds: float | None = None,
) -> Iterator[None]:
    """A block that waits for a process without a bound of its own: for a line of it, or the end of a stream that its
    heartbeats keep open. After ``seconds`` (else ``PATIENCE``) the process is killed, which ends the wait (unless
    what it has started has its output), and the test fails with what was ``awaited`` and what had come ``so_far``."""
    seconds = seconds or PATIENCE
    late = threading.Event()

    def give_up() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(seconds, give_up)
    timer.daemon = True
    timer.start()
    failure: Exception | None = None
    try:
        yield
    except Exception as exc:
        failure = exc
        if not late.is_set():
            raise
    finally:
        timer.cancel()
    if late.is_set():
        raise AssertionError(f"There was no {awaited} within {seconds:g} s. What came: {so_far()!r}") from failure


def in_time(pieces: Iterable[T]) -> Iterator[T]:
    """Pieces of a stream, whose heartbeats keep its reads from ever timing out."""
    until = time.monotonic() + PATIENCE
    for piece in pieces:
        assert time.monotonic() < until, f"It was not over after {PATIENCE:g} s; the last was {piece!r}"
        yield piece


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
        until = time.monotonic() + PATIENCE
        while text not in self.output and time.monotonic() < until:
            time.sleep(0.02)
        return text in self.output

    def stopped(self) -> int:
        """Wait for its end, and for its last words; its exit status."""
        status = self.process.wait(timeout=PATIENCE)
        for thread in self._threads:
            thread.join(LAST_WORDS)
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
            try:
                line = lines.get(timeout=PATIENCE)
            except queue.Empty:
                raise AssertionError(f"The server gave no address in time: {''.join(said)}") from None
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
            thread.join(LAST_WORDS)
            if not thread.is_alive():  # else to close the pipe would wait for whoever has its other end
                pipe.close()


def finished(*arguments: str, cwd: Path | None = None, patience: float = PATIENCE) -> subprocess.CompletedProcess[str]:
    """``python -m`` with ``arguments``, once it has ended, with all that it has written; after ``patience`` seconds it
    is killed."""
    return subprocess.run(
        [sys.executable, "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=cwd,
        check=False, timeout=patience,
    )  # fmt: skip
