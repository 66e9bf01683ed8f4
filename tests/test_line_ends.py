"""What ends a line for Unicode, but not in an event stream, is never raw on the wire: line readers would cut there."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from driving import chatting, decoded
from legato.json import unbroken
from legato.yields import Refusal, Thinking, ToolCall, ToolResult

ENDS = ("\x85", "\u2028", "\u2029")
TEXT = "a\x85b\u2028c\u2029d é 🎵 \\u2028 \\"


async def breaking(turn: Any) -> AsyncIterator[Any]:
    yield Thinking(TEXT)
    yield TEXT
    await turn.stored()
    yield ToolCall("c", "look", json.dumps({TEXT: TEXT}, ensure_ascii=False))
    yield ToolResult("c", {"found": [TEXT]})
    yield TEXT
    if turn.message.text.startswith("refuse"):
        yield Refusal(TEXT)


def strings(value: Any) -> str:
    """All texts in a JSON value, one after another."""
    if isinstance(value, dict):
        return "".join(map(strings, value.values()))
    return "".join(map(strings, value)) if isinstance(value, list) else str(value)


@pytest.mark.parametrize("question", [f"ask{TEXT}", f"refuse{TEXT}"])
@pytest.mark.parametrize(
    "where",
    ["/stream?sessionId={s}&from=start&client=legato", "/stream?sessionId={s}&from=start",
     "/api/sdk/chat/{s}/messages/{m}/query/stream", "/v1/responses", "/v1/chat/completions"],
)  # fmt: skip
async def test_no_frame_has_one(where: str, question: str) -> None:
    """Of any dialect; and what is decoded has them all the same."""
    async with chatting(None, breaking) as chat:
        if where.startswith("/v1"):
            asked = {"input": question, "messages": [{"role": "user", "content": question}]}
            asked.pop("messages" if "responses" in where else "input")
            body = json.dumps({"model": "breaking", "stream": True, **asked}).encode()
            stream = chat.driver.stream(where, method="POST", body=body, headers={"content-type": "application/json"})
        else:
            sent = await chat.said(question)
            target = where.format(s=chat.session, m=sent.json()["messageId"])
            stream = chat.driver.stream(target, method="POST" if "query" in where else "GET")
        async with stream:
            async for each in stream.messages():
                if each.event in ("complete", "error"):
                    break
        body = stream.body.decode()

    assert not [end for end in ENDS if end in body]
    assert body.splitlines() == body.replace("\r\n", "\n").removesuffix("\n").split("\n")
    said = "".join(strings(json.loads(each.data)) for each in decoded(stream.body) if each.data.startswith("{"))
    said += "".join(json.loads(each.data) for each in decoded(stream.body) if each.data.startswith('"'))
    assert TEXT in said


@pytest.mark.parametrize("text", ["", "plain", "é🎵", *ENDS, "".join(ENDS), TEXT, "\ufeff\u202a\u2027\u0084"])
def test_json_means_the_same(text: str) -> None:
    raw = json.dumps({text: [text]}, ensure_ascii=False).encode()

    made = unbroken(raw)

    assert json.loads(made) == {text: [text]}
    assert not [end for end in ENDS if end in made.decode()]
    assert made == raw or any(end in text for end in ENDS)
