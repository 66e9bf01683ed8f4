"""The attack tables of an event stream: what can forge a frame, what a cursor may be, what any route may be sent.

``LEGATO_STREAMS=100000 pytest tests/test_attacks.py -k random`` decodes so many random streams; by default 2,000.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, settings

from legato.caller import Caller
from legato.errors import AgentError, LegatoError
from legato.server import openapi
from legato.server.app import Legato
from legato.server.dialects import DIALECTS
from legato.server.inspect import Inspector
from legato.testing import Driver
from legato.yields import Finish, Refusal, Thinking, ToolCall, ToolResult
from live_server import serving
from test_sse import by_the_standard, decode

STREAMS = int(os.environ.get("LEGATO_STREAMS", "2000"))

# The decoder ----------------------------------------------------------------------------------------------------------

WORDS = [
    *(
        b"\n",
        b"\r",
        b"\r\n",
        b"\n\n",
        b"\r\r",
        b"\n\r",
        b"data",
        b"data:",
        b"data: ",
        b"id",
        b"id:",
        b"id: ",
        b"event: ",
    ),
    *(
        b"event",
        b"retry: ",
        b"retry:",
        b": ",
        b":",
        b": ping\n",
        b" ",
        b"\t",
        b"\0",
        b"\x0b",
        b"\x0c",
        b"\x1c",
        b"1",
        b"23",
    ),
    *(b"x", b"[DONE]", b"\xef\xbb\xbf", b"\xef", b"\xbb", b"\xff", b"\xe2\x80\xa8", b"\xc2\x85", b"\xe2", b"\xf0\x9f"),
    *("é".encode(), "😀".encode(), b"-1", b"9" * 20, "\u0663".encode(), b"__proto__", b"Data: ", b"data : "),
]


def test_random_streams_decode_by_the_standard() -> None:
    """However they are cut: what a literal reading of the standard gives, and no error."""
    for seed in range(STREAMS):
        dice = random.Random(seed)
        body = b"".join(dice.choices(WORDS, k=dice.randrange(60)))
        cuts = sorted(dice.randrange(len(body) + 1) for _ in range(dice.randrange(8)))
        chunks = [body[start:end] for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        assert decode(chunks) == by_the_standard(body), f"seed {seed}: {chunks}"


# The encoders ---------------------------------------------------------------------------------------------------------

FORGERIES = {
    "a frame": 'x\n\nevent: complete\ndata: {"forged": true}\nid: 999\n\n',
    "a frame by CR": 'x\r\revent: complete\rdata: {"forged": true}\rid: 999\r\r',
    "a frame by CRLF": 'x\r\n\r\nevent: complete\r\ndata: {"forged": true}\r\n\r\n',
    "an id": "x\nid: 999\n",
    "a retry": "x\rretry: 1\r",
    "a comment": "x\n: hello\n\n",
    "NUL": "x\0y",
    "NEL": 'x\x85\x85data: {"forged": true}\x85\x85',
    "line separators": 'x\u2028\u2029data: {"forged": true}\u2029\u2029',
    "other separators": "x\x0b\x0c\x1c\x1d\x1e\x1fdata: y",
    "a byte order mark": "\ufeffdata: y",
    "half a pair": "x\ud800y",
    "the end": "[DONE]",
    "JSON": '"},"forged":true,"x":{"y":"',
    "bidi": "\u202e\u2066x",
}


class Forger:
    """An agent that says one hostile text in every place where it may say something."""

    text = ""

    async def __call__(self, turn: Any) -> AsyncIterator[Any]:
        text = self.text
        for said in (
            lambda: Thinking(text),
            lambda: text,
            lambda: ToolCall("call", "look", json.dumps({"x": text, text[:60]: 1})),
            lambda: ToolResult("call", {"found": text}),
            lambda: ToolCall("second", "look", json.dumps({"x": text})),
            lambda: ToolResult("second", text),
            lambda: Refusal(text) if turn.message.text == "refuse" else "",
        ):
            yield said()
        await turn.notify("A title", text or "x", wait=False)
        if turn.message.text == "fail":
            raise AgentError(text or "x", code="failed")
        yield Finish("stop")


def named(place: str, text: str) -> Any:
    """What an agent yields with a hostile name, which is refused where it does."""
    match place:
        case "tool":
            return ToolCall("call", text, "{}")
        case "call":
            return ToolCall(text, "look", "{}")
        case "finish":
            return Finish(text)
    raise AssertionError(place)


ID = re.compile(r"[A-Za-z0-9._~-]{0,128}")
STREAMING = {
    "mix": "/stream?sessionId={s}&from=start",
    "mix, our client": "/stream?sessionId={s}&from=start&client=legato",
    "mix, an old client": "/stream?sessionId={s}&from=start&client=python-0.8.1",
    "deva": "/api/sdk/chat/{s}/messages/{m}/query/stream",
    "responses": "/v1/responses/resp_{r}?stream=true",
    "responses, new": "/v1/responses",
    "chat": "/v1/chat/completions",
}


async def streamed(driver: Driver, dialect: str, question: str) -> bytes:
    """The bytes of one answer as this dialect streams it."""
    target = STREAMING[dialect]
    if target.count("/") == 2 or target.endswith("completions"):
        asked = {"input": question} if "responses" in target else {"messages": [{"role": "user", "content": question}]}
        body = json.dumps({"model": "forger", "stream": True, **asked}).encode()
        stream = driver.stream(target, method="POST", body=body, headers={"content-type": "application/json"})
    else:
        session = (await driver.request("POST", "/api/sessions", json={"title": "t"})).json()["id"]
        sent = (await driver.request("POST", f"/api/sessions/{session}/messages", json={"text": question})).json()
        target = target.format(s=session, m=sent["messageId"], r=sent["runId"])
        stream = driver.stream(target, method="POST" if "query" in target else "GET")
    async with asyncio.timeout(30), stream:
        assert stream.status == 200
        async for each in stream.messages():
            if each.event in ("complete", "error") and '"runId"' in each.data:
                break
    return stream.body


@pytest.mark.parametrize("dialect", STREAMING)
async def test_no_text_forges_a_frame(dialect: str) -> None:
    """In whatever field it stands, and for however simple a reader: the frames are those of a harmless text."""
    forger = Forger()
    app = Legato("memory:", agents=[Agent_(forger)], grace=0.0)
    app.drain_on_signal = False
    async with Driver(app) as driver:
        for question in ("say", "refuse", "fail"):
            forger.text = "harmless"
            kinds = shape(await streamed(driver, dialect, question))
            for name, text in FORGERIES.items():
                forger.text = text
                body = await streamed(driver, dialect, question)
                assert b"\r" not in body, name
                assert b"\0" not in body, name
                plain = body.decode()
                assert plain.splitlines() == plain.removesuffix("\n").split("\n"), name
                found = shape(body)
                if name != "half a pair":  # which no JSON can have, so the run fails
                    assert found == kinds, (name, question)


def Agent_(forger: Forger) -> Any:
    from legato.agent import Agent

    return Agent(forger, name="forger")


def shape(body: bytes) -> list[tuple[str, bool]]:
    """What a reader sees of a stream, but for texts: the names of its events in order, each once where one follows
    another; its ids and data are looked at."""
    found: list[tuple[str, bool]] = []
    for line in body.decode().split("\n"):
        assert line == "" or re.match(r"(event|data|id|retry): |:", line), line
        if line.startswith("id: "):
            assert ID.fullmatch(line[4:]), line
    for event, data, _ in by_the_standard(body).events:
        value = None if data == "[DONE]" else json.loads(data)
        assert "forged" not in (value if isinstance(value, dict) else {})
        kind = (event, data == "[DONE]")
        if not found or found[-1] != kind:
            found.append(kind)
    return found


@pytest.mark.parametrize("place", ["tool", "call", "finish"])
@pytest.mark.parametrize("name", [name for name, text in FORGERIES.items() if set(text) & set("\r\n\0\x85\u2028\x0b")])
async def test_no_name_forges_a_frame(place: str, name: str) -> None:
    """A name with what ends a line is refused or mended where the agent gives it; every dialect's frames stay whole."""

    async def agent(turn: Any) -> AsyncIterator[Any]:
        yield "before"
        yield named(place, FORGERIES[name])

    from legato.agent import Agent

    app = Legato("memory:", agents=[Agent(agent, name="forger")], grace=0.0)
    app.drain_on_signal = False
    async with Driver(app) as driver:
        for dialect in STREAMING:
            body = await streamed(driver, dialect, "say")
            assert b"\r" not in body
            shape(body)


# Cursors --------------------------------------------------------------------------------------------------------------

CURSORS = [
    "",
    " ",
    "0",
    "-0",
    "-1",
    "+1",
    "1",
    "01",
    "1.",
    "1.0",
    "1.0.0",
    ".1",
    "1e3",
    "1_000",
    "0x1",
    "NaN",
    "null",
    "a/b",
    "../1",
    "1:2",
    "1-2",
    "1,2",
    "1 2",
    "1;2",
    "9" * 15,
    "9" * 16,
    "9" * 40,
    str(2**63),
    str(2**64),
    "9" * 10_000,
    "%00",
    "1%00",
    "\u0661",
    "\uff11",
    "1\u00a0",
    "earliest",
    "latest",
    "*",
    "' OR 1=1 --",
    '{"a":1}',
    "resp_1",
    "s_x~1~u",
    "\x7f",
]


def cursor_requests(session: str, message: str, run: str) -> Iterator[tuple[str, str, dict[str, str], str]]:
    """Method, target, headers and the cursor, for each place in which one may be given."""
    from urllib.parse import quote

    deva = f"/api/sdk/chat/{session}/messages/{message}/query/stream"
    for cursor in CURSORS:
        quoted = quote(cursor, safe="%")
        header = (
            {"last-event-id": cursor} if cursor.isascii() or (cursor.isprintable() and max(cursor) < "\u0100") else None
        )
        targets = [("GET", f"/stream?sessionId={session}"), ("POST", deva)]
        if header is not None:
            for method, target in targets:
                yield method, target, header, cursor
        yield "GET", f"/stream?sessionId={session}&lastEventId={quoted}", {}, cursor
        yield "GET", f"/stream?sessionId={session}&from={quoted}", {}, cursor
        yield "POST", f"{deva}?lastEventId={quoted}", {}, cursor
        yield "GET", f"/v1/responses/resp_{run}?stream=true&starting_after={quoted}", {}, cursor
        yield "GET", f"/api/sessions/{session}/events?after={quoted}", {}, cursor
        yield "GET", f"/api/sessions?before={quoted}", {}, cursor
        yield "GET", f"/v1/conversations/{session}/items?after={quoted}", {}, cursor
        yield "GET", f"/v1/responses/resp_{run}/input_items?after={quoted}", {}, cursor
        yield "GET", f"/api/sdk/chat/{session}/messages?cursor={quoted}", {}, cursor


async def test_no_cursor_breaks_a_stream() -> None:
    """Each is answered before anything of a stream: from there, with a reset, or with why it is none. Nothing is a
    failure of the server's, and nothing waits for what will not come."""

    async def agent(turn: Any) -> AsyncIterator[str]:
        yield "one "
        yield "two"

    app = Legato("memory:", agents=[agent], grace=0.0, heartbeat=0.2)
    app.drain_on_signal = False
    async with Driver(app) as driver:
        session = (await driver.request("POST", "/api/sessions", json={})).json()["id"]
        sent = (await driver.request("POST", f"/api/sessions/{session}/messages", json={"text": "hi"})).json()
        async with asyncio.timeout(30):
            while app.runner.running:  # noqa: ASYNC110
                await asyncio.sleep(0.001)
        for method, target, headers, cursor in cursor_requests(session, sent["messageId"], sent["runId"]):
            async with asyncio.timeout(30), driver.stream(target, method=method, headers=headers) as stream:
                asked = f"{method} {target[:120]} {cursor[:30]!r}"
                assert stream.status in (200, 204, 400, 404), (asked, stream.status)
                first = await stream.read()
                assert stream.error is None
                if stream.status >= 400:
                    assert stream.headers["content-type"] == "application/json", asked
                    assert b"Traceback" not in first
                elif (
                    cursor[:4] == "9999"
                    and "/v1/" not in target
                    and stream.headers.get("content-type", "")[:5] == "text/"
                ):
                    assert stream.headers.get("legato-cursor") == "reset", asked


# Any route ------------------------------------------------------------------------------------------------------------


class SignIn(LegatoError):
    """Nobody is let in without a name."""

    code = "unauthorized"
    status = 401


def who(scope: Any) -> Caller:
    for name, value in scope["headers"]:
        if name == b"x-user":
            return Caller(value.decode("latin-1"))
    raise SignIn("Sign in first.")


async def echo(turn: Any) -> str:
    return str(turn.message.text)


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(Legato("memory:", agents=[echo], grace=0.0, identify=who)) as address:
        yield address


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=url, trust_env=False, headers={"x-user": "ann"}) as client:
        yield client


OPERATIONS = [operation for dialect in DIALECTS for operation in dialect.operations]
OPERATIONS += Inspector(DIALECTS).operations()
generated = schemathesis.openapi.from_dict(openapi.document(OPERATIONS))
generated.config.phases.update(phases=["fuzzing"])  # all corners of each schema are test_openapi.py's
FEW = settings(max_examples=2, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
OPEN = {"/health", "/ready"}
"""What anybody may ask."""


@generated.parametrize()
@FEW
def test_whatever_a_caller_sends_is_no_failure(case: Any, url: str, client: httpx2.Client) -> None:
    """With a name, with another, and without: no 5XX; and who has none is told nothing but that."""
    made = client.post("/api/sessions", json={}).json()["id"]
    endless = case.operation.path == "/stream"  # so it is asked for by who has no session
    if not endless:
        for name in {"id", "threadId", "conversation_id"}.intersection(case.path_parameters or {}):
            case.path_parameters[name] = made
    for user in ("eve", None) if endless else ("bob", None, "ann"):
        answer = case.call(base_url=url, headers={} if user is None else {"x-user": user}, timeout=30)
        assert answer.status_code < 500, (user, answer.status_code, answer.text[:300])
        if user is None and case.operation.path not in OPEN:
            assert answer.status_code >= 400, answer.text[:300]
