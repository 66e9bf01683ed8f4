"""One process after another on one file: a new one that starts before the old one has stopped, and servers that stop by
themselves. Nobody who reads loses anything by it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest

from hosts import APP, SOURCE, count, hosted, number_of
from legato import Client
from legato.errors import StoreLocked
from legato.server.app import Legato
from legato.sse import Decoder
from legato.store.lock import FileLock
from legato.torture.ports import free_port
from processes import bounded, running

NET = 60.0
"""Seconds; a safety net."""
LAST = 60
SESSIONS = 3


def until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + NET
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


class Reader(threading.Thread):
    """Reads one session's answer to its end, however often it has to come back."""

    def __init__(self, url: str, session: str) -> None:
        super().__init__(daemon=True)
        self.url, self.session = url, session
        self.ids: list[int] = []
        self.texts: list[str] = []
        self.lost = 0
        self.ended = threading.Event()
        self.start()

    def take(self, id: str, event: str, data: Any) -> bool:
        """Note an event; whether it was the last."""
        self.ids.append(int(id))
        if event == "content":
            self.texts.append(data["content"])
        if event in ("complete", "error"):
            self.ended.set()
        return self.ended.is_set()


class Plain(Reader):
    """As a page does: ``Last-Event-ID``, and again when the connection ends or is refused."""

    def run(self) -> None:
        with httpx2.Client(base_url=self.url, timeout=NET, trust_env=False) as client:
            while not self.ended.is_set():
                headers = {"last-event-id": str(self.ids[-1])} if self.ids else {}
                try:
                    with client.stream(
                        "GET", f"/stream?sessionId={self.session}&from=start", headers=headers
                    ) as answer:
                        if answer.status_code == 200 and self.read(answer):
                            return
                except httpx2.TransportError:
                    pass
                self.lost += 1
                time.sleep(0.1)

    def read(self, answer: httpx2.Response) -> bool:
        decoder = Decoder()
        for chunk in answer.iter_raw():
            for message in decoder.feed(chunk):
                # "connected" has the cursor of the reader itself
                if message.event != "connected" and self.take(message.id, message.event, json.loads(message.data)):
                    return True
        return False


class Ours(Reader):
    """Our client, which comes back by itself."""

    def run(self) -> None:
        asked: dict[str, Any] = {"session_id": self.session, "from_": "start", "quiet": True}
        with Client(self.url) as client, client.streaming.stream_events(**asked) as events:
            for event in events:
                data = {"content": event.data.content} if event.event == "content" else {}
                if self.take(str(event.id), event.event, data):
                    return


def asked(url: str, sessions: int = SESSIONS, last: int = LAST) -> list[Reader]:
    """Readers of both kinds, of answers that are being given."""
    readers: list[Reader] = []
    with Client(url) as client:
        for _ in range(sessions):
            session = client.sessions.create().id
            client.messages.send(session, text=str(last))
            readers += [Plain(url, session), Ours(url, session)]
    until(lambda: all(len(reader.texts) > 2 for reader in readers))
    return readers


def check(readers: list[Reader], url: str, last: int = LAST) -> None:
    """Everybody has had all of it, once, in order; and so has the log."""
    for reader in readers:
        assert reader.ended.wait(NET)
        assert "".join(reader.texts) == count(last), type(reader)
        assert reader.ids == sorted(set(reader.ids))
    with Client(url) as client:
        for session in {reader.session for reader in readers}:
            events = client.sessions.events(session).events
            assert [event.offset for event in events] == list(range(1, len(events) + 1))
            assert [event.type for event in events].count("run.completed") == 1


# Start before stop ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["gunicorn", "gunicorn's own"])
def test_a_worker_is_replaced_while_answers_are_given(host: str, tmp_path: Path) -> None:
    """At SIGHUP the new worker is there before the old one has stopped, and says so to whoever asks it; the server's
    master does not end."""
    hold = tmp_path / "hold"  # the last word, until the new one is there, however slowly that begins
    hold.touch()
    word = 'yield f"{number} "'
    waits = "while number == last - 1 and os.path.exists('hold'):\n            await asyncio.sleep(0.02)\n        "
    (tmp_path / "app.py").write_text(APP.replace(word, waits + word))
    with hosted(tmp_path, host) as server:
        readers = asked(server.url)
        before = number_of(tmp_path)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: "waiting for the store" in server.output)
        hold.unlink()
        check(readers, server.url)
        assert server.process.poll() is None
        assert number_of(tmp_path) != before
        assert "Traceback" not in server.output


FORWARD = """
import os, sys
os.dup2(int(sys.argv[1]), 3, inheritable=True)
os.environ.update(LISTEN_FDS="1", LISTEN_PID=str(os.getpid()))
os.execv(sys.executable, [sys.executable, "-u", *sys.argv[2:]])
"""


class Started:
    """``legato serve`` on a socket that it is handed, as by systemd."""

    def __init__(self, folder: Path, listener: socket.socket) -> None:
        (folder / "app.py").write_text(APP)
        number = listener.fileno()
        self.process = subprocess.Popen(
            [sys.executable, "-c", FORWARD, str(number), "-m", "legato", "serve", "app.py"],
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=folder, pass_fds=[number],
            env={**os.environ, "STORE": f"sqlite:///{folder}/chat.db", "PYTHONPATH": str(SOURCE)},
        )  # fmt: skip
        self.output = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.output += line

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        self._thread.join(NET)


def test_a_server_follows_another_on_one_socket(tmp_path: Path) -> None:
    """Three of them, one after another, the next always begun before the one before is told to stop: no connection is
    refused."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        servers = [Started(tmp_path, listener)]
        try:
            until(lambda: "Legato is ready" in servers[-1].output)
            readers = asked(url)
            for _ in range(2):
                servers.append(Started(tmp_path, listener))
                until(lambda: "waiting for the store" in servers[-1].output)
                servers[-2].process.send_signal(signal.SIGTERM)
                assert servers[-2].process.wait(NET) == 0
                until(lambda: "Legato is ready" in servers[-1].output)
            check(readers, url)
        finally:
            for server in servers:
                server.end()


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Somebody else has the store's lock: a process that does nothing else."""
    code = (
        "import sys; from legato.store.lock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(folder / "chat.db")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert process.stdout
    with bounded(process, "lock of another process"):
        assert process.stdout.readline() == b"held\n"
    try:
        yield
    finally:
        process.communicate()


def waiting(folder: Path, *options: str) -> tuple[list[str], dict[str, str]]:
    (folder / "app.py").write_text(APP)
    environment = {"STORE": f"sqlite:///{folder}/chat.db", "PYTHONPATH": str(SOURCE)}
    return ["legato", "serve", str(folder / "app.py"), *options], environment


@contextmanager
def begun(folder: Path, *options: str) -> Iterator[tuple[subprocess.Popen[str], httpx2.Client]]:
    """``legato serve`` that has not said that it is ready, and does answer."""
    port = free_port()
    arguments, environment = waiting(folder, "--port", str(port), *options)
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", *arguments], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment},
    )  # fmt: skip
    with httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=NET) as client:
        try:
            until(lambda: process.poll() is not None or _answers(client))
            yield process, client
        finally:
            process.kill()
            process.wait()


def _answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/health").status_code == 200
    except httpx2.TransportError:
        return False


REQUESTS = [
    ("GET", "/api/sessions"), ("POST", "/api/sessions"), ("GET", "/stream?sessionId=s"), ("POST", "/v1/responses"),
    ("GET", "/v1/models"), ("POST", "/v1/chat/completions"), ("POST", "/api/sdk/chat/s/messages"), ("GET", "/"),
    ("GET", "/api/inspect"), ("GET", "/nothing"), ("DELETE", "/api/sessions/s"), ("GET", "/openapi.json"),
]  # fmt: skip


def test_a_server_that_waits_answers_that_it_does(tmp_path: Path) -> None:
    """503 with a time to come back, in the words of each dialect and without any path; it is alive, and not ready."""
    with held(tmp_path), begun(tmp_path) as (process, client):
        for method, path in REQUESTS:
            answer = client.request(method, path, json={})
            assert answer.status_code == 503, path
            assert int(answer.headers["retry-after"]) > 0, path
            assert "starting" in answer.text, path
            assert str(tmp_path) not in answer.text, path
        health, ready = client.get("/health"), client.get("/ready")
        assert (health.status_code, health.json()["agents"]) == (200, ["agent"])
        assert (ready.status_code, ready.json()["status"]) == (503, "starting")
        assert "retry-after" in ready.headers
        process.send_signal(signal.SIGTERM)
        assert process.wait(NET) == 0  # who waits has nothing to finish
    with FileLockOf(tmp_path):
        pass  # and has left no lock


class FileLockOf:
    """The lock of the store in a folder, held by this process."""

    def __init__(self, folder: Path) -> None:
        self._lock = FileLock(str(folder / "chat.db"))

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *exc: object) -> None:
        self._lock.release()


def test_a_server_that_has_waited_long_enough_says_who_has_the_store(tmp_path: Path) -> None:
    """At once and again, and then it ends, with status 1."""
    with held(tmp_path), begun(tmp_path, "--wait", "0.5") as (process, _):
        output, _ = process.communicate(timeout=NET)
    assert process.returncode == 1
    assert "waiting for the store" in output
    assert output.splitlines()[-1].startswith("legato: ")
    assert f"is open in process {number_of(tmp_path)}" in output.splitlines()[-1]


def test_no_waiting_can_be_had(tmp_path: Path) -> None:
    """With ``--wait 0`` it ends at once."""
    arguments, environment = waiting(tmp_path, "--port", "0", "--wait", "0")
    with held(tmp_path):
        ended = subprocess.run(
            [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False, timeout=NET,
            env={**os.environ, **environment},
        )  # fmt: skip
    assert ended.returncode == 1
    assert "waiting for the store" not in ended.stderr
    assert "is open in process" in ended.stderr


def test_a_port_can_be_waited_for_too(tmp_path: Path) -> None:
    """Two with the same command line: the second one takes over when the first one stops, if it is told to wait; else
    it ends at once and says how."""
    arguments, environment = waiting(tmp_path)
    port = str(free_port())
    with running(*arguments, "--port", port, env=environment) as first:
        refused = subprocess.run(
            [sys.executable, "-m", *arguments, "--port", port], capture_output=True, text=True, check=False,
            timeout=NET, env={**os.environ, **environment},
        )  # fmt: skip
        assert refused.returncode == 1
        assert "--wait" in refused.stderr
        second = subprocess.Popen(
            [sys.executable, "-u", "-m", *arguments, "--port", port, "--wait", "50"], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        try:
            assert second.stdout
            with bounded(second, "server that takes over"):
                assert f"waiting for 127.0.0.1:{port}" in second.stdout.readline()
                first.process.send_signal(signal.SIGTERM)
                assert first.stopped() == 0
                until(lambda: "Legato is ready" in second.stdout.readline())  # type: ignore[union-attr]
            assert httpx2.get(f"{first.url}/ready", trust_env=False).status_code == 200
        finally:
            second.kill()
            second.wait()


@pytest.mark.parametrize("host", ["uvicorn", "gunicorn", "gunicorn's own", "hypercorn"])
def test_under_any_server_it_waits_while_it_answers(host: str, tmp_path: Path) -> None:
    """And takes over when the store is free, without a restart."""
    holding = held(tmp_path)
    holding.__enter__()
    with hosted(tmp_path, host) as server, httpx2.Client(base_url=server.url, trust_env=False, timeout=NET) as client:
        try:
            until(lambda: _answers(client))
            ready = client.get("/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "starting")
            refused = client.post("/api/sessions", json={})
            assert (refused.status_code, refused.json()["error"]["reason"]) == (503, "draining")
            assert "retry-after" in refused.headers
        finally:
            holding.__exit__(None, None, None)
        until(lambda: client.get("/ready").status_code == 200)
        assert client.post("/api/sessions", json={}).status_code == 201


@pytest.mark.parametrize("host", ["uvicorn", "hypercorn"])
def test_under_another_server_it_ends_when_it_has_waited_in_vain(host: str, tmp_path: Path) -> None:
    """The server is told to stop; the log says why."""
    with held(tmp_path), hosted(tmp_path, host, LOCK_WAIT="0.5") as server:
        server.stopped()
        assert server.said("the application cannot start")
        assert "is open in process" in server.output


@pytest.mark.parametrize("host", ["uvicorn", "gunicorn"])
def test_several_workers_on_one_file_are_told_what_is_the_matter(host: str, tmp_path: Path) -> None:
    """One of them works, and the others' log says that there can be only one."""
    option = ["--workers", "2"]
    with hosted(tmp_path, host, *option) as server:
        assert server.said("let it have one alone")
        assert "--workers 1" in server.output


async def test_a_second_opening_in_one_process_is_refused_at_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """We would wait for ourselves."""

    async def agent(turn: Any) -> str:
        return "x"

    store = f"sqlite:///{tmp_path}/chat.db"
    first, second = (Legato(store, agents=[agent], lock_wait=10 * NET) for _ in range(2))
    for each in (first, second):
        each.drain_on_signal = False
    await first.start()
    try:
        for begin in (second.start, second.start_aside):
            with pytest.raises(StoreLocked, match="which is this one"):
                await begin()
        assert not second.alive
        assert "waiting" not in caplog.text
    finally:
        await first.stop()
    await second.start()
    await second.stop()


HERE = socket.gethostname()
HOLDERS: dict[str, tuple[str, list[str], list[str]]] = {
    "a process": ("12\nparent=1\nhost={here}\nboot=b\nsince=2026-05-04T10:00:00+00:00\n",
                  ["process 12, since 2026-05-04T10:00:00+00:00"], ["host", "workers"]),
    "another container": ("1\nparent=0\nhost=3f2a9c\nboot={boot}\nsince=2026-05-04T10:00:00+00:00\n",
                          ["process 1 of host '3f2a9c', since"], ["machine", "workers"]),
    "another machine": ("1\nparent=0\nhost=db2\nboot=another\nsince=2026-05-04T10:00:00+00:00\n",
                        ["process 1 of host 'db2', another machine's"], ["workers"]),
    "an earlier version": ("4711\n", ["process 4711, and only one"], ["host", "since"]),
    "nothing": ("", ["process (unknown)"], ["host", "since"]),
    "no lock of ours": ("\x00\xffgarbage=\n=\n", ["is open in process"], ["host"]),
}  # fmt: skip
"""What a lock file says, what is told of it, and what is not."""


@pytest.mark.parametrize("holder", HOLDERS)
def test_who_has_the_store_is_told_so_that_it_can_be_found(holder: str, tmp_path: Path) -> None:
    """In a container every server is process 1, so the host is named where it is another."""
    said, told, untold = HOLDERS[holder]
    boot = Path("/proc/sys/kernel/random/boot_id")
    said = said.replace("{here}", HERE).replace("{boot}", boot.read_text().strip() if boot.exists() else "")
    with held(tmp_path):
        (tmp_path / "chat.db.lock").write_bytes(said.encode("latin-1"))
        with pytest.raises(StoreLocked) as caught:
            FileLock(str(tmp_path / "chat.db")).acquire()
    message = caught.value.message.replace(str(tmp_path), "")
    for text in told:
        assert text in message
    for text in untold:
        assert text not in message
    assert not caught.value.detail["ours"]


# A server that stops itself -------------------------------------------------------------------------------------------

FROM_A_THREAD = (
    APP
    + """
import uvicorn

server = uvicorn.Server(uvicorn.Config(app, port=0))

async def outer(scope, receive, send):
    if scope["type"] == "http" and scope["path"] == "/stop":
        threading.Thread(target=setattr, args=(server, "should_exit", True)).start()
        scope = {**scope, "path": "/health"}
    await app(scope, receive, send)

if __name__ == "__main__":
    server.config.app = outer
    server.run()
"""
)
IN_A_THREAD = FROM_A_THREAD.replace(
    "    server.run()\n",
    """\
    thread = threading.Thread(target=server.run)
    thread.start()
    thread.join()
""",
)
BY_ITSELF: dict[str, tuple[str, ...]] = {
    "uvicorn": ("--limit-max-requests", "40"),
    "gunicorn": ("--max-requests", "40", "--graceful-timeout", "300"),
    "gunicorn's own": ("--max-requests", "40", "--graceful-timeout", "300"),
    "hypercorn": ("--max-requests", "40"),
}
SECONDS = 60.0
"""For all of it: to end with what is being answered, and to start again. By themselves these servers wait for streams
for five minutes, or for ever."""


def used_up(url: str, process: int, folder: Path) -> None:
    """Ask until the process that has the store has had enough."""
    with httpx2.Client(base_url=url, trust_env=False, timeout=NET) as client:
        for _ in range(60):
            try:
                client.get("/health", headers={"connection": "close"})
            except httpx2.TransportError:
                return
            if number_of(folder) != process:
                return


@pytest.mark.parametrize("host", BY_ITSELF)
def test_a_server_that_stops_after_so_many_requests_ends_with_streams_open(host: str, tmp_path: Path) -> None:
    """Where there is a master, it begins the next worker; else the test does. No reader notices more than a pause."""
    port = ("--port", str(free_port())) if host == "uvicorn" else ()
    with hosted(tmp_path, host, *BY_ITSELF[host], *port) as server:
        readers = asked(server.url, sessions=1)
        before = number_of(tmp_path)
        used_up(server.url, before, tmp_path)
        began = time.monotonic()
        if host != "uvicorn":
            until(lambda: number_of(tmp_path) != before)
            assert time.monotonic() - began < SECONDS
            check(readers, server.url)
            return
        assert server.stopped() == 0
        assert time.monotonic() - began < SECONDS
    with hosted(tmp_path, host, *port) as server:
        check(readers, server.url)


@pytest.mark.parametrize("program", [FROM_A_THREAD, IN_A_THREAD], ids=["from a thread", "in a thread"])
def test_a_server_that_its_program_stops_ends_with_streams_open(program: str, tmp_path: Path) -> None:
    """``should_exit`` of uvicorn's server, from a thread; and where the server itself is in one, without signals."""
    (tmp_path / "app.py").write_text(program.replace("port=0", f"port={free_port()}"))
    environment = {"STORE": f"sqlite:///{tmp_path}/chat.db", "PYTHONPATH": f"{SOURCE}:{tmp_path}"}
    with running("app", cwd=tmp_path, env=environment) as server:
        readers = asked(server.url, sessions=1)
        began = time.monotonic()
        httpx2.get(f"{server.url}/stop", trust_env=False)
        assert server.stopped() == 0
        assert time.monotonic() - began < SECONDS
    with running("app", cwd=tmp_path, env=environment) as server:
        check(readers, server.url)
        httpx2.get(f"{server.url}/stop", trust_env=False)
        assert server.stopped() == 0


@pytest.mark.parametrize("host", ["uvicorn", "gunicorn's own", "hypercorn"])
def test_a_stream_whose_clean_end_means_success_is_not_ended_cleanly(host: str, tmp_path: Path) -> None:
    """Responses and Chat Completions: who is cut off sees that, and does not take half an answer for all of it."""
    with hosted(tmp_path, host, BY_ITSELF[host][0], "20") as server:
        body = {"model": "agent", "input": "400", "stream": True}
        chat = {"model": "agent", "messages": [{"role": "user", "content": "400"}], "stream": True}
        ends: dict[str, str] = {}
        begun: set[str] = set()

        def read(path: str, body: Any) -> None:
            try:
                with httpx2.stream("POST", f"{server.url}{path}", json=body, trust_env=False, timeout=NET) as answer:
                    for _ in answer.iter_raw():
                        begun.add(path)
                ends[path] = "clean"
            except httpx2.TransportError as exc:
                ends[path] = type(exc).__name__

        threads = [
            threading.Thread(target=read, args=(path, body))
            for path, body in (("/v1/responses", body), ("/v1/chat/completions", chat))
        ]
        for thread in threads:
            thread.start()
        until(lambda: len(begun) == 2)
        used_up(server.url, number_of(tmp_path), tmp_path)
        for thread in threads:
            thread.join(NET)
    assert set(ends) == {"/v1/responses", "/v1/chat/completions"}
    assert "clean" not in ends.values()
