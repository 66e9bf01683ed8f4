"""The SDK against the real server, over real connections that break; and every snippet of its page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from client_faces import FACES, drain, use
from legato import Client, Legato, Text, ToolCall, ToolResult, ToolStarted
from legato.client.errors import ErrorResponse
from legato.client.funcs import get_blob
from legato.store.memory import MemoryStore
from live_server import cutting, serving

EXAMPLES = Path(__file__).parent.parent / "examples"
PAGE = Path(__file__).parent.parent / "docs" / "client.md"
SNIPPETS = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
ANSWER = "One \U0001f3bb two \U0001f3bb three"


async def musician(turn: object) -> AsyncIterator[object]:
    yield ToolCall(id="t1", name="Tune", arguments='{"a": 440}')
    yield ToolStarted(id="t1", progress="tuning")
    yield ToolResult(id="t1", output="in tune")
    for letter in ANSWER:
        yield Text(letter)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Legato(MemoryStore(), agents=[musician])) as url:
        yield url


def every_stream_breaks(step: int) -> Callable[[bytes], int | None]:
    """Each answer of a stream is cut, each ``step`` bytes later than the one before, the first near its head's end;
    others are whole."""
    count = iter(range(600, 10**9, step))
    return lambda request: next(count) if request.startswith(b"GET /stream") else None


def until_complete(opening: Any) -> Any:
    """The events of a stream up to ``complete``, as a list or as an awaitable of one."""
    if hasattr(opening, "__aiter__"):

        async def go() -> list[Any]:
            seen: list[Any] = []
            async with opening as events:
                while not seen or seen[-1].event != "complete":
                    seen.append(await anext(events))
            return seen

        return go()
    seen: list[Any] = []
    with opening as events:
        while not seen or seen[-1].event != "complete":
            seen.append(next(events))
    return seen


@pytest.mark.parametrize("face", FACES)
@pytest.mark.parametrize("step", [7, 31, 260])
def test_a_stream_that_breaks_again_and_again_is_whole(url: str, face: str, step: int) -> None:
    """Every connection is cut somewhere, often in the middle of a frame; the log is read to its end, once."""
    with Client(url) as client:
        answer = client.ask("play")
        assert ANSWER == answer.read()
        log = client.sessions.events(answer.session_id).events

    asked: dict[str, Any] = {"session_id": answer.session_id, "from_": "start", "quiet": True}
    with cutting(url, every_stream_breaks(step)) as broken:
        events = use(face, broken, lambda c: until_complete(c.streaming.stream_events(**asked)))

    assert [entry.offset for entry in log] == [int(event.id) for event in events]
    assert ANSWER == "".join(event.data.content for event in events if event.event == "content")


def test_a_file_of_a_message_is_read(url: str) -> None:
    """By the hash that the log has of it; of another session it is not there."""
    image = bytes(range(256)) * 100
    with Client(url) as client:
        one, other = client.sessions.create(), client.sessions.create()
        inline = f"data:image/png;base64,{b64encode(image).decode()}"
        client.messages.send(one.id, text="look", metadata={"image": inline})
        files = [file for entry in client.sessions.events(one.id).events for file in entry.data.get("blobs", [])]
        assert [client.sessions.blob(one.id, file["hash"]) for file in files] == [image]
        missing = get_blob(client, other.id, files[0]["hash"])
        assert isinstance(missing.error, ErrorResponse)
        assert missing.error.code == "blob_not_found"


@pytest.mark.parametrize("face", FACES)
def test_an_answer_over_a_breaking_connection_is_whole(url: str, face: str) -> None:
    """``ask`` has every event of its run, and the text."""
    with cutting(url, every_stream_breaks(40)) as broken:
        events = use(face, broken, lambda c: drain(c.ask("play")))

    assert "user_message_created run_started" == " ".join(event.event for event in events[:2])
    assert ["Tune", "Tune"] == [event.data.tool_name for event in events if event.event.startswith("tool_execution")]
    assert (ANSWER, "stop") == (events[-1].data.content, events[-1].data.finish_reason)


def test_each_snippet_of_the_page_runs(url: str) -> None:
    """From the first to the last, in one program, as a reader would type them."""
    names: dict[str, Any] = {"print": lambda *args, **more: None}
    for snippet in SNIPPETS:
        exec(compile(snippet.replace("http://localhost:8088", url), PAGE.name, "exec"), names)
    names["client"].close()

    assert len(SNIPPETS) > 10


@pytest.mark.parametrize("name", ["client_sync.py", "client_async.py"])
def test_the_examples_run(url: str, name: str) -> None:
    """Each with one command."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / name], env={**os.environ, "LEGATO_URL": url}, capture_output=True, timeout=60
    )

    assert (0, b"") == (done.returncode, done.stderr)
    assert ANSWER in done.stdout.decode()
