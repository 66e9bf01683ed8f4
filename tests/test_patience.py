"""An answer that is no stream and takes long: its connection is kept by blanks, so that no proxy gives it up."""

from __future__ import annotations

import asyncio
import concurrent.futures
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import OpenAI

from driving import Chat, Gate, chatting
from fronts import IMPATIENT, front
from legato import AgentError
from legato.agent import Turn
from node_packages import package
from processes import running
from test_real_openai import JAVASCRIPT

Json = dict[str, Any]
SLOW = Path(__file__).parent / "realsdk" / "openai_slow.mjs"
AGENT = """
import asyncio
from legato import AgentError


async def slow(turn):
    await asyncio.sleep(3)
    if turn.message.text == "fail":
        raise AgentError("No.", code="no")
    yield f"You said: {turn.message.text}"
"""
BODIES: dict[str, Json] = {
    "/v1/responses": {"input": "a"},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}]},
}


def asking(chat: Chat, path: str) -> Any:
    headers = {"content-type": "application/json"}
    return chat.driver.stream(path, method="POST", body=json.dumps(BODIES[path]).encode(), headers=headers)


async def after_blanks(stream: Any, count: int, then: Any) -> Json:
    """The body, whose beginning is so many blanks; ``then`` lets it be told."""
    body = b""
    async for piece in stream:
        body += piece
        if body == b" " * count:
            await then()
    assert body[:count] == b" " * count
    return dict(json.loads(body))


@pytest.mark.parametrize("path", BODIES)
async def test_a_silence_is_told_by_blanks(path: str) -> None:
    """One for each heartbeat, behind a head that says all that can be said; then comes the same answer as at once."""
    gate = Gate()
    async with chatting(None, gate, heartbeat=0.02) as chat, asyncio.timeout(30), asking(chat, path) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"] == "application/json"
        assert "content-length" not in stream.headers
        assert stream.headers["x-accel-buffering"] == "no"

        async def let() -> None:
            gate.let("Hi")
            gate.close()

        body = await after_blanks(stream, 3, let)
    said = body["output"][0]["content"][0]["text"] if "output" in body else body["choices"][0]["message"]["content"]
    assert said == "Hi"


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_that_is_there_in_time_has_its_length(path: str) -> None:
    """And its status: nothing is said before it is known."""
    async with chatting(heartbeat=30) as chat:
        answer = await chat.driver.request("POST", path, json=BODIES[path])
    assert int(answer.headers["content-length"]) == len(answer.body)
    assert answer.body[:1] == b"{"


class Failing(Gate):
    """Fails once it is let go."""

    async def __call__(self, turn: Turn) -> AsyncIterator[Any]:
        async for word in super().__call__(turn):
            yield word
        raise AgentError("No.", code="no")


@pytest.mark.parametrize("path", BODIES)
async def test_what_fails_behind_its_head_is_said_in_the_body(path: str) -> None:
    """A response says it by its status; a completion is one whose reason is ``error``, with what went wrong."""
    gate = Failing()
    async with chatting(None, gate, heartbeat=0.02) as chat, asyncio.timeout(30), asking(chat, path) as stream:

        async def fail() -> None:
            gate.close()

        body = await after_blanks(stream, 1, fail)
    assert body["error"]["code"] == "no"
    assert (body.get("status") or body["choices"][0]["finish_reason"]) in ("failed", "error")


@pytest.mark.parametrize("path", BODIES)
async def test_what_is_deleted_behind_its_head_is_said_in_the_body(path: str) -> None:
    """In the shape of an answer."""
    gate = Gate()
    async with chatting(None, gate, heartbeat=0.02) as chat, asyncio.timeout(30), asking(chat, path) as stream:

        async def delete() -> None:
            for each in (await chat.driver.request("GET", "/api/sessions")).json():
                if each["id"] != chat.session:
                    await chat.driver.request("DELETE", f"/api/sessions/{each['id']}")

        body = await after_blanks(stream, 1, delete)
        gate.close()
    assert body["error"]["code"] == "response_not_found"
    assert body["object"] in ("response", "chat.completion")


async def test_who_leaves_while_blanks_are_sent_ends_nothing() -> None:
    """The answer is kept."""
    gate = Gate()
    async with chatting(None, gate, heartbeat=0.02) as chat, asyncio.timeout(30):
        async with asking(chat, "/v1/responses") as stream:
            async for _ in stream:
                break
        (made,) = [each["id"] for each in (await chat.driver.request("GET", "/api/sessions")).json()
                   if each["id"] != chat.session]  # fmt: skip
        gate.let("Hi")
        gate.close()
        while True:
            told = (await chat.driver.request("GET", f"/api/sessions/{made}/messages")).json()
            if len(told) == 2:
                break
        assert "Hi" in json.dumps(told[1])


def test_a_proxy_that_waits_shortly_gives_up_no_answer(tmp_path: Path) -> None:
    """Real SDKs behind a real nginx, which waits for less than the answers take: one run each, and no request again."""
    file = tmp_path / "slow.py"
    file.write_text(AGENT)
    command = ("legato", "serve", str(file), "--port", "0", "--heartbeat", "0.3")
    with running(*command, "--store", "memory:") as server:
        with front(IMPATIENT, tmp_path, server.url.removeprefix("http://")) as url:
            client = OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=2, timeout=60)

            def chat(text: str) -> Any:
                return client.chat.completions.create(model="slow", messages=[{"role": "user", "content": text}])

            def respond(text: str) -> Any:
                return client.responses.create(model="slow", input=text)

            node = ["node", str(SLOW), str(package(JAVASCRIPT)), url]
            with concurrent.futures.ThreadPoolExecutor(5) as threads:
                asked = [threads.submit(each, text) for each in (respond, chat) for text in ("hello", "fail")]
                javascript = threads.submit(subprocess.run, node, capture_output=True, text=True, timeout=90)
                response, failed, completion, refused = (each.result() for each in asked)
                printed = javascript.result()
        sessions = httpx2.get(f"{server.url}/api/sessions").json()
    assert response.output_text == "You said: hello"
    assert (failed.status, failed.error.code) == ("failed", "no")
    assert completion.choices[0].message.content == "You said: hello"
    assert (refused.choices[0].finish_reason, refused.error["code"]) == ("error", "no")
    assert printed.returncode == 0, printed.stderr
    assert json.loads(printed.stdout) == ["You said: hello", ["failed", "no"], "You said: hello", ["error", "no"]]
    assert len(sessions) == 8
