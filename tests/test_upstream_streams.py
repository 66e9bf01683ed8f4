"""Agents whose model speaks with an accent: each step ends for its own reason, and what was said is told as it was."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from fake_server import Reply, Request, json_reply, stream_reply
from legato.agents.model import Model
from legato.agents.upstream import model_agent
from legato.errors import InvalidInput
from legato.provider import ProviderRefused
from legato.tool import Tool
from model_server import Keeper, asking, calls
from provider_streams import CHAT_TEXT, START, STOP, TEXT, add, block, call, chunk, finish, over, sse
from running import Stage, staged
from test_upstream import answer


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    async with staged("memory", tmp_path) as stage:
        yield stage


def plus(x: int) -> int:
    """Add one."""
    return x + 1


def step(reason: Any, *, id: str = "a", arguments: str = '{"x":1}', end: bool = True) -> bytes:
    """A step that calls the tool, and ends with this reason."""
    payloads: list[Any] = [chunk(tool_calls=[call(0, arguments, id, "plus")]), chunk(reason)]
    return sse([*payloads, "[DONE]"] if end else payloads, named=False)


def chatting(monkeypatch: pytest.MonkeyPatch, *bodies: bytes | Reply) -> tuple[Model, list[Request]]:
    """A model that gives these answers, the last one again and again; and what it is asked."""
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        body = bodies[min(len(asked), len(bodies)) - 1]
        return body if isinstance(body, Reply) else stream_reply(body, None)

    return asking(monkeypatch, handler, "chat"), asked


REASONS = [
    "tool_use",
    "STOP",
    "eos",
    "end_turn",
    "",
    "tool_calls",
    "function_call",
    "TOOL_USE",
    "null",
    "weird",
    "stop",
]


@pytest.mark.parametrize("first", REASONS)
@pytest.mark.parametrize("second", ["tool_use", "weird", "tool_calls"])
async def test_each_step_has_its_own_reason(
    first: str, second: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever a step says of its end, its calls are made unless it was cut off, and the next step begins anew."""
    answers = (step(first), step(second, id="b", arguments='{"x":5}'), sse(CHAT_TEXT, named=False))
    model, asked = chatting(monkeypatch, *answers)
    end = await answer(stage, model_agent(model, tools=[Tool(plus)]))

    assert ("run.completed", TEXT, "stop", 3) == (
        end.type,
        end.fact.message.text[-len(TEXT) :],
        end.fact.finish_reason,
        len(asked),
    )
    assert [2, 6] == [part.output for part in end.fact.message.parts if part.type == "tool_call"]


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "max_tokens", "content_filter"])
async def test_a_call_that_was_cut_off_is_not_made(reason: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the second step."""
    model, asked = chatting(monkeypatch, step("tool_calls"), step(reason, id="b", arguments='{"x":'))
    end = await answer(stage, model_agent(model, tools=[Tool(plus)]))

    assert [2, "The call was cut off."] == [part.output for part in end.fact.message.parts]
    assert ("run.completed", 2) == (end.type, len(asked))
    assert end.fact.finish_reason == ("content_filter" if "filter" in reason else "length")


async def test_an_unknown_reason_is_told(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of the last step, however long it is."""
    model, _ = chatting(monkeypatch, step("odd"), sse([chunk("very" * 200, content="Hi"), "[DONE]"], named=False))
    end = await answer(stage, model_agent(model, tools=[Tool(plus)]))

    assert end.fact.finish_reason.startswith("veryvery")


@pytest.mark.parametrize("name", ["tools", "headers", "messages", "model", "stream", "input", "think_tag"])
def test_options_that_are_not_the_senders(name: str) -> None:
    """Refused where they are given, and not in each turn."""
    for wire in ("chat", "messages", "responses"):
        with pytest.raises(InvalidInput, match=name):
            model_agent(Model("m", wire, "http://test/v1"), options={name: []})  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"seed": object()}, {"x": [object()]}, {"x": iter([])}, {"x": 1j}])
def test_options_are_json(options: Any) -> None:
    """They go into a body of JSON."""
    with pytest.raises(InvalidInput):
        model_agent(Model("m", "chat", "http://test/v1"), options=options)


async def test_other_options_are_sent(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the names of the model's API."""
    model, asked = chatting(monkeypatch, sse(CHAT_TEXT, named=False))
    await answer(stage, model_agent(model, options={"seed": 7, "max_tokens": 9, "stream_options": None}))

    assert (7, 9) == (asked[0].json["seed"], asked[0].json["max_tokens"])
    assert "stream_options" not in asked[0].json


@pytest.mark.parametrize("tag", ["think", "reasoning"])
async def test_tags_are_split(tag: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thinking is thinking in the log, and is not told to the model again."""
    pieces = [f"<{tag}", ">Hm", f".</{tag}>", "\n\nHi"]
    said = sse([*(chunk(content=piece) for piece in pieces), chunk("stop"), "[DONE]"], named=False)
    model, _ = chatting(monkeypatch, said)
    end = await answer(stage, model_agent(model, think_tag=tag))

    assert [("thinking", "Hm."), ("text", "Hi")] == [(part.type, part.text) for part in end.fact.message.parts]


async def test_a_paused_turn_goes_on(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Anthropic gets back what it said, in its own words, and goes on: one answer for those who read it."""
    search = {"type": "server_tool_use", "id": "s1", "name": "web_search", "input": {}}
    paused = [START, block(0, type="text", text=""), add(0, "text_delta", text="Let me look. "), over(0),
              block(1, **search), add(1, "input_json_delta", partial_json='{"q":1}'), over(1), finish("pause_turn"),
              STOP]  # fmt: skip
    rest = [
        START,
        block(0, type="text", text=""),
        add(0, "text_delta", text="Found."),
        over(0),
        finish("end_turn"),
        STOP,
    ]
    asked: list[Request] = []

    def handler(request: Request) -> Reply:
        asked.append(request)
        return stream_reply(sse(paused if len(asked) == 1 else rest), None)

    end = await answer(stage, model_agent(asking(monkeypatch, handler, "messages")))

    assert ("run.completed", "Let me look. Found.", "stop") == (
        end.type,
        end.fact.message.text,
        end.fact.finish_reason,
    )
    told = asked[1].json["messages"]
    assert ["user", "assistant"] == [message["role"] for message in told]
    assert [{"type": "text", "text": "Let me look. "}, {**search, "input": {"q": 1}}] == told[1]["content"]


async def test_a_turn_that_is_always_paused_ends(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """``max_steps`` bounds it, too."""
    paused = sse([START, block(0, type="text", text="Hm."), over(0), finish("pause_turn"), STOP])
    model = asking(monkeypatch, lambda _: stream_reply(paused, None), "messages")
    end = await answer(stage, model_agent(model, max_steps=3))

    assert ("run.failed", "too_many_steps") == (end.type, end.fact.code)


ODD = {
    "an id like a book": [chunk(tool_calls=[call(0, '{"x":1}', "call_" + "x" * 5_000, "plus")])],
    "a name like a book": [chunk(tool_calls=[call(0, "{}", "a", "f" * 5_000)])],
    "a model like a book": [{**chunk(tool_calls=[call(0, '{"x":1}', "a", "plus")]), "model": "m" * 5_000}],
    "half letters in names": [chunk(tool_calls=[{"index": 0, "id": "a", "function": {"name": "pl\ud83d",
                                                                                    "arguments": "{}"}}])],
    "tokens beyond all bounds": [{**chunk(tool_calls=[call(0, '{"x":1}', "a", "plus")]),
                                  "usage": {"prompt_tokens": 1e30, "completion_tokens": -5}}],
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
async def test_odd_fields_cost_no_run(name: str, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log bounds more narrowly than a provider does not fail the answer."""
    payloads = [*ODD[name], chunk("tool_calls"), "[DONE]"]
    body = "".join(f"data: {each if isinstance(each, str) else json.dumps(each)}\n\n" for each in payloads).encode()
    model, asked = chatting(monkeypatch, body, sse(CHAT_TEXT, named=False))
    end = await answer(stage, model_agent(model, tools=[Tool(plus)]))

    assert ("run.completed", TEXT, 2) == (end.type, end.fact.message.text, len(asked))
    given = asked[1].json["messages"]
    assert given[-1]["tool_call_id"] == given[-2]["tool_calls"][0]["id"]


@pytest.mark.parametrize("wire", ["chat", "responses", "messages"])
async def test_an_error_with_a_good_status_fails_the_run(
    wire: str, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the provider's words, and its code."""
    error = {"error": {"message": "The prompt is too long.", "code": "context_length_exceeded"}}
    model = asking(monkeypatch, lambda _: json_reply(error), wire)
    end = await answer(stage, model_agent(model))

    assert ("run.failed", "context_length_exceeded", "The model's provider says: The prompt is too long.") == (
        end.type,
        end.fact.code,
        end.fact.message,
    )


LATER = json_reply({"error": {"message": "Later.", "code": "busy"}}, 429, **{"retry-after": "3600"})


@pytest.mark.parametrize("reply", [LATER, Reply(503, b"<html>", {"retry-after": "3600"})])
async def test_a_long_wait_is_told(reply: Reply, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that nobody tries again before."""
    model, _ = chatting(monkeypatch, reply)
    end = await answer(stage, model_agent(model))

    assert "run.failed" == end.type
    assert end.fact.message.endswith(" It wants to be asked again in 3600 seconds.")


async def test_a_long_wait_is_not_waited(stage: Stage) -> None:
    """By an agent with its own patience: 20 seconds are less than 3600."""
    from fake_server import FakeServer

    reply = json_reply({"error": {"message": "Later."}}, 429, **{"retry-after": "21"})
    with FakeServer(lambda _: reply) as server:
        model = Model("m", "chat", f"{server.url}/v1")
        provider = model.provider()
        with pytest.raises(ProviderRefused):
            async for _ in provider.chat_stream(model="m", messages=[]):
                pass
        await provider.aclose()

    assert 1 == len(server.requests)


async def test_calls_keep_their_steps(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over Responses with a background, too, an odd status of one step says nothing of the next."""
    keeper = Keeper(calls(("a", "plus", '{"x":1}')), calls(("b", "plus", '{"x":2}')), [])
    end = await answer(stage, model_agent(asking(monkeypatch, keeper, background=True), tools=[Tool(plus)]))

    assert [2, 3] == [part.output for part in end.fact.message.parts]
