"""Conversations with providers that refuse as the real ones do: three turns, tools, and a change of the model (R20)."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from driving import Chat, chatting, data
from legato.agents.upstream import model_agent
from legato.server.app import Legato
from legato.tool import Tool
from strict_providers import ALL, SEALS, OldDeepSeek, Strict, served

PAIRS = list(itertools.permutations(ALL, 2))


def add(x: int) -> int:
    """Adds one."""
    return x + 1


def agents(monkeypatch: pytest.MonkeyPatch, *strict: Strict, known: bool = True, **options: Any) -> list[Any]:
    models = served(monkeypatch, *strict, known=known)
    thinking = {"thinking": {"type": "enabled", "budget_tokens": 1024}}
    return [
        model_agent(
            models[each.name],
            name=each.name,
            **{"tools": [Tool(add)], "options": thinking if each.name == "anthropic" else None, **options},
        )
        for each in strict
    ]


async def turns(chat: Chat, *names: str) -> None:
    """One turn of each of these agents, which all end well."""
    for name in names:
        answer = await chat.send(f"Add, {name}.", agent=name)
        end = (await chat.follow(answer.json()["cursor"], until=lambda m: m.event in ("complete", "error")))[-1]
        assert (end.event, data(end).get("content")) == ("complete", f"The sum of {name}."), end


def sealed(strict: Strict) -> list[set[str]]:
    """What each request to it had of what was to be given back."""
    return [{m[0] for m in SEALS.finditer(json.dumps(body))} for body in strict.told]


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("name", [*ALL, "old deepseek"])
async def test_three_turns_of_two_tool_steps(name: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is told what it wants back, all of it, and refuses nothing."""
    strict = OldDeepSeek() if name == "old deepseek" else ALL[name]()
    async with chatting(None, *agents(monkeypatch, strict, known=known)) as chat:
        await turns(chat, *[strict.name] * 3)
    assert strict.refused == []
    assert len(strict.told) == 9
    seen = sealed(strict)
    assert all(one <= two for one, two in itertools.pairwise(seen))
    assert bool(seen[-1]) == (name != "mistral")
    assert len(seen[-1]) >= (8 if name != "mistral" else 0)


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize(("one", "two"), PAIRS, ids="-".join)
async def test_a_change_of_the_model(one: str, two: str, known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is told what is another's; who comes back has its own again. A refusal is learned from, once."""
    first, second = ALL[one](), ALL[two]()
    async with chatting(None, *agents(monkeypatch, first, second, known=known)) as chat:
        await turns(chat, one, two, one, two)
    for strict in (first, second):
        assert len(strict.refused) <= (0 if known else 1), strict.refused
        assert len(strict.told) == 6
        seen = sealed(strict)
        assert all(SEALS.fullmatch(seal)[1] == strict.name for seals in seen for seal in seals)  # type: ignore[index]
        assert all(one <= two for one, two in itertools.pairwise(seen))
        if strict.name != "mistral":
            assert len(seen[-1]) >= 5


@pytest.mark.parametrize(("one", "two"), PAIRS, ids="-".join)
async def test_a_change_in_the_middle_of_a_turn(one: str, two: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's own tool is called by one model, and its output brought to another."""
    first, second = ALL[one](), ALL[two]()
    first.tool = second.tool = "theirs"
    tool = {"type": "function", "name": "theirs", "parameters": {"type": "object", "properties": {}}}
    made = agents(monkeypatch, first, second, tools=[])
    async with chatting(None, *made) as chat:
        asked: dict[str, Any] = {"input": "Go", "tools": [tool]}
        for name in (one, two, one, two, two):
            answer = (await chat.driver.request("POST", "/v1/responses", json={**asked, "model": name})).json()
            assert answer["status"] == "completed", answer
            outputs = [
                {"type": "function_call_output", "call_id": each["call_id"], "output": "7"}
                for each in answer["output"]
                if each["type"] == "function_call"
            ]
            asked = {"input": outputs or "More", "tools": [tool], "previous_response_id": answer["id"]}
    assert first.refused == second.refused == []
    for strict in (first, second):
        assert {SEALS.fullmatch(s)[1] for seals in sealed(strict) for s in seals} <= {strict.name}  # type: ignore[index]


@pytest.mark.parametrize("name", ALL)
async def test_after_a_restart_and_in_a_fork(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From the log, as it was."""
    strict = ALL[name]()
    store = f"sqlite:///{tmp_path / 'chat.db'}"
    async with chatting(Legato(store, agents=agents(monkeypatch, strict))) as chat:
        await turns(chat, name)
        session = chat.session
        before = sealed(strict)[-1]
    async with chatting(Legato(store, agents=agents(monkeypatch, strict))) as chat:
        chat.session = session
        forked = (await chat.post("/fork", {"messageIndex": 1})).json()["id"]
        for chat.session in (session, forked):
            await turns(chat, name)
            assert before <= sealed(strict)[-3]
    assert strict.refused == []
