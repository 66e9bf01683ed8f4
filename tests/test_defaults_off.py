"""What is sent to a provider without being asked for can be taken out, and is, where the provider refuses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fake_server import Reply, Request, json_reply, stream_reply
from legato.agents.upstream import model_agent
from model_server import Keeper, asking, says
from provider_streams import ANTHROPIC_TEXT, CHAT_TEXT, FIDDLE, chat, sse, use
from running import Stage, staged
from test_upstream import answer


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged("memory", tmp_path) as stage:
        yield stage


REFUSALS: dict[str, Reply] = {
    "Mistral": json_reply({"object": "error", "message": {"detail": [
        {"type": "extra_forbidden", "loc": ["body", "FIELD"], "msg": "Extra inputs are not permitted", "input": {}}
    ]}, "type": "invalid_request_error"}, 422),
    "FastAPI": json_reply({"detail": [{"loc": ["body", "FIELD"], "msg": "extra fields not permitted"}]}, 422),
    "OpenAI": json_reply({"error": {"message": "Unrecognized request argument supplied: FIELD",
                                    "type": "invalid_request_error", "param": None, "code": None}}, 400),
    "param": json_reply({"error": {"message": "Not supported.", "param": "FIELD", "code": "unsupported"}}, 400),
    "a part of it": json_reply({"error": {"message": "Unknown name \"FIELD.x\": Cannot find field."}}, 400),
    "a list": json_reply([{"error": {"code": 400, "message": "Invalid JSON payload: 'FIELD'"}}], 400),
    "text": Reply(400, b"json: unknown field \"FIELD\"", {"content-type": "text/plain"}),
}  # fmt: skip
OTHERS: dict[str, Reply] = {
    "another field": json_reply({"error": {"message": "Unknown field: seed", "param": "seed"}}, 400),
    "a longer name": json_reply({"error": {"message": "Unknown field: my_FIELDs"}}, 400),
    "too many": json_reply(
        {"error": {"message": "Too many with FIELD", "param": "FIELD"}}, 429, **{"retry-after": "0"}
    ),
    "its own fault": json_reply({"error": {"message": "FIELD is broken", "param": "FIELD"}}, 500),
}


def about(reply: Reply, field: str) -> Reply:
    return Reply(reply.status, reply.body.replace(b"FIELD", field.encode()), reply.headers)


class Refusing:
    """A server that refuses requests with a field, and answers others."""

    def __init__(self, reply: Reply, field: str = "stream_options", body: bytes = b"") -> None:
        self.reply = about(reply, field)
        self.field = field
        self.body = body or sse(CHAT_TEXT, named=False)
        self.asked: list[bool] = []

    def __call__(self, request: Request) -> Reply:
        self.asked.append(self.field in request.json)
        return self.reply if self.asked[-1] else stream_reply(self.body, None)


@pytest.mark.parametrize("face", ["async", "sync"])
@pytest.mark.parametrize("name", REFUSALS)
def test_a_refusal_that_names_a_default(face: str, name: str) -> None:
    """It is tried once without."""
    server = Refusing(REFUSALS[name])

    seen = use(face, "ChatCompletionsProvider", server, chat)
    assert seen.error is None
    assert seen.partial.text == f"Hello {FIDDLE}"
    assert server.asked == [True, False]


@pytest.mark.parametrize("name", OTHERS)
async def test_other_refusals(name: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Are what they are; nothing is asked again in another way."""
    server = Refusing(OTHERS[name])
    end = await answer(stage, model_agent(asking(monkeypatch, server, "chat")))

    assert end.type == "run.failed"
    assert all(server.asked)


@pytest.mark.parametrize("name", REFUSALS)
async def test_it_is_learned_once(name: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """By an agent, for all turns that follow."""
    server = Refusing(REFUSALS[name])
    agent = model_agent(asking(monkeypatch, server, "chat"))
    for _ in range(3):
        assert (await answer(stage, agent)).type == "run.completed"
    assert server.asked == [True, False, False, False]


async def test_what_was_asked_for_is_not_taken_out(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same field, set by the options."""
    server = Refusing(REFUSALS["OpenAI"])
    options = {"stream_options": {"include_usage": False}}
    end = await answer(stage, model_agent(asking(monkeypatch, server, "chat"), options=options))

    assert (end.type, server.asked) == ("run.failed", [True])


async def test_a_server_that_refuses_in_any_case(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked twice and no more."""
    asked: list[Any] = []

    def handler(request: Request) -> Reply:
        asked.append(request.json)
        return about(REFUSALS["OpenAI"], "stream_options")

    end = await answer(stage, model_agent(asking(monkeypatch, handler, "chat")))
    assert (end.type, len(asked)) == ("run.failed", 2)


@pytest.mark.parametrize(("wire", "field", "background"), [
    ("chat", "stream_options", False),
    ("responses", "store", False),
    ("responses", "include", False),
    ("responses", "include", True),
    ("responses", "background", True),
])  # fmt: skip
@pytest.mark.parametrize("how", ["None", "refused"])
async def test_every_default(
    wire: str, field: str, background: bool, how: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Has an off, and is left out where it is refused."""
    keeper = Keeper(says("Hello."))
    sent: list[bool] = []

    def handler(request: Request) -> Reply:
        if request.method == "POST":
            sent.append(field in request.json)
            if sent[-1] and how == "refused":
                return json_reply({"error": {"message": f"Unsupported parameter: '{field}'", "param": field}}, 400)
        return stream_reply(sse(CHAT_TEXT, named=False), None) if wire == "chat" else keeper(request)

    options = {field: None} if how == "None" else None
    model = asking(monkeypatch, handler, wire, background=background)
    assert (await answer(stage, model_agent(model, options=options))).type == "run.completed"
    assert sent == ([False] if how == "None" else [True, False])


async def test_what_an_api_demands_stays(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """``max_tokens`` has to be said to Anthropic: None gives the default."""
    asked: list[Any] = []

    def handler(request: Request) -> Reply:
        asked.append(request.json)
        return stream_reply(sse(ANTHROPIC_TEXT), None)

    for options in (None, {"max_tokens": None}, {"max_tokens": 7}):
        end = await answer(stage, model_agent(asking(monkeypatch, handler, "messages"), options=options))
        assert end.type == "run.completed"
    first, second, third = (each["max_tokens"] for each in asked)
    assert first == second > third == 7
