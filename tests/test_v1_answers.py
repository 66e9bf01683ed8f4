"""What every answer under ``/v1`` has, as clients of OpenAI's APIs expect it: usage, an id, errors in their form."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response

from driving import chatting, decoded
from legato import AgentError
from legato.agent import Turn
from legato.yields import Finish, Refusal, ToolCall

Json = dict[str, Any]
NO_TOKENS: Json = {
    "input_tokens": 0,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 0,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 0,
}
NO_CHAT_TOKENS: Json = {
    "prompt_tokens": 0,
    "completion_tokens": 0,
    "total_tokens": 0,
    "prompt_tokens_details": {"cached_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 0},
}
ENDS: dict[str, list[Any]] = {
    "text": ["Hi"],
    "nothing": [],
    "refusal": [Refusal("No.")],
    "cut": ["Hi", Finish("length")],
    "call": [ToolCall("c", "f", "{}")],
    "failure": ["Hi", AgentError("No.", code="no")],
}


def speaking(*items: Any) -> Any:
    async def agent(turn: Turn) -> AsyncIterator[Any]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item

    return agent


@pytest.mark.parametrize("items", ENDS.values(), ids=ENDS)
async def test_an_agent_that_counts_nothing_has_used_nothing(items: list[Any]) -> None:
    """Zeros with all details, streamed or not, however it ends: clients fail at null."""
    async with chatting(None, speaking(*items)) as chat:
        tools = [{"type": "function", "name": "f"}]
        whole = await chat.driver.request("POST", "/v1/responses", json={"input": "a", "tools": tools})
        assert whole.json()["usage"] == NO_TOKENS
        parsed = whole.json() if whole.json()["error"] is None else {**whole.json(), "error": None}
        Response.model_validate_json(json.dumps(parsed), strict=True)
        streamed = await chat.driver.request("POST", "/v1/responses", json={"input": "a", "stream": True})
        last = json.loads(decoded(streamed.body)[-2].data)
        assert last["response"]["usage"] == NO_TOKENS
        body: Json = {
            "messages": [{"role": "user", "content": "a"}],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        }
        if isinstance(items[-1:] and items[-1], Exception):
            return
        completion = await chat.driver.request("POST", "/v1/chat/completions", json=body)
        assert completion.json()["usage"] == NO_CHAT_TOKENS
        ChatCompletion.model_validate_json(completion.body, strict=True)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        chunks = [
            json.loads(each.data)
            for each in decoded((await chat.driver.request("POST", "/v1/chat/completions", json=body)).body)[:-1]
        ]
        assert (chunks[-1]["choices"], chunks[-1]["usage"]) == ([], NO_CHAT_TOKENS)
        for chunk in chunks:
            ChatCompletionChunk.model_validate_json(json.dumps(chunk), strict=True)


CHAT: Json = {"messages": [{"role": "user", "content": "a"}]}
REQUESTS: list[tuple[str, str, Json | None, int]] = [
    ("POST", "/v1/responses", {"input": "a"}, 200),
    ("POST", "/responses", {"input": "a", "stream": True}, 200),
    ("POST", "/v1/responses", {}, 400),
    ("POST", "/v1/chat/completions", CHAT, 200),
    ("POST", "/chat/completions", CHAT, 200),
    ("POST", "/v1/chat/completions", {**CHAT, "stream": True}, 200),
    ("POST", "/v1/chat/completions", {**CHAT, "model": "gone"}, 404),
    ("GET", "/v1/models", None, 200),
    ("GET", "/v1/models/gone", None, 404),
    ("GET", "/v1/responses/resp_gone", None, 404),
    ("DELETE", "/v1/models", None, 405),
    ("GET", "/v1/nothing", None, 404),
    ("POST", "/v1/conversations", {}, 200),
]


@pytest.mark.parametrize(("method", "path", "body", "status"), REQUESTS)
async def test_each_answer_has_the_id_of_its_request(method: str, path: str, body: Json | None, status: int) -> None:
    """Streams and errors, too; no two have the same."""
    async with chatting() as chat:
        options: Json = {} if body is None else {"json": body}
        answers = [await chat.driver.request(method, path, **options) for _ in range(2)]
        page = await chat.driver.request("GET", "/health")
    assert [answer.status for answer in answers] == [status] * 2
    ids = {answer.headers["x-request-id"] for answer in answers}
    assert len(ids) == 2
    assert all(id.startswith("req_") for id in ids)
    assert page.headers["x-request-id"] not in ids


async def test_a_refusal_of_the_guard_has_an_id() -> None:
    """It is said before anything is looked at."""
    async with chatting() as chat:
        headers = {"origin": "https://evil.test"}
        answer = await chat.driver.request("POST", "/v1/responses", json={"input": "a"}, headers=headers)
    assert (answer.status, answer.headers["x-request-id"][:4]) == (403, "req_")


ABSENT = [
    *("/v1/responses/compact", "/v1/responses/input_tokens", "/responses/compact", "/v1/embeddings", "/v1/completions"),
    *("/embeddings", "/completions", "/v1/images/generations", "/v1/audio/speech", "/v1/audio/transcriptions"),
    *("/v1/moderations", "/v1/files", "/v1/batches", "/v1/fine_tuning/jobs", "/v1/assistants", "/v1/threads"),
    *("/v1/vector_stores", "/v1/uploads", "/v1/realtime/sessions", "/v1/messages", "/v1/chat", "/chat/completions/x"),
]


@pytest.mark.parametrize("path", ABSENT)
async def test_what_is_not_part_of_this_api_is_not_found(path: str) -> None:
    """In the form of its errors; a word in the place of an id is none."""
    async with chatting() as chat:
        answer = await chat.driver.request("POST", path, json={"model": "echo", "input": "a"})
    error = answer.json()["error"]
    assert (answer.status, error["code"], error["type"]) == (404, "not_found", "invalid_request_error")
    assert "not part of this API" in error["message"]


async def test_a_method_that_a_path_does_not_have_is_still_said() -> None:
    """Where there is such a path."""
    async with chatting() as chat:
        made = (await chat.driver.request("POST", "/v1/responses", json={"input": "a"})).json()
        answers = [
            await chat.driver.request(method, path)
            for method, path in (("PUT", f"/v1/responses/{made['id']}"), ("GET", "/v1/responses"))
        ]
    assert [(answer.status, "allow" in answer.headers) for answer in answers] == [(405, True)] * 2
