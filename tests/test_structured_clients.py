"""Who has a model answer by the call of one tool, over Chat Completions: instructor, ``llm``, LiteLLM and LangChain.

Each asks an agent before a model that speaks the same API. The choice of a tool reaches the model, which is asked once.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from typing import Any

import pytest

from fake_server import FakeServer, Reply, Request, stream_reply
from legato import Legato
from live_server import serving
from test_agent_clients import CLIENTS, play
from test_real_models import Model
from venvs import AGENT_CLIENTS, CHAT_CLIENTS, python_with

REPORT = {"city": "Rome", "degrees": 21}


class Reporter:
    """A model that calls the tool that it has to call, or its only one; and says the report where it is to be JSON.

    Attributes:
        asked: the requests, by what the user said.
    """

    def __init__(self) -> None:
        self.asked: dict[str, list[dict[str, Any]]] = {}

    def __call__(self, request: Request) -> Reply:
        body = request.json
        user = [message["content"] for message in body["messages"] if message["role"] == "user"][-1]
        self.asked.setdefault(user, []).append(body)
        tools = [tool["function"]["name"] for tool in body.get("tools", ())]
        choice = body.get("tool_choice", "auto")
        if isinstance(choice, dict):
            tools = [choice["function"]["name"]]
        text = json.dumps(REPORT)
        pieces = [text[:9], text[9:]] if tools != ["clock"] else ["{}"]
        step: list[tuple[str, Any]]
        if tools and body["messages"][-1]["role"] != "tool" and choice != "none":
            step = [("call", ("call_1", tools[0], pieces))]
        else:
            step = [("text", piece) for piece in (pieces if "response_format" in body else ["It is ", "sunny."])]
        return stream_reply(b"", None, pieces=Model().chat(step, False))


@pytest.fixture(scope="module")
def reporter() -> Reporter:
    return Reporter()


@pytest.fixture(scope="module")
def url(reporter: Reporter) -> Iterator[str]:
    app = Legato("memory:")
    with FakeServer(reporter) as behind:
        app.model("chat:m-1", base_url=f"{behind.url}/v1", name="weather", tools=())
        with serving(app) as address:
            yield address


CASES = {
    "instructor": ["whole", "async", "partial", "completion"],
    "llm": ["stream", "whole", "option", "schema", "tools", "tools whole", "goes on"],
    "litellm": ["function whole", "function stream", "required whole", "required stream"],
    "langchain_openai": ["invoke", "stream", "dict", "strict"],
}
TWICE = ["tools", "tools whole"]
"""Where the client runs its own tool in between."""


@functools.cache
def seen_by(package: str, url: str) -> dict[str, dict[str, Any]]:
    if package in ("instructor", "llm"):
        return _play("chat-clients", CHAT_CLIENTS, url)
    return _play("agent-clients", AGENT_CLIENTS, url)


@functools.cache
def _play(name: str, requirements: tuple[str, ...], url: str) -> dict[str, dict[str, Any]]:
    return play(python_with(name, *requirements), CLIENTS / "structured.py", url)


@pytest.mark.parametrize("case", [f"{package} {name}" for package, names in CASES.items() for name in names])
def test_an_answer_by_a_call(case: str, url: str, reporter: Reporter) -> None:
    """The right result of one request, in which the model was told the choice."""
    package, _, name = case.partition(" ")
    seen = seen_by(package, url)[case]

    assert "error" not in seen, seen["error"]
    asked = reporter.asked[case]
    assert len(asked) == (2 if name in TWICE else 1)
    if package != "llm":
        assert seen["result"] == REPORT
        (tool,) = asked[0]["tools"]
        named = {"type": "function", "function": {"name": tool["function"]["name"]}}
        assert asked[0]["tool_choice"] == ("required" if "required" in name else named)
        assert set(tool["function"]["parameters"]["properties"]) == set(REPORT)
    elif name == "schema":
        assert seen["result"] == REPORT
        assert asked[0]["response_format"]["type"] == "json_schema"
    else:
        assert seen["result"] == "It is sunny."
        if name == "option":
            assert (asked[0]["temperature"], asked[0]["seed"], asked[0]["stop"]) == (0.5, 1, "x")
        if name in TWICE:
            assert asked[1]["messages"][-1] == {"role": "tool", "tool_call_id": "call_1", "content": "12:00"}
        if name == "goes on":
            told = [
                (message["role"], message["content"]) for message in reporter.asked[f"{case}, again"][0]["messages"]
            ]
            assert told[-3:] == [("user", case), ("assistant", "It is sunny."), ("user", f"{case}, again")]
