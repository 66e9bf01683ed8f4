"""What commands do where their output leads nowhere, and where the environment names a proxy."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from legato.client import Client
from legato.torture.ports import free_port
from processes import running
from test_cli import LEGATO, SAFETY, run

AGENTS = """
async def agent(turn):
    yield turn.message.text
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("agents")
    (folder / "agents.py").write_text(AGENTS)
    return folder


@pytest.fixture(scope="module")
def url(folder: Path) -> Iterator[str]:
    store = f"sqlite:///{folder}/shared.db"
    with running("legato", "serve", str(folder / "agents.py"), "--port", "0", "--store", store) as server:
        yield server.url


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url) as client:
        yield client


OUTPUTS = [
    ("--help",), ("--version",), ("log", "--help"), ("sessions",), ("sessions", "--json"), ("log", "SESSION"),
    ("log", "SESSION", "--json"), ("send", "echo hi"), ("send", "--no-follow", "echo hi"),
    ("backup", "copy.db", "--store", "STORE"), ("gc", "--store", "STORE"), ("migrate", "--help"),
]  # fmt: skip
"""Commands that end by themselves, each of which writes something."""


WAYS = [(command, streams) for command in OUTPUTS for streams in ("full", "closed")]
WAYS += [(command, streams) for command in (OUTPUTS[0], OUTPUTS[5], OUTPUTS[7]) for streams in ("none", "left")]


@pytest.mark.parametrize(
    ("command", "streams"), WAYS, ids=lambda each: each if isinstance(each, str) else " ".join(each)
)
def test_no_output_is_no_traceback(
    command: tuple[str, ...], streams: str, url: str, client: Client, folder: Path, tmp_path: Path
) -> None:
    """A disk that is full, no standard output, no standard streams at all, and a reader who has left."""
    session = client.sessions.create().id
    words = [word.replace("SESSION", session).replace("STORE", f"sqlite:///{folder}/shared.db") for word in command]
    redirections = {"full": ">/dev/full", "closed": ">&-", "none": "<&- >&- 2>&-", "left": "| true"}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", f'"$@" {redirections[streams]}', "-", *LEGATO, *words], capture_output=True,
        text=True, timeout=SAFETY, cwd=tmp_path, env={**os.environ, "LEGATO_URL": url},
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert "object has no attribute" not in done.stderr
    if streams == "full":
        assert done.stderr.splitlines()[-1] == "legato: the output cannot be written: No space left on device"
        assert done.returncode == 1
    elif streams == "left":
        assert done.returncode in (0, 1)
    else:
        assert done.returncode == 0


def test_nothing_is_written_into_a_file_that_has_the_number_of_a_closed_stream(folder: Path, tmp_path: Path) -> None:
    """A server without standard streams: what it says is not in its database, nor on a connection."""
    port = str(free_port())
    process = subprocess.Popen(
        ["bash", "-c", 'exec "$@" <&- >&- 2>&-', "-", *LEGATO, "serve", str(folder / "agents.py"), "--port", port,
         "--store", f"sqlite:///{tmp_path}/chat.db", "--log-level", "debug"]
    )  # fmt: skip
    try:
        with Client(f"http://127.0.0.1:{port}") as client:
            assert client.ask("echo hi").read()
    finally:
        process.terminate()
        assert process.wait(SAFETY) == 0
    for file in tmp_path.iterdir():
        assert b"Legato is ready" not in file.read_bytes()
    checked = sqlite3.connect(tmp_path / "chat.db").execute("PRAGMA integrity_check").fetchone()
    assert checked == ("ok",)


PROXIES = ["ALL_PROXY", "all_proxy", "HTTP_PROXY", "http_proxy"]


BROKEN = [
    ("sessions", "ALL_PROXY", "socks5://127.0.0.1:9"),
    ("sessions", "HTTP_PROXY", "socks4://h:1"),
    ("sessions", "http_proxy", "127.0.0.1:9"),
    ("chat", "all_proxy", "socks5h://127.0.0.1:9"),
    ("chat", "ALL_PROXY", "http://127.0.0.1:9"),
    ("send hi", "ALL_PROXY", "ftp://h"),
    ("send hi", "HTTP_PROXY", "http://127.0.0.1:9"),
    ("log s", "all_proxy", "http://127.0.0.1:9"),
    ("tail s", "ALL_PROXY", "://x"),
    ("tail s", "http_proxy", "https://127.0.0.1:9"),
]


@pytest.mark.parametrize(("command", "name", "value"), BROKEN)
def test_a_proxy_that_does_not_work_is_named(url: str, command: str, name: str, value: str) -> None:
    """In one line that names the variable, by every command, instead of saying that there is no server."""
    result = run(*command.split(), LEGATO_URL=url, **{name: value})
    assert (result.returncode > 0, result.stdout) == (True, "")
    assert re.fullmatch(rf"legato: .*\b{name.upper()}\b.*\n", result.stderr)


@pytest.mark.parametrize("name", PROXIES)
def test_a_proxy_is_not_asked_for_what_is_excepted(url: str, name: str) -> None:
    """By NO_PROXY; and an empty variable names none."""
    assert run("sessions", LEGATO_URL=url, NO_PROXY="127.0.0.1", **{name: "http://127.0.0.1:9"}).returncode == 0
    assert run("sessions", LEGATO_URL=url, **{name: ""}).returncode == 0
