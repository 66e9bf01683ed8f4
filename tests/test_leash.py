"""What ends things when their process has gone. (``tests/test_torture.py`` kills what has begun some.)"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import threading
from collections import Counter

import pytest

from legato.torture import leash

PID = 1 << 23
"""No process has it: more than there are."""


def test_threads_that_come_at_once_have_one_holder(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that what is over is told to who was told of it."""
    read, write = os.pipe()
    both, begun = threading.Barrier(2), []

    def begin() -> int:
        begun.append(write)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.2)  # for another one, who is not to come
        return write

    monkeypatch.setattr(leash, "_holder", functools.cache(begin))
    threads = [threading.Thread(target=leash.hold, args=(PID + number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    os.close(write)
    with open(read, encoding="utf-8") as told:
        assert sorted(json.loads(line)[0] for line in told) == [PID + number for number in range(8)]
    assert begun == [write]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_folder_goes_when_those_who_write_to_it_have_gone(
    end: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what is left of it is what they write meanwhile."""
    asked: Counter[int] = Counter()
    order: list[str] = []

    def kill(pid: int, number: int) -> None:
        if number:
            order.append(signal.Signals(number).name)
            return
        asked[pid] += 1
        if asked[pid] == 3:
            order.append("gone")
            raise ProcessLookupError

    monkeypatch.setattr(leash.os, "kill", kill)
    monkeypatch.setattr(leash.shutil, "rmtree", lambda folder, **how: order.append(folder))
    leash.main([json.dumps([PID, end]), json.dumps(["folder", 0])])
    assert order == [end.name, "gone", "folder"]


def test_what_does_not_end_is_waited_for_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed, and the folder goes in any case."""
    order: list[str] = []
    monkeypatch.setattr(leash, "END_SECONDS", 0.0)
    monkeypatch.setattr(leash.os, "kill", lambda pid, number: number and order.append(signal.Signals(number).name))
    monkeypatch.setattr(leash.shutil, "rmtree", lambda folder, **how: order.append(folder))
    leash.main([json.dumps([PID, signal.SIGTERM]), json.dumps(["folder", 0])])
    assert order[:2] == ["SIGTERM", "SIGKILL"]
    assert order[-1] == "folder"


def test_what_has_ended_and_nobody_asks_for_is_not_waited_for() -> None:
    """As under a first process that asks nobody."""
    pid = os.posix_spawn("/bin/true", ["true"], {})
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    try:
        assert not leash._lives(pid)
        assert leash._lives(os.getpid())
    finally:
        os.waitpid(pid, 0)
