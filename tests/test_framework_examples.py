"""The examples with agent frameworks run with one command, with and without a key."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

import live_server
from framework_server import FRAMEWORKS, Talk, serving
from legato import Client, Legato, Turn, Usage
from processes import EXAMPLES


def example(framework: str) -> Path:
    return EXAMPLES / f"agent_{framework.replace('-', '_')}.py"


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_without_a_key(framework: str, tmp_path: Path) -> None:
    """A stand-in answers and says that it is one; its tools run, one of them only with permission."""
    with serving(framework, example(framework), "memory:") as server, Client(server.url) as client:
        said = Talk(client, tmp_path / "notes").say("Hello?", agent="assistant", grant=True)

        assert "OPENAI_API_KEY is not set" in server.output
    assert "Set OPENAI_API_KEY" in said.message["text"]
    assert ["weather", "send_postcard"] == [p["name"] for p in said.message["parts"] if p["type"] == "tool_call"]
    assert 1 == said.types().count("permission.requested")


async def upstream(turn: Turn) -> AsyncIterator[Any]:
    """The model: a Legato, which speaks the APIs of OpenAI."""
    yield "You said: "
    yield f"{turn.message.text} Before that: {len(turn.history)}."
    yield Usage(input_tokens=3, output_tokens=4)


@pytest.mark.parametrize(
    ("framework", "model"),
    [("pydantic-ai", "openai:upstream"), ("openai-agents", "upstream"), ("langgraph", "openai:upstream")],
)
def test_with_a_key(framework: str, model: str, tmp_path: Path) -> None:
    """The framework's own client of OpenAI answers, turn after turn."""
    with live_server.serving(Legato("memory:", agents=[upstream])) as url:
        settings = {"OPENAI_API_KEY": "key", "OPENAI_BASE_URL": f"{url}/v1", "MODEL": model}
        with (
            serving(framework, example(framework), "memory:", **settings) as server,
            Client(server.url) as client,
        ):
            talk = Talk(client, tmp_path / "notes")
            answers = [talk.say(text, agent="assistant").message["text"] for text in ("One?", "Two?")]

    assert ["You said: One? Before that: 0.", "You said: Two? Before that: 2."] == answers
