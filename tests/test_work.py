"""What carrying a token costs, counted in work and not in time, so that it is the same on every machine.

A server in a process of its own does a fixed amount of work in step with its readers: the next token is said when all
have the one before. ``python tests/test_work.py`` prints what is counted now, to set ``MEASURED`` anew after a change
that makes it less; a bound that is far above what is needed guards nothing.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SERVER = Path(__file__).with_name("counted_server.py")
ROOM, LEAST = 1.25, 0.05
"""What is let pass: so many times what was measured, since versions of Python differ and so do the groups that SQLite
commits; and so much more, for what is next to nothing."""
WARM, TOKENS = 10, 40
SHAPES = {"fan-out": (1, 100), "chat": (20, 1)}
"""Sessions, and readers of each."""

COUNTS = ("calls", "resumed", "c_calls", "blocks", "pages", "writes")
MEASURED = {
    ("fan-out", "sqlite"): (0.40, 0.05, 0.51, 0.13, 0.01, 1.03),
    ("fan-out", "memory"): (0.33, 0.05, 0.46, 0.10, 0.0, 1.0),
    ("chat", "sqlite"): (34.0, 5.01, 43.5, 9.5, 0.28, 1.57),
    ("chat", "memory"): (29.2, 5.01, 38.3, 7.84, 0.0, 1.0),
}
"""``COUNTS`` for each token and reader, see ``counted_server.Counter``; as on 2026-11-29 with CPython 3.11."""


class Reader:
    """A reader that blocks until it has a token."""

    def __init__(self, port: int, session: str) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.sendall(f"GET /stream?sessionId={session} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode())
        self._seen = b""
        self.wait_for(b"event: connected")

    def wait_for(self, text: bytes) -> None:
        while text not in self._seen:
            self._seen = self._seen[-1000:] + self._socket.recv(65_536)

    def close(self) -> None:
        self._socket.close()


@contextlib.contextmanager
def counted(store: str) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """The server, and its port."""
    pipe = subprocess.PIPE
    process = subprocess.Popen([sys.executable, str(SERVER), store], stdin=pipe, stdout=pipe, bufsize=0)
    try:
        assert process.stdout is not None
        yield process, int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


def post(port: int, path: str, body: dict[str, str]) -> dict[str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", path, json.dumps(body))
    answer = json.loads(connection.getresponse().read())
    connection.close()
    return dict(answer)


def measure(shape: str, store: str) -> dict[str, float]:
    """What one token costs for one reader."""
    sessions, readers_of_each = SHAPES[shape]
    with counted(store) as (process, port), contextlib.ExitStack() as stack:
        assert process.stdin is not None
        assert process.stdout is not None
        made = [post(port, "/api/sessions", {})["id"] for _ in range(sessions)]
        readers = [Reader(port, session) for session in made for _ in range(readers_of_each)]
        for reader in readers:
            stack.callback(reader.close)
        for session in made:
            post(port, f"/api/sessions/{session}/messages", {"text": "go"})
        for number in range(1, WARM + TOKENS + 1):
            process.stdin.write(b"bt" if number == WARM + 1 else b"t")
            for reader in readers:
                reader.wait_for(f"token {number}. ".encode())
        process.stdin.write(b"e")
        found = json.loads(process.stdout.readline())
        return {name: value / (TOKENS * len(readers)) for name, value in found.items()}


def store_of(kind: str, folder: str | Path) -> str:
    return "memory:" if kind == "memory" else f"sqlite:///{folder}/work.db"


@pytest.mark.parametrize(("shape", "kind"), MEASURED)
def test_a_token_costs_no_more_than_it_did(shape: str, kind: str, tmp_path: Path) -> None:
    """Calls, resumed coroutines, writes, pages and kept memory for each token and reader stay within their bounds."""
    found = measure(shape, store_of(kind, tmp_path))
    bounds = {name: value * ROOM + LEAST for name, value in zip(COUNTS, MEASURED[shape, kind], strict=True)}

    assert {name: value for name, value in found.items() if value > bounds[name]} == {}, (found, bounds)


if __name__ == "__main__":
    for shape, kind in MEASURED:
        with tempfile.TemporaryDirectory() as folder:
            found = measure(shape, store_of(kind, folder))
        print(f'    ("{shape}", "{kind}"): ({", ".join(f"{found.get(name, 0):.2f}" for name in COUNTS)}),')
