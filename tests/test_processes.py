"""Who waits for a process waits for no longer than is said, whatever becomes of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import processes
from processes import bounded, running

LEAVES = """
import os, time

if pid := os.fork():
    print(pid, "http://127.0.0.1:1")
time.sleep(60)
"""
"""A server whose child has its output, and goes on."""


def test_what_a_killed_server_has_started_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To close a pipe from which a thread reads would wait for that thread, and no signal ends such a wait."""
    monkeypatch.setattr(processes, "LAST_WORDS", 0.05)
    (tmp_path / "leaves.py").write_text(LEAVES)
    with running("leaves", cwd=tmp_path) as server:
        child = int(server.output.split()[0])
    try:
        os.kill(child, 0)  # it has all that it had
        assert server.process.returncode == -signal.SIGKILL
    finally:
        os.kill(child, signal.SIGKILL)


def test_what_does_not_come_ends_its_process_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what had come."""
    monkeypatch.setattr(processes, "PATIENCE", 0.1)
    code = "import time; print('one', flush=True); time.sleep(60)"
    came: list[bytes] = []
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout
        came.append(process.stdout.readline())
        with (
            pytest.raises(AssertionError, match=r"no second line within 0\.1 s. What came: \[b'one\\n'\]"),
            bounded(process, "second line", lambda: came),
        ):
            assert process.stdout.readline() == b"two\n"
        assert process.wait() == -signal.SIGKILL


def test_what_comes_in_time_is_let_be() -> None:
    """And another failure is told as it is."""
    with subprocess.Popen([sys.executable, "-c", "print(1)"], stdout=subprocess.PIPE) as process:
        assert process.stdout
        with bounded(process, "line"):
            assert process.stdout.readline() == b"1\n"
        with pytest.raises(ZeroDivisionError), bounded(process, "line"):
            raise ZeroDivisionError
        assert process.wait() == 0
