"""What a request sets: it reaches the agent, and a model in the words of its API; or it is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from driving import Chat, chatting
from fake_server import Reply, Request, stream_reply
from legato.agents.upstream import model_agent
from legato.testing import ASGIResponse
from legato.tool import Tool
from model_server import asking
from test_histories import ANSWERS, Listener

Json = dict[str, Any]
CHAT, RESPONSES = "/v1/chat/completions", "/v1/responses"
F: Json = {"type": "function", "name": "f", "parameters": {"type": "object", "properties": {}}}
G: Json = {"type": "function", "name": "g", "parameters": {"type": "object", "properties": {}}}
NESTED: list[Json] = [
    {"type": "function", "function": {k: v for k, v in tool.items() if k != "type"}} for tool in (F, G)
]


async def ask(chat: Chat, path: str, **fields: Any) -> ASGIResponse:
    said = {"messages": [{"role": "user", "content": "a"}]} if path == CHAT else {"input": "a"}
    return await chat.driver.request("POST", path, json={**said, **fields})


def refusal(answer: ASGIResponse) -> tuple[int, str, str | None]:
    error = answer.json()["error"]
    return answer.status, error["code"], error["param"]


class Asked:
    """A model that keeps what it was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, wire: str, **options: Any) -> None:
        self.bodies: list[Json] = []
        self.agent = model_agent(asking(monkeypatch, lambda request: self.answer(request, wire), wire), **options)

    def answer(self, request: Request, wire: str) -> Reply:
        self.bodies.append(request.json)
        return stream_reply(ANSWERS[wire], None)


# What the agent is given ----------------------------------------------------------------------------------------------

GIVEN: dict[str, tuple[Json, Json]] = {
    "stop": ({"stop": ["\n"]}, {"stop": ["\n"]}),
    "stop as text": ({"stop": "\n"}, {"stop": "\n"}),
    "seed": ({"seed": 0}, {"seed": 0}),
    "user": ({"user": "u"}, {"user": "u"}),
    "logit_bias": ({"logit_bias": {"50256": -100}}, {"logit_bias": {"50256": -100}}),
    "parallel_tool_calls": ({"parallel_tool_calls": False}, {"parallel_tool_calls": False}),
    "service_tier": ({"service_tier": "flex"}, {"service_tier": "flex"}),
    "presence_penalty": ({"presence_penalty": 0.5}, {"presence_penalty": 0.5}),
    "frequency_penalty": ({"frequency_penalty": -1}, {"frequency_penalty": -1}),
    "prediction": (
        {"prediction": {"type": "content", "content": "x"}},
        {"prediction": {"type": "content", "content": "x"}},
    ),
    "web_search_options": ({"web_search_options": {}}, {"web_search_options": {}}),
    "metadata": ({"metadata": {"a": "b"}}, {"metadata": {"a": "b"}}),
    "store": ({"store": False}, {"store": False}),
    "prompt_cache_key": ({"prompt_cache_key": "k"}, {"prompt_cache_key": "k"}),
    "safety_identifier": ({"safety_identifier": "s"}, {"safety_identifier": "s"}),
    "temperature": ({"temperature": 0}, {"temperature": 0}),
    "top_p": ({"top_p": 0.5}, {"top_p": 0.5}),
}
CHAT_ONLY: dict[str, tuple[Json, Json]] = {
    "verbosity": ({"verbosity": "low"}, {"text": {"verbosity": "low"}}),
    "both of text": ({"verbosity": "low", "response_format": {"type": "json_object"}},
                     {"text": {"format": {"type": "json_object"}, "verbosity": "low"}}),
    "reasoning_effort": ({"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}}),
    "max_tokens": ({"max_tokens": 5}, {"max_output_tokens": 5}),
    "max_completion_tokens": ({"max_completion_tokens": 6, "max_tokens": 5}, {"max_output_tokens": 6}),
    "functions": ({"functions": [{"name": "f"}], "function_call": {"name": "f"}},
                  {"tools": [{"type": "function", "name": "f"}], "tool_choice": {"type": "function", "name": "f"}}),
}  # fmt: skip
RESPONSES_ONLY: dict[str, tuple[Json, Json]] = {
    "text": ({"text": {"verbosity": "low"}}, {"text": {"verbosity": "low"}}),
    "reasoning": (
        {"reasoning": {"effort": "low", "summary": "auto"}},
        {"reasoning": {"effort": "low", "summary": "auto"}},
    ),
    "truncation": ({"truncation": "auto"}, {"truncation": "auto"}),
    "max_tool_calls": ({"max_tool_calls": 3}, {"max_tool_calls": 3}),
    "background": ({"background": False}, {"background": False}),
}
NEUTRAL: list[tuple[str, Json]] = [
    (CHAT, {"n": 1}), (CHAT, {"logprobs": False}), (CHAT, {"logprobs": None, "top_logprobs": None}),
    (CHAT, {"top_logprobs": 0}), (CHAT, {"modalities": ["text"]}), (CHAT, {"audio": None}), (CHAT, {"stop": None}),
    (CHAT, {"logit_bias": {}}), (CHAT, {"presence_penalty": 0, "frequency_penalty": 0}), (CHAT, {"stop": []}),
    (CHAT, {"response_format": {"type": "text"}}), (CHAT, {"parallel_tool_calls": True}), (CHAT, {"tools": None}),
    (CHAT, {"stream_options": None}), (CHAT, {"service_tier": "auto"}), (CHAT, {"reasoning_effort": "none"}),
    (CHAT, {"web_search_options": None, "prediction": None, "seed": None, "user": None, "functions": None}),
    (CHAT, {"tool_choice": "auto"}), (CHAT, {"tool_choice": "none"}), (CHAT, {"verbosity": "medium"}),
    (RESPONSES, {"include": ["reasoning.encrypted_content"]}), (RESPONSES, {"include": []}),
    (RESPONSES, {"prompt": None}), (RESPONSES, {"text": {"format": {"type": "text"}}}),
    (RESPONSES, {"truncation": "disabled"}), (RESPONSES, {"reasoning": {}}),
    (RESPONSES, {"top_logprobs": 0}), (RESPONSES, {"max_tool_calls": None}), (RESPONSES, {"store": True}),
    (RESPONSES, {"reasoning": {"effort": None, "summary": "auto"}}), (RESPONSES, {"service_tier": "default"}),
]  # fmt: skip


async def test_the_agent_gets_what_was_set() -> None:
    """By the names of the Responses API, whichever the client's was."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        for path, cases in ((CHAT, GIVEN | CHAT_ONLY), (RESPONSES, GIVEN | RESPONSES_ONLY)):
            for name, (fields, wanted) in cases.items():
                answer = await ask(chat, path, **fields)
                assert answer.status == 200, (name, answer.text)
                got = {k: v for k, v in listener.turns[-1].message.metadata.items() if k != "input"}
                assert got == wanted, name


@pytest.mark.parametrize("wire", ANSWERS)
async def test_what_asks_for_nothing_is_taken_by_every_model(wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients send it always."""
    asked = Asked(monkeypatch, wire)
    async with chatting(None, asked.agent) as chat:
        for path, fields in NEUTRAL:
            answer = await ask(chat, path, **fields)
            assert answer.status == 200, (fields, answer.text)


REFUSED: list[tuple[str, Json, str]] = [
    (CHAT, {"logprobs": True}, "logprobs"),
    (CHAT, {"logprobs": True, "top_logprobs": 3}, "logprobs"),
    (CHAT, {"top_logprobs": 3}, "top_logprobs"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities"),
    (CHAT, {"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
    (CHAT, {"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "tools[0].type"),
    (RESPONSES, {"tools": [F, {"type": "custom", "name": "f"}]}, "tools[1].type"),
    (RESPONSES, {"prompt": {"id": "pmpt_1"}}, "prompt"),
    (RESPONSES, {"include": ["message.output_text.logprobs"]}, "include"),
]


@pytest.mark.parametrize(("path", "fields", "param"), REFUSED)
async def test_what_no_agent_can_give_is_refused_by_its_name(path: str, fields: Json, param: str) -> None:
    """And nothing is asked."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        assert refusal(await ask(chat, path, **fields)) == (400, "unsupported_parameter", param)
    assert listener.turns == []


async def test_several_answers_are_refused() -> None:
    """One is given."""
    async with chatting() as chat:
        assert refusal(await ask(chat, CHAT, n=2))[::2] == (400, "n")


# What a model is told -------------------------------------------------------------------------------------------------

SCHEMA: Json = {"name": "n", "schema": {"type": "object"}, "strict": True}
FORMAT: Json = {"response_format": {"type": "json_schema", "json_schema": SCHEMA}}
WORDS: list[tuple[Json, Json | str, Json | str, Json | str]] = [
    # of a chat: what a model is told over chat, responses, messages; or the name under which it is refused
    ({"stop": "x"}, {"stop": "x"}, "stop", {"stop_sequences": ["x"]}),
    ({"stop": ["x", "y"]}, {"stop": ["x", "y"]}, "stop", {"stop_sequences": ["x", "y"]}),
    ({"seed": 0}, {"seed": 0}, "seed", "seed"),
    ({"user": "u"}, {"user": "u"}, {"user": "u"}, {"metadata": {"user_id": "u"}}),
    ({"safety_identifier": "u"}, *[{"safety_identifier": "u"}] * 2, {"metadata": {"user_id": "u"}}),
    ({"logit_bias": {"1": -1}}, {"logit_bias": {"1": -1}}, "logit_bias", "logit_bias"),
    ({"presence_penalty": 1}, {"presence_penalty": 1}, {"presence_penalty": 1}, "presence_penalty"),
    ({"frequency_penalty": 1}, {"frequency_penalty": 1}, {"frequency_penalty": 1}, "frequency_penalty"),
    ({"verbosity": "low"}, {"verbosity": "low"}, {"text": {"verbosity": "low"}}, "verbosity"),
    ({"service_tier": "flex"}, {"service_tier": "flex"}, {"service_tier": "flex"}, "service_tier"),
    ({"reasoning_effort": "low"}, {"reasoning_effort": "low"}, {"reasoning": {"effort": "low"}},
     {"output_config": {"effort": "low"}}),
    ({"max_tokens": 5}, {"max_tokens": 5}, {"max_output_tokens": 5}, {"max_tokens": 5}),
    ({"max_completion_tokens": 5}, {"max_tokens": 5}, {"max_output_tokens": 5}, {"max_tokens": 5}),
    ({"temperature": 0, "top_p": 0.5}, *[{"temperature": 0, "top_p": 0.5}] * 3),
    (*[{"prediction": {"type": "content", "content": "x"}}] * 2, "prediction", "prediction"),
    ({"web_search_options": {"search_context_size": "low"}}, {"web_search_options": {"search_context_size": "low"}},
     "web_search_options", "web_search_options"),
    (FORMAT, FORMAT, {"text": {"format": {"type": "json_schema", **SCHEMA}}},
     {"output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}}}),
    ({**FORMAT, "reasoning_effort": "minimal"}, {**FORMAT, "reasoning_effort": "minimal"},
     {"text": {"format": {"type": "json_schema", **SCHEMA}}, "reasoning": {"effort": "minimal"}},
     {"output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {"type": "object"}}}}),
    ({"response_format": {"type": "json_object"}}, {"response_format": {"type": "json_object"}},
     {"text": {"format": {"type": "json_object"}}}, "response_format"),
    ({"tools": NESTED, "parallel_tool_calls": False}, {"parallel_tool_calls": False}, {"parallel_tool_calls": False},
     {"tool_choice": {"type": "auto", "disable_parallel_tool_use": True}}),
    ({"tools": NESTED, "parallel_tool_calls": False, "tool_choice": "required"},
     *[{"parallel_tool_calls": False, "tool_choice": "required"}] * 2,
     {"tool_choice": {"type": "any", "disable_parallel_tool_use": True}}),
]  # fmt: skip


@pytest.mark.parametrize("wire", ANSWERS)
async def test_a_model_is_told_what_was_set_in_the_words_of_its_api(wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has no word for is refused by the name that the client has for it."""
    asked = Asked(monkeypatch, wire)
    place = {"chat": 1, "responses": 2, "messages": 3}[wire]
    async with chatting(None, asked.agent) as chat:
        for case in WORDS:
            asked.bodies.clear()
            answer, wanted = await ask(chat, CHAT, **case[0]), case[place]
            if isinstance(wanted, str):
                assert refusal(answer) == (400, "unsupported_parameter", wanted)
                assert asked.bodies == []
            else:
                assert answer.status == 200, (case, answer.text)
                assert {name: asked.bodies[0].get(name) for name in wanted} == wanted


async def test_a_request_that_goes_on_is_refused_by_its_conversation_s_agent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who need not be named."""
    first, asked = Listener(), Asked(monkeypatch, "messages", name="m")
    async with chatting(None, first, asked.agent) as chat:
        begun = (await ask(chat, RESPONSES, model="m")).json()
        known = {"previous_response_id": begun["id"]}
        assert refusal(await ask(chat, RESPONSES, seed=1, **known)) == (400, "unsupported_parameter", "seed")
        assert (await ask(chat, RESPONSES, seed=1)).status == 200


# Which tool -----------------------------------------------------------------------------------------------------------

NAMED: Json = {"type": "function", "name": "f"}
NESTED_NAME: Json = {"type": "function", "function": {"name": "f"}}
CHOICES: list[tuple[str, Any, Any, Any, Any, list[str]]] = [
    # on which wire, how; what is told over chat, responses, messages; the tools
    *((path, "none", "none", "none", {"type": "none"}, ["f", "g"]) for path in (CHAT, RESPONSES)),
    *((path, "auto", "auto", "auto", {"type": "auto"}, ["f", "g"]) for path in (CHAT, RESPONSES)),
    *((path, "required", "required", "required", {"type": "any"}, ["f", "g"]) for path in (CHAT, RESPONSES)),
    *((path, "any", "required", "required", {"type": "any"}, ["f", "g"]) for path in (CHAT, RESPONSES)),
    *((path, {"type": "any"}, "required", "required", {"type": "any"}, ["f", "g"]) for path in (CHAT, RESPONSES)),
    *(
        (path, choice, NESTED_NAME, NAMED, {"type": "tool", "name": "f"}, ["f", "g"])
        for path in (CHAT, RESPONSES)
        for choice in ({"type": "function", "function": {"name": "f"}}, NAMED, {"type": "tool", "name": "f"})
    ),
    *(
        (path, choice, mode, {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "g"}]},
         {"type": {"required": "any"}.get(mode, mode)}, ["g"])
        for path in (CHAT, RESPONSES)
        for mode in ("auto", "required")
        for choice in (
            {"type": "allowed_tools", "mode": mode, "tools": [{"type": "function", "name": "g"}]},
            {"type": "allowed_tools",
             "allowed_tools": {"mode": mode, "tools": [{"type": "function", "function": {"name": "g"}}]}},
        )
    ),
]  # fmt: skip


def names(body: Json) -> list[str]:
    return [tool.get("name") or tool["function"]["name"] for tool in body["tools"]]


@pytest.mark.parametrize("wire", ANSWERS)
async def test_each_form_of_a_choice_is_told(wire: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the model's API has it; of some tools that are allowed, only those are told."""
    asked = Asked(monkeypatch, wire)
    place = {"chat": 2, "responses": 3, "messages": 4}[wire]
    async with chatting(None, asked.agent) as chat:
        for case in CHOICES:
            tools = NESTED if case[0] == CHAT else [F, G]
            answer = await ask(chat, case[0], tools=tools, tool_choice=case[1])
            assert answer.status == 200, (case, answer.text)
            left = case[5] if wire != "responses" else ["f", "g"]  # which knows such a choice
            assert (asked.bodies[-1]["tool_choice"], names(asked.bodies[-1])) == (case[place], left), case


WRONG: list[tuple[Any, str]] = [
    ({"type": "function", "function": {"name": "h"}}, "tool_choice"),
    ({"type": "function", "name": "h"}, "tool_choice"),
    ({"type": "function"}, "tool_choice"),
    ({"type": "tool", "name": "h"}, "tool_choice"),
    ({"type": "custom", "custom": {"name": "h"}}, "tool_choice"),
    ({"type": "custom", "name": "h"}, "tool_choice"),
    ({"type": "web_search_preview"}, "tool_choice"),
    ({"type": "mcp", "server_label": "x"}, "tool_choice"),
    ({}, "tool_choice"),
    ({"name": "f"}, "tool_choice"),
    ("f", "tool_choice"),
    ("", "tool_choice"),
    ({"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "h"}]}, "tool_choice"),
    ({"type": "allowed_tools", "mode": "none", "tools": []}, "tool_choice.mode"),
    ({"type": "allowed_tools", "mode": "auto"}, "tool_choice"),
    ({"type": "allowed_tools", "allowed_tools": {"mode": "auto", "tools": [F, {"type": "function", "name": "h"}]}},
     "tool_choice"),
]  # fmt: skip


@pytest.mark.parametrize("path", [CHAT, RESPONSES])
async def test_a_tool_that_nobody_has_cannot_be_chosen(path: str) -> None:
    """Nor a form that nobody knows."""
    listener = Listener()
    async with chatting(None, listener) as chat:
        for choice, param in WRONG:
            for tools in (NESTED if path == CHAT else [F, G], None):
                assert refusal(await ask(chat, path, tools=tools, tool_choice=choice)) == (
                    400,
                    "invalid_value",
                    param,
                ) or (refusal(await ask(chat, path, tools=tools, tool_choice=choice))[::2] == (400, param)), choice
    assert listener.turns == []


async def test_a_tool_of_the_server_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without being brought along."""

    def weather() -> str:
        """The weather."""
        return "sunny"

    asked = Asked(monkeypatch, "chat", tools=[Tool(weather)])
    async with chatting(None, asked.agent) as chat:
        choice = {"type": "function", "function": {"name": "weather"}}
        assert (await ask(chat, CHAT, tool_choice=choice)).status == 200
        assert asked.bodies[0]["tool_choice"] == choice
        other = {"type": "function", "function": {"name": "f"}}
        assert refusal(await ask(chat, CHAT, tool_choice=other))[::2] == (400, "tool_choice")


async def test_a_tool_of_a_provider_can_be_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """By its type."""
    asked = Asked(monkeypatch, "responses")
    async with chatting(None, asked.agent) as chat:
        tool = {"type": "web_search_preview"}
        assert (await ask(chat, RESPONSES, tools=[tool], tool_choice=tool)).status == 200
    assert (asked.bodies[0]["tools"], asked.bodies[0]["tool_choice"]) == ([tool], tool)
