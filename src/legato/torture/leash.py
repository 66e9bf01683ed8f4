"""What was started here ends when this process has gone, however it went: ``kill -9`` leaves nobody to clean up.

A process of its own is told what there is. It sees by the end of its input that whoever told it is gone, and ends what
is left then.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from asyncio.subprocess import Process
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

END_SECONDS = 10.0
"""Within which what was told to end is to have ended; then it is killed."""
_waiting: set[asyncio.Task[Any]] = set()
_lock = threading.Lock()


def hold(pid: int, end: signal.Signals = signal.SIGKILL) -> None:
    """Have a process ended by this signal when this one has gone, unless it is let go of before."""
    _tell(pid, end)


def let_go(pid: int) -> None:
    """Of a process that has ended, as others may get its id."""
    _tell(pid, None)


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """A new folder, gone when it is left, or when this process has gone."""
    folder = Path(tempfile.mkdtemp(prefix=f"legato-{name}-"))
    _tell(str(folder), 0)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _tell(str(folder), None)


async def started(*command: str | Path, end: signal.Signals = signal.SIGKILL, **how: Any) -> Process:
    """A process that is held until it has ended. It is in a group of its own, as a Ctrl-C is not for it.

    Args:
        end: see ``hold``.
        how: what ``asyncio.create_subprocess_exec`` takes.
    """
    process = await asyncio.create_subprocess_exec(*command, process_group=0, **how)
    hold(process.pid, end)

    def over(task: asyncio.Task[Any]) -> None:
        _waiting.discard(task)
        if process.returncode is not None:
            let_go(process.pid)

    waiting = asyncio.create_task(process.wait())
    _waiting.add(waiting)
    waiting.add_done_callback(over)
    return process


def _tell(what: int | str, end: int | None) -> None:
    """``end``: the signal for a process; None: it is let go of."""
    with contextlib.suppress(OSError):  # it was killed itself
        with _lock:  # else threads that come at once start one each, and all but one are never told what is over
            pipe = _holder()
        os.write(pipe, json.dumps([what, end]).encode() + b"\n")


@functools.cache
def _holder() -> int:
    """The pipe to it, which is open to the last moment: what is ended at the exit may still be told of."""
    theirs, ours = os.pipe()
    # In a session of its own, so that nothing that ends all of a group or a terminal ends it, too.
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-I", "-S", __file__], start_new_session=True,
        stdin=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(theirs)
    process.returncode = 0  # it outlives this one, and nobody is to wait for it
    return ours


def _kill(pid: int, number: int) -> bool:
    """Whether it was there."""
    try:
        os.kill(pid, number)
    except OSError:
        return False
    return True


def _lives(pid: int) -> bool:
    """Whether it is there, and has not ended with nobody to ask how."""
    if not _kill(pid, 0):
        return False
    with contextlib.suppress(OSError):  # where there is no such file, it is not known
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] != b"Z"
    return True


def main(told: Iterable[str]) -> None:
    """Read what there is until nobody tells any more, then end what is left."""
    left: dict[int | str, int] = {}
    for line in told:
        what, end = json.loads(line)
        if end is None:
            left.pop(what, None)
        else:
            left[what] = end
    there = [what for what, end in left.items() if isinstance(what, int) and _kill(what, end)]
    for _ in range(2):
        until = time.monotonic() + END_SECONDS
        while (there := [pid for pid in there if _lives(pid)]) and time.monotonic() < until:
            time.sleep(0.02)
        there = [pid for pid in there if _kill(pid, signal.SIGKILL)]
    for what in left:
        if isinstance(what, str):
            shutil.rmtree(what, ignore_errors=True)


if __name__ == "__main__":
    main(sys.stdin)
