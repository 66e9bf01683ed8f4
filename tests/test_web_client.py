"""The browser's and Node.js's client against a real server, in Node.js: functions, cuts at every byte, a restart."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from browser import node
from browser import serving as process
from legato import AgentError, Legato
from live_server import cutting, serving
from processes import bounded

DRIVER = Path(__file__).parent / "web" / "real_driver.mjs"
COUNTING = """
import asyncio

async def agent(turn):
    for number in range(1, 100_000):  # until it is killed
        yield f"{number} "
        await asyncio.sleep(0.02)
"""


def drive(task: str, *urls: str) -> Any:
    done = subprocess.run([node(), str(DRIVER), task, *urls], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


async def pieces(turn: Any) -> AsyncIterator[str]:
    """Says something with more than one byte to a character."""
    for piece in ("Grü", "ße, ", "🎵 ", "legato", "."):
        yield piece


class Moody:
    """Fails at the first attempt to answer "fail once", and never ends "go on"."""

    __name__ = "moody"

    def __init__(self) -> None:
        self.failures = 1

    async def __call__(self, turn: Any) -> AsyncIterator[str]:
        yield "So: "
        if turn.message.text == "fail once" and self.failures:
            self.failures -= 1
            raise AgentError("Not today.", code="moody")
        while turn.message.text == "go on":
            await asyncio.sleep(0.01)
            yield "on "
        yield "done."


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    app = Legato("memory:", agents=[pieces])
    app.drain_on_signal = False
    with serving(app) as url:
        yield url


def cut_once(request: bytes) -> int | None:
    """As many bytes as the request's ``x-cut`` says, for its first connection only."""
    found = re.search(rb"^x-cut: (\d+)", request, re.MULTILINE | re.IGNORECASE)
    assert found
    path = request.split(b" ", 2)[1]
    if (path, found[1]) in _cut:
        return None
    _cut.add((path, found[1]))
    return int(found[1])


_cut: set[tuple[bytes, bytes]] = set()


def test_the_functions(server: str) -> None:
    """Create, send, send again, list, follow, delete: values, typed errors, one message for one key."""
    seen = drive("client", server)

    assert seen.pop("names")[:3] == ["connected", "session_created", "user_message_created"]
    assert seen == {
        "text": "Grüße, 🎵 legato.",
        "same": True,
        "roles": ["user", "assistant"],
        "listed": True,
        "misused": "idempotency_key_reused",
        "gone": "session_not_found",
    }


def test_a_stream_cut_at_every_byte(server: str) -> None:
    """Wherever the connection is cut, head or body, the events are those of the stream that was not."""
    with cutting(server, cut_once) as proxy:
        seen = drive("cuts", server, proxy)

    assert seen.get("text") == "Grüße, 🎵 legato.", seen
    assert seen["cuts"] > 1000


def test_an_answer_cut_at_every_byte(server: str) -> None:
    """The store of an answer ends with the stored message, and never shows a text that is not its beginning."""
    with cutting(server, cut_once) as proxy:
        seen = drive("answers", server, proxy)

    assert seen.get("message", {}).get("text") == "Grüße, 🎵 legato.", seen
    assert seen["cuts"] > 1000
    assert seen["message"]["author_type"] == "BOT"


def test_an_answer_that_failed_is_given_anew() -> None:
    """``retry`` after the failure, and ``stop``, on a real server."""
    app = Legato("memory:", agents=[Moody()])
    app.drain_on_signal = False
    with serving(app) as url:
        seen = drive("retry", url)

    assert seen == {"first": ["So: ", "moody"], "second": ["So: done.", None], "stopped": ["So:", "cancelled"]}


def test_a_server_that_is_killed(tmp_path: Path) -> None:
    """The loop goes on over ``kill -9`` and a restart, to the end of the run as the log has it."""
    agent = tmp_path / "counting.py"
    agent.write_text(COUNTING)
    with process(tmp_path, target=agent) as server:
        session = httpx2.post(server.url + "/api/sessions", json={"title": "Counting"}).json()["id"]
        sent = httpx2.post(f"{server.url}/api/sessions/{session}/messages", json={"text": "count"}).json()
        environment = {**os.environ, "TASK": json.dumps({"session": session, "sent": sent["cursor"]})}
        driver = subprocess.Popen(
            [node(), str(DRIVER), "follow", server.url],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
        )  # fmt: skip
        assert driver.stderr is not None
        with bounded(driver, "fifth word"):
            for line in driver.stderr:
                if "5" in line.split():  # others may come with it
                    break
        server.kill()
        server.start()
        said, _ = driver.communicate(timeout=120)
        seen = json.loads(said)

        assert seen["text"] == server.text(session)
        assert seen["error"]["type"] == "interrupted"
        assert seen["text"].startswith("1 2 3 4 5 ")
