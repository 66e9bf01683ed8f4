"""Tokens end and readers go on: real clients come back with a fresh one, as docs/auth.md says, and miss nothing."""

from __future__ import annotations

import asyncio
import re
import subprocess
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from browser import browsing, node
from legato import AsyncClient, Caller, Legato
from live_server import serving
from node_packages import package

HERE = Path(__file__).parent
LIBRARY = "@microsoft/fetch-event-source@2.0.1"
PAGE = (HERE.parent / "docs" / "auth.md").read_text("utf-8")
LIFE = 0.4
TIMES = 2
READERS = ("legato", "fetch-event-source", "python", "EventSource")


def snippet(containing: str) -> str:
    [found] = [each for each in re.findall(r"^```js\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL) if containing in each]
    return found


class Door:
    """Lets in who has a token that is not over, and counts who came for a stream, or for a ticket to one.

    A token's life begins when it is shown, so that no machine is too slow for it.
    """

    def __init__(self) -> None:
        self.let_in: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()

    def __call__(self, request: Any) -> Caller | None:
        token = request.headers.get("authorization", "").removeprefix("Bearer ")
        reader = request.headers.get("x-reader", "")
        if reader and request.url.path in ("/stream", "/tickets"):
            (self.refused if token == "over" else self.let_in)[reader] += 1
        lives = {"short": LIFE, "long": 60.0}.get(token)
        return None if lives is None else Caller("alice", expires_at=time.time() + lives)


def test_a_token_ends_and_its_reader_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each with one token after the other, of which every other one is refused; each has every word once."""
    monkeypatch.setattr("legato.server.mix.come_back", lambda: 100)  # what servers ask for is a second or two
    door = Door()

    async def agent(turn: Any) -> AsyncIterator[str]:
        for number in range(1, TIMES + 2):
            while min(door.let_in[each] for each in READERS) < number:  # noqa: ASYNC110  # of others' doing
                await asyncio.sleep(0.01)
            for word in range(5):
                yield f"{number}.{word} "
                await asyncio.sleep(0.01)

    app = Legato("memory:", agents=[agent], auth=door)
    wanted = "".join(f"{number}.{word} " for number in range(1, TIMES + 2) for word in range(5))
    with serving(app) as url, httpx2.Client(base_url=url) as http, browsing() as chromium:
        headers = {"authorization": "Bearer long"}
        session = http.post("/api/sessions", json={}, headers=headers).json()["id"]
        http.post(f"/stream/{session}/message", json={"content": "hello"}, headers=headers).raise_for_status()
        texts: dict[str, str] = {}
        arguments = [url, session, str(package(LIBRARY)), snippet("fetchEventSource")]
        processes = {
            kind: subprocess.Popen(
                [node(), str(HERE / "web" / "renewal.mjs"), kind, *arguments], stdout=subprocess.PIPE, text=True
            )
            for kind in READERS[:2]
        }
        try:
            reading = threading.Thread(target=lambda: texts.update(python=asyncio.run(by_python(url, session))))
            reading.start()
            page = chromium.new_page()
            page.goto(f"{url}/docs")
            texts["EventSource"] = page.evaluate(TICKETS.replace("SNIPPET", snippet("new EventSource")), session)
            reading.join(60)
            for kind, process in processes.items():
                texts[kind] = process.communicate(timeout=60)[0]
        finally:
            for process in processes.values():
                process.kill()
                process.wait()
    assert texts == dict.fromkeys(READERS, wanted)
    print("let in", dict(door.let_in), "refused", dict(door.refused))
    assert min(door.let_in[each] for each in READERS) > TIMES
    assert min(door.refused[each] for each in READERS) >= 1


async def by_python(url: str, session: str) -> str:
    asked = 0

    async def token() -> str:
        nonlocal asked
        asked += 1
        return "short" if asked % 2 else "over"

    text = ""
    async with AsyncClient(url, api_key=token, headers={"x-reader": "python"}) as client:
        async for event in client.streaming.stream_events(session_id=session, from_="start"):
            if event.event == "content":
                text += event.data.content
            if event.event == "complete":
                break
    return text


TICKETS = """async (sessionId) => {
    let asked = 0;
    const token = async () => ((asked += 1) % 2 ? "short" : "over");
    const there = window.fetch;
    window.fetch = (url, init) => there(url, { ...init, headers: { ...init.headers, "x-reader": "EventSource" } });
    const Source = window.EventSource;
    window.EventSource = class extends Source {
        constructor(url) {
            super(url.includes("lastEventId=&") || url.endsWith("lastEventId=") ? `${url}&from=start` : url);
            this.addEventListener("complete", () => over(text));
        }
    };
    let text = "";
    let over;
    const all = new Promise((resolve) => { over = resolve; setTimeout(resolve, 60000, "It did not end."); });
    const show = (event, data) => { if (event === "content") text += JSON.parse(data).content; };
    SNIPPET;
    await open();
    return all;
}"""
