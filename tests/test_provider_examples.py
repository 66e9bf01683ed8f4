"""The examples about providers run as they are."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fake_server import FakeServer, Reply, Request, stream_reply
from provider_streams import RECORDINGS, TEXT, TEXT_EVENTS, cut_reply, sse

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(name: str, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "API_KEY": "key", "PYTHONIOENCODING": "utf-8"}
    command = [sys.executable, str(EXAMPLES / name), *words]
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.parametrize(
    ("api", "name"),
    [("responses", "text"), ("chat", "chat text, comments"), ("anthropic", "anthropic text")],
)
def test_the_chat_example_prints_an_answer(api: str, name: str, tmp_path: Path) -> None:
    """It does so for each API."""
    with FakeServer(lambda _: stream_reply(RECORDINGS[name].body, None)) as server:
        done = run("provider_chat.py", api, server.url, "m", "Hello?", cwd=tmp_path)

    assert (0, f"{TEXT}\n") == (done.returncode, done.stdout)


def test_the_chat_example_tells_what_went_wrong(tmp_path: Path) -> None:
    """A cut answer is not taken for a whole one."""
    with FakeServer(lambda _: cut_reply(sse(TEXT_EVENTS[:4]))) as server:
        done = run("provider_chat.py", "responses", server.url, "m", cwd=tmp_path)

    assert (1, "Hel") == (done.returncode, done.stdout)
    assert "stream_interrupted" in done.stderr


def test_the_background_example_goes_on_where_it_was(tmp_path: Path) -> None:
    """Started again, it prints what was missed, and asks for no second answer."""
    note = tmp_path / "provider_background.json"
    note.write_text(json.dumps({"id": "resp_1", "sequence_number": 3}))

    def handler(request: Request) -> Reply:
        return stream_reply(sse(TEXT_EVENTS), None) if request.method == "GET" else Reply(400)

    with FakeServer(handler) as server:
        done = run("provider_background.py", server.url, "m", cwd=tmp_path)

    assert (0, f"{TEXT[3:]}\n", False) == (done.returncode, done.stdout, note.exists())


def test_the_background_example_begins_an_answer(tmp_path: Path) -> None:
    """Without a note it asks, in the background, and survives a cut."""
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        return cut_reply(sse(TEXT_EVENTS[:4])) if request.method == "POST" else stream_reply(sse(TEXT_EVENTS[4:]), None)

    with FakeServer(handler) as server:
        done = run("provider_background.py", server.url, "m", "Hello?", cwd=tmp_path)

    assert (0, f"{TEXT}\n") == (done.returncode, done.stdout)
    assert (["POST", "GET"], True) == ([request.method for request in asked], asked[0].json["background"])
