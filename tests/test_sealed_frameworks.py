"""What a provider wants back, through the models of pydantic-ai's own package (R20)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fake_server import FakeServer, Reply, Request
from framework_server import AGENTS, Talk, serving
from legato import Client
from legato.agents.pydantic_ai import _PydanticTranslator
from legato.yields import Opaque, ToolCall, ToolResult
from strict_providers import SEALS, DeepSeek, OpenAI, Strict

Served = tuple[dict[str, Strict], Client]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    strict: dict[str, Strict] = {each.name: each for each in (DeepSeek(), OpenAI())}

    def answer(request: Request) -> Reply:
        return strict[request.path.split("/")[1]](request)

    target = AGENTS / "sealed_pydantic_ai.py"
    store = f"sqlite:///{tmp_path_factory.mktemp('sealed') / 'chat.db'}"
    with (
        FakeServer(answer) as fake,
        serving("pydantic-ai", target, store, STRICT=fake.url) as server,
        Client(server.url) as client,
    ):
        yield strict, client


def sealed(body: Any) -> set[str]:
    return {found[0] for found in SEALS.finditer(json.dumps(body))}


@pytest.mark.parametrize("names", [["deepseek"] * 3, ["openai"] * 3, ["deepseek", "openai"] * 2])
def test_it_comes_back_through_pydantic_ai(names: list[str], served: Served, tmp_path: Any) -> None:
    """In the next step and in the next turn, to its own provider alone; and no reader sees it."""
    strict, client = served
    for each in strict.values():
        each.told.clear()
        each.refused.clear()
    talk = Talk(client, tmp_path / "notes")
    for name in names:
        said = talk.say(f"Add, {name}.", agent=name)
        assert said.message["text"] == f"The sum of {name}.", (said.end.data, strict[name].refused)
    for name in set(names):
        assert strict[name].refused == []
        seals = [sealed(body) for body in strict[name].told]
        assert {SEALS.fullmatch(seal)[1] for each in seals for seal in each} == {name}  # type: ignore[index]
        assert len(seals[-1]) >= len([each for each in names if each == name]) * 3 - 1
    events = client.sessions.events(talk.session).events
    assert not any(event.data.get("owner") or event.data.get("data") for event in events)
    # What the model thought is shown, as it always was; what is sealed is not.
    assert not any("openai" in seal for seal in sealed([event.data for event in events]))


def part(kind: str, **fields: Any) -> Any:
    return SimpleNamespace(part_kind=kind, **fields)


def ends(index: int, part: Any) -> Any:
    return SimpleNamespace(event_kind="part_end", index=index, part=part)


def begins(index: int, part: Any) -> Any:
    return SimpleNamespace(event_kind="part_start", index=index, part=part)


SIGNED = {"signature": "s", "provider_name": "anthropic"}
DETAILS = {"provider_details": {"thought_signature": "s"}, "provider_name": "google"}


@pytest.mark.parametrize(
    ("parts", "pieces"),
    [
        (
            [part("thinking", content="Hm.", **SIGNED), part("text", content="I add."),
             part("tool-call", tool_call_id="c", tool_name="f", args="{}")],
            [{"block": {"content": "Hm.", **SIGNED}}, {"text": 6, "fields": {}}, {"call": "c", "fields": {}}],
        ),
        (
            [part("thinking", content="", id="redacted_thinking", **SIGNED), part("text", content="a")],
            [{"block": {"content": "", "id": "redacted_thinking", **SIGNED}}, {"text": 1, "fields": {}}],
        ),
        (
            [part("tool-call", tool_call_id="c", tool_name="f", args="{}", **DETAILS),
             part("tool-call", tool_call_id="d", tool_name="f", args="{}")],
            [{"call": "c", "fields": DETAILS}, {"call": "d", "fields": {}}],
        ),
        ([part("text", content="a", **DETAILS)], [{"text": 1, "fields": DETAILS}]),
        ([part("thinking", content="Hm."), part("text", content="a", id="msg_1", provider_name="openai")], []),
    ],
)  # fmt: skip
def test_what_is_kept_of_a_response(parts: list[Any], pieces: list[Any]) -> None:
    """Of every kind of part, once it is whole; before its tools begin."""
    translator = _PydanticTranslator(frozenset(), "owner")
    events = [event for n, each in enumerate(parts) for event in (begins(n, each), ends(n, each))]
    items = [item for event in events for item in translator.take(event)]
    assert not any(isinstance(item, Opaque) for item in items)
    calls = [SimpleNamespace(event_kind="function_tool_call", part=each) for each in parts if "call" in each.part_kind]
    following = [item for event in [*calls, begins(0, part("text", content=""))] for item in translator.take(event)]
    assert [item for item in following if isinstance(item, Opaque)] == ([Opaque("owner", pieces)] if pieces else [])
    if pieces:
        assert isinstance(following[0], Opaque)
    assert not any(isinstance(item, ToolCall | ToolResult) for item in following)
    unowned = _PydanticTranslator()
    assert not any(isinstance(item, Opaque) for event in [*events, *calls] for item in unowned.take(event))
