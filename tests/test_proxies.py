"""Behind nginx and HAProxy, with their own defaults and as docs/deploy.md says: a stream passes as it is written."""

from __future__ import annotations

import contextlib
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from driving import data
from legato.sse import Decoder, SSEMessage
from machine import program
from processes import Server, running

DEPLOY = (Path(__file__).parent.parent / "docs" / "deploy.md").read_text()

AGENT = '''
async def agent(turn):
    """Says a word, and the next one only when the last has been read on the other side of the proxy."""
    for word in ("one ", "two ", "three "):
        yield word
        await turn.ask_permission("Next", "Go on?", timeout=None)
'''


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    file = tmp_path / "word.py"
    file.write_text(AGENT)
    command = ("legato", "serve", str(file), "--port", "0", "--allow-host", "chat.example.com")
    with running(*command, "--store", f"sqlite:///{tmp_path / 'log.db'}") as server:
        yield server


def documented(language: str, heading: str) -> str:
    """The configuration under a heading of docs/deploy.md."""
    found = re.search(rf"### {heading}\n\n```{language}\n(.*?)```", DEPLOY, re.DOTALL)
    assert found
    return found[1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def nginx(folder: Path, server: Server, port: int, *, as_documented: bool) -> list[str]:
    """The command; with nothing but ``proxy_pass``, HTTP/1.0 to the server, and compression, or as documented."""
    binary = program("nginx")
    if as_documented:
        block = documented("nginx", "nginx").replace("127.0.0.1:8088", server.url.removeprefix("http://"))
        block = block.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};").replace("    http2 on;\n", "")
    else:
        block = (
            f"gzip on; gzip_types *; server {{ listen 127.0.0.1:{port}; location / {{ proxy_pass {server.url}; }} }}"
        )
    temporary = "".join(
        f"{name}_temp_path {folder / name};\n" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"daemon off; pid {folder / 'pid'}; error_log stderr;\n"
        f"events {{}}\nhttp {{ access_log off;\n{temporary}{block}\n}}\n"
    )
    return [binary, "-e", "stderr", "-p", str(folder), "-c", str(config)]


def haproxy(folder: Path, server: Server, port: int) -> list[str]:
    """The command, as documented but for TLS."""
    binary = program("haproxy")
    text = documented("", "HAProxy").replace("127.0.0.1:8088", server.url.removeprefix("http://"))
    config = folder / "haproxy.cfg"
    config.write_text(re.sub(r"bind :443 .*", f"bind 127.0.0.1:{port}", text))
    return [binary, "-db", "-f", str(config)]


@contextlib.contextmanager
def proxied(kind: str, folder: Path, server: Server) -> Iterator[httpx2.Client]:
    """A client on the far side of a proxy."""
    port = free_port()
    if kind == "haproxy":
        command = haproxy(folder, server, port)
    else:
        command = nginx(folder, server, port, as_documented=kind == "nginx, as documented")
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as proxy:
        try:
            with httpx2.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as client:
                until_ready(client, proxy)
                yield client
        finally:
            proxy.send_signal(signal.SIGTERM)


def until_ready(client: httpx2.Client, proxy: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 30  # a safety net
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx2.TransportError):
            if client.get("/ready").status_code == 200:
                return
        if proxy.poll() is not None:
            raise AssertionError(proxy.stdout.read() if proxy.stdout else "")
        time.sleep(0.02)
    raise AssertionError("The proxy does not answer.")


def received(response: httpx2.Response) -> Iterator[SSEMessage]:
    decoder = Decoder()
    for chunk in response.iter_bytes():
        yield from decoder.feed(chunk)


def through(client: httpx2.Client, session: str, last: str | None = None) -> Any:
    headers = {"accept-encoding": "gzip", "host": "localhost"} | ({"last-event-id": last} if last else {})
    return client.stream("GET", f"/stream?sessionId={session}&client=legato", headers=headers)


@pytest.mark.parametrize("kind", ["nginx, by itself", "nginx, as documented", "haproxy"])
def test_a_stream_passes_event_by_event_and_resumes(kind: str, tmp_path: Path, server: Server) -> None:
    """The agent waits until each word has been read: a proxy that held one back would hold the test (to its bound)."""
    with proxied(kind, tmp_path, server) as client:
        session = client.post("/api/sessions", json={}).json()["id"]
        with through(client, session) as response:
            messages = received(response)
            assert next(messages).event == "connected"  # at once: nothing has been said yet
            sent = client.post(f"/api/sessions/{session}/messages", json={"text": "go"}).json()
            words = []
            last = ""
            for message in messages:
                if message.event == "content":
                    words.append(data(message)["content"])
                elif message.event == "permission":
                    last = message.id or ""
                    if len(words) == 2:
                        break
                    client.post(f"/api/permissions/{data(message)['id']}/grant")
        asked = data(message)["id"]
        with through(client, session, last) as response:
            messages = received(response)
            assert next(messages).id == last
            client.post(f"/api/permissions/{asked}/grant")
            for message in messages:
                if message.event == "content":
                    words.append(data(message)["content"])
                elif message.event == "permission":
                    client.post(f"/api/permissions/{data(message)['id']}/grant")
                elif message.event == "complete":
                    break
        assert ["one ", "two ", "three "] == words
        assert sent["runId"] == data(message)["runId"]


@pytest.mark.parametrize("kind", ["nginx, as documented", "haproxy"])
@pytest.mark.parametrize("place", ["chat.example.com", "chat.example.com:8443"])
def test_the_servers_own_page_may_send(kind: str, place: str, tmp_path: Path, server: Server) -> None:
    """Whatever port it was opened at; another site's page may not, and no other name is answered."""
    with proxied(kind, tmp_path, server) as client:
        for host, origin, status in (
            (place, f"https://{place}", 201),
            (place, "https://evil.test", 403),
            (place, "https://chat.example.com:9443", 403),
            ("evil.test", "https://evil.test", 421),
        ):
            answer = client.post("/api/sessions", json={}, headers={"host": host, "origin": origin})
            assert answer.status_code == status
