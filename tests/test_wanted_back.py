"""What providers want back, as it stands in their streams and whole answers, and how a model's agent gives it back."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from driving import Chat, chatting, data
from fake_server import Reply, Request, json_reply, stream_reply
from legato.agents.model import Model
from legato.agents.upstream import model_agent
from legato.errors import InvalidInput
from legato.provider import ChatResult
from legato.provider.last_pass import told_name
from legato.tool import Tool
from model_server import asking
from provider_streams import chat, item, numbered, sse, use
from strict_providers import ALL, Anthropic, DeepSeek, OpenAI, anthropic_events, served

Json = dict[str, Any]
FACES = pytest.mark.parametrize("face", ["sync", "async"])


def chunks(*deltas: Json, reason: str = "tool_calls") -> bytes:
    choices: list[Json] = [{"index": 0, "delta": each} for each in deltas]
    choices.append({"index": 0, "delta": {}, "finish_reason": reason})
    return sse([*({"id": "c", "model": "m", "choices": [each]} for each in choices), "[DONE]"], named=False)


def call(index: int, id: str, **more: Any) -> Json:
    return {"tool_calls": [{"index": index, "id": id, "function": {"name": "f", "arguments": "{}"}, **more}]}


def google(sign: str) -> Json:
    return {"extra_content": {"google": {"thought_signature": sign}}}


def detail(text: str, **more: Any) -> Json:
    return {"reasoning_details": [{"type": "reasoning.text", "text": text, "index": 0, **more}]}


STREAMS: dict[str, tuple[list[Json], list[Json]]] = {
    "reasoning_content": (
        [{"reasoning_content": "a"}, {"reasoning_content": "b"}, {"content": "c"}],
        [{"thinking": "reasoning_content"}],
    ),
    "reasoning": ([{"reasoning": "a"}, {"reasoning": "b"}], [{"thinking": "reasoning"}]),
    "both": (
        [{"reasoning_content": "a", "reasoning": "a"}],
        [{"thinking": "reasoning_content"}, {"thinking": "reasoning"}],
    ),
    "two kinds": (
        [{"reasoning_content": "a"}, {"reasoning": "b"}],
        [{"fields": {"reasoning_content": "a"}}, {"fields": {"reasoning": "b"}}],
    ),
    "reasoning_details": (
        [
            {"reasoning": "ab", **detail("a", format="anthropic-claude-v1")},
            detail("b", signature=None),
            detail("", signature="s"),
            {"reasoning_details": [{"type": "reasoning.encrypted", "data": "x", "id": "1", "index": 1}]},
        ],
        [
            {"thinking": "reasoning"},
            {
                "fields": {
                    "reasoning_details": [
                        {
                            "type": "reasoning.text",
                            "text": "ab",
                            "index": 0,
                            "format": "anthropic-claude-v1",
                            "signature": "s",
                        },
                        {"type": "reasoning.encrypted", "data": "x", "id": "1", "index": 1},
                    ]
                }
            },
        ],
    ),
    "thinking_blocks": (
        [{"thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": "s"}]}],
        [{"fields": {"thinking_blocks": [{"type": "thinking", "thinking": "a", "signature": "s"}]}}],
    ),
    "signatures": (
        [call(0, "x", **google("s1")), call(1, "y"), call(2, "z", **google("s2"))],
        [{"call": "x", "fields": google("s1")}, {"call": "z", "fields": google("s2")}],
    ),
    "signatures, all with index 0": (
        [call(0, "x", **google("s1")), call(0, "y", **google("s2"))],
        [{"call": "x", "fields": google("s1")}, {"call": "y", "fields": google("s2")}],
    ),
    "a signature behind its call": (
        [call(0, "x"), {"tool_calls": [{"index": 0, **google("s1")}]}],
        [{"call": "x", "fields": google("s1")}],
    ),
    "a signature before its call's arguments": (
        [
            {"tool_calls": [{"index": 0, "id": "x", "function": {"name": "f"}, **google("s1")}]},
            {"tool_calls": [{"index": 0, "function": {"arguments": "{}"}}]},
        ],
        [{"call": "x", "fields": google("s1")}],
    ),
    "a gateway's fields": (
        [call(0, "x", provider_specific_fields={"thought_signature": "s"})],
        [{"call": "x", "fields": {"provider_specific_fields": {"thought_signature": "s"}}}],
    ),
    "a text's signature": ([{"content": "a"}, {"content": "", **google("s")}], [{"fields": google("s")}]),
    "odd ones": (
        [
            {"reasoning_details": "x", "thinking_blocks": {"a": 1}, "extra_content": [1], "content": "a"},
            {"reasoning_details": [1, None], "content": "b"},
        ],
        [{"fields": {"reasoning_details": [1, None]}}],
    ),
    "none": ([{"content": "a"}, call(0, "x")], []),
}


@FACES
@pytest.mark.parametrize("name", STREAMS)
def test_what_chat_completions_want_back(name: str, face: str) -> None:
    """In pieces, as it came."""
    deltas, pieces = STREAMS[name]
    seen = use(face, "ChatCompletionsProvider", lambda _: stream_reply(chunks(*deltas), None), chat)
    assert seen.error is None
    assert list(seen.partial.opaque) == pieces


def test_of_a_whole_answer() -> None:
    """The same, where nothing is streamed."""
    message = {"content": "a", "reasoning_content": "b", "tool_calls": call(0, "x", **google("s"))["tool_calls"]}
    answer = {"id": "c", "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}
    result = use("sync", "ChatCompletionsProvider", lambda _: json_reply(answer), whole)
    assert list(result.opaque) == [{"thinking": "reasoning_content"}, {"call": "x", "fields": google("s")}]


def whole(client: Any) -> ChatResult:
    result: ChatResult = client.chat(model="m", messages=[{"role": "user", "content": "Hi"}])
    return result


BLOCKS: list[Json] = [
    {"type": "thinking", "thinking": "One.", "signature": "s1"},
    {"type": "text", "text": "A letter of two halves: \U0001f3bb."},
    {"type": "redacted_thinking", "data": "d"},
    {"type": "thinking", "thinking": "", "signature": "s2"},
    {"type": "tool_use", "id": "toolu_1", "name": "f", "input": {"x": 1}},
    {"type": "server_tool_use", "id": "srv_1", "name": "web_search", "input": {"query": "q"}},
    {"type": "web_search_tool_result", "tool_use_id": "srv_1", "content": [{"encrypted_content": "e"}]},
    {"type": "something_new", "odd": [1]},
]
KEPT = [
    {"block": BLOCKS[0]}, {"text": 26}, {"block": BLOCKS[2]}, {"block": BLOCKS[3]}, {"call": "toolu_1"},
    {"block": BLOCKS[5], "call": "srv_1"}, {"block": BLOCKS[6], "call": "srv_1"}, {"block": BLOCKS[7]},
]  # fmt: skip


@FACES
@pytest.mark.parametrize("streamed", [True, False])
def test_what_messages_want_back(face: str, streamed: bool) -> None:
    """Every block that is no text or call, in its place, also one of a kind that nobody knows."""
    answer = {"type": "message", "id": "m", "content": BLOCKS, "stop_reason": "tool_use"}
    body = sse(anthropic_events("m", BLOCKS, "tool_use"))
    for reply, act in ((stream_reply(body, None), chat), (json_reply(answer), chat), (json_reply(answer), whole)):
        if streamed is (reply.body is body):
            found = use(face, "AnthropicProvider", lambda _, reply=reply: reply, act)
            assert list(getattr(found, "partial", found).opaque) == KEPT
    plain = sse(anthropic_events("m", [BLOCKS[1], BLOCKS[4]], "tool_use"))
    assert use(face, "AnthropicProvider", lambda _: stream_reply(plain, None), chat).partial.opaque == ()


def reasoning(id: str, **more: Any) -> Json:
    return {"type": "reasoning", "id": id, "summary": [], **more}


SEALED = {"encrypted_content": "e", "status": None}
MESSAGE = {"type": "message", "id": "msg_1", "content": [{"type": "output_text", "text": "Hi"}]}
CALL = {"type": "function_call", "id": "fc_1", "call_id": "c", "name": "f", "arguments": "{}"}
ITEMS: dict[str, tuple[list[Json], list[Json]]] = {
    "sealed": (
        [reasoning("rs_1", **SEALED), {**MESSAGE, "phase": "commentary"}, reasoning("rs_2", **SEALED), CALL],
        [
            {"block": reasoning("rs_1", encrypted_content="e")},
            {"text": 2, "fields": {"id": "msg_1", "phase": "commentary"}},
            {"block": reasoning("rs_2", encrypted_content="e")},
            {"call": "c", "fields": {"id": "fc_1"}},
        ],
    ),
    "open": (
        [reasoning("rs_1", content=[{"type": "reasoning_text", "text": "Hm."}]), CALL],
        [
            {"block": reasoning("rs_1", content=[{"type": "reasoning_text", "text": "Hm."}])},
            {"call": "c", "fields": {"id": "fc_1"}},
        ],
    ),
    "by its id only": ([reasoning("rs_1"), MESSAGE, CALL], []),
    "one of two": (
        [reasoning("rs_1", **SEALED), MESSAGE, reasoning("rs_2"), CALL],
        [{"block": reasoning("rs_1", encrypted_content="e")}, {"text": 2, "fields": {}}, {"call": "c", "fields": {}}],
    ),
    "none": ([MESSAGE, CALL], []),
    "a phase": (
        [{**MESSAGE, "phase": "final_answer"}, CALL],
        [{"text": 2, "fields": {"phase": "final_answer"}}, {"call": "c", "fields": {}}],
    ),
}


@FACES
@pytest.mark.parametrize("way", ["streamed", "at the end", "whole"])
@pytest.mark.parametrize("name", ITEMS)
def test_what_responses_want_back(name: str, way: str, face: str) -> None:
    """Reasoning that can be read by itself, and then what it led to by its id."""
    items, pieces = ITEMS[name]
    response = {"id": "resp_1", "object": "response", "status": "completed", "output": items}
    events = [item(place, "done", **each) for place, each in enumerate(items)] if way == "streamed" else []
    body = sse(numbered(*events, {"type": "response.completed", "response": response}))
    reply = json_reply(response) if way == "whole" else stream_reply(body, None)
    found = use(face, "ResponsesProvider", lambda _: reply, whole if way == "whole" else chat)
    assert list(getattr(found, "partial", found).opaque) == pieces


# The agent ------------------------------------------------------------------------------------------------------------


def add(x: int) -> int:
    """Adds one."""
    return x + 1


async def ended(chat: Chat, text: str = "Go", **fields: Any) -> tuple[str, str]:
    answer = await chat.send(text, **fields)
    end = (await chat.follow(answer.json()["cursor"], until=lambda m: m.event in ("complete", "error")))[-1]
    return str(end.event), str(data(end).get("content", ""))


@pytest.mark.parametrize("strict", [DeepSeek, Anthropic, OpenAI])
@pytest.mark.parametrize("name", ["a.b", "x" * 70, "caf\u00e9", "mcp: search"])
@pytest.mark.parametrize("chosen", [True, False])
async def test_names_of_tools_go_both_ways(
    name: str, chosen: bool, strict: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model calls a client's tool by the name that its API takes; the client hears its own."""
    strict = strict()
    check = strict.check

    def checked(body: Json) -> None:
        strict.tool = (body["tools"][0].get("function") or body["tools"][0])["name"]
        check(body)

    strict.check = checked
    tool = {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}}
    async with chatting(None, model_agent(served(monkeypatch, strict)[strict.name])) as chat:
        asked: Json = {"input": "Go", "tools": [tool]}
        if chosen:
            asked["tool_choice"] = {"type": "function", "name": name}
        for names in ([name, name], [name], []):
            answer = (await chat.driver.request("POST", "/v1/responses", json=asked)).json()
            calls = [each for each in answer["output"] if each["type"] == "function_call"]
            assert (answer["status"], [each["name"] for each in calls]) == ("completed", names)
            outputs = [{"type": "function_call_output", "call_id": each["call_id"], "output": "7"} for each in calls]
            asked = {"input": outputs, "tools": [tool], "previous_response_id": answer["id"]}
    assert strict.tool == told_name(name) != name
    assert strict.refused == []
    if chosen:
        choice = strict.told[0]["tool_choice"]
        assert (choice.get("function") or choice)["name"] == strict.tool


@pytest.mark.parametrize("name", ["anthropic", "openai"])
async def test_what_is_taken_no_more_is_left_out(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A key, or a model, was changed: the conversation goes on, and what comes then is kept."""
    strict = ALL[name]()
    model = served(monkeypatch, strict)[name]
    thinking = {"thinking": {"type": "enabled"}} if name == "anthropic" else None
    async with chatting(None, model_agent(model, tools=[Tool(add)], options=thinking)) as chat:
        assert (await ended(chat))[0] == "complete"
        for kept in ("thought", "sealed"):
            if hasattr(strict, kept):
                getattr(strict, kept).clear()
        with caplog.at_level(logging.WARNING, logger="legato"):
            assert await ended(chat) == ("complete", f"The sum of {name}.")
    assert len(strict.refused) == 1
    assert "takes back no more" in caplog.text
    assert f"seal-{name}" in json.dumps(strict.told[-1])


@pytest.mark.parametrize(
    "words",
    ["Encrypted content is not supported with this model.", "Unknown parameter: 'include'.", "include: extra field"],
)
async def test_a_provider_without_sealed_reasoning(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked once more, and not again in that way."""
    strict = OpenAI()
    asked: list[bool] = []
    handler = strict.__call__

    def answer(request: Request) -> Reply:
        asked.append("include" in request.json)
        return json_reply({"error": {"message": words, "param": None}}, 400) if asked[-1] else handler(request)

    model = asking(monkeypatch, answer)
    async with chatting(None, model_agent(model, tools=[Tool(add)])) as chat:
        assert await ended(chat) == ("complete", "The sum of openai.")
        assert await ended(chat) == ("complete", "The sum of openai.")
    assert asked == [True, *[False] * 6]
    assert strict.refused == []


@pytest.mark.parametrize(
    ("options", "include", "store"),
    [
        ({}, ["reasoning.encrypted_content"], False),
        ({"store": True}, ["reasoning.encrypted_content"], True),
        ({"include": ["message.output_text.logprobs"]}, ["message.output_text.logprobs"], False),
    ],
)
async def test_what_is_asked_of_the_responses_api(
    options: Json, include: Any, store: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sealed reasoning, and to keep nothing, unless the options say otherwise."""
    strict = OpenAI()
    model = served(monkeypatch, strict)["openai"]
    async with chatting(None, model_agent(model, tools=[Tool(add)], options=options)) as chat:
        assert (await ended(chat))[0] == "complete"
    assert [(body["include"], body["store"]) for body in strict.told] == [(include, store)] * 3


def test_rules_are_known_ones() -> None:
    """Another is a slip of the pen."""
    with pytest.raises(InvalidInput, match="mistral"):
        model_agent(Model("m", "chat", "http://x/v1"), rules=["mistrall"])


async def test_ids_come_back_as_their_provider_gave_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some models read their own; in the log each is another."""
    bodies: list[Json] = []
    given = "functions.add:0"

    def answer(request: Request) -> Reply:
        bodies.append(request.json)
        if bodies[-1]["messages"][-1]["role"] == "tool":
            return stream_reply(chunks({"content": "Done."}, reason="stop"), None)
        deltas = {"tool_calls": [{"index": 0, "id": given, "function": {"name": "add", "arguments": '{"x":1}'}}]}
        return stream_reply(chunks(deltas), None)

    async with chatting(None, model_agent(asking(monkeypatch, answer, "chat"), tools=[Tool(add)])) as chat:
        for _ in range(3):
            await ended(chat)
    told = [call["id"] for message in bodies[-1]["messages"] for call in message.get("tool_calls") or ()]
    assert len(told) == 3
    assert set(told) == {given}
