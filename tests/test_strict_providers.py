"""Conversations with providers that refuse as the real ones do: three turns, tools, and a change of the model (R20)."""

from __future__ import annotations

import contextlib
import itertools
import json
import signal
from pathlib import Path
from typing import Any

import pytest

from driving import Chat, chatting, data
from fake_server import FakeServer, Reply, Request
from legato.agents.upstream import model_agent
from legato.errors import AgentError
from legato.server.app import Legato
from legato.tool import Tool
from model_server import Keeper, asking, says
from processes import Server, running
from provider_streams import item
from strict_providers import ALL, SEALS, OldDeepSeek, Strict, served
from test_upstream import Run
from test_waiting import ask, events, until

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


@pytest.mark.parametrize("name", ALL)
async def test_a_crash_at_every_event(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever goes on tells the same provider what it gave to whoever died, and it refuses nothing."""
    whole = ALL[name]()
    tool = Tool(add, on_crash="retry")
    run = Run(agents(monkeypatch, whole, tools=[tool])[0])
    assert await run.attempt() == "stop"
    went_on = 0
    for crash in range(1, len(run.events)):
        strict = ALL[name]()
        broken = Run(agents(monkeypatch, strict, tools=[tool])[0])
        await broken.attempt(crash_after=crash)
        with contextlib.suppress(AgentError):  # in the middle of a step
            assert await broken.attempt() == "stop"
            assert strict.told == whole.told
            assert broken.transcript.opaque == run.transcript.opaque
            went_on += 1
        assert strict.refused == []
    assert went_on >= 6


async def test_a_crash_of_an_answer_in_the_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sealed is kept once, and told in the next turn."""
    about = {"type": "function_call", "id": "fc_1", "call_id": "a", "name": "add"}
    first = [
        item(0, "done", type="reasoning", id="rs_1", summary=[], encrypted_content="sealed"),
        item(1, "added", arguments="", **about),
        item(1, "done", arguments='{"x":1}', **about),
    ]

    def made() -> tuple[Run, Keeper]:
        keeper = Keeper(first, says("Done."))
        model = asking(monkeypatch, keeper, background=True)
        return Run(model_agent(model, tools=[Tool(add, on_crash="retry")])), keeper

    whole, _ = made()
    assert await whole.attempt() == "stop"
    assert len(whole.transcript.opaque) == 1
    for crash in range(1, len(whole.events)):
        run, keeper = made()
        await run.attempt(crash_after=crash)
        assert await run.attempt() == "stop"
        assert run.transcript.opaque == whole.transcript.opaque, crash
        assert keeper.asked[0]["include"] == ["reasoning.encrypted_content"]
        assert "store" not in keeper.asked[0]


SERVED = """
import os

from legato.agents.model import Model
from legato.agents.upstream import model_agent
from legato.tool import Tool


def add(x: int) -> int:
    return x + 1


def made(name, wire, options=None):
    model = Model("m-1", wire, f"{os.environ['STRICT']}/{name}/v1", "key")
    return model_agent(model, name=name, tools=[Tool(add, approval=True)], options=options)


deepseek = made("deepseek", "chat")
gemini = made("gemini", "chat")
mistral = made("mistral", "chat")
anthropic = made("anthropic", "messages", {"thinking": {"type": "enabled"}})
openai = made("openai", "responses")
"""


def test_servers_that_are_killed_while_the_user_is_asked(tmp_path: Path) -> None:
    """In each step of a turn, with real processes: whoever comes next tells each provider what it wants back."""
    strict = {name: made() for name, made in ALL.items()}
    (tmp_path / "strict.py").write_text(SERVED)

    def answer(request: Request) -> Reply:
        return strict[request.path.split("/")[1]](request)

    def grant(server: Server, session: str) -> None:
        """Say yes to all that waits for it."""
        resolved = {each["id"] for each in events(server, session, "permission.resolved")}
        for each in events(server, session, "permission.requested"):
            if each["id"] not in resolved:
                ask(server, "POST", f"/api/permissions/{each['id']}/grant")

    sessions: dict[str, str] = {}
    with FakeServer(answer) as fake:
        for life in range(4):
            store = f"sqlite:///{tmp_path / 'log.db'}"
            arguments = ("legato", "serve", "strict.py", "--port", "0", "--store", store)
            with running(*arguments, cwd=tmp_path, env={"STRICT": fake.url}) as server:
                for name in ALL:
                    if not life:
                        sessions[name] = ask(server, "POST", "/api/sessions", {})["id"]
                    else:
                        grant(server, sessions[name])
                    if life == 2:
                        until(lambda session=sessions[name]: events(server, session, "run.completed"))
                    if life in (0, 2):
                        body = {"text": "Go", "agent": name}
                        ask(server, "POST", f"/api/sessions/{sessions[name]}/messages", body)
                    asked = (2, 3, 5, 6)[life]
                    until(lambda s=sessions[name], n=asked: len(events(server, s, "permission.requested")) == n)
                if life == 3:
                    for session in sessions.values():
                        grant(server, session)
                        until(lambda session=session: len(events(server, session, "run.completed")) == 2)
                server.process.send_signal(signal.SIGKILL)
                server.process.wait(60)
    for name, each in strict.items():
        assert len(each.refused) <= (name in ("deepseek", "gemini", "mistral")), each.refused
        assert len(each.told) == 6
        seen = sealed(each)
        assert all(one <= two for one, two in itertools.pairwise(seen))
        assert len(seen[-1]) >= (0 if name == "mistral" else 5)
