"""The load client of the benchmarks counts what comes, and sees what is missing."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "benchmarks" / "sseload.c"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


@pytest.fixture(scope="module")
def sseload(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc")
    if compiler is None:
        pytest.skip("The load client needs a C compiler; on Debian: apt install gcc libc6-dev")
    program = tmp_path_factory.mktemp("sseload") / "sseload"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    subprocess.run([compiler, *warnings, "-std=gnu11", "-o", program, SOURCE, "-lpthread"], check=True)
    return program


def read(sseload: Path, frames: list[str], *options: str, size: int = 1_000) -> dict[str, float]:
    """What the client finds in a stream of these frames that comes in chunks of ``size`` bytes."""
    body = "".join(f"{frame}\n\n" for frame in frames).encode()
    pieces = [body[at : at + size] for at in range(0, len(body), size)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65_536)
                connection.sendall(HEAD + chunks + b"0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        port = str(listener.getsockname()[1])
        command = [str(sseload), "-j", "-p", port, "-c", "1", "-d", "30", *options, "/"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        thread.join()
    return dict(json.loads(done.stdout))


def token(number: int, ago: float = 0.0) -> str:
    return f"@{int((time.time() - ago) * 1e6)}.{number}; word "


def faults(found: dict[str, float]) -> tuple[float, float, float]:
    return found["gaps"], found["dups"], found["reorders"]


@pytest.mark.parametrize("size", [1, 7, 1_000])
def test_tokens_are_found_however_they_come(sseload: Path, size: int) -> None:
    """One in an event, several in one, more than a line that is kept: each counts once."""
    joined = "".join(token(number) for number in range(5, 400))
    texts = [token(1), token(2) + token(3), token(4) + joined, token(400)]
    found = read(sseload, [f'event: content\ndata: {{"content":"{each}"}}' for each in texts], "--tokens", size=size)

    assert (found["events"], found["tokens"], faults(found), found["errors"]) == (4, 400, (0, 0, 0), 0)


def test_what_is_missing_doubled_or_out_of_order(sseload: Path) -> None:
    """Each kind of fault is seen."""
    found = read(sseload, [f"data: {token(number)}" for number in (7, 8, 8, 10, 9, 11)], "--tokens")

    assert faults(found) == (1, 1, 1)


def test_only_the_events_that_are_named(sseload: Path) -> None:
    """Text that is told again at the end does not count."""
    frames = [f"event: delta\ndata: {token(number)}" for number in (1, 2)]
    found = read(sseload, [*frames, f"event: done\ndata: {token(1)}{token(2)}"], "--tokens=delta")

    assert (found["events"], found["tokens"], faults(found)) == (3, 2, (0, 0, 0))


def test_the_time_of_each_token(sseload: Path) -> None:
    """A token that was made a second ago is a second late."""
    found = read(sseload, [f"data: {token(1, ago=100.0)}{token(2, ago=100.0)}"], "--tokens")

    assert found["lat_us"]["n"] == 2  # type: ignore[index]
    assert found["lat_us"]["p50"] > 99e6  # type: ignore[index]


def test_each_connection_goes_where_it_is_to(sseload: Path, tmp_path: Path) -> None:
    """With ``--to``: to a server of its own, with a path of its own."""
    asked: dict[int, bytes] = {}
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as other:

        def answer(listener: socket.socket) -> None:
            connection, _ = listener.accept()
            with connection:
                asked[listener.getsockname()[1]] = connection.recv(65_536).split()[1]
                connection.sendall(HEAD + b"0\r\n\r\n")

        threads = [threading.Thread(target=answer, args=(listener,)) for listener in (one, other)]
        for thread in threads:
            thread.start()
        ports = [listener.getsockname()[1] for listener in (one, other)]
        to = tmp_path / "to"
        to.write_text(f"{ports[0]} /a?b=c\n{ports[1]} /d\n")
        command = [str(sseload), "-j", "-d", "30", "--to", str(to)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        for thread in threads:
            thread.join()

    assert asked == {ports[0]: b"/a?b=c", ports[1]: b"/d"}
    assert json.loads(done.stdout)["connections"] == 2
