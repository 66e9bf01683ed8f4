"""Who asks a Legato whose agent runs a tool itself: the real agent frameworks and SDKs, and another Legato.

Each asks once, and gets the final text: nobody takes the agent's own call for one that is left to the client. Where the
client has a tool of its own, that one is called, and the client runs it, once. What it sends back as history is
understood. A program of ``clients/`` plays all cases of its packages in one process; the tests look at what came.
"""

from __future__ import annotations

import functools
import json
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from legato import Client, Legato, Thinking, ToolArguments, ToolCall, ToolResult, ToolStarted, Turn, Usage
from legato.agents.conversation import NOT_CARRIED_OUT, conversation
from legato.provider.prompt import as_text
from legato.recorder import brought
from live_server import serving
from node_packages import package, packages
from venvs import AGENT_CLIENTS, python_with

CLIENTS = Path(__file__).parent / "clients"
AI_SDK = {
    "5": ("ai@5.0.277", "@ai-sdk/openai@2.0.131"),
    "6": ("ai@6.0.326", "@ai-sdk/openai@3.0.141"),
    "7": ("ai@7.0.173", "@ai-sdk/openai@4.0.118"),
}
FRAMEWORKS = ["openai-agents", "langchain", "pydantic-ai", "openai", "litellm"]
NODE = [*(f"ai-sdk-{version}" for version in AI_SDK), "openai-node"]
LEGATO = ["legato-chat", "legato-responses", "legato-background"]

BLIND = "ai-sdk-5"
"""Who sees no call that is not its own."""

SUNNY = '{"sun":true}'


class Weather:
    """An agent that runs its tool ``look``, and leaves ``clock`` to a client who brings that; both in one step.

    Attributes:
        asked: how often, by what the user said first.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()

    async def __call__(self, turn: Turn) -> AsyncIterator[Any]:
        told = [{**message, "content": as_text(message["content"])} for message in conversation(turn)]
        self.asked[next(message["content"] for message in told if message["role"] == "user")] += 1
        theirs = "clock" in brought(turn.message.metadata)
        if turn.message.text == "recall":
            for message in told[:-1]:
                calls = [(call["function"]["name"], call["id"]) for call in message.get("tool_calls", ())]
                yield json.dumps({**message, "tool_calls": calls}) + "\n"
        elif told[-1]["role"] == "tool":
            yield f"It is {told[-1]['content']}, and sunny."
        else:
            yield Thinking("I look. ")
            yield "Let me look. "
            yield ToolCall("call_1", "look")
            yield ToolArguments("call_1", '{"city":')
            yield ToolArguments("call_1", '"Rome"}')
            if theirs:
                yield ToolCall("call_2", "clock", "{}")
            yield ToolStarted("call_1", "Looking")
            yield ToolResult("call_1", {"sun": True})
            if not theirs:
                yield "It is sunny."
        yield Usage(input_tokens=3, output_tokens=4)


@pytest.fixture(scope="module")
def weather() -> Weather:
    return Weather()


@pytest.fixture(scope="module")
def url(weather: Weather) -> Iterator[str]:
    app = Legato("memory:")
    app.agent(weather, name="weather")
    with serving(app) as address:
        yield address


def play(*command: object) -> dict[str, dict[str, Any]]:
    """What a program of ``clients/`` has seen, by case."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=240)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert lines, done.stderr
    return {line["case"]: line for line in lines}


@functools.cache
def seen_by(client: str, url: str) -> dict[str, dict[str, Any]]:
    if client in FRAMEWORKS:
        return _python(url)
    if client in LEGATO:
        return _legato(url)
    if client == "openai-node":
        return play("node", CLIENTS / "openai_node.mjs", package("openai@7.55.0"), url)
    version = client.rpartition("-")[2]
    folder = packages(client, *AI_SDK[version], "zod@3.25.76")
    return play("node", CLIENTS / "ai_sdk.mjs", folder, url, client)


@functools.cache
def _python(url: str) -> dict[str, dict[str, Any]]:
    return play(python_with("agent-clients", *AGENT_CLIENTS), CLIENTS / "python_clients.py", url)


@functools.cache
def _legato(url: str) -> dict[str, dict[str, Any]]:
    """Another Legato, which asks as it asks any model."""
    seen: dict[str, dict[str, Any]] = {}
    for own in (False, True):
        app, runs = Legato("memory:"), []

        @app.tool
        def clock() -> str:
            """Tells the time."""
            runs.append(1)  # noqa: B023
            return "12:00"

        for name, spec, background in (
            ("legato-chat", "chat:weather", False),
            ("legato-responses", "responses:weather", False),
            ("legato-background", "responses:weather", True),
        ):
            more: dict[str, Any] = {} if own else {"tools": ()}
            app.model(spec, base_url=f"{url}/v1", name=name, background=background, **more)
        with serving(app) as address, Client(address) as client:
            for name in app.agents:
                runs.clear()
                case = f"{name} stream {'own' if own else 'none'}"
                session = client.sessions.create().id
                text = client.ask(case, session_id=session, agent=name).read()
                told = client.ask("recall", session_id=session, agent=name).read()
                seen[case] = {"case": case, "text": text, "told": told, "runs": len(runs)}
    return seen


CASES = [
    *(f"{client} {wire} {how} {own}"
      for client in (*FRAMEWORKS, *NODE) for wire in ("chat", "responses") for how in ("whole", "stream")
      for own in ("none", "own")),
    *(f"{client} stream {own}"
      for client in LEGATO for own in ("none", "own")),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_client_of_an_agent_with_a_tool(case: str, url: str, weather: Weather) -> None:
    """One request without a tool of its own, two with one; the right text; and its history is understood."""
    seen = seen_by(case.split(" ")[0], url)[case]
    own = case.endswith("own")

    assert "error" not in seen, seen["error"]
    assert seen["text"].endswith("It is 12:00, and sunny." if own else "It is sunny.")
    assert (seen["runs"], weather.asked[case]) == ((1, 3) if own else (0, 2))  # with the one for what it was told
    told = [json.loads(line) for line in seen["told"].splitlines()]
    calls = {id: name for message in told for name, id in message["tool_calls"]}
    outputs = {calls[message["tool_call_id"]]: message["content"] for message in told if message["role"] == "tool"}
    assert not any(NOT_CARRIED_OUT in message["content"] for message in told)
    assert outputs.get("clock", "12:00") == "12:00"
    assert ("clock" in outputs) == own
    if "chat" not in case and not case.startswith(BLIND):  # which have no form for it
        assert outputs["look"] == SUNNY
