"""A rolling restart: two nodes on one store behind each of three proxies, replaced one after another while answers are
given and read. Nobody misses anything, sees an error, or is away for long.

By default 30 readers, 10 behind each proxy. ``LEGATO_ROLLING=500 pytest tests/test_rolling.py -s`` has 500, says how
long they were away, and does it once more with pgbouncer before the database, which is restarted between the two nodes.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import os
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest

from databases import pgbouncer, postgres, shared_postgres
from driving import data
from fronts import DOCUMENTED, ROOT, front
from legato import Client
from legato.sse import Decoder
from legato.torture.ports import free_port
from machine import program
from processes import Server, running

READERS = int(os.environ.get("LEGATO_ROLLING", "30"))
BY_HAND = "LEGATO_ROLLING" in os.environ
AWAY = 5.0 if BY_HAND else 20.0
"""Seconds for which a reader may be away: by hand what is promised; beside other tests, a safety net."""
PATIENCE = 120 + READERS / 5
SESSIONS = 6
COUNT = 12
PAUSE = 0.5 if BY_HAND else 0.05
"""Seconds between two words: all readers are in the process of the test."""
AGENT = f'''
import asyncio

from legato import Agent
from legato.transcript import fold


async def count(turn):
    """Says the message, and counts; in a further attempt from where it was."""
    words = [turn.message.text, *map(str, range({COUNT}))]
    said = fold(turn.events).text().count(" ")
    for word in words[said:]:
        yield word + " "
        await asyncio.sleep({PAUSE})


agent = Agent(count, name="agent", on_crash="resume")
'''
LAST = "<last>"
SYSTEMCTL = """#!/bin/sh
[ "$1" = restart ] || exit 2
echo "$2" > "$NODES/asked"
read done < "$NODES/done"
[ "$done" = yes ]
"""


class Nodes:
    """Two nodes at fixed ports, on one store; and ``systemctl``, as far as ``rolling-restart`` needs it."""

    def __init__(self, folder: Path, store: str, meanwhile: Callable[[], object]) -> None:
        (folder / "counting.py").write_text(AGENT)
        self.ports = [free_port(), free_port()]
        self.replaced: list[str] = []
        self._folder, self._store, self._meanwhile = folder, store, meanwhile
        self._stack = contextlib.ExitStack()
        self._servers: dict[int, Server] = {}

    def __enter__(self) -> Nodes:
        for port in self.ports:
            self._start(port)
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start(self, port: int) -> None:
        command = ("legato", "serve", "counting.py", "--port", str(port), "--grace", "1", "--wait", "30")
        node = running(*command, cwd=self._folder, env={"LEGATO_STORE": self._store})
        self._servers[port] = self._stack.enter_context(node)

    def restart(self) -> None:
        """Run ``rolling-restart`` over both."""
        systemctl = self._folder / "bin" / "systemctl"
        systemctl.parent.mkdir()
        systemctl.write_text(SYSTEMCTL)
        systemctl.chmod(0o755)
        program("curl")
        for name in ("asked", "done"):
            os.mkfifo(self._folder / name)
        served = threading.Thread(target=self._obey, daemon=True)
        served.start()
        subprocess.run(
            [ROOT / "deploy" / "rolling-restart", *map(str, self.ports)], check=True, timeout=PATIENCE,
            env={**os.environ, "PATH": f"{systemctl.parent}:{os.environ['PATH']}", "NODES": str(self._folder)},
        )  # fmt: skip
        served.join(10)

    def _obey(self) -> None:
        for _ in self.ports:
            name = (self._folder / "asked").read_text().strip()
            self.replaced.append(name)
            port = int(name.removeprefix("legato@"))
            before = self._servers[port]
            before.process.terminate()
            stopped = before.stopped()
            self._start(port)
            if len(self.replaced) == 1:
                self._meanwhile()
            (self._folder / "done").write_text("yes\n" if stopped == 0 else "no\n")


class Watcher:
    """Reads one session to its end, as ``EventSource`` does: it comes back with its cursor when the stream ends, and
    gives up for good at any answer but 200.

    Attributes:
        text: what it was told.
        ids: of all events, in order.
        connections: how often it was connected; ``resets``: how often it was told to begin anew.
        away: the longest time between the end of a stream and the first word of the next, in seconds.
    """

    def __init__(self, client: httpx2.AsyncClient, session: str, connected: asyncio.Semaphore) -> None:
        self.text = ""
        self.ids: list[int] = []
        self.connections = self.resets = 0
        self.away = 0.0
        self._client, self._session, self._connected = client, session, connected

    async def read(self) -> None:
        decoder, last, ended, pause = Decoder(), False, 0.0, 2_000
        while True:
            headers = {"accept": "text/event-stream", "last-event-id": decoder.last_event_id}
            target = f"/stream?sessionId={self._session}&client=legato&from=start"
            with contextlib.suppress(httpx2.TransportError):
                async with self._client.stream("GET", target, headers=headers) as response:
                    assert response.status_code == 200, response.status_code
                    if response.headers.get("legato-cursor") == "reset":
                        self.text, self.ids, self.resets = "", [], self.resets + 1
                    decoder = Decoder(last_event_id=decoder.last_event_id)
                    async for chunk in response.aiter_bytes():
                        for message in decoder.feed(chunk):
                            if message.event == "connected":
                                self.connections += 1
                                self.away = max(self.away, time.monotonic() - ended) if ended else 0.0
                                self._connected.release()
                                continue
                            assert message.event != "error", message.data
                            if message.event == "heartbeat":
                                continue
                            self.ids.append(int(message.id))
                            said = data(message).get("content", "") if message.event == "content" else ""
                            self.text += said
                            last = last or LAST in said
                            if last and message.event == "complete":
                                return
            ended = time.monotonic()
            pause = decoder.retry or pause
            await asyncio.sleep(pause / 1_000)


@pytest.mark.parametrize("way", ["direct", "pgbouncer"] if BY_HAND else ["direct"])
async def test_nobody_misses_a_rolling_restart(way: str, tmp_path: Path) -> None:
    """Each node is replaced once; each reader has all answers whole, whichever node it was at."""
    pytest.importorskip("psycopg", reason="needs legato[postgres]")
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(postgres(fsync="on")) if BY_HAND else shared_postgres()
        store = f"{server.url()}?schema=t_rolling"
        if way == "pgbouncer":
            port = stack.enter_context(pgbouncer(server))
            store = f"{store.replace(str(server.port), str(port))}&pooler=transaction&listen={server.url()}"
        nodes = stack.enter_context(Nodes(tmp_path, store, server.restart if way == "pgbouncer" else bool))
        addresses = []
        for kind in DOCUMENTED:
            folder = tmp_path / kind
            folder.mkdir()
            addresses.append(stack.enter_context(front(kind, folder, *(f"127.0.0.1:{port}" for port in nodes.ports))))
        unchecked = stack.enter_context(httpx2.Client(verify=False, trust_env=False))

        def at(number: int) -> Client:
            return Client(addresses[number % len(addresses)], http_client=unchecked)

        sessions = [at(number).sessions.create(title=f"Session {number}").id for number in range(SESSIONS)]
        turns: list[str] = []
        enough = threading.Event()

        def ask() -> None:
            while LAST not in turns:
                turns.append(LAST if enough.is_set() else f"turn{len(turns)}")
                for number, session in enumerate(sessions):
                    at(number).messages.send(id=session, text=turns[-1])
                enough.wait(COUNT * PAUSE)

        connected = asyncio.Semaphore(0)
        async with asyncio.timeout(PATIENCE), contextlib.AsyncExitStack() as clients:
            limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
            there = [
                await clients.enter_async_context(
                    httpx2.AsyncClient(base_url=address, verify=False, trust_env=False, timeout=40, limits=limits)
                )
                for address in addresses
            ]
            watchers = [
                Watcher(there[number % len(there)], sessions[number % SESSIONS], connected) for number in range(READERS)
            ]
            async with asyncio.TaskGroup() as group:
                for watcher in watchers:
                    group.create_task(watcher.read())
                for _ in watchers:
                    await connected.acquire()
                asking = group.create_task(asyncio.to_thread(ask))
                while not all(watcher.text for watcher in watchers):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
                await asyncio.to_thread(nodes.restart)
                enough.set()
            await asking

    answers = "".join(" ".join([turn, *map(str, range(COUNT))]) + " " for turn in turns)
    away = sorted(watcher.away for watcher in watchers)
    connections = sum(watcher.connections for watcher in watchers)
    print(
        f"\n{READERS} readers, {len(turns)} messages in each of {SESSIONS} sessions, {connections} connections, "
        f"{sum(watcher.resets for watcher in watchers)} resets; away for {away[len(away) // 2]:.1f} s (median), "
        f"{away[READERS * 99 // 100]:.1f} s (1 in 100), {away[-1]:.1f} s (most)"
    )
    assert nodes.replaced == [f"legato@{port}" for port in nodes.ports]
    assert [watcher.text for watcher in watchers] == [answers] * READERS
    assert not sum(watcher.resets for watcher in watchers) or way == "pgbouncer"
    for watcher in watchers:
        assert all(before < after for before, after in itertools.pairwise(watcher.ids))
    assert connections >= READERS + READERS // 2  # who was at a node has moved
    assert away[-1] < (AWAY if way == "direct" else 30.0)  # the database is away for a while, too
