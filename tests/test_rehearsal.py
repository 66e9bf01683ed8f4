"""The deploy rehearsal: nginx, HAProxy and Caddy as docs/deploy.md has them, readers of each kind behind each of them,
and a server that is replaced twice while answers are given. Nothing is lost, doubled or reordered, and nobody reloads.

By default each proxy has 17 readers of each kind, 51 over all three, 306 in all. ``LEGATO_REHEARSAL=50 pytest
tests/test_rehearsal.py`` has 50 of each kind behind each proxy, 900 in all.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
from playwright.sync_api import Page

from browser import browsing, node
from driving import data
from fronts import DOCUMENTED, authority, front
from legato import Client
from legato.dialect.mix import LEGATO
from legato.sse import Decoder
from legato.torture.ports import free_port
from node_packages import package
from processes import LONG, Server, bounded, running
from venvs import mix_python

HERE = Path(__file__).parent
EACH = int(os.environ.get("LEGATO_REHEARSAL", "17"))
"""Readers of one kind behind one proxy."""
SESSIONS = 5
LAST = "<last>"
PATIENCE = 60 + EACH
"""Seconds that all readers have for each step; a safety net."""
AGENT = '''
import asyncio

from legato import Agent
from legato.transcript import fold


async def count(turn):
    """Says the message, and counts; in a further attempt from where it was."""
    words = [turn.message.text, *map(str, range(COUNT))]
    said = fold(turn.events).text().count(" ")
    for word in words[said:]:
        yield word + " "
        await asyncio.sleep(0.1)


agent = Agent(count, name="agent", on_crash="resume")
'''
COUNT = 30
"""Of words in an answer, ten a second: an answer is longer than a server may take to stop."""

# Readers in Chromium: native EventSource, one page for each proxy.
PAGE = """
(wanted) => {
    window.readers = wanted.map((session) => {
        const reader = { told: [], connections: 0, over: false, last: false, dead: false };
        const url = `/stream?sessionId=${session}&client=legato&from=start`;
        const stream = new EventSource(url);
        stream.addEventListener("connected", () => reader.connections++);
        stream.addEventListener("error", () => { reader.dead ||= !reader.over && stream.readyState === 2; });
        for (const name of NAMES) stream.addEventListener(name, (event) => {
            const text = name === "content" ? JSON.parse(event.data).content : "";
            reader.told.push([name, event.lastEventId, text]);
            reader.last ||= text.includes("<last>");
            if (reader.last && name === "complete") { reader.over = true; stream.close(); }
        });
        return reader;
    });
}
"""


class Outside:
    """Readers of one kind in a process of their own."""

    def __init__(self, name: str, command: Sequence[str], wanted: Any, environment: dict[str, str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, **environment},
        )  # fmt: skip
        assert self._process.stdin
        assert self._process.stderr
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()
        self._errors: list[str] = []
        stderr = self._process.stderr
        self._reading = threading.Thread(target=lambda: self._errors.extend(stderr), daemon=True)
        self._reading.start()

    def line(self) -> str:
        assert self._process.stdout
        with bounded(self._process, f"line of {self.name}", lambda: self._errors, LONG):
            line = self._process.stdout.readline()
        if not line:
            self._reading.join(10)
            raise AssertionError(f"{self.name} ended: {''.join(self._errors)[-3000:]}")
        return line.strip()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe:
                with contextlib.suppress(OSError):
                    pipe.close()


def sequence(told: Sequence[Sequence[str]]) -> list[tuple[str, str]]:
    """What a reader was told, however the text was cut into pieces, which may be joined for who is far behind."""
    joined: list[tuple[str, str]] = []
    for event, id, text in told:
        if event not in ("content", "response.output_text.delta"):
            joined.append((event, id))
        elif joined and joined[-1][0] == "text":
            joined[-1] = ("text", joined[-1][1] + text)
        else:
            joined.append(("text", text))
    return joined


def in_order(told: Sequence[Sequence[str]]) -> bool:
    """Whether the ids only grow."""
    ids = [int(id) for _, id, _ in told]
    return all(before < after for before, after in itertools.pairwise(ids))


def read_whole(server: Server, session: str, client: str) -> list[tuple[str, str, str]]:
    """All that there is of a session in a client's dialect, by the server itself, up to the end of the last answer."""
    told: list[tuple[str, str, str]] = []
    decoder, last = Decoder(), False
    url = f"{server.url}/stream?sessionId={session}&client={client}&from=start"
    with httpx2.stream("GET", url, timeout=30, trust_env=False) as response:
        for chunk in response.iter_bytes():
            for message in decoder.feed(chunk):
                if message.event in ("connected", "heartbeat"):
                    continue
                text = data(message).get("content", "") if message.event == "content" else ""
                told.append((message.event, message.id, text))
                last = last or LAST in text
                if last and message.event == "complete":
                    return told
    raise AssertionError("The stream ended before the last answer.")


@contextlib.contextmanager
def serving(folder: Path, agent: Path, port: int) -> Iterator[Server]:
    store = f"sqlite:///{folder / 'chat.db'}"
    command = ("legato", "serve", str(agent), "--port", str(port), "--store", store, "--grace", "1", "--wait", "30")
    with running(*command) as server:
        yield server


def wanted(address: str, sessions: Sequence[str], kind: int) -> list[tuple[str, str]]:
    return [(address, sessions[(index + kind) % len(sessions)]) for index in range(EACH)]


def is_away(address: str) -> bool:
    """Whether the proxy has been asked, and had nobody to ask. (Caddy waits for five seconds before it says so.)"""
    with httpx2.Client(base_url=address, verify=False, trust_env=False, timeout=30) as client:
        return client.get("/ready").status_code in (502, 503)


def until(page: Page, condition: str) -> None:
    page.wait_for_function(condition, timeout=1000 * PATIENCE)


def test_a_deploy_is_missed_by_nobody(tmp_path: Path) -> None:
    """Two deploys under load, behind three proxies, before readers of six kinds."""
    agent = tmp_path / "counting.py"
    agent.write_text(AGENT.replace("COUNT", str(COUNT)))
    library, mix = package("@microsoft/fetch-event-source@2.0.1"), mix_python("0.8.1")
    port = free_port()
    with contextlib.ExitStack() as stack:
        addresses = []
        trusted = tmp_path / "trusted.pem"
        for kind in DOCUMENTED:
            folder = tmp_path / kind
            folder.mkdir()
            addresses.append(stack.enter_context(front(kind, folder, f"127.0.0.1:{port}")))
            with trusted.open("a") as file:
                file.write(authority(kind, folder))
        trust = {"SSL_CERT_FILE": str(trusted), "NODE_EXTRA_CA_CERTS": str(trusted)}

        first = stack.enter_context(serving(tmp_path, agent, port))
        with Client(first.url) as direct:
            sessions = [direct.sessions.create(title=f"Session {number}").id for number in range(SESSIONS)]
        outside: list[Outside] = []

        def read_outside(name: str, number: int, *command: str) -> None:
            asked = [each for address in addresses for each in wanted(address, sessions, number)]
            outside.append(Outside(name, command, asked, trust))
            stack.callback(outside[-1].end)

        script = str(HERE / "realsdk" / "rehearsal.py")
        modules = script.replace(".py", ".mjs")
        read_outside("legato", 0, sys.executable, script, "legato")
        read_outside("mix", 1, str(mix), script, "mix")
        read_outside("legato in Node.js", 2, node(), modules, "legato", str(library))
        read_outside("fetch-event-source", 3, node(), modules, "fetchEventSource", str(library))
        chromium = stack.enter_context(browsing())
        context = stack.enter_context(chromium.new_context(ignore_https_errors=True, bypass_csp=True))
        pages = []
        names = json.dumps(sorted(LEGATO.events - {"connected", "heartbeat", "error"}))
        for address in addresses:
            page = context.new_page()
            page.goto(f"{address}/docs")
            page.evaluate(PAGE.replace("NAMES", names), [session for _, session in wanted(address, sessions, 4)])
            pages.append(page)
        for page in pages:
            until(page, "readers.every((reader) => reader.connections > 0)")
        read_outside("openai", 5, sys.executable, script, "openai")  # which asks for answers itself
        for each in outside:
            assert each.line() == "open", each.name

        # Load: one message after the other in each session, through the proxies, until both deploys are over.
        failures: list[Exception] = []
        turns: list[str] = []
        enough = threading.Event()
        unchecked = stack.enter_context(httpx2.Client(verify=False, trust_env=False))

        def ask() -> None:
            while LAST not in turns:
                turns.append(LAST if enough.is_set() else f"turn{len(turns)}")
                for number, session in enumerate(sessions):
                    try:
                        with Client(addresses[number % len(addresses)], http_client=unchecked) as client:
                            client.messages.send(id=session, text=turns[-1])
                    except Exception as exc:
                        failures.append(exc)
                enough.wait(COUNT / 10)

        asking = threading.Thread(target=ask)
        asking.start()
        # The first deploy: the new server is started before the old one is told to stop.
        starting = stack.enter_context(ThreadPoolExecutor(1)).submit(
            stack.enter_context, serving(tmp_path, agent, port)
        )
        until(pages[0], "readers.some((reader) => reader.told.length > 10)")
        first.process.terminate()
        assert first.stopped() == 0
        second = starting.result(PATIENCE)
        # The second: it is started when readers have been at the proxies in vain.
        for page in pages:
            until(page, "readers.every((reader) => reader.dead || reader.connections > 1)")
            page.evaluate("window.before = readers.map((reader) => reader.told.length)")
        until(pages[0], "readers.some((reader, index) => reader.told.length > before[index] + 10)")
        second.process.terminate()
        assert second.stopped() == 0
        for address in addresses:
            assert is_away(address)
        third = stack.enter_context(serving(tmp_path, agent, port))
        enough.set()

        told: dict[str, list[tuple[list[Any], int]]] = {}
        for each in outside:
            told[each.name] = [(reader, connections) for reader, connections in json.loads(each.line())]
        for page in pages:
            until(page, "readers.every((reader) => reader.over || reader.dead)")
            assert not page.evaluate("readers.filter((reader) => reader.dead).length")
            told.setdefault("EventSource", []).extend(
                (reader["told"], reader["connections"]) for reader in page.evaluate("readers")
            )
        asking.join(PATIENCE)
        assert failures == []

        answers = [" ".join([turn, *map(str, range(COUNT))]) + " " for turn in turns]
        whole = {
            (client, session): read_whole(third, session, client)
            for client in ("legato", "python-0.8.1")
            for session in sessions
        }
        for (_, session), expected in whole.items():
            assert "".join(text for _, _, text in expected) == "".join(answers), session
        order = ["legato", "mix", "legato in Node.js", "fetch-event-source", "EventSource", "openai"]
        assert set(told) == set(order)
        for number, name in enumerate(order):
            readers = told[name]
            assert len(readers) == EACH * len(addresses)
            assert all(connections > 0 for _, connections in readers)
            for index, (events, _) in enumerate(readers):
                assert in_order(events), (name, index)
                if name == "openai":
                    text = "".join(text for event, _, text in events if event == "response.output_text.delta")
                    assert text == " ".join(["openai", *map(str, range(COUNT))]) + " "
                    assert [int(id) for _, id, _ in events] == list(range(len(events)))
                    assert [event for event, _, _ in events].count("response.completed") == 1
                else:
                    session = sessions[(index % EACH + number) % len(sessions)]
                    client = "python-0.8.1" if name == "mix" else "legato"
                    assert sequence(events) == sequence(whole[client, session]), (name, index)
