"""Tools that run at Anthropic: the provider's calls, told to readers, given back as they came, run by nobody else."""

from __future__ import annotations

import json
from typing import Any

import pytest

from driving import chatting
from fake_server import Reply, Request, json_reply, stream_reply
from legato.agents.upstream import model_agent
from legato.provider.last_pass import Addressee, told
from legato.tool import Tool
from model_server import asking
from provider_streams import chat, sse, use
from strict_providers import anthropic_events
from test_wanted_back import whole

Json = dict[str, Any]


def hosted(kind: str, name: str, content: Any, *, use: str = "server_tool_use", id: str = "srv", **more: Any) -> Json:
    """What an answer says of one call: its block, and that of its result."""
    return {"use": {"type": use, "id": id, "name": name, "input": {"q": [1, "\U0001f3bb"]}},
            "result": {"type": f"{kind}_tool_result", "tool_use_id": id, "content": content, **more}}  # fmt: skip


FOUND = {"type": "web_search_result", "url": "http://x", "title": "X", "encrypted_content": "sealed"}
SHOWN = '[{"type":"web_search_result","url":"http://x","title":"X"}]'
RAN = {"type": "code_execution_result", "stdout": "4", "stderr": "", "return_code": 0, "content": []}
WORDS = [{"type": "text", "text": "sun", "citations": None}, {"type": "text", "text": "ny"}]
KINDS: dict[str, tuple[Json, str, bool]] = {
    "a search": (hosted("web_search", "web_search", [FOUND, FOUND]), f"{SHOWN[:-1]},{SHOWN[1:]}", True),
    "nothing found": (hosted("web_search", "web_search", []), "[]", True),
    "a search that failed": (
        hosted("web_search", "web_search",
               {"type": "web_search_tool_result_error", "error_code": "max_uses_exceeded"}),
        "max_uses_exceeded", False,
    ),
    "a page": (
        hosted("web_fetch", "web_fetch", {"type": "web_fetch_result", "url": "http://x"}),
        '{"type":"web_fetch_result","url":"http://x"}', True,
    ),
    "code": (hosted("code_execution", "code_execution", RAN), json.dumps(RAN, separators=(",", ":")), True),
    "code of another kind": (
        hosted("bash_code_execution", "bash_code_execution", {**RAN, "encrypted_stdout": "sealed"}),
        json.dumps(RAN, separators=(",", ":")), True,
    ),
    "code that failed": (
        hosted("text_editor_code_execution", "text_editor_code_execution",
               {"type": "text_editor_code_execution_tool_result_error", "error_code": "unavailable"}),
        "unavailable", False,
    ),
    "an MCP server's": (
        hosted("mcp", "sky", WORDS, use="mcp_tool_use", is_error=False, server_name="s"), "sunny", True
    ),
    "an MCP server's, as text": (hosted("mcp", "sky", "sunny", use="mcp_tool_use"), "sunny", True),
    "an MCP server's that failed": (
        hosted("mcp", "sky", WORDS, use="mcp_tool_use", is_error=True), "sunny", False
    ),
    "a tool found": (
        hosted("tool_search", "tool_search_tool_regex",
               {"type": "tool_search_tool_search_result", "tool_references": []}),
        '{"type":"tool_search_tool_search_result","tool_references":[]}', True,
    ),
}  # fmt: skip
NAMED = pytest.mark.parametrize("name", KINDS)


def text(words: str) -> Json:
    return {"type": "text", "text": words}


@pytest.mark.parametrize("face", ["sync", "async"])
@pytest.mark.parametrize("way", ["streamed", "a whole answer where a stream was asked", "whole"])
@NAMED
def test_a_call_that_anthropic_makes(name: str, way: str, face: str) -> None:
    """With its arguments and what came of it, as the provider's; nothing is left to the caller."""
    call, output, success = KINDS[name]
    blocks = [text("I look. "), call["use"], call["result"], text("Seen.")]
    answer = {"type": "message", "id": "m", "content": blocks, "stop_reason": "end_turn"}
    body = sse(anthropic_events("m", blocks, "end_turn"))
    reply = json_reply(answer) if way != "streamed" else stream_reply(body, None)
    got = use(face, "AnthropicProvider", lambda _: reply, whole if way == "whole" else chat)
    got = getattr(got, "partial", got)

    assert (got.text, got.finish_reason) == ("I look. Seen.", "stop")
    (made,) = got.tool_calls
    assert (made.id, made.name, made.hosted) == ("srv", call["use"]["name"], True)
    assert json.loads(made.arguments) == call["use"]["input"]
    assert (made.output, made.success) == (output, success)


class Scripted:
    """Says these messages, one after the other; keeps what it is told."""

    def __init__(self, *answers: list[Json]) -> None:
        self.answers = [*answers]
        self.told: list[list[Json]] = []
        self.tools: list[Any] = []

    def __call__(self, request: Request) -> Reply:
        self.told.append(request.json["messages"])
        self.tools.append(request.json.get("tools"))
        blocks = self.answers.pop(0)
        reason = "end_turn"
        if blocks[-1] == PAUSE:
            reason = "pause_turn"
        elif any(block["type"] == "tool_use" for block in blocks):
            reason = "tool_use"
        return stream_reply(sse(anthropic_events("m", [each for each in blocks if each != PAUSE], reason)), None)


PAUSE: Json = {"type": "pause"}
HELD: Json = {"type": "thinking", "thinking": "Hm.", "signature": "s"}


def sky() -> str:
    """Is not to be run here."""
    raise AssertionError("this call was the provider's")


def add(x: int) -> int:
    """Adds one."""
    return x + 1


SHAPES = {
    "at once": [["text", "use", "result", "more"]],
    "without a word before": [["use", "result", "more"]],
    "thought before and behind": [["held", "text", "use", "result", "held", "more"]],
    "paused before the result": [["text", "use", "pause"], ["result", "more"]],
    "paused behind it": [["text", "use", "result", "pause"], ["more"]],
    "paused with nothing but a call": [["use", "pause"], ["result", "more"]],
    "paused again": [["text", "use", "pause"], ["result", "pause"], ["more"]],
    "at the end": [["text", "use", "result"]],
    "before a call of ours": [["text", "use", "result", "more", "ours"], ["last"]],
    "behind a call of ours": [["text", "ours", "use", "result"], ["last"]],
    "paused, then a call of ours": [["use", "pause"], ["result", "more", "ours"], ["last"]],
    "twice": [["text", "use", "result", "more", "use2", "result2", "last"]],
}


@pytest.mark.parametrize("shape", SHAPES)
@NAMED
async def test_it_is_shown_and_given_back(name: str, shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a call of the provider to readers; to Anthropic, in each later request, block by block as it said it; and
    nothing of what is sealed to anybody else."""
    call, output, success = KINDS[name]
    more = {kind: {**block, "id" if kind == "use" else "tool_use_id": "srv2"} for kind, block in call.items()}
    blocks = {
        **call, "text": text("I look. "), "more": text("Seen. "), "last": text("Done."), "held": HELD, "pause": PAUSE,
        "use2": more["use"], "result2": more["result"],
        "ours": {"type": "tool_use", "id": "toolu_1", "name": "add", "input": {"x": 1}},
    }  # fmt: skip
    answers = [[blocks[each] for each in answer] for answer in SHAPES[shape]]
    model = Scripted(*answers, [text("Yes.")])
    agent = model_agent(asking(monkeypatch, model, "messages"), tools=[Tool(sky), Tool(add)])
    async with chatting(None, agent) as chat:
        asked: Json = {"input": "Go"}
        first = (await chat.driver.request("POST", "/v1/responses", json=asked)).json()
        assert first["status"] == "completed", first
        shown = [item for item in first["output"] if item["type"] != "message"]
        assert {item["type"] for item in shown} <= {"mcp_call", "reasoning"}
        made = [item for item in shown if item["type"] == "mcp_call" and item["name"] != "add"]
        assert len(made) == (2 if shape == "twice" else 1)
        for item in made:
            assert (item["name"], json.loads(item["arguments"])) == (call["use"]["name"], call["use"]["input"])
            assert item["error" if not success else "output"] is not None
            assert output in json.dumps(item, ensure_ascii=False).replace('\\"', '"')
        assert "sealed" not in json.dumps(first)
        log = (await chat.driver.request("GET", f"/api/sessions/{first['conversation']['id']}/history")).text
        assert "sealed" not in log
        again = await chat.driver.request(
            "POST", "/v1/responses", json={"input": "And?", "previous_response_id": first["id"]}
        )
        assert again.json()["status"] == "completed", again.json()

    said = [block for answer in answers for block in answer if block != PAUSE]
    told = [message for message in model.told[-1] if message["role"] == "assistant"]
    assert [block for message in told for block in message["content"]] == said
    outputs = [block["tool_use_id"] for message in model.told[-1] if message["role"] == "user"
               for block in message["content"] if block["type"] == "tool_result"]  # fmt: skip
    assert outputs == [block["id"] for block in said if block["type"] == "tool_use"]


@pytest.mark.parametrize("wire", ["chat", "responses", "messages"])
def test_others_are_told_of_a_call_that_was_made(wire: str) -> None:
    """With what came of it, and without its blocks."""
    use, result = KINDS["a search"][0].values()
    data = [{"text": 2}, {"block": use, "call": "srv"}, {"block": result, "call": "srv"}, {"text": 2}]
    called = {"id": "srv", "type": "function", "function": {"name": "web_search", "arguments": "{}"}}
    messages: list[Json] = [
        {"role": "user", "content": "Go"},
        {"role": "assistant", "content": "Hm", "tool_calls": [called]},
        {"role": "tool", "tool_call_id": "srv", "content": SHOWN},
        {"role": "assistant", "content": "So", "opaque": [{"owner": "another", "data": data}]},
    ]
    found = told(messages, Addressee(wire, "http://test/v1", "m"))
    assert [each["role"] for each in found] == ["user", "assistant", "tool", "assistant"]
    assert "sealed" not in json.dumps(found)
    owner = Addressee("messages", "http://test/v1", "m")
    messages[-1]["opaque"][0]["owner"] = owner.owner
    mine = told(messages, owner)
    assert [(each["role"], each["content"]) for each in mine] == [("user", "Go"), ("assistant", "HmSo")]
    del data[2]  # nobody knows what came of it: a call as any other
    assert [each["role"] for each in told(messages, owner)] == ["user", "assistant", "tool", "assistant"]


async def test_a_call_that_never_came_to_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Is closed with the answer, and not given back as if it went on."""
    use = KINDS["a search"][0]["use"]
    model = Scripted([text("I look. "), use, PAUSE], [text("No.")], [text("Yes.")])
    async with chatting(None, model_agent(asking(monkeypatch, model, "messages"))) as chat:
        first = (await chat.driver.request("POST", "/v1/responses", json={"input": "Go"})).json()
        (made,) = [item for item in first["output"] if item["type"] == "mcp_call"]
        assert (first["status"], made["status"]) == ("completed", "failed")
        asked = {"input": "And?", "previous_response_id": first["id"]}
        assert (await chat.driver.request("POST", "/v1/responses", json=asked)).json()["status"] == "completed"
    kinds = [block["type"] for message in model.told[-1] for block in message["content"]]
    assert "server_tool_use" not in kinds
    assert kinds.count("tool_use") == kinds.count("tool_result") == 1
