"""``legato keys`` and ``legato serve --keys``: made before the server runs, and by way of it; no key is in a log."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import httpx2
import pytest
from click.testing import CliRunner

from legato import AsyncClient, Client
from legato.cli.group import group
from legato.client import ErrorResponse
from processes import Server, running

AGENT = """
async def agent(turn):
    yield f"{turn.caller.subject} said {turn.message.text}"
"""


class Served(NamedTuple):
    """A server that lets in who has a key.

    Attributes:
        admin, alice: keys, the first good for everything.
    """

    server: Server
    store: str
    admin: str
    alice: str


class Done(NamedTuple):
    """What a command has said."""

    returncode: int
    stdout: str
    stderr: str


def legato(*arguments: str, key: str | None = None) -> Done:
    """A command, in this process, which a new one would take half a second for."""
    result = CliRunner().invoke(group, arguments, prog_name="legato", env={"LEGATO_KEY": key})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Done(result.exit_code, result.stdout, result.stderr)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("keys")
    (folder / "agents.py").write_text(AGENT)
    store = f"sqlite:///{folder / 'chat.db'}"
    made = [
        legato("keys", "add", *who, "--store", store) for who in (("ops", "--admin"), ("alice", "--expires", "90d"))
    ]
    assert [each.returncode for each in made] == [0, 0], made
    admin, alice = (each.stdout.strip() for each in made)
    assert "it is told this once" in made[0].stderr
    target = str(folder / "agents.py")
    options = ["--port", "0", "--store", store, "--keys", "--log-level", "debug"]
    with running("legato", "serve", target, *options) as server:
        yield Served(server, store, admin, alice)
        said = server.output
        for secret in (admin, alice, admin[-20:], alice[-20:]):
            assert secret not in said


def test_a_key_opens_what_is_its_owners(served: Served) -> None:
    """For the commands and the client; without one it is said what to do."""
    url = ("--url", served.server.url)
    refused = legato("send", "x", *url)
    assert (refused.returncode, "LEGATO_KEY" in refused.stderr) == (1, True)
    sent = legato("send", "hello", *url, key=served.alice)
    assert (sent.returncode, sent.stdout.strip()) == (0, "alice said hello")
    assert legato("send", "hello", *url, "--api-key", served.alice).returncode == 0
    assert "hello" in legato("sessions", *url, key=served.alice).stdout
    assert "hello" not in legato("sessions", *url, "--key", served.admin).stdout
    command, environment = [sys.executable, "-m", "legato", "chat", *url], {**os.environ, "LEGATO_KEY": served.alice}
    chat = subprocess.run(command, input="hi\n", capture_output=True, text=True, env=environment, timeout=60)
    assert chat.stdout.count("alice said hi") == 1
    for wrong in ("nonsense", served.alice[:-1]):
        assert legato("sessions", *url, key=wrong).returncode == 1


def test_while_a_server_has_the_file_an_admin_asks_it(served: Served) -> None:
    """Anybody else is told how; and a key that is revoked is good for nothing at once."""
    where = ("--store", served.store, "--url", served.server.url)
    alone = legato("keys", "list", "--store", served.store)
    assert (alone.returncode, "admin's key" in alone.stderr) == (1, True)
    refused = legato("keys", "list", *where, key=served.alice)
    assert (refused.returncode, "admin" in refused.stderr) == (1, True)
    made = legato("keys", "add", "bob", "--scope", "read", "--name", "laptop", *where, key=served.admin)
    assert made.returncode == 0, made.stderr
    bob = made.stdout.strip()
    listed = legato("keys", "list", *where, key=served.admin)
    assert [line.split()[1] for line in listed.stdout.splitlines()] == ["ops", "alice", "bob"]
    assert "laptop" in listed.stdout
    assert bob not in listed.stdout
    assert legato("sessions", "--url", served.server.url, key=bob).returncode == 0
    assert "scope" in legato("send", "x", "--url", served.server.url, key=bob).stderr
    id = bob.split("_")[1]
    assert legato("keys", "revoke", id, *where, key=served.admin).returncode == 0
    assert legato("keys", "revoke", id, *where, key=served.admin).returncode == 1
    assert legato("sessions", "--url", served.server.url, key=bob).returncode == 1


def test_a_stream_ends_within_a_second_of_its_key(served: Served) -> None:
    """Of a real server: the reader is told, and what it comes back with is refused."""
    with Client(served.server.url, api_key=served.admin) as admin:
        made = admin.http.post(
            f"{served.server.url}/api/auth/keys",
            json={"subject": "eve"},
            headers={"authorization": f"Bearer {served.admin}"},
        ).json()
        ended, streaming = threading.Event(), threading.Event()

        def take(stream: Iterable[object]) -> None:
            for _ in stream:
                streaming.set()

        def read() -> None:
            with Client(served.server.url, api_key=made["key"]) as eve:
                stream = eve.streaming.stream_events(session_id=eve.sessions.create().id)
                with pytest.raises(ErrorResponse) as refused:
                    take(stream)
                assert refused.value.status_code == 401
                ended.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert streaming.wait(30)
        httpx2.delete(
            f"{served.server.url}/api/auth/keys/{made['id']}", headers={"authorization": f"Bearer {served.admin}"}
        ).raise_for_status()
        reader.join(30)
        assert ended.is_set()


@pytest.mark.parametrize("face", ["sync", "async"])
def test_a_client_comes_back_with_a_new_key(served: Served, face: str) -> None:
    """A function is asked again after a 401, for requests and for streams; twice refused is refused."""
    given: list[str] = []

    def key() -> str:
        given.append("stale" if len(given) % 2 == 0 else served.alice)
        return given[-1]

    async def later() -> str:
        return key()

    async def run() -> str:
        async with AsyncClient(served.server.url, api_key=later) as client:
            return await (await client.ask("async")).read()

    if face == "sync":
        with Client(served.server.url, api_key=key) as client:
            assert client.ask("sync").read() == "alice said sync"
    else:
        assert asyncio.run(run()) == "alice said async"
    assert given == ["stale", served.alice] * (len(given) // 2)
    assert len(given) == 6  # a session, a message, a stream
    with Client(served.server.url, api_key=lambda: "stale") as client, pytest.raises(ErrorResponse) as refused:
        client.sessions.list()
    assert refused.value.status_code == 401


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", ""),
        ("add", "alice", "--scope", "root"),
        ("add", "alice", "--expires", "soon"),
        ("add", "alice", "--expires", "0d"),
        ("add", "alice", "--store", "memory:"),
        ("revoke", "../x"),
    ],
)
def test_what_is_no_key_is_not_made(arguments: tuple[str, ...], tmp_path: Path) -> None:
    """It is one line that says why."""
    store = () if "--store" in arguments else ("--store", f"sqlite:///{tmp_path / 'x.db'}")
    done = legato("keys", *arguments, *store)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(("trusted", "status"), [("127.0.0.1", 200), ("10.9.9.9", 401)])
def test_a_proxy_is_known_by_its_connection(trusted: str, status: int, tmp_path: Path) -> None:
    """And not by what ``X-Forwarded-For`` says of it, which ``legato serve`` believes for other purposes."""
    (tmp_path / "app.py").write_text(f"""
from legato import Legato
from legato.auth import ProxyHeader

app = Legato("memory:", auth=ProxyHeader("X-Forwarded-User", trusted="{trusted}"))

@app.agent
async def agent(turn):
    return "x"
""")
    with running("legato", "serve", "app.py", "--port", "0", cwd=tmp_path) as server:
        headers = {"x-forwarded-user": "alice", "x-forwarded-for": "10.9.9.9"}
        answer = httpx2.get(f"{server.url}/api/auth/whoami", headers=headers, trust_env=False)
        assert answer.status_code == status


def test_a_server_without_keys_says_so(tmp_path: Path) -> None:
    """Nobody could come in, and nobody would know why."""
    (tmp_path / "agents.py").write_text(AGENT)
    with running("legato", "serve", "agents.py", "--port", "0", "--keys", "--store", "memory:", cwd=tmp_path) as server:
        assert server.said("legato keys add NAME --admin")
