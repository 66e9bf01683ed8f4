"""Ports that are told to servers which start later."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

from legato.torture import ports
from legato.torture.ports import free_port
from processes import bounded


def numbers(monkeypatch: pytest.MonkeyPatch, *tried: int) -> None:
    """Let these be the ports that are looked at first."""
    left: Iterator[int] = iter(tried)
    monkeypatch.setattr(secrets, "randbelow", lambda below: next(left) - 20_000)


def test_a_port_is_given_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Though nobody listens to it: its server has not started yet, or comes back later."""
    one, other = free_port(), free_port()
    ports._claims.pop().close()
    numbers(monkeypatch, one, one, other)
    assert free_port() == other


def test_another_process_has_claimed_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """For as long as it lives."""
    program = "import sys; from legato.torture.ports import free_port; print(free_port(), flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        with bounded(process, "port of another process"):
            theirs, ours = int(process.stdout.readline()), free_port()
        ports._claims.pop().close()
        numbers(monkeypatch, theirs, ours)
        assert free_port() == ours
        process.communicate()
    numbers(monkeypatch, theirs)
    assert free_port() == theirs


def test_somebody_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has claimed nothing."""
    one, other = free_port(), free_port()
    for _ in range(2):
        ports._claims.pop().close()
    with socket.create_server(("127.0.0.1", one)):
        numbers(monkeypatch, one, other)
        assert free_port() == other
